"""The diffusion head's solver loop as one TPU kernel: the weights that every step needs are brought to the chip once a patch.

The grid is the steps. A block whose index doesn't change from step to step is fetched once, so the head's sequential weights
stay in the vector memory, while each step's modulations are fetched during the step before. At 7B, these are 14.9M
parameters, 30 MB in bfloat16, that the plain loop reads from the main memory 100 times a patch.

There is none for GPUs. There, no processor's own memory holds these weights: they would be spread over all, which had to wait
for each other at each of the 8 products of a step. That takes as long as reading them again, mostly from the second-level
cache. Axes: B rows, X rows and then their guides, C latent values, W head width, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from orthus_jax.diffusion import solvers
from orthus_jax.models.heads.layers import accumulated_in_fp32

_MEMORY = 100 << 20  # of vector memory that it may take; chips from v5e on have 128 MiB, a core of a TPU7x 64


def solve(
    head: nnx.Module,
    reads: Callable[[tuple, Any], bool],
    denoise: Callable[[Any, jax.Array, Any], jax.Array],
    noise_BC: jax.Array,
    modulations_SX: Any,
    row_SB: solvers.Table,
    *,
    owner_X: jax.Array,
    mix_SBX: jax.Array,
    more_SBC: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
  """All steps from noise to a feature, [B, C] in fp32.

  Args:
    head: with its parameters.
    reads: which of them, by path and value, a step reads.
    denoise: the prediction [X, C] of (the head, x [X, C], a step's modulations).
    noise_BC: what it starts from.
    modulations_SX: arrays [S, X, ...].
    row_SB: coefficients, [S, B] each.
    owner_X: the row that each state belongs to.
    mix_SBX: the prediction that a row follows at a step is sum_x mix[s, b, x] v_x.
    more_SBC: standard normal; None where no solver adds noise.
    interpret: run it as plain operations, on any backend.
  """
  S, B, X = mix_SBX.shape
  graphdef, state, others = nnx.split(head, reads, ...)
  values, tree = jax.tree.flatten(state)
  # Vectors have two axes there.
  values = [v[None] if v.ndim == 1 else v for v in values]
  modulations, mod_tree = jax.tree.flatten(modulations_SX)
  table_SB6 = jnp.stack([jnp.broadcast_to(c, (S, B)) for c in row_SB[1:]], axis=-1).astype(jnp.float32)
  own_XB = (owner_X[:, None] == jnp.arange(B)[None]).astype(jnp.float32)
  extra = [] if more_SBC is None else [more_SBC.astype(jnp.float32)]
  exact = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)

  def apart(share_ON: jax.Array, value_NC: jax.Array) -> jax.Array:
    """Sums [O, C] of shares; one lane's NaN, times 0, would be everybody's."""
    spoilt_N1 = 1 - jnp.min(jnp.where(jnp.abs(value_NC) < jnp.inf, 1.0, 0.0), axis=1, keepdims=True)
    sum_OC = exact(share_ON, jnp.where(spoilt_N1 > 0, 0.0, value_NC))
    return jnp.where(exact(jnp.where(share_ON != 0, 1.0, 0.0), spoilt_N1) > 0, jnp.nan, sum_OC)

  def kernel(*refs):
    refs = list(refs)
    noise_ref, own_ref, table_ref, mix_ref = refs[:4]
    more_ref = refs[4 : 4 + len(extra)]
    rest = refs[4 + len(extra) :]
    weights, rest = rest[: len(values)], rest[len(values) :]
    mods, (out_ref, x_ref, previous_ref) = rest[: len(modulations)], rest[len(modulations) :]

    @pl.when(pl.program_id(0) == 0)
    def _():
      x_ref[...] = noise_ref[...]
      previous_ref[...] = jnp.zeros_like(previous_ref)

    own = nnx.merge(graphdef, jax.tree.unflatten(tree, [w[...] for w in weights]), others)
    x_BC = x_ref[...]
    x_XC = x_BC if X == B else apart(own_ref[...], x_BC)
    with accumulated_in_fp32():
      v_XC = denoise(own, x_XC, jax.tree.unflatten(mod_tree, [m[0] for m in mods]))
    v_BC = apart(mix_ref[0], v_XC)
    table_B6 = table_ref[0]
    row = solvers.Table(None, *(table_B6[:, i] for i in range(6)))  # type: ignore[arg-type]
    more_BC = more_ref[0][0] if extra else jnp.float32(0.0)
    x_BC, previous_BC = _step(x_BC, v_BC, previous_ref[...], more_BC, row)
    x_ref[...], previous_ref[...] = x_BC, previous_BC

    @pl.when(pl.program_id(0) == S - 1)
    def _():
      out_ref[...] = x_BC

  def stays(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda s: (0,) * x.ndim, pipeline_mode=None if interpret else pl.Buffered(1))

  def moves(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, *x.shape[1:]), lambda s: (s, *(0,) * (x.ndim - 1)))

  operands = [noise_BC, own_XB, table_SB6, mix_SBX, *extra, *values, *modulations]
  return pl.pallas_call(
      kernel, grid=(S,), name="solver_loop",
      in_specs=[
          stays(noise_BC), stays(own_XB), moves(table_SB6), moves(mix_SBX), *map(moves, extra), *map(stays, values),
          *map(moves, modulations),
      ],
      out_specs=pl.BlockSpec(noise_BC.shape, lambda s: (0, 0)),
      out_shape=jax.ShapeDtypeStruct(noise_BC.shape, jnp.float32),
      scratch_shapes=[pltpu.VMEM(noise_BC.shape, jnp.float32)] * 2,
      compiler_params=None if interpret else pltpu.CompilerParams(
          dimension_semantics=("arbitrary",), vmem_limit_bytes=_MEMORY
      ),
      interpret=interpret,
  )(*operands)  # fmt: skip


def _step(x_BC, v_BC, previous_BC, noise_BC, row: solvers.Table):
  return solvers.step(x_BC, v_BC, previous_BC, noise_BC, row._replace(t=row.x))
