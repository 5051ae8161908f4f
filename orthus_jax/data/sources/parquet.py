"""Parquet tables with pictures in them: any with a picture and a text a row, and BAGEL's three layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from orthus_jax.data.documents import Text
from orthus_jax.data.sources import parquet_schemas
from orthus_jax.data.sources.folders import walk
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.picture_columns import roles
from orthus_jax.data.sources.row_groups import Parquet
from orthus_jax.data.sources.splits import of_split
from orthus_jax.data.sources.text_columns import choose, words
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_INSTRUCTIONS = ("instruction", "edit_instruction", "edit_prompt", "edit")
_FILES_LOOKED_AT = 20_000


class ParquetTable(Layout):
  """A row with a picture makes the drafts of a pair.

  One of an editing table makes a draft of kind "edit", in which each picture but the first is learnt; one of an interleaved
  table a draft of kind "interleaved", of which all is learnt but what comes first.
  """

  name = "parquet"
  usage = """Parquet files whose rows hold a picture and a text; or BAGEL's editing and interleaved rows.

    DIR/x.parquet        at any depth; or one file. Beside train-….parquet or train/, other splits' by --split alone
      image              bytes, {"bytes", "path"}, or a path (from --pictures, or the file's folder)
      text               or caption, prompt, …, or chosen by --text; of a list, or of JSON such as {"a": "…"} in
                         `captions`, the first

    Editing: input_image, instruction, output_image (source…, original…; target…, edited…); or
      image_list [bytes, …], instruction_list [["…", …], …], one list for each picture behind the first.
    Interleaved: images [bytes or null, …] and texts ["…" or null, …], one of them null at each place.
"""
  takes = frozenset({"text", "pictures", "pairs", "split"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    root = self.path if self.path.is_dir() else self.path.parent
    self._files = of_split(parquet_files(self.path, self.broken), root, options.split, self.remarks)
    self._table = Parquet(self._files)
    file, types = self._files[0], self._table.types
    self._kind = parquet_schemas.lists(types)
    self._text: tuple[str, ...] = ()
    if self._kind:
      self._pictures = list(parquet_schemas.LISTS[self._kind])
      if options.text or options.pairs != "both":
        raise BadRequest(f"{file} has rows of BAGEL's layout ({', '.join(self._pictures)}): leave out --text and --pairs")
      self._table.select(self._pictures, self._pictures)
    else:
      self._pictures = parquet_schemas.pictures(types)
      if not self._pictures:
        raise BadRequest(_no_pictures(file, types))
      self._kind = "edit" if len(self._pictures) > 1 else "pair"
      if self._kind == "edit" and options.pairs != "both":
        raise BadRequest(f"{file} has rows of edits ({', '.join(self._pictures)}), which make no pairs: leave out --pairs")
      no_text = parquet_schemas.no_text(types)
      usual = _INSTRUCTIONS if self._kind == "edit" else ()
      self._text = choose(self._table.columns, options.text, file, lambda c: c in self._pictures or no_text(c), usual)
      kept = [c for c in self._table.columns if c in (*self._pictures, *self._text) or not no_text(c)]
      self._table.select(kept, self._pictures)
    self.broken += self._table.broken

  @classmethod
  def recognise(cls, path: Path) -> str:
    try:
      file = first_parquet(path)
      types = Parquet([file]).types
    except (BadRequest, OSError):
      return ""
    listed, shown = parquet_schemas.lists(types), parquet_schemas.pictures(types)
    if listed:
      return f"Parquet rows of {' and '.join(parquet_schemas.LISTS[listed])}"
    if {"images", "texts"} <= set(types) or {"key", "status", *shown} <= set(types) and shown != ["image"]:
      return ""  # OBELICS' addresses, img2dataset's rows
    if not shown or file.name == "metadata.parquet" and shown == ["file_name"]:
      return ""  # imagefolder's
    return f"Parquet rows with pictures in {' and '.join(shown)}"

  def __len__(self) -> int:
    return len(self._table)

  @property
  def drafts_per_row(self) -> int:
    return pair_count(self.options.pairs) if self._kind == "pair" else 1

  def place(self, row: int) -> tuple[str, str]:
    return self._table.place(row)

  def drafts(self, row: int) -> Sequence[Draft]:
    record = self._table.row(row)
    file, where = self._table.place(row)
    folder = self.options.pictures or Path(file).parent
    name = f"{Path(file).relative_to(self.path if self.path.is_dir() else self.path.parent).as_posix()}:{where.split()[-1]}"
    if self._kind == "edits":
      return (Draft(_edits(record, folder), name, "edit"),)
    if self._kind == "interleaved":
      return (Draft(_interleaved(record, folder), name, "interleaved"),)
    meta = {k: v for k, v in record.items() if k not in (*self._pictures, *self._text)}
    text = caption(record, self._text)
    shown = [picture(record[c], folder, c) for c in self._pictures]
    if self._kind == "pair":
      return pair(text, shown[0], self.options.pairs, name=name, meta=meta)
    given, _ = roles(self._pictures)
    before, after = shown[: len(given)], shown[len(given) :]
    return (Draft((*map(Picture, before), Text(text), *(Picture(p, learn=True) for p in after)), name, "edit", meta),)

  def row_files(self) -> Sequence[Path]:
    return self._files

  def fields(self) -> Mapping[str, str]:
    return {c: f"{t}{' (the text)' if c in self._text else ''}" for c, t in self._table.types.items()}


def parquet_files(path: Path, broken: list[tuple[str, str, str]]) -> list[Path]:
  """The Parquet files at a place: itself, or all in a folder at any depth.

  Raises:
    BadRequest: there is none.
  """
  files = [path] if path.is_file() else [Path(folder, n) for folder, _, ns in walk(path, broken) for n in ns if _is_parquet(n)]
  if not files:
    raise BadRequest(f"there is no Parquet file at {str(path)!r}; give one, or a folder that holds some")
  return sorted(files)


def first_parquet(path: Path) -> Path:
  """A Parquet file at a place; not all of it is looked at.

  Raises:
    BadRequest: there is none.
  """
  if path.is_file() and _is_parquet(path.name):
    return path
  looked_at = 0
  for folder, _, names in walk(path, []):
    if found := sorted(filter(_is_parquet, names)):
      return Path(folder, found[0])
    looked_at += len(names) + 1
    if looked_at > _FILES_LOOKED_AT:
      break
  raise BadRequest(f"there is no Parquet file at {str(path)!r}")


def _is_parquet(name: str) -> bool:
  return name.lower().endswith((".parquet", ".parq", ".pq")) and not name.startswith((".", "_"))


def picture(value: Any, folder: Path, column: str) -> Path | bytes:
  """A picture as a table has it: bytes, {"bytes", "path"}, or a path from a folder.

  Raises:
    BadRequest: there is none.
  """
  if isinstance(value, dict):
    value = value.get("bytes") if value.get("bytes") else value.get("path")
  if isinstance(value, bytes) and value:
    return value
  if value is None or value == b"":
    raise BadRequest(f"its {column} is empty")
  return local_picture(folder, value, what=f"its {column}")


def caption(record: Mapping[str, Any], columns: Sequence[str]) -> str:
  """A row's text: of a list the first with words, as of several that JSON in `captions` holds."""
  plain = dict(record)
  for column in columns:
    value = plain.get(column)
    if column == "captions" and isinstance(value, str) and value.lstrip().startswith("{"):
      try:
        value = list(json.loads(value).values())
      except (ValueError, RecursionError) as e:
        raise BadRequest(f"its {column} isn't JSON: {e}") from e
    plain[column] = _first(value)
  return words(plain, columns)


def _first(texts: Any) -> Any:
  """The first with words, if it is a list."""
  if not isinstance(texts, list):
    return texts
  return next((t for t in texts if isinstance(t, str) and t.strip()), None)


def _no_pictures(file: Path, types: Mapping[str, Any]) -> str:
  shown = ", ".join(f"{c} ({t})" for c, t in list(types.items())[:12])
  return (
      f"{file} has no column for a picture, such as image (bytes, or bytes and a path), nor image_list and instruction_list,"
      f" nor images and texts; its columns are {shown}"
  )


def _lists(record: Mapping[str, Any], kind: str) -> list[list[Any]]:
  """A row's columns of lists, in a file whose types may be others than the first one's."""
  names = parquet_schemas.LISTS[kind]
  if strange := [n for n in names if not isinstance(record[n] or [], list)]:
    raise BadRequest(f"its {strange[0]} must be a list")
  return [record[n] or [] for n in names]


def _edits(record: Mapping[str, Any], folder: Path) -> tuple[Text | Picture, ...]:
  pictures, instructions = _lists(record, "edits")
  if len(pictures) < 2 or len(instructions) != len(pictures) - 1:
    raise BadRequest(f"it has {len(pictures)} pictures and {len(instructions)} instructions: one stands between two pictures")
  segments: list[Text | Picture] = [Picture(picture(pictures[0], folder, "image_list"))]
  for shown, texts in zip(pictures[1:], instructions):
    text = _first(texts)
    check_text(text, "instruction_list")
    segments += [Text(text.strip()), Picture(picture(shown, folder, "image_list"), learn=True)]
  return tuple(segments)


def _interleaved(record: Mapping[str, Any], folder: Path) -> tuple[Text | Picture, ...]:
  pictures, texts = _lists(record, "interleaved")
  if len(pictures) != len(texts):
    raise BadRequest(f"it has {len(pictures)} images for {len(texts)} texts: one of the two is null at each place")
  segments: list[Text | Picture] = []
  for shown, text in zip(pictures, texts):
    if (shown is None) == (text is None):
      raise BadRequest("images and texts are both there, or both null, at one place")
    learn = bool(segments)
    if text is None:
      segments.append(Picture(picture(shown, folder, "images"), learn))
    elif not isinstance(text, str) or text.strip():
      check_text(text, "texts")
      segments.append(Text(text, learn))
  if len(segments) < 2 or not any(isinstance(s, Picture) for s in segments):
    raise BadRequest("it holds no text and picture beside each other")
  return tuple(segments)
