"""Parquet tables with pictures in them: any with a picture and a text a row, and BAGEL's three layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.row_groups import Parquet
from orthus_jax.data.sources.text_columns import choose, words
from orthus_jax.data.sources.texts import check_text
from orthus_jax.errors import BadRequest

_PICTURES = ("image", "picture", "img", "image_bytes", "jpg", "png", "webp", "image_path", "path", "file_name")


class ParquetTable(Layout):
  """A row with a picture makes the drafts of a pair.

  One of an editing table makes a draft of kind "edit", in which each picture but the first is learnt; one of an interleaved
  table a draft of kind "interleaved", of which all is learnt but what comes first.
  """

  name = "parquet"
  usage = """Parquet files whose rows hold a picture and a text; or BAGEL's editing and interleaved rows.

    DIR/x.parquet        at any depth; or one file
      image              bytes, {"bytes", "path"}, or a path (from --pictures, or the file's folder)
      text               or caption, prompt, …, or chosen by --text; {"a caption": …} as JSON in `captions`

    Editing: image_list [bytes, …], instruction_list [["…", …], …], one list for each picture behind the first.
    Interleaved: images [bytes or null, …] and texts ["…" or null, …], one of them null at each place.
"""
  takes = frozenset({"text", "pictures", "pairs"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    files = parquet_files(self.path)
    self._table = Parquet(files)
    self.broken += self._table.broken
    columns = self._table.columns
    self._file = files[0]
    self._text: tuple[str, ...] = ()
    if {"image_list", "instruction_list"} <= set(columns):
      self._kind, wanted = "edit", ["image_list", "instruction_list"]
    elif {"images", "texts"} <= set(columns):
      self._kind, wanted = "interleaved", ["images", "texts"]
    else:
      self._kind = "pair"
      self._picture = _picture_column(self._table, files[0])
      self._text = choose(columns, options.text, files[0], lambda c: c == self._picture or self._is_data(c))
      wanted = [c for c in columns if c == self._picture or not self._is_data(c)]
    if self._kind != "pair" and (options.text or options.pairs != "both"):
      raise BadRequest(f"{files[0]} has rows of BAGEL's layout ({', '.join(wanted)}): leave out --text and --pairs")
    self._table.select(wanted)

  def _is_data(self, column: str) -> bool:
    """Whether a column holds bytes or nested values, and so neither text nor a fact to keep."""
    kind = str(self._table.types[column])
    return kind.startswith(("binary", "large_binary", "struct", "list", "large_list", "fixed_size", "map"))

  @classmethod
  def recognise(cls, path: Path) -> str:
    try:
      files = parquet_files(path)[:1]
      table = Parquet(files)
      columns = set(table.columns)
      if {"image_list", "instruction_list"} <= columns:
        return "Parquet rows of image_list and instruction_list"
      if {"images", "texts"} <= columns:
        return "" if "string" in str(table.types["images"]) else "Parquet rows of images and texts"  # OBELICS has addresses
      if {"key", "status"} <= columns:  # img2dataset's
        return ""
      return f"Parquet rows with pictures in {_picture_column(table, files[0])}"
    except (BadRequest, OSError):
      return ""

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
    if self._kind == "edit":
      return (Draft(_edit(record, folder), name, "edit"),)
    if self._kind == "interleaved":
      return (Draft(_interleaved(record, folder), name, "interleaved"),)
    meta = {k: v for k, v in record.items() if k != self._picture and k not in self._text}
    text = caption(record, self._text)
    return pair(text, picture(record[self._picture], folder, self._picture), self.options.pairs, name=name, meta=meta)

  def fields(self) -> Mapping[str, str]:
    return {c: f"{t}{' (the text)' if c in self._text else ''}" for c, t in self._table.types.items()}


def parquet_files(path: Path) -> list[Path]:
  """The Parquet files at a place: itself, or all in a folder at any depth.

  Raises:
    BadRequest: there is none.
  """
  if path.is_file():
    return [path]
  files = sorted(p for p in path.rglob("*.parquet") if p.is_file() and not p.name.startswith("."))
  if not files:
    raise BadRequest(f"there is no Parquet file at {str(path)!r}; give one, or a folder that holds some")
  return files


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
  """A row's text; where a column holds a JSON object of several, the first with words."""
  plain = dict(record)
  for column in columns:
    value = plain.get(column)
    if column == "captions" and isinstance(value, str) and value.lstrip().startswith("{"):
      try:
        texts = json.loads(value)
      except (ValueError, RecursionError) as e:
        raise BadRequest(f"its {column} isn't JSON: {e}") from e
      plain[column] = next((t for t in texts.values() if isinstance(t, str) and t.strip()), None)
  return words(plain, columns)


def _picture_column(table: Parquet, file: Path) -> str:
  found = [c for c in _PICTURES if c in table.columns and str(table.types[c]).startswith(("binary", "large_binary", "struct"))]
  found = found or [c for c in _PICTURES if c in table.columns and str(table.types[c]) in ("string", "large_string")]
  if not found:
    shown = ", ".join(f"{c} ({t})" for c, t in list(table.types.items())[:12])
    raise BadRequest(
        f"{file} has no column for a picture, such as image (bytes, or bytes and a path), nor image_list and instruction_list,"
        f" nor images and texts; its columns are {shown}"
    )
  return found[0]


def _edit(record: Mapping[str, Any], folder: Path) -> tuple[Text | Picture, ...]:
  pictures, instructions = record["image_list"] or [], record["instruction_list"] or []
  if len(pictures) < 2 or len(instructions) != len(pictures) - 1:
    raise BadRequest(f"it has {len(pictures)} pictures and {len(instructions)} instructions: one stands between two pictures")
  segments: list[Text | Picture] = [Picture(picture(pictures[0], folder, "image_list"))]
  for shown, texts in zip(pictures[1:], instructions):
    text = texts if isinstance(texts, str) else next((t for t in texts or () if isinstance(t, str) and t.strip()), None)
    check_text(text)
    segments += [Text(str(text).strip()), Picture(picture(shown, folder, "image_list"), learn=True)]
  return tuple(segments)


def _interleaved(record: Mapping[str, Any], folder: Path) -> tuple[Text | Picture, ...]:
  pictures, texts = record["images"] or [], record["texts"] or []
  if len(pictures) != len(texts):
    raise BadRequest(f"it has {len(pictures)} images for {len(texts)} texts: one of the two is null at each place")
  segments: list[Text | Picture] = []
  for shown, text in zip(pictures, texts):
    if (shown is None) == (text is None):
      raise BadRequest("images and texts are both there, or both null, at one place")
    learn = bool(segments)
    if text is None:
      segments.append(Picture(picture(shown, folder, "images"), learn))
    elif text.strip():
      check_text(text)
      segments.append(Text(text, learn))
  if len(segments) < 2 or not any(isinstance(s, Picture) for s in segments):
    raise BadRequest("it holds no text and picture beside each other")
  return tuple(segments)
