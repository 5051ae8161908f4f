"""The training loop: reads top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import logging
import math
from pathlib import Path
import time
from typing import Any, Protocol

import jax
import numpy as np

from orthus_jax.config import Config, to_dict
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.models.params import Params
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.storage.parts import Parts
from orthus_jax.training import feature_encoder, flops, hosts, preemption
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.checkpoints.local_tier import LocalTier
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.goodput import Ledger
from orthus_jax.training.guard import Guard
from orthus_jax.training.initial_state import first_state
from orthus_jax.training.metric_writer import MetricWriter
from orthus_jax.training.metrics import Meter, Profiler, Progress, memory
from orthus_jax.training.optimizer import make_optimizer, schedule
from orthus_jax.training.preemption import Signals
from orthus_jax.training.state import Layout, TrainState, digest_pieces, plan_run
from orthus_jax.training.step import LossTask, batch_shardings, jit_step, train_step
from orthus_jax.training.step_ahead import StepAhead
from orthus_jax.training.stragglers import Stragglers
from orthus_jax.training.watchdog import Watchdog

_log = logging.getLogger(__name__)


class Task(LossTask, Protocol):
  """A loss, its model and its data."""

  def init(self) -> Any:
    """The module, freshly initialised."""

  def batches(self, start: int, stop: int, rows: np.ndarray | None = None) -> Any:
    """An iterator of (step, batch), all rows or some."""

  def batch(self, step: int, rows: np.ndarray | None = None) -> Any:
    """One step's batch, all rows or some."""

  def tokens(self, step: int) -> int:
    """Positions that a step's global batch trains on."""

  def contents(self) -> dict[str, Any]:
    """What all batches are made of: how many "documents", and a "digest"."""

  def describe(self, step: int) -> dict[str, float]:
    """Metrics of a step's data alone."""

  def document_ids(self, step: int) -> list[str]:
    """Names of what a step's batch holds."""

  def after_step(self, step: int, state: TrainState, graphdef: Any, batch: Any) -> TrainState:
    """A change to the state outside the gradient."""


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run.

  Attributes:
    graphdef, params: the model; `params` the averaged ones where an average is kept, none but on process 0.
    parameters: how many numbers it has.
    seconds: by part: "setup", "compile", "train".
    steps: how many were trained in that time, which are fewer than `run.steps` where it went on from a checkpoint.
    params_digest: SHA-256 over the final parameters' bytes.
  """

  graphdef: Any
  params: Params
  parameters: int
  seconds: dict[str, float]
  steps: int
  params_digest: str


def train(
    config: Config,
    workdir: Path,
    task: Task,
    *,
    hooks: Sequence[tuple[int, Callable[[int, Any, Params, MetricWriter], None]]] = (),
    signals: Signals | None = None,
    ledger: Ledger | None = None,
    parts: Parts | None = None,
    ahead: StepAhead | None = None,
) -> Result:
  """Trains to `run.steps`, from where `start.first_state` says.

  Args:
    config: the experiment.
    workdir: opened by `checkpoint.open_workdir`.
    task: model, loss and data.
    hooks: (steps, what is called every so many of them with (step, graphdef, params, writer)) pairs.
    signals: which may ask to stop early.
    ledger: of the time since the command began.
    parts: as the Checkpointer takes it.
    ahead: the step, if it is being compiled already.

  Raises:
    BadRequest: if mesh, batch, initial values or patterns don't fit.
    Stopped: early, by a signal, or because update after update was skipped.
  """
  begin = time.monotonic()
  ledger = ledger or Ledger()
  run = config.run
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check(mesh, config)
  optimizer = make_optimizer(config.optimizer, run)
  with jax.set_mesh(mesh):
    layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    contents = task.contents()
    made = checkpoint.made_with(workdir, contents)
    saver, tier = Checkpointer(workdir, run, made_with=made, parts=parts), LocalTier(config, workdir, layout, made)
    state = first_state(config, layout, create, saver, contents, tier)
    start = int(state.step)

    pipeline = getattr(task, "pipeline", None)
    if pipeline is not None and config.data.cache_features and start < run.steps:
      vision = config.model.vision_tokenizer
      shape = (vision.patches, vision.latent_dim)
      feature_encoder.encode_table(pipeline.table, layout.graphdef, state.params, mesh, shape=shape)
    encoded_by = getattr(pipeline, "encoded_by", set())
    if encoded_by and encoded_by != {feature_encoder.encoder_digest(state.params)}:
      raise BadRequest(
          "the prepared features come from another vision tokenizer than the model's: prepare them anew, or set"
          " run.init_from to the one they were made with"
      )
    seconds = {"setup": time.monotonic() - begin}

    writer = MetricWriter(workdir, start=start, enabled=hosts.primary(), loggers=run.loggers, config=to_dict(config))
    signals = signals or Signals()
    # What lies on the disk: asking the others, or Orbax, would hang with what hangs.
    watchdog = Watchdog(run.hang_timeout, lambda: max(checkpoint.steps(workdir), default=None), ledger.when_lost)
    try:
      state, more = _run_steps(
          config, task, layout, mesh, optimizer, state, saver, tier, writer, hooks, signals, watchdog, ledger, ahead,
          start=start,
      )  # fmt: skip
      seconds |= more
      size = sum(math.prod(v.shape) for v in state.params.values())
      result = Result(layout.graphdef, _gathered(state.averaged), size, seconds, run.steps - start, _digest(state.params))
    finally:
      watchdog.close()
      saver.close()
      newest = max(checkpoint.steps(workdir), default=None)
      tier.close(newest if parts is None else None)
      if parts is not None:  # until it is in the bucket, the local ones are all there is
        parts.after.append(functools.partial(tier.close, newest))
      signals.saving(False)
      writer.close()
  return result


def _gathered(params: Params) -> Params:
  """Every parameter whole, on process 0 alone."""
  whole = {}
  for name in sorted(params):
    value = [p for p in hosts.pieces(params[name]) if hosts.primary()]
    if value:
      whole[name] = value[0] if len(value) == 1 else np.concatenate(value)
  return whole


def _digest(params: Params) -> str:
  """`state.digest` of parameters that may lie on several processes."""
  return digest_pieces((n, hosts.pieces(params[n])) for n in sorted(params))


def _run_steps(
    config, task, layout: Layout, mesh, optimizer, state, saver, tier: LocalTier, writer, hooks, signals, watchdog,
    ledger: Ledger, ahead: StepAhead | None, *, start: int,
):  # fmt: skip
  """The steps themselves, and the last checkpoint: (state, seconds by part)."""
  run = config.run
  if start >= run.steps:
    ledger.goes_on_from(start)
    with ledger.part("checkpoint"):
      _save_last(saver, state, None)  # unless it is its own
    return state, {"compile": 0.0, "train": 0.0}
  ready = time.monotonic()
  ledger.enter("compile")
  one = task.batch(start, np.arange(1))
  example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((run.batch_size, *x.shape[1:]), x.dtype), one)
  step_fn = ahead.take(example) if ahead else None
  if step_fn is None:
    with compiler.refusals():
      step_fn = jit_step(train_step(task, optimizer, config, layout), layout, mesh, example, config)
      step_fn = step_fn.lower(state, example).compile()
  places = batch_shardings(mesh, example)
  rows = hosts.own_rows(zip(jax.tree.leaves(places), (x.shape for x in jax.tree.leaves(example))))
  compiled = time.monotonic()
  took = max(ahead.seconds if ahead else 0.0, compiled - ready)
  beside = " beside the reading" if compiled - ready < took else ""
  _log.info("compiled the training step in %.1f s%s", took, beside)

  rate = schedule(config.optimizer, run.steps)
  progress = Progress(total=run.steps, initial=start, enabled=hosts.primary())
  meter = Meter(devices=mesh.size, flops=_flops(config, layout), peak=_peak(config), ledger=ledger)
  profiler = Profiler(writer.workdir / "profile", run.profile_steps, enabled=hosts.primary())
  guard = Guard(run, document_ids=task.document_ids, last_good=saver.latest, log=hosts.primary())
  stragglers = Stragglers(ledger)
  loss = signal = None
  batches = task.batches(start, run.steps, rows if hosts.several() else None)
  signals.saving(True)
  watchdog.beat(start)
  ledger.enter("step")
  ledger.goes_on_from(start)
  for _ in range(start, run.steps):
    with ledger.part("data_wait"):
      step, batch = next(batches)
    done = step + 1
    profiler.before(done)
    state, metrics = step_fn(state, hosts.place_batch(batch, places, rows, run.batch_size))
    state = task.after_step(done, state, layout.graphdef, batch)
    with stragglers.devices():
      guard.saw(done, metrics)
    watchdog.beat(done)
    profiler.after(done, state)
    tokens = task.tokens(step)
    meter.step(tokens)
    stragglers.step()
    ledger.did(done)
    if done % run.log_every == 0 or done == run.steps:
      with stragglers.devices():
        guard.catch_up()
      slow = stragglers.record()
      if hosts.primary():
        values = {k: float(v) for k, v in jax.device_get(metrics).items()} | task.describe(step)
        values |= {"learning_rate": float(rate(step)), "skipped": guard.skipped} | meter.record() | slow | memory()
        writer.scalars(done, values)
        loss = values["loss"]
    progress.update(tokens=tokens, loss=loss)
    due = [hook for every, hook in hooks if done % every == 0]
    save = run.checkpoint_every and done % run.checkpoint_every == 0
    quick = tier.due(done) and not save and done < run.steps
    if due or save or quick:
      jax.block_until_ready(state)  # all wait for the steps under way, whose time it is
    for hook in due:
      with watchdog.aside(), ledger.part("evaluate"):
        _call(hook, done, layout, state, writer)
    if save:
      guard.catch_up()  # the checkpoint is rated by all steps since the one before
      with ledger.part("checkpoint"):
        saver.save(state, loss=guard.mean_loss())
      ledger.write()
    elif quick:
      with ledger.part("checkpoint"):
        tier.save(state)
    signal = signals.reached(done)
    if signal is not None:
      break
  jax.block_until_ready(state)
  ledger.enter("other")
  seconds = {"compile": compiled - ready, "train": time.monotonic() - compiled}
  profiler.close()
  progress.close()
  guard.catch_up()
  with ledger.part("checkpoint"):
    saved = _save_last(saver, state, guard.mean_loss())
  if signal is not None:
    where = f"stopped by {preemption.name(signal)} after step {done} of {run.steps}"
    kept = "which is saved" if saved else "which couldn't be saved"
    raise Stopped(f"{where}, {kept}; the same command goes on from there", status=preemption.status(signal))
  if not saved:
    raise Stopped("the last checkpoint couldn't be written (see above): make room, and start the same command again")
  return state, seconds


def _save_last(saver: Checkpointer, state: TrainState, loss: float | None) -> bool:
  """Saves what isn't saved yet, and waits for it; whether it is there."""
  saver.wait()
  return saver.latest() == int(state.step) or (saver.save(state, loss=loss, last=True) and saver.wait())


def _call(hook: Callable, step: int, layout: Layout, state: TrainState, writer: MetricWriter) -> None:
  """Samples or scores, drawn by process 0 alone where there are several."""
  if not hosts.several():
    hook(step, layout.graphdef, state.averaged, writer)
    return
  params = _gathered(state.averaged)
  if hosts.primary():
    with jax.set_mesh(hosts.own_mesh(devices=1)):
      hook(step, layout.graphdef, params, writer)
  hosts.wait(f"hook {step}")


def _flops(config: Config, layout: Layout) -> dict[str, float]:
  """FLOPs per token under both conventions; none for a vision tokenizer, which has no published way to count."""
  if config.task != "orthus":
    return {}
  passes, length = flops.passes(config.model, layout.names), config.data.sequence_length
  return {n: flops.token(config.model, length, causal=n == "causal", **passes) for n in ("causal", "full")}


def _peak(config: Config) -> float | None:
  """FLOP/s of a device, as configured or published."""
  kind = jax.devices()[0].device_kind
  peak = config.run.peak_tflops * 1e12 or flops.peak(kind)
  if peak:
    _log.info("MFU is a share of %.0f TFLOP/s for each %s", peak / 1e12, kind)
  return peak
