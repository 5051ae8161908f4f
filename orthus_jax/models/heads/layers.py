"""What heads are made of."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import contextvars
import math

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.models import products, quantized
from orthus_jax.models.params import param

_accumulator: contextvars.ContextVar[jnp.dtype | None] = contextvars.ContextVar("accumulator", default=None)


@contextlib.contextmanager
def accumulated_in_fp32() -> Iterator[None]:
  """Products say so, as a TPU's kernels want it; elsewhere it is the backend's choice."""
  before = _accumulator.set(jnp.float32)
  try:
    yield
  finally:
    _accumulator.reset(before)


class Linear(nnx.Module):
  """x @ kernel + bias; Xavier-uniform unless `std` is given (0 makes it start as nothing)."""

  def __init__(self, inputs: int, outputs: int, axes: tuple, *, rngs: nnx.Rngs, std: float | None = None):
    if std is None:
      bound = math.sqrt(6.0 / (inputs + outputs))
      kernel = jax.random.uniform(rngs.params(), (inputs, outputs), minval=-bound, maxval=bound)
    else:
      kernel = std * jax.random.normal(rngs.params(), (inputs, outputs))
    self.kernel = param(kernel, *axes)
    self.bias = param(jnp.zeros((outputs,)), axes[1])

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel, scale = quantized.parts(self.kernel[...], x.dtype)
    if products.rounded(x):
      y = products.dot(x, kernel)
    else:
      y = jnp.matmul(x, kernel, preferred_element_type=_accumulator.get()).astype(x.dtype)
    return (y if scale is None else y * scale[0].astype(x.dtype)) + self.bias[...].astype(x.dtype)


def layer_norm(x: jax.Array) -> jax.Array:
  """Without scale and bias; computed in fp32."""
  x32 = x.astype(jnp.float32)
  x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
