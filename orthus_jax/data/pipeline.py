"""From a source of Documents to packed batches, as a function of the step.

Axes of a batch: B rows, T positions, M images a row, G learnt images a row, P patches, C latent values, R resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np

from orthus_jax.config import Config
from orthus_jax.data import packing
from orthus_jax.data.batch import Batch, FeatureTable, empty_batch, fill_row
from orthus_jax.data.documents import Document, Source, in_order
from orthus_jax.data.learnt import IdleSteps, batch_learns, check_learnt, learns
from orthus_jax.data.sequence import Sequence, Tokenizer
from orthus_jax.data.variants import variants
from orthus_jax.data.windows import windows
from orthus_jax.errors import BadRequest


def prefetch(
    batch: Callable[[int], Batch], start: int, stop: int, *, threads: int = 1, buffer: int = 4
) -> Iterator[tuple[int, Batch]]:
  """(step, batch(step)) from `start` to `stop`, made ahead in the background."""
  steps = grain.MapDataset.range(start, stop).map(lambda step: (int(step), batch(int(step))))
  return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)))


class _Laid(NamedTuple):
  """A document laid out: with its caption, and with it dropped in one of the ways guidance needs."""

  id: str
  kind: str
  variants: tuple[Sequence, ...]
  images: tuple[tuple[int, ...], ...]


class _Remembering:
  """A tokenizer that keeps what it made of the latest short texts: 50 MB of them at most."""

  def __init__(self, tokenizer: Tokenizer):
    self.bos, self.pad, self.sep = tokenizer.bos, tokenizer.pad, tokenizer.sep
    self.boi, self.eoi, self.image = tokenizer.boi, tokenizer.eoi, tokenizer.image
    self._tokenizer, self._short = tokenizer, functools.lru_cache(1 << 14)(tokenizer.encode)

  def encode(self, text: str) -> list[int]:
    """As the tokenizer's."""
    return self._short(text) if len(text) <= 256 else self._tokenizer.encode(text)

  def digest(self) -> str:
    """As the tokenizer's."""
    return self._tokenizer.digest()

  def save(self, directory: str | os.PathLike) -> Path:
    """As the tokenizer's."""
    return self._tokenizer.save(directory)


class Pipeline:
  """Packed batches of a source.

  Every document is read and laid out once, ahead; `batch(step)` then only copies.

  Args:
    source: of Documents.
    tokenizer: the text tokenizer.
    config: the experiment.
    progress: called with (documents done, documents in all).

  Attributes:
    bad: how many documents of the source can't be read.
    too_long: names of those that fit no row, which are left out.
    idle: names of those that have nothing to learn.

  Raises:
    BadRequest: if no document fits a row, or none has anything to learn.
  """

  def __init__(
      self,
      source: Source,
      tokenizer: Tokenizer,
      config: Config,
      *,
      progress: Callable[[int, int], None] | None = None,
  ):
    self.config = config
    self.table = FeatureTable()
    self.bad, self.too_long = 0, list[str]()
    self._idle_steps = IdleSteps()
    self.tokenizer = tokenizer
    data = config.data
    capacity = packing.Capacity(data.sequence_length, data.images_per_row, data.learnt_images_per_row)
    self._documents: list[_Laid] = []
    mixes = [(0, dict(data.kinds)), *((step, dict(kinds)) for step, kinds in data.later_kinds)]
    named = {kind for _, kinds in mixes for kind in kinds}
    wanted = {kind for _, kinds in mixes for kind, weight in kinds.items() if weight}
    everything = any(not kinds for _, kinds in mixes)
    seen: set[str] = set()
    remembering = _Remembering(tokenizer)  # a document's variants share their texts, and short ones come again anywhere
    for i, document in enumerate(in_order(source)):
      if document is not None:
        seen.add(document.kind)
        if everything or document.kind in wanted:
          for piece in windows(document, data.images_per_document):
            self._add(piece, capacity, remembering)
      else:
        self.bad += 1
      if progress and (i + 1) % 512 == 0:
        progress(i + 1, len(source))
    strange = sorted(named - seen)
    if strange:
      raise BadRequest(f"data.kinds names {strange[0]!r}; this source has {', '.join(sorted(seen))}")
    if not self._documents:
      raise BadRequest(
          f"none of the {len(source)} documents fits a row of {data.sequence_length} positions, {data.images_per_row}"
          f" images and {data.learnt_images_per_row} learnt images: raise data.sequence_length or the images per row"
      )
    first = [d.variants[0] for d in self._documents]
    self._learns_D = np.asarray([learns(config, s.learn_T.sum(), s.learn_I.sum()) for s in first])
    self.idle = [d.id for d, learnt in zip(self._documents, self._learns_D) if not learnt]
    # Asked for at every step, and the same throughout an epoch.
    self._variants = functools.lru_cache(maxsize=2)(self._draw_variants)
    self._epoch_sizes = functools.lru_cache(maxsize=2)(self._draw_sizes)
    self._sizes_DV3 = [np.asarray([s.size for s in d.variants]) for d in self._documents]
    self.plan = packing.StagedPlan([
        (step, packing.Plan(
            self._epoch_sizes, weights_D=self._weights(kinds), capacity=capacity, batch_size=config.run.batch_size,
            seed=config.run.seed, first_epoch=stage * packing.EPOCHS_A_STAGE,
        ))
        for stage, (step, kinds) in enumerate(mixes)
    ])  # fmt: skip

  def _add(self, document: Document, capacity: packing.Capacity, tokenizer: Tokenizer) -> None:
    laid = variants(document, tokenizer, self.config, dropped=self.config.data.caption_dropout > 0)
    if any((np.asarray(v.size) > capacity.vector()).any() for v in laid):
      self.too_long.append(document.id)
      return
    images = tuple(tuple(self.table.add(i.pixels) for i in v.images) for v in laid)
    light = tuple(Sequence(v.tokens_T, v.learnt_length_T, v.image_T, v.starts_I, v.learn_I, ()) for v in laid)
    self._documents.append(_Laid(document.id, document.kind, light, images))

  def _weights(self, kinds: dict[str, float]) -> np.ndarray:
    """How often each document is drawn in an epoch of a mix; 1 for the likeliest."""
    weights = np.asarray([kinds.get(d.kind, 0.0) if kinds else 1.0 for d in self._documents], np.float64)
    if not weights.any():
      raise BadRequest("data.kinds gives no document that fits a row a weight above 0: raise data.sequence_length")
    check_learnt(self._learns_D[weights > 0])
    return weights / weights.max()

  def _draw_variants(self, epoch: int) -> np.ndarray:
    """Which variant of each document an epoch shows: 0, its own caption, but for the dropped share."""
    rng = np.random.default_rng((self.config.run.seed, epoch, 1))
    dropped = rng.random(len(self._documents)) < self.config.data.caption_dropout
    which = rng.integers(0, 1 << 30, len(self._documents))
    counts = np.asarray([len(d.variants) for d in self._documents])
    return np.where(dropped & (counts > 1), 1 + which % np.maximum(counts - 1, 1), 0)

  def _draw_sizes(self, epoch: int) -> np.ndarray:
    return np.stack([sizes[v] for sizes, v in zip(self._sizes_DV3, self._variants(epoch))])

  def __len__(self) -> int:
    return len(self._documents)

  def contents(self) -> dict[str, Any]:
    """What all batches are made of: how many documents, and a digest of their tokens and pictures, in their order.

    Not of their names, nor of where they lie.
    """
    digest, keys = hashlib.sha256(), self.table.keys()
    for d in self._documents:
      s = d.variants[0]
      numbers = [s.tokens_T, s.learnt_length_T, s.starts_I, s.learn_I]
      digest.update(json.dumps([d.kind, *map(len, numbers)]).encode())
      for n in numbers:
        digest.update(np.asarray(n, np.int32).tobytes())
      digest.update(b"".join(keys[i] for i in d.images[0]))
    return {"documents": len(self), "digest": digest.hexdigest()}

  def document_ids(self, step: int) -> list[str]:
    """The documents of a step's batch, row by row."""
    return [self._documents[d].id for _, row in self.plan.batch(step) for d in row]

  def tokens(self, step: int) -> int:
    """Positions of a step's global batch that hold something; from the plan alone."""
    return sum(int(self._epoch_sizes(epoch)[row, 0].sum()) for epoch, row in self.plan.batch(step))

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The global batch of a step, or some of its rows alone."""
    config, vision = self.config, self.config.model.vision_tokenizer
    features = self.table.features_IPC
    table = self.table.pixels if features is None else features
    R = vision.resolution
    shape, dtype = ((R, R, 3), np.dtype(np.uint8)) if features is None else (features.shape[1:], np.dtype(np.float32))
    plan = self.plan.batch(step)
    whole, plan = plan, plan if rows is None else [plan[r] for r in rows]
    out = empty_batch(config, len(plan), pad=self.tokenizer.pad, image_shape=shape, dtype=dtype)
    for b, (epoch, row) in enumerate(plan):
      laid = [(self._documents[d], self._variants(epoch)[d]) for d in row]
      entries = ((d.variants[v], [table[i] for i in d.images[v]]) for d, v in laid)
      fill_row(out, b, entries, patches=vision.patches, power=config.data.text_length_power)
    if not batch_learns(config, out) and not any(self._learns_D[row].any() for _, row in whole):
      self._idle_steps.add(step)
    return out

  def iterate(
      self, start: int, stop: int, rows: np.ndarray | None = None, *, threads: int = 1, buffer: int = 4
  ) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start` to `stop`, made ahead in the background."""
    return prefetch(lambda step: self.batch(step, rows), start, stop, threads=threads, buffer=buffer)
