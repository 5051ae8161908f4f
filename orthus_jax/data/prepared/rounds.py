"""Rounds over prepared documents of several weights: in each, those of the largest weight, and of the others their share.

Axes: D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
import math

import numpy as np

_MOST = 16  # rounds
_MOST_DRAWN = 1 << 27  # documents of all rounds, half a GiB of numbers


def count(weights: np.ndarray, *, documents: int) -> int:
  """How many rounds it takes until a document of the smallest weight is drawn; fewer where they would be too many.

  Args:
    weights: above 0, the largest 1.
    documents: how many there are.
  """
  if not len(weights):
    return 1
  return max(1, min(math.ceil(1 / weights.min() - 1e-9), _MOST, _MOST_DRAWN // max(documents, 1)))


def orders(weight_D: np.ndarray, rounds: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
  """The documents of each round, shuffled.

  Args:
    weight_D: in [0, 1]; a document stands in this share of the rounds, as evenly as can be.
    rounds: how many.
    rng: what they are drawn by.
  """
  shift_D = 1 - rng.random(len(weight_D))
  for r in range(rounds):
    here_D = np.floor((r + 1) * weight_D + shift_D) > np.floor(r * weight_D + shift_D)
    yield rng.permutation(np.flatnonzero(here_D))
