"""Chameleon's image head: the next patch is a code, drawn from the LM head's logits over the codes' tokens.

It has no parameters of its own. Axes: B rows, K codes, X rows and then their guides.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.models.heads.base import ImageHead, Turn, mixed


class CodesHead(ImageHead):
  """Draws one code after the other; guidance is on logits."""

  of_codes = True
  has_parameters = False

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    pass

  def next_code(self, logits_XK: jax.Array, turn: Turn) -> jax.Array:
    """A code for each row, int32 [B]."""
    return draw_codes(mixed(logits_XK, turn.mix_BX), turn.key_B, turn.temperature_B, turn.top_k_B)


def draw_codes(logits_BK: jax.Array, key_B: jax.Array, temperature_B: jax.Array, top_k_B: jax.Array) -> jax.Array:
  """Draws a code a row among its k likeliest (0: all) at its temperature (0: the likeliest): int32 [B]."""
  K = logits_BK.shape[-1]

  def narrow(logits_BK: jax.Array) -> jax.Array:
    k_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, K), K)
    sorted_BK = jnp.sort(logits_BK, axis=-1, descending=True)
    least_B1 = jnp.take_along_axis(sorted_BK, k_B[:, None] - 1, axis=-1)
    return jnp.where(logits_BK >= least_B1, logits_BK, -jnp.inf)

  logits_BK = jax.lax.cond((top_k_B > 0).any(), narrow, lambda x: x, logits_BK)
  scaled_BK = logits_BK / jnp.where(temperature_B > 0, temperature_B, 1.0)[:, None]
  drawn_B = jax.vmap(jax.random.categorical)(key_B, scaled_BK)
  return jnp.where(temperature_B > 0, drawn_B, jnp.argmax(logits_BK, axis=-1)).astype(jnp.int32)
