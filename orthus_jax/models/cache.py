"""Keys and values of the positions so far.

Axes: L layers, X lanes, S slots, K key-value heads, H head size, B rows, T positions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from orthus_jax.config import TransformerConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Slot s of a lane holds its position s.

  Attributes:
    k_LXSKH, v_LXSKH: in the compute dtype, or int8.
    k_scale_LXSK, v_scale_LXSK: of int8 ones, float32: the largest magnitude of each head's values / 127; None for others.
  """

  k_LXSKH: jax.Array
  v_LXSKH: jax.Array
  k_scale_LXSK: jax.Array | None = None
  v_scale_LXSK: jax.Array | None = None

  @classmethod
  def empty(cls, config: TransformerConfig, *, batch: int, slots: int, int8: bool = False) -> Cache:
    """A cache of zeros for `batch` lanes of `slots` positions."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, jnp.int8 if int8 else config.dtype)
    scale = jnp.zeros(shape[:-1], jnp.float32) if int8 else None
    return cls(zeros, zeros, scale, scale)

  def put(self, l: jax.Array, lane_B1: jax.Array, position_BT: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Cache:
    """With new keys and values in a layer's slots; what is out of range is dropped."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
      return old.at[l, lane_B1, position_BT].set(new.astype(old.dtype), mode="drop")

    if self.k_scale_LXSK is None:
      return Cache(put(self.k_LXSKH, k_BTKH), put(self.v_LXSKH, v_BTKH))
    (k, k_scale), (v, v_scale) = _to_int8(k_BTKH), _to_int8(v_BTKH)
    return Cache(
        put(self.k_LXSKH, k), put(self.v_LXSKH, v), put(self.k_scale_LXSK, k_scale), put(self.v_scale_LXSK, v_scale)
    )

  def get(
      self, l: jax.Array, lane_B: jax.Array | None, window: int | None, *, dtype: jnp.dtype
  ) -> tuple[jax.Array, jax.Array]:
    """A layer's keys and values [B, S, K, H] in some lanes' first `window` slots."""

    def get(x: jax.Array, scale: jax.Array | None) -> jax.Array:
      x = x[l, :, :window]
      x = x if lane_B is None else jnp.take(x, lane_B, axis=0, mode="clip")
      if scale is None:
        return x.astype(dtype)
      return x.astype(dtype) * get(scale, None)[..., None].astype(dtype)

    return get(self.k_LXSKH, self.k_scale_LXSK), get(self.v_LXSKH, self.v_scale_LXSK)


def _to_int8(x_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
  x_BTKH = x_BTKH.astype(jnp.float32)
  scale_BTK = jnp.maximum(jnp.max(jnp.abs(x_BTKH), axis=-1), 1e-12) / 127.0
  return jnp.round(x_BTKH / scale_BTK[..., None]).astype(jnp.int8), scale_BTK
