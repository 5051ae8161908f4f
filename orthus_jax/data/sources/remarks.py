"""What a data source leaves out by its rules, counted and named, and how names are shown."""

from __future__ import annotations

import collections
from collections.abc import Iterable
import logging
from typing import Any

_log = logging.getLogger(__name__)
_EXAMPLES = 3


def printable(name: str) -> str:
  """A name as logs and ids show it: what can't be printed, or was no UTF-8, is escaped."""

  def escaped(c: str) -> str:
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()

  return name if name.isprintable() else "".join(c if c.isprintable() else escaped(c) for c in name)


class Remarks:
  """What a source leaves out by its rules, or reads in a way that may surprise: counted by kind, the first ones named.

  Unlike bad records, these are no faults, and stop nothing.

  Attributes:
    counts: how many there are of each kind.
  """

  def __init__(self) -> None:
    self.counts: collections.Counter[str] = collections.Counter()
    self._named: collections.Counter[str] = collections.Counter()
    self._first: dict[str, list[str]] = {}

  def add(self, kind: str, name: str, count: int = 1) -> None:
    """Counts one, or some that lie together: what it is, in the plural, and its name."""
    self.counts[kind] += count
    self._named[kind] += 1
    if len(first := self._first.setdefault(kind, [])) < _EXAMPLES:
      first.append(printable(name))

  @classmethod
  def sum(cls, all: Iterable[Remarks]) -> Remarks:
    """All of several sources."""
    out = cls()
    for remarks in all:
      out.counts.update(remarks.counts)
      out._named.update(remarks._named)
      for kind, first in remarks._first.items():
        out._first[kind] = (out._first.get(kind, []) + first)[:_EXAMPLES]
    return out

  def since(self, earlier: Remarks) -> Remarks:
    """What was added to these since a copy of them was made."""
    out = Remarks()
    out.counts, out._named = self.counts - earlier.counts, self._named - earlier._named
    out._first = {kind: self._first[kind][len(earlier._first.get(kind, ())) :] for kind in out.counts}
    return out

  def to_json(self) -> list[Any]:
    """These as JSON can hold them."""
    return [[kind, n, self._named[kind], self._first[kind]] for kind, n in self.counts.items()]

  @classmethod
  def from_json(cls, rows: Iterable[Any]) -> Remarks:
    """The remarks that `to_json` made this of."""
    out = cls()
    for kind, n, named, first in rows:
      out.counts[kind], out._named[kind], out._first[kind] = n, named, first
    return out

  def log(self, source: str) -> None:
    """Logs a line for each kind."""
    for line in self.lines():
      _log.warning("%s: %s", printable(source), line)

  def lines(self) -> list[str]:
    """A line for each kind: how many, and the first names."""
    more = {kind: ", …" if n > _EXAMPLES else "" for kind, n in self._named.items()}
    return [f"{kind}: {n:,} ({', '.join(self._first[kind])}{more[kind]})" for kind, n in self.counts.items()]
