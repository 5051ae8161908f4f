"""From a source of Documents to packed batches, as a function of the step.

Axes of a batch: B rows, T positions, M images a row, G learnt images a row, P patches, C latent values, R resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import functools
import hashlib
from typing import NamedTuple, Protocol

import grain
import numpy as np

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib, packing
from orthus_jax.data.documents import Document, Image
from orthus_jax.data.sequence import Sequence, Tokenizer, layout, turns, unconditional
from orthus_jax.errors import BadRequest


class Source(Protocol):
  """Random access to Documents; a bad record is None."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Document | None: ...


class Batch(NamedTuple):
  """One step's rows, of static shapes.

  Attributes:
    tokens_BT: int32.
    targets_BT: int32, the token after each position.
    text_weight_BT: float32, what the LM head's prediction of `targets_BT` counts; 0 where it isn't learnt.
    position_BT: int32, from 0 within each document; a separate turn's go on from what the turns share.
    segment_ids_BT: int32, 1, 2, … per document, or per part of one (see `shared_ids_BT`); 0 is padding.
    slot_BT: int32, which patch of the row's M * P stands here; -1 for none.
    images: uint8 [B, M, R, R, 3] pixels, or float32 or bfloat16 [B, M, P, C] features.
    learnt_image_BG: int32, which image of the row is learnt; -1 in a row without any. Where a row has fewer than G, they take
      turns: an image that stands here n times counts once, with n times the draws.
    learnt_start_BG: int32, where that image's BOI stands.
    shared_ids_BT: int32, a second segment that a position sees: under `data.turns=separate`, what the turns of its document
      share. None where no position sees another segment than its own.
  """

  tokens_BT: np.ndarray
  targets_BT: np.ndarray
  text_weight_BT: np.ndarray
  position_BT: np.ndarray
  segment_ids_BT: np.ndarray
  slot_BT: np.ndarray
  images: np.ndarray
  learnt_image_BG: np.ndarray
  learnt_start_BG: np.ndarray
  shared_ids_BT: np.ndarray | None = None


class FeatureTable:
  """Each distinct picture once: pixels at first, features once they are computed."""

  def __init__(self):
    self.pixels: list[np.ndarray] = []
    self.features_IPC: np.ndarray | None = None
    self._index: dict[bytes, int] = {}

  def add(self, pixels: np.ndarray) -> int:
    """The picture's number; equal pictures share one."""
    key = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
    index = self._index.setdefault(key, len(self.pixels))
    if index == len(self.pixels):
      self.pixels.append(pixels)
    return index


class _Laid(NamedTuple):
  """A document laid out: with its caption, and with it dropped in one of the ways guidance needs."""

  id: str
  kind: str
  variants: tuple[Sequence, ...]
  images: tuple[tuple[int, ...], ...]


def empty_batch(config: Config, rows: int, *, pad: int, image_shape: tuple[int, ...], dtype: np.dtype) -> Batch:
  """Rows of padding; images are of `image_shape`, [R, R, 3] or [P, C]."""
  data = config.data
  T, G = data.sequence_length, data.learnt_images_per_row
  return Batch(
      tokens_BT=np.full((rows, T), pad, np.int32),
      targets_BT=np.full((rows, T), pad, np.int32),
      text_weight_BT=np.zeros((rows, T), np.float32),
      position_BT=np.zeros((rows, T), np.int32),
      segment_ids_BT=np.zeros((rows, T), np.int32),
      slot_BT=np.full((rows, T), -1, np.int32),
      images=np.zeros((rows, data.images_per_row, *image_shape), dtype),
      learnt_image_BG=np.full((rows, G), -1, np.int32),
      learnt_start_BG=np.zeros((rows, G), np.int32),
      shared_ids_BT=np.zeros((rows, T), np.int32) if data.turns == "separate" else None,
  )


def fill_row(
    out: Batch, b: int, documents: Iterable[tuple[Sequence, Iterable[np.ndarray]]], *, patches: int, power: float
) -> None:
  """Writes documents, each a sequence and its pictures (or their features), one after the other into a row of padding."""
  at, m, g, segment = 0, 0, 0, 1
  for s, pictures in documents:
    n, span = len(s), slice(at, at + len(s))
    out.tokens_BT[b, span] = s.tokens_T
    out.targets_BT[b, at : at + n - 1] = s.tokens_T[1:]
    out.text_weight_BT[b, at : at + n - 1] = _weights(s.learnt_length_T[1:], power)
    out.position_BT[b, span] = np.arange(n)
    out.segment_ids_BT[b, span] = segment
    if out.shared_ids_BT is not None:
      turn_T = turns(s, patches=patches)
      out.position_BT[b, span] = _turn_positions(turn_T)
      out.segment_ids_BT[b, span] += turn_T
      out.shared_ids_BT[b, span] = segment
      segment += turn_T.max()
    segment += 1
    for i, picture in enumerate(pictures):
      first = at + s.starts_I[i] + 1
      out.slot_BT[b, first : first + patches] = np.arange((m + i) * patches, (m + i + 1) * patches)
      out.images[b, m + i] = picture
      if s.learn_I[i]:
        out.learnt_image_BG[b, g] = m + i
        out.learnt_start_BG[b, g] = at + s.starts_I[i]
        g += 1
    at, m = at + n, m + len(s.learn_I)
  if g:  # the image head works on G images of each row anyway
    turn_G = np.arange(out.learnt_image_BG.shape[1]) % g
    out.learnt_image_BG[b], out.learnt_start_BG[b] = out.learnt_image_BG[b, turn_G], out.learnt_start_BG[b, turn_G]


def _turn_positions(turn_T: np.ndarray) -> np.ndarray:
  """Positions that start over, for each turn, after what the turns share."""
  starts_T = np.concatenate([[0], np.cumsum(np.bincount(turn_T))])[turn_T]  # where each position's turn begins
  return np.arange(len(turn_T)) - starts_T + np.where(turn_T > 0, np.sum(turn_T == 0), 0)


def prefetch(
    batch: Callable[[int], Batch], start: int, stop: int, *, threads: int = 1, buffer: int = 4
) -> Iterator[tuple[int, Batch]]:
  """(step, batch(step)) from `start` to `stop`, made ahead in the background."""
  steps = grain.MapDataset.range(start, stop).map(lambda step: (int(step), batch(int(step))))
  return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)))


def _weights(learnt_length_T: np.ndarray, power: float) -> np.ndarray:
  """length ** -power where a token is learnt, else 0."""
  learnt_T = learnt_length_T > 0
  return np.where(learnt_T, np.maximum(learnt_length_T, 1).astype(np.float32) ** -power, 0.0)


class Pipeline:
  """Packed batches of a source.

  Every document is read and laid out once, ahead; `batch(step)` then only copies.

  Args:
    source: of Documents.
    tokenizer: the text tokenizer.
    config: the experiment.
    progress: called with (documents done, documents in all).

  Raises:
    BadRequest: if no document fits a row.
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
    self.too_long: list[str] = []
    self.tokenizer = tokenizer
    data = config.data
    capacity = packing.Capacity(data.sequence_length, data.images_per_row, data.learnt_images_per_row)
    self._documents: list[_Laid] = []
    mixes = [(0, dict(data.kinds)), *((step, dict(kinds)) for step, kinds in data.later_kinds)]
    named = {kind for _, kinds in mixes for kind in kinds}
    wanted = {kind for _, kinds in mixes for kind, weight in kinds.items() if weight}
    everything = any(not kinds for _, kinds in mixes)
    seen: set[str] = set()
    for i in range(len(source)):
      document = source[i]
      if document is not None:
        seen.add(document.kind)
        if everything or document.kind in wanted:
          self._add(document, capacity)
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

  def _add(self, document: Document, capacity: packing.Capacity) -> None:
    laid = variants(document, self.tokenizer, self.config, dropped=self.config.data.caption_dropout > 0)
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
    shape, dtype = ((R, R, 3), np.uint8) if features is None else (features.shape[1:], np.float32)
    plan = self.plan.batch(step)
    plan = plan if rows is None else [plan[r] for r in rows]
    out = empty_batch(config, len(plan), pad=self.tokenizer.pad, image_shape=shape, dtype=dtype)
    for b, (epoch, row) in enumerate(plan):
      laid = [(self._documents[d], self._variants(epoch)[d]) for d in row]
      entries = ((d.variants[v], [table[i] for i in d.images[v]]) for d, v in laid)
      fill_row(out, b, entries, patches=vision.patches, power=config.data.text_length_power)
    return out

  def iterate(
      self, start: int, stop: int, rows: np.ndarray | None = None, *, threads: int = 1, buffer: int = 4
  ) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start` to `stop`, made ahead in the background."""
    return prefetch(lambda step: self.batch(step, rows), start, stop, threads=threads, buffer=buffer)


def variants(document: Document, tokenizer: Tokenizer, config: Config, *, dropped: bool) -> tuple[Sequence, ...]:
  """A document laid out: with its caption and, where `dropped`, without it in each way that guidance needs."""
  vision = config.model.vision_tokenizer
  fitted = Document(
      tuple(
          Image(images_lib.fit(s.pixels, vision.resolution, vision.pixels), s.learn) if isinstance(s, Image) else s
          for s in document.segments
      ),
      id=document.id, kind=document.kind,
  )  # fmt: skip
  documents = [fitted]
  if dropped and _asks_for_image(fitted):
    prompt = config.sampling.unconditional_prompt
    documents.append(unconditional(fitted, prompt))
    if any(isinstance(s, Image) for s in fitted.prompt().segments):
      documents.append(unconditional(fitted, prompt, keep_images=True))
  return tuple(layout(d, tokenizer, patches=vision.patches) for d in documents)


def _asks_for_image(document: Document) -> bool:
  """Whether the response opens with an image and a prompt stands before it: the documents that guidance is for."""
  prompt, response = document.prompt(), document.response()
  return bool(prompt.texts) and bool(response.segments) and isinstance(response.segments[0], Image)
