"""Saving a run's states and finding the newest one that is whole. Orbax writes, keeps and reads them.

A checkpoint gets its final name once all of it is written, its manifest included; what has another name isn't one. On the
way back each is read through first, from the newest on, and one that is damaged is passed over, with the reason logged, and
set aside in WORKDIR/damaged/.
"""

from __future__ import annotations

from collections.abc import Callable
import logging
from pathlib import Path
import shutil
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from orthus_jax import files
from orthus_jax.config import RunConfig
from orthus_jax.errors import BadRequest
from orthus_jax.storage.parts import Parts
from orthus_jax.training import hosts
from orthus_jax.training.checkpoints import low_priority, manifest, needed_files, orbax_items, workdir as checkpoint
from orthus_jax.training.checkpoints.local_tier import LocalTier
from orthus_jax.training.state import TrainState

_log = logging.getLogger(__name__)
_ITEMS = ("params", "optimizer", "average")
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpointer:
  """Saves and restores a run's states, asynchronously.

  Args:
    workdir: the run's directory.
    run: which checkpoints stay: the newest, the best, and those of every so many steps.
    made_with: what each one's manifest is to say beside its checksums; see `workdir.made_with`.
    parts: takes what this process writes, where the processes have a disk each and the run lies in a bucket.
  """

  def __init__(
      self, workdir: Path, run: RunConfig, *, made_with: dict[str, Any] | None = None, parts: Parts | None = None
  ):  # fmt: skip
    self._folder = (workdir / "checkpoints").absolute()
    self._run = run
    self._made_with = made_with
    self._parts = parts
    self._writes = parts is not None or hosts.primary()
    self._saving: int | None = None
    self._opened: ocp.CheckpointManager | None = None
    self._failed = False
    self._thread = low_priority.thread("saving")
    with hosts.together():
      if self._writes:
        _remove_unfinished(self._folder)

  @property
  def _manager(self) -> ocp.CheckpointManager:
    """Orbax' manager, which fails on a directory that holds a damaged checkpoint: those are set aside first."""
    if self._opened is None:
      self._set_aside({
          step: reason for step in checkpoint.steps(self._folder.parent)
          if (reason := hosts.agree(manifest.damage(self._folder / str(step), read=False, missing=self._parts is None)))
      })  # fmt: skip
      self._opened = self._open()
    return self._opened

  def _open(self) -> ocp.CheckpointManager:
    run = self._run
    policies: list[Any] = [checkpoint_managers.LatestN(run.keep_checkpoints)]
    if run.keep_every:
      policies.append(checkpoint_managers.EveryNSteps(run.keep_every))
    if run.keep_best:
      policies.append(
          checkpoint_managers.BestN(
              get_metric_fn=lambda m: m["loss"], reverse=True, n=run.keep_best, keep_checkpoints_without_metrics=False
          )
      )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies), best_fn=lambda m: m["loss"],
        best_mode="min", enable_async_checkpointing=True, create=self._parts is None,
        async_options=ocp.AsyncOptions(
            post_finalization_callback=self._before_naming,
            # Orbax 0.12 takes the first process's word that "the directory" is there: others' writes would race theirs.
            create_directories_asynchronously=self._parts is None,
        ),
        multiprocessing_options=orbax_items.alone() if self._parts else ocp.options.MultiprocessingOptions(),
    )  # fmt: skip
    if self._parts:
      self._folder.mkdir(parents=True, exist_ok=True)
    handlers = {name: orbax_items.handler(own_disks=self._parts is not None) for name in _ITEMS}
    return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

  def _before_naming(self) -> None:
    """Called by Orbax when all is written and the checkpoint has no name yet: on process 0, or each on its own disk."""
    for folder in self._folder.glob(f"{self._saving}{_UNFINISHED}*"):
      manifest.write(folder, self._made_with)
      if self._parts and self._saving is not None:
        self._parts.take(self._saving, folder)

  def latest(self) -> int | None:
    """The newest complete checkpoint's step."""
    return self._manager.latest_step()

  def restore_newest(
      self, shapes: TrainState, shardings: TrainState, tier: LocalTier | None = None
  ) -> TrainState | None:
    """Reads the newest checkpoint that is whole onto the mesh that `shardings` name; None where there is none at all.

    Args:
      shapes, shardings: of the state.
      tier: of the run's local checkpoints, which are taken where they are newer; its `taken` says so.

    Raises:
      BadRequest: if there are some, and all are damaged; or if one is whole and of another model.
    """
    passed: dict[int, str] = {}
    durable = checkpoint.steps(self._folder.parent)
    quick = tier.steps(max(durable, default=None)) if tier is not None else []
    for step, local in sorted([(s, False) for s in durable] + [(s, True) for s in quick], key=lambda c: (-c[0], c[1])):
      state, reason = tier.read(step) if local and tier is not None else self._read(step, shapes, shardings)
      if state is not None:
        self._set_aside(passed)
        return state
      if not local:
        passed[step] = reason
      elif hosts.primary():
        _log.warning("passed over the local checkpoint of step %d: %s", step, reason)
    if passed:
      step, reason = next(iter(passed.items()))
      raise BadRequest(
          f"all {len(passed)} checkpoints of {self._folder.parent} are damaged (step {step}: {reason}): bring one back, or"
          " choose another --workdir"
      )
    return None

  def _read(self, step: int, shapes: TrainState, shardings: TrainState) -> tuple[TrainState | None, str]:
    """One checkpoint's state, and why there is none: it is damaged."""
    folder = self._folder / str(step)
    if self._parts:
      with hosts.together():
        missing = _bring(self._parts, step, folder, shapes, shardings)
      reason = hosts.agree(missing or manifest.damage(folder, missing=False))
    else:
      reason = hosts.agree(manifest.damage(folder, part=(jax.process_index(), jax.process_count())))
    if reason:
      return None, reason
    try:
      return read_state(folder, shapes, shardings), ""
    except orbax_items.Mismatch as e:
      if manifest.has_checksums(folder):  # which have just been compared
        raise BadRequest(f"{folder} isn't damaged, but isn't of this run's model and optimizer: {e}") from e
      return None, str(e)
    except Exception as e:  # whatever Orbax makes of a broken file
      if hosts.several():  # the others may have read their share of it
        raise
      return None, files.first_line(e)[:200]

  def _set_aside(self, damaged: dict[int, str]) -> None:
    """Moves checkpoints, by step with what is wrong, out of the way."""
    with hosts.together():
      for step, reason in damaged.items() if self._writes else ():
        place = checkpoint.free_name(self._folder.parent / "damaged" / str(step))
        place.parent.mkdir(exist_ok=True)
        (self._folder / str(step)).rename(place)
        _log.warning("passed over the checkpoint of step %d: %s; it lies in %s now", step, reason, place)

  def save(self, state: TrainState, *, loss: float | None = None, last: bool = False) -> bool:
    """Starts saving; returns once the state's buffers may be reused.

    A checkpoint that can't be written, as on a full disk, is reported, and training goes on.

    Args:
      state: what to save.
      loss: its score, by which the best are kept.
      last: of the run; another is left out where an earlier one is still on its way to a bucket.

    Returns:
      Whether it began; of one that failed later, the next call reports.
    """
    return self._try(lambda: self._save(state, loss, last), "the next one is tried at its time")

  def _save(self, state: TrainState, loss: float | None, last: bool) -> None:
    self._manager.wait_until_finished()
    if self._parts and not last and not hosts.gather(np.asarray(self._parts.idle)).all():
      if hosts.primary():  # what one process leaves out all must, or no checkpoint would have all its parts
        _log.warning("left out the checkpoint of step %d: the one before it is still being uploaded", int(state.step))
      return
    args = {name: orbax_items.save_args(tree) for name, tree in _trees(state).items()}
    self._saving = int(state.step)
    score = {"loss": float("inf") if loss is None else loss}
    save = self._manager.save
    self._thread.submit(save, self._saving, args=ocp.args.Composite(**args), metrics=score, force=True).result()

  def wait(self) -> bool:
    """Waits for what is being saved; returns whether it was, having said so if not."""
    return self._try(self._manager.wait_until_finished, "")

  def _try(self, do: Callable[[], None], then: str) -> bool:
    try:
      do()
      return True
    except Exception as e:  # Orbax, TensorStore and the file system each have kinds of their own
      if hosts.several():  # the others wait for this one in the midst of the save
        raise
      step, self._saving = self._saving, None
      # What is left of it would fill the disk further, and Orbax' manager still counts on it.
      self._failed = True
      self._clean()
      self._opened = self._open()
      newest = self._manager.latest_step()
      _log.error(
          "the checkpoint of step %s failed (%s); %s%s", step, files.first_line(e)[:200],
          f"the newest complete one is step {newest}" if newest is not None else "there is no complete one",
          f"; {then}" if then else "",
      )  # fmt: skip
      return False

  def _clean(self) -> None:
    """Removes what a failed save wrote. Its other writes may still be under way, and make their directory anew."""
    for _ in range(5):
      _remove_unfinished(self._folder, say=False)
      time.sleep(0.2)

  def close(self) -> None:
    """Waits for what is being saved."""
    self.wait()
    self._manager.close()
    if self._failed:
      self._clean()


def read_state(folder: Path, shapes: TrainState, shardings: TrainState) -> TrainState:
  """Reads one checkpoint's directory onto a mesh; raises whatever Orbax does where it doesn't fit or is broken."""

  def abstract(shape: Any, place: Any) -> Any:
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shape, place)

  target = abstract(shapes, shardings)
  if shapes.ema and not (folder / "average").is_dir():
    raise orbax_items.Mismatch("it holds no running average, which optimizer.ema_decay asks for")
  with orbax_items.quiet(), ocp.StandardCheckpointer() as reader:
    read = {name: orbax_items.read_like(reader, folder / name, tree) for name, tree in _trees(target).items()}
  return TrainState(
      step=read["optimizer"]["step"],
      trained={n: read["params"][n] for n in shapes.trained},
      frozen={n: read["params"][n] for n in shapes.frozen},
      moments=read["optimizer"]["moments"],
      ema=read.get("average", {}),
  )


def _bring(parts: Parts, step: int, folder: Path, shapes: TrainState, shardings: TrainState) -> str | None:
  """Brings what this process's devices need of a checkpoint in a bucket; returns what of that isn't there.

  Raises:
    BadRequest: if the bucket fails.
  """
  there = parts.objects(step)
  wanted = needed_files.of(folder, [*there, *manifest.names(folder)], _trees(shapes), _trees(shardings))
  if missing := sorted(set(wanted) - set(there)):
    return f"{missing[0]} is missing in the bucket"
  try:
    parts.bring(step, wanted)
  except OSError as e:
    raise BadRequest(f"the checkpoint of step {step} can't be brought: {files.first_line(e)}") from e
  return None


def _trees(state: TrainState) -> dict[str, Any]:
  """A checkpoint's items."""
  trees = {"params": state.params, "optimizer": {"step": state.step, "moments": state.moments}}
  return trees | ({"average": state.ema} if state.ema else {})


def _remove_unfinished(folder: Path, *, say: bool = True) -> None:
  """Removes what a save left that was killed in its midst."""
  for half in sorted(folder.glob(f"*{_UNFINISHED}*")) if folder.is_dir() else ():
    if say:
      _log.warning("passed over the checkpoint of step %s: its writing never ended; removed it", half.name.split(".")[0])
    shutil.rmtree(half, ignore_errors=True)
