"""LPIPS, version 0.1, on VGG-16: how unlike two pictures look.

Source: Zhang et al., 2018 (arXiv 1801.03924) and its `lpips` package: five taps of VGG-16, each place's channels scaled to
length 1, squared differences weighted by channel, mean over places, sum over taps.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.models.params import param
from orthus_jax.models.vision_tokenizer import Conv

# Channels of VGG-16's convolutions; the last output of each block is a tap, and a max pool stands between blocks.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and standard deviation, of pixels in [-1, 1].
_SHIFT = np.asarray([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.asarray([0.458, 0.448, 0.450], np.float32)
_EPS = 1e-8  # a place where nothing fires has a gradient of 0, not of NaN


class Perceptual(nnx.Module):
  """The distance of pictures, float32 [B], from pixels in [-1, 1], [B, H, W, 3]; sides of 16 pixels at least."""

  def __init__(self, *, rngs: nnx.Rngs):
    convs, inputs = [], 3
    for outputs in (c for block in BLOCKS for c in block):
      convs.append(Conv(inputs, outputs, size=3, rngs=rngs))
      inputs = outputs
    self.conv = nnx.List(convs)
    self.weight = nnx.List([param(jnp.zeros((block[-1],)), None) for block in BLOCKS])

  def __call__(self, a_BHWC: jax.Array, b_BHWC: jax.Array) -> jax.Array:
    distance_B = jnp.zeros(a_BHWC.shape[0], jnp.float32)
    for weight_C, a, b in zip(self.weight, self._taps(a_BHWC), self._taps(b_BHWC)):
      distance_B += jnp.mean(jnp.square(_unit(a) - _unit(b)) @ weight_C[...], axis=(1, 2))
    return distance_B

  def _taps(self, x_BHWC: jax.Array) -> list[jax.Array]:
    x, convs, taps = (x_BHWC - _SHIFT) / _SCALE, iter(self.conv), []
    for i, block in enumerate(BLOCKS):
      if i:
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
      for _ in block:
        x = jax.nn.relu(next(convs)(x))
      taps.append(x)
    return taps


def _unit(x_BHWC: jax.Array) -> jax.Array:
  return x_BHWC * jax.lax.rsqrt(jnp.sum(jnp.square(x_BHWC), axis=-1, keepdims=True) + _EPS)
