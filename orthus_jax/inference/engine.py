"""The generation loop, one compiled program: each turn advances every row by one position, be it a token or a patch.

A row has R branches with a cache each. Branch 0 reads the whole document. The others are what guidance compares with:
each holds a prompt of its own, starts afresh from it at every begin-of-image, and is fed the current image's patches
alone. As a slot beyond a branch's length is never seen, starting afresh is setting the length back.

Axes: B rows, R branches, T prompt positions, J prompt patches, C latent values, D width, N new positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.inference.samplers import sample_token
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import Orthus
from orthus_jax.models.params import Params
from orthus_jax.models.transformer import Cache


class Prompts(NamedTuple):
  """What each branch of each row has been told, padded on the right.

  Attributes:
    tokens_BRT: int32; slot_BRT: int32, which patch stands there, -1 for none; features_BRJC: the prompts' features.
    length_BR: positions in use. Branch 0's last position isn't fed ahead but opens the loop.
    weight_BR: how much each branch's prediction counts; each row adds up to 1.
    seed_B: int32, one per request.
    max_images_B: int32, images that a row may draw.
    stop_after_images_B: bool, whether a row ends with its last image.
  """

  tokens_BRT: jax.Array
  slot_BRT: jax.Array
  features_BRJC: jax.Array
  length_BR: jax.Array
  weight_BR: jax.Array
  seed_B: jax.Array
  max_images_B: jax.Array
  stop_after_images_B: jax.Array


class Output(NamedTuple):
  """What came out: `tokens_BN` ids (the image placeholder at patches), `features_BNC`, and how many positions count."""

  tokens_BN: jax.Array
  features_BNC: jax.Array
  length_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
  """What is fixed at compile time.

  Attributes:
    max_new: N, positions generated at most.
    steps: of the diffusion solver.
    temperature, top_k, top_p: of text.
    sep, boi, eoi, image, eos: ids of special tokens.
  """

  max_new: int
  steps: int
  temperature: float
  top_k: int
  top_p: float
  sep: int
  boi: int
  eoi: int
  image: int
  eos: int


class _State(NamedTuple):
  """The loop's carry. A row's input is `feature_BC` where `patch_B` > 0 (it is the image's patch_B-th), else `token_B`."""

  n: jax.Array
  cache: Cache
  length_BR: jax.Array
  token_B: jax.Array
  feature_BC: jax.Array
  patch_B: jax.Array
  images_B: jax.Array
  done_B: jax.Array
  out: Output


@functools.partial(jax.jit, static_argnames=("graphdef", "config", "program"))
def generate(
    graphdef: Any, params: Params, prompts: Prompts, text_V: jax.Array, *, config: ModelConfig, program: Program
) -> Output:
  """Generates responses for a batch of prompts.

  Args:
    graphdef: structure of an Orthus.
    params: its parameters.
    prompts: at least two positions in branch 0 of each row.
    text_V: bool, the ids of ordinary text; other ids are barred from text, but for SEP, EOS and, where one still
      fits and is allowed, begin-of-image.
    config: the model's.
    program: what is fixed at compile time.
  """
  model: Orthus = params_lib.merge(graphdef, params)
  B, R, T = prompts.tokens_BRT.shape
  P, C = config.vision_tokenizer.patches, config.vision_tokenizer.latent_dim

  def flat(x):  # (B R) rows for the backbone
    return einops.rearrange(x, "B R ... -> (B R) ...")

  cache = Cache.empty(config.transformer, batch=B * R, slots=T + program.max_new)
  x_XTD = model.embed(
      flat(prompts.tokens_BRT), features_BJC=flat(prompts.features_BRJC), slot_BT=flat(prompts.slot_BRT)
  )
  _, cache = model.extend(x_XTD, cache, start_B=jnp.zeros(B * R, jnp.int32))
  last_B = prompts.length_BR[:, 0] - 1
  row_key_B = jax.vmap(jax.random.key)(prompts.seed_B)
  stop_V = (jnp.arange(text_V.shape[0]) == program.sep) | (jnp.arange(text_V.shape[0]) == program.eos)
  boi_V = jnp.arange(text_V.shape[0]) == program.boi

  def body(s: _State) -> _State:
    # Feed every branch the same input, each at its own place.
    is_patch_B = s.patch_B > 0
    opens_B = ~is_patch_B & (s.token_B == program.boi)
    drawn_B1D = model.embed_features(s.feature_BC[:, None], patch_BJ=jnp.maximum(s.patch_B - 1, 0)[:, None])
    x_BD = jnp.where(is_patch_B[:, None], drawn_B1D[:, 0], model.embed_tokens(s.token_B))
    guide_R = jnp.arange(R) > 0
    start_BR = jnp.where(guide_R & opens_B[:, None], prompts.length_BR, s.length_BR)
    x_X1D = jnp.repeat(x_BD, R, axis=0)[:, None]
    hidden_X1D, cache = model.extend(x_X1D, s.cache, start_B=flat(start_BR))
    hidden_BRD = hidden_X1D.reshape(B, R, -1)
    moved_BR = ~guide_R | (opens_B | is_patch_B)[:, None]
    length_BR = jnp.where(moved_BR & ~s.done_B[:, None], start_BR + 1, start_BR)

    draws_B = (opens_B | (is_patch_B & (s.patch_B < P))) & ~s.done_B
    closes_B = is_patch_B & (s.patch_B == P)
    reads_B = ~draws_B & ~closes_B & ~s.done_B
    key_B = jax.vmap(jax.random.fold_in)(row_key_B, jnp.full(B, s.n))

    def draw() -> jax.Array:
      noise_BC = jax.vmap(lambda k: jax.random.normal(k, (C,)))(key_B)
      sample = functools.partial(model.image_head.sample, steps=program.steps)
      return jax.vmap(sample)(hidden_BRD, prompts.weight_BR, noise_BC)

    def read() -> jax.Array:
      # An image needs P patches and its end; after that, at least the separator.
      room_B = (s.n + P + 2 <= program.max_new) & (s.images_B < prompts.max_images_B)
      allowed_BV = (text_V | stop_V)[None] | (boi_V[None] & room_B[:, None])
      return sample_token(
          model.logits(hidden_BRD[:, 0]), allowed_BV, key_B,
          temperature=program.temperature, top_k=program.top_k, top_p=program.top_p,
      )  # fmt: skip

    # Each head runs only on a turn on which some row needs it.
    feature_BC = jax.lax.cond(draws_B.any(), draw, lambda: jnp.zeros((B, C), jnp.float32))
    token_B = jax.lax.cond(reads_B.any(), read, lambda: jnp.zeros((B,), jnp.int32))
    token_B = jnp.where(closes_B, program.eoi, jnp.where(draws_B, program.image, token_B))
    images_B = s.images_B + closes_B
    ends_B = (reads_B & stop_V[token_B]) | (
        closes_B & prompts.stop_after_images_B & (images_B >= prompts.max_images_B)
    )
    out = Output(
        tokens_BN=s.out.tokens_BN.at[:, s.n].set(jnp.where(s.done_B, program.sep, token_B)),
        features_BNC=s.out.features_BNC.at[:, s.n].set(feature_BC),
        length_B=s.out.length_B + ~s.done_B,
    )
    return _State(
        n=s.n + 1,
        cache=cache,
        length_BR=length_BR,
        token_B=token_B,
        feature_BC=feature_BC,
        patch_B=jnp.where(draws_B, s.patch_B + 1, 0),
        images_B=images_B,
        done_B=s.done_B | ends_B,
        out=out,
    )

  first = _State(
      n=jnp.int32(0),
      cache=cache,
      length_BR=prompts.length_BR.at[:, 0].add(-1),
      token_B=jnp.take_along_axis(prompts.tokens_BRT[:, 0], last_B[:, None], axis=1)[:, 0],
      feature_BC=jnp.zeros((B, C), jnp.float32),
      patch_B=jnp.zeros(B, jnp.int32),
      images_B=jnp.zeros(B, jnp.int32),
      done_B=jnp.zeros(B, bool),
      out=Output(
          tokens_BN=jnp.full((B, program.max_new), program.sep, jnp.int32),
          features_BNC=jnp.zeros((B, program.max_new, C), jnp.float32),
          length_B=jnp.zeros(B, jnp.int32),
      ),
  )
  return jax.lax.while_loop(lambda s: (s.n < program.max_new) & ~s.done_B.all(), body, first).out
