"""`orthus evaluate --benchmark=NAME`: a published benchmark, in its own layout."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from orthus_jax import paths
from orthus_jax.commands import common, sampling
from orthus_jax.config.ranges import Range
from orthus_jax.config.sampling import with_fields
from orthus_jax.errors import BadRequest
from orthus_jax.progress import bar

NAMES = ("geneval", "dpg_bench", "wise", "mme", "pope", "vqav2", "gqa")  # evaluation/runs/registry.py's, without its imports
OF_SHAPES = ("split", "quick", "captions_per_tag", "questions", "captions", "edits", "stories")
_OWN = ("images", "template", "limit", "batch_size")


def add_options(parser: argparse.ArgumentParser) -> None:
  """The options that published benchmarks alone have."""
  add = parser.add_argument_group("published benchmarks").add_argument
  add("--images", type=paths.user_path, metavar="DIR", help="pictures that are asked about, if not beside the data")
  add("--template", metavar="NAME", help="how prompts are worded: orthus (default), chameleon, showo, llava, bare")
  add("--limit", type=common.number(int, Range(1, 2**31 - 1)), metavar="N", help="the first N pictures or questions alone")
  add("--batch-size", type=common.number(int, Range(1, 2**16)), metavar="N", help="rows at once; default 64")


def check(options: argparse.Namespace) -> None:
  """Refuses options that the benchmark hasn't got.

  Raises:
    BadRequest: naming the first.
  """
  shapes = options.benchmark == "shapes"
  for name in _OWN if shapes else OF_SHAPES:
    if getattr(options, name) not in (None, False):
      other = "published benchmarks" if shapes else "--benchmark=shapes"
      raise BadRequest(f"--{name.replace('_', '-')} is for {other}: leave it out")
  if not shapes and not options.data:
    raise BadRequest(f"--benchmark={options.benchmark} needs --data=DIR, where its own data lies (docs/benchmarks.md)")
  if not shapes and not options.out:
    raise BadRequest(f"--benchmark={options.benchmark} needs --out=DIR, for answers in the benchmark's own layout")


def main(options: argparse.Namespace) -> int:
  """Runs a benchmark."""
  given = sampling.given(options)
  out = Path(options.out)
  paths.check_writable(out, option="--out")
  common.initialize()

  from orthus_jax.evaluation.runs import execute, prompts, registry
  from orthus_jax.inference import model as model_lib
  from orthus_jax.training.checkpoints import workdir as checkpoint
  from orthus_jax.training.state import digest

  name = options.template or "orthus"
  images = Path(options.images) if options.images else None
  task = registry.task(
      options.benchmark, Path(options.data), prompts.template(name), samples=options.samples, images=images
  )  # before the model, which takes longer
  model = model_lib.load(options.run)
  how = with_fields(model.config.sampling, given)
  protocol: dict[str, Any] = {
      "benchmark": options.benchmark, "model": digest(model.params), "data": execute.digest(task.sources),
      "template": {"name": name, **dataclasses.asdict(prompts.template(name))}, "samples": options.samples,
      "sampling": dataclasses.asdict(how), "max_new_tokens": task.max_new_tokens or how.max_new_tokens,
      "seeds": f"crc32 of {options.seed}/ITEM", "versions": checkpoint.versions(), "limit": options.limit,
  }  # fmt: skip
  outcome = execute.run(
      model, task, out, sampling=how, seed=options.seed, protocol=protocol, batch_size=options.batch_size or 64,
      limit=options.limit, progress=bar("drawing" if task.respond == "image" else "answering"),
  )  # fmt: skip
  record = {"files": str(outcome.files), "answered": outcome.answered, "unasked": len(outcome.failed)}
  if options.json:
    print(json.dumps(record, indent=2))
  else:
    print(f"{outcome.answered:,} of {outcome.answered + len(outcome.failed):,} answered: {outcome.files}")
  return 1 if outcome.failed and not outcome.answered else 0
