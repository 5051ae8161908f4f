"""What the engine's programs hand on: every row's state, what is asked of it, and what a call made."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.models import samplers, systems
from orthus_jax.models.cache import Cache
from orthus_jax.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Ids:
  """Special tokens."""

  sep: int
  boi: int
  eoi: int
  image: int
  eos: int


ANY_NUMBER = 1 << 30  # of images


class Order(NamedTuple):
  """What a row was asked for; all [B].

  Attributes:
    seed: int32.
    max_new: int32, positions at most.
    max_images: int32, images at most, for which room is kept; ANY_NUMBER keeps none.
    stop_after_images: bool, whether it ends with its last image.
    weight: how much the row's own prediction counts against its guides'; all together add up to 1.
    interval: [B, 2], guidance holds at diffusion steps t in [low, high) alone.
    solvers: int32 [B, 2], which of the call's solvers draws the first patches of an image, and which the later ones.
    late: int32, the first of the later patches.
    passes: int32, over a picture, by heads that draw whole pictures.
    image_temperature, image_top_k: how features and codes are sampled.
    text: how text is sampled.
  """

  seed: jax.Array
  max_new: jax.Array
  max_images: jax.Array
  stop_after_images: jax.Array
  weight: jax.Array
  interval: jax.Array
  solvers: jax.Array
  late: jax.Array
  passes: jax.Array
  image_temperature: jax.Array
  image_top_k: jax.Array
  text: samplers.TokenSampling


class State(NamedTuple):
  """All that is on the way. A row's next input is `feature_BC` where `patch_B` > 0 (it is that patch of its image, from 1),
  else `token_B`; or, with a head that draws whole pictures, it is `code_BP`, at that pass.

  Attributes:
    cache: of all lanes.
    length_X: int32, slots in use.
    origin_G: int32, the length of a guide's prompt.
    owner_G: int32, the row that it guides; B while it is free.
    weight_G: how much its prediction counts.
    active_B: bool, whether a row is at work.
    made_B: int32, positions it has made.
    images_B: int32, images it has finished.
    said_BV: bool, the text that it has said.
    code_BP: int32, the codes of its picture as far as they are known; without patches, where the head draws them one by one.
  """

  cache: Cache
  length_X: jax.Array
  origin_G: jax.Array
  owner_G: jax.Array
  weight_G: jax.Array
  active_B: jax.Array
  token_B: jax.Array
  feature_BC: jax.Array
  patch_B: jax.Array
  made_B: jax.Array
  images_B: jax.Array
  said_BV: jax.Array
  code_BP: jax.Array
  order: Order


class Made(NamedTuple):
  """What a call of `advance` made: the first `count_B` of N positions of each row.

  Attributes:
    tokens_BN: int32, the image placeholder at patches.
    features_BNC: the patches.
    count_B: int32.
    active_B: bool, whether there is more to come.
    positions: int32, turns that the loop took.
    code_BP: the codes of the pictures that are drawn whole, which aren't among the positions.
    pictures_B: bool, the rows of which one became whole in the last turn; it goes ahead of their last position.
  """

  tokens_BN: jax.Array
  features_BNC: jax.Array
  count_B: jax.Array
  active_B: jax.Array
  positions: jax.Array
  code_BP: jax.Array
  pictures_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
  """What is fixed when `advance` is compiled.

  Attributes:
    positions: N, that a row moves ahead at most in one call.
    window: slots that are looked at; no row may come to lie beyond them.
    solvers: (name, steps) of those that rows refer to.
    ids: of special tokens.
    sampled: whether any row's text isn't greedy.
    repeats: whether any row's text has a rule about repetition.
    kernel: whether the image head's solver steps are one kernel.
    lanes_at_once: that are moved ahead together, 1 + K at least; 0 for all, whether they need it or not.
    guides_a_row: K, the most that a row has.
  """

  positions: int
  window: int
  solvers: tuple[tuple[str, int], ...]
  ids: Ids
  sampled: bool = False
  repeats: bool = False
  kernel: bool = False
  lanes_at_once: int = 0
  guides_a_row: int = 2


def empty(config: ModelConfig, *, rows: int, guides: int, slots: int, int8: bool = False) -> State:
  """A state in which nothing is on the way; with `int8`, its cache is in 8 bits."""
  B, G, V = rows, guides, config.transformer.vocab_size
  P = config.vision_tokenizer.patches if systems.image_head(config).whole_pictures else 0

  def zeros(*shape: int, dtype=jnp.int32) -> jax.Array:
    return jnp.zeros(shape, dtype)

  order = Order(
      seed=zeros(B), max_new=zeros(B), max_images=zeros(B), stop_after_images=zeros(B, dtype=bool), weight=jnp.ones(B),
      interval=jnp.zeros((B, 2)), solvers=zeros(B, 2), late=zeros(B), passes=jnp.ones(B, jnp.int32),
      image_temperature=jnp.ones(B), image_top_k=zeros(B), text=samplers.TokenSampling.greedy(B),
  )  # fmt: skip
  return State(
      cache=Cache.empty(config.transformer, batch=B + G, slots=slots, int8=int8), length_X=zeros(B + G), origin_G=zeros(G),
      owner_G=jnp.full(G, B, jnp.int32), weight_G=jnp.zeros(G), active_B=zeros(B, dtype=bool), token_B=zeros(B),
      feature_BC=jnp.zeros((B, config.vision_tokenizer.latent_dim)), patch_B=zeros(B), made_B=zeros(B), images_B=zeros(B),
      said_BV=zeros(B, V, dtype=bool), code_BP=zeros(B, P), order=order,
  )  # fmt: skip


def shardings(mesh: jax.sharding.Mesh, shapes: State) -> State:
  """How a state lies on a mesh: lanes like a batch's rows, heads like the model's."""

  def place(x: jax.ShapeDtypeStruct, *axes: str | None) -> jax.sharding.NamedSharding:
    return mesh_lib.sharding(mesh, x.shape, axes or (None,) * len(x.shape))

  whole = jax.tree.map(place, shapes)
  cache = jax.tree.map(lambda x: place(x, *_CACHE_AXES[: len(x.shape)]), shapes.cache)
  return whole._replace(cache=cache)


_CACHE_AXES = ("layers", "batch", None, "kv_heads", None)
