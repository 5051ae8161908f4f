"""AdamW or Muon, with warm-up and clipping, over the parameters that are trained."""

from __future__ import annotations

import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from orthus_jax.config import OptimizerConfig, RunConfig
from orthus_jax.errors import BadRequest
from orthus_jax.models.params import Params


def schedule(config: OptimizerConfig, steps: int, *, peak: float | None = None) -> optax.Schedule:
  """Learning rate by step: linear warm-up to the peak, then the config's decay to the end of the run."""
  warmup = min(config.warmup_steps, steps)
  peak = config.learning_rate if peak is None else peak
  last = peak * config.final_fraction
  rest = max(steps - warmup, 1)
  after = {
      "constant": lambda: optax.constant_schedule(peak),
      "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
      "linear": lambda: optax.linear_schedule(peak, last, rest),
  }[config.schedule]()
  return optax.join_schedules([optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1)), after], [warmup])


def decays(name: str) -> bool:
  """Whether weight decay applies: to matrices, but not to norms, biases, embeddings or codebooks."""
  return not re.search(r"norm|bias|scale|(token|position)_embedding|codebook", name)


def muon_dimensions(name: str) -> MuonDimensionNumbers | None:
  """How Muon sees a parameter as a matrix (or a stack of them, one per layer); None leaves it to AdamW.

  Embeddings, the LM head, norms, biases, convolutions and the image head's first and last linear are AdamW's.
  """
  if re.search(r"attention/[qkv]$", name):
    return MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3))
  if name.endswith("attention/out"):
    return MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=3)
  if re.search(r"mlp/(gate|up|down)$", name):
    return MuonDimensionNumbers(reduction_axis=1, output_axis=2)
  if re.search(r"image_head/(blocks/.*|condition|final_modulation|time_out)/kernel$", name):
    return MuonDimensionNumbers(reduction_axis=0, output_axis=1)
  return None


def make_optimizer(config: OptimizerConfig, run: RunConfig) -> optax.GradientTransformation:
  """The optax chain for a run."""
  c = config
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm > 0 else optax.identity()

  def decayed(params: Params) -> dict[str, bool]:
    return {name: decays(name) for name in params}

  rate = schedule(c, run.steps)
  if c.name == "muon":
    rule = optax.contrib.muon(
        rate, ns_steps=c.newton_schulz_steps, beta=0.95, weight_decay=c.weight_decay, weight_decay_mask=decayed,
        adam_b1=c.b1, adam_b2=c.b2, eps=c.eps,
        adam_learning_rate=schedule(c, run.steps, peak=c.adamw_learning_rate or c.learning_rate),
        consistent_rms=0.2,  # the size of AdamW's updates, so that one learning rate serves both
        muon_weight_dimension_numbers=lambda params: {n: muon_dimensions(n) for n in params},
    )  # fmt: skip
  else:
    rule = optax.adamw(rate, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decayed)
  chain = optax.chain(clip, rule)

  def init(params: Params):
    moments = chain.init(_as_float32(params))
    return jax.tree.map(lambda m: m.astype(c.moment_dtype) if m.ndim and m.dtype == jnp.float32 else m, moments)

  return optax.GradientTransformation(init, chain.update)


def _as_float32(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def update(
    optimizer: optax.GradientTransformation, grads: Params, moments: Any, params: Params, *, key: jax.Array, rounding: str
) -> tuple[Params, Any]:
  """New parameters and moments, computed in fp32 and rounded to what they are kept in.

  Args:
    optimizer: from `make_optimizer`.
    grads: of the parameters, in any dtype.
    moments: the optimizer's state.
    params: to be updated.
    key: of the step; each array draws its own bits, place by place, so that the mesh doesn't change them.
    rounding: see OptimizerConfig.rounding.
  """
  updates, new_moments = optimizer.update(_as_float32(grads), _as_float32(moments), _as_float32(params))
  new_params = optax.apply_updates(_as_float32(params), updates)

  def store(path: Any, new: jax.Array, old: jax.Array) -> jax.Array:
    if new.dtype == old.dtype or rounding == "nearest":
      return new.astype(old.dtype)
    return round_stochastically(new, jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode())))

  return jax.tree_util.tree_map_with_path(store, (new_params, new_moments), (params, moments))


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
  """fp32 to bf16: up or down at random, so that the expected result is x. Infinities and NaNs stay."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # bf16 is the upper half of fp32: adding to the lower half carries over as often as it is large.
  raised = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = jnp.where(jnp.isfinite(x), raised, bits) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def trainable_names(config: OptimizerConfig, params: Params | dict[str, jax.ShapeDtypeStruct]) -> frozenset[str]:
  """The parameters that any of the config's patterns matches.

  Raises:
    BadRequest: if a pattern is no regular expression or nothing is left to train.
  """
  try:
    patterns = [re.compile(p) for p in config.trainable]
  except re.error as e:
    raise BadRequest(f"optimizer.trainable: {e.pattern!r} is no regular expression: {e}") from e
  names = frozenset(n for n in params if any(p.match(n) for p in patterns))
  if not names:
    raise BadRequest(f"optimizer.trainable={list(config.trainable)} matches no parameter: nothing would be trained")
  return names
