"""Rows of tables in text files: CSV and JSON lines. Their places are found once; a row is read when it is asked for."""

from __future__ import annotations

import abc
import array
import codecs
import collections
from collections.abc import Callable, Iterator, Sequence
import csv
import io
from pathlib import Path
import sys
from typing import Any, BinaryIO, TypeVar

import numpy as np

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.json_lines import JsonLines, parse_object
from orthus_jax.errors import BadRequest

csv.field_size_limit(sys.maxsize)

Note = Callable[[dict[str, Any]], int]
T = TypeVar("T")


class Table(abc.ABC):
  """Rows with named columns.

  Attributes:
    columns: their names; of JSON lines, those of any row.
    notes: what a callback said of each row, 1..127; 0 where the row is bad, or nobody asked.
  """

  columns: list[str]
  notes: np.ndarray

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


def noted(note: Note, read: Callable[[T], dict[str, Any]], row: T) -> int:
  """What is noted of a row that is still to be read; 0 where it is bad, of which is told when it is asked for."""
  try:
    return note(read(row))
  except BadRequest:
    return 0


def _nothing(_: dict[str, Any]) -> int:
  return 0


class Lines(Table):
  """Rows of a JSON-lines file."""

  def __init__(self, file: Path, note: Note = _nothing):
    columns: dict[str, None] = {}

    def record(line: bytes) -> dict[str, Any]:
      found = parse_object(line)
      if not found.keys() <= columns.keys():
        columns.update(dict.fromkeys(found))
      return found

    self._lines = JsonLines(file, lambda line: noted(note, record, line))
    self.columns, self.notes = list(columns), self._lines.notes

  def __len__(self) -> int:
    return len(self._lines)

  def row(self, row: int) -> dict[str, Any]:
    return self._lines.record(row)

  def place(self, row: int) -> tuple[str, str]:
    return self._lines.place(row)


class Csv(Table):
  """Rows of a CSV file with a header. All values are text: "None", "NA" and "007" stay what they are."""

  def __init__(self, file: Path, note: Note = _nothing):
    self._file = file
    offsets, lines, notes = array.array("q"), array.array("q"), array.array("b")
    with file.open("rb") as f:
      source = _Counted(f)
      rows = csv.reader(source, strict=True)
      self.columns = _header(file, rows)
      while True:
        begin, line = source.offset, source.line + 1
        fault = None
        try:
          row = next(rows, None)
        except csv.Error as e:
          if source.ended:
            raise BadRequest(f"{file}: a quote that is opened in the row of line {line} is never closed") from e
          row, fault = [""], BadRequest(str(e))  # told of when the row is read; the next line is the next row
        if row is None:
          break
        if row:
          offsets.append(begin)
          lines.append(line)
          notes.append(0 if fault else noted(note, self._record, row))
      end = source.offset
    if not len(offsets):
      raise BadRequest(f"{str(file)!r} holds no row below its header")
    self._offsets, self._lines = np.array([*offsets, end], np.int64), np.array(lines, np.int64)
    self.notes = np.array(notes, np.int8)

  def __len__(self) -> int:
    return len(self._lines)

  def _record(self, values: list[str]) -> dict[str, Any]:
    if len(values) != len(self.columns):
      raise BadRequest(f"it has {len(values)} values for {len(self.columns)} columns: quote what holds commas")
    return dict(zip(self.columns, values))

  def row(self, row: int) -> dict[str, Any]:
    begin, end = self._offsets[row : row + 2].tolist()

    def read() -> bytes:
      with self._file.open("rb") as f:
        f.seek(begin)
        return f.read(end - begin)

    try:
      # Lines end at line feeds alone: Python's others, such as U+2028, are part of a text.
      return self._record(next(csv.reader(_lines(retry(str(self._file), read)), strict=True)))
    except UnicodeDecodeError as e:
      raise BadRequest("it isn't UTF-8; save the file as UTF-8") from e
    except csv.Error as e:
      raise BadRequest(f"it isn't CSV: {e}") from e

  def place(self, row: int) -> tuple[str, str]:
    return str(self._file), f"line {self._lines[row]}"


def _lines(data: bytes) -> Iterator[str]:
  return (line.decode() for line in io.BytesIO(data))


def csv_header(file: Path, f: BinaryIO) -> list[str]:
  """The columns of a CSV file, opened.

  Raises:
    BadRequest: it has none, or two of one name.
  """
  return _header(file, csv.reader(_Counted(f), strict=True))


def _header(file: Path, rows: Iterator[list[str]]) -> list[str]:
  try:
    columns = next(rows, [])
  except csv.Error as e:
    raise BadRequest(f"{file}, line 1 isn't CSV: {e}") from e
  if any("\udc80" <= c <= "\udcff" for c in "".join(columns)):
    raise BadRequest(f"{file}, line 1 isn't UTF-8; save the file as UTF-8")
  check_columns(columns, file)
  return columns


def check_columns(columns: Sequence[str], file: Path) -> None:
  """Raises BadRequest where two have one name."""
  twice = [c for c, n in collections.Counter(columns).items() if n > 1]
  if twice:
    raise BadRequest(f"{file} has more than one column called {', '.join(twice)}: rename all but one")


class _Counted:
  """Lines of a file, counted, for the CSV reader; what isn't UTF-8 in them can't hurt the ways in which rows part.

  Attributes:
    offset: where the next one begins.
    line: how many there were.
    ended: whether there is none left.
  """

  def __init__(self, f: BinaryIO):
    self._f = f
    self.offset = self.line = 0
    self.ended = False

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    line = self._f.readline()
    if not line:
      self.ended = True
      raise StopIteration
    text = (line if self.offset else line.removeprefix(codecs.BOM_UTF8)).decode("utf-8", "surrogateescape")
    self.offset += len(line)
    self.line += 1
    return text
