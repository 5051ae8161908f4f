"""A run that trains a vision tokenizer: scores of its reconstructions before and after, samples on the way, its weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax import files
from orthus_jax.config import Config
from orthus_jax.data import images as images_lib, picture_sheet
from orthus_jax.data.sources import registry as sources
from orthus_jax.evaluation import reconstruction, while_training
from orthus_jax.models import params as params_lib
from orthus_jax.models.vision_tokenizer import VisionTokenizer
from orthus_jax.storage.parts import Parts
from orthus_jax.training import hosts, initial_state, loop, tasks, tokenizer_losses, whitening
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.goodput import Ledger
from orthus_jax.training.metric_writer import MetricWriter
from orthus_jax.training.preemption import Signals

_log = logging.getLogger("orthus_jax.train")
_DRAWN = 8  # pictures of a vision tokenizer's samples
_SHOWN = 64  # prepared pictures that reconstruction is scored on where none are held out
_START_SCORES = "scores_before.json"


def run(
    config: Config, workdir: Path, task: tasks.TokenizerTask, signals: Signals | None, ledger: Ledger, parts: Parts | None
) -> dict[str, Any]:
  """Trains, scores reconstructions, and exports the weights to WORKDIR/weights.npz; the report's figures."""
  vision = config.model.vision_tokenizer
  graphdef, shapes, _ = params_lib.shapes_and_axes(lambda: VisionTokenizer(vision, rngs=params_lib.Keys(0)))
  if config.run.report and hosts.primary():
    with ledger.part("evaluate"):
      _score_start(config, workdir, task, graphdef, shapes)
  hosts.wait("start scored")

  def on_samples(step: int, _: Any, params: Any, writer: MetricWriter) -> None:
    pictures = _scored(config, task)[:_DRAWN]
    _, rows = reconstruction.evaluate(graphdef, tokenizer_losses.without_judges(params), pictures)
    (workdir / "samples").mkdir(exist_ok=True)
    grid = picture_sheet.grid(rows, 6)
    images_lib.save_png(workdir / "samples" / f"{step:06d}.png", grid)
    writer.image(step, "reconstructed", grid)

  hooks = while_training.samples(config, on_samples)
  result = loop.train(config, workdir, task, hooks=hooks, signals=signals, ledger=ledger, parts=parts)
  if not hosts.primary():
    return {}
  params = tokenizer_losses.without_judges(result.params)
  if config.tokenizer_loss.whiten:
    params = whitening.whiten(params, task.features(graphdef, params), power=config.tokenizer_loss.whiten)
  weights = workdir / "weights.npz"
  with files.after_training(weights), files.whole(weights) as f:
    np.savez(f, **{n: v.astype(np.float16) for n, v in params.items()})
  figures: dict[str, Any] = {"params_digest": result.params_digest, "seconds": dict(result.seconds)}
  figures["trained_steps"] = result.steps
  if config.run.report:
    ledger.enter("evaluate")
    figures["scores"], rows = reconstruction.evaluate(graphdef, params, _scored(config, task))
    with files.after_training(workdir / "reconstructions.png"):
      images_lib.save_png(workdir / "reconstructions.png", picture_sheet.grid(rows, 6))
    before = workdir / _START_SCORES
    if before.is_file():
      figures["scores_before"] = json.loads(before.read_text(encoding="utf-8"))
    for name, value in figures["scores"].items():
      was = figures.get("scores_before", {}).get(name)
      _log.info("%-20s %.4g%s", name, value, "" if was is None else f" (before: {was:.4g})")
  return figures


def _score_start(config: Config, workdir: Path, task: tasks.TokenizerTask, graphdef: Any, shapes: params_lib.Params) -> None:
  """Scores what the run begins with, before its first step, and keeps that in the workdir for the report."""
  if checkpoint.steps(workdir) or (workdir / _START_SCORES).is_file():
    return
  if params := initial_state.initial_tokenizer(config, shapes):
    scores, _ = reconstruction.evaluate(graphdef, params, _scored(config, task))
    files.write_text(workdir / _START_SCORES, json.dumps(scores, indent=2) + "\n")


def _scored(config: Config, task: tasks.TokenizerTask) -> np.ndarray:
  """The pictures that reconstruction is scored on, uint8 [n, R, R, 3]."""
  pictures, vision = task.pictures, config.model.vision_tokenizer
  if pictures.held_out:
    return pictures.read(pictures.trained + np.arange(pictures.held_out))
  if config.data.source == "prepared":
    return pictures.read(np.arange(min(_SHOWN, pictures.trained)))
  source = sources.open_source(config, "test" if config.data.source == "shapes" else config.data.split)
  documents = (source[n] for n in range(len(source)))
  images = (i.pixels for d in documents if d is not None for i in d.images)
  return np.stack([images_lib.fit(pixels, vision.resolution, vision.pixels) for pixels in images])
