"""The training loop: reads top to bottom."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import json
import logging
from pathlib import Path
import time
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import BadRequest, Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.pipeline import FeatureTable
from orthus_jax.interop import huggingface
from orthus_jax.models import params as params_lib
from orthus_jax.models.params import Params
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import checkpoint
from orthus_jax.training.metrics import MetricWriter, Progress, peak_memory_bytes
from orthus_jax.training.optimizer import make_optimizer, schedule
from orthus_jax.training.state import Layout, TrainState, digest, plan_run, replace_params
from orthus_jax.training.step import LossTask, batch_shardings, jit_step, train_step

_log = logging.getLogger(__name__)
_ENCODE_BATCH = 256


class Task(LossTask, Protocol):
  """A loss, its model and its data."""

  def init(self) -> Any:
    """The module, freshly initialised."""

  def batches(self, start: int, stop: int) -> Any:
    """An iterator of (step, batch)."""

  def batch(self, step: int) -> Any:
    """One step's batch."""

  def tokens(self, batch: Any) -> int:
    """Positions that a batch trains on."""

  def describe(self, batch: Any) -> dict[str, float]:
    """Metrics of the data alone."""

  def after_step(self, step: int, state: TrainState, graphdef: Any, batch: Any) -> TrainState:
    """A change to the state outside the gradient."""


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run.

  Attributes:
    graphdef, params: the model; `params` the averaged ones where an average is kept.
    seconds: by part: "setup", "compile", "train".
    params_digest: SHA-256 over the final parameters' bytes.
  """

  graphdef: Any
  params: Params
  seconds: dict[str, float]
  params_digest: str


def initial_values(config: Config, layout: Layout) -> Params:
  """The parameters that `run.init_from` names, read where they belong.

  The soft VQ's codebook starts as the VQGAN's, unless it is given.
  """
  values: Params = {}
  shapes, shardings = layout.shapes.params, layout.shardings.params
  for prefix, path in config.run.init_from:

    def place(name, shape, dtype, prefix=prefix):
      fits = prefix + name in shapes and shapes[prefix + name].shape == tuple(shape)
      return shardings[prefix + name] if fits else None  # what doesn't fit is refused once all is known

    values |= {prefix + n: v for n, v in checkpoint.load_params(path, place=place).items()}
  if "vision_tokenizer/codebook" in values:
    values.setdefault("vision_embedding/codebook", values["vision_tokenizer/codebook"])
  return values


def check_sources(config: Config) -> None:
  """Refuses a `run.init_from` that leads nowhere, before any work is done."""
  for _, path in config.run.init_from:
    if path.endswith(".npz") or path.startswith("asset:"):
      checkpoint.load_params(path)
    elif not huggingface.is_checkpoint(path):
      checkpoint.find(path)


def projected_rows(config: Config, state: TrainState, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The token embedding with its image rows as a random projection of the codes, where the config wants that."""
  model = config.model
  name, codes = "token_embedding", "vision_embedding/codebook"
  if config.task != "orthus" or model.vision_embedding.fresh_rows == "random" or name in values:
    return {}
  embedding_VD, codebook_KC = np.array(state.params[name]), np.asarray(state.params[codes])
  C, D = codebook_KC.shape[1], embedding_VD.shape[1]
  centred_KC = codebook_KC - codebook_KC.mean(axis=0)
  projection_CD = np.random.default_rng(config.run.seed).standard_normal((C, D)) / np.sqrt(C)
  rows_KD = centred_KC / centred_KC.std() @ projection_CD
  start = model.image_token_start
  embedding_VD[start : start + len(rows_KD)] = model.transformer.embedding_std * rows_KD
  return {name: embedding_VD}


def _check_values(values: dict[str, np.ndarray], shapes: dict[str, jax.ShapeDtypeStruct]) -> None:
  wrong = [
      f"{n} ({'unknown' if n not in shapes else f'{v.shape} for {shapes[n].shape}'})"
      for n, v in values.items()
      if n not in shapes or shapes[n].shape != v.shape
  ]
  if wrong:
    raise BadRequest(f"run.init_from doesn't fit the model: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}")


def encode_table(table: FeatureTable, graphdef: Any, params: Params) -> None:
  """Computes every distinct picture's features, once."""

  @jax.jit
  def encode(params, pixels):
    tokenizer = params_lib.merge(graphdef, params).vision_tokenizer
    return tokenizer.encode(images_lib.to_model(pixels, tokenizer.config.pixels))

  needed = {n: v for n, v in params.items()}
  blocks = []
  for i in range(0, len(table.pixels), _ENCODE_BATCH):
    pixels = np.stack(table.pixels[i : i + _ENCODE_BATCH])
    short = _ENCODE_BATCH - len(pixels)
    padded = np.pad(pixels, ((0, short), (0, 0), (0, 0), (0, 0))) if short else pixels
    blocks.append(np.asarray(encode(needed, padded))[: len(pixels)])
  table.features_IPC = np.concatenate(blocks) if blocks else None


def train(
    config: Config,
    workdir: Path,
    task: Task,
    *,
    on_samples: Callable[[int, Any, Params, MetricWriter], None] | None = None,
) -> Result:
  """Trains to `run.steps`, from the newest complete checkpoint of `workdir` if it has one.

  Args:
    config: the experiment.
    workdir: opened by `checkpoint.open_workdir`.
    task: model, loss and data.
    on_samples: called every `run.sample_every` steps with (step, graphdef, params, writer).

  Raises:
    BadRequest: if mesh, batch, initial values or patterns don't fit.
  """
  begin = time.monotonic()
  run = config.run
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check(mesh, config)
  optimizer = make_optimizer(config.optimizer, run)
  with jax.set_mesh(mesh):
    layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    saver = checkpoint.Checkpointer(workdir, keep=run.keep_checkpoints)
    latest = saver.latest()
    if latest is not None:
      _log.info("going on from step %d of %s", latest, workdir)
      state = saver.restore(latest, layout.shapes, layout.shardings)
    else:
      values = initial_values(config, layout)
      _check_values(values, layout.shapes.params)
      state = replace_params(create(), values, layout.shardings)
      state = replace_params(state, projected_rows(config, state, values), layout.shardings)
    start = int(state.step)

    pipeline = getattr(task, "pipeline", None)
    if pipeline is not None and config.data.cache_features and start < run.steps:
      encode_table(pipeline.table, layout.graphdef, state.params)
    seconds = {"setup": time.monotonic() - begin}

    writer = MetricWriter(workdir, enabled=jax.process_index() == 0)
    try:
      state, more = _run_steps(config, task, layout, mesh, optimizer, state, saver, writer, on_samples, start=start)
      seconds |= more
      if saver.latest() != run.steps:
        saver.save(state)
      final = {n: np.asarray(v) for n, v in state.averaged.items()}
      result = Result(layout.graphdef, final, seconds, digest(state.params))
    finally:
      saver.close()
      writer.close()
  return result


def _run_steps(config, task, layout: Layout, mesh, optimizer, state, saver, writer, on_samples, *, start: int):
  """The steps themselves: (state, seconds by part)."""
  run = config.run
  if start >= run.steps:
    return state, {"compile": 0.0, "train": 0.0}
  begin = time.monotonic()
  example = task.batch(start)
  step_fn = jit_step(train_step(task, optimizer, config, layout), layout, mesh, example).lower(state, example).compile()
  places = batch_shardings(mesh, example)
  compiled = time.monotonic()
  _log.info("compiled the training step in %.1f s", compiled - begin)

  rate = schedule(config.optimizer, run.steps)
  progress = Progress(total=run.steps, initial=start, enabled=jax.process_index() == 0)
  loss, tokens, last = None, 0, time.monotonic()
  waited = 0.0
  batches = task.batches(start, run.steps)
  for _ in range(start, run.steps):
    asked = time.monotonic()
    step, batch = next(batches)
    waited += time.monotonic() - asked
    state, metrics = step_fn(state, jax.device_put(batch, places))
    done = step + 1
    tokens += task.tokens(batch)
    state = task.after_step(done, state, layout.graphdef, batch)
    if done % run.log_every == 0 or done == run.steps:
      values = {k: float(v) for k, v in jax.device_get(metrics).items()} | task.describe(batch)
      now = time.monotonic()
      values |= {
          "learning_rate": float(rate(step)), "tokens_per_second": tokens / (now - last),
          "data_wait": waited / (now - last), "memory_bytes": peak_memory_bytes(),
      }  # fmt: skip
      writer.scalars(done, values)
      loss, tokens, last, waited = values["loss"], 0, now, 0.0
    progress.update(tokens=task.tokens(batch), loss=loss)
    if on_samples and run.sample_every and done % run.sample_every == 0 and done < run.steps:
      on_samples(done, layout.graphdef, state.averaged, writer)
    if run.checkpoint_every and done % run.checkpoint_every == 0:
      saver.save(state)
  jax.block_until_ready(state)
  progress.close()
  return state, {"compile": compiled - begin, "train": time.monotonic() - compiled}
