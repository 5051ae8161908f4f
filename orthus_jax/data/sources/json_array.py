"""Elements of a JSON array, found by reading its file once through a window; only their places are held in memory."""

from __future__ import annotations

import array
import codecs
from collections.abc import Iterator
import json
from pathlib import Path
import re
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.json_lines import parse_object
from orthus_jax.errors import BadRequest

_CHUNK = 1 << 20  # bytes
_MAX_ELEMENT = 1 << 26  # bytes
_MOST_BROKEN = 10_000  # elements; it is no such file then
_MARGIN = 16  # an error so near a window's end may be the window's: "tru", "\u12", "-Infinit"
_BLANK = re.compile(r"[ \t\n\r]*")
_FIRST_KEY = re.compile(r'\{[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:')
decode = json.JSONDecoder().raw_decode


class Element(NamedTuple):
  """An element, or what stands in an array's place of one.

  Attributes:
    start: its first byte.
    stop: the byte behind it.
    value: what it says, its strings' bytes taken for Latin-1 characters; None where it is broken.
    fault: why it is.
  """

  start: int
  stop: int
  value: Any
  fault: str = ""


class _Window:
  """A stretch of a file. Decoded as Latin-1, its characters are bytes, and JSON's own are what they are in UTF-8."""

  def __init__(self, file: BinaryIO):
    self._file = file
    head = file.read(_CHUNK)
    self.base = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    self.text, self.ended = head[self.base :].decode("latin-1"), len(head) < _CHUNK

  def more(self, at: int) -> int:
    """Drops what lies before a place, reads on, doubling what is left, and returns the same place."""
    more = self._file.read(max(_CHUNK, len(self.text) - at))
    self.ended = not more
    self.base += at
    self.text = self.text[at:] + more.decode("latin-1")
    return 0

  def skip_blank(self, at: int) -> int:
    while (at := _BLANK.match(self.text, at).end()) == len(self.text) and not self.ended:  # type: ignore[union-attr]
      at = self.more(at)
    return at

  def value(self, at: int) -> tuple[int, int, Any, str]:
    """(start, stop, value, fault) of the JSON value at a place; the start may have moved."""
    while True:
      try:
        value, stop = decode(self.text, at)
        if stop < len(self.text) or self.ended:
          return at, stop, value, ""
      except RecursionError:
        return at, at, None, "it is nested too deep"
      except json.JSONDecodeError as e:
        cut = e.msg.startswith("Unterminated string") or e.pos >= len(self.text) - _MARGIN
        if not cut or self.ended:
          return at, at, None, f"it isn't JSON: {e.msg}, at byte {self.base + e.pos + 1:,}"
      except ValueError as e:  # a number of thousands of digits
        return at, at, None, f"it isn't JSON: {e}"
      if len(self.text) - at > _MAX_ELEMENT:
        return at, at, None, f"it doesn't end within {_MAX_ELEMENT:,} bytes"
      at = self.more(at)


def elements(file: Path, key: str = "") -> Iterator[Element]:
  """The elements of an array, in order.

  Behind a broken one, reading goes on at the next object whose first key is the first object's and that, if it is whole, has
  the key asked for. Where there is none, the rest of the file is the broken one's.

  Args:
    file: what is read.
    key: one that each element has, and objects within them don't; empty: nothing is read behind a broken one. Nor is
      anything behind ten thousand broken ones.

  Raises:
    BadRequest: the file holds no array.
    OSError: it can't be read.
  """
  with file.open("rb") as f:
    window = _Window(f)
    at = window.skip_blank(0)
    if window.text[at : at + 1] != "[":
      begins = repr(window.text[at : at + 1]) if window.text else "nothing"
      raise BadRequest(f"{str(file)!r} isn't a JSON array: it begins with {begins}, not '['")
    at = window.skip_blank(at + 1)
    if window.text[at : at + 1] == "]":
      return
    like_first: re.Pattern | None = None
    broken = 0
    while True:
      at, stop, value, fault = window.value(at)
      start, search = window.base + at, at + 1
      if key and not like_first and (opens := _FIRST_KEY.match(window.text, at)):
        like_first = re.compile(rf"\{{[ \t\n\r]*{re.escape(opens[1])}[ \t\n\r]*:")
      if not fault:
        yield Element(start, window.base + stop, value)
        at = window.skip_blank(stop)
        mark = window.text[at : at + 1]
        if mark == ",":
          at = window.skip_blank(at + 1)
          continue
        if mark == "]":
          at = window.skip_blank(at + 1)
          if at < len(window.text):
            yield Element(window.base + at, window.base + at, None, "something stands behind the array's end")
          return
        start, search = window.base + at, at
        fault = f"{mark!r} stands where ',' or ']' should" if mark else "the file ends within the array: it was cut short"
      broken += 1
      found = _next(window, search, like_first, key) if broken < _MOST_BROKEN else None
      if found is None:
        yield Element(start, window.base + len(window.text), None, f"{fault}; nothing behind it is read")
        return
      yield Element(start, window.base + found, None, fault)
      at = found


def _next(window: _Window, at: int, like_first: re.Pattern | None, key: str) -> int | None:
  """Where in the window the next element begins, searched from a place."""
  while like_first:
    while match := like_first.search(window.text, at):
      at, _, value, fault = window.value(match.start())
      if fault or key in value:
        return at
      at += 1
    if window.ended:
      return None
    at = window.more(max(at, len(window.text) - _CHUNK // 4))
  return None


class JsonArray:
  """The elements of an array that are whole; arguments and what is raised are as of `elements`.

  Attributes:
    numbers: the number of each row's element, from 1, broken ones counted.
    broken: (file, where in it, why) of broken ones.
  """

  def __init__(self, file: Path, key: str):
    if not file.is_file():
      raise BadRequest(f"there is no {str(file)!r}")
    self.file = file
    starts, sizes, numbers = array.array("q"), array.array("q"), array.array("q")
    self.broken: list[tuple[str, str, str]] = []
    for number, element in enumerate(elements(file, key), start=1):
      if element.fault:
        self.broken.append((str(file), f"entry {number}, byte {element.start + 1:,}", element.fault))
        continue
      starts.append(element.start)
      sizes.append(element.stop - element.start)
      numbers.append(number)
    self._starts, self._sizes, self.numbers = (np.array(a, np.int64) for a in (starts, sizes, numbers))

  def __len__(self) -> int:
    return len(self.numbers)

  def place(self, row: int) -> tuple[str, str]:
    return str(self.file), f"entry {self.numbers[row]}, byte {self._starts[row] + 1:,}"

  def name(self, row: int) -> str:
    """A name of a row, for ids: its file's, and its place in the array."""
    return f"{self.file.name}:{self.numbers[row]}"

  def record(self, row: int) -> dict[str, Any]:
    """A row's object.

    Raises:
      BadRequest: it isn't one.
    """

    def read() -> bytes:
      with self.file.open("rb") as f:
        f.seek(int(self._starts[row]))
        return f.read(int(self._sizes[row]))

    return parse_object(retry(str(self.file), read))
