"""What the columns of a Parquet table are by their types and names: pictures, texts, rows of a known layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orthus_jax.data.sources.picture_columns import roles

# Columns of lists, by what rows of them are: BAGEL's editing and interleaved data.
LISTS = {"edits": ("image_list", "instruction_list"), "interleaved": ("images", "texts")}
_PICTURES = ("image", "picture", "img", "image_bytes", "jpg", "png", "webp", "image_path", "path", "file_name")

_STRINGS = ("string", "large_string", "string_view")

Types = Mapping[str, Any]


def lists(types: Types) -> str:
  """Which of `LISTS` a table is, or nothing."""
  for kind, (shown, told) in LISTS.items():
    if shown in types and told in types and _is_list_of(types[shown], _is_picture) and _is_list_of(types[told], _is_text):
      return kind
  return ""


def pictures(types: Types) -> list[str]:
  """The columns of pictures: one; an edit's, those that are given first; or none."""
  data = [c for c, t in types.items() if _is_picture(t)]
  if usual := [c for c in _PICTURES if c in data]:
    return usual[:1]
  given, asked = roles(data)
  if given and asked:
    return given + asked
  files = [c for c in data if not _is_binary(types[c])]
  return files if len(files) == 1 else [c for c in _PICTURES if c in types and _is_string(types[c])][:1]


def no_text(types: Types) -> Callable[[str], bool]:
  """Whether a column can't hold a text."""
  return lambda column: not _is_text(types[column]) and _is_nested(types[column])


def _is_nested(kind: Any) -> bool:
  import pyarrow.types

  return _is_binary(kind) or pyarrow.types.is_nested(kind)


def _is_binary(kind: Any) -> bool:
  return str(kind).startswith(("binary", "large_binary", "fixed_size_binary"))


def _is_picture(kind: Any) -> bool:
  """Whether it is a picture's bytes, or these beside a path."""
  return _is_binary(kind) or (str(kind).startswith("struct") and kind.get_field_index("bytes") >= 0)


def _is_string(kind: Any) -> bool:
  import pyarrow.types

  return _is_string(kind.value_type) if pyarrow.types.is_dictionary(kind) else str(kind) in _STRINGS


def _is_text(kind: Any) -> bool:
  """Whether it is a text, or a list of some."""
  return _is_string(kind) or _is_list_of(kind, _is_text)


def _is_list_of(kind: Any, what: Callable[[Any], bool]) -> bool:
  import pyarrow.types

  if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)):
    return False
  return pyarrow.types.is_null(kind.value_type) or what(kind.value_type)
