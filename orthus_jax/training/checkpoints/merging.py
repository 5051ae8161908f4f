"""Adapters added to their weights, a piece at a time, as a checkpoint is exported."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import numpy as np
import tensorstore as ts

from orthus_jax.config import LoraConfig
from orthus_jax.models import lora


@dataclasses.dataclass(frozen=True)
class Merging:
  """What one stacked weight's adapter adds to it.

  Attributes:
    a: [layers, inputs, R] float32, multiplied by alpha / R; several axes of inputs where the weight has them.
    b: [layers, R, outputs] float32, likewise.
  """

  a: np.ndarray
  b: np.ndarray

  @classmethod
  def read(cls, handles: Mapping[str, ts.TensorStore], name: str, config: LoraConfig) -> Merging:
    """The adapter of a weight of a checkpoint."""
    a, b = (handles[n].read(order="C").result().astype(np.float32) for n in lora.names_of(name))
    return cls(config.scale * a, b)

  def piece(self, layers: slice, order: tuple[int, ...], begin: int, rows: int) -> np.ndarray:
    """What is added to a piece of the weight.

    Args:
      layers: of the piece.
      order: of a layer's axes in the piece, by their places in the weight.
      begin, rows: of the piece along the first of these axes.

    Returns:
      [layers, *axes in that order] float32.
    """
    a, b, axis = self.a[layers], self.b[layers], order[0] + 1
    inputs = a.ndim - 2
    if axis <= inputs:
      a = np.take(a, range(begin, begin + rows), axis=axis)
    else:
      b = np.take(b, range(begin, begin + rows), axis=axis - inputs + 1)
    L, R = a.shape[0], a.shape[-1]
    product = (a.reshape(L, -1, R) @ b.reshape(L, R, -1)).reshape(*a.shape[:-1], *b.shape[2:])
    return product.transpose(0, *(x + 1 for x in order))
