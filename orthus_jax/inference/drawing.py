"""How a running batch moves through pictures: patch by patch, or whole pictures over and over. The engine has either by the
model's image head, and does all else itself.

Axes: as in `engine.py`; also L positions that a lane is fed in a turn.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from orthus_jax.inference.engine_state import Program, State
from orthus_jax.models.cache import Cache
from orthus_jax.models.heads.base import Turn, mixed
from orthus_jax.models.heads.masked import HIDDEN
from orthus_jax.models.orthus import Orthus

_SHORTEST = 64  # slots that are looked at


class Moved(NamedTuple):
  """What a turn came to.

  Attributes:
    hidden_XD: states that text follows from.
    cache, length_X: of all lanes.
    reads_B: rows that go on with text.
    closes_B: rows whose picture is whole.
    gains_B: int32, positions that each row comes to have made.
    feature_BC, patch_B, code_BP: of the state.
  """

  hidden_XD: jax.Array
  cache: Cache
  length_X: jax.Array
  reads_B: jax.Array
  closes_B: jax.Array
  gains_B: jax.Array
  feature_BC: jax.Array
  patch_B: jax.Array
  code_BP: jax.Array


def by_patches(model: Orthus, s: State, turn: Turn, program: Program) -> Moved:
  """Feeds every lane one position; a row in a picture gets its next patch."""
  B, P = s.token_B.shape[0], model.config.vision_tokenizer.patches
  owner_X, is_patch_B = turn.owner_X, s.patch_B > 0
  owner_G, owned_G = owner_X[B:], s.owner_G < B
  opens_B = ~is_patch_B & (s.token_B == program.ids.boi)
  drawn_B1D = model.embed_features(s.feature_BC[:, None], patch_BJ=jnp.maximum(s.patch_B - 1, 0)[:, None])
  x_BD = jnp.where(is_patch_B[:, None], drawn_B1D[:, 0], model.embed_tokens(s.token_B))
  start_X = s.length_X.at[B:].set(jnp.where(opens_B[owner_G], s.origin_G, s.length_X[B:]))
  # A guide that its row doesn't need now stays where it is: what it was fed will be overwritten.
  moved_X = jnp.concatenate([s.active_B, (s.active_B & (opens_B | is_patch_B))[owner_G] & owned_G])
  hidden_XD, cache = _fed(model, x_BD[owner_X], s.cache, start_X, moved_X, program)
  draws_B = (opens_B | (is_patch_B & (s.patch_B < P))) & s.active_B
  closes_B = is_patch_B & (s.patch_B == P) & s.active_B
  feature_BC = _next_features(model, s, hidden_XD, turn._replace(wanted_B=draws_B), program)
  return Moved(
      hidden_XD, cache, start_X + moved_X, reads_B=~draws_B & ~closes_B & s.active_B, closes_B=closes_B,
      gains_B=s.active_B.astype(jnp.int32), feature_BC=feature_BC, patch_B=jnp.where(draws_B, s.patch_B + 1, 0),
      code_BP=s.code_BP,
  )  # fmt: skip


def _fed(
    model: Orthus, x_XD: jax.Array, cache: Cache, start_X: jax.Array, wanted_X: jax.Array, program: Program
) -> tuple[jax.Array, Cache]:
  """States after a position more of each wanted lane, and the longer cache; some lanes at a time, those of like length."""
  X, L = len(x_XD), program.lanes_at_once
  if not 0 < L <= X:
    hidden_X1D, cache = model.transformer.extend(x_XD[:, None], cache, start_B=start_X, window=program.window)
    return hidden_X1D[:, 0], cache
  windows = [program.window]
  while windows[0] // 2 >= _SHORTEST:
    windows.insert(0, windows[0] // 2)
  lane_N = jnp.pad(jnp.argsort(jnp.where(wanted_X, start_X, program.window)), (0, -X % L), constant_values=X)
  wanted = wanted_X.sum()

  def some(i: jax.Array, carry: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
    hidden_XD, cache = carry
    lane_L = jax.lax.dynamic_slice_in_dim(lane_N, i * L, L)
    # What fills the last ones up is written nowhere, and looks no further than they do.
    inside_L, lane_L = jnp.minimum(lane_L, X - 1), jnp.where(i * L + jnp.arange(L) < wanted, lane_L, X)
    start_L = jnp.where(lane_L < X, start_X[inside_L], 0)
    hidden_L1D, cache = model.transformer.extend(
        x_XD[inside_L][:, None], cache, start_B=start_L, lane_B=lane_L, window=windows
    )
    return hidden_XD.at[lane_L].set(hidden_L1D[:, 0], mode="drop"), cache

  return jax.lax.fori_loop(0, (wanted + L - 1) // L, some, (jnp.zeros_like(x_XD), cache))


def _next_features(model: Orthus, s: State, hidden_XD: jax.Array, turn: Turn, program: Program) -> jax.Array:
  """The next patch of each wanted row, [B, C]. The head works on the lanes of those rows alone, some at a time."""
  (B, C), draws_B, L, K = s.feature_BC.shape, turn.wanted_B, program.lanes_at_once, program.guides_a_row
  if not 0 < L <= len(hidden_XD):
    # Run only on a turn on which some row needs it.
    return jax.lax.cond(draws_B.any(), lambda: model.next_feature(hidden_XD, turn), lambda: jnp.zeros((B, C)))
  guide_BK = _guides(s.owner_G, rows=B, most=K)
  row_N, nth_N, total = _places(jnp.where(draws_B, 1 + (guide_BK >= 0).sum(axis=1), 0), most=1 + K, chunk=L)
  lane_BJ = jnp.concatenate([jnp.arange(B, dtype=jnp.int32)[:, None], guide_BK], axis=1)

  def some(i: jax.Array, feature_BC: jax.Array) -> jax.Array:
    # Each lane is a row here; those of guides are no row's and come to nothing.
    row_L, nth_L = (jax.lax.dynamic_slice_in_dim(x, i * L, L) for x in (row_N, nth_N))
    inside_L = jnp.minimum(row_L, B - 1)
    lane_L = lane_BJ[inside_L, nth_L]
    owner_L = jnp.arange(L) - nth_L
    weight_L = jnp.where(row_L < B, turn.mix_BX[inside_L, lane_L], 0.0)
    own = turn._replace(
        owner_X=owner_L, mix_BX=jnp.where(jnp.arange(L)[:, None] == owner_L, weight_L, 0.0), key_B=turn.key_B[inside_L],
        wanted_B=(row_L < B) & (nth_L == 0), solver_B=turn.solver_B[inside_L], interval_B2=turn.interval_B2[inside_L],
        temperature_B=turn.temperature_B[inside_L], top_k_B=turn.top_k_B[inside_L],
    )  # fmt: skip
    feature_LC = model.next_feature(hidden_XD[lane_L], own)
    return feature_BC.at[jnp.where(own.wanted_B, row_L, B)].set(feature_LC, mode="drop")

  return jax.lax.fori_loop(0, (total + L - 1) // L, some, jnp.zeros((B, C)))


def _guides(owner_G: jax.Array, *, rows: int, most: int) -> jax.Array:
  """Each row's guides as lanes, int32 [B, K]; -1 where it has no more."""
  G = len(owner_G)
  before_GG = (owner_G[:, None] == owner_G[None]) & (jnp.arange(G)[:, None] > jnp.arange(G)[None])
  none_BK = jnp.full((rows, most), -1, jnp.int32)
  return none_BK.at[owner_G, before_GG.sum(axis=1)].set(rows + jnp.arange(G, dtype=jnp.int32), mode="drop")


def _places(count_B: jax.Array, *, most: int, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Places for some lanes of each row, so that no row's lie in two chunks.

  Args:
    count_B: int32, of each row, `most` at most.
    most: at most a chunk.
    chunk: places.

  Returns:
    int32 [N], the row of each place, B for none; which of its lanes, from 0; how many places are in use.
  """
  B = len(count_B)
  N = (-(-B // (chunk // most)) + most - 1) * chunk  # rows of as many lanes may have to begin with a chunk
  row_N, nth_N, begin = jnp.full(N, B, jnp.int32), jnp.zeros(N, jnp.int32), jnp.int32(0)
  for c in range(most, 0, -1):  # rows of as many lanes stand together, as many as a chunk holds in each
    per = chunk // c
    unit = c if chunk % c == 0 else chunk  # what they begin at a multiple of
    begin = (begin + unit - 1) // unit * unit
    has_B = count_B == c
    nth_B = jnp.cumsum(has_B) - 1
    first_B = begin + nth_B // per * chunk + nth_B % per * c
    for n in range(c):
      at_B = jnp.where(has_B, first_B + n, N)
      row_N = row_N.at[at_B].set(jnp.arange(B, dtype=jnp.int32), mode="drop")
      nth_N = nth_N.at[at_B].set(n, mode="drop")
    begin += has_B.sum() // per * chunk + has_B.sum() % per * c
  return row_N, nth_N, begin


def by_pictures(model: Orthus, s: State, turn: Turn, program: Program) -> Moved:
  """Feeds rows in a picture the whole of it, which refines it; the others one position.

  `s.patch_B` counts a picture's passes from 1. After the last, the codes that have come of it are read once more, so that what
  follows sees them, unless nothing does.
  """
  B, P = s.token_B.shape[0], model.config.vision_tokenizer.patches
  owner_X, order = turn.owner_X, s.order
  inside_B = (s.patch_B > 0) & s.active_B
  opens_B = (s.patch_B == 0) & (s.token_B == program.ids.boi) & s.active_B
  refines_B = inside_B & (s.patch_B <= order.passes)
  start_X = s.length_X.at[B:].set(jnp.where(opens_B[owner_X[B:]], s.origin_G, s.length_X[B:]))
  token_BD = model.embed_tokens(s.token_B)

  def one() -> tuple[jax.Array, Cache, jax.Array]:
    hidden_X1D, cache = model.transformer.extend(
        token_BD[owner_X][:, None], s.cache, start_B=start_X, window=program.window
    )
    return hidden_X1D[:, 0], cache, s.code_BP

  def whole() -> tuple[jax.Array, Cache, jax.Array]:
    patches_BPD = model.hide(model.embed_features(model.feature_of(jnp.maximum(s.code_BP, 0))), s.code_BP == HIDDEN)
    # A row of text has one position of these, and what is behind it is overwritten later.
    text_BPD = jnp.broadcast_to(token_BD[:, None], patches_BPD.shape)
    x_BPD = jnp.where(inside_B[:, None, None], patches_BPD, text_BPD)
    place_XP = start_X[:, None] + jnp.arange(P)
    last_XP = jnp.where(inside_B[owner_X][:, None], start_X[:, None] + P - 1, place_XP)
    hidden_XPD, cache = model.transformer.extend(
        x_BPD[owner_X], s.cache, start_B=start_X, last_BT=last_XP, window=program.window
    )

    def refined() -> jax.Array:
      logits_BPK = mixed(model.code_logits(hidden_XPD), turn.mix_BX)
      key_B = jax.vmap(jax.random.fold_in)(turn.key_B, s.patch_B)
      code_BP = model.image_head.refine(
          logits_BPK, s.code_BP, step_B=jnp.minimum(s.patch_B, order.passes), steps_B=order.passes, key_B=key_B,
          temperature_B=turn.temperature_B,
      )  # fmt: skip
      return jnp.where(refines_B[:, None], code_BP, s.code_BP)

    return hidden_XPD[:, 0], cache, jax.lax.cond(refines_B.any(), refined, lambda: s.code_BP)

  hidden_XD, cache, code_BP = jax.lax.cond(inside_B.any(), whole, one)
  ends_B = (
      refines_B & (s.patch_B == order.passes) & order.stop_after_images & (s.images_B + 1 >= order.max_images)
  )
  closes_B = (inside_B & ~refines_B) | ends_B
  reads_B = s.active_B & ~inside_B & ~opens_B
  moved_B = jnp.where(inside_B & ~refines_B, P, reads_B | opens_B)
  moved_X = jnp.concatenate([moved_B, opens_B[owner_X[B:]] & (s.owner_G < B)])
  return Moved(
      hidden_XD, cache, start_X + moved_X, reads_B=reads_B, closes_B=closes_B,
      gains_B=jnp.where(closes_B, P + 1, reads_B).astype(jnp.int32), feature_BC=s.feature_BC,
      patch_B=jnp.where(opens_B, 1, jnp.where(inside_B & ~closes_B, s.patch_B + 1, 0)),
      code_BP=jnp.where(opens_B[:, None], HIDDEN, code_BP),
  )  # fmt: skip
