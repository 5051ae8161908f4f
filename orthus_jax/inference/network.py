"""What a running batch needs of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from orthus_jax.config import ModelConfig
from orthus_jax.inference import engine_state
from orthus_jax.inference.responses import Decoder
from orthus_jax.models.params import Params


class Network(NamedTuple):
  """What a running batch needs of a model.

  Attributes:
    graphdef, params: its structure and parameters.
    config: the model's.
    ids: of special tokens.
    text_V: bool, the ids of ordinary text.
    tokenizer: of its text.
    encode, decode: pictures to features [I, P, C], and back.
    codebook_KC: the codes' features.
  """

  graphdef: Any
  params: Params
  config: ModelConfig
  ids: engine_state.Ids
  text_V: np.ndarray
  tokenizer: Decoder
  encode: Callable[[Sequence[np.ndarray]], np.ndarray]
  decode: Callable[[Sequence[np.ndarray]], np.ndarray]
  codebook_KC: np.ndarray

  @property
  def on_one_cpu(self) -> bool:
    """Whether its parameters lie on one CPU device."""
    devices = {d for value in jax.tree.leaves(self.params)[:1] for d in value.devices()}
    return len(devices) == 1 and {d.platform for d in devices} == {"cpu"}
