"""The two losses of Orthus: cross-entropy over text positions, diffusion over image positions.

Each is summed over the whole global batch and divided once by its own count, so that neither packing, nor the mesh, nor
gradient accumulation changes what a step learns. Axes: as in `data.pipeline.Batch`.
"""

from __future__ import annotations

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.data import images as images_lib
from orthus_jax.data.pipeline import Batch
from orthus_jax.models.heads.diffusion import mean_losses
from orthus_jax.models.orthus import Orthus


class Counts(NamedTuple):
  """What the sums are divided by: weights and number of text targets, and image patches, in the global batch."""

  text: jax.Array
  tokens: jax.Array
  image: jax.Array


def counts(batch: Batch, patches: int) -> Counts:
  """Counts of a (global) batch; never 0, as a batch may lack one modality."""
  text = jnp.sum(batch.text_weight_BT)
  tokens = jnp.sum(batch.text_weight_BT > 0, dtype=jnp.float32)
  image = jnp.sum(batch.learnt_image_BG >= 0, dtype=jnp.float32) * patches
  return Counts(text=jnp.where(text > 0, text, 1.0), tokens=jnp.maximum(tokens, 1.0), image=jnp.maximum(image, 1.0))


def features(model: Orthus, images: jax.Array) -> jax.Array:
  """Image features [B, M, P, C] of a batch's images, be they pixels or features already."""
  if images.dtype != jnp.uint8:
    return images
  pixels = model.vision_tokenizer.config.pixels
  flat = images_lib.to_model(einops.rearrange(images, "B M H W c -> (B M) H W c"), pixels)
  return einops.rearrange(model.vision_tokenizer.encode(flat), "(B M) P C -> B M P C", B=images.shape[0])


def orthus_loss(
    model: Orthus, batch: Batch, key: jax.Array, *, config: ModelConfig, total: Counts, row_B: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """This batch's (or microbatch's) share of the loss.

  Args:
    model: the model.
    batch: rows.
    key: of the step; every draw folds in the row's place in the global batch and the patch's place in the row.
    config: the model's.
    total: counts of the global batch.
    row_B: each row's place in the global batch.

  Returns:
    (loss, metrics), both adding up over microbatches to the global batch's.
  """
  features_BMPC = jax.lax.stop_gradient(features(model, batch.images))
  P = config.vision_tokenizer.patches
  features_BJC = einops.rearrange(features_BMPC, "B M P C -> B (M P) C")
  hidden_BTD = model(
      batch.tokens_BT,
      features_BJC=features_BJC,
      slot_BT=batch.slot_BT,
      position_BT=batch.position_BT,
      segment_ids_BT=batch.segment_ids_BT,
  )

  logits_BTV = model.logits(hidden_BTD)
  target_BT = jnp.take_along_axis(logits_BTV, batch.targets_BT[..., None], axis=-1)[..., 0]
  nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT
  text = jnp.sum(batch.text_weight_BT * nll_BT) / total.text
  right_BT = (target_BT >= jnp.max(logits_BTV, axis=-1)) & (batch.text_weight_BT > 0)
  accuracy = jnp.sum(right_BT, dtype=jnp.float32) / total.tokens

  # The state at BOI predicts patch 1, the state at patch k predicts patch k + 1.
  B, G = batch.learnt_image_BG.shape
  at_BGP = batch.learnt_start_BG[..., None] + jnp.arange(P)
  z_BGPD = jnp.take_along_axis(hidden_BTD, at_BGP.reshape(B, G * P, 1), axis=1).reshape(B, G, P, -1)
  which_BG = jnp.maximum(batch.learnt_image_BG, 0)
  x_BGPC = jnp.take_along_axis(features_BMPC, which_BG[..., None, None], axis=1)
  key_BJ = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), G * P))(row_B)
  key_BGP = key_BJ.reshape(B, G, P, *key_BJ.shape[2:])
  merge = config.transformer.merge_positions
  error_BGP = mean_losses(model.image_head, z_BGPD, x_BGPC, key_BGP, merge=merge)
  learnt_BG1 = (batch.learnt_image_BG >= 0)[..., None]
  image = jnp.sum(jnp.where(learnt_BG1, error_BGP, 0.0)) / total.image

  loss = text + config.diffusion.loss_weight * image
  return loss, {"loss": loss, "text_loss": text, "image_loss": image, "text_accuracy": accuracy}
