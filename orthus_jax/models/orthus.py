"""Orthus: one backbone over text tokens and image features, with a head per modality.

Axes: B rows, T positions, M images a row, P patches an image, J = M * P patches a row, C latent values, D width,
V vocabulary, K codes, R resolution.
"""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.models import params as params_lib, quantized, vision_embedding
from orthus_jax.models.heads.diffusion import DiffusionHead
from orthus_jax.models.params import Axes, param
from orthus_jax.models.transformer import Transformer, dense
from orthus_jax.models.vision_tokenizer import VisionTokenizer
from orthus_jax.parallel import sharded


class Orthus(nnx.Module):
  """The whole model; its parts are attributes, so that a part can be trained, frozen or swapped by name."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    c, t, v = config, config.transformer, config.vision_tokenizer
    self.config = c
    embedding_VD = t.embedding_std * jax.random.normal(rngs.params(), (t.vocab_size, t.width))
    self.token_embedding = param(embedding_VD.astype(t.param_dtype), "vocab", "embed")
    self.vision_tokenizer = VisionTokenizer(v, rngs=rngs)
    self.vision_embedding = vision_embedding.KINDS[c.vision_embedding.kind](
        c.vision_embedding, codes=v.codes, latent_dim=v.latent_dim, patches=v.patches, width=t.width, std=t.embedding_std,
        rngs=rngs,
    )  # fmt: skip
    self.transformer = Transformer(t, lora=c.lora, rngs=rngs)
    lm_head_DV = t.width**-0.5 * jax.random.normal(rngs.params(), (t.width, t.vocab_size))
    self.lm_head = param(lm_head_DV.astype(t.param_dtype), "embed", "vocab")
    self.image_head = DiffusionHead(c.diffusion, latent_dim=v.latent_dim, width=t.width, dtype=t.dtype, rngs=rngs)

  def embed_features(self, features_BJC: jax.Array, *, patch_BJ: jax.Array | None = None) -> jax.Array:
    """Embeds image features: [B, J, D] in the compute dtype.

    Args:
      features_BJC: image features.
      patch_BJ: which patch of its picture each is, from 0; left out, they are whole pictures' in order.
    """
    if patch_BJ is None:
      patch_BJ = (jnp.arange(features_BJC.shape[1]) % self.config.vision_tokenizer.patches)[None]
    start = self.config.image_token_start
    rows_KD = self.token_embedding[...][start : start + self.config.vision_tokenizer.codes]
    rows_KD = sharded.constrain(rows_KD.astype(self.config.transformer.dtype), None, None)
    if self.config.transformer.remat == "none":
      return self.vision_embedding(features_BJC, rows_KD, patch_BP=patch_BJ)
    # A row's patches have J x K weights: at the published size, 128 MiB that are soon computed again.
    embed = jax.checkpoint(lambda module, features_BJC, rows_KD, at_BJ: module(features_BJC, rows_KD, patch_BP=at_BJ))
    return embed(self.vision_embedding, features_BJC, rows_KD, patch_BJ)

  def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
    """Embeds text tokens: [B, T, D] in the compute dtype."""
    table_VD = sharded.constrain(self.token_embedding[...].astype(self.config.transformer.dtype), "vocab", None)
    return jnp.take(table_VD, tokens_BT, axis=0)

  def embed(self, tokens_BT: jax.Array, *, features_BJC: jax.Array, slot_BT: jax.Array) -> jax.Array:
    """Embeds an interleaved row.

    Args:
      tokens_BT: token ids; whatever stands at image positions is not read.
      features_BJC: the row's image features.
      slot_BT: which of them stands at each position; -1 where a token does.
    """
    patches_BJD = self.embed_features(features_BJC)
    gathered_BTD = jnp.take_along_axis(patches_BJD, jnp.maximum(slot_BT, 0)[..., None], axis=1)
    return jnp.where((slot_BT >= 0)[..., None], gathered_BTD, self.embed_tokens(tokens_BT))

  def __call__(
      self,
      tokens_BT: jax.Array,
      *,
      features_BJC: jax.Array,
      slot_BT: jax.Array,
      position_BT: jax.Array,
      segment_ids_BT: jax.Array,
      shared_ids_BT: jax.Array | None = None,
  ) -> jax.Array:
    """States [B, T, D] after the final norm: what both heads read."""
    x_BTD = self.embed(tokens_BT, features_BJC=features_BJC, slot_BT=slot_BT)
    return self.transformer(
        x_BTD, position_BT=position_BT, segment_ids_BT=segment_ids_BT, shared_ids_BT=shared_ids_BT
    )

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., V] in fp32."""
    if self.config.transformer.merge_positions:
      return dense(hidden, self.lm_head[...], merge=True).astype(jnp.float32)
    kernel_DV, scale_1V = quantized.parts(self.lm_head[...], hidden.dtype)
    logits = jnp.matmul(hidden, kernel_DV, preferred_element_type=jnp.float32)
    return logits if scale_1V is None else logits * scale_1V[0]


@functools.lru_cache(maxsize=8)  # it takes a second or more, and is asked for by several readers of one checkpoint
def describe(config: ModelConfig) -> tuple[Any, dict[str, tuple[int, ...]], Axes]:
  """Structure of a model, and shapes and logical axes of its parameters by name; nothing is built."""
  graphdef, shapes, axes = params_lib.shapes_and_axes(lambda: Orthus(config, rngs=nnx.Rngs(params=0)))
  return graphdef, {n: tuple(s.shape) for n, s in shapes.items()}, axes


def compute_dtype(config: ModelConfig, name: str) -> str | None:
  """The dtype that a parameter is cast to wherever it is used; None where that is the one it is kept in."""
  parts = ("transformer/", "token_embedding", "lm_head", "image_head/")
  return config.transformer.dtype if name.startswith(parts) else None
