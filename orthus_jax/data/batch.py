"""What a training step is given: arrays of static shapes, filled a row at a time."""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
from typing import NamedTuple

import numpy as np

from orthus_jax.config import Config
from orthus_jax.data.sequence import Sequence, turns


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

  def __init__(self) -> None:
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

  def keys(self) -> list[bytes]:
    """A hash of each picture, by its number."""
    return list(self._index)


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


def _weights(learnt_length_T: np.ndarray, power: float) -> np.ndarray:
  """length ** -power where a token is learnt, else 0."""
  learnt_T = learnt_length_T > 0
  return np.where(learnt_T, np.maximum(learnt_length_T, 1).astype(np.float32) ** -power, 0.0)
