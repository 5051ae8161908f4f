"""Attention: one entry point for training, one for a key-value cache.

Axes: B batch, T queries, S keys, N query heads, K key-value heads, G = N / K, H head size.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import einops
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from orthus_jax.models import attention_kernels as kernels, products, rounded_attention
from orthus_jax.parallel import sharded

RESIDUAL_NAME = kernels.RESIDUAL_NAME


def causal_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    segment_ids_BT: jax.Array,
    shared_ids_BT: jax.Array | None = None,
    last_BT: jax.Array | None = None,
    backend: str = "auto",
    block: int = 512,
    fused: bool = True,
) -> jax.Array:
  """Causal attention that stays within a segment; `last_BT` lets positions see some way ahead.

  On a mesh, each device attends for its own rows, heads and positions; where positions are split, it gathers the keys
  and values of the whole row.

  Args:
    q_BTNH: queries, rotated.
    k_BTKH: keys, rotated.
    v_BTKH: values.
    segment_ids_BT: documents of a packed row; positions of different ids don't see each other.
    shared_ids_BT: a second segment that each position sees; for backends that take a mask.
    last_BT: the row's last place that each position sees, for backends that take a mask; its own where this is left out.
    backend: see TransformerConfig.attention; every one honours segment ids.
    block: positions per tile of the kernels that have tiles, at most.
    fused: have a TPU's kernel compute all gradients at once; see TransformerConfig.attention_backward.

  Returns:
    [B, T, N, H] in the queries' dtype.

  Raises:
    BadRequest: if the backend can't run on the mesh's platform or can't take these shapes.
  """
  backend = kernels.choose(
      backend, platform=sharded.platform(), length=q_BTNH.shape[1], context=sharded.ways("positions"),
      head_dim=q_BTNH.shape[-1], dtype=q_BTNH.dtype, shared=shared_ids_BT is not None,
      ahead=last_BT is not None, capability=sharded.compute_capability(),
  )  # fmt: skip
  if backend == "splash":
    return kernels.splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, block=block, fused=fused)
  query = ("batch", "positions", "heads", None)
  keys = ("batch", "positions", "kv_heads", None)
  masks = {"segment": segment_ids_BT, "shared": shared_ids_BT, "last": last_BT}
  masks = {n: x for n, x in masks.items() if x is not None}

  def own(q_BTNH, k_BTKH, v_BTKH, *pieces):
    mine = dict(zip(masks, pieces))
    k_BSKH, v_BSKH, segment_BS = _whole(k_BTKH, v_BTKH, mine["segment"])
    seen_BTS = _seen(mine["segment"], segment_BS, mine.get("shared"))
    T, S = seen_BTS.shape[1:]
    if backend == "cudnn" and T == S and last_BT is None:  # it skips what lies ahead if told so other than by the mask
      return kernels.cudnn(q_BTNH, k_BSKH, v_BSKH, seen_BTS, causal=True)
    mask_BTS = seen_BTS & _not_beyond(T, S, mine.get("last"))
    if backend == "cudnn":
      return kernels.cudnn(q_BTNH, k_BSKH, v_BSKH, mask_BTS, causal=False)
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS)

  o_BTNH = sharded.per_device(own, (query, keys, keys, *[("batch", "positions")] * len(masks)), query)(
      q_BTNH, k_BTKH, v_BTKH, *masks.values()
  )
  return checkpoint_name(o_BTNH, RESIDUAL_NAME)


def _whole(k_BTKH: jax.Array, v_BTKH: jax.Array, segment_ids_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Keys, values and segment ids of all positions."""
  return tuple(sharded.gather(x, "positions", dimension=1) for x in (k_BTKH, v_BTKH, segment_ids_BT))


def _seen(segment_BT: jax.Array, segment_BS: jax.Array, shared_BT: jax.Array | None) -> jax.Array:
  """[B, T, S]: the segments that each of a device's positions sees, ahead or behind."""
  seen_BTS = segment_BT[:, :, None] == segment_BS[:, None, :]
  if shared_BT is not None:
    seen_BTS |= shared_BT[:, :, None] == segment_BS[:, None, :]
  return seen_BTS


def _not_beyond(T: int, S: int, last_BT: jax.Array | None) -> jax.Array:
  """[T, S] or [B, T, S]: what doesn't lie beyond the last place that each of a device's positions sees."""
  if last_BT is not None:
    return jnp.arange(S) <= last_BT[..., None]
  if T == S:
    return jnp.tril(jnp.ones((T, T), bool))
  return jnp.arange(S) <= (sharded.index("positions") * T + jnp.arange(T))[:, None]


def cached_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, last_BT: jax.Array) -> jax.Array:
  """Attention of new positions to a cache that already holds their own keys and values.

  Args:
    q_BTNH: queries, rotated.
    k_BSKH: cached keys, slot s holding position s.
    v_BSKH: cached values.
    last_BT: the last slot that each query sees.
  """
  mask_BTS = jnp.arange(k_BSKH.shape[1]) <= last_BT[:, :, None]
  return _attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS)


def _attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
  """Plain attention by XLA; the softmax in fp32 (see `rounded_attention` for where products' factors are rounded).

  Heads are moved ahead of positions, so that both products are stacks of plain matrices: XLA's CPU backend takes half
  the time for those.
  """
  q_BKGTH = einops.rearrange(q_BTNH, "B T (K G) H -> B K G T H", K=k_BSKH.shape[2]) * q_BTNH.shape[-1] ** -0.5
  G = q_BKGTH.shape[2]
  if G > 1:  # a query group shares its keys: fold it into the positions
    q_BKGTH = einops.rearrange(q_BKGTH, "B K G T H -> B K 1 (G T) H")
    mask_BTS = jnp.tile(mask_BTS, (1, G, 1))
  if products.for_cpu(q_BTNH):
    k_BKSH, v_BKSH = (einops.rearrange(x, "B S K H -> B K S H") for x in (k_BSKH, v_BSKH))
    out_BKTH = rounded_attention.attend(q_BKGTH[:, :, 0], k_BKSH, v_BKSH, mask_BTS)
    return einops.rearrange(out_BKTH, "B K (G T) H -> B T (K G) H", G=G)
  k_BK1HS = einops.rearrange(k_BSKH, "B S K H -> B K 1 H S")
  v_BK1SH = einops.rearrange(v_BSKH, "B S K H -> B K 1 S H")
  logits_BK1TS = jnp.matmul(q_BKGTH, k_BK1HS, preferred_element_type=jnp.float32)
  logits_BK1TS = jnp.where(mask_BTS[:, None, None], logits_BK1TS, rounded_attention.MASKED)
  weights_BK1TS = jax.nn.softmax(logits_BK1TS, axis=-1).astype(v_BSKH.dtype)
  out_BK1TH = jnp.matmul(weights_BK1TS, v_BK1SH)
  return einops.rearrange(out_BK1TH, "B K 1 (G T) H -> B T (K G) H", G=G)


def rope(x_BTNH: jax.Array, position_BT: jax.Array, *, theta: float) -> jax.Array:
  """Rotary positions, half-split form: value i turns with value i + H/2."""
  return rotate(x_BTNH, *angles(position_BT, x_BTNH.shape[-1], theta=theta))


def angles(position_BT: jax.Array, head_dim: int, *, theta: float) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of positions' angles, each [B, T, 1, H/2]."""
  half = head_dim // 2
  frequency_h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BT1h = (position_BT[..., None].astype(jnp.float32) * frequency_h)[:, :, None, :]
  return jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)


def looked_up(
    position_BT: jax.Array, head_dim: int, *, theta: float, positions: int
) -> Callable[[jax.Array], jax.Array]:
  """`rope` by a table of so many positions.

  XLA's CPU compiler works cosines out again in every layer and for every head, forwards and backwards, even if a program asks
  for them once, behind an optimization barrier (jax 0.10.2).
  """
  with jax.ensure_compile_time_eval():
    tables = [t[0] for t in angles(jnp.arange(positions)[None], head_dim, theta=theta)]
  cos_BT1h, sin_BT1h = (jnp.take(t, position_BT, axis=0, mode="clip") for t in tables)
  return functools.partial(rotate, cos_BT1h=cos_BT1h, sin_BT1h=sin_BT1h)


def rotate(x_BTNH: jax.Array, cos_BT1h: jax.Array, sin_BT1h: jax.Array) -> jax.Array:
  """`rope` by what `angles` gave."""
  # Halves are cast each: a TPU's compiler would else write the whole out in float32, here and in the gradient.
  a, b = (h.astype(jnp.float32) for h in jnp.split(x_BTNH, 2, axis=-1))
  halves = a * cos_BT1h - b * sin_BT1h, b * cos_BT1h + a * sin_BT1h
  return jnp.concatenate([h.astype(x_BTNH.dtype) for h in halves], axis=-1)
