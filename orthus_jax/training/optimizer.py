"""AdamW or Muon, with warm-up and clipping, over the parameters that are trained."""

from __future__ import annotations

import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import optax

from orthus_jax.config import OptimizerConfig, RunConfig
from orthus_jax.config.optimizer import ALL_BUT_VQGAN
from orthus_jax.errors import BadRequest
from orthus_jax.models import lora
from orthus_jax.models.params import Params
from orthus_jax.training import muon


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
  return not re.search(r"norm|bias|scale|(token|position|hidden)_embedding|codebook", name)


def make_optimizer(config: OptimizerConfig, run: RunConfig) -> optax.GradientTransformation:
  """The optax chain for a run."""
  c = config
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm > 0 else optax.identity()

  def decayed(params: Params) -> dict[str, bool]:
    return {name: decays(name) for name in params}

  def adamw(peak: float) -> optax.GradientTransformation:
    rate = schedule(c, run.steps, peak=peak)
    return optax.adamw(rate, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decayed)

  if c.name == "muon":
    of_matrices = optax.chain(
        muon.scaled_by_muon(iterations=c.newton_schulz_steps, eps=c.eps),
        optax.identity(),  # where optax.contrib.muon has its scaling: checkpoints number the parts of a chain
        optax.add_decayed_weights(c.weight_decay, decayed),
        optax.scale_by_learning_rate(schedule(c, run.steps)),
    )
    rule = optax.partition(
        {"muon": of_matrices, "adam": adamw(c.adamw_learning_rate or c.learning_rate)},
        lambda params: {n: "muon" if muon.dimensions(n) else "adam" for n in params},
    )
  else:
    rule = adamw(c.learning_rate)
  chain = optax.chain(clip, rule)

  def init(params: Params):
    moments = chain.init(_as_float32(params))
    return jax.tree.map(lambda m: m.astype(c.moment_dtype) if m.ndim and m.dtype == jnp.float32 else m, moments)

  return optax.GradientTransformation(init, chain.update)


def global_norm(grads: Params) -> jax.Array:
  """The norm of all gradients together, added up in fp32 whatever they are kept in."""
  return jnp.sqrt(sum((jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)), jnp.float32(0)))


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
  """The parameters that any of the config's patterns matches, and all adapters; the default leaves it at these.

  A perceptual distance's are a fixed measure, and never among them.

  Raises:
    BadRequest: if a pattern is no regular expression, nothing is left to train, or a discriminator wouldn't learn.
  """
  try:
    patterns = [re.compile(p) for p in config.trainable]
  except re.error as e:
    raise BadRequest(f"optimizer.trainable: {e.pattern!r} is no regular expression: {e}") from e
  names = adapters = lora.names(params)
  if not adapters or config.trainable != ALL_BUT_VQGAN:
    names |= frozenset(n for n in params if any(p.match(n) for p in patterns) and not n.startswith("perceptual/"))
  if not names:
    raise BadRequest(f"optimizer.trainable={list(config.trainable)} matches no parameter: nothing would be trained")
  judges = {n for n in params if n.startswith("discriminator/")}
  if not judges <= names:
    raise BadRequest(
        "tokenizer_loss.adversarial needs a discriminator that learns: add 'discriminator/.*' to optimizer.trainable"
    )
  return names
