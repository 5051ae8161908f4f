"""JSON as it is found beside published weights: with a byte order mark or without, and no field twice with two values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load(file: Path) -> Any:
  """The value that a file holds.

  Raises:
    FileNotFoundError, OSError: it can't be read.
    ValueError: it is no JSON, or gives one field two values.
  """
  try:
    return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_fields)
  except RecursionError as e:
    raise ValueError("its brackets are nested too deeply") from e


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    for name, value in pairs:
      if fields[name] != value:
        raise ValueError(f"it gives {name} two values")
  return fields


def without_mark(file: Path) -> bytes:
  """A file's bytes, without the byte order mark that other readers of JSON refuse."""
  return file.read_bytes().removeprefix(b"\xef\xbb\xbf")
