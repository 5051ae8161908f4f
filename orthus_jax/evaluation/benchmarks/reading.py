"""Files as the benchmarks' tools write them: whole JSON, JSON lines and lines, with errors that name file and place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import gc
import json
from pathlib import Path
import reprlib
from typing import Any

import msgspec

from orthus_jax.errors import BadRequest

_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def existing(path: str | Path, what: str, *, folder: bool = False) -> Path:
  """A path that is there and of the right sort.

  Args:
    path: what was given.
    what: should be there, for the message: "MME's result files".
    folder: whether a folder is looked for, or a file.

  Raises:
    BadRequest: if it isn't.
  """
  path = Path(path)
  sort = "folder" if folder else "file"
  try:
    if not path.exists():
      raise BadRequest(f"there is no {sort} {path}: {what} belong there")
    if path.is_dir() != folder:
      raise BadRequest(f"{path} is {'a folder' if path.is_dir() else 'no folder'}: a {sort} of {what} is looked for")
  except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
    raise BadRequest(f"{path} can't be looked at ({getattr(e, 'strerror', None) or e}): {what} belong there") from e
  return path


def only(folder: Path, pattern: str, what: str, *, deep: bool = False) -> Path:
  """The one file of a folder whose name is like this.

  Args:
    folder: where to look; a file is taken as it is.
    pattern: of the name.
    what: the file is, for the message.
    deep: whether to look in the folders below too.

  Raises:
    BadRequest: if there is none, or more than one.
  """
  if folder.is_file():
    return folder
  found = sorted(p for p in (folder.rglob if deep else folder.glob)(pattern) if p.is_file())
  if len(found) != 1:
    some = ", ".join(str(p.relative_to(folder)) for p in found[:4])
    names = f"{len(found)} ({some}{', …' if len(found) > 4 else ''})" if found else "none"
    raise BadRequest(f"{folder} must hold one {pattern}, {what}, and holds {names}: name the file")
  return found[0]


def _text(path: Path) -> str:
  """A file's text, without the mark that some systems put ahead of it."""
  try:
    with open(path, "rb") as f:
      data = f.read()
    text = data.decode("utf-8")
  except UnicodeDecodeError as e:
    line = data.count(b"\n", 0, e.start) + 1
    raise BadRequest(f"{path}:{line}: isn't UTF-8: save it as UTF-8") from e
  except OSError as e:
    raise BadRequest(f"{path} can't be read: {e.strerror}") from e
  return text.removeprefix("\ufeff")


def lines(path: Path) -> list[str]:
  """A file's lines with their ends, which are "\\n" however they are written, as Python reads a text file.

  Raises:
    BadRequest: if it can't be read, or isn't UTF-8.
  """
  text = _text(path).replace("\r\n", "\n").replace("\r", "\n")
  parts = text.split("\n")
  return [p + "\n" for p in parts[:-1]] + parts[-1:] * bool(parts[-1])


def _parsed(text: str, path: Path, first: int = 1, **options: Any) -> Any:
  if not options:
    try:
      return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):  # json takes some more, such as NaN, and says where it breaks
      pass
  try:
    return json.loads(text, **options)
  except json.JSONDecodeError as e:
    whole = "" if text.strip() else ": it is empty" if first == 1 and not text else ": the line is empty"
    raise BadRequest(f"{path}:{first + e.lineno - 1}: broken JSON{whole or f' ({e.msg}, column {e.colno})'}") from e
  except RecursionError as e:
    raise BadRequest(f"{path}:{first}: JSON that is nested too deep") from e
  except ValueError as e:  # a whole number of more digits than Python reads
    raise BadRequest(f"{path}:{first}: broken JSON ({str(e).split(';')[0]})") from e


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
  """The collector of circles looks at all objects over and over while many are made: a third of the time of a large file."""
  was = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was:
      gc.enable()


def whole_json(path: Path, kind: type, what: str, **options: Any) -> Any:
  """A JSON file.

  Args:
    path: of the file.
    kind: list or dict, what the file holds.
    what: it should be, for the message: "GQA's predictions".
    **options: of json.loads.

  Raises:
    BadRequest: if it can't be read, isn't JSON, or of another kind.
  """
  value = _parsed(_text(path), path, **options)
  if not isinstance(value, kind):
    raise BadRequest(f"{path} holds {_name(value)} where {_KINDS[kind]} is expected: {what}")
  return value


def entries(path: Path, of: type[msgspec.Struct], what: str) -> dict[str, Any]:
  """A JSON object of many like entries, of which what isn't asked for is passed over: half of json's time, and less memory.

  Args:
    path: of the file.
    of: what is asked for of each.
    what: the file should be, for the message.

  Returns:
    By key. An entry that doesn't fit stays as JSON has it.

  Raises:
    BadRequest: if it can't be read, isn't JSON, or no object.
  """
  return _entries(path, dict[str, of], lambda: {k: _fitted(v, of, path, k) for k, v in whole_json(path, dict, what).items()})  # type: ignore[valid-type]


def listed(path: Path, of: type[msgspec.Struct], what: str) -> list[Any]:
  """`entries` of a JSON list."""
  return _entries(path, list[of], lambda: [_fitted(v, of, path, n) for n, v in enumerate(whole_json(path, list, what), 1)])  # type: ignore[valid-type]


def _entries(path: Path, kind: Any, plainly: Callable[[], Any]) -> Any:
  try:
    return msgspec.json.decode(_text(path), type=kind)
  except (msgspec.MsgspecError, RecursionError):  # as above
    return plainly()


def _fitted(value: Any, of: type[msgspec.Struct], path: Path, place: int | str) -> Any:
  try:
    return msgspec.convert(value, of)
  except msgspec.ValidationError:
    return value
  except UnicodeEncodeError as e:  # json lets half of a pair pass, which a name can't be compared with
    raise BadRequest(f"{path}: entry {place}: has a name that is no text ({ascii(e.object)[:40]}): mend or remove it") from e


def json_lines(path: Path) -> list[dict[str, Any]]:
  """A file of an object a line; the object's index is its line's number less one.

  Raises:
    BadRequest: if it can't be read or a line isn't an object.
  """
  found = []
  for number, line in enumerate(lines(path), 1):
    row = _parsed(line.rstrip("\n"), path, number)
    if not isinstance(row, dict):
      raise BadRequest(f"{path}:{number}: holds {_name(row)} where an object is expected, one a line")
    found.append(row)
  return found


def _name(value: Any) -> str:
  return next((name for kind, name in _KINDS.items() if isinstance(value, kind)), "null")


def field(
    row: Any, name: str, kind: type | tuple[type, ...], what: str, path: Path, number: int | str, *, entry: bool = False
) -> Any:
  """A value of an object, of the kind that it must have.

  Args:
    row: the object.
    name: of the value.
    kind: that it must have, or several.
    what: the file should hold, for the message.
    path: of the file.
    number: of the object's line.
    entry: the number is of the entry of a list, or its key, as the object has no line of its own.

  Raises:
    BadRequest: if it isn't there, or of another kind.
  """
  kinds = kind if isinstance(kind, tuple) else (kind,)
  value = row.get(name) if isinstance(row, dict) else None
  if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
    return value
  where = f"{path}: entry {number}" if entry and number != "" else str(path) if entry else f"{path}:{number}"
  if not isinstance(row, dict):
    raise BadRequest(f"{where}: {_name(row)} where an object is expected: {what}")
  if name not in row:
    raise BadRequest(f"{where}: no {name!r} (it has {', '.join(map(repr, list(row)[:6])) or 'nothing'}): {what}")
  names = " or ".join(_KINDS[k] for k in kinds)
  raise BadRequest(f"{where}: {name!r} is {reprlib.repr(value)} where {names} is expected: {what}")
