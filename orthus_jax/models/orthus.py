"""Orthus: one backbone over text tokens and image features, with a head per modality. (With other parts, other systems of the
paper: see `systems.py`.)

Axes: B rows, T positions, M images a row, P patches an image, J = M * P patches a row, C latent values, D width,
V vocabulary, K codes, R resolution, X rows of a running batch and then their guides.
"""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.models import lookup, params as params_lib, products, quantized, systems, vision_embedding
from orthus_jax.models.heads.base import Turn
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
    self.image_head = systems.image_head(c)(c, rngs=rngs)

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
    return lookup.rows(table_VD, tokens_BT)

  def hide(self, patches_BJD: jax.Array, hidden_BJ: jax.Array) -> jax.Array:
    """Embedded patches of whole pictures, with the head's own embedding in the place of those that are hidden."""
    patch_1J = (jnp.arange(patches_BJD.shape[1]) % self.config.vision_tokenizer.patches)[None]
    hidden_11D = self.image_head.hidden_embedding[...].astype(patches_BJD.dtype)[None, None]
    return jnp.where(hidden_BJ[..., None], self.vision_embedding.placed(hidden_11D, patch_1J), patches_BJD)

  def embed(
      self, tokens_BT: jax.Array, *, features_BJC: jax.Array, slot_BT: jax.Array, hidden_BJ: jax.Array | None = None
  ) -> jax.Array:
    """Embeds an interleaved row.

    Args:
      tokens_BT: token ids; whatever stands at image positions is not read.
      features_BJC: the row's image features.
      slot_BT: which of them stands at each position; -1 where a token does.
      hidden_BJ: bool, features that the model isn't to see, for heads that hide some.
    """
    patches_BJD = self.embed_features(features_BJC)
    if hidden_BJ is not None:
      patches_BJD = self.hide(patches_BJD, hidden_BJ)
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
      hidden_BJ: jax.Array | None = None,
  ) -> jax.Array:
    """States [B, T, D] after the final norm: what both heads read."""
    x_BTD = self.embed(tokens_BT, features_BJC=features_BJC, slot_BT=slot_BT, hidden_BJ=hidden_BJ)
    last_BT = None
    if self.config.transformer.image_attention == "full":
      last_BT = last_seen(slot_BT, jnp.arange(slot_BT.shape[1])[None], self.config.vision_tokenizer.patches)
    return self.transformer(
        x_BTD, position_BT=position_BT, segment_ids_BT=segment_ids_BT, shared_ids_BT=shared_ids_BT, last_BT=last_BT
    )

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Next-token logits [..., V] in fp32."""
    merge = self.config.transformer.merge_positions
    if merge and hidden.dtype == jnp.float32:
      return dense(hidden, self.lm_head[...], merge=True)
    kernel_DV, scale_1V = quantized.parts(self.lm_head[...], hidden.dtype)
    hidden_XD = hidden.reshape(-1, hidden.shape[-1]) if merge else hidden
    logits = jnp.matmul(hidden_XD, kernel_DV, preferred_element_type=jnp.float32).reshape(*hidden.shape[:-1], -1)
    return logits if scale_1V is None else logits * scale_1V[0]

  def code_logits(self, hidden: jax.Array) -> jax.Array:
    """The LM head's logits of the image codes' tokens alone: [..., K] in fp32."""
    kernel_DV, scale_1V = quantized.parts(self.lm_head[...], hidden.dtype)
    codes = slice(self.config.image_token_start, self.config.image_token_start + self.config.vision_tokenizer.codes)
    if products.rounded(hidden):
      return products.dot(hidden, kernel_DV[:, codes])
    logits = jnp.matmul(hidden, kernel_DV[:, codes], preferred_element_type=jnp.float32)
    return logits if scale_1V is None else logits * scale_1V[0, codes]

  def feature_of(self, code: jax.Array) -> jax.Array:
    """Codes' features [..., C], of codes [...]."""
    return self.vision_tokenizer.codebook[...].astype(jnp.float32)[code]

  def next_feature(self, hidden_XD: jax.Array, turn: Turn) -> jax.Array:
    """The next patch of each row of a running batch, [B, C] in fp32, by a head that draws one patch after the other."""
    if self.image_head.of_codes:
      return self.feature_of(self.image_head.next_code(self.code_logits(hidden_XD), turn))
    return self.image_head.next_feature(hidden_XD, turn)


def last_seen(slot_BT: jax.Array, place_BT: jax.Array, patches: int) -> jax.Array:
  """Where the last position stands that each one sees, with full attention within pictures: [B, T].

  Args:
    slot_BT: the patch that stands at each position, numbered on through whole pictures; -1 for none.
    place_BT: where each position stands.
    patches: P.
  """
  return jnp.where(slot_BT >= 0, place_BT + patches - 1 - slot_BT % patches, place_BT)


@functools.lru_cache(maxsize=64)  # it takes a second or more, and is asked for by several readers of one checkpoint
def describe(config: ModelConfig) -> tuple[Any, dict[str, tuple[int, ...]], Axes]:
  """Structure of a model, and shapes and logical axes of its parameters by name; nothing is built."""
  graphdef, shapes, axes = params_lib.shapes_and_axes(lambda: Orthus(config, rngs=params_lib.Keys(0)))
  return graphdef, {n: tuple(s.shape) for n, s in shapes.items()}, axes


def compute_dtype(config: ModelConfig, name: str) -> str | None:
  """The dtype that a parameter is cast to wherever it is used; None where that is the one it is kept in."""
  parts = ("transformer/", "token_embedding", "lm_head", "image_head/")
  return config.transformer.dtype if name.startswith(parts) else None
