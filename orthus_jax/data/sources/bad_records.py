"""Counting what a data source had to skip, and stopping when it is too much."""

from __future__ import annotations

import collections
from collections.abc import Iterable
import hashlib
import logging
import math
import re
import threading
from typing import Any

from orthus_jax.data.sources.remarks import printable
from orthus_jax.errors import BadRequest

AT_LEAST = 5  # different bad records that stop a run, unless there are fewer records than that
logger = logging.getLogger(__name__)


class BadRecords:
  """Bad records among those that were read: skipped, counted, named in a log.

  Safe to share between threads. Each process counts what it reads itself.

  Attributes:
    max_share: the share of bad records that is put up with, in [0, 1].
    total: how many records there are, where that is known.
    seen: records read, one read again counted again.
    count: bad ones among them, likewise.
    distinct: different bad records.
  """

  def __init__(self, *, max_share: float = 0.01, total: int | None = None, at_least: int = AT_LEAST, log_first: int = 20):
    """Starts counting.

    Args:
      max_share: the share of bad records that is put up with; 0 stops at the first.
      total: how many records there are, where that is known.
      at_least: fewer different bad records than this never stop a run, unless max_share is 0 or there are no others.
      log_first: how many different ones are logged by name; later, only the count is, each time it has doubled. 0: nothing is.

    Raises:
      BadRequest: max_share is outside [0, 1].
    """
    if not 0 <= max_share <= 1:
      raise BadRequest(f"the share of bad records to put up with must be between 0 and 1, got {max_share}")
    self.max_share = max_share
    self.total = total
    self.seen = 0
    self.count = 0
    self._at_least = min(at_least, total or at_least) if max_share else 1
    self._log_first = log_first
    self._next_note = 2 * log_first
    self._named: set[bytes] = set()  # by digests: of a hundred million records, some percent may be bad
    self._last = ""
    self._lock = threading.Lock()

  @property
  def distinct(self) -> int:
    return len(self._named)

  @property
  def share(self) -> float:
    """Bad records among those read, 0 before any was."""
    return self.count / self.seen if self.seen else 0.0

  def saw(self, n: int = 1) -> None:
    """Counts records read, good or bad."""
    with self._lock:
      self.seen += n

  def told_before(self, broken: Iterable[tuple[str, str, str]]) -> None:
    """Counts (file, where, reason) of what can't be read at all, which somebody else has logged."""
    with self._lock:
      for source, record, reason in broken:
        self.seen += 1
        self.count += 1
        self._named.add(_key(source, record))
        self._last = printable(f"{source}, {record}: {reason}")

  def report(self, source: str, record: Any, reason: str) -> None:
    """Counts a bad record (which `saw` counts too) and logs it, the first time that it turns up.

    Args:
      source: what it was read from, as a person knows it: a file's name.
      record: which one: "line 3", a key.
      reason: what is wrong with it.
    """
    with self._lock:
      self.count += 1
      key = _key(source, record)
      if key in self._named:
        return
      self._named.add(key)
      self._last = printable(f"{source}, {record}: {reason}")
      distinct = len(self._named)
      if distinct <= self._log_first:
        logger.warning("skipped a bad record: %s", self._last)
      elif self._log_first and distinct >= self._next_note:
        self._next_note = 2 * distinct
        logger.warning("skipped %d bad records of %d read, the latest: %s", self.count, self.seen, self._last)

  def check(self) -> None:
    """Raises BadRequest once too many records are bad.

    Of a known total, that is when the different bad ones exceed their share of it: bad records that lie close together
    don't stop a run that puts up with as many. Of a stream, it is when those read exceed their share of what was read
    by three standard deviations, so that bad luck among the first few is no reason.
    """
    with self._lock:
      if self.distinct < self._at_least:
        return
      if self.total is not None:
        bad, of, allowed = self.distinct, f"{self.total} records", self.max_share * self.total
      else:
        expected = self.max_share * self.seen
        bad, of, allowed = self.count, f"{self.seen} records read", expected + 3 * math.sqrt(expected)
      if bad > allowed:
        raise BadRequest(
            f"{bad} of {of} are bad so far, more than the share of {self.max_share:g} put up with; mend them (the log"
            f" names them) or raise max_bad_share. The latest: {self._last}"
        )

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_lock"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock())


def reasons(bad: Iterable[tuple[str, str, str]]) -> collections.Counter[str]:
  """How many (file, record, reason) there are for each reason: names and numbers in it are left out."""
  general = (re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason) for _, _, reason in bad)
  return collections.Counter(re.sub(r"(?<![\w-])\d[\d,.]*", "N", reason) for reason in general)


def _key(source: str, record: Any) -> bytes:
  return hashlib.blake2b(f"{source}\0{record}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
