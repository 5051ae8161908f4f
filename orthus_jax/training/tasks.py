"""What is trained: the whole Orthus, or the vision tokenizer alone. The loop and the step know neither from the other."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.batch import Batch
from orthus_jax.data.documents import Source
from orthus_jax.data.pictures import Pictures, PicturesInMemory
from orthus_jax.data.pipeline import prefetch
from orthus_jax.data.prepared.pictures import PreparedPictures
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import Orthus
from orthus_jax.models.params import Params
from orthus_jax.models.vision_tokenizer import VisionTokenizer, squared_distances
from orthus_jax.parallel import compiler
from orthus_jax.training import losses, tokenizer_losses
from orthus_jax.training.state import TrainState
from orthus_jax.training.tokenizer_losses import JudgedTokenizer

_REVIVE_PICTURES = 512
_FEATURE_PICTURES = 2048


def batch_digest(document_ids: list[str]) -> int:
  """48 bits that tell whether two batches hold the same documents; a number, so that it can be logged as one."""
  return int.from_bytes(hashlib.blake2b("\0".join(document_ids).encode(), digest_size=6).digest(), "big")


def features(config: Config) -> bool:
  """Whether pictures reach the step as features; prepared data, which aren't read here, are taken to hold them."""
  return config.data.cache_features or config.data.source == "prepared"


def batch_shapes(config: Config) -> Batch:
  """Shapes of a global batch; nothing is read."""
  data, vision, B = config.data, config.model.vision_tokenizer, config.run.batch_size
  T, M, G = data.sequence_length, data.images_per_row, data.learnt_images_per_row
  R = vision.resolution

  def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)

  if features(config):
    dtype = jnp.bfloat16 if data.source == "prepared" else jnp.float32
    images = jax.ShapeDtypeStruct((B, M, vision.patches, vision.latent_dim), dtype)
  else:
    images = jax.ShapeDtypeStruct((B, M, R, R, 3), jnp.uint8)
  return Batch(
      tokens_BT=ints(B, T), targets_BT=ints(B, T), text_weight_BT=jax.ShapeDtypeStruct((B, T), jnp.float32),
      position_BT=ints(B, T), segment_ids_BT=ints(B, T), slot_BT=ints(B, T), images=images,
      learnt_image_BG=ints(B, G), learnt_start_BG=ints(B, G),
      shared_ids_BT=ints(B, T) if data.turns == "separate" else None,
  )  # fmt: skip


class OrthusTask:
  """Cross-entropy over text positions plus the image head's loss over image positions."""

  def __init__(self, config: Config, pipeline: Any):
    self.config = config
    self.pipeline = pipeline  # Pipeline or PreparedPipeline; None where only the model and its loss are wanted

  def init(self) -> Orthus:
    return Orthus(self.config.model, rngs=params_lib.Keys(self.config.run.seed))

  def counts(self, batch: Batch) -> losses.Counts:
    return losses.counts(batch, self.config.model)

  def loss(
      self, model: Orthus, batch: Batch, key: jax.Array, *, total: losses.Counts, row_B: jax.Array, step: Any = 0
  ):
    return losses.orthus_loss(model, batch, key, config=self.config.model, total=total, row_B=row_B)

  def batches(self, start: int, stop: int, rows: np.ndarray | None = None) -> Iterator[tuple[int, Batch]]:
    return self.pipeline.iterate(start, stop, rows)

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    return self.pipeline.batch(step, rows)

  def tokens(self, step: int) -> int:
    """Positions of the global batch that hold something."""
    return self.pipeline.tokens(step)

  def contents(self) -> dict[str, Any]:
    """What all batches are made of."""
    return self.pipeline.contents()

  def describe(self, step: int) -> dict[str, float]:
    positions = self.config.run.batch_size * self.config.data.sequence_length
    shares = self.pipeline.shares(step) if hasattr(self.pipeline, "shares") else {}
    return {
        "padding": 1.0 - self.pipeline.tokens(step) / positions, "batch_digest": batch_digest(self.document_ids(step)),
        **{f"source/{name}": share for name, share in shares.items()},
    }  # fmt: skip

  def document_ids(self, step: int) -> list[str]:
    """The documents of the global batch, row by row."""
    return self.pipeline.document_ids(step)

  def after_step(self, step: int, state: TrainState, graphdef: Any, batch: Batch) -> TrainState:
    return state


class TokenizerCounts(NamedTuple):
  """Pictures in the global batch."""

  images: jax.Array


class TokenizerTask:
  """Reconstruction, codebook and commitment; codes that nobody uses are replaced by fresh features."""

  def __init__(self, config: Config, source: Source):
    self.config = config
    self.pictures: Pictures = (
        PreparedPictures(config) if config.data.source == "prepared" else PicturesInMemory(config, source)
    )
    self._revive: Any = None

  def init(self) -> VisionTokenizer:
    vision, loss = self.config.model.vision_tokenizer, self.config.tokenizer_loss
    rngs = params_lib.Keys(self.config.run.seed)
    judged = loss.perceptual or loss.adversarial
    return JudgedTokenizer(vision, loss, rngs=rngs) if judged else VisionTokenizer(vision, rngs=rngs)

  def counts(self, batch: jax.Array) -> TokenizerCounts:
    return TokenizerCounts(images=jnp.float32(batch.shape[0]))

  def loss(
      self, model: Any, batch: jax.Array, key: jax.Array, *, total: TokenizerCounts, row_B: jax.Array, step: Any = 0
  ):
    c = self.config.tokenizer_loss
    x_BHWC = images_lib.to_model(batch, model.config.pixels)
    z_BPC = model.encode(x_BHWC)
    codebook_KC = model.codebook[...]
    nearest_BPC = codebook_KC[model.quantise(z_BPC)]
    codebook_B = jnp.mean(jnp.square(nearest_BPC - jax.lax.stop_gradient(z_BPC)), axis=(1, 2))
    commitment_B = jnp.mean(jnp.square(jax.lax.stop_gradient(nearest_BPC) - z_BPC), axis=(1, 2))

    def draw(row):
      which, noise = jax.random.split(jax.random.fold_in(key, row))
      return jax.random.uniform(which), jax.random.normal(noise, z_BPC.shape[1:])

    u_B, noise_BPC = jax.vmap(draw)(row_B)
    spread = jnp.std(z_BPC)
    straight_through_BPC = z_BPC + jax.lax.stop_gradient(nearest_BPC - z_BPC)
    quantised_B11 = (u_B < c.quantised_share)[:, None, None]
    y_BHWC = model.decode(jnp.where(quantised_B11, straight_through_BPC, z_BPC + c.noise * noise_BPC))
    difference = y_BHWC - x_BHWC
    squared_B = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
    absolute_B = jnp.mean(jnp.abs(difference), axis=(1, 2, 3))
    loss_B = (1 - c.l1) * squared_B + c.l1 * absolute_B + c.codebook * codebook_B + c.commitment * commitment_B
    n = total.images
    more = {}
    if c.perceptual:
      distance_B = tokenizer_losses.perceptual(model, y_BHWC, x_BHWC)
      loss_B += c.perceptual * distance_B
      more["perceptual"] = jnp.sum(distance_B) / n
    if c.adversarial:
      generator_B, discriminator_B = tokenizer_losses.adversarial(model, y_BHWC, x_BHWC)
      loss_B += jnp.where(step >= c.adversarial_start, c.adversarial * generator_B + discriminator_B, 0.0)
      more |= {"generator": jnp.sum(generator_B) / n, "discriminator": jnp.sum(discriminator_B) / n}
    loss = jnp.sum(loss_B) / n
    metrics = {
        "loss": loss, "squared_error": jnp.sum(squared_B) / n, "commitment": jnp.sum(commitment_B) / n,
        "feature_std": spread * batch.shape[0] / n, **more,
    }  # fmt: skip
    return loss, metrics

  def batch(self, step: int, rows: np.ndarray | None = None) -> np.ndarray:
    """uint8 [B, R, R, 3], all rows or some; a function of (seed, step)."""
    return self.pictures.read(self._drawn(step, rows))

  def _drawn(self, step: int, rows: np.ndarray | None = None) -> list[int]:
    B = self.config.run.batch_size
    return self.pictures.draw(step * B + (np.arange(B) if rows is None else rows))

  def batches(self, start: int, stop: int, rows: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
    return prefetch(lambda step: self.batch(step, rows), start, stop)

  def features(self, graphdef: Any, params: Params) -> np.ndarray:
    """Features [N, C] of the patches of some of the pictures, always the same ones."""
    vision = self.config.model.vision_tokenizer
    chosen = np.random.default_rng(self.config.run.seed).integers(self.pictures.trained, size=_FEATURE_PICTURES)
    encode = compiler.jit(lambda params, x: params_lib.merge(graphdef, params).encode(x))
    blocks = (self.pictures.read(numbers) for numbers in np.split(chosen, _FEATURE_PICTURES // 256))
    encoded = [np.asarray(encode(params, images_lib.to_model(block, vision.pixels))) for block in blocks]
    return np.concatenate(encoded).reshape(-1, vision.latent_dim)

  def tokens(self, step: int) -> int:
    """Patches."""
    return self.config.run.batch_size * self.config.model.vision_tokenizer.patches

  def contents(self) -> dict[str, Any]:
    """What all batches are made of: pictures, in their order."""
    return self.pictures.contents()

  def describe(self, step: int) -> dict[str, float]:
    return {"batch_digest": batch_digest(self.document_ids(step))}

  def document_ids(self, step: int) -> list[str]:
    """The pictures of the global batch."""
    return [f"picture {p}" for p in self._drawn(step)]

  def after_step(self, step: int, state: TrainState, graphdef: Any, batch: np.ndarray) -> TrainState:
    every = self.config.tokenizer_loss.revive_every
    # Not near the end: a fresh code needs time to settle.
    if not every or (step > 1 and step % every) or step > 0.8 * self.config.run.steps or "codebook" not in state.trained:
      return state
    # Use is judged on several pictures per code: in a single batch, most codes would look unused.
    chosen = np.random.default_rng((self.config.run.seed, step)).integers(self.pictures.trained, size=_REVIVE_PICTURES)
    if self._revive is None:  # the state stays where it lies
      places = jax.tree.map(lambda x: x.sharding, state)
      self._revive = jax.jit(self._revived, static_argnums=0, donate_argnums=1, out_shardings=places)
    return self._revive(graphdef, state, self.pictures.read(chosen), np.int32(step))

  def _revived(self, graphdef: Any, state: TrainState, batch: jax.Array, step: jax.Array) -> TrainState:
    model = params_lib.merge(graphdef, state.params)
    x_BHWC = images_lib.to_model(batch, model.config.pixels)
    z_NC = model.encode(x_BHWC).reshape(-1, self.config.model.vision_tokenizer.latent_dim)
    codebook_KC = state.trained["codebook"]
    K = codebook_KC.shape[0]
    used_K = jnp.bincount(jnp.argmin(squared_distances(z_NC, codebook_KC), axis=-1), length=K)
    key = jax.random.fold_in(jax.random.key(self.config.run.seed + 1), step)
    fresh_KC = z_NC[jax.random.randint(key, (K,), 0, z_NC.shape[0])]
    revived = jnp.where((used_K == 0)[:, None], fresh_KC, codebook_KC)
    ema = dict(state.ema)
    if "codebook" in ema:
      ema["codebook"] = jnp.where((used_K == 0)[:, None], fresh_KC, ema["codebook"])
    return dataclasses.replace(state, trained={**state.trained, "codebook": revived}, ema=ema)
