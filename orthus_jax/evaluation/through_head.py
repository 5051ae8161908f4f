"""Pictures drawn again patch by patch, each given the true ones before it: what an image head can tell from its states.

It is how far Orthus-base has come, whose backbone is frozen while its head learns. What doesn't follow from the patches before,
no head can tell, and it is made up. Axes: P patches, C latent values, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.data.documents import Document, Image
from orthus_jax.data.sequence import layout
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.reconstruction import psnr
from orthus_jax.inference.model import Model
from orthus_jax.models import params as params_lib, systems
from orthus_jax.models.heads.base import Turn
from orthus_jax.models.orthus import Orthus
from orthus_jax.parallel import compiler


def evaluate(model: Model, documents: Sequence[Document], *, seed: int = 0) -> dict[str, float]:
  """Scores the last picture of each document, drawn through the head with the model's own steps and image temperature, without
  guidance.

  Args:
    model: its head draws patch by patch.
    documents: each ends in a picture, of the model's resolution, and fits the model.
    seed: of the draws.

  Returns:
    Mean PSNR in dB: "psnr_through_head", "psnr_unquantised" (the vision tokenizer's own, what a perfect head would give) and
    "psnr_quantised" (of the nearest codes, what a perfect discrete model would give).

  Raises:
    BadRequest: if a document doesn't end in a picture, or the head draws whole pictures.
  """
  if systems.image_head(model.config.model).whole_pictures:
    raise BadRequest("this model's head draws whole pictures, so none of its patches follows from those before it alone")
  if not documents or not all(d.segments and isinstance(d.segments[-1], Image) for d in documents):
    raise BadRequest("give documents that end in a picture")
  pictures = [d.images[-1].pixels for d in documents]
  features = model.encode(pictures)
  codebook_KC = np.asarray(model.params["vision_tokenizer/codebook"], np.float32)
  made = {
      "through_head": draw_all(model, documents, seed=seed), "unquantised": list(features),
      "quantised": nearest(features, codebook_KC),
  }  # fmt: skip
  return {
      f"psnr_{name}": float(np.mean([psnr(a, b) for a, b in zip(pictures, model.decode(f))])) for name, f in made.items()
  }


def nearest(features_NPC: np.ndarray, codebook_KC: np.ndarray) -> list[np.ndarray]:
  """The nearest codes' rows of each picture's features, [P, C]."""
  return [codebook_KC[np.square(f_PC[:, None] - codebook_KC).sum(-1).argmin(-1)] for f_PC in features_NPC]


def draw_all(model: Model, documents: Sequence[Document], *, seed: int = 0) -> list[np.ndarray]:
  """`draw` for each document, each with a key of its own."""
  key = jax.random.key(seed)
  return [draw(model, d, key=jax.random.fold_in(key, n)) for n, d in enumerate(documents)]


def draw(model: Model, document: Document, *, key: jax.Array) -> np.ndarray:
  """Features [P, C] of a document's last picture, each drawn from the state before it."""
  config = model.config.model
  P, C, longest = config.vision_tokenizer.patches, config.vision_tokenizer.latent_dim, config.transformer.max_positions
  laid = layout(document, model.tokenizer, patches=P)
  T = min(-(-len(laid) // 64) * 64, longest)  # few lengths, so that few programs are compiled
  if len(laid) > longest:
    raise BadRequest(f"document {document.id!r} takes {len(laid)} positions of at most {longest}")
  features_JC = model.encode([i.pixels for i in laid.images]).reshape(-1, C)
  tokens_T, slot_T = np.full(T, model.tokenizer.pad, np.int32), np.full(T, -1, np.int32)
  tokens_T[: len(laid)] = laid.tokens_T
  slot_T[np.flatnonzero(laid.image_T >= 0)] = np.arange(len(features_JC))
  solver = ((model.config.sampling.solver, model.config.sampling.steps),)
  return np.asarray(_draw(
      model.graphdef, model.params, tokens_T, features_JC, slot_T, int(laid.starts_I[-1]), jax.random.split(key, P),
      model.config.sampling.image_temperature, solvers=solver,
  ))  # fmt: skip


@functools.partial(compiler.jit, static_argnames=("graphdef", "solvers"))
def _draw(
    graphdef: Any, params: Any, tokens_T: jax.Array, features_JC: jax.Array, slot_T: jax.Array, start: jax.Array,
    key_P: jax.Array, temperature: jax.Array, *, solvers: tuple[tuple[str, int], ...],
) -> jax.Array:  # fmt: skip
  net: Orthus = params_lib.merge(graphdef, params)
  T, P = tokens_T.shape[0], key_P.shape[0]
  hidden_1TD = net(
      tokens_T[None], features_BJC=features_JC[None], slot_BT=slot_T[None], position_BT=jnp.arange(T)[None],
      segment_ids_BT=jnp.ones((1, T), jnp.int32),
  )  # fmt: skip
  z_PD = jax.lax.dynamic_slice_in_dim(hidden_1TD[0], start, P)
  turn = Turn(
      owner_X=jnp.arange(P), mix_BX=jnp.eye(P), key_B=key_P, wanted_B=jnp.ones(P, bool), solvers=solvers,
      solver_B=jnp.zeros(P, jnp.int32), interval_B2=jnp.zeros((P, 2)), temperature_B=jnp.full(P, temperature),
      top_k_B=jnp.zeros(P, jnp.int32),
  )  # fmt: skip
  return net.next_feature(z_PD, turn)
