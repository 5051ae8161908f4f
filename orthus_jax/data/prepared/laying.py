"""What is done to rows of a source before they are written, in this process or in many: read, laid out, pictures encoded."""

from __future__ import annotations

from collections.abc import Iterator
import concurrent.futures.process
import copy
import dataclasses
import hashlib
import io
from typing import Any

import numpy as np
import PIL.Image

from orthus_jax.config import Config
from orthus_jax.data.contamination import Prompts
from orthus_jax.data.documents import Document, Source
from orthus_jax.data.prepared.format import Images
from orthus_jax.data.processes import ordered
from orthus_jax.data.sequence import Sequence, Tokenizer
from orthus_jax.data.sources.remarks import Remarks
from orthus_jax.data.variants import variants
from orthus_jax.data.windows import windows
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring

_JPEG_QUALITY = 95
_AT_ONCE = 16  # rows
_WORTH = 256  # rows: fewer are done before other processes have started


@dataclasses.dataclass(frozen=True)
class Laid:
  """A document laid out; its pictures are known by their keys.

  Attributes:
    name, kind: the document's.
    sequences: its variants; without pictures.
    pictures: for each variant the keys of its pictures.
    held: names of the benchmarks' prompts that its texts hold.
  """

  name: str
  kind: str
  sequences: tuple[Sequence, ...]
  pictures: tuple[tuple[bytes, ...], ...]
  held: tuple[str, ...] = ()


@dataclasses.dataclass
class Chunk:
  """Some rows.

  Attributes:
    rows: the first row, and the one behind the last.
    documents: the good ones, in order.
    pictures: what is kept of each, by key.
    read: how many documents there were, good or bad.
    rejected: (file, record, reason) of the bad records, each of which may have made several documents.
    passed: what the source left out of them by its rules.
  """

  rows: tuple[int, int]
  documents: list[Laid] = dataclasses.field(default_factory=list)
  pictures: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
  read: int = 0
  rejected: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
  passed: Remarks = dataclasses.field(default_factory=Remarks)


@dataclasses.dataclass(frozen=True)
class Work:
  """All that laying out depends on; it goes to each process.

  Attributes:
    source: of Documents.
    tokenizer, config, images: as of `writer.prepare`.
    prompts: benchmarks' prompts to look for.
  """

  source: Source
  tokenizer: Tokenizer
  config: Config
  images: Images
  prompts: Prompts | None = None

  @property
  def rows(self) -> int:
    return getattr(self.source, "rows", len(self.source))

  def lay(self, first: int, end: int) -> Chunk:
    """Rows first..end - 1."""
    chunk = Chunk((first, end))
    counts = getattr(self.source, "bad", None)
    remarks = copy.deepcopy(getattr(self.source, "remarks", chunk.passed))
    if counts is not None:
      self.source.bad = _Noted(chunk)  # type: ignore[attr-defined]
    try:
      for row in range(first, end):
        # Pixels and their keys by the pixels' identity, which lasts as long as they do: a row's documents share pictures.
        encoded: dict[int, tuple[np.ndarray, bytes]] = {}
        documents = self._row(row)
        for document in documents:
          chunk.read += 1
          if document is not None:
            for piece in windows(document, self.config.data.images_per_document):
              self._add(piece, chunk, encoded)
          elif counts is None:
            chunk.rejected.append(("the source", f"document {row}", "it is bad"))
    finally:
      if counts is not None:
        self.source.bad = counts  # type: ignore[attr-defined]
    chunk.passed = getattr(self.source, "remarks", remarks).since(remarks)
    return chunk

  def _row(self, row: int) -> list[Document | None]:
    return self.source.row(row) if hasattr(self.source, "row") else [self.source[row]]

  def _add(self, document: Document, chunk: Chunk, encoded: dict[int, tuple[np.ndarray, bytes]]) -> None:
    try:
      laid = variants(document, self.tokenizer, self.config, dropped=True)
    except BadRequest as e:
      chunk.rejected.append(("the source", document.id, str(e)))
      return
    keys = []
    for sequence in laid:
      for image in sequence.images:
        if id(image.pixels) not in encoded:
          kept = image.pixels.tobytes() if self.images != "jpeg" else image.jpeg or _jpeg(image.pixels)
          key = hashlib.blake2b(kept, digest_size=16).digest()
          encoded[id(image.pixels)] = image.pixels, key
          chunk.pictures.setdefault(key, kept)
      keys.append(tuple(encoded[id(i.pixels)][1] for i in sequence.images))
    held = [n for t in document.texts for n in self.prompts.find(t.text)] if self.prompts else []
    bare = tuple(dataclasses.replace(s, images=()) for s in laid)
    chunk.documents.append(Laid(document.id, document.kind, bare, tuple(keys), tuple(dict.fromkeys(held))))


def chunks(work: Work, first: int, processes: int) -> Iterator[Chunk]:
  """All rows from `first` on, in order, whoever laid them out.

  Args:
    work: what is done.
    first: the first row.
    processes: how many do it beside this one, if it is worth their start; 1: this one alone.

  Raises:
    BadRequest: one of them was killed.
  """
  spans = ((r, min(r + _AT_ONCE, work.rows)) for r in range(first, work.rows, _AT_ONCE))
  worth = processes > 1 and work.rows - first >= _WORTH
  try:
    yield from ordered(work.lay, spans, processes if worth else 0)
  except concurrent.futures.process.BrokenProcessPool as e:
    raise BadRequest(
        "a process that prepares data was killed, for want of memory perhaps: the same command goes on; give it fewer"
        f" with --processes (now {processes})"
    ) from e


class _Noted:
  """Takes the place of a source's count of bad records, and hands each on once, however many documents it would have made."""

  def __init__(self, chunk: Chunk):
    self._chunk = chunk
    self._told: set[tuple[str, str]] = set()

  def saw(self, n: int = 1) -> None:
    pass

  def report(self, source: str, record: Any, reason: str) -> None:
    if (source, str(record)) not in self._told:
      self._told.add((source, str(record)))
      self._chunk.rejected.append((bring.by_url(source), str(record), bring.by_url(reason)))

  def check(self) -> None:
    pass


def _jpeg(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
  return buffer.getvalue()
