"""The regression head: the next patch's feature as the state's own prediction of it (the paper's ablation of diffusion).

The diffusion head's MLP without noise, steps and modulation. Axes: C latent values, D backbone width, W head width.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.models.heads.base import FeatureHead, Turn, mixed
from orthus_jax.models.heads.layers import Linear, layer_norm
from orthus_jax.models.params import param


class Block(nnx.Module):
  """x + MLP(LN(x))."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.norm_scale = param(jnp.ones((width,)), "head_width")
    self.norm_bias = param(jnp.zeros((width,)), "head_width")
    self.up = Linear(width, width, ("head_in", "head_width"), rngs=rngs)
    self.down = Linear(width, width, ("head_in", "head_width"), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    h = layer_norm(x) * self.norm_scale[...].astype(x.dtype) + self.norm_bias[...].astype(x.dtype)
    return x + self.down(jax.nn.silu(self.up(h)))


class RegressionHead(FeatureHead):
  """Predicts the feature by its mean, so what it draws is as smooth as its doubt is great."""

  zero_when_fresh = "output/kernel"

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    c, C, D = config.diffusion, config.vision_tokenizer.latent_dim, config.transformer.width
    self.config = c
    self.dtype = config.transformer.dtype
    self.condition = Linear(D, c.width, ("embed", "head_width"), rngs=rngs)
    self.blocks = nnx.List([Block(c.width, rngs=rngs) for _ in range(c.blocks)])
    self.output = Linear(c.width, C, ("head_in", None), rngs=rngs, std=0.0)

  @classmethod
  def products(cls, config: ModelConfig) -> dict[str, float]:
    c = config.diffusion
    head = 2 * c.blocks * c.width**2 + c.width * (config.vision_tokenizer.latent_dim + config.transformer.width)
    return {"all": float(head), "inputs": 0.0}

  def __call__(self, z: jax.Array) -> jax.Array:
    """The prediction, scaled as in training: [..., C] in fp32 for states [..., D]."""
    h = self.condition(z.astype(self.dtype))
    for block in self.blocks:
      h = block(h)
    return self.output(layer_norm(h)).astype(jnp.float32)

  def loss(self, z_D: jax.Array, feature_C: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of one position, in fp32; nothing is drawn."""
    return jnp.mean(jnp.square(self(z_D) - self.config.latent_scale * feature_C.astype(jnp.float32)), axis=-1)

  def merged_losses(self, z_BGPD: jax.Array, feature_BGPC: jax.Array, key_BGP: jax.Array) -> jax.Array:
    shape = key_BGP.shape[:3]
    z_JD, feature_JC = (x.reshape(-1, x.shape[-1]) for x in (z_BGPD, feature_BGPC))
    return self.loss(z_JD, feature_JC, key_BGP).reshape(shape)

  def next_feature(self, z_XD: jax.Array, turn: Turn) -> jax.Array:
    return mixed(self(z_XD), turn.mix_BX) / self.config.latent_scale
