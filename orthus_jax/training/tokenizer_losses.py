"""What judges a vision tokenizer's pictures while it is trained, beside their pixels. It is no part of the tokenizer."""

from __future__ import annotations

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import PixelsConfig, TokenizerLossConfig, VisionTokenizerConfig
from orthus_jax.data.images import to_unit
from orthus_jax.models.discriminator import PatchDiscriminator
from orthus_jax.models.params import Params
from orthus_jax.models.perceptual import Perceptual
from orthus_jax.models.vision_tokenizer import VisionTokenizer

JUDGES = ("perceptual/", "discriminator/")  # names of parameters that whoever uses the vision tokenizer has no use for


class JudgedTokenizer(VisionTokenizer):
  """A vision tokenizer, with its names, and its judges beside it."""

  def __init__(self, config: VisionTokenizerConfig, loss: TokenizerLossConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.perceptual: Any = Perceptual(rngs=rngs) if loss.perceptual else None
    self.discriminator: Any = PatchDiscriminator(loss.discriminator_channels, rngs=rngs) if loss.adversarial else None


def without_judges(params: Params) -> Params:
  """The vision tokenizer's own parameters."""
  return {n: v for n, v in params.items() if not n.startswith(JUDGES)}


def perceptual(model: JudgedTokenizer, y_BHWC: jax.Array, x_BHWC: jax.Array) -> jax.Array:
  """LPIPS [B] of pictures as the model has them; of the second, no gradient is taken."""
  pixels: PixelsConfig = model.config.pixels
  x_BHWC = jax.lax.stop_gradient(x_BHWC)
  return model.perceptual(to_unit(y_BHWC, pixels), to_unit(x_BHWC, pixels))


def adversarial(model: JudgedTokenizer, y_BHWC: jax.Array, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The hinge losses of a reconstruction y of pictures x: (generator's, discriminator's), each [B].

  One backward pass of their sum serves both: the generator's reaches no parameter of the discriminator, the
  discriminator's nothing that made y.
  """
  structure, state = nnx.split(model.discriminator)
  fixed = nnx.merge(structure, jax.tree.map(jax.lax.stop_gradient, state))
  generator_B = -jnp.mean(fixed(y_BHWC), axis=(1, 2))
  real, fake = model.discriminator(jax.lax.stop_gradient(x_BHWC)), model.discriminator(jax.lax.stop_gradient(y_BHWC))
  hinges = jax.nn.relu(1.0 - real), jax.nn.relu(1.0 + fake)
  real_B, fake_B = (jnp.mean(h, axis=(1, 2)) for h in hinges)
  return generator_B, 0.5 * (real_B + fake_B)
