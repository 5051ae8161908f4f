"""Several sources, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orthus_jax.data.documents import Document
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.data.sources.source import LayoutSource


class Joined:
  """Several places of one layout as one source; attributes are as of `LayoutSource`."""

  def __init__(self, sources: Sequence[LayoutSource], *, max_bad_share: float):
    self._sources = list(sources)
    self._ends = np.cumsum([len(s) for s in sources])
    self._row_ends = np.cumsum([s.rows for s in sources])
    self.bad = BadRecords(max_share=max_bad_share, total=sum(s.bad.total or 0 for s in sources))
    self.bad.told_before(self.broken)
    self.bad.check()

  @property
  def broken(self) -> list[tuple[str, str, str]]:
    return [where for s in self._sources for where in s.broken]

  @property
  def bad(self) -> BadRecords:
    return self._bad

  @bad.setter
  def bad(self, bad: BadRecords) -> None:
    self._bad = bad
    for source in self._sources:
      source.bad = bad

  @property
  def remarks(self) -> Remarks:
    return Remarks.sum(s.remarks for s in self._sources)

  @property
  def rows(self) -> int:
    return int(self._row_ends[-1])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Document | None:
    if not 0 <= index < len(self):
      raise IndexError(f"document {index} of {len(self)}")
    source, place = _find(self._ends, index)
    return self._sources[source][place]

  def row(self, row: int) -> list[Document | None]:
    source, place = _find(self._row_ends, row)
    return self._sources[source].row(place)

  @property
  def identity(self) -> str:
    return "; ".join(s.identity for s in self._sources)

  def __repr__(self) -> str:
    return " + ".join(map(repr, self._sources))


def _find(ends: np.ndarray, index: int) -> tuple[int, int]:
  which = int(np.searchsorted(ends, index, side="right"))
  return which, index - (int(ends[which - 1]) if which else 0)
