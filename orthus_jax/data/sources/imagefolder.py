"""Hugging Face's imagefolder: pictures, and a table that names them; or folders that are classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.data.documents import Text
from orthus_jax.data.sources.layout import Draft, Layout, Options, Picture, pair, pair_count
from orthus_jax.data.sources.local_pictures import local_picture
from orthus_jax.data.sources.tables import Table, open_table
from orthus_jax.data.sources.tar_samples import PICTURES
from orthus_jax.data.sources.text_columns import choose, words
from orthus_jax.errors import BadRequest

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_GIVEN = ("input", "source", "original", "before")
_ASKED = ("output", "target", "edited", "after")


class ImageFolder(Layout):
  """One picture a row makes the drafts of a pair. Several make one of kind "interleaved", the pictures given and the text
  learnt; or one of kind "edit", the last learnt, where their columns are called input… and output… (source… and target…, …)."""

  name = "imagefolder"
  usage = """Hugging Face's: a folder of pictures, and a table of them; or folders that are classes.

    DIR/metadata.csv     or .jsonl, .parquet; here, or in DIR/train (split), or in each folder of it
      file_name,text     the text's column is text, caption, prompt, … or chosen by --text
      a.jpg,A caption.
    DIR/a.jpg

    Other names of pictures: file_names, NAME_file_name, NAME_file_names. Or, without a table:
    DIR/cat/a.jpg        the folder's name is the text
"""
  takes = frozenset({"text", "annotations", "split", "pairs"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    self._root = _split_folder(self.path, options.split)
    files = [self._root / options.annotations] if options.annotations else _tables(self._root)
    if options.annotations and not files[0].is_file():
      raise BadRequest(f"there is no {str(files[0])!r}")
    if options.annotations and files[0].suffix.lower() not in (".csv", ".jsonl", ".parquet"):
      raise BadRequest(f"{files[0]} is no table that is known: give a .csv, .jsonl or .parquet file")
    self._tables = [open_table(file) for file in files]
    self._folders = [file.parent for file in files]
    self._ends = np.cumsum([len(t) for t in self._tables]) if files else np.zeros(0, np.int64)
    self._classes: list[tuple[str, str]] = []  # of pictures without a table: folder and name
    for file, table in zip(files, self._tables):
      _check(file, table)
      self.broken += getattr(table, "broken", [])
    chosen = [choose(t.columns, options.text, f, _is_name) for f, t in zip(files, self._tables)]
    self._text = tuple(dict.fromkeys(c for columns in chosen for c in columns))
    self._find_pictures()
    if not files and not self._classes:
      raise BadRequest(
          f"{str(self.path)!r} holds neither metadata.csv, .jsonl or .parquet nor folders of pictures: give a folder that does"
      )

  def _find_pictures(self) -> None:
    """Pictures of classes where there is no table; otherwise counts those without a row."""
    named = np.unique(np.array([_hash(n) for n in self._all_names()], np.uint64))
    for folder, folders, names in os.walk(self._root, followlinks=True):
      folders[:] = sorted(f for f in folders if not f.startswith("."))
      shown = sorted(n for n in names if n.rpartition(".")[2].lower() in PICTURES and not n.startswith("."))
      if self._tables:
        files = [os.path.join(folder, n) for n in shown]
        known = np.isin(np.array([_hash(f) for f in files], np.uint64), named)
        for file in (f for f, k in zip(files, known) if not k):
          self.remarks.add("pictures without a row", os.path.relpath(file, self.path))
      elif Path(folder) != self._root:
        self._classes += [(folder, n) for n in shown]
      else:
        for n in shown:
          self.remarks.add("pictures passed over that lie in no class's folder", n)

  def _all_names(self) -> list[str]:
    names = []
    for table, folder in zip(self._tables, self._folders):
      for row in range(len(table)):
        try:
          names += [str(f) for fs in _pictures(table.row(row), folder).values() for f in fs]
        except BadRequest:
          pass  # told of when the row is read
    return names

  @classmethod
  def recognise(cls, path: Path) -> str:
    if not path.is_dir():
      return ""
    try:
      root = _split_folder(path, "train")
      files = _tables(root)
      if files:
        table = open_table(files[0])
        return f"{files[0].relative_to(path)} has a column {names[0]}" if (names := _names(table.columns)) else ""
    except (BadRequest, OSError):
      return ""
    folders = [f for f in sorted(root.iterdir())[:1000] if f.is_dir() and not f.name.startswith(".")]
    classes = [f.name for f in folders if any(p.name.rpartition(".")[2].lower() in PICTURES for p in _some(f))]
    return f"folders of pictures: {', '.join(classes[:3])}{', …' if len(classes) > 3 else ''}" if len(classes) > 1 else ""

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else len(self._classes)

  @property
  def drafts_per_row(self) -> int:
    single = not self._tables or all(_names(t.columns) == ["file_name"] for t in self._tables)
    return pair_count(self.options.pairs) if single else 1

  def _at(self, row: int) -> tuple[int, int]:
    table = int(np.searchsorted(self._ends, row, side="right"))
    return table, row - (int(self._ends[table - 1]) if table else 0)

  def place(self, row: int) -> tuple[str, str]:
    if not self._tables:
      folder, name = self._classes[row]
      return folder, name
    table, at = self._at(row)
    return self._tables[table].place(at)

  def drafts(self, row: int) -> Sequence[Draft]:
    if not self._tables:
      one = Path(*self._classes[row])
      named = one.relative_to(self.path).as_posix()
      return pair(one.parent.name.replace("_", " "), one, self.options.pairs, name=named)
    number, at = self._at(row)
    table, folder = self._tables[number], self._folders[number]
    record = table.row(at)
    pictures = _pictures(record, folder)
    text = words(record, self._text)
    if sum(map(len, pictures.values())) == 0:
      raise BadRequest("it names no picture")
    file, record_name = table.place(at)
    name = f"{Path(file).relative_to(self.path).as_posix()}:{record_name.split()[-1]}"
    meta = {k: v for k, v in record.items() if k not in self._text and not _is_name(k)}
    if list(pictures) == ["file_name"]:
      return pair(text, pictures["file_name"][0], self.options.pairs, name=name, meta=meta)
    asked = [c for c in pictures if c.lower().startswith(_ASKED)]
    if len(asked) == 1 and len(pictures[asked[0]]) == 1 and any(c.lower().startswith(_GIVEN) for c in pictures):
      given = [Picture(f) for c, fs in pictures.items() if c != asked[0] for f in fs]
      return (Draft((*given, Text(text), Picture(pictures[asked[0]][0], learn=True)), name, "edit", meta),)
    shown = [Picture(f) for fs in pictures.values() for f in fs]
    return (Draft((*shown, Text(text, learn=True)), name, "interleaved", meta),)

  def fields(self) -> Mapping[str, str]:
    if not self._tables:
      return {"(folder)": "the text", "(file)": "the picture"}
    table = self._tables[0]
    return {c: "a picture's name" if _is_name(c) else "the text" if c in self._text else "kept beside" for c in table.columns}


def _split_folder(path: Path, split: str) -> Path:
  """The folder of a split, or all where there is none of the usual name."""
  if not path.is_dir():
    raise BadRequest(f"there is no folder {str(path)!r}; give one that holds pictures")
  if (path / split).is_dir():
    return path / split
  if split != "train":
    folders = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())[:8])
    raise BadRequest(f"{path} has no split {split!r}" + (f"; its folders are {folders}" if folders else ""))
  return path


def _tables(root: Path) -> list[Path]:
  """Where the rows are: in the folder itself, else in its folders.

  Raises:
    BadRequest: two kinds of table lie in one folder.
  """
  for folders in ([root], sorted(p for p in root.iterdir() if p.is_dir())):
    found = []
    for folder in folders:
      here = [folder / name for name in _METADATA if (folder / name).is_file()]
      if len(here) > 1:
        raise BadRequest(f"{folder} holds both {here[0].name} and {here[1].name}: keep one, or choose it by --annotations")
      found += here
    if found:
      return found
  return []


def _check(file: Path, table: Table) -> None:
  if not _names(table.columns):
    raise BadRequest(
        f"{file} has no column file_name, NAME_file_name or file_names; its columns are {', '.join(table.columns)}"
        " (a table with pictures in it is read by --source=parquet, our own rows by --source=jsonl)"
    )
  if "image" in table.columns:
    raise BadRequest(
        f"{file} has a column image beside {_names(table.columns)[0]}, which Hugging Face's loader takes for the picture:"
        " rename or drop it"
    )


def _is_name(column: str) -> bool:
  return column in ("file_name", "file_names") or column.endswith(("_file_name", "_file_names"))


def _names(columns: Sequence[str]) -> list[str]:
  return [c for c in columns if _is_name(c)]


def _pictures(record: Mapping[str, Any], folder: Path) -> dict[str, list[Path]]:
  """Pictures by column, in the columns' order.

  Raises:
    BadRequest: one is no path inside the folder.
  """
  out = {}
  for column in _names(list(record)):
    value = record[column]
    if column.endswith("file_names"):
      if not isinstance(value, list):
        raise BadRequest(f"its {column} must be a list of paths, got {value!r}")
      out[column] = [local_picture(folder, v, what=f"its {column}") for v in value]
    elif value not in (None, ""):
      out[column] = [local_picture(folder, value, what=f"its {column}")]
  return out


def _hash(name: str) -> int:
  digest = hashlib.blake2b(os.path.normpath(name).encode(errors="surrogateescape"), digest_size=8)
  return int.from_bytes(digest.digest(), "big")


def _some(folder: Path) -> list[os.DirEntry]:
  with os.scandir(folder) as entries:
    return [e for e, _ in zip(entries, range(100))]
