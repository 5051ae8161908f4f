"""Pictures without their documents, by number: what the vision tokenizer learns from."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
from typing import Any, Protocol

import numpy as np

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.batch import FeatureTable
from orthus_jax.data.documents import Source
from orthus_jax.errors import BadRequest


class Pictures(Protocol):
  """Distinct pictures, some of which may be held out of training: numbers below `trained` are those that aren't."""

  trained: int
  held_out: int

  def draw(self, places: np.ndarray) -> list[int]:
    """Which picture is shown at each place of the endless stream of training."""

  def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """uint8 [n, R, R, 3] of numbers below `trained`; those held out follow them."""

  def contents(self) -> dict[str, Any]:
    """How many, and a digest of them."""


class HeldOut:
  """Numbers of n pictures with some of them moved behind all others; the same ones whatever the seed of a run.

  Args:
    n: pictures.
    count: how many of them are held out.

  Raises:
    BadRequest: if none would be left.
  """

  def __init__(self, n: int, count: int):
    if count >= n:
      raise BadRequest(f"tokenizer_loss.held_out={count} leaves none of {n} pictures to train on: set it lower")
    self.trained, self.count = n - count, count
    self._held = np.sort(np.random.default_rng(0).choice(n, count, replace=False))
    # Trained pictures below each one held out.
    self._below = self._held - np.arange(count)

  def place(self, number: int) -> int:
    """Where the picture of a number lies among all."""
    if number >= self.trained:
      return int(self._held[number - self.trained])
    return int(number + np.searchsorted(self._below, number, side="right"))

  def before(self, place: int) -> int:
    """How many trained pictures lie before a place."""
    return place - int(np.searchsorted(self._held, place))


class PicturesInMemory:
  """The distinct pictures of a source's documents, each epoch in a fresh order.

  Raises:
    BadRequest: if no document holds any.
  """

  def __init__(self, config: Config, source: Source):
    self._seed, self._table = config.run.seed, FeatureTable()
    vision = config.model.vision_tokenizer
    for i in range(len(source)):
      document = source[i]
      for image in document.images if document is not None else ():
        self._table.add(images_lib.fit(image.pixels, vision.resolution, vision.pixels))
    if not self._table.pixels:
      raise BadRequest(f"none of the {len(source)} documents holds a picture: the vision tokenizer learns from pictures")
    self._split = HeldOut(len(self._table.pixels), config.tokenizer_loss.held_out)
    self.trained, self.held_out = self._split.trained, self._split.count
    self._pixels = np.stack(self._table.pixels)

  def draw(self, places: np.ndarray) -> list[int]:
    n = self.trained
    orders = {e: np.random.default_rng((self._seed, e)).permutation(n) for e in set(places // n)}
    return [orders[p // n][p % n] for p in places]

  def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    return self._pixels[[self._split.place(int(n)) for n in numbers]]

  def contents(self) -> dict[str, Any]:
    digest = hashlib.sha256(b"".join(self._table.keys()))
    return {"documents": len(self._pixels), "digest": digest.hexdigest()}
