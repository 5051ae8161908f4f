"""Which text token comes next. Axes: B rows, V vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_token(
    logits_BV: jax.Array,
    allowed_BV: jax.Array,
    key_B: jax.Array,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
) -> jax.Array:
  """Samples one token a row.

  Args:
    logits_BV: fp32.
    allowed_BV: bool; at least one token a row must be allowed.
    key_B: a random key per row, so that a row's draw doesn't depend on its neighbours.
    temperature: 0 is greedy.
    top_k: only the k likeliest; 0 means all.
    top_p: and of these the fewest that hold this much probability.

  Returns:
    int32 [B].
  """
  logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
  if temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / temperature
  if top_k:
    k = min(top_k, logits_BV.shape[-1])
    least_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
  if top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1) - jax.nn.softmax(sorted_BV, axis=-1)
    least_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
  return jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
