"""Rows of several files of JSON, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.data.sources import json_files
from orthus_jax.data.sources.json_array import JsonArray
from orthus_jax.data.sources.json_lines import JsonLines
from orthus_jax.errors import BadRequest


class JsonShards:
  """Rows of files of JSON lines or arrays.

  Args:
    files: in order.
    key: as of `JsonArray`.

  Attributes:
    files: all of them.
    broken: (file, where in it, why) for what can't be read of them.

  Raises:
    BadRequest: no file holds a row, nor anything broken; or the only file isn't such a one.
  """

  def __init__(self, files: Sequence[Path], key: str):
    self.files, self.broken = list(files), list[tuple[str, str, str]]()
    self._files: list[JsonArray | JsonLines] = []
    for file in files:
      try:
        rows = JsonArray(file, key) if json_files.is_array(file) else JsonLines(file)
      except BadRequest as e:
        if len(files) == 1:
          raise
        self.broken.append((str(file), "all of it", str(e)))
        continue
      self.broken += getattr(rows, "broken", ())
      self._files.append(rows)
    self._ends = np.cumsum([len(rows) for rows in self._files], dtype=np.int64)
    if not (len(self) or self.broken):
      raise BadRequest(f"{str(files[0])!r} holds no row")

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def _find(self, row: int) -> tuple[JsonArray | JsonLines, int]:
    file = int(np.searchsorted(self._ends, row, side="right"))
    return self._files[file], row - (int(self._ends[file - 1]) if file else 0)

  def place(self, row: int) -> tuple[str, str]:
    rows, within = self._find(row)
    return rows.place(within)

  def name(self, row: int) -> str:
    """A name of a row, for ids: its file's, and its line or element."""
    rows, within = self._find(row)
    return rows.name(within)

  def record(self, row: int) -> dict[str, Any]:
    """A row's object.

    Raises:
      BadRequest: it isn't one.
    """
    rows, within = self._find(row)
    return rows.record(within)
