"""Rows of tables in files: CSV, JSON lines and Parquet. Their places are found once; a row is read when it is asked for."""

from __future__ import annotations

import abc
import array
from collections.abc import Iterator, Sequence
import csv
from pathlib import Path
import sys
from typing import Any, BinaryIO

import numpy as np

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.json_lines import JsonLines
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line

_ROWS_AT_ONCE = 64
csv.field_size_limit(sys.maxsize)


class Table(abc.ABC):
  """Rows with named columns.

  Attributes:
    columns: their names; of JSON lines, those of the first row.
  """

  columns: list[str]

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def row(self, row: int) -> dict[str, Any]:
    """A row's values by column.

    Raises:
      BadRequest: what is wrong with it.
      OSError: the file system fails.
    """

  @abc.abstractmethod
  def place(self, row: int) -> tuple[str, str]:
    """(file, record), as a person knows it."""


def open_table(file: Path, columns: Sequence[str] | None = None) -> Table:
  """The table of a file, by its extension; of Parquet only some columns, if they are named."""
  kinds = {".csv": Csv, ".jsonl": Lines, ".parquet": lambda f: Parquet([f], columns)}
  return kinds[file.suffix.lower()](file)


class Lines(Table):
  """Rows of a JSON-lines file."""

  def __init__(self, file: Path):
    self._lines = JsonLines(file)
    self.columns = list(self._lines.record(0))

  def __len__(self) -> int:
    return len(self._lines)

  def row(self, row: int) -> dict[str, Any]:
    return self._lines.record(row)

  def place(self, row: int) -> tuple[str, str]:
    return self._lines.place(row)


class Csv(Table):
  """Rows of a CSV file with a header. All values are text: "None", "NA" and "007" stay what they are."""

  def __init__(self, file: Path):
    self._file = file
    offsets, lines = array.array("q"), array.array("q")
    with file.open("rb") as f:
      source = _Counted(f)
      try:
        rows = csv.reader(source, strict=True)
        self.columns = next(rows, [])
        while True:
          begin, line = source.offset, source.line + 1
          row = next(rows, None)
          if row is None:
            break
          if row:
            offsets.append(begin)
            lines.append(line)
      except UnicodeDecodeError as e:
        raise BadRequest(f"{file}, line {source.line + 1} isn't UTF-8; save the file as UTF-8") from e
      except csv.Error as e:
        raise BadRequest(f"{file}, line {source.line} isn't CSV: {e}") from e
      end = source.offset
    if not len(offsets):
      raise BadRequest(f"{str(file)!r} holds no row below its header")
    self._offsets, self._lines = np.array([*offsets, end], np.int64), np.array(lines, np.int64)

  def __len__(self) -> int:
    return len(self._lines)

  def row(self, row: int) -> dict[str, Any]:
    begin, end = self._offsets[row : row + 2].tolist()

    def read() -> bytes:
      with self._file.open("rb") as f:
        f.seek(begin)
        return f.read(end - begin)

    text = retry(str(self._file), read).decode("utf-8-sig")
    values = next(csv.reader(text.splitlines(keepends=True), strict=True))
    if len(values) != len(self.columns):
      raise BadRequest(f"it has {len(values)} values for {len(self.columns)} columns: quote what holds commas")
    return dict(zip(self.columns, values))

  def place(self, row: int) -> tuple[str, str]:
    return str(self._file), f"line {self._lines[row]}"


class _Counted:
  """Lines of a file, counted, for the CSV reader."""

  def __init__(self, f: BinaryIO):
    self._f = f
    self.offset = self.line = 0

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    line = self._f.readline()
    if not line:
      raise StopIteration
    text = line.decode("utf-8-sig" if not self.offset else "utf-8")
    self.offset += len(line)
    self.line += 1
    return text


class Parquet(Table):
  """Rows of Parquet files with the same columns, one file behind the other.

  Rows asked for in order are read a few at a time, whatever a row group's size.

  Attributes:
    broken: (file, where, why) of files that can't be read; their rows aren't counted.
  """

  def __init__(self, files: Sequence[Path], columns: Sequence[str] | None = None):
    import pyarrow.parquet

    self._files: list[Path] = []
    self._groups: list[tuple[int, int]] = []  # file, row group
    self.broken: list[tuple[str, str, str]] = []
    counts: list[int] = []
    self.columns = []
    self.types: dict[str, Any] = {}
    for file in files:
      try:
        with pyarrow.parquet.ParquetFile(file) as f:
          schema, metadata = f.schema_arrow, f.metadata
          groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
      except (pyarrow.ArrowException, OSError, ValueError) as e:
        self.broken.append((str(file), "all of it", f"it can't be read as Parquet: {first_line(e)}"))
        continue
      if self._files and set(schema.names) != set(self.columns):
        self.broken.append((str(file), "all of it", f"its columns are others than {self._files[0].name}'s"))
        continue
      self.columns = self.columns or list(schema.names)
      self.types = self.types or {n: schema.field(n).type for n in schema.names}
      counts += groups
      self._groups += [(len(self._files), g) for g in range(len(groups))]
      self._files.append(file)
    if not sum(counts):
      why = f": {self.broken[0][0]}: {self.broken[0][2]}" if self.broken else ""
      raise BadRequest(f"no row stands in {len(files)} Parquet files{why}")
    self._ends = np.cumsum(counts)
    self._wanted = None if columns is None else [c for c in self.columns if c in set(columns)]
    self._close()

  def select(self, columns: Sequence[str]) -> None:
    """Reads only these columns from now on."""
    self._wanted = [c for c in self.columns if c in set(columns)]
    self._close()

  def _close(self) -> None:
    self._open: tuple[int, Any, Any] | None = None  # row group, its file, and the batches that are left of it
    self._batch: tuple[int, Any] | None = None  # the first row of a batch, and the batch

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_open": None, "_batch": None}

  def __len__(self) -> int:
    return int(self._ends[-1])

  def place(self, row: int) -> tuple[str, str]:
    group = int(np.searchsorted(self._ends, row, side="right"))
    file = self._groups[group][0]
    first = next(g for g, (f, _) in enumerate(self._groups) if f == file)
    return str(self._files[file]), f"row {row - (int(self._ends[first - 1]) if first else 0)}"

  def row(self, row: int) -> dict[str, Any]:
    import pyarrow

    try:
      first, batch = self._read(row)
      return batch.slice(row - first, 1).to_pylist()[0]
    except (pyarrow.ArrowException, UnicodeDecodeError) as e:
      self._close()
      raise BadRequest(f"it can't be read: {first_line(e)}") from e

  def _read(self, row: int) -> tuple[int, Any]:
    import pyarrow.parquet

    if self._batch is not None and 0 <= row - self._batch[0] < len(self._batch[1]):
      return self._batch
    group = int(np.searchsorted(self._ends, row, side="right"))
    begin = int(self._ends[group - 1]) if group else 0
    at = self._batch[0] + len(self._batch[1]) if self._batch is not None else -1
    if self._open is None or self._open[0] != group or at > row:
      if self._open is not None:
        self._open[1].close()
      number, which = self._groups[group]
      file = pyarrow.parquet.ParquetFile(self._files[number], pre_buffer=False)
      batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[which], columns=self._wanted, use_threads=False)
      self._open, at = (group, file, batches), begin
    for batch in self._open[2]:
      self._batch = (at, batch)
      if row < at + len(batch):
        return self._batch
      at += len(batch)
    raise BadRequest("its row group is shorter than it says")
