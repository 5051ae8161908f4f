"""The VQGAN: pixels to patches of features and back.

Axes: B batch, H W pixels or places, P patches (row by row), C latent values, K codes. Pictures are channels-last,
in [-1, 1]. Source: Chameleon's image tokenizer: GroupNorm and swish, attention only in the middle,
downsampling padded on the right and at the bottom.
"""

from __future__ import annotations

from typing import Any

import einops
from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import VisionTokenizerConfig
from orthus_jax.models.params import param

_EPS = 1e-6


class Conv(nnx.Module):
  """A square convolution with bias, [H, W, in, out]; without `padding`, one of stride 2 pads right and bottom alone."""

  def __init__(
      self, inputs: int, outputs: int, *, size: int, rngs: nnx.Rngs, stride: int = 1, padding: int | None = None
  ):
    std = (inputs * size * size) ** -0.5
    kernel = std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (size, size, inputs, outputs))
    self.kernel = param(kernel, None, None, None, None)
    self.bias = param(jnp.zeros((outputs,)), None)
    self.stride = stride
    around = size // 2 if padding is None else padding
    self.padding = ((0, 1), (0, 1)) if stride == 2 and padding is None else ((around,) * 2,) * 2

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x_BHWC, self.kernel[...].astype(x_BHWC.dtype), (self.stride, self.stride), self.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y + self.bias[...].astype(x_BHWC.dtype)


class GroupNorm(nnx.Module):
  """Normalises each group of channels over the whole picture."""

  def __init__(self, channels: int, *, groups: int):
    self.scale = param(jnp.ones((channels,)), None)
    self.bias = param(jnp.zeros((channels,)), None)
    self.groups = groups

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    x = x_BHWC.astype(jnp.float32)

    def over_group(x_BHWC):  # places first, then the group's channels: XLA reduces whole rows of memory
      mean_BC = jnp.mean(x_BHWC, axis=(1, 2))
      mean_BG = jnp.mean(einops.rearrange(mean_BC, "B (G c) -> B G c", G=self.groups), axis=-1)
      return jnp.repeat(mean_BG, mean_BC.shape[-1] // self.groups, axis=-1)[:, None, None]

    x = x - over_group(x)
    gain = jax.lax.rsqrt(over_group(jnp.square(x)) + _EPS) * self.scale[...]
    return (x * gain + self.bias[...]).astype(x_BHWC.dtype)


class ResBlock(nnx.Module):
  """Two normed convolutions within a residual; a 1x1 convolution where the channels change."""

  def __init__(self, inputs: int, outputs: int, *, groups: int, rngs: nnx.Rngs):
    self.norm1 = GroupNorm(inputs, groups=groups)
    self.conv1 = Conv(inputs, outputs, size=3, rngs=rngs)
    self.norm2 = GroupNorm(outputs, groups=groups)
    self.conv2 = Conv(outputs, outputs, size=3, rngs=rngs)
    self.nin_shortcut = Conv(inputs, outputs, size=1, rngs=rngs) if inputs != outputs else None

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    h = self.conv1(jax.nn.silu(self.norm1(x_BHWC)))
    h = self.conv2(jax.nn.silu(self.norm2(h)))
    return h + (x_BHWC if self.nin_shortcut is None else self.nin_shortcut(x_BHWC))


class AttnBlock(nnx.Module):
  """Single-head attention among all places."""

  def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
    self.norm = GroupNorm(channels, groups=groups)
    self.q = Conv(channels, channels, size=1, rngs=rngs)
    self.k = Conv(channels, channels, size=1, rngs=rngs)
    self.v = Conv(channels, channels, size=1, rngs=rngs)
    self.proj_out = Conv(channels, channels, size=1, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    y = self.norm(x_BHWC)
    q, k, v = (einops.rearrange(f(y), "B H W C -> B (H W) C") for f in (self.q, self.k, self.v))
    logits_BPQ = jnp.einsum("BPC,BQC->BPQ", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    o_BPC = jnp.einsum("BPQ,BQC->BPC", jax.nn.softmax(logits_BPQ, axis=-1).astype(v.dtype), v)
    return x_BHWC + self.proj_out(o_BPC.reshape(x_BHWC.shape))


class Middle(nnx.Module):
  """Residual block, attention, residual block at the lowest resolution."""

  def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
    self.block_1 = ResBlock(channels, channels, groups=groups, rngs=rngs)
    self.attn_1 = AttnBlock(channels, groups=groups, rngs=rngs)
    self.block_2 = ResBlock(channels, channels, groups=groups, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    return self.block_2(self.attn_1(self.block_1(x_BHWC)))


class Level(nnx.Module):
  """The residual blocks of one resolution and the convolution that leaves it (None at the end)."""

  def __init__(self, inputs: int, outputs: int, *, blocks: int, groups: int, resample: Conv | None, rngs: nnx.Rngs):
    self.block = nnx.List(
        [ResBlock(inputs if i == 0 else outputs, outputs, groups=groups, rngs=rngs) for i in range(blocks)]
    )
    self.resample = resample

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    for block in self.block:
      x_BHWC = block(x_BHWC)
    return x_BHWC


class Encoder(nnx.Module):
  """Pixels to features at 1 / 2^(levels - 1) of the resolution."""

  def __init__(self, config: VisionTokenizerConfig, *, rngs: nnx.Rngs):
    c = config
    widths = [c.base_channels * m for m in c.channel_multipliers]
    self.conv_in = Conv(3, c.base_channels, size=3, rngs=rngs)
    levels, inputs = [], c.base_channels
    for i, width in enumerate(widths):
      down = Conv(width, width, size=3, stride=2, rngs=rngs) if i < len(widths) - 1 else None
      levels.append(Level(inputs, width, blocks=c.res_blocks, groups=c.norm_groups, resample=down, rngs=rngs))
      inputs = width
    self.down = nnx.List(levels)
    self.mid = Middle(inputs, groups=c.norm_groups, rngs=rngs)
    self.norm_out = GroupNorm(inputs, groups=c.norm_groups)
    self.conv_out = Conv(inputs, c.latent_dim, size=3, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    x = self.conv_in(x_BHWC)
    for level in self.down:
      x = level(x)
      x = x if level.resample is None else level.resample(x)
    return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
  """Features to pixels; the encoder's mirror with one more residual block per level."""

  def __init__(self, config: VisionTokenizerConfig, *, rngs: nnx.Rngs):
    c = config
    widths = [c.base_channels * m for m in c.channel_multipliers]
    inputs = widths[-1]
    self.conv_in = Conv(c.latent_dim, inputs, size=3, rngs=rngs)
    self.mid = Middle(inputs, groups=c.norm_groups, rngs=rngs)
    levels: list[Level] = []
    for i in reversed(range(len(widths))):
      up = Conv(widths[i], widths[i], size=3, rngs=rngs) if i > 0 else None
      level = Level(inputs, widths[i], blocks=c.res_blocks + 1, groups=c.norm_groups, resample=up, rngs=rngs)
      levels.insert(0, level)
      inputs = widths[i]
    self.up = nnx.List(levels)  # indexed by resolution, like the encoder's levels: 0 is the full one
    self.norm_out = GroupNorm(inputs, groups=c.norm_groups)
    self.conv_out = Conv(inputs, 3, size=3, rngs=rngs)

  def __call__(self, z_BHWC: jax.Array) -> jax.Array:
    x = self.mid(self.conv_in(z_BHWC))
    for level in reversed(list(self.up)):
      x = level(x)
      if level.resample is not None:
        x = level.resample(einops.repeat(x, "B H W C -> B (H h) (W w) C", h=2, w=2))
    return self.conv_out(jax.nn.silu(self.norm_out(x)))


class VisionTokenizer(nnx.Module):
  """Encoder, codebook and decoder (None where the config has none)."""

  def __init__(self, config: VisionTokenizerConfig, *, rngs: nnx.Rngs):
    c = config
    self.config = c
    self.encoder = Encoder(c, rngs=rngs)
    self.quant_conv = Conv(c.latent_dim, c.latent_dim, size=1, rngs=rngs)
    self.codebook = param(jax.random.normal(rngs.params(), (c.codes, c.latent_dim)), None, None)
    self.post_quant_conv = Conv(c.latent_dim, c.latent_dim, size=1, rngs=rngs)
    self.decoder: Any = Decoder(c, rngs=rngs) if c.decoder else None

  def encode(self, pixels_BHWC: jax.Array) -> jax.Array:
    """Unquantised features, [B, P, C] in fp32, patches row by row.

    Args:
      pixels_BHWC: pictures in [-1, 1], [B, R, R, 3].
    """
    z_BHWC = self.quant_conv(self.encoder(pixels_BHWC.astype(self.config.dtype)))
    return einops.rearrange(z_BHWC, "B H W C -> B (H W) C").astype(jnp.float32)

  def decode(self, features_BPC: jax.Array) -> jax.Array:
    """Pictures, about [-1, 1] and not clipped, from features or codes' rows."""
    z_BHWC = einops.rearrange(features_BPC, "B (H W) C -> B H W C", H=self.config.side).astype(self.config.dtype)
    return self.decoder(self.post_quant_conv(z_BHWC)).astype(jnp.float32)

  def quantise(self, features_BPC: jax.Array) -> jax.Array:
    """The nearest code of each patch, int32 [B, P]."""
    return jnp.argmin(squared_distances(features_BPC, self.codebook[...]), axis=-1)


def squared_distances(features: jax.Array, codebook_KC: jax.Array) -> jax.Array:
  """|v - c|^2 of every feature [..., C] to every code: [..., K], in fp32."""
  v = features.astype(jnp.float32)
  c = codebook_KC.astype(jnp.float32)
  cross = jnp.einsum("...C,KC->...K", v, c, precision=jax.lax.Precision.HIGHEST)
  return jnp.sum(v * v, axis=-1, keepdims=True) - 2.0 * cross + jnp.sum(c * c, axis=-1)
