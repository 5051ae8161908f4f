"""The documents of a split in their order, and as the builder's features hold them; nothing here is slow to import."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import io
import json
from typing import Any

import numpy as np
import PIL.Image

from orthus_jax.data.documents import Document
from orthus_jax.data.shapes import records, world


@dataclasses.dataclass(frozen=True)
class Split:
  """What makes a split's documents.

  Attributes:
    name: one of world.SPLITS.
    sizes: documents of each kind.
    seed: of everything sampled.
    resolution: side of the pictures in pixels.
  """

  name: str
  sizes: Mapping[str, int]
  seed: int
  resolution: int

  def __len__(self) -> int:
    return sum(self.sizes.values())

  @functools.cached_property
  def _order(self) -> list[tuple[str, int]]:
    """Kind and number of each document, mixed evenly and for good, so that a reader that takes them in order sees all kinds."""
    kinds = [kind for kind in records.KINDS for _ in range(self.sizes.get(kind, 0))]
    order = np.random.default_rng((self.seed, world.SPLITS.index(self.name))).permutation(len(kinds))
    next_number = dict.fromkeys(records.KINDS, 0)
    found = []
    for place in order.tolist():
      found.append((kinds[place], next_number[kinds[place]]))
      next_number[kinds[place]] += 1
    return found

  def documents(self, first: int, end: int) -> list[Document]:
    """Those from `first` to `end` - 1."""
    return [
        records.make_document(kind, self.name, number, seed=self.seed, resolution=self.resolution)
        for kind, number in self._order[first:end]
    ]

  def records(self, first: int, end: int) -> list[dict[str, Any]]:
    """The same as the builder's features hold them."""
    return [to_record(d) for d in self.documents(first, end)]


def to_record(document: Document) -> dict[str, Any]:
  """A document as the builder's features hold it."""
  return {
      "id": document.id,
      "kind": document.kind,
      "segments": json.dumps([[getattr(s, "text", None), s.learn] for s in document.segments]),
      "images": [io.BytesIO(_png(image.pixels)) for image in document.images],
      "metadata": json.dumps(dict(document.meta)),
  }


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "png", compress_level=1)
  return buffer.getvalue()
