"""What img2dataset writes with its output format "parquet": pictures in a column named by their encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from orthus_jax.data.sources import parquet_schemas
from orthus_jax.data.sources.layout import Draft, Layout, Options, pair, pair_count
from orthus_jax.data.sources.parquet import first_parquet, parquet_files, picture
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
    self._files = parquet_files(self.path, self.broken)
    self._table = Parquet(self._files)
    columns, file = self._table.columns, self._files[0]
    encodings = [c for c in _ENCODINGS if c in columns]
    if missing := ["key"] * ("key" not in columns) + [" or ".join(_ENCODINGS)] * (not encodings):
      tars = any(f.with_suffix(".tar").is_file() for f in self._files)
      more = "; beside tar files it only lists them: use --source=webdataset" if tars else ""
      raise BadRequest(f"{file} has no column {' and no '.join(missing)}; its columns are {', '.join(columns)}{more}")
    self._encoding = encodings[0]
    no_text = parquet_schemas.no_text(self._table.types)
    self._text = choose(columns, options.text, file, lambda c: c in (*_OWN, *_ENCODINGS) or no_text(c))
    needed = [self._encoding, "key"]
    kept = [c for c in columns if c in (*needed, *self._text) or not no_text(c)]
    self._table.select(kept, needed)
    self._rows = self._fetched()
    self.broken += self._table.broken

  def _fetched(self) -> np.ndarray:
    """The rows that have a picture; those that can't be read now are told of when they are asked for."""
    good = np.ones(len(self._table), bool)
    for first, batch in self._table.batches(["status", "key", "error_message"]):
      records = batch.to_pylist() if "status" in batch.schema.names else ()
      for i, record in enumerate(records):
        if record["status"] not in ("success", None):
          good[first + i] = False
          why = f": {record['error_message']}" if record.get("error_message") else ""
          self.remarks.add(f"rows that img2dataset couldn't fetch ({record['status']})", f"{record['key']}{why}")
    if not good.any():
      raise BadRequest(f"img2dataset fetched none of the {len(good)} pictures of {self.path}")
    return np.flatnonzero(good)

  @classmethod
  def recognise(cls, path: Path) -> str:
    try:
      columns = Parquet([first_parquet(path)]).columns
    except (BadRequest, OSError):
      return ""
    found = [c for c in _ENCODINGS if c in columns]
    return f"Parquet rows with a key, a status and a picture in {found[0]}" if found and {"key", "status"} <= {*columns} else ""

  def row_files(self) -> Sequence[Path]:
    return self._files

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
