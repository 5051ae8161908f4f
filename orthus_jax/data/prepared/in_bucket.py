"""Prepared data laid out into a bucket: made part by part on disk, each uploaded once it is complete, and then removed here.

The bucket has what a folder on disk would have, so the same command goes on there, from any machine: unfinished.json comes
first and marks the rest, a part counts once unfinished.json names it, and prepared.json is uploaded last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import json
import logging
from pathlib import Path
import shutil
from typing import Any

from orthus_jax import files
from orthus_jax.data.prepared import unfinished
from orthus_jax.data.prepared.unfinished import PARTS, UNFINISHED
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring
from orthus_jax.storage.bucket import Bucket, Entry, for_all
from orthus_jax.storage.remote_lock import RemoteLock
from orthus_jax.storage.remote_run import LOCK

_log = logging.getLogger(__name__)
_LAST = "prepared.json"
_FOLDERS = (f"{PARTS}/", "shown/")
_NOTHING = {"request": {}, "parts": []}  # of unfinished.json: what goes on there may be any request


def check(url: str) -> Bucket:
  """Sees that data can be laid out at a URL: nothing lies there, or what a command that was stopped has left.

  Raises:
    BadRequest: if not.
  """
  bucket = Bucket(url)
  bucket.check()
  with _failing(url):
    _parts(bucket)
  return bucket


class InBucket:
  """Where data is laid out: a folder on disk, whose complete parts are uploaded.

  Attributes:
    folder: on disk; has what another command left in the bucket, but for the shards, which come when they are read.

  Raises:
    OSError: if the bucket fails.
  """

  def __init__(self, bucket: Bucket, folder: Path):
    self._bucket, self.folder = bucket, folder
    there, parts = _parts(bucket)
    if not there:
      bucket.write(UNFINISHED, json.dumps(_NOTHING).encode())
      there = _own(bucket.list())
    self._there = there
    self._complete = [list(part["files"]) for part in parts[: unfinished.whole(parts, self.size)]]
    notes = {n for n in there if n.startswith(f"{PARTS}/")}
    counted = {unfinished.note(i, s) for i in range(len(self._complete)) for s in ("npz", "json")}
    shards = {n for n in there if n.endswith(".array_record")}
    bucket.remove(notes - counted | shards.difference(*self._complete))  # of the part that a killed command was at
    shutil.rmtree(folder, ignore_errors=True)
    bring.bring(bucket, folder, {n: there[n] for n in counted | {UNFINISHED}})
    self._here: list[Path] = []

  def size(self, name: str) -> int | None:
    """The bytes that a file had in the bucket when this began; None if it wasn't there."""
    return self._there[name].size if name in self._there else None

  def part(self) -> None:
    """Uploads the part that was completed; the one before it goes from the disk.

    Raises:
      BadRequest: if the bucket fails.
    """
    _, parts = unfinished.parse((self.folder / UNFINISHED).read_bytes(), str(self.folder))
    shards = [self.folder / name for name in parts[-1]["files"]]
    notes = [self.folder / unfinished.note(len(parts) - 1, suffix) for suffix in ("npz", "json")]
    with self._uploading():
      for_all(self._put, [*shards, *notes])
      self._put(self.folder / UNFINISHED)
    self._complete = [list(part["files"]) for part in parts]
    for old in self._here:
      old.unlink(missing_ok=True)
    self._here = shards

  def finish(self) -> None:
    """Uploads all else, the folder being whole; removes from the bucket what only an unfinished one needs.

    Raises:
      BadRequest: if the bucket fails.
    """
    all_ = [p for p in self.folder.rglob("*") if p.is_file() and p.name[0] != "." and p.suffix != ".array_record"]
    with self._uploading():
      for_all(self._put, [p for p in all_ if p.name != _LAST])
      self._put(self.folder / _LAST)
    try:
      self._bucket.remove([UNFINISHED])
      self._bucket.remove(self._bucket.list(PARTS))
    except (OSError, BadRequest) as e:  # readers don't look at these any more
      url = self._bucket.url
      what = f"{UNFINISHED} and {PARTS}/"
      _log.warning("%s is whole; %s in it can be removed, which failed: %s", url, what, files.first_line(e))

  def leave(self) -> None:
    """After a failure: complete parts stay; where there is none, nothing is left."""
    if not self._complete:
      with contextlib.suppress(OSError, BadRequest):
        self._bucket.remove(n for n in _own(self._bucket.list()) if n != UNFINISHED)
        self._bucket.remove([UNFINISHED])

  @contextlib.contextmanager
  def _uploading(self) -> Iterator[None]:
    try:
      yield
    except OSError as e:
      raise BadRequest(f"{files.first_line(e)}: see to the bucket, and the same command goes on") from e

  def _put(self, file: Path) -> None:
    self._bucket.put(file, file.relative_to(self.folder).as_posix())


@contextlib.contextmanager
def laid_out(url: str) -> Iterator[InBucket]:
  """A block that lays data out at a URL, alone there; nothing stays on disk.

  Raises:
    BadRequest: if something else lies there, another command is at it, or the bucket fails.
  """
  bucket = check(url)
  folder = files.cache_dir() / "preparing" / url.rstrip("/").replace("://", "/")
  with contextlib.ExitStack() as after:
    with _failing(url):
      after.callback(RemoteLock(bucket).release)
      after.callback(shutil.rmtree, folder, ignore_errors=True)
      place = InBucket(bucket, folder)
    try:
      yield place
      place.finish()
    except BaseException:
      place.leave()
      raise


@contextlib.contextmanager
def _failing(url: str) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    raise BadRequest(f"{url} can't be written to: {files.first_line(e)}") from e


def _own(there: Mapping[str, Entry]) -> dict[str, Entry]:
  """What is of the data set laid out here: another one may lie in a folder below."""
  return {n: e for n, e in there.items() if n != LOCK and ("/" not in n or n.startswith(_FOLDERS))}


def _parts(bucket: Bucket) -> tuple[dict[str, Entry], list[dict[str, Any]]]:
  """What lies at a URL where data is to be laid out, and what is said of each part.

  Raises:
    BadRequest: if it isn't what a stopped command left.
    OSError: if the bucket fails.
  """
  all_ = bucket.list()
  there = _own(all_)
  if UNFINISHED not in there and not all_.keys() - {LOCK}:
    return {}, []
  if UNFINISHED not in there or _LAST in there:
    raise BadRequest(f"{bucket.url} is there already: choose another --out or remove it")
  return there, unfinished.parse(bucket.read(UNFINISHED), bucket.url)[1]
