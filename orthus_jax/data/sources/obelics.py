"""Interleaved web documents, as OBELICS' Parquet files hold them, with pictures from a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthus_jax.data.sources.interleaving import interleave
from orthus_jax.data.sources.layout import Draft, Layout, Options
from orthus_jax.data.sources.parquet import first_parquet, parquet_files
from orthus_jax.data.sources.picture_store import USAGE, PictureStore
from orthus_jax.data.sources.row_groups import Parquet
from orthus_jax.errors import BadRequest

_FIELDS = ("images", "texts")


class Obelics(Layout):
  """A web page makes one draft, of kind "interleaved", of which everything is to be learnt.

  A picture that isn't in the folder is left out with its place, and a blank line parts the texts beside it; a page that has
  no picture left, or no text, is a bad row.
  """

  name = "obelics"
  usage = (
      """Interleaved web documents, as OBELICS' Parquet files hold them.

    DIR/train-00000-of-01335.parquet     at any depth, or one file; a row a page:
      images: [null, "https://a.b/c.jpg", null]      of each place, one of both is null
      texts:  ["Some words.", null, "More."]

"""
      + USAGE
  )
  takes = frozenset({"pictures"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    self._files = parquet_files(self.path, self.broken)
    self._rows = Parquet(self._files)
    if not _fits(self._rows):
      found = ", ".join(f"{name} ({kind})" for name, kind in self._rows.types.items())
      raise BadRequest(f"{str(self.path)!r} isn't obelics: it needs images and texts, lists of strings; it has {found}")
    self._rows.select(_FIELDS, needed=_FIELDS)
    self.broken += self._rows.broken
    self._store = PictureStore(self.name, self.path if self.path.is_dir() else self.path.parent, options, self.remarks)

  @classmethod
  def recognise(cls, path: Path) -> str:
    try:
      return 'Parquet rows of "images" and "texts", all strings' if _fits(Parquet([first_parquet(path)])) else ""
    except (BadRequest, OSError):
      return ""

  def __len__(self) -> int:
    return len(self._rows)

  def row_files(self) -> Sequence[Path]:
    return self._files

  def place(self, row: int) -> tuple[str, str]:
    return self._rows.place(row)

  def drafts(self, row: int) -> tuple[Draft, ...]:
    record = self._rows.row(row)
    images, texts = (record[key] for key in _FIELDS)
    if images is None or texts is None or len(images) != len(texts):
      lengths = " and ".join("none" if x is None else str(len(x)) for x in (images, texts))
      raise BadRequest(f'"images" and "texts" must be lists of one length, they have {lengths}')
    for place, (image, text) in enumerate(zip(images, texts), start=1):
      if (image is None) == (text is None):
        raise BadRequest(f"at place {place}, {'both' if text is None else 'neither'} of image and text is null; one must be")
    parts = [self._store.find(image) if text is None else text for image, text in zip(images, texts)]
    file, where = self._rows.place(row)
    return (Draft(interleave(parts, "\n\n"), f"{Path(file).name}:{where.split()[-1]}", "interleaved"),)

  def fields(self) -> Mapping[str, str]:
    return {name: str(kind) for name, kind in self._rows.types.items()}


def _fits(table: Parquet) -> bool:
  import pyarrow.types  # takes long

  def strings(kind: Any) -> bool:
    if kind is None or not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)):
      return False
    kind = kind.value_type
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_null(kind)

  return all(strings(table.types.get(name)) for name in _FIELDS)
