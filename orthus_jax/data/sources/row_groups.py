"""Rows of Parquet files, read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.tables import Note, Table, check_columns, noted
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line

_ROWS_AT_ONCE = 64
_BUFFER = 1 << 20  # bytes of a column that are read at once, whatever a row group's size


class Parquet(Table):
  """Rows of Parquet files, one file behind the other.

  Rows asked for in order are read a few at a time, whatever a row group's size.

  Attributes:
    types: of the columns, which are those of the first file.
    broken: (file, where, why) of files that can't be read; their rows aren't counted.
  """

  def __init__(self, files: Sequence[Path]):
    import pyarrow.parquet

    self.broken: list[tuple[str, str, str]] = []
    self.types: dict[str, Any] = {}
    self._files: list[Path] = []
    self._names: list[frozenset[str]] = []  # a file's columns
    self._file_groups: list[np.ndarray] = []  # rows of each of a file's row groups
    for file in files:
      try:
        schema, rows = retry(str(file), functools.partial(_footer, file))
      except (pyarrow.ArrowException, OSError, ValueError) as e:
        self.broken.append((str(file), "all of it", f"it can't be read as Parquet: {first_line(e)}"))
        continue
      if not self._files:
        check_columns(schema.names, file)
        self.types = dict(zip(schema.names, schema.types))
      self._files.append(file)
      self._names.append(next((n for n in self._names if n == set(schema.names)), frozenset(schema.names)))
      self._file_groups.append(rows)
    self.columns = list(self.types)
    self.notes = np.zeros(0, np.int8)
    self.select(self.columns)

  def select(self, columns: Sequence[str], needed: Sequence[str] = ()) -> None:
    """Reads only these columns from now on; files that lack one that is needed count as broken.

    Raises:
      BadRequest: no row is left.
    """
    self._wanted = list(columns)
    for i in reversed(range(len(self._files))):
      if missing := [c for c in needed if c not in self._names[i]]:
        reason = f"it has no column {', '.join(missing)}, as {self._files[0].name} has"
        self.broken.append((str(self._files[i]), "all of it", reason))
        del self._files[i], self._names[i], self._file_groups[i]
    sizes = [len(rows) for rows in self._file_groups]
    self._ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *self._file_groups]))
    self._group_file = np.repeat(np.arange(len(sizes)), sizes)
    self._first_group = np.cumsum([0, *sizes])
    if not len(self):
      why = f": {self.broken[0][0]}: {self.broken[0][2]}" if self.broken else ""
      raise BadRequest(f"no row stands in {len(self._files) + len(self.broken)} Parquet files{why}")
    self._close()

  def _close(self) -> None:
    self._file: tuple[int, Any] | None = None  # an open one and its number
    self._left: tuple[int, Iterator[Any]] | None = None  # a row group, and the batches that are left of it
    self._batch: tuple[int, Any] = (0, ())  # the first row of a batch, and the batch
    self._damaged: dict[int, tuple[int, str]] = {}  # by row group: from which row on it can't be read, and why

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_file": None, "_left": None, "_batch": (0, ())}

  def __len__(self) -> int:
    return int(self._ends[-1:].sum())

  def _begin(self, group: int) -> int:
    return int(self._ends[group - 1]) if group else 0

  def place(self, row: int) -> tuple[str, str]:
    file = self._group_file[np.searchsorted(self._ends, row, side="right")]
    return str(self._files[file]), f"row {row - self._begin(int(self._first_group[file]))}"

  def row(self, row: int) -> dict[str, Any]:
    first, batch = self._read(row)
    try:
      return batch.slice(row - first, 1).to_pylist()[0]
    except UnicodeDecodeError as e:
      raise BadRequest(f"a text of it isn't UTF-8: {e}") from e

  def note(self, note: Note, columns: Sequence[str]) -> None:
    """Sets `notes`, of rows with these columns alone."""
    wanted = self._wanted
    self.select(columns)
    self.notes = np.array([noted(note, self.row, row) for row in range(len(self))], np.int8)
    self.select(wanted)

  def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """All rows with some columns, as batches and the row at which each begins; what can't be read is left out."""
    wanted, row = self._wanted, 0
    self.select(columns)
    while row < len(self):
      try:
        first, batch = self._read(row)
        yield first, batch
        row = first + len(batch)
      except BadRequest:
        row = int(self._ends[np.searchsorted(self._ends, row, side="right")])
    self.select(wanted)

  def _read(self, row: int) -> tuple[int, Any]:
    first, batch = self._batch
    if not first <= row < first + len(batch):
      group = int(np.searchsorted(self._ends, row, side="right"))
      if group in self._damaged and row >= self._damaged[group][0]:
        raise BadRequest(self._damaged[group][1])
      file = self._files[self._group_file[group]]
      self._batch = retry(str(file), lambda: self._batch_of(row, group))
    return self._batch

  def _batch_of(self, row: int, group: int) -> tuple[int, Any]:
    """The batch of a row, by reading on, or its row group from the beginning."""
    import pyarrow

    at = self._batch[0] + len(self._batch[1])
    try:
      if self._left is None or self._left[0] != group or at > row:
        at = self._begin(group)
        self._left = (group, self._batches(group))
      for batch in self._left[1]:
        self._batch = (at, batch)
        if row < at + len(batch):
          return self._batch
        at += len(batch)
      raise pyarrow.ArrowInvalid("its row group is shorter than it says")
    except (pyarrow.ArrowException, OSError) as e:
      damaged = self._damaged
      self._close()
      self._damaged = damaged
      if isinstance(e, OSError) and e.errno is not None:
        raise  # the file system's, which may be better next time; Arrow's own have no number
      self._damaged[group] = (at, f"it can't be read: {first_line(e)}")
      raise BadRequest(self._damaged[group][1]) from e

  def _batches(self, group: int) -> Iterator[Any]:
    number = int(self._group_file[group])
    if self._file is None or self._file[0] != number:
      if self._file is not None:
        self._file[1].close()
      self._file = (number, _opened(self._files[number]))
    which = group - int(self._first_group[number])
    columns = [c for c in self._wanted if c in self._names[number]]
    return self._file[1].iter_batches(_ROWS_AT_ONCE, row_groups=[which], columns=columns, use_threads=False)


def _opened(file: Path) -> Any:
  import pyarrow.parquet

  return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True)


def _footer(file: Path) -> tuple[Any, np.ndarray]:
  """A file's schema, and the rows of each of its row groups.

  Raises:
    ValueError: it is no Parquet file.
    OSError: the file system fails.
  """
  try:
    with _opened(file) as f:
      groups = (f.metadata.row_group(g).num_rows for g in range(f.metadata.num_row_groups))
      return f.schema_arrow, np.fromiter(groups, np.int64)
  except OSError as e:
    raise e if e.errno is not None else ValueError(first_line(e)) from e
