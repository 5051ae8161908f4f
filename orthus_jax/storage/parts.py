"""Checkpoints of several processes, each with a disk of its own, on their way into a bucket.

Each process writes to its disk what its devices hold, and uploads that; Orbax' files of different processes have different
names, so that together they are the checkpoint. Beside them each leaves a list of what it has sent, in
`checkpoints/STEP/parts`. Once all lists are there, process 0 puts one manifest in their place: the checkpoint is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
_SENT = ".sent-"
_STAMPED = "_CHECKPOINT_METADATA"
_PATIENCE = 600.0  # seconds without a sign of the others' parts, in the end


class Parts:
  """This process's parts, in the order of their steps, from when they are written until they are in the bucket.

  Args:
    bucket, folder: the run's.
    index, count: of this process, and of all.
    attempt: what tells this start of the run from others.

  Attributes:
    found: what the bucket had at the start.
    after: to be called once nothing is left to upload, in the end.
    whole: steps whose checkpoints have become whole; process 0 alone knows.
  """

  def __init__(self, bucket: Bucket, folder: Path, *, index: int, count: int, attempt: str):
    self._bucket, self._folder, self._queue = bucket, folder, folder / _QUEUE
    self._index, self._count, self._attempt = index, count, attempt
    self._lock = threading.Lock()
    # What a try that failed needn't do again: a marker set anew would take a checkpoint for cut off that is whole by now.
    self._marked, self._put, self._sent, self._sealed = set[int](), set[int](), set[int](), set[int]()
    self.found: dict[str, Entry] = {}
    self.after: list[Callable[[], object]] = []
    self.whole: list[int] = []
    for half in self._queue.glob(".*"):
      if not half.name.startswith(_SENT):
        shutil.rmtree(half, ignore_errors=True)

  def steps(self) -> list[int]:
    """Those on their way, in order."""
    there = self._queue.iterdir() if self._queue.is_dir() else ()
    return sorted(int(p.name) for p in there if p.name.isdigit())

  @property
  def idle(self) -> bool:
    """Whether nothing is on its way."""
    return not self.steps()

  def left(self) -> tuple[int, str] | None:
    """The newest step of which an earlier start of just as many processes may not have got its parts together, and its
    attempt."""
    for step in sorted({*self.steps(), *self._kept()}, reverse=True):
      part = self._queue / str(step)
      who = files.read_json((part if part.is_dir() else self._queue / f"{_SENT}{step}") / _WHO)
      if who.get("process") == [self._index, self._count]:
        return step, str(who.get("attempt", ""))
    return None

  def only(self, step: int | None) -> None:
    """Forgets what an earlier start left, but for one step's, which is to be sent again."""
    for there in self.steps():
      if there != step:
        shutil.rmtree(self._queue / str(there))
    for there in self._kept():
      if there == step and not (self._queue / str(step)).is_dir():
        (self._queue / f"{_SENT}{there}").rename(self._queue / str(there))
      else:
        shutil.rmtree(self._queue / f"{_SENT}{there}")

  def _kept(self) -> list[int]:
    """Steps whose parts have been sent, which others may still have to send."""
    found = self._queue.glob(f"{_SENT}*") if self._queue.is_dir() else ()
    return [int(n) for p in found if (n := p.name.removeprefix(_SENT)).isdigit()]

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
    files.write_text(half / _WHO, json.dumps({"process": [self._index, self._count], "attempt": self._attempt}))
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
        if self._index:
          self._keep(step)
        elif self._seal(step):
          self.whole.append(step)
          shutil.rmtree(self._queue / str(step))
        else:
          break

  def _keep(self, step: int) -> None:
    """Keeps a part that was sent, in the place of the one before: it is no checkpoint until the others' are there too."""
    for before in self._kept():
      shutil.rmtree(self._queue / f"{_SENT}{before}")
    (self._queue / str(step)).rename(self._queue / f"{_SENT}{step}")

  def finish(self) -> str:
    """As `push`, waiting for the others' parts; returns why some of it is left, and nothing where nothing is."""
    seen, since = -1, time.monotonic()
    while True:
      try:
        self.push()
        if self.idle:
          return ""
        there = len(self._bucket.list(f"checkpoints/{self.steps()[0]}"))
      except (OSError, BadRequest) as e:
        return str(e)
      if there != seen:
        seen, since = there, time.monotonic()
      if time.monotonic() - since > _PATIENCE:
        return f"other processes' parts of the checkpoint of step {self.steps()[0]} don't come"
      time.sleep(0.5)

  def _send(self, step: int) -> None:
    begin, folder = time.monotonic(), self._queue / str(step)
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    own = [n for n in there if n not in (_WHO, remote_run.MANIFEST) and not (self._index and _everyones(n))]
    listed = files.read_json(there[remote_run.MANIFEST])
    if not isinstance(listed.get("crc32"), dict):
      raise OSError(f"{there[remote_run.MANIFEST]} can't be read")
    if step not in self._marked:
      self._bucket.write(remote_run.mark(step), b"")
      self._marked.add(step)
    if step not in self._put:
      for_all(lambda n: self._upload(there[n], f"checkpoints/{step}/{n}"), sorted(own))
      self._put.add(step)
    told = listed | {"attempt": self._attempt, "crc32": {n: c for n, c in listed["crc32"].items() if n in own}}
    self._bucket.write(_told(step, self._index), json.dumps(told).encode())
    self._sent.add(step)
    size = sum(there[n].stat().st_size for n in own)
    _log.info("uploaded %d MB, this process's part of the checkpoint of step %d, in %.1f s",
              size // 10**6, step, time.monotonic() - begin)  # fmt: skip

  def _upload(self, file: Path, name: str) -> None:
    if file.name != _STAMPED:
      self._bucket.put(file, name)
      return
    data = file.read_bytes()  # Orbax writes its time into it in the end, in place
    try:
      json.loads(data)
    except ValueError as e:
      raise OSError(f"{file} is being written") from e
    self._bucket.write(name, data)

  def _told(self, step: int) -> list[dict[str, Any]] | None:
    """What the processes say that they have sent, in their order; None before all have."""
    there = self._bucket.list(f"checkpoints/{step}/parts")
    names = [_told(step, i) for i in range(self._count)]
    if any(n not in there for n in names):
      return None
    told = [json.loads(self._bucket.read(n)) for n in names]
    return told if all(t.get("attempt") == self._attempt for t in told) else None

  def _seal(self, step: int) -> bool:
    """Has the parts be a checkpoint, if they are all there; whether it is."""
    if step not in self._sealed:
      if (told := self._told(step)) is None:
        return False
      self._write_manifest(step, told)
      self._sealed.add(step)
    self._bucket.remove([_told(step, i) for i in range(self._count)])
    self._bucket.remove([remote_run.mark(step)])
    _log.info("the checkpoint of step %d is whole in %s", step, self._bucket.url)
    return True

  def _write_manifest(self, step: int, told: list[dict[str, Any]]) -> None:
    own, others = told[0]["crc32"], {n: c for other in told[1:] for n, c in other["crc32"].items()}
    for name in (n for n, c in own.items() if others.get(n, c) != c):  # unknown here as a file that each writes
      self._bucket.put(self._queue / str(step) / name, f"checkpoints/{step}/{name}")
    facts = {k: v for k, v in told[0].items() if k != "attempt"}
    self._bucket.write(f"checkpoints/{step}/{remote_run.MANIFEST}", json.dumps(facts | {"crc32": others | own}).encode())


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
