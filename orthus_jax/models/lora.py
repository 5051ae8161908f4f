"""Low-rank adapters beside the weights of layers (LoRA, arXiv 2106.09685): x W + alpha / R (x A) B.

An adapter of `attention/q` is two parameters beside it, `attention/q_lora_a` [inputs, R] and `attention/q_lora_b`
[R, outputs], stacked and named as W is. They are kept in float32 whatever W is kept in, as their updates are small.
"""

from __future__ import annotations

from collections.abc import Iterable
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from orthus_jax.config import LoraConfig
from orthus_jax.models.params import param

_A, _B = "_lora_a", "_lora_b"


class Adapter(NamedTuple):
  """A [inputs, R] and B [R, outputs], with a leading axis of layers where they are whole parameters."""

  a: jax.Array
  b: jax.Array


def attach(layer: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs) -> None:
  """Gives a layer's weights the adapters that the config asks for: A uniform as in the released code, B zero."""
  for name in config.adapted:
    part, weight = name.split("/")
    module = getattr(layer, part)
    kernel = getattr(module, weight)
    shape, axes, n = kernel[...].shape, kernel.get_metadata()["axes"], inputs(name)
    bound = math.prod(shape[:n]) ** -0.5
    a = jax.random.uniform(rngs.params(), (*shape[:n], config.rank), minval=-bound, maxval=bound)
    setattr(module, weight + _A, param(a, *axes[:n], None))
    setattr(module, weight + _B, param(jnp.zeros((config.rank, *shape[n:])), None, *axes[n:]))


def adapter(module: nnx.Module, weight: str) -> Adapter | None:
  """The adapter of a module's weight; None where it has none."""
  a = getattr(module, weight + _A, None)
  return None if a is None else Adapter(a[...], getattr(module, weight + _B)[...])


def inputs(name: str) -> int:
  """How many of a weight's axes are summed over: attention's output reads heads and their values."""
  return 2 if name.endswith("attention/out") else 1


def names(params: Iterable[str]) -> frozenset[str]:
  """Those of some parameters that are adapters'."""
  return frozenset(n for n in params if n.endswith((_A, _B)))


def names_of(weight: str) -> tuple[str, str]:
  """What the adapter's A and B of a parameter are called."""
  return weight + _A, weight + _B
