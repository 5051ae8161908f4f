"""Hugging Face's imagefolder: pictures, and a table that names them; or folders that are classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import os
from pathlib import Path

import numpy as np

from orthus_jax.data.sources import picture_columns
from orthus_jax.data.sources.classes import Classes, few_classes, is_picture
from orthus_jax.data.sources.folders import walk
from orthus_jax.data.sources.layout import Draft, Layout, Options, pair, pair_count
from orthus_jax.data.sources.picture_columns import Names
from orthus_jax.data.sources.table_kinds import KINDS, columns_of, open_table
from orthus_jax.data.sources.tables import Table
from orthus_jax.data.sources.text_columns import choose, words
from orthus_jax.errors import BadRequest

_METADATA = tuple(f"metadata{kind}" for kind in KINDS)


class ImageFolder(Layout):
  """One picture a row makes the drafts of a pair. Several make one of kind "interleaved", the pictures given and the text
  learnt; or one of kind "edit", the last learnt, where their columns are called input… and output… (source… and target…, …)."""

  name = "imagefolder"
  usage = """Hugging Face's: a folder of pictures, and a table of them; or folders that are classes.

    DIR/metadata.csv     or .jsonl, .parquet; here, or in DIR/train (split), or in each folder of it
      file_name,text     the text's column is text, caption, prompt, … or chosen by --text
      a.jpg,A caption.
    DIR/a.jpg

    Other names of pictures: file_names, NAME_file_name, NAME_file_names; input_file_name and output_file_name are an edit.
    Or, without a table:
    DIR/cat/a.jpg        the folder's name is the text
"""
  takes = frozenset({"text", "annotations", "split", "pairs"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    root = _split_folder(self.path, options.split)
    files, within = _tables(self.path, root, options.annotations)
    self._names = [Names(file.parent, within) for file in files]
    self._tables = [open_table(f, n.note, picture_columns.is_name) for f, n in zip(files, self._names)]
    self._classes = Classes(root, self.remarks, self.broken) if not files else None
    self._files = files
    if self._classes is not None:
      if not len(self._classes):
        raise BadRequest(
            f"{str(self.path)!r} holds neither metadata.csv, .jsonl or .parquet nor folders of pictures: give one that does"
        )
      return
    for file, table in zip(files, self._tables):
      _check(file, table)
      self.broken += getattr(table, "broken", [])
    chosen = [choose(t.columns, options.text, f, picture_columns.is_name) for f, t in zip(files, self._tables)]
    self._text = tuple(dict.fromkeys(c for columns in chosen for c in columns))
    self._ends = np.cumsum([len(t) for t in self._tables])
    notes = np.concatenate([t.notes for t in self._tables])
    self._rows = np.flatnonzero(notes != picture_columns.ELSEWHERE)
    if away := len(notes) - len(self._rows):
      self.remarks.add("rows passed over whose pictures lie in other splits' folders", files[0].name, away)
    if not len(self._rows):
      raise BadRequest(f"no row of {files[0]} names a picture in {within}/; choose others by --split")
    single = notes[self._rows] == picture_columns.SINGLE
    if options.pairs != "both" and not single.any():
      raise BadRequest(f"the rows of {files[0]} have more than a picture, and make no pairs: leave out --pairs")
    self._drafts = np.where(single, pair_count(options.pairs), 1).astype(np.int8)
    self._count_unnamed(root)

  def _count_unnamed(self, root: Path) -> None:
    named = np.unique(np.concatenate([n.take() for n in self._names]))
    for folder, _, names in walk(root, self.broken):
      files = [os.path.join(folder, n) for n in sorted(names) if is_picture(n)]
      seen = np.array([picture_columns.key(f) for f in files], np.int64)
      at = np.minimum(np.searchsorted(named, seen), len(named) - 1)
      for i in np.flatnonzero(named[at] != seen) if len(named) else range(len(files)):
        self.remarks.add("pictures without a row", os.path.relpath(files[i], self.path))

  @classmethod
  def recognise(cls, path: Path) -> str:
    if not path.is_dir():
      return ""
    try:
      root = _split_folder(path, "train")
      files, _ = _tables(path, root, "")
      if files:
        columns = [c for c in columns_of(files[0]) if picture_columns.is_name(c)]
        return f"{files[0].relative_to(path)} has a column {columns[0]}" if columns else ""
      found = few_classes(root)
    except (BadRequest, OSError):
      return ""
    return f"folders of pictures: {', '.join(found[:3])}{', …' if len(found) > 3 else ''}" if found else ""

  def __len__(self) -> int:
    return len(self._rows) if self._classes is None else len(self._classes)

  @property
  def drafts_per_row(self) -> int | np.ndarray:
    if self._classes is not None:
      return pair_count(self.options.pairs)
    return self._drafts

  def row_files(self) -> Iterable[Path]:
    return self._files if self._classes is None else self._classes.folders

  def _at(self, row: int) -> tuple[int, int]:
    at = int(self._rows[row])
    table = int(np.searchsorted(self._ends, at, side="right"))
    return table, at - (int(self._ends[table - 1]) if table else 0)

  def place(self, row: int) -> tuple[str, str]:
    if self._classes is not None:
      return self._classes.place(row)
    table, at = self._at(row)
    return self._tables[table].place(at)

  def drafts(self, row: int) -> Sequence[Draft]:
    if self._classes is not None:
      one = Path(*self._classes.place(row))
      named = one.relative_to(self.path).as_posix()
      return pair(one.parent.name.replace("_", " "), one, self.options.pairs, name=named)
    number, at = self._at(row)
    table = self._tables[number]
    record = table.row(at)
    shown = picture_columns.pictures(record, self._files[number].parent)
    text = words(record, self._text)
    file, line = table.place(at)
    name = f"{Path(file).relative_to(self.path).as_posix()}:{line.split()[-1]}"
    meta = {k: v for k, v in record.items() if k not in self._text and not picture_columns.is_name(k)}
    if list(shown) == ["file_name"]:
      return pair(text, shown["file_name"][0], self.options.pairs, name=name, meta=meta)
    kind, segments = picture_columns.arranged(shown, text, table.columns)
    return (Draft(segments, name, kind, meta),)

  def fields(self) -> Mapping[str, str]:
    if self._classes is not None:
      return {"(folder)": "the text", "(file)": "the picture"}

    def word(column: str) -> str:
      return "a picture's name" if picture_columns.is_name(column) else "the text" if column in self._text else "kept beside"

    return {c: word(c) for c in self._tables[0].columns}


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


def _tables(path: Path, root: Path, annotations: str) -> tuple[list[Path], str]:
  """The files of rows, and the folder in theirs whose pictures are wanted, if not all.

  Args:
    path: the layout's place.
    root: the folder of the split, which may be the same.
    annotations: the file that the user names.

  Raises:
    BadRequest: two kinds of table lie in one folder, or the file isn't there.
  """
  within = "" if root == path else root.name
  if annotations:
    file = next((f / annotations for f in (root, path) if (f / annotations).is_file()), None)
    if file is None:
      raise BadRequest(f"there is no {str(root / annotations)!r}")
    if file.suffix.lower() not in KINDS:
      raise BadRequest(f"{file} is no table that is known: give a .csv, .jsonl or .parquet file")
    return [file], within if file.parent == path else ""
  if found := _metadata([root]) or _metadata(sorted(p for p in root.iterdir() if p.is_dir())):
    return found, ""
  return (_metadata([path]), within) if within else ([], "")


def _metadata(folders: Iterable[Path]) -> list[Path]:
  found = []
  for folder in folders:
    here = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(here) > 1:
      raise BadRequest(f"{folder} holds both {here[0].name} and {here[1].name}: keep one, or choose it by --annotations")
    found += here
  return found


def _check(file: Path, table: Table) -> None:
  named = [c for c in table.columns if picture_columns.is_name(c)]
  if not named and len(table.columns) == 1 and (other := next((s for s in ";\t|" if s in table.columns[0]), "")):
    raise BadRequest(f"{file} has {other!r} between its columns: a CSV file has commas there; write it anew with them")
  if not named:
    raise BadRequest(
        f"{file} has no column file_name, NAME_file_name or file_names; its columns are {', '.join(table.columns)}"
        " (a table with pictures in it is read by --source=parquet, our own rows by --source=jsonl)"
    )
  if "image" in table.columns:
    raise BadRequest(
        f"{file} has a column image beside {named[0]}, which Hugging Face's loader takes for the picture: rename or drop it"
    )
