"""Which columns of an imagefolder's table name pictures, and what several pictures of a row become."""

from __future__ import annotations

import array
from collections.abc import Iterable, Mapping, Sequence
import os
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.layout import Picture
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.errors import BadRequest

# What is noted of a row: its one picture is in file_name; it has others; they lie in another split's folder.
SINGLE, SEVERAL, ELSEWHERE = 1, 2, 3
_GIVEN = ("input", "source", "original", "before")
_ASKED = ("output", "target", "edited", "after")


def is_name(column: str) -> bool:
  """Whether a column holds names of pictures."""
  return column in ("file_name", "file_names") or column.endswith(("_file_name", "_file_names"))


def names(record: Mapping[str, Any]) -> dict[str, list[Any]]:
  """Names of a row's pictures by column, in the columns' order; columns without any are left out.

  Raises:
    BadRequest: one that must hold a list holds something else, or there are none.
  """
  out = {}
  for column in filter(is_name, record):
    value = record[column]
    if value in (None, "", []):
      continue
    if column.endswith("file_names") and not isinstance(value, list):
      raise BadRequest(f"its {column} must be a list of paths, got {value!r}")
    out[column] = value if column.endswith("file_names") else [value]
  if not out:
    raise BadRequest("it names no picture")
  return out


def pictures(record: Mapping[str, Any], folder: Path) -> dict[str, list[Path]]:
  """Where a row's pictures lie, by column.

  Raises:
    BadRequest: there are none, or one is no path inside the folder.
  """
  return {c: [local_picture(folder, v, what=f"its {c}") for v in values] for c, values in names(record).items()}


def roles(columns: Sequence[str]) -> tuple[list[str], list[str]]:
  """Columns of pictures that an edit is given, and of those that it is asked for, by their names: input…, output…, …."""
  lower = [(c, c.lower()) for c in columns]
  return [c for c, low in lower if low.startswith(_GIVEN)], [c for c, low in lower if low.startswith(_ASKED)]


def arranged(shown: Mapping[str, Sequence[Path]], text: str, columns: Iterable[str]) -> tuple[str, tuple[Text | Picture, ...]]:
  """The kind of a document of several pictures, and its segments.

  Args:
    shown: a row's pictures, by column.
    text: its text.
    columns: the table's, which tell an edit from pictures that are told of, whatever a row leaves out.

  Raises:
    BadRequest: an edit has no picture that is given, or none that is asked for.
  """
  given, asked = roles([c for c in columns if is_name(c)])
  if not (given and asked):
    return "interleaved", (*(Picture(f) for files in shown.values() for f in files), Text(text, learn=True))
  if not (any(c in shown for c in given) and any(c in shown for c in asked)):
    raise BadRequest(f"an edit needs pictures in {' or '.join(given)} and in {' or '.join(asked)}")
  before = (Picture(f) for c, files in shown.items() if c not in asked for f in files)
  after = (Picture(f, learn=True) for c, files in shown.items() if c in asked for f in files)
  return "edit", (*before, Text(text), *after)


class Names:
  """Notes on a table's rows; and names of all its pictures, in little memory.

  Args:
    folder: where the table lies.
    within: the folder in it whose pictures are wanted; empty: all.
  """

  def __init__(self, folder: Path, within: str):
    self._folder, self._within = str(folder), f"{within}/" if within else ""
    self._keys = array.array("q")

  def note(self, record: Mapping[str, Any]) -> int:
    """What is noted of a row."""
    found = names(record)
    paths = [os.path.normpath(n) for values in found.values() for n in values if isinstance(n, str)]
    self._keys.extend(key(os.path.join(self._folder, p)) for p in paths)
    if paths and not all(p.startswith(self._within) for p in paths):
      return ELSEWHERE
    return SINGLE if list(found) == ["file_name"] else SEVERAL

  def take(self) -> np.ndarray:
    """The keys of all pictures; they aren't kept."""
    keys, self._keys = np.array(self._keys, np.int64), array.array("q")
    return keys


def key(path: str) -> int:
  """A number of 64 bits that stands for a path, in this process."""
  return hash(path)
