"""What img2dataset writes with its output format "parquet": pictures in a column named by their encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from orthus_jax.data.sources.layout import Draft, Layout, Options, pair, pair_count
from orthus_jax.data.sources.parquet import parquet_files, picture
from orthus_jax.data.sources.row_groups import Parquet
from orthus_jax.data.sources.text_columns import choose, words
from orthus_jax.errors import BadRequest

_ENCODINGS = ("jpg", "jpeg", "png", "webp", "avif")
_OWN = ("key", "status", "error_message", "exif", "sha256", "url", "width", "height", "original_width", "original_height")


class Img2dataset(Layout):
  """Rows that weren't fetched are passed over, counted by their status."""

  name = "img2dataset"
  usage = """img2dataset's output format parquet (its tar files are --source=webdataset).

    DIR/00000.parquet
      jpg                the picture's bytes, null where it couldn't be fetched; or png, webp
      caption            or chosen by --text
      key, status, …     kept beside
    DIR/00000_stats.json left alone
"""
  takes = frozenset({"text", "pairs"})

  def __init__(self, path: Path, options: Options = Options()):
    super().__init__(path, options)
    files = parquet_files(self.path)
    self._table = Parquet(files)
    self.broken += self._table.broken
    columns = self._table.columns
    encodings = [c for c in _ENCODINGS if c in columns]
    if not encodings or "key" not in columns:
      tars = any(f.with_suffix(".tar").is_file() for f in files)
      more = "; beside tar files it only lists them: use --source=webdataset" if tars else ""
      raise BadRequest(
          f"{files[0]} has no column of pictures called {', '.join(_ENCODINGS)} and no key; its columns are"
          f" {', '.join(columns)}{more}"
      )
    self._encoding = encodings[0]
    self._text = choose(columns, options.text, files[0], lambda c: c in _OWN or c in _ENCODINGS)
    self._rows = self._fetched()
    self._table.select([c for c in columns if c not in encodings[1:]])

  def _fetched(self) -> np.ndarray:
    """The rows that have a picture."""
    if "status" not in self._table.columns:
      return np.arange(len(self._table))
    self._table.select(["status", "key"])
    good = []
    for row in range(len(self._table)):
      record = self._table.row(row)
      if record["status"] == "success":
        good.append(row)
      else:
        self.remarks.add(f"rows that img2dataset couldn't fetch ({record['status']})", str(record["key"]))
    if not good:
      raise BadRequest(f"img2dataset fetched none of the {len(self._table)} pictures of {self.path}")
    return np.asarray(good)

  @classmethod
  def recognise(cls, path: Path) -> str:
    try:
      table = Parquet(parquet_files(path)[:1])
    except (BadRequest, OSError):
      return ""
    found = [c for c in _ENCODINGS if c in table.columns]
    if not found or not {"key", "status"} <= set(table.columns):
      return ""
    return f"Parquet rows with a key, a status and a picture in {found[0]}"

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def drafts_per_row(self) -> int:
    return pair_count(self.options.pairs)

  def place(self, row: int) -> tuple[str, str]:
    return self._table.place(int(self._rows[row]))

  def drafts(self, row: int) -> Sequence[Draft]:
    record = self._table.row(int(self._rows[row]))
    text = words(record, self._text)
    shown = picture(record.pop(self._encoding), self.path, self._encoding)
    meta = {k: v for k, v in record.items() if k not in self._text}
    return pair(text, shown, self.options.pairs, name=str(record["key"]), meta=meta)

  def fields(self) -> Mapping[str, str]:
    return {c: f"{t}{' (the text)' if c in self._text else ''}" for c, t in self._table.types.items()}
