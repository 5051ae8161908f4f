"""A discriminator that judges overlapping pieces of a picture each by itself.

Source: pix2pix' PatchGAN (Isola et al., 2017, arXiv 1611.07004) as VQGAN trains against it (Esser et al., 2021), with
GroupNorm in the place of BatchNorm, which would tie the pictures of a batch to each other.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.models.vision_tokenizer import Conv, GroupNorm

_GROUP = 16  # channels: of fewer, a small picture's last places would have no variance to speak of
_STRIDED = 3


class PatchDiscriminator(nnx.Module):
  """Pictures [B, H, W, 3] to logits [B, h, w], above 0 where a piece of about 50 pixels looks real.

  Args:
    channels: of the first convolution, a multiple of 8; the next ones double them.
  """

  def __init__(self, channels: int, *, rngs: nnx.Rngs):
    widths = [channels * 2**i for i in range(_STRIDED + 1)]
    self.conv_in = Conv(3, widths[0], size=4, stride=2, padding=1, rngs=rngs)
    self.conv = nnx.List(
        [Conv(a, b, size=4, stride=2, padding=1, rngs=rngs) for a, b in zip(widths, widths[1:_STRIDED])]
        + [Conv(widths[-2], widths[-1], size=3, rngs=rngs)]
    )
    self.norm = nnx.List([GroupNorm(width, groups=width // _GROUP) for width in widths[1:]])
    self.conv_out = Conv(widths[-1], 1, size=3, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    x = jax.nn.leaky_relu(self.conv_in(x_BHWC), 0.2)
    for conv, norm in zip(self.conv, self.norm):
      x = jax.nn.leaky_relu(norm(conv(x)), 0.2)
    return jnp.squeeze(self.conv_out(x), -1)
