"""Whether documents and batches hold anything to learn."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from orthus_jax.config import Config
from orthus_jax.data.batch import Batch
from orthus_jax.errors import BadRequest

_log = logging.getLogger(__name__)


class IdleSteps:
  """Steps whose batch has nothing to learn: counted, and told of each time that there are twice as many."""

  def __init__(self) -> None:
    self.steps: set[int] = set()

  def add(self, step: int) -> None:
    if step not in self.steps:
      self.steps.add(step)
      if len(self.steps) & (len(self.steps) - 1) == 0:
        _log.warning("batches so far in which nothing is to be learnt: %d, the latest of step %d", len(self.steps), step)


def learns(config: Config, texts: Any, images: Any) -> Any:
  """Whether there is anything to learn.

  Args:
    config: the experiment; what has a loss of weight 0 isn't learnt.
    texts: how many text positions are to be learnt, a number or an array of them.
    images: how many pictures are, likewise.
  """
  model = config.model
  return (texts > 0) & (model.transformer.text_loss_weight > 0) | (images > 0) & (model.image_loss_weight > 0)


def batch_learns(config: Config, batch: Batch) -> bool:
  """Whether anything in these rows is to be learnt."""
  return bool(learns(config, np.count_nonzero(batch.text_weight_BT), np.count_nonzero(batch.learnt_image_BG >= 0)))


def check_learnt(learns_D: np.ndarray) -> None:
  """Raises BadRequest unless something is to be learnt in one of the documents that are drawn."""
  if not learns_D.any():
    raise BadRequest(
        f'none of the {len(learns_D)} documents has anything to learn: mark what is to be learnt with "learn": true'
        " (or leave the key out), and give its loss a weight: model.transformer.text_loss_weight for words,"
        " model.diffusion.loss_weight (of codes model.image_head.loss_weight) for pictures"
    )
