"""Documents of whatever lies in a layout: pictures read and fitted, what is to be learnt chosen, bad rows counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import operator
from pathlib import Path
from typing import Literal

import numpy as np

from orthus_jax.config import PixelsConfig
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.images import fit, load_picture
from orthus_jax.data.retrying import retry
from orthus_jax.data.sources.bad_records import BadRecords
from orthus_jax.data.sources.layout import Draft, Layout, Picture
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring

Learn = Literal["layout", "text", "images", "everything"]
_MAX_PICTURE = 1 << 28  # bytes


class LayoutSource:
  """A random-access source of Documents; a bad row's are None.

  Attributes:
    layout: the rows.
    remarks: the count of what is passed over by the layout's rules.
    bad: the count of bad records; what of a file can't be read at all counts as one.
  """

  def __init__(
      self,
      layout: Layout,
      *,
      resolution: int,
      pixels: PixelsConfig = PixelsConfig(),
      max_bad_share: float = 0.01,
      learn: Learn = "layout",
  ):
    """Reads nothing yet.

    Args:
      layout: the rows.
      resolution: pictures are fitted to this many pixels square.
      pixels: how they are.
      max_bad_share: the share of bad rows that is put up with, in [0, 1].
      learn: what of a document is to be learnt: "layout", as its layout has it; its text or its images alone; everything.

    Raises:
      BadRequest: an option is out of range, or too much of the files can't be read.
    """
    if resolution < 1:
      raise BadRequest(f"resolution must be 1 or more, got {resolution}")
    self.layout, self.resolution, self.pixels, self.learn = layout, resolution, pixels, learn
    self.remarks = layout.remarks
    per_row = layout.drafts_per_row
    self._per_row = per_row if isinstance(per_row, int) else None
    self._ends = np.cumsum(per_row) if self._per_row is None else np.zeros(0, np.int64)
    self.bad = BadRecords(max_share=max_bad_share, total=len(layout) + len(layout.broken))
    layout.remarks.log(str(layout.path))
    for file, where, reason in layout.broken:
      self.bad.saw()
      self.bad.report(file, where, reason)
    self.bad.check()

  @property
  def broken(self) -> list[tuple[str, str, str]]:
    """(file, where, reason) of what of the files can't be read at all."""
    return self.layout.broken

  @property
  def rows(self) -> int:
    """Rows of the layout."""
    return len(self.layout)

  @property
  def identity(self) -> str:
    """What is read and how, and whether it is still what it was; of what lies in a bucket the same on each machine."""
    return f"{self._said_of(bring.origin(self.layout.path) or str(self.layout.path))} {self.layout.fingerprint()}"

  def __len__(self) -> int:
    return len(self.layout) * self._per_row if self._per_row is not None else int(self._ends[-1:].sum())

  def __getitem__(self, index: int) -> Document | None:
    """The document at a place, or None where its row is bad.

    Raises:
      BadRequest: too many rows are bad.
      IndexError: there is no such place.
    """
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"document {index} of {len(self)}")
    if self._per_row is not None:
      row, nth = divmod(index, self._per_row)
    else:
      row = int(np.searchsorted(self._ends, index, side="right"))
      nth = index - (int(self._ends[row - 1]) if row else 0)
    return self._document(row, nth, self.layout.drafts, self._picture)

  def row(self, row: int) -> list[Document | None]:
    """All documents of a row, which is read once, and so is a picture that several of them show.

    Raises:
      BadRequest: too many rows are bad.
    """
    count = self._per_row if self._per_row is not None else int(np.diff(self._ends, prepend=0)[row])
    drafts, picture = functools.cache(self.layout.drafts), functools.cache(self._picture)
    return [self._document(row, nth, drafts, picture) for nth in range(count)]

  def _document(
      self, row: int, nth: int, drafts: Callable[[int], Sequence[Draft]], picture: Callable[[Path | bytes], Image]
  ) -> Document | None:
    self.bad.saw()
    try:
      return self._read(drafts(row)[nth], picture)
    except BadRequest as e:
      self.bad.report(*self.layout.place(row), str(e))
    except OSError as e:
      self.bad.report(*self.layout.place(row), f"it can't be read: {e.strerror or e}")
    self.bad.check()
    return None

  def _read(self, draft: Draft, picture: Callable[[Path | bytes], Image]) -> Document:
    segments: list[Text | Image] = []
    for s in draft.segments:
      segment = picture(s.file) if isinstance(s, Picture) else s
      segments.append(dataclasses.replace(segment, learn=is_learnt(s, self.learn)))
    return Document(tuple(segments), draft.id, draft.kind, draft.meta)

  def _picture(self, file: Path | bytes) -> Image:
    if isinstance(file, bytes) and len(file) > _MAX_PICTURE:
      raise BadRequest(f"its picture has {len(file):,} bytes, more than the {_MAX_PICTURE:,} allowed")

    def read() -> Image:
      pixels, plain = load_picture(file)
      fitted = fit(pixels, self.resolution, self.pixels)
      if not plain or fitted is not pixels:
        return Image(fitted)
      return Image(fitted, jpeg=file if isinstance(file, bytes) else file.read_bytes())

    return read() if isinstance(file, bytes) else retry(str(file), read)

  def __repr__(self) -> str:
    # Data pipelines compare it to tell whether they resume on the same source.
    return self._said_of(str(self.layout.path))

  def _said_of(self, path: str) -> str:
    fitted = f"resolution={self.resolution}, resample={self.pixels.resample!r}, learn={self.learn!r}"
    return f"{type(self.layout).__name__}({path!r}, {self.layout.options}, {fitted}, documents={len(self)})"


def is_learnt(segment: Text | Picture, learn: Learn) -> bool:
  """Whether a draft's segment is to be learnt, where `learn` says what of a document is."""
  return segment.learn if learn == "layout" else learn in ("everything", "images" if isinstance(segment, Picture) else "text")
