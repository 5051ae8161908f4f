"""How an image feature enters the backbone: by the paper's soft vector quantisation, or in one of the ways it is compared with.

Axes: B batch, P patches, C latent values, K codes, D width.
"""

from __future__ import annotations

import abc

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import VisionEmbeddingConfig
from orthus_jax.models import lookup
from orthus_jax.models.params import param
from orthus_jax.models.vision_tokenizer import squared_distances


class VisionEmbedding(nnx.Module):
  """What all ways have in common.

  With `config.projection`, a projection of the feature is added, and with `config.patch_positions` a learnt row that each patch
  of a picture has of its own. (Neither is Orthus'.)
  """

  def __init__(
      self, config: VisionEmbeddingConfig, *, codes: int, latent_dim: int, patches: int, width: int, std: float, rngs: nnx.Rngs
  ):
    self.config = config
    self._build(codes=codes, latent_dim=latent_dim, width=width, rngs=rngs)
    if config.projection:
      kernel_CD = std * latent_dim**-0.5 * jax.random.normal(rngs.params(), (latent_dim, width))
      self.projection_kernel = param(kernel_CD, None, "embed")
    if config.patch_positions:
      self.position_embedding = param(std * jax.random.normal(rngs.params(), (patches, width)), None, "embed")

  @abc.abstractmethod
  def _build(self, *, codes: int, latent_dim: int, width: int, rngs: nnx.Rngs) -> None:
    """Makes the parameters."""

  @abc.abstractmethod
  def _embed(self, features_BPC: jax.Array, embedding_KD: jax.Array) -> jax.Array:
    """[B, P, D], without what tells where a patch stands."""

  def __call__(self, features_BPC: jax.Array, embedding_KD: jax.Array, *, patch_BP: jax.Array) -> jax.Array:
    """Embeds features, unscaled.

    Args:
      features_BPC: from the vision tokenizer's encoder or from the image head.
      embedding_KD: the token embedding's rows of the image codes.
      patch_BP: which patch of its picture each is, from 0; [1, P] where all rows are alike.

    Returns:
      [B, P, D] in the embedding's dtype; distances and softmax are computed in fp32.
    """
    embedded_BPD = self._embed(features_BPC, embedding_KD)
    if self.config.projection:
      dtype = embedded_BPD.dtype
      embedded_BPD += features_BPC.astype(dtype) @ self.projection_kernel[...].astype(dtype)
    return self.placed(embedded_BPD, patch_BP)

  def placed(self, embedded_BPD: jax.Array, patch_BP: jax.Array) -> jax.Array:
    """With what tells where each patch stands."""
    if not self.config.patch_positions:
      return embedded_BPD
    return embedded_BPD + lookup.rows(self.position_embedding[...].astype(embedded_BPD.dtype), patch_BP)


class _OfCodes(VisionEmbedding):
  """Reads codes' rows of the token embedding, by a codebook of its own, which starts as the vision tokenizer's."""

  def _build(self, *, codes: int, latent_dim: int, width: int, rngs: nnx.Rngs) -> None:
    self.codebook = param(jax.random.normal(rngs.params(), (codes, latent_dim)), "codes", None)


class SoftVQ(_OfCodes):
  """softmax(-|v - c|^2 / tau) over the codes, times the codes' rows of the token embedding (paper, section 3.2)."""

  def _embed(self, features_BPC: jax.Array, embedding_KD: jax.Array) -> jax.Array:
    weights_BPK = jax.nn.softmax(
        -squared_distances(features_BPC, self.codebook[...]) / self.config.temperature, axis=-1
    )
    return jnp.einsum("BPK,KD->BPD", weights_BPK.astype(embedding_KD.dtype), embedding_KD)


class HardVQ(_OfCodes):
  """The row of the nearest code, as Chameleon has it; the codebook gets no gradient."""

  def _embed(self, features_BPC: jax.Array, embedding_KD: jax.Array) -> jax.Array:
    nearest_BP = jnp.argmin(squared_distances(features_BPC, self.codebook[...]), axis=-1)
    return lookup.rows(embedding_KD, nearest_BP)


class LinearEmbedding(VisionEmbedding):
  """A projection of the feature; the codes' rows aren't read."""

  def _build(self, *, codes: int, latent_dim: int, width: int, rngs: nnx.Rngs) -> None:
    kernel_CD = latent_dim**-0.5 * jax.random.normal(rngs.params(), (latent_dim, width))
    self.kernel = param(kernel_CD, None, "embed")
    self.bias = param(jnp.zeros((width,)), "embed")

  def _embed(self, features_BPC: jax.Array, embedding_KD: jax.Array) -> jax.Array:
    dtype = embedding_KD.dtype
    return features_BPC.astype(dtype) @ self.kernel[...].astype(dtype) + self.bias[...].astype(dtype)


KINDS: dict[str, type[VisionEmbedding]] = {"soft": SoftVQ, "argmin": HardVQ, "linear": LinearEmbedding}
