"""Checkpoints of several processes, each with a disk of its own, on their way into a bucket.

Each process writes to its disk what its devices hold, and uploads that; Orbax' files of different processes have different
names, so that together they are the checkpoint. Beside them each leaves a list of what it has sent, in
`checkpoints/STEP/parts`. Once all lists are there, process 0 puts one manifest in their place: the checkpoint is whole.
"""

from __future__ import annotations

from collections.abc import Iterable
import json
import logging
import os
from pathlib import Path, PurePosixPath
import shutil
import threading
import time
from typing import Any

from orthus_jax import files
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring, remote_run
from orthus_jax.storage.bucket import Bucket, Entry, for_all

_log = logging.getLogger(__name__)
_QUEUE = ".parts"
_WHO = "part.json"
_PATIENCE = 120.0  # seconds without a sign of the others' parts, in the end


class Parts:
  """This process's parts, in the order of their steps, from when they are written until they are in the bucket.

  Args:
    bucket, folder: the run's.
    index, count: of this process, and of all.
    attempt: what tells this start of the run from others.

  Attributes:
    found: what the bucket had at the start.
    whole: steps whose checkpoints have become whole; process 0 alone knows.
  """

  def __init__(self, bucket: Bucket, folder: Path, *, index: int, count: int, attempt: str):
    self._bucket, self._folder, self._queue = bucket, folder, folder / _QUEUE
    self._index, self._count, self._attempt = index, count, attempt
    self._lock, self._sent = threading.Lock(), set[int]()
    self.found: dict[str, Entry] = {}
    self.whole: list[int] = []
    for half in self._queue.glob(".*"):
      shutil.rmtree(half, ignore_errors=True)

  def steps(self) -> list[int]:
    """Those on their way, in order."""
    there = self._queue.iterdir() if self._queue.is_dir() else ()
    return sorted(int(p.name) for p in there if p.name.isdigit())

  @property
  def idle(self) -> bool:
    """Whether nothing is on its way."""
    return not self.steps()

  def left(self) -> int | None:
    """The step of a part that an earlier start of just as many processes couldn't upload."""
    who = (self._index, self._count)
    found = [s for s in self.steps() if tuple(files.read_json(self._queue / str(s) / _WHO).get("process", ())) == who]
    return max(found, default=None)

  def drop(self, but: int | None = None) -> None:
    """Forgets what is on its way, but for one step's."""
    for step in self.steps():
      if step != but:
        shutil.rmtree(self._queue / str(step))

  def take(self, step: int, folder: Path) -> None:
    """Has a part uploaded, whatever becomes of its folder.

    Args:
      step: whose part it is.
      folder: what this process wrote, `manifest.json` included.
    """
    half = self._queue / f".{step}"
    shutil.rmtree(half, ignore_errors=True)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
      name = half / path.relative_to(folder)
      name.parent.mkdir(parents=True, exist_ok=True)
      _link(path, name)
    files.write_text(half / _WHO, json.dumps({"process": [self._index, self._count]}))
    shutil.rmtree(self._queue / str(step), ignore_errors=True)
    half.rename(self._queue / str(step))

  def objects(self, step: int) -> list[str]:
    """Names of what the bucket had of a checkpoint at the start, relative to its folder."""
    return [n.split("/", 2)[2] for n in remote_run.of_step(self.found, step)]

  def bring(self, step: int, names: Iterable[str]) -> None:
    """Brings some of these.

    Raises:
      OSError: if the bucket fails.
    """
    bring.bring(self._bucket, self._folder, {(n := f"checkpoints/{step}/{name}"): self.found[n] for name in names})

  def push(self) -> None:
    """Uploads what is on its way, as far as the other processes have come.

    Raises:
      OSError: if the bucket fails.
    """
    with self._lock:
      for step in self.steps():
        if step not in self._sent:
          self._send(step)
        if self._index == 0:
          if (told := self._told(step)) is None:
            break
          self._seal(step, told)
          self.whole.append(step)
        shutil.rmtree(self._queue / str(step))

  def finish(self) -> str:
    """As `push`, waiting for the others' parts; returns why some of it is left, and nothing where nothing is."""
    seen, since = -1, time.monotonic()
    while True:
      try:
        self.push()
      except (OSError, BadRequest) as e:
        return str(e)
      if self.idle:
        return ""
      there = len(self._bucket.list(f"checkpoints/{self.steps()[0]}"))
      if there != seen:
        seen, since = there, time.monotonic()
      if time.monotonic() - since > _PATIENCE:
        return f"other processes' parts of the checkpoint of step {self.steps()[0]} don't come"
      time.sleep(0.5)

  def _send(self, step: int) -> None:
    begin, folder = time.monotonic(), self._queue / str(step)
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    own = [n for n in there if n not in (_WHO, remote_run.MANIFEST) and not (self._index and _everyones(n))]
    self._bucket.write(remote_run.mark(step), b"")
    for_all(lambda n: self._bucket.put(there[n], f"checkpoints/{step}/{n}"), sorted(own))
    listed = files.read_json(there[remote_run.MANIFEST])
    told = listed | {"attempt": self._attempt, "crc32": {n: c for n, c in listed["crc32"].items() if n in own}}
    self._bucket.write(_told(step, self._index), json.dumps(told).encode())
    self._sent.add(step)
    size = sum(there[n].stat().st_size for n in own)
    _log.info("uploaded %d MB, this process's part of the checkpoint of step %d, in %.1f s",
              size // 10**6, step, time.monotonic() - begin)  # fmt: skip

  def _told(self, step: int) -> list[dict[str, Any]] | None:
    """What the processes say that they have sent, in their order; None before all have."""
    there = self._bucket.list(f"checkpoints/{step}/parts")
    names = [_told(step, i) for i in range(self._count)]
    if any(n not in there for n in names):
      return None
    told = [json.loads(self._bucket.read(n)) for n in names]
    return told if all(t.get("attempt") == self._attempt for t in told) else None

  def _seal(self, step: int, told: list[dict[str, Any]]) -> None:
    """Has the parts be a checkpoint: writes the manifest of them all."""
    own, others = told[0]["crc32"], {n: c for other in told[1:] for n, c in other["crc32"].items()}
    for name in (n for n, c in own.items() if others.get(n, c) != c):  # unknown here as a file that each writes
      self._bucket.put(self._queue / str(step) / name, f"checkpoints/{step}/{name}")
    facts = {k: v for k, v in told[0].items() if k != "attempt"}
    self._bucket.write(f"checkpoints/{step}/{remote_run.MANIFEST}", json.dumps(facts | {"crc32": others | own}).encode())
    self._bucket.remove([_told(step, i) for i in range(self._count)])
    self._bucket.remove([remote_run.mark(step)])
    _log.info("the checkpoint of step %d is whole in %s", step, self._bucket.url)


def _told(step: int, process: int) -> str:
  return f"checkpoints/{step}/parts/{process}.json"


def _everyones(name: str) -> bool:
  """Whether each process writes a file of this name, of which process 0's counts."""
  parts = PurePosixPath(name).parts
  return parts[-1][0] in "_." or parts[-1] == "commit_success.txt" or parts[0] == "metrics"


def _link(path: Path, name: Path) -> None:
  try:
    os.link(path, name)
  except OSError:  # a disk without links
    shutil.copy2(path, name)
