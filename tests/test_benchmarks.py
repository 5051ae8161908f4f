"""What the benchmarks stand on."""

import importlib.util
from pathlib import Path

from orthus_jax.config import Config

ROOT = Path(__file__).parent.parent


def test_the_synthetic_tokenizer_takes_the_prompt_of_a_dropped_caption():
  spec = importlib.util.spec_from_file_location("train_step", ROOT / "benchmarks/train_step.py")
  train_step = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(train_step)
  tokenizer = train_step.Numbers(Config())
  ids = tokenizer.encode(f"{Config().sampling.unconditional_prompt} 9001")
  assert ids[-1] == 9001 and all(0 <= i < tokenizer.vocab for i in ids)
