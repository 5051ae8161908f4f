"""What layouts have in common whose rows are JSON objects in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orthus_jax.data.sources import json_files
from orthus_jax.data.sources.json_lines import JsonLines
from orthus_jax.data.sources.json_shards import JsonShards
from orthus_jax.data.sources.layout import Layout


class JsonLayout(Layout):
  """A layout whose rows are objects; what opens it calls `_open`."""

  def _open(self, rows: JsonShards | JsonLines, where: Path, *keys: str, also: str = "") -> None:
    """Takes rows as the layout's, and looks at the first: they are `_first` then.

    Args:
      rows: all of them.
      where, keys, also: as of `json_files.check`.

    Raises:
      BadRequest: none of the first has all keys.
    """
    self._rows = rows
    self.broken += getattr(rows, "broken", ())
    self._first = json_files.first_rows(rows)
    json_files.check(self.name, where, self._first, *keys, also=also)

  def __len__(self) -> int:
    return len(self._rows)

  def row_files(self) -> Sequence[Path]:
    return self._rows.files if isinstance(self._rows, JsonShards) else [self._rows.file]

  def place(self, row: int) -> tuple[str, str]:
    return self._rows.place(row)

  def fields(self) -> Mapping[str, str]:
    return json_files.examples(self._first[0]) if self._first else {}
