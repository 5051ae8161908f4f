"""A whole run: data, training, and the report at its end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
import time
from typing import Any

import numpy as np

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data import sources
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.evaluation import reconstruction
from orthus_jax.training import checkpoint, loop, tasks
from orthus_jax.training.metrics import peak_memory_bytes

_log = logging.getLogger("orthus_jax.train")


def run(config: Config, workdir: Path, *, begin: float) -> dict[str, Any]:
  """Trains in `workdir` and writes the report; returns what report.json holds.

  Args:
    config: the experiment.
    workdir: made if absent; one that holds another config's run is refused.
    begin: time.monotonic() when the command started.
  """
  checkpoint.open_workdir(workdir, config)
  _log.info("reading the data")
  source = sources.open_source(config, config.data.split)
  if config.task == "vision_tokenizer":
    return _tokenizer(config, workdir, tasks.TokenizerTask(config, source), begin=begin)
  raise AssertionError


def _tokenizer(config: Config, workdir: Path, task: tasks.TokenizerTask, *, begin: float) -> dict[str, Any]:
  result = loop.train(config, workdir, task)
  np.savez(workdir / "weights.npz", **{n: v.astype(np.float16) for n, v in result.params.items()})
  figures: dict[str, Any] = {"params_digest": result.params_digest}
  if config.run.report:
    held_out = sources.open_source(config, "test" if config.data.source == "shapes" else config.data.split)
    pictures = [images_lib.fit(i.pixels, config.model.vision_tokenizer.resolution)
                for n in range(min(len(held_out), 1024)) if held_out[n] for i in held_out[n].images]
    figures["scores"], rows = reconstruction.evaluate(result.graphdef, result.params, pictures)
    images_lib.save_png(workdir / "reconstructions.png", images_lib.grid(rows, 6))
  figures |= {
      "seconds": {**result.seconds, "total": time.monotonic() - begin},
      "peak_memory_bytes": peak_memory_bytes(),
  }
  checkpoint.write_text(workdir / "report.json", json.dumps(figures, indent=2) + "\n")
  for name, value in figures.get("scores", {}).items():
    _log.info("%-20s %.4g", name, value)
  return figures
