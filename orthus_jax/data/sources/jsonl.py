"""Our own layout: a folder of pictures with a JSON-lines file.

A row is a pair, `{"image": "a.jpg", "text": "…"}`, or interleaved, `{"segments": [{"text": "…"}, {"image": "a.jpg"}]}`;
a segment may carry `"learn": true` or `false`. Picture paths are relative to the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import itertools
from pathlib import Path
import re
from typing import Any

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.json_lines import JsonLines, parse_object
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

ANNOTATIONS = "metadata.jsonl"
_FIRST = 20  # rows, by one of which the layout is recognised

# A key and not a value: inside a JSON string its quotes would be escaped.
_SEGMENTS_KEY = re.compile(rb'"segments"\s*:')


class Jsonl(Layout):
  """A pair yields drafts of kinds "caption_to_image" and "image_to_caption"; an interleaved row one of kind "interleaved",
  of which everything is to be learnt unless a segment says otherwise."""

  name = "jsonl"
  usage = """Our own: a folder of pictures, and rows in a JSON-lines file.

    DIR/metadata.jsonl   (annotations)   a row a line, a pair or interleaved:
      {"image": "a.jpg", "text": "A caption."}
      {"segments": [{"text": "What is it?"}, {"image": "a.jpg"}, {"text": "A cat.", "learn": true}]}
    DIR/a.jpg
"""
  takes = frozenset({"annotations", "pairs"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    name = options.annotations or ANNOTATIONS
    if not self.path.is_dir():
      raise BadRequest(f"there is no folder {str(self.path)!r}; give one that holds pictures and {name}")
    self._rows = JsonLines(self.path / name, lambda line: _SEGMENTS_KEY.search(line) is not None)

  @classmethod
  def recognise(cls, path: Path) -> str:
    file = path / ANNOTATIONS
    if not file.is_file():
      return ""
    with file.open("rb") as f:
      first = list(itertools.islice((line for line in f if line.strip()), _FIRST))
    for line in first:
      with contextlib.suppress(BadRequest):  # a bad one is counted when it is read
        parse_row(line)
        return f'{ANNOTATIONS} has rows of "image" and "text", or "segments"'
    return ""

  def __len__(self) -> int:
    return len(self._rows)

  def row_files(self) -> Sequence[Path]:
    return [self._rows.file]

  @property
  def drafts_per_row(self) -> np.ndarray:
    return np.where(self._rows.notes, 1, pair_count(self.options.pairs))

  def place(self, row: int) -> tuple[str, str]:
    return self._rows.place(row)

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = parse_row(self._rows.line(row))
    name = self._rows.name(row)
    if ("segments" in record) != self._rows.notes[row]:
      raise BadRequest("the key \"segments\" must be written without escapes")
    if "segments" in record:
      return (Draft(tuple(map(self._segment, record["segments"])), name, "interleaved"),)
    return pair(record["text"], local_picture(self.path, record["image"]), self.options.pairs, name=name)

  def _segment(self, segment: dict[str, Any]) -> Text | Picture:
    learn = segment.get("learn", True)
    return Text(segment["text"], learn) if "text" in segment else Picture(local_picture(self.path, segment["image"]), learn)


def parse_row(line: bytes) -> dict[str, Any]:
  """Reads and validates one row.

  Returns:
    {"image", "text"} or {"segments": [{"image" or "text", "learn"?}, …]}.

  Raises:
    BadRequest: what is wrong with the row.
  """
  row = parse_object(line)
  _only(row, {"image", "text", "segments"}, "a row")
  if ("segments" in row) == ("image" in row):
    have = "both" if "image" in row else "neither"
    raise BadRequest(f'a row needs either "image" and "text" or "segments", this one has {have}')
  if "image" in row:
    if "text" not in row:
      raise BadRequest('a row with an "image" needs a "text"')
    check_text(row["text"])
    local_picture(Path(), row["image"])
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
      local_picture(Path(), segment["image"])
  return row


def _only(record: dict[str, Any], keys: set[str], what: str) -> None:
  if unknown := sorted(set(record) - keys):
    raise BadRequest(f"{what} takes {', '.join(sorted(keys))}; unknown: {', '.join(map(repr, unknown))}")
