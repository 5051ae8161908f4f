"""The recipe in small: its stages fit each other, and the script takes them one after another, once."""

import importlib.util
import os
from pathlib import Path
import re
import subprocess
import sys

import numpy as np
import pytest
import quick

from orthus_jax.config.command_line import load_config
from orthus_jax.evaluation import recipe
from orthus_jax.training.checkpoints import agreement, workdir as checkpoint

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "launch/recipe_shapes.sh"
RECIPE = ROOT / "configs/recipe_shapes.py"


def stages():
  spec = importlib.util.spec_from_file_location("recipe", RECIPE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return {stage: load_config(f"{RECIPE}:{stage}") for stage in module.STAGES}


def test_each_stage_can_begin_with_the_one_before():
  configs = stages()
  assert list(recipe.STAGES) == list(configs)  # those that the page tells of
  assert re.findall(r"^stage (\w+) ", SCRIPT.read_text(), re.M) == list(configs)
  for before, after in (("base", "post"), ("base", "edit"), ("base", "story")):
    assert agreement.other_model(configs[before], configs[after])[0] == []
  assert agreement.other_model(configs["chameleon"], configs["base"], headless=True)[0] == []
  for stage in ("chameleon", "base", "decoder", "post"):
    assert configs[stage].model.vision_tokenizer == configs["tokenizer"].model.vision_tokenizer
  assert len({c.data.documents for c in configs.values()}) == 1  # one data set, made once


def test_orthus_base_learns_what_it_does_at_7b():
  big = load_config(f"{ROOT}/configs/orthus_7b.py:stage1-h100-8")
  small = stages()["base"]
  assert small.optimizer.trainable == big.optimizer.trainable
  assert small.model.transformer.text_loss_weight == big.model.transformer.text_loss_weight == 0.0


@pytest.mark.slow
def test_the_script_takes_every_stage_once(tmp_path):
  out = tmp_path / "recipe"
  environment = os.environ | quick.environment() | {
      "RECIPE_WORDS": ",runlocal", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
  }  # fmt: skip

  def run():
    # Not all, for the time that it takes; edits and stories begin as `post` does.
    stages = ["tokenizer", "chameleon", "base", "decoder", "post"]
    return subprocess.run([SCRIPT, out, *stages], env=environment, capture_output=True, text=True, check=False)

  first = run()
  assert first.returncode == 0, first.stderr[-2000:]
  chameleon, base, post = (checkpoint.load_params(out / s) for s in ("chameleon", "base", "post"))
  tuned = checkpoint.load_params(out / "decoder")
  for name, value in base.items():
    learnt = name == "token_embedding" or name.startswith(("vision_embedding/", "image_head/"))
    if name in chameleon:
      assert np.array_equal(value, chameleon[name]) != learnt, name
    if name.startswith("vision_tokenizer/"):
      np.testing.assert_array_equal(post[name], tuned[name.removeprefix("vision_tokenizer/")], err_msg=name)
  assert not np.array_equal(post["vision_tokenizer/decoder/conv_out/kernel"], base["vision_tokenizer/decoder/conv_out/kernel"])
  assert not (out / "edit").exists()

  written = {p: p.stat().st_mtime_ns for p in out.glob("*/report.json")}
  again = run()
  assert again.stderr.count("is done") == 5 and {p: p.stat().st_mtime_ns for p in written} == written
