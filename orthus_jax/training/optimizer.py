"""AdamW with warm-up and clipping, over the parameters that are trained."""

from __future__ import annotations

import re

import jax
import optax

from orthus_jax.config import BadRequest, OptimizerConfig, RunConfig
from orthus_jax.models.params import Params


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up, then the config's decay to the end of the run."""
  warmup = min(config.warmup_steps, steps)
  peak, last = config.learning_rate, config.learning_rate * config.final_fraction
  rest = max(steps - warmup, 1)
  after = {
      "constant": lambda: optax.constant_schedule(peak),
      "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
      "linear": lambda: optax.linear_schedule(peak, last, rest),
  }[config.schedule]()
  return optax.join_schedules([optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1)), after], [warmup])


def decays(name: str) -> bool:
  """Whether weight decay applies: to matrices, but not to norms, biases, embeddings or codebooks."""
  return not re.search(r"norm|bias|scale|token_embedding|codebook", name)


def make_optimizer(config: OptimizerConfig, run: RunConfig) -> optax.GradientTransformation:
  """The optax chain for a run."""
  c = config
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm > 0 else optax.identity()
  adamw = optax.adamw(
      schedule(c, run.steps), b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay,
      mask=lambda params: {name: decays(name) for name in params},
  )  # fmt: skip
  return optax.chain(clip, adamw)


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
