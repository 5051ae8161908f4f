"""Which token, or image code, comes next, each row by rules of its own. Axes: B rows, V vocabulary or codes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenSampling(NamedTuple):
  """How each row's tokens are sampled; all [B].

  Attributes:
    temperature: 0 is greedy.
    top_k: int32, only the k likeliest; 0 means all.
    top_p: and of these the fewest that hold this much probability.
    repetition_penalty: how much less likely what was said already becomes; 1 means nothing.
  """

  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  repetition_penalty: jax.Array

  @classmethod
  def greedy(cls, rows: int) -> TokenSampling:
    """The likeliest token always."""
    ones = jnp.ones(rows)
    return cls(temperature=0 * ones, top_k=jnp.zeros(rows, jnp.int32), top_p=ones, repetition_penalty=ones)


def sample_token(
    logits_BV: jax.Array, allowed_BV: jax.Array, key_B: jax.Array, how: TokenSampling, *, sampled: bool = True
) -> jax.Array:
  """Samples one token a row.

  Args:
    logits_BV: fp32.
    allowed_BV: bool; at least one token a row must be allowed.
    key_B: a random key per row, so that a row's draw doesn't depend on its neighbours.
    how: each row's rules.
    sampled: whether any row's temperature isn't 0, known when this is compiled.

  Returns:
    int32 [B].
  """
  logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
  best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  if not sampled:
    return best_B
  V = logits_BV.shape[-1]
  logits_BV = logits_BV / jnp.where(how.temperature > 0, how.temperature, 1.0)[:, None]

  def narrow(logits_BV: jax.Array) -> jax.Array:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    k_B = jnp.where(how.top_k > 0, jnp.minimum(how.top_k, V), V)
    # What lies beyond the k likeliest counts no more for the mass of probability.
    sorted_BV = jnp.where(jnp.arange(V) < k_B[:, None], sorted_BV, -jnp.inf)
    share_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    # Of a row that doesn't ask for it, rounding may make the sum 1 ahead of the last token.
    kept_BV = (before_BV < jnp.where(how.top_p < 1, how.top_p, jnp.inf)[:, None]) & (sorted_BV > -jnp.inf)
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)

  narrows = ((how.top_k > 0) | (how.top_p < 1)).any()
  logits_BV = jax.lax.cond(narrows, narrow, lambda x: x, logits_BV)
  drawn_B = jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
  return jnp.where(how.temperature > 0, drawn_B, best_B)


def repeat_less(logits_BV: jax.Array, said_BV: jax.Array, penalty_B: jax.Array) -> jax.Array:
  """Makes what was said less likely: a positive logit is divided by the penalty, a negative one multiplied.

  Source: Keskar et al., CTRL (arXiv 1909.05858), section 4.1, as it is commonly applied to logits of either sign.
  """
  penalty_B1 = penalty_B[:, None]
  less_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
  return jnp.where(said_BV, less_BV, logits_BV)
