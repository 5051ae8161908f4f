"""Measures the real training step: on accelerators at the size of a config, on a CPU beside the same step in PyTorch.

    python benchmarks/train_step.py                                       # CPU: a small size, and the ratio to PyTorch
    python benchmarks/train_step.py --config=configs/orthus_7b.py:ARG     # the step of a config, on whatever jax finds
    python benchmarks/train_step.py --config=… --stage=1                  # on pictures alone, one to a row

Options after these override the config: --config.run.batch_size=2. The batch is synthetic, of the config's shapes, laid out
and packed by the pipeline itself; features are given, as `orthus prepare --images=features` keeps them. Reports the fastest
and the median step (other work on the machine only ever slows one down), tokens/s, both MFUs and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from typing import Any

import jax
import ml_dtypes
import numpy as np

from orthus_jax.commands import common
from orthus_jax.config import Config, from_dict
from orthus_jax.config.command_line import read_config
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import flops
from orthus_jax.training.metrics import device_memory_bytes
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import plan_run
from orthus_jax.training.step import batch_shardings, jit_step, train_step
from orthus_jax.training.tasks import OrthusTask

# A CPU's size: the 7B model's proportions, 18M parameters, and half of a row in one picture.
_SMALL = {
    "model": {
        "transformer": dict(
            vocab_size=4096, width=320, mlp_width=864, layers=6, heads=5, kv_heads=5, head_dim=64, max_positions=512,
            dtype="float32", remat="none", scan_unroll=6, merge_positions=True,
        ),
        "vision_tokenizer": dict(
            resolution=32, base_channels=16, channel_multipliers=[1, 1, 1], res_blocks=1, latent_dim=16, codes=512,
            norm_groups=8,
        ),
        "diffusion": dict(width=256, blocks=3, draws=4),
    },
    "data": dict(
        source="folder", path="synthetic", sequence_length=256, images_per_row=3, learnt_images_per_row=3,
        caption_dropout=0.0,
    ),
    "optimizer": dict(learning_rate=1e-4, warmup_steps=0, weight_decay=0.01),
    # XLA hands matrix products to YNNPACK, unless told not to: at these sizes its other library is faster.
    "run": dict(batch_size=8, compiler_options=[["xla_cpu_experimental_ynn_fusion_type", ""]]),
}  # fmt: skip


class Numbers:
  """A tokenizer whose texts are ids written out."""

  def __init__(self, config: Config):
    end = config.model.image_token_start + config.model.vision_tokenizer.codes
    self.first = end + 4
    self.bos, self.pad, self.eoi, self.boi, self.sep, self.image = 0, 1, end, end + 1, end + 2, end + 3
    self.vocab = config.model.transformer.vocab_size

  def encode(self, text: str) -> list[int]:
    return [int(w) for w in text.split()]


class Synthetic:
  """Documents of a prompt, a picture and words that fill rows evenly; in stage 1, pictures alone."""

  def __init__(self, config: Config, tokenizer: Numbers, *, stage: str, n: int):
    self._n, self._stage, self._tokenizer = n, stage, tokenizer
    patches, T = config.model.vision_tokenizer.patches, config.data.sequence_length
    per_row = min(max(T // (patches + 30), 1), config.data.images_per_row)
    self._words = max(T // per_row - patches - 6, 2)

  def __len__(self) -> int:
    return self._n

  def __getitem__(self, i: int) -> Document:
    rng = np.random.default_rng(i)
    picture = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    if self._stage == "1":
      return Document((Image(picture, True),), id=str(i))

    def words(n: int) -> str:
      return " ".join(map(str, rng.integers(self._tokenizer.first, self._tokenizer.vocab, max(n, 1))))

    few = self._words // 4
    if i % 2:  # draw it
      return Document((Text(words(self._words)), Image(picture, True)), id=str(i))
    return Document((Image(picture), Text(words(few)), Text(words(self._words - few), True)), id=str(i))


class Ours:
  """The step of the trainer, compiled."""

  def __init__(self, config: Config, *, stage: str):
    self.config = config
    tokenizer = Numbers(config)
    B = config.run.batch_size
    pipeline = Pipeline(Synthetic(config, tokenizer, stage=stage, n=4 * B * config.data.images_per_row), tokenizer, config)
    vision = config.model.vision_tokenizer
    rng = np.random.default_rng(0)
    shape = (len(pipeline.table.pixels), vision.patches, vision.latent_dim)
    pipeline.table.features_IPC = rng.standard_normal(shape, np.float32)
    task = OrthusTask(config, pipeline)
    self.mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check(self.mesh, config)
    optimizer = make_optimizer(config.optimizer, config.run)
    with jax.set_mesh(self.mesh):
      self.layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=self.mesh)
      self.state = create()
      self.batch = task.batch(0)
      if config.model.transformer.dtype == "bfloat16":
        self.batch = self.batch._replace(images=self.batch.images.astype(ml_dtypes.bfloat16))
      begin = time.monotonic()
      step = train_step(task, optimizer, config, self.layout)
      step = jit_step(step, self.layout, self.mesh, self.batch, compiler_options=config.run.compiler_options)
      self.compiled = step.lower(self.state, self.batch).compile()
      self.compile_seconds = time.monotonic() - begin
    self.on_device = jax.device_put(self.batch, batch_shardings(self.mesh, self.batch))

  def step(self) -> dict[str, float]:
    self.state, metrics = self.compiled(self.state, self.on_device)
    return {k: float(v) for k, v in metrics.items()}


def measure(steppers: dict[str, Any], steps: int) -> dict[str, list[float]]:
  """Seconds of each step, the competitors taking turns."""
  seconds: dict[str, list[float]] = {name: [] for name in steppers}
  for _ in range(steps):
    for name, stepper in steppers.items():
      begin = time.monotonic()
      stepper.step()
      seconds[name].append(time.monotonic() - begin)
  return seconds


def report(ours: Ours, seconds: list[float]) -> dict[str, Any]:
  """The figures of a measured step."""
  config = ours.config
  best = min(seconds)
  positions = config.run.batch_size * config.data.sequence_length
  padding = float((ours.batch.segment_ids_BT == 0).mean())
  device = jax.devices()[0]
  figures: dict[str, Any] = {
      "device": f"{ours.mesh.size} x {device.device_kind}", "parameters": sum(v.size for v in ours.state.params.values()),
      "rows": config.run.batch_size, "positions": config.data.sequence_length, "padding": padding,
      "compile_seconds": ours.compile_seconds, "step_seconds": best, "median_step_seconds": statistics.median(seconds),
      "positions_per_second": positions / best, "tokens_per_second": positions * (1 - padding) / best,
      "rows_per_second": config.run.batch_size / best,
      "positions_per_second_per_device": positions / best / ours.mesh.size,
  }  # fmt: skip
  peak = config.run.peak_tflops * 1e12 or flops.peak(device.device_kind)
  passes = flops.passes(config.model, ours.layout.names)
  for name in ("causal", "full"):
    each = flops.token(config.model, config.data.sequence_length, causal=name == "causal", **passes)
    figures[f"tflops_{name}"] = each * positions / best / ours.mesh.size / 1e12
    if peak:
      figures[f"mfu_{name}"] = figures[f"tflops_{name}"] * 1e12 / peak
  if peak:
    figures["peak_tflops"] = peak / 1e12
  memory = device_memory_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return figures | {"memory_gib": memory / 2**30}


def show(figures: dict[str, Any]) -> None:
  print("| figure | value |\n|---|---|")
  for name, value in figures.items():
    print(f"| {name} | {value:,.4g} |" if isinstance(value, float) else f"| {name} | {value} |")


def main() -> None:
  """Runs the benchmark and prints its table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", help="FILE[:ARGUMENT]; default: a small size")
  parser.add_argument("--stage", choices=("1", "post"), default="post", help="pictures alone, or everything")
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--no-torch", action="store_true", help="don't compare, even on a CPU")
  parser.add_argument("--json", action="store_true")
  options, overrides = parser.parse_known_args()
  common.initialize()
  if options.config:
    config, _ = read_config([f"--config={options.config}", *overrides])
  else:
    if overrides:
      parser.error(f"{overrides[0]} needs --config")
    config = from_dict(Config, _SMALL)
  if jax.default_backend() == "cpu":
    common.keep_memory()
  ours = Ours(config, stage=options.stage)
  competitors: dict[str, Any] = {"orthus_jax": ours}
  if jax.default_backend() == "cpu" and not options.no_torch:
    try:
      import torch_step
    except ImportError:
      print("PyTorch isn't there (pip install -e '.[parity]'): nothing to compare with", file=sys.stderr)
    else:
      params = {n: np.asarray(v) for n, v in ours.state.params.items()}
      competitors["torch"] = torch_step.Step(config, params, ours.layout.names, ours.batch)
  first = {name: c.step() for name, c in competitors.items()}  # not measured: what is made once, is made here
  if "torch" in first:  # from the same parameters on the same batch; the image losses' noises differ
    a, b = first["orthus_jax"]["text_loss"], first["torch"][1]
    assert abs(a - b) < 1e-3 * abs(a), f"the two don't compute the same: text losses {a} and {b}"
  seconds = measure(competitors, options.steps)
  figures = report(ours, seconds["orthus_jax"])
  if "torch" in seconds:
    figures["torch_step_seconds"] = min(seconds["torch"])
    figures["torch_median_step_seconds"] = statistics.median(seconds["torch"])
    figures["ratio_to_torch"] = min(seconds["torch"]) / min(seconds["orthus_jax"])
  print(json.dumps(figures, indent=2)) if options.json else show(figures)


if __name__ == "__main__":
  main()
