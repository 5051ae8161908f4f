"""How an image feature enters the backbone: the paper's soft vector quantisation, and on request where it stands.

Axes: B batch, P patches, C latent values, K codes, D width.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import VisionEmbeddingConfig
from orthus_jax.models.params import param
from orthus_jax.models.vision_tokenizer import squared_distances


class SoftVQ(nnx.Module):
  """softmax(-|v - c|^2 / tau) over the codes, times the codes' rows of the token embedding (paper, section 3.2).

  With `config.patch_positions`, each patch of a picture has a learnt row of its own, which is added. (Not Orthus'.)
  """

  def __init__(
      self, config: VisionEmbeddingConfig, *, codes: int, latent_dim: int, patches: int, width: int, std: float, rngs: nnx.Rngs
  ):
    self.config = config
    self.codebook = param(jax.random.normal(rngs.params(), (codes, latent_dim)), "codes", None)
    if config.patch_positions:
      self.position_embedding = param(std * jax.random.normal(rngs.params(), (patches, width)), None, "embed")

  def __call__(self, features_BPC: jax.Array, embedding_KD: jax.Array, *, patch_BP: jax.Array) -> jax.Array:
    """Embeds features, unscaled.

    Args:
      features_BPC: from the vision tokenizer's encoder or from the image head.
      embedding_KD: the token embedding's rows of the image codes.
      patch_BP: which patch of its picture each is, from 0; [1, P] where all rows are alike.

    Returns:
      [B, P, D] in the embedding's dtype; distances and softmax are computed in fp32.
    """
    weights_BPK = jax.nn.softmax(
        -squared_distances(features_BPC, self.codebook[...]) / self.config.temperature, axis=-1
    )
    embedded_BPD = jnp.einsum("BPK,KD->BPD", weights_BPK.astype(embedding_KD.dtype), embedding_KD)
    if not self.config.patch_positions:
      return embedded_BPD
    return embedded_BPD + self.position_embedding[...].astype(embedded_BPD.dtype)[patch_BP]
