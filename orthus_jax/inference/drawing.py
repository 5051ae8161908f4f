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
  B, P, C = s.token_B.shape[0], model.config.vision_tokenizer.patches, s.feature_BC.shape[1]
  owner_X, is_patch_B = turn.owner_X, s.patch_B > 0
  owner_G, owned_G = owner_X[B:], s.owner_G < B
  opens_B = ~is_patch_B & (s.token_B == program.ids.boi)
  drawn_B1D = model.embed_features(s.feature_BC[:, None], patch_BJ=jnp.maximum(s.patch_B - 1, 0)[:, None])
  x_BD = jnp.where(is_patch_B[:, None], drawn_B1D[:, 0], model.embed_tokens(s.token_B))
  start_X = s.length_X.at[B:].set(jnp.where(opens_B[owner_G], s.origin_G, s.length_X[B:]))
  hidden_X1D, cache = model.transformer.extend(x_BD[owner_X][:, None], s.cache, start_B=start_X, window=program.window)
  hidden_XD = hidden_X1D[:, 0]
  # A guide that its row doesn't need now stays where it is: what it was fed will be overwritten.
  moved_X = jnp.concatenate([s.active_B, (s.active_B & (opens_B | is_patch_B))[owner_G] & owned_G])
  draws_B = (opens_B | (is_patch_B & (s.patch_B < P))) & s.active_B
  closes_B = is_patch_B & (s.patch_B == P) & s.active_B
  # The head runs only on a turn on which some row needs it.
  feature_BC = jax.lax.cond(
      draws_B.any(), lambda: model.next_feature(hidden_XD, turn._replace(wanted_B=draws_B)), lambda: jnp.zeros((B, C))
  )
  return Moved(
      hidden_XD, cache, start_X + moved_X, reads_B=~draws_B & ~closes_B & s.active_B, closes_B=closes_B,
      gains_B=s.active_B.astype(jnp.int32), feature_BC=feature_BC, patch_B=jnp.where(draws_B, s.patch_B + 1, 0),
      code_BP=s.code_BP,
  )  # fmt: skip


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
