"""The backbone: Chameleon's causal transformer.

Axes: B batch, T positions, S cache slots, D width, F MLP width, N heads, K key-value heads, H head size, L layers.
Source: the released implementation; RMSNorm in fp32, cast back, then scaled; QK-norm (a LayerNorm over each
head's values, then a weight and bias per head) before the rotary positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from orthus_jax.config import LoraConfig, TransformerConfig
from orthus_jax.models import attention, lora as lora_lib, products, quantized, quantized_training, remat
from orthus_jax.models.cache import Cache
from orthus_jax.models.params import Keys, param
from orthus_jax.parallel import sharded


class RMSNorm(nnx.Module):
  """x / rms(x), computed in fp32, cast back, then scaled."""

  def __init__(self, width: int, *, eps: float, dtype: str):
    self.scale = param(jnp.ones((width,), dtype), "embed")
    self.eps = eps

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    x32 = x_BTD.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    return self.scale[...].astype(x_BTD.dtype) * x32.astype(x_BTD.dtype)


class HeadNorm(nnx.Module):
  """QK-norm: a LayerNorm over each head's values, then a weight and a bias per head and value."""

  def __init__(self, heads: int, head_dim: int, *, eps: float, dtype: str):
    self.scale = param(jnp.ones((heads, head_dim), dtype), "heads", "head_dim")
    self.bias = param(jnp.zeros((heads, head_dim), dtype), "heads", "head_dim")
    self.eps = eps

  def __call__(self, x_BTNH: jax.Array) -> jax.Array:
    x32 = x_BTNH.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    return x32.astype(x_BTNH.dtype) * self.scale[...].astype(x_BTNH.dtype) + self.bias[...].astype(x_BTNH.dtype)


def dense(
    x: jax.Array, kernel: jax.Array | quantized.Int8, *, merge: bool, quantization: str = "none"
) -> jax.Array:
  """x [..., D] times a kernel [D, ...], in x's dtype.

  Args:
    x: rows and positions in front.
    kernel: [D, ...]; cast to x's dtype.
    merge: flatten rows and positions ahead of the product (see TransformerConfig.merge_positions).
    quantization: of the product, in training (see TransformerConfig.quantization).
  """
  kernel, scale = quantized.parts(kernel, x.dtype)
  if merge:
    flat = dense(x.reshape(-1, x.shape[-1]), kernel.reshape(kernel.shape[0], -1), merge=False, quantization=quantization)
    y = flat.reshape(*x.shape[:-1], *kernel.shape[1:])
  elif quantization != "none":
    y = checkpoint_name(quantized_training.dot(x, kernel, quantization), quantized_training.PRODUCT_NAME)
  elif products.rounded(x):
    y = products.dot(x, kernel)
  else:
    y = jnp.tensordot(x, kernel, axes=1)
  return y if scale is None else y * scale[0].astype(x.dtype)


def adapted(
    module: nnx.Module, name: str, x: jax.Array, kernel: jax.Array | quantized.Int8, *, merge: bool, quantization: str
) -> jax.Array:
  """`dense`, and the share of the module's adapter of that name where it has one; their sum is never a kernel.

  The adapter's own products, few and all that is trained, aren't quantised.
  """
  y = dense(x, kernel, merge=merge, quantization=quantization)
  if (pair := lora_lib.adapter(module, name)) is None:
    return y
  a, b = pair
  low = dense(x, a.reshape(-1, a.shape[-1]), merge=merge)
  return y + dense(low * module.lora.scale, b, merge=merge)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: str) -> jax.Array:
  return (std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape)).astype(dtype)


class Attention(nnx.Module):
  """Grouped-query attention with QK-norm and rotary positions."""

  def __init__(self, config: TransformerConfig, *, lora: LoraConfig, rngs: nnx.Rngs):
    c = config
    init = functools.partial(_normal, rngs, dtype=c.param_dtype)
    std = c.width**-0.5
    self.q = param(init((c.width, c.heads, c.head_dim), std), "embed", "heads", "head_dim")
    self.k = param(init((c.width, c.kv_heads, c.head_dim), std), "embed", "kv_heads", "head_dim")
    self.v = param(init((c.width, c.kv_heads, c.head_dim), std), "embed", "kv_heads", "head_dim")
    out_std = (c.heads * c.head_dim * 2 * c.layers) ** -0.5
    self.out = param(init((c.heads, c.head_dim, c.width), out_std), "heads", "head_dim", "embed")
    self.q_norm = HeadNorm(c.heads, c.head_dim, eps=c.norm_eps, dtype=c.param_dtype)
    self.k_norm = HeadNorm(c.kv_heads, c.head_dim, eps=c.norm_eps, dtype=c.param_dtype)
    self.config = c
    self.lora = lora

  def project(
      self, x_BTD: jax.Array, rotate: Callable[[jax.Array], jax.Array], *, quantization: str
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H]; normed, then rotated by `rotate`."""
    merge = self.config.merge_positions
    # Named ahead of the norms, whose gradients need what they are given.
    q_BTNH, k_BTKH, v_BTKH = (
        checkpoint_name(adapted(self, n, x_BTD, getattr(self, n)[...], merge=merge, quantization=quantization), kept)
        for n, kept in (("q", "q"), ("k", "kv"), ("v", "kv"))
    )
    return rotate(self.q_norm(q_BTNH)), rotate(self.k_norm(k_BTKH)), v_BTKH

  def merge_heads(self, o_BTNH: jax.Array, *, quantization: str) -> jax.Array:
    """The output projection."""
    o_BTX = o_BTNH.reshape(*o_BTNH.shape[:2], -1)
    out_XD = self.out[...].reshape(-1, self.config.width)
    return adapted(self, "out", o_BTX, out_XD, merge=self.config.merge_positions, quantization=quantization)


class MLP(nnx.Module):
  """SwiGLU."""

  def __init__(self, config: TransformerConfig, *, lora: LoraConfig, rngs: nnx.Rngs):
    c = config
    init = functools.partial(_normal, rngs, dtype=c.param_dtype)
    self.gate = param(init((c.width, c.mlp_width), c.width**-0.5), "embed", "mlp")
    self.up = param(init((c.width, c.mlp_width), c.width**-0.5), "embed", "mlp")
    self.down = param(init((c.mlp_width, c.width), (c.mlp_width * 2 * c.layers) ** -0.5), "mlp", "embed")
    self.config = c
    self.lora = lora

  def __call__(self, x_BTD: jax.Array, *, quantization: str) -> jax.Array:
    def product(name: str, x: jax.Array) -> jax.Array:
      kernel, merge = getattr(self, name)[...], self.config.merge_positions
      return adapted(self, name, x, kernel, merge=merge, quantization=quantization)

    gate_BTF, up_BTF = (
        checkpoint_name(sharded.constrain(product(n, x_BTD), "batch", "positions", "mlp"), "mlp") for n in ("gate", "up")
    )
    hidden_BTF = products.gated(gate_BTF, up_BTF) if products.for_cpu(gate_BTF) else jax.nn.silu(gate_BTF) * up_BTF
    return product("down", hidden_BTF)


class Layer(nnx.Module):
  """Attention and MLP, each within a residual."""

  def __init__(self, config: TransformerConfig, *, lora: LoraConfig, rngs: nnx.Rngs):
    self.attention = Attention(config, lora=lora, rngs=rngs)
    self.mlp = MLP(config, lora=lora, rngs=rngs)
    self.attention_norm = RMSNorm(config.width, eps=config.norm_eps, dtype=config.param_dtype)
    self.mlp_norm = RMSNorm(config.width, eps=config.norm_eps, dtype=config.param_dtype)
    self.swin = config.norm_placement == "swin"
    lora_lib.attach(self, lora, rngs=rngs)  # last, so that all else starts as it does without them

  def _residual(self, x_BTD: jax.Array, norm: RMSNorm, f) -> jax.Array:
    return x_BTD + (norm(f(x_BTD)) if self.swin else f(norm(x_BTD)))

  def __call__(self, x_BTD: jax.Array, rotate, attend, *, quantization: str = "none") -> jax.Array:
    """`rotate(x)` gives queries and keys their positions, `attend(q, k, v)` is the attention itself: with or without a cache;
    `quantization` is of the products with weights."""

    def attention_part(y_BTD):
      qkv = self.attention.project(y_BTD, rotate, quantization=quantization)
      return self.attention.merge_heads(attend(*qkv), quantization=quantization)

    x_BTD = self._residual(x_BTD, self.attention_norm, attention_part)
    return self._residual(x_BTD, self.mlp_norm, functools.partial(self.mlp, quantization=quantization))


class Transformer(nnx.Module):
  """L layers, stacked along a leading axis and scanned over, and a final norm."""

  def __init__(self, config: TransformerConfig, *, lora: LoraConfig = LoraConfig(), rngs: nnx.Rngs):
    self.config = config
    keys = jax.random.split(rngs.params(), config.layers)
    self.layers = nnx.vmap(lambda key: Layer(config, lora=lora, rngs=Keys(key)))(keys)
    self.norm = RMSNorm(config.width, eps=config.norm_eps, dtype=config.param_dtype)

  def __call__(
      self,
      x_BTD: jax.Array,
      *,
      position_BT: jax.Array,
      segment_ids_BT: jax.Array,
      shared_ids_BT: jax.Array | None = None,
      last_BT: jax.Array | None = None,
  ) -> jax.Array:
    """States after the final norm of whole rows.

    Args:
      x_BTD: embedded tokens and patches.
      position_BT: within each document, from 0.
      segment_ids_BT: the document each position belongs to; a state sees its own document alone.
      shared_ids_BT: a second segment that each position sees, where there is one.
      last_BT: the row's last place that each position sees; its own where this is left out.

    Returns:
      [B, T, D] in the compute dtype.
    """
    c = self.config
    attend = functools.partial(
        attention.causal_attention, segment_ids_BT=segment_ids_BT, shared_ids_BT=shared_ids_BT, last_BT=last_BT,
        backend=c.attention, block=c.attention_block, fused=c.attention_backward == "fused",
    )  # fmt: skip

    if products.for_cpu(x_BTD):
      # Positions count within a document, so that none is beyond the row's length.
      rotate = attention.looked_up(position_BT, c.head_dim, theta=c.rope_theta, positions=x_BTD.shape[1])
    else:
      rotate = functools.partial(attention.rope, position_BT=position_BT, theta=c.rope_theta)

    def body(x_BTD, layer):
      x_BTD = checkpoint_name(sharded.constrain(x_BTD, "batch", "positions", None), "layer_input")
      return layer(x_BTD, rotate, attend, quantization=c.quantization), None

    if c.remat != "none":
      body = jax.checkpoint(body, policy=remat.policy(c.remat, quantization=c.quantization), prevent_cse=False)
    x_BTD = sharded.constrain(x_BTD.astype(c.dtype), "batch", "positions", None)
    x_BTD, _ = jax.lax.scan(body, x_BTD, self.layers, unroll=c.scan_unroll)
    return self.norm(x_BTD)

  def extend(
      self,
      x_BTD: jax.Array,
      cache: Cache,
      *,
      start_B: jax.Array,
      lane_B: jax.Array | None = None,
      last_BT: jax.Array | None = None,
      window: int | Sequence[int] | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Appends T positions to rows of a cache.

    Args:
      x_BTD: embedded new positions; those that a row doesn't need may hold anything, as nothing looks ahead and
        a later call overwrites their slots.
      cache: what came before.
      start_B: the place of each row's first new position. What would lie beyond the last slot is dropped.
      lane_B: which of the cache's rows each is, one beyond the last for none; all of them in order where it is left out.
      last_BT: the last place that each new position sees; its own where this is left out.
      window: slots that are looked at; all where it is left out. Of several, in rising order, the first that holds all there
        is.

    Returns:
      ([B, T, D] states after the final norm, the longer cache).
    """
    B, T, _ = x_BTD.shape
    position_BT = start_B[:, None] + jnp.arange(T)
    last_BT = position_BT if last_BT is None else last_BT
    lane_B1 = (jnp.arange(B) if lane_B is None else lane_B)[:, None]

    rotate = functools.partial(attention.rope, position_BT=position_BT, theta=self.config.rope_theta)
    if isinstance(window, Sequence):
      choice = jnp.searchsorted(jnp.asarray(window), jnp.max(last_BT) + 1)

    def body(carry, scanned):
      x_BTD, cache = carry
      layer, l = scanned
      longer = cache

      def attend(q_BTNH, k_BTKH, v_BTKH):
        nonlocal longer
        longer = cache.put(l, lane_B1, position_BT, k_BTKH, v_BTKH)

        def look(window: int | None) -> jax.Array:
          k_BSKH, v_BSKH = longer.get(l, lane_B, window, dtype=q_BTNH.dtype)
          return attention.cached_attention(q_BTNH, k_BSKH, v_BSKH, last_BT=last_BT)

        if window is None or isinstance(window, int):
          return look(window)
        return jax.lax.switch(choice, [functools.partial(look, w) for w in window])

      x_BTD = layer(x_BTD, rotate, attend)
      return (x_BTD, longer), None

    carry = (x_BTD.astype(self.config.dtype), cache)
    (x_BTD, cache), _ = jax.lax.scan(
        body, carry, (self.layers, jnp.arange(self.config.layers)), unroll=self.config.scan_unroll
    )
    return self.norm(x_BTD), cache
