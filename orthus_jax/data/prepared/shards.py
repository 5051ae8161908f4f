"""ArrayRecord files read at random by number, with what is broken in them passed over.

A file that was cut short opens as an empty one, so how many records each should hold must be known ahead.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
import functools
import logging
from pathlib import Path
import threading
import time
from typing import Any

from array_record.python import array_record_module
import numpy as np

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import LOST, BadRequest, Stopped
from orthus_jax.files import allow_many_open, first_line
from orthus_jax.storage import bring

_log = logging.getLogger(__name__)
_OPTIONS = "readahead_buffer_size:0"
_BUFFER = 1 << 15
_AWAY = (10.0, 30.0, 90.0)  # seconds that a bucket may stay away, each time after the bucket's own tries


class Shards:
  """The records of several files, one after the other. Safe to share between threads.

  Args:
    paths: the files.
    counts: how many records each holds; None to ask the files, which then must be whole.
    bad: counts what can't be read, and stops the run where it is too much.

  Raises:
    BadRequest: if `counts` isn't given and a file can't be read.
  """

  def __init__(self, paths: Sequence[Path], counts: Sequence[int] | None, bad: BadRecords):
    self._paths, self.bad = list(paths), bad
    if counts is None:
      counts = [_count(p) for p in self._paths]
    self._ends = np.cumsum(counts)
    self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()  # the one used last stands last
    self._closed: dict[int, str] = {}
    self._lock = threading.Lock()
    self._coming: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)

  @classmethod
  def of(cls, folder: Path, facts: dict[str, Any], name: str, bad: BadRecords) -> Shards:
    """The "documents" or "pictures" of a prepared folder, of which prepared.json says the `facts`."""
    counts = facts.get("shards", {}).get(name)
    if counts is None:  # prepared by an earlier version
      return cls(sorted(folder.glob(f"{name}-*")), None, bad)
    return cls([folder / f"{name}-{i:05d}.array_record" for i in range(len(counts))], counts, bad)

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def read(self, number: int) -> bytes | None:
    """One record; None where it can't be read, which is counted.

    Raises:
      BadRequest: if too many can't, or a shard has changed in its bucket.
      Stopped: if a bucket stays away.
    """
    shard = int(np.searchsorted(self._ends, number, side="right"))
    place = number - (int(self._ends[shard - 1]) if shard else 0)
    self.bad.saw()
    if shard not in self._readers:
      self._bring(shard)
    reader, reason = self._open(shard)
    if reader is not None:
      try:
        return reader.read([place])[0]
      except (RuntimeError, ValueError, IndexError) as e:
        reason = first_line(e)[:200]
    self.bad.report(str(self._paths[shard]), f"record {place}", reason)
    self.bad.check()
    return None

  def _bring(self, shard: int) -> None:
    """Has a shard that lies in a bucket come here, once, while others are read.

    Without it, what follows would be other batches than those of a run whose bucket didn't fail.
    """
    with self._lock:
      coming = self._coming[shard]
    path = self._paths[shard]
    with coming:
      for wait in (*_AWAY, None):
        if shard in self._readers:
          return
        try:
          bring.file(path)
          return
        except OSError as e:
          why = first_line(e)
          if wait is None:
            raise Stopped(f"{why}: start the same command again once the bucket answers", status=LOST) from e
          _log.warning("%s; trying again in %g s", why, wait)
          time.sleep(wait)

  def _open(self, shard: int) -> tuple[Any, str]:
    """A file's reader; None, and what keeps it from being opened."""
    with self._lock:
      if shard in self._readers:
        self._readers.move_to_end(shard)
        return self._readers[shard], ""
      if shard in self._closed:
        return None, self._closed[shard]
      path = self._paths[shard]
      try:
        retry(str(path), lambda: path.stat())
      except OSError as e:
        self._closed[shard] = f"the file can't be reached: {e.strerror}"
        return None, self._closed[shard]
      reader = array_record_module.ArrayRecordReader(str(path), _OPTIONS, file_reader_buffer_size=_BUFFER)
      if not reader.ok():
        self._closed[shard] = "the file is cut short or no ArrayRecord file"
        return None, self._closed[shard]
      self._readers[shard] = reader
      if len(self._readers) > _most_open():
        self._readers.popitem(last=False)  # closed when no thread reads from it any more
      return reader, ""


@functools.cache
def _most_open() -> int:
  """Files that one source keeps open: a part of what the system allows."""
  return max(allow_many_open() // 4, 8)


def _count(path: Path) -> int:
  reader = array_record_module.ArrayRecordReader(str(path), _OPTIONS)
  if not reader.ok():
    raise BadRequest(f"{path} is cut short or no ArrayRecord file: bring it back or prepare it anew")
  return reader.num_records()
