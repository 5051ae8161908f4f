"""Weights in 8 bits, for generation: half of bfloat16's bytes to read at every position.

A kernel becomes int8 values and one scale an output, its largest magnitude / 127. As the scales are the outputs', they
multiply the product, which is computed from the values as they are (all of -127 … 127 is exact in bfloat16).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

# The kernels that are read at every position, by the ends of their names, each with the axes that are summed over.
_KERNELS = {
    "attention/q": (0,), "attention/k": (0,), "attention/v": (0,), "attention/out": (0, 1), "mlp/gate": (0,), "mlp/up": (0,),
    "mlp/down": (0,), "lm_head": (0,),
}  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """values * scale.

  Attributes:
    values: int8.
    scale: float32, of size 1 in the axes that are summed over.
  """

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  @property
  def sharding(self) -> jax.sharding.Sharding:
    return self.values.sharding

  @property
  def nbytes(self) -> int:
    return self.values.nbytes + self.scale.nbytes

  def __getitem__(self, key) -> Int8:
    """What a parameter's `[...]` gives."""
    assert key is Ellipsis, key
    return self

  def reshape(self, rows: int, outputs: int) -> Int8:
    """With the axes that are summed over merged into one."""
    return Int8(self.values.reshape(rows, outputs), self.scale.reshape(1, outputs))


def quantize(name: str, kernel: jax.Array) -> jax.Array | Int8:
  """A parameter in 8 bits, if it is one that is read at every position; otherwise as it is."""
  axes = next((a for end, a in _KERNELS.items() if name == end or name.endswith(f"/{end}")), None)
  if axes is None and name.startswith("image_head/") and name.endswith("/kernel"):
    axes = (0,)
  if axes is None:
    return kernel
  stacked = "/layers/" in name
  axes = tuple(a + stacked for a in axes)
  kernel = kernel.astype(jnp.float32)
  scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=axes, keepdims=True), 1e-12) / 127.0
  return Int8(jnp.round(kernel / scale).astype(jnp.int8), scale)


def parts(kernel: jax.Array | Int8, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
  """A kernel to multiply with, in `dtype`, and what to multiply the product with (None: nothing)."""
  if isinstance(kernel, Int8):
    return kernel.values.astype(dtype), kernel.scale
  return kernel.astype(dtype), None
