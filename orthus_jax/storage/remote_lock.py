"""One command at a time in a run's directory in a bucket: the holder makes an object there, and writes it every few seconds.

As `lock.py` on disks without locks: the record says who holds it; one that isn't written to for a while belongs to a process
that was killed, and a holder that finds another's record gives way.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any

from orthus_jax import errors, lock_record
from orthus_jax.errors import BadRequest
from orthus_jax.storage.bucket import Bucket
from orthus_jax.storage.remote_run import LOCK

BEAT = 15.0  # seconds between signs of life
PATIENCE = 90.0  # seconds without one after which the holder counts as dead
_log = logging.getLogger(__name__)


class RemoteLock:
  """Held from here on.

  Raises:
    BadRequest: saying who holds it.
  """

  def __init__(self, bucket: Bucket):
    self._bucket = bucket
    self._record = lock_record.mine()
    self._beat = 0
    self._over = threading.Event()
    self._take()
    self._thread = threading.Thread(target=self._live, name="remote-lock", daemon=True)
    self._thread.start()

  def release(self) -> None:
    """Removes the record, if it is still this one's."""
    self._over.set()
    self._thread.join(1.0)
    try:
      if self._read().get("id") == self._record["id"]:
        self._bucket.remove([LOCK])
    except (OSError, BadRequest) as e:
      _log.warning("the lock of %s is left there, and counts for %g s: %s", self._bucket.url, PATIENCE, e)

  def _take(self) -> None:
    try:
      self._write(new=True)
      return
    except FileExistsError:
      there = self._read()
    if there and not self._ours_and_dead(there):
      _log.info("%s: %s, if it is alive; looking for up to %g s", self._bucket.url, lock_record.holder(there), PATIENCE)
      end = time.monotonic() + PATIENCE
      while time.monotonic() < end:
        time.sleep(min(1.0, BEAT))
        now = self._read()
        if not now:
          break
        if now != there:
          who = lock_record.holder(now)
          raise BadRequest(f"{self._bucket.url} is in use: {who}: wait until it is done, stop it, or choose another directory")
    self._write()

  def _ours_and_dead(self, there: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, and has ended."""
    if there.get("machine") != lock_record.machine():
      return False
    try:
      os.kill(int(there["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
      return True
    except PermissionError:
      return False
    return False

  def _live(self) -> None:
    while not self._over.wait(min(2.0, BEAT) if self._beat < 2 else BEAT):  # soon at first: two may have come at once
      self._beat += 1
      try:
        there = self._read()
        if there.get("id") == self._record["id"]:
          self._write()
        elif there and not self._over.is_set():
          who = lock_record.holder(there)
          errors.print_error(f"{self._bucket.url}: {who}, and took this run for dead; stopping, to leave it alone")
          os._exit(errors.BAD_REQUEST)
      except (OSError, BadRequest):
        pass  # a bucket that is away for a while

  def _read(self) -> dict[str, Any]:
    try:
      there = json.loads(self._bucket.read(LOCK))
    except (FileNotFoundError, ValueError):
      return {}
    return there if isinstance(there, dict) else {}

  def _write(self, *, new: bool = False) -> None:
    self._bucket.write(LOCK, json.dumps(self._record | {"beat": self._beat}).encode(), new=new)
