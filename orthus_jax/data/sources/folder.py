"""Documents from a folder of pictures with a JSON-lines file.

A row is a pair, `{"image": "a.jpg", "text": "…"}`, or interleaved, `{"segments": [{"text": "…"}, {"image": "a.jpg"}]}`;
a segment may carry `"learn": true` or `false`. Picture paths are relative to the folder.
"""

from __future__ import annotations

import array
import codecs
import json
import operator
import os
from pathlib import Path, PurePath
import re
from typing import Any, Literal, get_args

import numpy as np

from orthus_jax.config import PixelsConfig
from orthus_jax.data.documents import Document, Image, Segment, Text
from orthus_jax.data.images import fit, load_image
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.errors import BadRequest

Pairs = Literal["both", "to_image", "to_text"]

# A key and not a value: inside a JSON string its quotes would be escaped.
_SEGMENTS_KEY = re.compile(rb'"segments"\s*:')


class FolderSource:
  """A random-access source of Documents; rows are read when asked for, only their places are held in memory.

  A pair yields a document of kind "caption_to_image", one of kind "image_to_caption", or both, one after the other. An
  interleaved row yields one of kind "interleaved", of which everything is to be learnt unless a segment says otherwise.

  Attributes:
    bad: the count of bad records; see `BadRecords`.
  """

  def __init__(
      self,
      path: str | os.PathLike,
      annotations: str = "metadata.jsonl",
      *,
      resolution: int,
      pixels: PixelsConfig = PixelsConfig(),
      max_bad_share: float = 0.01,
      pairs: Pairs = "both",
  ):
    """Finds the rows.

    Args:
      path: the folder.
      annotations: the JSON-lines file in it.
      resolution: pictures are fitted to this many pixels square.
      pixels: how they are.
      max_bad_share: the share of bad rows that is put up with, in [0, 1].
      pairs: which documents a pair yields.

    Raises:
      BadRequest: the folder or the file is missing, the file has no row, or an option is out of range.
    """
    self.path = Path(path)
    self.file = self.path / annotations
    self.resolution = resolution
    self.pixels = pixels
    self.pairs = pairs
    if pairs not in get_args(Pairs):
      raise BadRequest(f"pairs must be one of {', '.join(get_args(Pairs))}, got {pairs!r}")
    if resolution < 1:
      raise BadRequest(f"resolution must be 1 or more, got {resolution}")
    if not self.path.is_dir():
      raise BadRequest(f"there is no folder {str(self.path)!r}; give one that holds pictures and {annotations}")
    if not self.file.is_file():
      raise BadRequest(f"there is no {str(self.file)!r}; write one JSON row a picture there, or name another file")
    self._offsets, self._lines, interleaved = _index(self.file)
    if not len(self._offsets):
      raise BadRequest(f"{str(self.file)!r} holds no row; write one JSON row a picture there")
    self._interleaved = interleaved
    # ends[r]: how many documents rows 0..r make together.
    self._ends = np.cumsum(np.where(interleaved | (pairs != "both"), 1, 2))
    self.bad = BadRecords(max_share=max_bad_share, total=len(self._offsets))

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Document | None:
    """The document at a place, or None where its row is bad.

    Raises:
      BadRequest: too many rows are bad.
      IndexError: there is no such place.
    """
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"document {index} of {len(self)}")
    row = int(np.searchsorted(self._ends, index, side="right"))
    second = index == self._ends[row] - 1
    self.bad.saw()
    try:
      return self._document(row, to_text=bool(second) if self.pairs == "both" else self.pairs == "to_text")
    except BadRequest as e:
      self.bad.report(str(self.file), f"line {self._lines[row]}", str(e))
    except OSError as e:
      self.bad.report(str(self.file), f"line {self._lines[row]}", f"it can't be read: {e.strerror or e}")
    self.bad.check()
    return None

  def __repr__(self) -> str:
    # Data pipelines compare it to tell whether they resume on the same source.
    fitted = f"resolution={self.resolution}, resample={self.pixels.resample!r}"
    options = f"{fitted}, pairs={self.pairs!r}, documents={len(self)}"
    return f"FolderSource({str(self.file)!r}, {options})"

  def _document(self, row: int, *, to_text: bool) -> Document:
    record = parse_row(retry(str(self.file), lambda: self._line(row)))
    name = f"{self.file.name}:{self._lines[row]}"
    if ("segments" in record) != self._interleaved[row]:
      raise BadRequest("the key \"segments\" must be written without escapes")
    if "segments" in record:
      return Document(tuple(map(self._segment, record["segments"])), id=name, kind="interleaved")
    return pair(record["text"], self._pixels(record["image"]), to_text=to_text, name=name)

  def _line(self, row: int) -> bytes:
    with self.file.open("rb") as f:
      f.seek(int(self._offsets[row]))
      return f.readline()

  def _segment(self, segment: dict[str, Any]) -> Segment:
    learn = segment.get("learn", True)
    return Text(segment["text"], learn) if "text" in segment else Image(self._pixels(segment["image"]), learn)

  def _pixels(self, image: str) -> np.ndarray:
    file = self.path / image
    return fit(retry(str(file), lambda: load_image(file)), self.resolution, self.pixels)


def pair(text: str, pixels: np.ndarray, *, to_text: bool, name: str) -> Document:
  """The document that an image-text pair becomes: the text, or else the picture, is to be learnt."""
  words, image = Text(text, learn=to_text), Image(pixels, learn=not to_text)
  if to_text:
    return Document((image, words), id=f"{name}:to_text", kind="image_to_caption")
  return Document((words, image), id=f"{name}:to_image", kind="caption_to_image")


def parse_row(line: bytes) -> dict[str, Any]:
  """Reads and validates one row.

  Returns:
    {"image", "text"} or {"segments": [{"image" or "text", "learn"?}, …]}.

  Raises:
    BadRequest: what is wrong with the row.
  """
  try:
    row = json.loads(line.decode("utf-8-sig"))
  except UnicodeDecodeError as e:
    raise BadRequest(f"it isn't UTF-8 (byte {e.start + 1} of the line); save the file as UTF-8") from e
  except (ValueError, RecursionError) as e:
    raise BadRequest(f"it isn't JSON: {e}") from e
  if not isinstance(row, dict):
    raise BadRequest(f"a row must be a JSON object, got {type(row).__name__}")
  _only(row, {"image", "text", "segments"}, "a row")
  if ("segments" in row) == ("image" in row):
    have = "both" if "image" in row else "neither"
    raise BadRequest(f'a row needs either "image" and "text" or "segments", this one has {have}')
  if "image" in row:
    if "text" not in row:
      raise BadRequest('a row with an "image" needs a "text"')
    check_text(row["text"])
    _check_image(row["image"])
    return row
  if "text" in row:
    raise BadRequest('a row with "segments" takes no "text"; make it a segment')
  if not isinstance(row["segments"], list) or not row["segments"]:
    raise BadRequest('"segments" must be a list with at least one segment')
  for segment in row["segments"]:
    if not isinstance(segment, dict):
      raise BadRequest(f"a segment must be a JSON object, got {type(segment).__name__}")
    _only(segment, {"image", "text", "learn"}, "a segment")
    if ("image" in segment) == ("text" in segment):
      raise BadRequest('a segment needs either "image" or "text"')
    if not isinstance(segment.get("learn", True), bool):
      raise BadRequest(f'"learn" must be true or false, got {segment["learn"]!r}')
    if "text" in segment:
      check_text(segment["text"])
    else:
      _check_image(segment["image"])
  return row


def _only(record: dict[str, Any], keys: set[str], what: str) -> None:
  if unknown := sorted(set(record) - keys):
    raise BadRequest(f"{what} takes {', '.join(sorted(keys))}; unknown: {', '.join(map(repr, unknown))}")


def check_text(text: Any) -> None:
  """Raises BadRequest unless `text` can be a caption."""
  if not isinstance(text, str):
    raise BadRequest(f'"text" must be a string, got {text!r}')
  if not text.strip():
    raise BadRequest("its text is empty; write a caption or leave the row out")
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise BadRequest("its text holds half of a surrogate pair; mend its \\u escapes") from e


def _check_image(image: Any) -> None:
  if not isinstance(image, str) or not image:
    raise BadRequest(f'"image" must be a path, got {image!r}')
  path = PurePath(image)
  if path.is_absolute() or ".." in path.parts:
    raise BadRequest(f"the picture {image!r} lies outside the folder; give a path inside it")


def _index(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Byte offset and line number of every row that isn't blank, and whether it is interleaved."""
  offsets, lines, interleaved = array.array("q"), array.array("q"), array.array("b")
  offset = 0
  with file.open("rb") as f:
    for number, line in enumerate(f, start=1):
      if (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
        offsets.append(offset)
        lines.append(number)
        interleaved.append(_SEGMENTS_KEY.search(line) is not None)
      offset += len(line)
  return np.array(offsets, np.int64), np.array(lines, np.int64), np.array(interleaved, bool)
