"""The quick tier of checkpoints: each process's own pieces on its own machine's disk, beside those that last in the workdir.

A process that is killed leaves its files behind, so the next start on the same machines goes on from there, a few steps back
where the workdir's checkpoint may be hundreds. They serve that alone: the same run, the same mesh, the same processes in their
places, the step that every one of them has whole. Anything else takes the workdir's.

Processes don't wait for each other to save. Each ends one save before it begins the next, and all do a step together; so when
one begins to write a checkpoint, every other one has at least the last but one whole. Of several processes each therefore keeps
two beside the one that it writes.
"""

from __future__ import annotations

from concurrent import futures
import contextlib
import hashlib
import json
import logging
from pathlib import Path
import shutil
import time
from typing import Any
import uuid

import jax
import numpy as np

from orthus_jax import files
from orthus_jax.config import Config
from orthus_jax.errors import BadRequest
from orthus_jax.paths import check_writable
from orthus_jax.storage.bucket import is_url
from orthus_jax.training import hosts
from orthus_jax.training.checkpoints import agreement, host_shards, low_priority
from orthus_jax.training.checkpoints.local_slots import Slots
from orthus_jax.training.state import Layout, TrainState

_log = logging.getLogger(__name__)
_RUN_ID = "run_id"  # in the workdir, where a run in a bucket has it too: with the workdir goes the run
_FORMAT = 1
_LATE = 0.1  # seconds that a step may wait for the save before without a word


class LocalTier:
  """Saves and restores a run's local checkpoints; does nothing where `run.local_checkpoint_every` is 0.

  Every process makes one, and calls the same methods.

  Args:
    config: the experiment.
    workdir: the run's directory, which is there.
    layout: of its state.
    made_with: see `workdir.made_with`.

  Attributes:
    taken: the step of the one that was gone on from; None if none was.

  Raises:
    BadRequest: if `run.local_checkpoint_dir` is no place for them.
  """

  def __init__(self, config: Config, workdir: Path, layout: Layout, made_with: dict[str, Any]):
    self._every = config.run.local_checkpoint_every
    self._shapes, self._shardings = layout.shapes, layout.shardings
    self._frozen = host_shards.pieces(layout.shapes.frozen, layout.shardings.frozen)
    changing = _changing(layout.shapes), _changing(layout.shardings)
    self._state = host_shards.pieces(*changing)
    self._kept: dict[int, int] = {}  # slot → step, of what may be gone on from
    self._copies = host_shards.Copies()
    self._written: dict[str, list[int]] | None = None  # of the frozen parameters
    self._saving: futures.Future[None] | None = None
    self._refused, self._late = "", False
    self.taken: int | None = None
    if not self._every:
      return
    with hosts.together():
      root = directory(config, workdir)
    place = workdir.resolve()
    name = f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
    self._slots = Slots(root / name / f"process-{jax.process_index()}", 3 if hosts.several() else 2)
    about = {
        "format": _FORMAT, "workdir": str(place), "run": _run_id(workdir), "config": agreement.digest(config),
        "made_with": made_with, "where": _where(layout), "pieces": host_shards.digest([*self._state, *self._frozen]),
    }  # fmt: skip
    self._about: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back
    self._thread = low_priority.thread("saving-locally")

  @property
  def folder(self) -> Path:
    """Where this process's lie."""
    return self._slots.folder

  def steps(self, durable: int | None) -> list[int]:
    """Steps that all processes hold, the newest first; says why a newer one than the rest can't be taken.

    Args:
      durable: the step of the workdir's newest checkpoint.
    """
    if not self._every:
      return []
    found = {i: (about["step"], self._unfit(about)) for i, about in self._slots.found().items()}
    self._kept = {i: step for i, (step, unfit) in found.items() if not unfit}
    mine = np.full(self._slots.count, -1, np.int32)
    mine[: len(self._kept)] = list(self._kept.values())
    held = [{int(s) for s in row if s >= 0} for row in hosts.gather(mine)]
    common = sorted(set.intersection(*held), reverse=True)
    best = max([*common[:1], -1 if durable is None else durable])
    why = [f"that of step {step} {unfit}" for step, unfit in sorted(found.values(), reverse=True) if unfit and step > best]
    newest = max(set.union(*held), default=-1)
    why += [f"process {i} lacks that of step {newest}" for i, own in enumerate(held) if newest > best and newest not in own]
    said = hosts.agree(next(iter(why), None))
    if said and hosts.primary():
      _log.warning("passed over a local checkpoint in %s: %s", self.folder, said)
    return common

  def _unfit(self, about: dict[str, Any]) -> str:
    """Why a checkpoint isn't to be gone on from; empty where it may be."""
    if about.get("format") != _FORMAT or about.get("run") != self._about["run"]:
      return "is another run's"
    if about.get("config") != self._about["config"]:
      return "was trained with other settings"
    if about.get("made_with") != self._about["made_with"]:
      return "saw other data, or another tokenizer"
    if about.get("where") != self._about["where"]:
      return f"was saved on {about.get('where')}, and this is {self._about['where']}"
    return "" if about.get("pieces") == self._about["pieces"] else "has its arrays split another way"

  def read(self, step: int) -> tuple[TrainState | None, str]:
    """The state of one of `steps`, and why there is none: one process's files are damaged."""
    slot = next(i for i, s in self._kept.items() if s == step)
    reason, values, frozen = None, [], []
    try:
      values, frozen = self._slots.read(slot, self._state, self._frozen)
    except ValueError as e:
      reason = str(e)
      del self._kept[slot]
    if reason := hosts.agree(reason):
      return None, reason
    changing = host_shards.give(self._state, iter(values), _changing(self._shapes), _changing(self._shardings))
    rest = host_shards.give(self._frozen, iter(frozen), self._shapes.frozen, self._shardings.frozen)
    self.taken = step
    return TrainState(frozen=rest, **changing), ""

  def due(self, step: int) -> bool:
    """Whether one is to be saved after a step."""
    return bool(self._every) and step % self._every == 0

  def save(self, state: TrainState) -> None:
    """Copies this process's pieces to the host, then writes them in the background; waits for the save before.

    One that can't be written, as on a full disk, is reported, and training goes on.
    """
    late, begin = self._saving is not None and not self._saving.done(), time.monotonic()
    self.wait()
    if late and not self._late and (waited := time.monotonic() - begin) > _LATE:
      self._late = True
      _log.warning(
          "a local checkpoint isn't written yet when the next is due, and the step waited %.1f s for it: raise"
          " run.local_checkpoint_every, or name a faster disk in run.local_checkpoint_dir", waited,
      )  # fmt: skip
    step = int(state.step)
    arrays = self._copies.take(_changing(state))
    frozen = host_shards.Copies().take(state.frozen) if self._written is None else []
    free = [i for i in range(self._slots.count) if self._kept.get(i, step) >= step]  # or of a start that went on from there
    slot = free[0] if free else min(self._kept, key=self._kept.__getitem__)
    self._kept.pop(slot, None)
    self._saving = self._thread.submit(self._write, slot, step, arrays, frozen)

  def _write(self, slot: int, step: int, arrays: list[np.ndarray], frozen: list[np.ndarray]) -> None:
    try:
      if self._written is None:
        self._written = self._slots.write_frozen(frozen)
      self._slots.write(slot, self._about | {"step": step}, arrays, self._written)
      self._kept[slot], self._refused = step, ""
    except OSError as e:
      why = e.strerror or str(e)
      if why != self._refused:
        _log.warning("the local checkpoint of step %d couldn't be written to %s (%s); the run goes on", step, self.folder, why)
      self._refused = why

  def wait(self) -> None:
    """Until what is being saved is written."""
    if self._saving is not None:
      self._saving.result()
      self._saving = None

  def close(self, durable: int | None) -> None:
    """Waits, and removes all there is where the workdir has as new a checkpoint.

    Args:
      durable: the step of the workdir's newest checkpoint.
    """
    if not self._every:
      return
    self.wait()
    self._thread.shutdown()
    own = [about["step"] for about in self._slots.found().values() if about.get("run") == self._about["run"]]
    if durable is not None and durable >= max(own, default=0):
      shutil.rmtree(self.folder, ignore_errors=True)
      with contextlib.suppress(OSError):  # another process's are still there
        self.folder.parent.rmdir()


def directory(config: Config, workdir: Path) -> Path:
  """Where local checkpoints of all runs lie.

  Raises:
    BadRequest: if `run.local_checkpoint_dir` is in a bucket or in the workdir, or can't be written.
  """
  given = config.run.local_checkpoint_dir
  place = Path(given) if given else files.cache_dir() / "local_checkpoints"
  inside = place.resolve().is_relative_to(workdir.resolve())
  if is_url(given) or inside:
    why = "is in the run's own directory" if inside else "is in a bucket"
    raise BadRequest(f"run.local_checkpoint_dir={given or place} {why}: name one on each machine's own disk, or in its memory")
  if config.run.local_checkpoint_every:
    check_writable(place, option="run.local_checkpoint_dir")
  return place


def _changing(tree: TrainState) -> dict[str, Any]:
  """What steps change of a state."""
  return {"step": tree.step, "trained": tree.trained, "moments": tree.moments, "ema": tree.ema}


def _where(layout: Layout) -> str:
  """The devices that a state lies on, in words."""
  axes = layout.shardings.step.mesh.shape
  mesh = " x ".join(f"{axis} {n}" for axis, n in axes.items() if n > 1) or "one device"
  return f"{mesh} with {jax.process_count()} process{'es' if hosts.several() else ''}"


def _run_id(workdir: Path) -> str:
  """What tells a run from another one that was in its workdir before; process 0 makes it up."""
  file, mine = workdir / _RUN_ID, np.zeros(16, np.uint8)
  with hosts.together():
    if hosts.primary():
      if not file.is_file():
        files.write_text(file, uuid.uuid4().hex)
      mine[:] = np.frombuffer(hashlib.sha256(file.read_bytes()).digest()[:16], np.uint8)
  return hosts.gather(mine)[0].tobytes().hex()
