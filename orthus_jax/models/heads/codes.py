"""Chameleon's image head: the next patch is a code, drawn from the LM head's logits over the codes' tokens.

It has no parameters of its own. Axes: B rows, K codes, X rows and then their guides.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.models.heads.base import ImageHead, Turn, mixed
from orthus_jax.models.samplers import TokenSampling, sample_token


class CodesHead(ImageHead):
  """Draws one code after the other; guidance is on logits."""

  of_codes = True
  has_parameters = False

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    pass

  def next_code(self, logits_XK: jax.Array, turn: Turn) -> jax.Array:
    """A code for each row, int32 [B], among its likeliest and at its temperature."""
    logits_BK = mixed(logits_XK, turn.mix_BX)
    ones_B = jnp.ones(len(logits_BK))
    how = TokenSampling(turn.temperature_B, turn.top_k_B, top_p=ones_B, repetition_penalty=ones_B)
    return sample_token(logits_BK, jnp.ones(logits_BK.shape, bool), turn.key_B, how)
