"""Pictures to features by the frozen vision tokenizer, once and ahead of training."""

from __future__ import annotations

from collections.abc import Callable
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.batch import FeatureTable
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import Orthus
from orthus_jax.models.params import Params
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.training import hosts
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.initial_state import check_source
from orthus_jax.training.state import digest_pieces

_ENCODE_BATCH = 256


def encoder(graphdef: Any, shapes: Params) -> Callable[[Params, jax.Array], jax.Array]:
  """A jitted function (the vision tokenizer's parameters, uint8 [n, R, R, 3]) → features [n, P, C].

  Args:
    graphdef: of the whole model.
    shapes: of all its parameters; those of other parts are never read.
  """
  others = {n: v for n, v in shapes.items() if not n.startswith("vision_tokenizer/")}

  @compiler.jit
  def encode(own: Params, pixels: jax.Array) -> jax.Array:
    rest = {n: jnp.zeros(v.shape, v.dtype) for n, v in others.items()}
    tokenizer = params_lib.merge(graphdef, {**rest, **own}).vision_tokenizer
    return tokenizer.encode(images_lib.to_model(pixels, tokenizer.config.pixels))

  return encode


def encoder_digest(params: Params) -> str:
  """A digest of all that features depend on: the encoder's parameters, not the decoder's.

  Of their bfloat16 values, so that it is the same for a frozen encoder that is kept in less than float32.
  """
  names = sorted(n for n in params if re.match(r"vision_tokenizer/(?!decoder|post_quant|codebook)", n))
  return digest_pieces((n, (p.astype(jnp.bfloat16) for p in hosts.pieces(params[n]))) for n in names)


def encode_table(table: FeatureTable, graphdef: Any, params: Params, mesh: Mesh, *, shape: tuple[int, int]) -> None:
  """Computes every distinct picture's features [P, C], once: each process a share, over its own devices."""
  own = {n: hosts.fetch(v) if hosts.several() else v for n, v in params.items() if n.startswith("vision_tokenizer/")}
  n, m, i = len(table.pixels), jax.process_count(), jax.process_index()
  if not n:
    return
  starts = range(0, n, _ENCODE_BATCH)
  mesh = hosts.own_mesh() if hosts.several() else mesh
  with jax.set_mesh(mesh):
    rows = mesh_lib.sharding(mesh, (_ENCODE_BATCH, 1, 1, 1), ("batch", None, None, None))
    run = encoder(graphdef, params)
    blocks = []
    for begin in starts[i::m]:
      pixels = np.stack(table.pixels[begin : begin + _ENCODE_BATCH])
      short = _ENCODE_BATCH - len(pixels)
      padded = np.pad(pixels, ((0, short), (0, 0), (0, 0), (0, 0))) if short else pixels
      blocks.append(np.asarray(run(own, jax.device_put(padded, rows))))
  if m == 1:
    table.features_IPC = np.concatenate(blocks)[:n]
    return
  mine = np.zeros((-(-len(starts) // m), _ENCODE_BATCH, *shape), np.float32)
  if blocks:
    mine[: len(blocks)] = blocks
  dealt = multihost_utils.process_allgather(mine)  # [processes, blocks of each, …]
  table.features_IPC = np.swapaxes(dealt, 0, 1).reshape(-1, *shape)[:n]


def encoder_of(config: Config) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
  """The vision tokenizer that run.init_from brings: pictures → features, and the digest of its encoder."""
  graphdef, shapes, _ = params_lib.shapes_and_axes(lambda: Orthus(config.model, rngs=params_lib.Keys(0)))
  wanted = {n: s for n, s in shapes.items() if n.startswith("vision_tokenizer/")}
  found = {}
  for prefix, path in config.run.init_from:
    check_source(config, prefix, path)
    found |= {prefix + n: v for n, v in checkpoint.load_params(path).items() if prefix + n in wanted}
  lacking = [n for n, s in wanted.items() if n not in found or found[n].shape != s.shape]
  if lacking:
    raise BadRequest(
        f"--images=features needs a trained vision tokenizer, and run.init_from brings no {lacking[0]}:"
        " set run.init_from=(('vision_tokenizer/', RUN),)"
    )
  own = {n: np.asarray(v).astype(wanted[n].dtype) for n, v in found.items()}
  encode = encoder(graphdef, shapes)
  return lambda pixels: np.asarray(encode(own, pixels)), encoder_digest(own)
