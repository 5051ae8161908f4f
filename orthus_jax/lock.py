"""One command at a time in a directory that it writes to.

The holder keeps `flock` on a file there, which the kernel takes back however a process ends. That holds on one machine; between
machines it does on some file systems (NFS, Lustre mounted for it) and not on others (a bucket mounted by FUSE), and no call
tells. So the file also says who holds it, and the holder writes to it every few seconds: a record of another machine that
isn't written to for a while belongs to a process that was killed, and a holder that finds another's record gives way.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path
import threading
import time
from typing import Any

from orthus_jax import errors, lock_record
from orthus_jax.errors import BadRequest

NAME = "lock"
_BEAT = 15.0  # seconds between signs of life
_PATIENCE = 90.0  # seconds without one after which another machine's process counts as dead; file systems cache for 60
_log = logging.getLogger(__name__)
_held: set[_Lock] = set()


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
  """A block in which no other command may work in `folder`, which is made if absent.

  Raises:
    BadRequest: saying who holds it, or why nothing can be written there.
  """
  made: list[Path] = []
  lock = None
  try:
    made += [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = _Lock(folder / NAME)
    yield
  except OSError as e:
    if lock is not None:
      raise  # the block's own
    raise BadRequest(f"{folder} can't be written to: {e.strerror or e}") from e
  finally:
    if lock is not None:
      lock.release()
    with contextlib.suppress(OSError):  # nothing was written: leave none of it
      for p in made:
        p.rmdir()


def held(folder: Path) -> bool:
  """Whether a command works in `folder`."""
  return lock_record.held(folder / NAME, patience=_PATIENCE)


def release_all(patience: float = 2.0) -> None:
  """Gives back what this process holds, ahead of os._exit; a file system that hangs doesn't hold it up."""
  for lock in list(_held):
    thread = threading.Thread(target=lock.release, daemon=True)
    thread.start()
    thread.join(patience)


class _Lock:
  """A lock that is held from here on."""

  def __init__(self, path: Path):
    self._path = path
    self._over = threading.Event()
    self._record = lock_record.mine()
    self._file = self._take()
    _held.add(self)
    self._thread = threading.Thread(target=self._live, name="lock", daemon=True)
    self._thread.start()

  def release(self) -> None:
    """Removes the file, if it is still this one's."""
    self._over.set()
    self._thread.join(1.0)  # it may be about to write
    _held.discard(self)
    with contextlib.suppress(OSError):
      if lock_record.read(self._path).get("id") == self._record["id"]:
        self._path.unlink()
    with contextlib.suppress(OSError):
      os.close(self._file)

  def _take(self) -> int:
    """Opens the file as its only holder."""
    tries = 0
    while True:
      tries += 1
      file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        decided = self._decide(file)
        if os.fstat(file).st_ino != os.stat(self._path).st_ino and tries < 100:  # some file systems' numbers mean nothing
          raise FileNotFoundError  # its holder removed it in between
        there = lock_record.read(self._path)
        if there and not (decided and there.get("machine") == self._record["machine"]):
          self._watch(there)
        lock_record.write(self._path, self._record, 0)
        return file
      except FileNotFoundError:
        os.close(file)
      except BaseException:
        os.close(file)
        raise

  def _decide(self, file: int) -> bool:
    """Takes `flock`; returns whether it means anything on this file system.

    Raises:
      BadRequest: if another process has it.
      FileNotFoundError: if one had it whose machine is gone, in which case a file server may never give it back.
    """
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        return False
      there = lock_record.read(self._path)
      if not there or there.get("machine") == self._record["machine"]:
        raise BadRequest(self._taken(there)) from e
      self._watch(there)
      self._path.unlink()
      raise FileNotFoundError from e
    return True

  def _watch(self, there: dict[str, Any]) -> None:
    """Returns if the holder that a record names is dead; raises if it isn't."""
    _log.info("%s: %s, if it is alive; looking for up to %g s", self._path.parent, lock_record.holder(there), _PATIENCE)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
      time.sleep(min(1.0, _BEAT))
      if not (now := lock_record.read(self._path)):
        return  # released
      if now != there:
        raise BadRequest(self._taken(now))

  def _taken(self, there: dict[str, Any]) -> str:
    who = lock_record.holder(there)
    return f"{self._path.parent} is in use: {who}: wait until it is done, stop it, or choose another directory"

  def _live(self) -> None:
    beat, wait = 0, min(2.0, _BEAT)  # soon at first: two may have come at once where nothing kept them apart
    while not self._over.wait(wait):
      beat, wait = beat + 1, _BEAT
      try:
        there = lock_record.read(self._path)
        if there.get("id") == self._record["id"]:
          lock_record.write(self._path, self._record, beat)
        elif there and not self._over.is_set():
          who = lock_record.holder(there)
          errors.print_error(f"{self._path.parent}: {who}, and took this run for dead; stopping, to leave it alone")
          os._exit(errors.BAD_REQUEST)
      except OSError:
        pass  # a file system that is away for a while
