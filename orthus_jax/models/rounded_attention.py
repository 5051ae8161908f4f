"""Attention of a training step whose products have factors in bfloat16 (see `products`), with gradients of its own.

What a CPU spends on attention is not its products but passes over matrices of scores, [T, S] a head: written in float32, read
for their maxima, written again as exponentials, and twice over in the gradient that is derived from all this. Here a pass takes
the scores to exponentials in bfloat16, which are the factors of what follows, and another takes their gradient to that of
the scores. The sums that weights are divided by, and all results, are float32.

Axes: B batch, K key-value heads, T queries, S keys, H head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from orthus_jax.models import products

MASKED = -1e30


@jax.custom_vjp
def attend(q_BKTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
  """[B, K, T, H] in float32: values weighted by the softmax of q · k where the mask holds; queries are scaled already.

  Each query must see something.
  """
  return _forward(q_BKTH, k_BKSH, v_BKSH, mask_BTS)[0]


def _forward(
    q_BKTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  q_NTH, k_NSH, v_NSH = (_stacked(x).astype(jnp.bfloat16) for x in (q_BKTH, k_BKSH, v_BKSH))
  scores_NTS = products.matmul(q_NTH, k_NSH, transposed=True)
  mask_NTS = _stacked(jnp.broadcast_to(mask_BTS[:, None], (*q_BKTH.shape[:3], k_BKSH.shape[2])))
  scores_NTS = jnp.where(mask_NTS, scores_NTS, MASKED)
  weights_NTS = jnp.exp(scores_NTS - jnp.max(scores_NTS, axis=-1, keepdims=True)).astype(jnp.bfloat16)
  sum_NT1 = jnp.sum(weights_NTS.astype(jnp.float32), axis=-1, keepdims=True)
  out_NTH = products.matmul(weights_NTS, v_NSH) / sum_NT1
  return out_NTH.reshape(q_BKTH.shape), (q_NTH, k_NSH, v_NSH, weights_NTS, sum_NT1, out_NTH)


def _backward(kept: tuple[jax.Array, ...], g_BKTH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
  q_NTH, k_NSH, v_NSH, weights_NTS, sum_NT1, out_NTH = kept
  g_NTH = _stacked(g_BKTH) / sum_NT1
  along_NT1 = jnp.sum(g_NTH * out_NTH, axis=-1, keepdims=True)
  to_weights_NTS = products.matmul(g_NTH, v_NSH, transposed=True)
  to_scores_NTS = (weights_NTS.astype(jnp.float32) * (to_weights_NTS - along_NT1)).astype(jnp.bfloat16)
  to_q_NTH = products.matmul(to_scores_NTS, k_NSH)
  to_k_NSH = _over_queries(to_scores_NTS, q_NTH)
  to_v_NSH = _over_queries(weights_NTS, g_NTH)
  heads = g_BKTH.shape[:2]
  return *(x.reshape(*heads, *x.shape[1:]) for x in (to_q_NTH, to_k_NSH, to_v_NSH)), None


def _stacked(x: jax.Array) -> jax.Array:
  """[B, K, …] as [B · K, …]."""
  return x.reshape(-1, *x.shape[2:])


def _over_queries(weights_NTS: jax.Array, x_NTH: jax.Array) -> jax.Array:
  """[N, S, H], summed over queries: the narrower factor is transposed, and the result."""
  x_NHT = jnp.swapaxes(x_NTH.astype(jnp.bfloat16), 1, 2)
  return jnp.swapaxes(products.matmul(products.apart(x_NHT), weights_NTS)[:, :-1], 1, 2)


attend.defvjp(_forward, _backward)
