"""Which parts of a tar file's samples hold their texts, and reading them."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources import tar_members
from orthus_jax.data.sources.tar_members import Member
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_MAX_TEXT = 1 << 20  # bytes
_SHOWN = 12  # names of fields in a message
_ABSENT = object()


class NoField(BadRequest):
  """A JSON object lacks the field that holds the text."""


class TextPart(NamedTuple):
  """A part of a sample that can hold its text.

  Attributes:
    part: what stands behind the sample's name and a dot: "txt", "long.txt", "json".
    field: the field of a JSON object, as the user named it; empty: the first of `usual`.
    usual: fields that usually hold a text, in order of preference.
  """

  part: str
  field: str = ""
  # "text" may be what a picture shows, beside a caption that tells of it; LAION writes TEXT.
  usual: tuple[str, ...] = ("caption", "text")

  @property
  def is_json(self) -> bool:
    return self.part.rpartition(".")[2] == "json"


# In order of preference.
CAPTIONS = (TextPart("txt"), TextPart("caption"), TextPart("json"))
INSTRUCTIONS = (
    TextPart("instruction.txt"), TextPart("edit.txt"), TextPart("txt"), TextPart("caption"),
    TextPart("json", usual=("instruction", "edit", "caption", "text")),
)  # fmt: skip


def text_parts(names: Sequence[str], pictures: Sequence[str]) -> tuple[TextPart, ...]:
  """The parts that a user names: "txt", "long.txt", "json.FIELD" or "json:FIELD".

  Args:
    names: as the user gives them.
    pictures: extensions of pictures, which hold no text.

  Raises:
    BadRequest: a name is none.
  """
  parts = []
  for name in names:
    part, colon, field = name.strip().removeprefix(".").partition(":")
    if not colon and part.lower().startswith("json."):
      part, colon, field = "json", ":", part[len("json.") :]
    found = TextPart(part.lower(), field)
    if not all(found.part.split(".")) or (colon and not (field and found.is_json)):
      raise BadRequest(f"data.text: {name!r} names no part of a sample: give txt, caption, json.FIELD or the like")
    if found.part.rpartition(".")[2] in pictures:
      raise BadRequest(f"data.text: {name!r} is a picture: name a part that holds text")
    parts.append(found)
  return tuple(parts)


def text(file: Path, texts: Sequence[tuple[TextPart, Member]]) -> str:
  """The first of a sample's texts that is one.

  Raises:
    BadRequest: none is; what is wrong with the first.
  """
  first: BadRequest | None = None
  for part, member in texts:
    try:
      if member.size > _MAX_TEXT:
        raise BadRequest(f"its .{part.part} has {member.size:,} bytes, more than the {_MAX_TEXT:,} allowed")
      return _text(retry(str(file), functools.partial(tar_members.read, file, member)), part)
    except BadRequest as e:
      first = first or e
  assert first is not None  # a sample without texts is a fault
  raise first


def _text(data: bytes, part: TextPart) -> str:
  try:
    text: Any = data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise BadRequest(f"its text isn't UTF-8 (byte {e.start + 1}); save it as UTF-8") from e
  if part.is_json:
    text = _field(text, part)
  elif not text.strip():
    raise BadRequest(f"its text is empty: its .{part.part} holds no words (img2dataset writes so what had no caption)")
  check_text(text)
  return text.strip()


def _field(text: str, part: TextPart) -> str:
  try:
    fields = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise BadRequest(f"its JSON can't be read: {e}") from e
  if not part.field:
    known = fields.items() if isinstance(fields, dict) else ()
    words = [v for key in part.usual for k, v in known if k.lower() == key and isinstance(v, str) and v.strip()]
    if not words:
      names = " nor ".join(json.dumps(key) for key in reversed(part.usual))
      raise BadRequest(f"its JSON has neither {names} with words in it")
    return words[0]
  said = _within(fields, part.field)
  if said is _ABSENT:
    here = ", ".join(list(fields)[:_SHOWN]) if isinstance(fields, dict) else type(fields).__name__
    raise NoField(f'its JSON has no "{part.field}"; it has {here or "nothing"}')
  if not isinstance(said, str):
    raise BadRequest(f'"{part.field}" of its JSON is {"null" if said is None else "no text"}')
  if not said.strip():
    raise BadRequest(f'its text is empty: "{part.field}" of its JSON has no words')
  return said


def _within(fields: Any, name: str) -> Any:
  """A field by its name, or by names of fields within each other with dots between them."""
  if not isinstance(fields, dict):
    return _ABSENT
  if name in fields:
    return fields[name]
  outer, dot, inner = name.partition(".")
  return _within(fields[outer], inner) if dot and outer in fields else _ABSENT
