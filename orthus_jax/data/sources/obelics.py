"""Interleaved web documents, as OBELICS' Parquet files hold them, with pictures from a local folder."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.interleaving import interleave
from orthus_jax.data.sources.layout import Draft, Layout, Options
from orthus_jax.data.sources.picture_store import USAGE, PictureStore
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line

_FIELDS = ("images", "texts")


class Obelics(Layout):
  """A web page makes one draft, of kind "interleaved", of which everything is to be learnt.

  A picture that isn't in the folder is left out with its place, and a blank line parts the texts beside it; a page that has
  no picture left, or no text, is a bad row.
  """

  name = "obelics"
  usage = (
      """Interleaved web documents, as OBELICS' Parquet files hold them.

    DIR/train-00000-of-01335.parquet     or DIR/data/*.parquet, or one file; a row a page:
      images: [null, "https://a.b/c.jpg", null]      of each place, one of both is null
      texts:  ["Some words.", null, "More."]

"""
      + USAGE
  )
  takes = frozenset({"pictures"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    if not (files := _files(self.path)):
      raise BadRequest(f"there is no .parquet file at {str(self.path)!r}; give one, or a folder that holds some")
    self._rows = _ParquetRows(files, _FIELDS, self.name, self.broken)
    self._store = PictureStore(self.name, self.path if self.path.is_dir() else self.path.parent, options, self.remarks)

  @classmethod
  def recognise(cls, path: Path) -> str:
    files = _files(path)
    try:
      return 'its rows have lists "images" and "texts"' if files and _fits(_schema(files[0])) else ""
    except (OSError, ValueError):
      return ""

  def __len__(self) -> int:
    return len(self._rows)

  def place(self, row: int) -> tuple[str, str]:
    file, number = self._rows.place(row)
    return str(file), f"row {number + 1}"

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = self._rows.record(row)
    images, texts = (record[key] for key in _FIELDS)
    if images is None or texts is None or len(images) != len(texts):
      lengths = " and ".join("none" if x is None else str(len(x)) for x in (images, texts))
      raise BadRequest(f'"images" and "texts" must be lists of one length, they have {lengths}')
    for place, (image, text) in enumerate(zip(images, texts), start=1):
      if (image is None) == (text is None):
        raise BadRequest(f"at place {place}, {'both' if text is None else 'neither'} of image and text is null; one must be")
    parts = [self._store.find(image) if text is None else text for image, text in zip(images, texts)]
    file, number = self._rows.place(row)
    return (Draft(interleave(parts, "\n\n"), f"{file.name}:{number + 1}", "interleaved"),)

  def fields(self) -> Mapping[str, str]:
    return self._rows.fields


def _files(path: Path) -> list[Path]:
  if path.is_file():
    return [path] if path.suffix.lower() == ".parquet" else []
  return sorted(path.glob("[!.]*.parquet")) or sorted(path.glob("data/[!.]*.parquet"))


def _schema(file: Path) -> Any:
  import pyarrow.parquet  # takes long

  return pyarrow.parquet.read_schema(file)


def _fits(schema: Any) -> bool:
  import pyarrow.types as types

  def strings(t: Any) -> bool:
    lists = types.is_list(t) or types.is_large_list(t)
    return lists and any(f(t.value_type) for f in (types.is_string, types.is_large_string, types.is_null))

  return all(key in schema.names and strings(schema.field(key).type) for key in _FIELDS)


class _ParquetRows:
  """Rows of Parquet files, a group of them in memory at a time.

  Attributes:
    fields: name and type of each column.
  """

  def __init__(self, files: Sequence[Path], columns: Sequence[str], name: str, broken: list[tuple[str, str, str]]):
    import pyarrow.parquet

    self._columns, self.fields = columns, {}
    self._files: list[Path] = []
    self._groups: list[tuple[int, int, int]] = []  # the number of its file, its own there, its first row's
    self._ends: list[int] = []
    self._cache: tuple[int, Any] = (-1, None)
    rows = 0
    for file in files:
      try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
          schema, metadata = parquet.schema_arrow, parquet.metadata
          sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
      except (OSError, ValueError) as e:
        broken.append((str(file), "all of it", f"it can't be read as Parquet: {first_line(e)}"))
        continue
      found = {field.name: str(field.type) for field in schema}
      if not _fits(schema):
        shown = ", ".join(f"{k}: {t}" for k, t in found.items()) or "none"
        why = f"it needs the columns {', '.join(columns)}, lists of strings; it has {shown}"
        if not self.fields:
          raise BadRequest(f"{str(file)!r} isn't {name}: {why}")
        broken.append((str(file), "all of it", why))
        continue
      self.fields = self.fields or found
      first = 0
      for number, size in enumerate(sizes):
        if size:
          rows += size
          self._groups.append((len(self._files), number, first))
          self._ends.append(rows)
          first += size
      self._files.append(file)
    if not (rows or broken):
      raise BadRequest(f"{str(files[0].parent)!r} holds Parquet files of {name} without a row")

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def _find(self, row: int) -> tuple[int, int]:
    """(group, row in it)"""
    group = bisect.bisect_right(self._ends, row)
    return group, row - (self._ends[group - 1] if group else 0)

  def place(self, row: int) -> tuple[Path, int]:
    """A row's file, and its number there, from 0."""
    group, within = self._find(row)
    file, _, first = self._groups[group]
    return self._files[file], first + within

  def record(self, row: int) -> dict[str, Any]:
    """A row's columns.

    Raises:
      BadRequest: they can't be decoded.
      OSError: the file can't be read now.
    """
    import pyarrow

    group, within = self._find(row)
    held, table = self._cache
    try:
      if held != group:
        file, number, _ = self._groups[group]
        table = retry(str(self._files[file]), lambda: self._read(self._files[file], number))
        self._cache = group, table
      return table.slice(within, 1).to_pylist()[0]
    except (pyarrow.ArrowException, UnicodeDecodeError) as e:
      raise BadRequest(f"it can't be decoded: {first_line(e)}") from e

  def _read(self, file: Path, group: int) -> Any:
    import pyarrow.parquet

    try:
      with pyarrow.parquet.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=list(self._columns))
    except OSError as e:
      if e.errno is None:  # a page's own fault, which won't pass
        raise BadRequest(f"its group of rows can't be decoded: {first_line(e)}") from e
      raise

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_cache": (-1, None)}
