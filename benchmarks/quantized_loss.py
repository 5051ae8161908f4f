"""Trains a config with bf16's products, in int8 and in fp8, on the same batches in turns, and shows their losses.

    python benchmarks/quantized_loss.py --out=losses.jsonl                          # the quickstart: hours on a CPU
    python benchmarks/quantized_loss.py --out=losses.jsonl --of=float32,int8 --config=configs/NAME.py:ARG

Options after these override the config: --config.run.steps=400. Each way begins with the same parameters. A line of FILE has
the losses of a step, so that a run that was stopped has those so far; `--show=FILE` prints its table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import tempfile
import time
from typing import Any

import jax
import numpy as np

from orthus_jax.commands import common
from orthus_jax.config import Config, from_dict, to_dict
from orthus_jax.config.command_line import read_config
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.sources import registry as sources
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import feature_encoder
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.initial_state import first_state
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import plan_run
from orthus_jax.training.step import jit_step, train_step
from orthus_jax.training.tasks import OrthusTask

WAYS = {
    "float32": ("float32", "none"), "bfloat16": ("bfloat16", "none"), "int8": ("bfloat16", "int8"), "fp8": ("bfloat16", "fp8"),
}  # fmt: skip
SHARES = 4  # of the steps, that the table has means of
LOSSES = ("loss", "text_loss", "image_loss")


def way(config: Config, name: str) -> Config:
  """A config with a way's dtype and quantisation."""
  tree = to_dict(config)
  dtype, quantization = WAYS[name]
  tree["model"]["transformer"] |= {"dtype": dtype, "quantization": quantization, "matmul_precision": "default"}
  return from_dict(Config, tree)


class Run:
  """The trainer's own step of one way, and its state."""

  def __init__(self, config: Config, pipeline: Pipeline):
    self.mesh = mesh_lib.make_mesh(config.mesh)
    task, optimizer = OrthusTask(config, pipeline), make_optimizer(config.optimizer, config.run)
    with jax.set_mesh(self.mesh), tempfile.TemporaryDirectory() as nowhere:
      layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=self.mesh)
      contents = task.contents()
      saver = Checkpointer(Path(nowhere), config.run, made_with=checkpoint.made_with(Path(nowhere), contents))
      self.state = first_state(config, layout, create, saver, contents)
      saver.close()
      if config.data.cache_features and pipeline.table.features_IPC is None:
        vision = config.model.vision_tokenizer
        feature_encoder.encode_table(
            pipeline.table, layout.graphdef, self.state.params, self.mesh, shape=(vision.patches, vision.latent_dim)
        )
      batch = task.batch(0)
      self._step = jit_step(train_step(task, optimizer, config, layout), layout, self.mesh, batch, config)

  def step(self, batch: Any) -> dict[str, float]:
    """One update: losses, and the seconds that it took."""
    began = time.perf_counter()
    with jax.set_mesh(self.mesh):
      self.state, metrics = self._step(self.state, batch)
    found = {n: float(metrics[n]) for n in (*LOSSES, "skipped") if n in metrics}
    return found | {"seconds": time.perf_counter() - began}


def train(config: Config, names: list[str], out: Path) -> None:
  tokenizer = sources.open_tokenizer(config)
  pipeline = Pipeline(sources.open_source(config, config.data.split), tokenizer, config)
  print(f"{len(pipeline)} documents", flush=True)
  runs = {name: Run(way(config, name), pipeline) for name in names}
  with out.open("w") as file:
    for step in range(config.run.steps):
      batch = pipeline.batch(step)
      file.write(json.dumps({"step": step + 1} | {name: run.step(batch) for name, run in runs.items()}) + "\n")
      file.flush()


def table(lines: list[dict[str, Any]]) -> str:
  """Means over shares of the steps, as Markdown."""
  names = [n for n in lines[0] if n != "step"]
  rows = [f"| steps | | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
  for part in np.array_split(np.arange(len(lines)), SHARES):
    for loss in (n for n in LOSSES if n in lines[0][names[0]]):
      means = [np.mean([lines[i][n][loss] for i in part]) for n in names]
      rows.append(f"| {part[0] + 1} to {part[-1] + 1} | {loss} | {' | '.join(f'{m:.4f}' for m in means)} |")
  rows.append(f"| updates skipped | | {' | '.join(str(sum(int(x[n]['skipped']) for x in lines)) for n in names)} |")
  seconds = [f"{np.median([x[n]['seconds'] for x in lines[1:]]):.2f}" for n in names]
  return "\n".join([*rows, f"| s a step, median | | {' | '.join(seconds)} |"])


def main() -> None:
  """Trains, or shows what was trained."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, default=Path("losses.jsonl"), metavar="FILE")
  parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of such a file, and train nothing")
  parser.add_argument("--of", default="bfloat16,int8,fp8", help=f"some of {', '.join(WAYS)}")
  options, rest = parser.parse_known_args()
  if options.show is None:
    common.initialize()
    if not any(a.startswith("--config=") for a in rest):
      rest = ["--config=configs/shapes.py", *rest]
    config, _ = read_config([*rest, "--workdir=unused"])
    train(config, options.of.split(","), options.out)
  print(table([json.loads(line) for line in (options.show or options.out).read_text().splitlines()]))



if __name__ == "__main__":
  main()
