"""JSON files at a place, and how they begin: enough to tell what they are."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
import json
from pathlib import Path
import re
from typing import Any, Protocol

from orthus_jax.data.sources import json_array
from orthus_jax.errors import BadRequest

_SUFFIXES = (".json", ".jsonl")
_HEAD = 1 << 20  # bytes
_MOST = 32  # files of a folder whose beginning is read
_FIRST = 16  # rows that are looked at when a file is opened
_SHOWN = 80  # characters of a field


class Rows(Protocol):
  """Rows of a file that are objects."""

  def __len__(self) -> int: ...

  def record(self, row: int) -> dict[str, Any]: ...


def files(path: Path) -> list[Path]:
  """The JSON and JSON-lines files of a folder, hidden ones left out; or the file itself, where it is one."""
  if path.is_file():
    return [path] if path.suffix.lower() in _SUFFIXES else []
  if not path.is_dir():
    raise BadRequest(f"there is no {str(path)!r}; give a file or a folder")
  return sorted(f for f in path.iterdir() if f.suffix.lower() in _SUFFIXES and not f.name.startswith("."))


def having(path: Path, *keys: str) -> list[Path]:
  """Those of the first files at a place whose first object has all keys."""
  return [f for f in files(path)[:_MOST] if set(keys) <= set(beginning(f))]


def only(path: Path, annotations: str, *keys: str) -> Path:
  """The one file of rows at a place, which need not be one.

  Args:
    path: the file, or a folder that holds it.
    annotations: its name in the folder; empty: the one JSON file whose first object has all keys.
    *keys: of rows.

  Raises:
    BadRequest: there is none, or several.
  """
  if not path.exists():
    raise BadRequest(f"there is no {str(path)!r}; give a file or a folder")
  if annotations:
    if not (path / annotations).is_file():
      raise BadRequest(f"there is no {str(path / annotations)!r}; name a file of rows in {str(path)!r} by --annotations")
    return path / annotations
  if path.is_file():
    return path
  found = having(path, *keys) or files(path)
  if len(found) != 1:
    names = ", ".join(f.name for f in found[:5]) + (", …" if len(found) > 5 else "")
    what = f"{len(found)} files that may hold the rows ({names})" if found else "no .json or .jsonl file"
    raise BadRequest(f"{str(path)!r} holds {what}; give one, or name it by --annotations")
  return found[0]


def is_array(file: Path) -> bool:
  """Whether a file should hold an array rather than an object a line."""
  return file.suffix.lower() != ".jsonl" and not _head(file).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def first_rows(rows: Rows) -> list[dict[str, Any]]:
  """Those of a file's first rows that are objects; the others are counted when they are read."""
  found = []
  for row in range(min(len(rows), _FIRST)):
    try:
      found.append(rows.record(row))
    except BadRequest:
      pass
  return found


def check(name: str, file: Path, first: list[dict[str, Any]], *keys: str, also: str = "") -> None:
  """Raises BadRequest if there are first rows and none of them has all keys that a layout's rows need."""
  if first and not any(set(keys) <= set(row) for row in first):
    found = ", ".join(first[0]) or "none"
    raise BadRequest(f"{str(file)!r} isn't {name}: its rows need {', '.join(keys)}{also}; the first has {found}")


def examples(row: Mapping[str, Any]) -> dict[str, str]:
  """A row's fields, each with its value cut short."""
  values = {key: json.dumps(value, ensure_ascii=False) for key, value in row.items()}
  return {key: value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…" for key, value in values.items()}


def beginning(file: Path) -> Any:
  """The first object of a file of JSON, or of JSON lines, or of a JSON array; an empty one where there is none soon."""
  try:
    head = _head(file).decode("utf-8-sig", errors="replace")
    start = re.match(r"[ \t\n\r]*\[?[ \t\n\r]*", head)
    value = json_array.decode(head, start.end())[0] if start else {}
  except (ValueError, RecursionError, OSError):
    return {}
  return value if isinstance(value, dict) else {}


def _head(file: Path) -> bytes:
  with file.open("rb") as f:
    return f.read(_HEAD)
