"""Tables by their files' extensions."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import itertools
from pathlib import Path

from orthus_jax.data.sources.json_lines import parse_object
from orthus_jax.data.sources.row_groups import Parquet
from orthus_jax.data.sources.tables import Csv, Lines, Note, Table, csv_header
from orthus_jax.errors import BadRequest

KINDS = (".csv", ".jsonl", ".parquet")
_LINES = 8  # that are looked at
_LINE = 1 << 20  # bytes of one


def open_table(file: Path, note: Note, noted: Callable[[str], bool]) -> Table:
  """The table of a file.

  Args:
    file: of one of `KINDS`.
    note: as of `Table.notes`.
    noted: whether `note` needs a column.

  Raises:
    BadRequest: it is no table, or holds no row.
  """
  kind = file.suffix.lower()
  if kind != ".parquet":
    return Csv(file, note) if kind == ".csv" else Lines(file, note)
  table = Parquet([file])
  table.note(note, [c for c in table.columns if noted(c)])
  return table


def columns_of(file: Path) -> list[str]:
  """A table's columns; of JSON lines, those of the first good row. Reads little.

  Raises:
    BadRequest: it is no table.
    OSError: the file system fails.
  """
  kind = file.suffix.lower()
  if kind == ".parquet":
    return Parquet([file]).columns
  with file.open("rb") as f:
    if kind == ".csv":
      return csv_header(file, f)
    lines = [line for line in itertools.islice(iter(lambda: f.readline(_LINE), b""), _LINES) if line.strip()]
  for line in lines[:-1]:
    with contextlib.suppress(BadRequest):  # a bad row makes no bad table
      return list(parse_object(line))
  return list(parse_object(lines[-1] if lines else b""))
