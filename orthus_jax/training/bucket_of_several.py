"""A run of several processes whose directory is in a bucket, each process with a disk of its own.

A save is each process's part on its disk, uploaded in the background (`storage/parts.py`). Going on is from the bucket alone:
each process is brought what its devices need of a whole checkpoint. Process 0 sees to all that is one: lock, small files,
which checkpoints stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import logging
from pathlib import Path
import shutil
import threading
import time
import uuid

import jax
import numpy as np

from orthus_jax import files
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.storage import bring, claim, remote_run
from orthus_jax.storage.bucket import Bucket, Entry
from orthus_jax.storage.mirror import EVERY, Mirror, place
from orthus_jax.storage.parts import Parts
from orthus_jax.storage.remote_lock import RemoteLock
from orthus_jax.training import hosts

_log = logging.getLogger(__name__)
_LOOK = 5.0  # seconds between two looks for parts
_PATIENCE = 3600  # seconds for the others' last uploads, where the run was stopped


@contextlib.contextmanager
def joined(url: str, *, kept: Callable[[list[int]], set[int]]) -> Iterator[tuple[Path, Parts]]:
  """As `mirror.mirrored`, for all processes of a run; gives what takes and brings this process's parts of checkpoints too."""
  hosts.gather(np.zeros(1))  # the first gives up upon half a minute on CPUs, and the lock may take longer
  folder, first = place(url, jax.process_index()), None
  with contextlib.ExitStack() as held:
    with _together(url):
      bucket = Bucket(url)
      bucket.check()
    try:
      with _together(url):
        if hosts.primary():
          held.callback(RemoteLock(bucket).release)
          first = _First(bucket, folder, kept)
      with _together(url):
        if first is None:
          claim.settle_whose(bucket, folder, bucket.list())
      parts = Parts(bucket, folder, index=jax.process_index(), count=jax.process_count(), attempt=_attempt())
      _upload_left(url, bucket, parts)
      parts.found = _bring(url, bucket, folder)
    except BaseException:
      if first is not None and not (folder / "config.json").is_file():
        first.close()
      _forget_unbegun(folder)
      raise
    if first is not None:
      _tell_of_one(url, parts.found)
      first.goes_on(parts)
      _log.info("working in %s; what is new goes to %s", folder, url)
    over = threading.Event()
    keep_up = first.keep_up if first is not None else lambda over: _push(over, parts, url)
    thread = threading.Thread(target=keep_up, args=(over,), name="mirror", daemon=True)
    thread.start()
    ended: BaseException | None = None
    try:
      yield folder, parts
    except BaseException as e:
      ended = e
      raise
    finally:
      over.set()
      thread.join()
      _end(url, folder, first, parts, ended, held.close)


class _First(Mirror):
  """What process 0 sees to alone."""

  def _begin(self, found: dict[str, Entry], damage: Callable[[Path], str | None]) -> None:
    self._there: set[int] = set()
    self._parts: Parts | None = None

  def goes_on(self, parts: Parts) -> None:
    """Begins with what has been brought of what the bucket has."""
    self._parts = parts
    self._there, self._seen = set(remote_run.whole_steps(parts.found)), set(self._steps())
    for name, entry in _small(parts.found).items():
      if (self._folder / name).is_file() and (self._folder / name).stat().st_size == entry.size:
        self._mark_sent([name])

  def keep_up(self, over: threading.Event) -> None:
    """As `keep`, looking sooner where something is on its way."""
    due = 0.0
    while not over.wait(_LOOK):
      if time.monotonic() > due or (self._parts is not None and not self._parts.idle):
        self._look()
        due = time.monotonic() + EVERY

  def _upload_checkpoints(self) -> None:
    if self._parts is not None:
      self._parts.push()
      while self._parts.whole:
        step = self._parts.whole.pop()
        self._there.add(step)
        self._seen.add(step)


def _end(
    url: str, folder: Path, first: _First | None, parts: Parts, ended: BaseException | None, release: Callable[[], None]
) -> None:  # fmt: skip
  """Uploads the rest, as far as the others can be counted on, and releases the lock.

  Raises:
    Stopped: if some couldn't be, unless something else ended the run.
  """
  agreed = ended is None or isinstance(ended, Stopped)  # all processes have come here
  left = parts.finish() if agreed else ""
  if first is not None:
    left = first.close() or left
  _forget_unbegun(folder)
  release()  # ahead of the others' end, upon which some launchers end this process too
  if agreed:
    with contextlib.suppress(Exception):  # what jax raises where another is gone; what it lacks has been told
      hosts.wait(f"uploaded {url}", patience=_PATIENCE)
  if ended is None and not (left := hosts.agree(left or None) or ""):
    for do in parts.after:
      do()
  if not left:
    return
  said = f"{url} lacks some of the run ({left}), which lies in {folder}"
  if ended is None:
    raise Stopped(f"{said}: the same command uploads the rest")
  _log.error("%s", said)


def _forget_unbegun(folder: Path) -> None:
  """Leaves nothing of a run that never began."""
  if not any((folder / n).exists() for n in ("config.json", "checkpoints", "tokenizer.json")):
    shutil.rmtree(folder, ignore_errors=True)


def _push(over: threading.Event, parts: Parts, url: str) -> None:
  """Uploads a process's parts until it is told that it is over."""
  said = ""
  while not over.wait(_LOOK):
    why = ""
    try:
      parts.push()
    except (OSError, BadRequest) as e:
      why = str(e)
    if why and why != said:
      _log.warning("process %d can't upload to %s (%s); the run goes on, and it is tried again", jax.process_index(), url, why)
    said = why


def _upload_left(url: str, bucket: Bucket, parts: Parts) -> None:
  """Uploads the parts of a checkpoint that an earlier start couldn't, where every process still has its own."""
  with _together(url):
    newest = max(remote_run.whole_steps(bucket.list()), default=-1)
  step, attempt = parts.left() or (-1, "")
  steps = hosts.gather(np.asarray(step))
  attempts = hosts.gather(np.frombuffer(attempt.encode().ljust(32)[:32], np.uint8))
  if step <= newest or (steps != step).any() or (attempts != attempts[0]).any():
    parts.only(None)
    return
  parts.only(step)
  with _together(url):
    if hosts.primary():
      _log.info("uploading the checkpoint of step %d, which an earlier start left on the disks", step)
    if why := parts.finish():
      raise BadRequest(f"{url} can't be written to: {why}")


def _bring(url: str, bucket: Bucket, folder: Path) -> dict[str, Entry]:
  """Brings all of a run but its arrays' values, which are brought as they are needed; returns what the bucket has."""
  with _together(url):
    found = bucket.list()
    there, small = remote_run.whole_steps(found), _small(found)
    here = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # this process's parts alone
    if not hosts.primary():
      bring.bring(bucket, folder, {n: e for n, e in small.items() if _needed(n)})
    elif not (folder / "config.json").is_file() or max(there, default=-1) > max(here, default=-1):
      bring.bring(bucket, folder, small)  # or else the disk's are at least as new
    for step in there:
      bring.bring(bucket, folder, {n: e for n, e in remote_run.of_step(found, step).items() if not remote_run.is_data(n)})
  return found


def _tell_of_one(url: str, found: dict[str, Entry]) -> None:
  """Warns of a newer checkpoint than the bucket's, which one process left on this machine: it isn't gone on from."""
  alone, newest = place(url), max(remote_run.whole_steps(found), default=-1)
  here = max((int(p.name) for p in (alone / "checkpoints").glob("*") if p.name.isdigit()), default=-1)
  if here > newest:
    _log.warning(
        "%s has a checkpoint of step %d that isn't in the bucket: one process, started once by the same command, uploads it",
        alone, here,
    )  # fmt: skip


def _small(found: dict[str, Entry]) -> dict[str, Entry]:
  return remote_run.beside_checkpoints(found) if "config.json" in found else {}


def _needed(name: str) -> bool:
  """Whether a process that writes none of a run's small files reads one."""
  return "/" not in name and name.endswith(".json")


def _attempt() -> str:
  """An id of this start, the same for all processes."""
  return hosts.gather(np.frombuffer(uuid.uuid4().bytes, np.uint8))[0].tobytes().hex()


@contextlib.contextmanager
def _together(url: str) -> Iterator[None]:
  """As `hosts.together`, for what fails as a bucket does."""
  with hosts.together():
    try:
      yield
    except OSError as e:
      raise BadRequest(f"{url} can't be used: {files.first_line(e)}") from e
