"""Conversations about pictures, as LLaVA's files hold them: one JSON array, or the same rows a line each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from orthus_jax.data.documents import Text
from orthus_jax.data.sources import json_files
from orthus_jax.data.sources.json_layout import JsonLayout
from orthus_jax.data.sources.json_shards import JsonShards
from orthus_jax.data.sources.layout import Draft, Options, Picture
from orthus_jax.data.sources.local_pictures import local_picture, picture_root
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_ROWS = "conversations"
_PLACEHOLDER = "<image>"
_ROLES = ("human", "gpt")
_OTHER_MEDIA = ("images", "video", "videos", "audio")


class Llava(JsonLayout):
  """A conversation makes one draft, of kind "question", or "text" where it has no picture; answers are to be learnt.

  Pictures stand where their placeholders do, in whichever turn; they are given, as in LLaVA's own training. The line break
  that its files put between a placeholder and the words is no part of these.
  """

  name = "llava"
  usage = """Conversations about pictures, as LLaVA's files hold them.

    DIR/conversations.json   (annotations)   one array; or .jsonl, a row a line; any name, or give the file itself
      [{"id": "1", "image": "coco/a.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}, …]
    DIR/coco/a.jpg           (pictures)      or DIR/images/coco/a.jpg

"image" is a path, a list of them, or absent; there are as many <image> as pictures. A turn of "system" may come first.
"""
  takes = frozenset({"annotations", "pictures"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    file = json_files.only(self.path, options.annotations, _ROWS)
    self._open(JsonShards([file], _ROWS), file, _ROWS, also=" and, for pictures, image")
    self._root = options.pictures or picture_root(
        file.parent, itertools.chain.from_iterable(_paths(r.get("image")) for r in self._first)
    )

  @classmethod
  def recognise(cls, path: Path) -> str:
    found = json_files.having(path, _ROWS)
    return f'{found[0].name} has rows of "conversations"' if found else ""

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = self._rows.record(row)
    pictures = _pictures(record)
    turns = _turns(record)
    asked = sum(text.count(_PLACEHOLDER) for _, text in turns)
    if asked != len(pictures):
      raise BadRequest(f"it has {asked} of {_PLACEHOLDER} for {len(pictures)} pictures; there must be one for each")
    shown = iter([Picture(local_picture(self._root, p)) for p in pictures])
    segments: list[Text | Picture] = []
    for learn, value in turns:
      parts = value.split(_PLACEHOLDER)
      if len(parts) > 1:
        parts = [p.strip("\r\n") for p in parts]
      for number, part in enumerate(parts):
        if number:
          segments.append(next(shown))
        if part.strip():
          segments.append(Text(part, learn))
    return (Draft(tuple(segments), self._rows.name(row), "question" if pictures else "text"),)


def _paths(image: Any) -> list[Any]:
  return image if isinstance(image, list) else [] if image is None else [image]


def _pictures(record: dict[str, Any]) -> list[Any]:
  if other := [key for key in _OTHER_MEDIA if record.get(key)]:
    raise BadRequest(f'it has "{other[0]}", and only "image" is read')
  return _paths(record.get("image"))


def _turns(record: dict[str, Any]) -> list[tuple[bool, str]]:
  """(whether it is an answer, what is said) for each turn.

  Raises:
    BadRequest: what is wrong with the conversation.
  """
  turns = record.get(_ROWS)
  if not isinstance(turns, list) or not turns:
    raise BadRequest(f'"{_ROWS}" must be a list with at least a question and an answer, got {str(turns)[:40]}')
  out = []
  roles: list[Any] = []
  for turn in turns:
    if not isinstance(turn, dict) or not {"from", "value"} <= set(turn):
      raise BadRequest('a turn must be an object of "from" and "value"')
    value = turn["value"]
    if not isinstance(value, str):
      raise BadRequest(f'"value" must be a string, got {str(value)[:40]}')
    if turn["from"] == "gpt" or value.replace(_PLACEHOLDER, "").strip():
      check_text(value.replace(_PLACEHOLDER, ""))
    elif _PLACEHOLDER not in value:
      raise BadRequest(f"the turn {len(roles) + 1} is empty")
    roles.append(turn["from"])
    out.append((turn["from"] == "gpt", value))
  spoken = roles[1:] if roles[0] == "system" else roles
  if not spoken or len(spoken) % 2 or any(role != _ROLES[i % 2] for i, role in enumerate(spoken)):
    raise BadRequest(f"human and gpt must take turns, human first and gpt last; they are {', '.join(map(str, roles[:8]))}")
  return out
