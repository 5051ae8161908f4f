"""Rows of a JSON-lines file, found once and read when asked for; only their places are held in memory."""

from __future__ import annotations

import array
import codecs
from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.data.retrying import retry
from orthus_jax.errors import BadRequest


class JsonLines:
  """The lines of a file that aren't blank.

  Args:
    file: what is read.
    note: called with each line; what it returns, 0..127, is kept in `notes`.

  Attributes:
    lines: the number of each row's line, from 1.
    notes: what `note` said of each row.

  Raises:
    BadRequest: the file isn't there, or holds no row.
  """

  def __init__(self, file: Path, note: Callable[[bytes], int] | None = None):
    self.file = file
    if not file.is_file():
      raise BadRequest(f"there is no {str(file)!r}; write one JSON row a line there, or name another file")
    offsets, lines, notes = array.array("q"), array.array("q"), array.array("b")
    offset = 0
    with file.open("rb") as f:
      for number, line in enumerate(f, start=1):
        if (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
          offsets.append(offset)
          lines.append(number)
          notes.append(note(line) if note else 0)
        offset += len(line)
    if not len(offsets):
      raise BadRequest(f"{str(file)!r} holds no row; write one JSON row a line there")
    self._offsets = np.array(offsets, np.int64)
    self.lines, self.notes = np.array(lines, np.int64), np.array(notes, np.int8)

  def __len__(self) -> int:
    return len(self._offsets)

  def place(self, row: int) -> tuple[str, str]:
    return str(self.file), f"line {self.lines[row]}"

  def name(self, row: int) -> str:
    """A name of a row, for ids: its file's, and its line."""
    return f"{self.file.name}:{self.lines[row]}"

  def line(self, row: int) -> bytes:
    """A row's bytes."""

    def read() -> bytes:
      with self.file.open("rb") as f:
        f.seek(int(self._offsets[row]))
        return f.readline()

    return retry(str(self.file), read)

  def record(self, row: int) -> dict[str, Any]:
    """A row's object.

    Raises:
      BadRequest: it isn't one.
    """
    return parse_object(self.line(row))


def parse_object(line: bytes) -> dict[str, Any]:
  """A JSON object of UTF-8 bytes.

  Raises:
    BadRequest: it isn't one.
  """
  try:
    row = json.loads(line.decode("utf-8-sig"))
  except UnicodeDecodeError as e:
    raise BadRequest(f"it isn't UTF-8 (byte {e.start + 1} of the line); save the file as UTF-8") from e
  except json.JSONDecodeError as e:  # whose own line is always 1
    raise BadRequest(f"it isn't JSON: {e.msg}, at character {e.pos + 1}") from e
  except (ValueError, RecursionError) as e:
    raise BadRequest(f"it isn't JSON: {e}") from e
  if not isinstance(row, dict):
    raise BadRequest(f"a row must be a JSON object, got {type(row).__name__}")
  return row
