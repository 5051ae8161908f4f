"""Attention by the platforms' own kernels, and the choice among them.

Axes: as in `attention.py`. Sources: splash is jax.experimental.pallas.ops.tpu.splash_attention, cuDNN is reached by
jax.nn.dot_product_attention.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from orthus_jax.errors import BadRequest
from orthus_jax.parallel import sharded

_LANES = 128  # of a TPU's vector registers
RESIDUAL_NAME = "attention"  # what a remat policy calls an attention's results


def choose(
    backend: str, *, platform: str, length: int, context: int, head_dim: int, dtype: jnp.dtype, shared: bool = False,
    ahead: bool = False, capability: tuple[int, int] | None = None,
) -> str:
  """The backend to use: "xla", "splash" or "cudnn".

  Args:
    backend: what the config asks for; "auto" takes the platform's kernel if it can do these shapes, else "xla".
    platform: that the program will run on.
    length: positions a row.
    context: devices that share a row's positions.
    head_dim: values per head.
    dtype: of queries, keys and values.
    shared: whether positions see a second segment.
    ahead: whether some see ahead.
    capability: compute capability of the GPUs; None where it isn't known.

  Raises:
    BadRequest: if a named backend can't.
  """
  wrong = {"splash": _splash_wrong, "cudnn": _cudnn_wrong, "xla": lambda **_: None}
  facts = dict(platform=platform, length=length, context=context, head_dim=head_dim, dtype=dtype, capability=capability)
  if backend == "auto":
    backend = {"tpu": "xla" if shared or ahead else "splash", "gpu": "cudnn"}.get(platform, "xla")
    return backend if wrong[backend](**facts) is None else "xla"
  if shared and backend == "splash":
    raise BadRequest("model.transformer.attention=splash can't do data.turns=separate; set data.turns=sequence")
  if ahead and backend == "splash":
    raise BadRequest(
        "model.transformer.attention=splash can't do model.transformer.image_attention=full; set attention to auto"
    )
  if backend not in wrong:
    raise BadRequest(f"unknown attention backend {backend!r}: choose one of auto, {', '.join(sorted(wrong))}")
  problem = wrong[backend](**facts)
  if problem:
    raise BadRequest(f"model.transformer.attention={backend} {problem}; set it to auto")
  return backend


def _splash_wrong(*, platform: str, length: int, context: int, **_: Any) -> str | None:
  if platform == "gpu":
    return "is a kernel for TPUs"
  if length % (_LANES * context):
    return f"needs rows of a multiple of {_LANES * context} positions, not {length}"
  return None


def _cudnn_wrong(
    *, platform: str, length: int, context: int, head_dim: int, dtype: jnp.dtype, capability: tuple[int, int] | None
) -> str | None:
  if platform != "gpu":
    return f"is for NVIDIA GPUs, and this program is for {platform}"
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"computes in bfloat16, not in {jnp.dtype(dtype).name}"
  if capability and capability < (8, 0):
    return f"needs GPUs of compute capability 8.0 (Ampere) or newer, not {capability[0]}.{capability[1]}"
  # The gradients' limits (NVIDIA's support matrix of attention, cuDNN 9.18). jax knows those of GPUs before Hopper alone.
  most = 256 if capability is None or capability[0] == 9 else 128
  if head_dim % 8 or head_dim > most:
    where = f" on GPUs of compute capability {capability[0]}.{capability[1]}" if capability else ""
    return f"needs heads of a multiple of 8 and at most {most} values{where}, not {head_dim}"
  if length % (2 * context):
    return f"needs rows of a multiple of {2 * context} positions, not {length}"
  return None


def cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array, *, causal: bool
) -> jax.Array:
  """cuDNN's fused attention. It knows nothing of segment ids, so they come as a mask, which it adds to the logits."""
  return jax.nn.dot_product_attention(
      q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None], is_causal=causal, implementation="cudnn"
  )


def splash(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segment_ids_BT: jax.Array, *, block: int, fused: bool
) -> jax.Array:
  """The TPU's block-sparse flash attention; on a CPU it is interpreted, for tests.

  Where positions are split, each device's part of the causal mask differs; the kernel's description of the mask is an
  argument that is split like the queries.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

  T, context = q_BTNH.shape[1], sharded.ways("positions")
  heads = q_BTNH.shape[2] // sharded.ways("heads")
  kernel = _splash_kernel(T, heads, context, _block(T // context, block), fused, sharded.platform() == "cpu")
  leaves, structure = jax.tree.flatten(kernel)

  def own(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *leaves):
    kernel = jax.tree.unflatten(structure, leaves)
    k_BSKH, v_BSKH, segment_ids_BS = (
        sharded.gather(x, "positions", dimension=1) for x in (k_BTKH, v_BTKH, segment_ids_BT)
    )
    q_BNTH = (q_BTNH * q_BTNH.shape[-1] ** -0.5).swapaxes(1, 2)
    segments = splash_attention_kernel.SegmentIds(q=segment_ids_BT, kv=segment_ids_BS)
    o_BNTH = jax.vmap(kernel)(q_BNTH, k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2), segments)
    return o_BNTH.swapaxes(1, 2)

  query = ("batch", "positions", "heads", None)
  keys = ("batch", "positions", "kv_heads", None)
  # Tables of (heads, tiles of queries, tiles of keys), and the queries' places.
  mask = (("positions",) if leaf.ndim == 1 else (None, "positions", None) for leaf in leaves)
  return sharded.per_device(own, (query, keys, keys, ("batch", "positions"), *mask), query)(
      q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *leaves
  )


def _block(length: int, limit: int) -> int:
  """The largest tile of at most `limit` positions that divides a device's share of a row."""
  return max(b for b in range(_LANES, max(limit, _LANES) + 1, _LANES) if length % b == 0)


def _splash_kernel(T: int, heads: int, context: int, block: int, fused: bool, interpret: bool):
  # Imported here as Pallas takes a second to import, which a small run on a CPU can do without.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  sizes = splash_attention_kernel.BlockSizes(
      block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
      block_kv_dkv_compute=block, use_fused_bwd_kernel=fused, block_q_dq=None if fused else block,
      block_kv_dq=None if fused else block,
  )  # fmt: skip
  causal = splash_attention_mask.CausalMask((T, T), shard_count=context)
  return splash_attention_kernel.make_splash_mha(
      splash_attention_mask.MultiHeadMask([causal] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=context,
      residual_checkpoint_name=RESIDUAL_NAME, interpret=interpret,
  )  # fmt: skip
