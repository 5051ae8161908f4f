"""The two losses: cross-entropy over text positions, and the image head's over image positions.

Each is summed over the whole global batch and divided once by its own count, so that neither packing, nor the mesh, nor
gradient accumulation changes what a step learns. Axes: as in `data.pipeline.Batch`.
"""

from __future__ import annotations

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig, TransformerConfig
from orthus_jax.data import images as images_lib
from orthus_jax.data.batch import Batch
from orthus_jax.models import systems
from orthus_jax.models.heads.base import mean_losses
from orthus_jax.models.orthus import Orthus
from orthus_jax.training import chunked

_HISTORY = 1 << 30  # apart from the other draws of a step, which fold in rows


class Counts(NamedTuple):
  """What the sums are divided by: weights and number of text targets, and image patches, in the global batch."""

  text: jax.Array
  tokens: jax.Array
  image: jax.Array


def counts(batch: Batch, config: ModelConfig) -> Counts:
  """Counts of a (global) batch; never 0, as a batch may lack one modality. Of patches that are drawn by lot, those expected."""
  text = jnp.sum(batch.text_weight_BT)
  tokens = jnp.sum(batch.text_weight_BT > 0, dtype=jnp.float32)
  patches = systems.image_head(config).learnt_patches(config.vision_tokenizer.patches)
  image = jnp.sum(image_weights(batch.learnt_image_BG)) * patches
  return Counts(text=jnp.where(text > 0, text, 1.0), tokens=jnp.maximum(tokens, 1.0), image=jnp.maximum(image, 1.0))


def image_weights(learnt_image_BG: jax.Array) -> jax.Array:
  """What each learnt image counts, [B, G]: 1, shared among the places of its row where it stands; 0 for none."""
  places_BG = jnp.sum(learnt_image_BG[:, :, None] == learnt_image_BG[:, None, :], axis=-1)
  return jnp.where(learnt_image_BG >= 0, 1.0 / places_BG, 0.0)


def features(model: Orthus, images: jax.Array) -> jax.Array:
  """Image features [B, M, P, C] of a batch's images, be they pixels or features already."""
  if images.dtype != jnp.uint8:
    return images
  pixels = model.vision_tokenizer.config.pixels

  def encode(images_BHWc):  # a picture of each row at a time: at 512 x 512 pixels, one takes half a GiB on its way
    return model.vision_tokenizer.encode(images_lib.to_model(images_BHWc, pixels))

  return einops.rearrange(jax.lax.map(encode, einops.rearrange(images, "B M ... -> M B ...")), "M B ... -> B M ...")


def orthus_loss(
    model: Orthus, batch: Batch, key: jax.Array, *, config: ModelConfig, total: Counts, row_B: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """This batch's (or microbatch's) share of the loss.

  Args:
    model: the model.
    batch: rows.
    key: of the step; every draw folds in the row's place in the global batch.
    config: the model's.
    total: counts of the global batch.
    row_B: each row's place in the global batch.

  Returns:
    (loss, metrics), both adding up over microbatches to the global batch's. A loss of weight 0 isn't computed, nor is
    it among the metrics.
  """
  features_BMPC = jax.lax.stop_gradient(features(model, batch.images))
  read_BMPC = as_read(features_BMPC, batch, key, config, row_B)
  features_BJC = einops.rearrange(read_BMPC, "B M P C -> B (M P) C")
  hidden_BMP = _hidden(batch, key, config, row_B)
  hidden_BTD = model(
      batch.tokens_BT,
      features_BJC=features_BJC,
      slot_BT=batch.slot_BT,
      position_BT=batch.position_BT,
      segment_ids_BT=batch.segment_ids_BT,
      shared_ids_BT=batch.shared_ids_BT,
      hidden_BJ=None if hidden_BMP is None else einops.rearrange(hidden_BMP, "B M P -> B (M P)"),
  )

  losses, metrics = [], {}
  if config.transformer.text_loss_weight:
    nll, right = _cross_entropy(model, hidden_BTD, batch.targets_BT, batch.text_weight_BT, config.transformer)
    text = nll / total.text
    losses.append(config.transformer.text_loss_weight * text)
    metrics |= {"text_loss": text, "text_accuracy": right / total.tokens}
  if config.image_loss_weight:
    image = _image_sum(model, hidden_BTD, features_BMPC, hidden_BMP, batch, key, config=config, row_B=row_B) / total.image
    losses.append(config.image_loss_weight * image)
    metrics["image_loss"] = image
  loss = sum(losses[1:], losses[0])
  return loss, {"loss": loss, **metrics}


def _hidden(batch: Batch, key: jax.Array, config: ModelConfig, row_B: jax.Array) -> jax.Array | None:
  """Bool [B, M, P]: the patches of learnt pictures that the model isn't to see; None where its head hides none."""
  M, P = batch.images.shape[1], config.vision_tokenizer.patches
  hidden_BMP = systems.image_head(config).hidden(key, row_B, images=M, patches=P)
  if hidden_BMP is None:
    return None
  return hidden_BMP & _learnt(batch)[..., None]


def _learnt(batch: Batch) -> jax.Array:
  """Bool [B, M]: the pictures that the model is to draw."""
  return jnp.any(batch.learnt_image_BG[:, :, None] == jnp.arange(batch.images.shape[1]), axis=1)


def as_read(
    features_BMPC: jax.Array, batch: Batch, key: jax.Array, config: ModelConfig, row_B: jax.Array
) -> jax.Array:
  """Features [B, M, P, C] as the backbone reads them: those of learnt pictures with noise, if `history_noise` is set."""
  if not (largest := config.vision_embedding.history_noise):
    return features_BMPC

  def draw(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    size_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _HISTORY), row))
    M = features_BMPC.shape[1]
    return jax.random.uniform(size_key, (M,), maxval=largest), jax.random.normal(noise_key, features_BMPC.shape[1:])

  size_BM, noise_BMPC = jax.vmap(draw)(row_B)
  size_BM = jnp.where(_learnt(batch), size_BM, 0.0)
  return features_BMPC + (size_BM[..., None, None] * noise_BMPC).astype(features_BMPC.dtype)


def _cross_entropy(
    model: Orthus, hidden_BTD: jax.Array, targets_BT: jax.Array, weight_BT: jax.Array, config: TransformerConfig
) -> tuple[jax.Array, jax.Array]:
  """Weighted sum of the targets' negative log-likelihoods, and how many are the likeliest token."""
  if config.loss_chunk and not config.merge_positions:
    return chunked.cross_entropy(hidden_BTD, model.lm_head[...], targets_BT, weight_BT, chunk=config.loss_chunk)
  logits_BTV = model.logits(hidden_BTD)
  target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
  nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT
  right_BT = (target_BT >= jnp.max(logits_BTV, axis=-1)) & (weight_BT > 0)
  return jnp.sum(weight_BT * nll_BT), jnp.sum(right_BT, dtype=jnp.float32)


def _image_sum(
    model: Orthus,
    hidden_BTD: jax.Array,
    features_BMPC: jax.Array,
    hidden_BMP: jax.Array | None,
    batch: Batch,
    key: jax.Array,
    *,
    config: ModelConfig,
    row_B: jax.Array,
) -> jax.Array:
  """Sum of the learnt patches' losses."""
  head, P = model.image_head, config.vision_tokenizer.patches
  B, G = batch.learnt_image_BG.shape
  # The state at BOI predicts patch 1, the state at patch k predicts patch k + 1; or each patch's state predicts itself.
  at_BGP = batch.learnt_start_BG[..., None] + jnp.arange(P) + head.whole_pictures
  z_BJD = jnp.take_along_axis(hidden_BTD, at_BGP.reshape(B, G * P, 1), axis=1)
  which_BG = jnp.maximum(batch.learnt_image_BG, 0)
  x_BGPC = jnp.take_along_axis(features_BMPC, which_BG[..., None, None], axis=1)
  weight_BGP = jnp.repeat(image_weights(batch.learnt_image_BG)[..., None], P, axis=-1)
  if hidden_BMP is not None:
    weight_BGP *= jnp.take_along_axis(hidden_BMP, which_BG[..., None], axis=1)
  if head.of_codes:
    token_BJ = config.image_token_start + model.vision_tokenizer.quantise(x_BGPC.reshape(B, G * P, -1))
    return _cross_entropy(model, z_BJD, token_BJ, weight_BGP.reshape(B, G * P), config.transformer)[0]
  z_BGPD = z_BJD.reshape(B, G, P, -1)
  key_BJ = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), G * P))(row_B)
  key_BGP = key_BJ.reshape(B, G, P, *key_BJ.shape[2:])
  if config.transformer.merge_positions:
    error_BGP = mean_losses(head, z_BGPD, x_BGPC, key_BGP, merge=True)
  else:
    error_BGP = chunked.head_losses(head, z_BGPD, x_BGPC, key_BGP, config=config)
  return jnp.sum(weight_BGP * error_BGP)
