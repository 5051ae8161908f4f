"""Measures the real training step: on accelerators at the size of a config, on a CPU beside the same step in PyTorch.

    python benchmarks/train_step.py                                       # CPU: a small size, and the ratio to PyTorch
    python benchmarks/train_step.py --config=configs/orthus_7b.py:ARG     # the step of a config, on whatever jax finds
    python benchmarks/train_step.py --config=… --stage=1                  # on pictures alone, one to a row
    python benchmarks/train_step.py --config=… --of=eager                 # PyTorch's step of that config, without ours
    python benchmarks/train_step.py --config=… --of=ours,eager,compiled   # in turns, where the device holds all of them

Options after these override the config: --config.run.batch_size=2. The batch is synthetic, of the config's shapes, laid out
and packed by the pipeline itself; features are given, as `orthus prepare --images=features` keeps them. Reports the fastest
and the median step (other work on the machine only ever slows one down), tokens/s, both MFUs and memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
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
from orthus_jax.models import products
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.planning import closed_form
from orthus_jax.training import flops
from orthus_jax.training.metrics import device_memory_bytes
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import plan_run
from orthus_jax.training.step import batch_shardings, jit_step, train_step
from orthus_jax.training.tasks import OrthusTask

_PYTORCH = ("eager", "compiled", "eager_bfloat16")
_ON_A_CPU = ("eager", "eager_bfloat16")
# A CPU's size: the 7B model's proportions, 18M parameters, and half of a row in one picture.
_SMALL = {
    "model": {
        "transformer": dict(
            vocab_size=4096, width=320, mlp_width=864, layers=6, heads=5, kv_heads=5, head_dim=64, max_positions=512,
            dtype="float32", matmul_precision="auto", remat="none", scan_unroll=6, merge_positions=True,
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
    "run": dict(batch_size=8),
}  # fmt: skip


class Numbers:
  """A tokenizer whose texts are ids written out; a word, as of the prompt of a dropped caption, is the first id."""

  def __init__(self, config: Config):
    end = config.model.image_token_start + config.model.vision_tokenizer.codes
    self.first = end + 4
    self.bos, self.pad, self.eoi, self.boi, self.sep, self.image = 0, 1, end, end + 1, end + 2, end + 3
    self.vocab = config.model.transformer.vocab_size

  def encode(self, text: str) -> list[int]:
    return [int(w) if w.isdigit() else self.first for w in text.split()]


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
  """The step of the trainer, compiled; `made=False` only plans it, for others' steps of the same batch."""

  def __init__(self, config: Config, *, stage: str, made: bool = True):
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
      self.batch = task.batch(0)
      if not made:
        return
      print("making the state", file=sys.stderr, flush=True)
      self.state = create()
      if config.model.transformer.dtype == "bfloat16":
        self.batch = self.batch._replace(images=self.batch.images.astype(ml_dtypes.bfloat16))
      print("compiling the step", file=sys.stderr, flush=True)
      begin = time.monotonic()
      step = train_step(task, optimizer, config, self.layout)
      step = jit_step(step, self.layout, self.mesh, self.batch, config)
      self.compiled = step.lower(self.state, self.batch).compile()
      self.compile_seconds = time.monotonic() - begin
    self.on_device = jax.device_put(self.batch, batch_shardings(self.mesh, self.batch))

  @property
  def params(self) -> dict[str, Any]:
    """Arrays, or shapes where nothing is made."""
    state = getattr(self, "state", None)
    return self.layout.shapes.params if state is None else {n: np.asarray(v) for n, v in state.params.items()}

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


def report(ours: Ours, seconds: list[float], *, memory: int | None) -> dict[str, Any]:
  """The figures of a measured step of that config."""
  config = ours.config
  best = min(seconds)
  positions = config.run.batch_size * config.data.sequence_length
  padding = float((ours.batch.segment_ids_BT == 0).mean())
  device = jax.devices()[0]
  figures: dict[str, Any] = {
      "device": f"{ours.mesh.size} x {device.device_kind}",
      "parameters": sum(v.size for v in ours.layout.shapes.params.values()),
      "rows": config.run.batch_size, "positions": config.data.sequence_length, "padding": padding,
      "step_seconds": best, "median_step_seconds": statistics.median(seconds),
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
    # All that the step computes, what is computed again too, at the peak.
    planned = closed_form.closed(config, ours.layout.names, kernel=device.platform != "cpu").program
    figures["limit_seconds"] = sum(planned.values()) / ours.mesh.size / peak
  memory = memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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
  parser.add_argument(
      "--of", help="ours, or PyTorch's: eager, compiled, eager_bfloat16; by commas; default: ours, on a CPU the eager two"
  )
  parser.add_argument("--json", action="store_true")
  options, overrides = parser.parse_known_args()
  asked = options.of.split(",") if options.of else []
  if unknown := set(asked) - {"ours", *_PYTORCH}:
    parser.error(f"--of={','.join(unknown)}: choose of ours, {', '.join(_PYTORCH)}")
  if set(_PYTORCH) & set(asked):  # PyTorch takes of the same device
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  common.keep_memory()
  common.initialize()
  if options.config:
    config, _ = read_config([f"--config={options.config}", *overrides])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, kinds=(), later_kinds=()))  # of its one kind
  else:
    if overrides:
      parser.error(f"{overrides[0]} needs --config")
    config = from_dict(Config, _SMALL)
  names = asked or (["ours", *_ON_A_CPU] if jax.default_backend() == "cpu" else ["ours"])
  ours = Ours(config, stage=options.stage, made="ours" in names)
  competitors: dict[str, Any] = {"ours": ours} if "ours" in names else {}
  for name in _PYTORCH:
    if name not in names:
      continue
    try:
      import torch_step
    except ImportError:
      print("PyTorch isn't there (pip install -e '.[parity]'): nothing to compare with", file=sys.stderr)
      break
    theirs = config
    if name == "eager_bfloat16":
      transformer = dataclasses.replace(config.model.transformer, dtype="bfloat16")
      theirs = dataclasses.replace(config, model=dataclasses.replace(config.model, transformer=transformer))
    competitors[name] = torch_step.Step(theirs, ours.params, ours.layout.names, ours.batch, compiled=name == "compiled")
  first = {name: c.step() for name, c in competitors.items()}  # not measured: what is made once, is made here
  if "ours" in first:  # from the same parameters on the same batch; the image losses' noises differ
    expected = first["ours"]["text_loss"]
    exact = config.model.transformer.dtype == "float32" and not products.kind(config, ours.mesh)
    for name, found in first.items():
      tolerance = 1e-3 if exact and name != "eager_bfloat16" else 1e-2
      off = 0.0 if name == "ours" else abs(found[1] - expected)
      assert off < tolerance * abs(expected), f"{name} computes something else: text losses {expected} and {found[1]}"
  print("measuring", file=sys.stderr, flush=True)
  seconds = measure(competitors, options.steps)
  figures = {}
  for name, taken in seconds.items():
    memory = device_memory_bytes() if name == "ours" else competitors[name].memory()
    figures[name] = report(ours, taken, memory=memory)
  if "ours" in figures:
    figures["ours"]["compile_seconds"] = ours.compile_seconds
    for name in set(figures) - {"ours"}:
      figures[name]["seconds_to_ours"] = min(seconds[name]) / min(seconds["ours"])
  for name, values in figures.items():
    print(json.dumps({"system": name, **values}, indent=2)) if options.json else show({"system": name, **values})


if __name__ == "__main__":
  main()
