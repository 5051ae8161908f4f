"""Muon for the matrices of layers: optax's momentum and orthogonalisation, updates scaled to the size of AdamW's.

optax.contrib.muon itself would train the other parameters too, by Adam with Nesterov momentum and a weight decay that
knows no mask.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from orthus_jax.models import products

_BETA = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, as in Keller Jordan's Muon
_ADAMW_RMS = 0.2  # of AdamW's updates (arXiv 2502.16982, Eq. 4), so that one learning rate serves both


def dimensions(name: str) -> MuonDimensionNumbers | None:
  """How Muon sees a parameter as a matrix (or a stack of them, one per layer); None leaves it to AdamW.

  Embeddings, the LM head, norms, biases, convolutions and the image head's first and last linear are AdamW's.
  """
  if re.search(r"attention/[qkv]$", name):
    return MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3))
  if name.endswith("attention/out"):
    return MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(3,))
  if re.search(r"mlp/(gate|up|down)$", name):
    return MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
  if re.search(r"image_head/(blocks/.*|condition|final_modulation|time_out)/kernel$", name):
    return MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1,))
  return None


def scaled_by_muon(*, iterations: int, eps: float) -> optax.GradientTransformation:
  """Gradients to orthogonalised momentum (Nesterov's) of AdamW's size; parameters that aren't matrices are masked out.

  Args:
    iterations: of Newton-Schulz.
    eps: is added to the norm that momentum is divided by.
  """
  rule, normed = (
      scale_by_muon(
          _COEFFICIENTS, ns_steps=n, beta=_BETA, eps=eps,
          weight_dimension_numbers=lambda updates: {n: dimensions(n) or optax.MaskedNode() for n in updates},
      )
      for n in (iterations, 0)
  )  # fmt: skip

  def update(updates, state, params=None):
    # optax keeps the coefficients in its state, which `optimizer.moment_dtype` may round.
    rounded = all(products.rounded(v) for v in updates.values() if isinstance(v, jax.Array))
    updates, new = (normed if rounded else rule).update(
        updates, state._replace(ns_coeffs=jnp.asarray(_COEFFICIENTS, jnp.float32)), params
    )
    if rounded:
      updates = {n: _orthogonalised(v, d, iterations) if (d := dimensions(n)) else v for n, v in updates.items()}
    scaled = {n: _scale(dims, updates[n]) * updates[n] if (dims := dimensions(n)) else updates[n] for n in updates}
    return scaled, new._replace(ns_coeffs=state.ns_coeffs)

  return optax.GradientTransformation(rule.init, update)


def _orthogonalised(x: jax.Array, dims: MuonDimensionNumbers, iterations: int) -> jax.Array:
  """A matrix of norm 1, or a stack of them, after Newton-Schulz in products of rounded factors."""
  rows, columns = (math.prod(x.shape[a] for a in axes) for axes in dims)
  x_LRC = x.reshape(-1, rows, columns)
  tall = rows > columns
  if tall:
    x_LRC = x_LRC.swapaxes(1, 2)
  a, b, c = _COEFFICIENTS
  one_RR = jnp.eye(min(rows, columns))
  for i in range(iterations):
    square_LRR = products.matmul(x_LRC, x_LRC, transposed=True)
    factor_LRR = a * one_RR + b * square_LRR + c * products.matmul(square_LRR, square_LRR)
    if tall and i == iterations - 1 and products.for_cpu(x):  # symmetric: the other way round, what is wide comes out tall
      x_LCR = products.apart(x_LRC.astype(jnp.bfloat16).swapaxes(1, 2))
      return products.matmul(x_LCR, factor_LRR)[:, :-1].reshape(x.shape)
    x_LRC = products.matmul(factor_LRR, x_LRC)
  # Without the barrier, XLA makes one product of the last and the transposition, and its CPU backend (jax 0.10.2, 0.12.0) has
  # none of factors in bfloat16 that both lie so: an error once it runs.
  return (jax.lax.optimization_barrier(x_LRC).swapaxes(1, 2) if tall else x_LRC).reshape(x.shape)


def _scale(dims: MuonDimensionNumbers, x: jax.Array) -> float:
  """An orthogonal matrix's values have a root mean square of one over the root of its longer side."""
  sides = [math.prod(x.shape[a] for a in axes) for axes in dims]
  return _ADAMW_RMS * math.sqrt(max(sides))
