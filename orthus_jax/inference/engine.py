"""The compiled half of generation: programs of fixed shapes that move many requests ahead at once.

A *row* is a request that is being answered; a *guide* is what guidance compares it with: a prompt of its own, from which
it starts afresh at every begin-of-image, and after it the current image's patches alone. Rows and guides are the *lanes*
of one key-value cache, rows first. As a slot beyond a lane's length is never seen, starting afresh is setting the length
back, and a lane that has been freed needs no cleaning.

`read` takes prompts into lanes, `admit` has rows begin, `advance` moves all rows ahead by some positions, each in its own
mode: text, or patches of an image (`drawing.py`). Which request is in which row is the scheduler's business.

Axes: B rows, G guides, X = B + G lanes, A lanes that are read into, T prompt positions, N positions a call, C latent
values, D width, V vocabulary, P patches.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.inference import drawing
from orthus_jax.inference.engine_state import ANY_NUMBER, Made, Order, Program, State
from orthus_jax.models import params as params_lib, samplers
from orthus_jax.models.cache import Cache
from orthus_jax.models.heads.base import Turn
from orthus_jax.models.orthus import Orthus, last_seen
from orthus_jax.models.params import Params
from orthus_jax.parallel import compiler


class Prompts(NamedTuple):
  """A chunk of prompts, padded on the right; a lane that is none (X) is padding too.

  Attributes:
    tokens_AT: int32.
    patch_AT: int32, which patch of its picture stands there, -1 for none.
    features_ATC: the patches; None where no prompt of the chunk has any.
    start_A: int32, where each prompt's first position of the chunk stands.
    lane_A: int32.
  """

  tokens_AT: jax.Array
  patch_AT: jax.Array
  features_ATC: jax.Array | None
  start_A: jax.Array
  lane_A: jax.Array


@functools.partial(compiler.jit, static_argnames=("graphdef", "window"), donate_argnames="cache")
def read(graphdef: Any, params: Params, cache: Cache, prompts: Prompts, *, window: int) -> Cache:
  """Reads a chunk of some prompts into the cache; `window` slots are looked at."""
  model: Orthus = params_lib.merge(graphdef, params)
  x_ATD = model.embed_tokens(prompts.tokens_AT)
  if prompts.features_ATC is not None:
    is_patch_AT = prompts.patch_AT >= 0
    drawn_ATD = model.embed_features(prompts.features_ATC, patch_BJ=jnp.maximum(prompts.patch_AT, 0))
    x_ATD = jnp.where(is_patch_AT[..., None], drawn_ATD, x_ATD)
  last_AT = None
  if model.config.transformer.image_attention == "full":
    place_AT = prompts.start_A[:, None] + jnp.arange(prompts.tokens_AT.shape[1])
    last_AT = last_seen(prompts.patch_AT, place_AT, model.config.vision_tokenizer.patches)
  return model.transformer.extend(
      x_ATD, cache, start_B=prompts.start_A, lane_B=prompts.lane_A, last_BT=last_AT, window=window
  )[1]


class Admission(NamedTuple):
  """Rows that begin. What is out of range (row B, guide G) is padding.

  Attributes:
    row: int32 [A]; length, token: int32 [A], the prompt's length but for its last token, and that one.
    order: [A].
    guide, owner, origin: int32 [A']; weight: [A'].
  """

  row: jax.Array
  length: jax.Array
  token: jax.Array
  order: Order
  guide: jax.Array
  owner: jax.Array
  origin: jax.Array
  weight: jax.Array


@functools.partial(compiler.jit, donate_argnames="state")
def admit(state: State, a: Admission) -> State:
  """Has rows begin whose prompts the lanes hold already."""
  B, X = state.token_B.shape[0], state.length_X.shape[0]

  def put(old: jax.Array, at: jax.Array, new: Any) -> jax.Array:
    return old.at[at].set(new, mode="drop")

  lane = jnp.where(a.guide < X - B, a.guide + B, X)
  length_X = put(put(state.length_X, jnp.where(a.row < B, a.row, X), a.length), lane, a.origin)
  return state._replace(
      length_X=length_X,
      origin_G=put(state.origin_G, a.guide, a.origin),
      owner_G=put(state.owner_G, a.guide, a.owner),  # a row's former guides were freed when it ended
      weight_G=put(state.weight_G, a.guide, a.weight),
      active_B=put(state.active_B, a.row, True),
      token_B=put(state.token_B, a.row, a.token),
      patch_B=put(state.patch_B, a.row, 0),
      made_B=put(state.made_B, a.row, 0),
      images_B=put(state.images_B, a.row, 0),
      said_BV=put(state.said_BV, a.row, False),
      order=jax.tree.map(lambda old, new: put(old, a.row, new), state.order, a.order),
  )


@functools.partial(compiler.jit, donate_argnames="state")
def release(state: State, row_B: jax.Array) -> State:
  """Ends rows, given as bool [B], before they are done; their guides are free."""
  ended_G = row_B[jnp.minimum(state.owner_G, len(row_B) - 1)]
  return state._replace(
      active_B=state.active_B & ~row_B, owner_G=jnp.where(ended_G, len(row_B), state.owner_G)
  )  # fmt: skip


@functools.partial(compiler.jit, static_argnames=("graphdef", "config", "program"), donate_argnames="state")
def advance(
    graphdef: Any, params: Params, state: State, text_V: jax.Array, stop_at: jax.Array, *, config: ModelConfig,
    program: Program,
) -> tuple[State, Made]:  # fmt: skip
  """Moves every row ahead, until it ends or has made `program.positions`.

  Args:
    graphdef: structure of an Orthus.
    params: its parameters.
    state: donated.
    text_V: bool, the ids of ordinary text; other ids are barred from text, but for SEP, EOS and, where one still
      fits and is allowed, begin-of-image.
    stop_at: int32, how many rows may end before it returns, as others wait for their places.
    config: the model's.
    program: what is fixed.
  """
  model: Orthus = params_lib.merge(graphdef, params)
  B, N, ids = state.token_B.shape[0], program.positions, program.ids
  V, C = text_V.shape[0], state.feature_BC.shape[1]
  whole_pictures = model.image_head.whole_pictures
  move = drawing.by_pictures if whole_pictures else drawing.by_patches
  P = config.vision_tokenizer.patches
  token_V = jnp.arange(V)
  stop_V = (token_V == ids.sep) | (token_V == ids.eos)
  boi_V = token_V == ids.boi
  order = state.order
  row_key_B = jax.vmap(jax.random.key)(order.seed)
  owner_G = jnp.minimum(state.owner_G, B - 1)  # a free guide follows a row, and counts for nothing
  owner_X = jnp.concatenate([jnp.arange(B), owner_G])
  weight_X = jnp.concatenate([order.weight, state.weight_G * (state.owner_G < B)])
  mix_BX = jnp.where(jnp.arange(B)[:, None] == owner_X, weight_X, 0.0)

  def turn(carry: tuple[jax.Array, State, Made]) -> tuple[jax.Array, State, Made]:
    n, s, made = carry
    key_B = jax.vmap(jax.random.fold_in)(row_key_B, s.made_B)
    moved = move(
        model, s,
        Turn(
            owner_X=owner_X, mix_BX=mix_BX, key_B=key_B, wanted_B=s.active_B, solvers=program.solvers,
            solver_B=jnp.where(s.patch_B < order.late, order.solvers[:, 0], order.solvers[:, 1]),
            interval_B2=order.interval, temperature_B=order.image_temperature, top_k_B=order.image_top_k,
            kernel=program.kernel, guided=len(owner_X) > B,
        ), program,
    )  # fmt: skip
    reads_B, closes_B = moved.reads_B, moved.closes_B

    def speak() -> jax.Array:
      # An image needs P patches and its end; after that, at least the separator.
      room_B = (s.made_B + P + 2 <= order.max_new) & (s.images_B < order.max_images)
      # A row that ends with its last image owes it: it says no end before that.
      owes_B = order.stop_after_images & room_B
      # Room that was asked for is kept for pictures, whatever there is to say.
      kept_B = jnp.where(order.max_images < ANY_NUMBER, (order.max_images - s.images_B) * (P + 2), 0)
      speaks_B = s.made_B + kept_B < order.max_new
      allowed_BV = (text_V & speaks_B[:, None]) | (stop_V & ~owes_B[:, None]) | (boi_V & room_B[:, None])
      logits_BV = model.logits(moved.hidden_XD[:B])
      if program.repeats:
        logits_BV = samplers.repeat_less(logits_BV, s.said_BV & text_V, order.text.repetition_penalty)
      return samplers.sample_token(logits_BV, allowed_BV, key_B, order.text, sampled=program.sampled)

    # Likewise run only on a turn on which some row needs it.
    token_B = jax.lax.cond(reads_B.any(), speak, lambda: jnp.zeros((B,), jnp.int32))
    token_B = jnp.where(closes_B, ids.eoi, jnp.where(reads_B, token_B, ids.image))
    images_B, made_B = s.images_B + closes_B, s.made_B + moved.gains_B
    ends_B = (reads_B & stop_V[token_B]) | (closes_B & order.stop_after_images & (images_B >= order.max_images))
    active_B = s.active_B & ~ends_B & (made_B < order.max_new)
    tells_B = moved.gains_B > 0
    if whole_pictures:
      at = jnp.arange(B), jnp.where(tells_B, made.count_B, N)  # of a row that has made nothing, nowhere
    else:
      at = slice(None), n  # all that are active have made a position each turn
    made = Made(
        tokens_BN=made.tokens_BN.at[at].set(token_B, mode="drop"),
        features_BNC=made.features_BNC.at[at].set(moved.feature_BC, mode="drop"),
        count_B=made.count_B + tells_B, active_B=active_B, positions=n + 1, code_BP=moved.code_BP,
        pictures_B=closes_B & whole_pictures,
    )  # fmt: skip
    said_BV = s.said_BV.at[jnp.arange(B), token_B].max(reads_B) if program.repeats else s.said_BV
    s = s._replace(
        cache=moved.cache, length_X=moved.length_X, active_B=active_B, token_B=token_B, feature_BC=moved.feature_BC,
        patch_B=moved.patch_B, code_BP=moved.code_BP, made_B=made_B, images_B=images_B, said_BV=said_BV,
        owner_G=jnp.where(active_B[owner_G], s.owner_G, B),
    )  # fmt: skip
    return n + 1, s, made

  def more(carry: tuple[jax.Array, State, Made]) -> jax.Array:
    n, s, made = carry
    ended = (state.active_B & ~s.active_B).sum()
    return (n < N) & s.active_B.any() & (ended < stop_at) & ~made.pictures_B.any()

  none = Made(
      tokens_BN=jnp.zeros((B, N), jnp.int32), features_BNC=jnp.zeros((B, N, C), jnp.float32),
      count_B=jnp.zeros(B, jnp.int32), active_B=state.active_B, positions=jnp.int32(0), code_BP=state.code_BP,
      pictures_B=jnp.zeros(B, bool),
  )  # fmt: skip
  _, state, made = jax.lax.while_loop(more, turn, (jnp.int32(0), state, none))
  return state, made
