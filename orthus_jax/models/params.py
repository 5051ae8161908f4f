"""Parameters by name: the flat view of a module that optimizer, checkpoint and sharding share.

A module's parameters are a dict from a path such as "transformer/layers/attention/q" to an array. Layers that are
scanned over hold one array with a leading `layers` axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax

Params = dict[str, Any]  # arrays of jax or numpy, or their shapes, by name
Axes = dict[str, tuple[str | None, ...]]


class Keys:
  """The keys that a module's first parameters are drawn from, in the place of `nnx.Rngs(params=seed)`: the same, bit for bit.

  `nnx.Rngs` counts in a variable. Under tracing, flax asks the count for its sharding each time, which it hasn't got, and jax
  words an error that names all that was traced so far: half of what `shapes_and_axes` took (flax 0.12.8, jax 0.10.2).
  """

  def __init__(self, seed: int | jax.Array):
    self._key = jax.random.key(seed) if isinstance(seed, int) else seed
    self._count = 0

  def params(self) -> jax.Array:
    """The next key."""
    self._count += 1
    return jax.random.fold_in(self._key, self._count - 1)


class Structure:
  """A graphdef that is hashed once: as a static argument it is at every call, and each time took 7 ms (flax 0.12.8)."""

  def __init__(self, graphdef: nnx.GraphDef):
    self.graphdef, self._hash = graphdef, hash(graphdef)

  def __hash__(self) -> int:
    return self._hash

  def __eq__(self, other: object) -> bool:
    if self is other:
      return True
    return isinstance(other, Structure) and self._hash == other._hash and self.graphdef == other.graphdef


def _flat(module: nnx.Module) -> tuple[Structure, dict[str, nnx.Variable]]:
  graphdef, state = nnx.split(module)
  return Structure(graphdef), {"/".join(map(str, path)): v for path, v in nnx.to_flat_state(state)}


def split(module: nnx.Module) -> tuple[Structure, Params]:
  """Takes a module apart into its static structure and its named parameters."""
  graphdef, variables = _flat(module)
  return graphdef, {name: v[...] for name, v in variables.items()}


def merge(graphdef: Structure, params: Params) -> Any:
  """Puts back together what `split` took apart; works under jit, grad and eval_shape."""

  def key(part: str) -> str | int:
    return int(part) if part.isdigit() else part

  flat = {tuple(key(p) for p in name.split("/")): nnx.Param(value) for name, value in params.items()}
  return nnx.merge(graphdef.graphdef, nnx.from_flat_state(flat))


def shapes_and_axes(init: Any) -> tuple[Structure, Params, Axes]:
  """Structure, shapes and logical axes of what `init()` would build, without building it.

  Args:
    init: a function of no arguments that returns a module.

  Returns:
    (graphdef, a ShapeDtypeStruct per name, a tuple of logical axis names per name).
  """
  graphdef, variables = _flat(nnx.eval_shape(init))
  shapes = {name: jax.ShapeDtypeStruct(v.get_value().shape, v.get_value().dtype) for name, v in variables.items()}
  axes = {}
  for name, v in variables.items():
    own = tuple(v.get_metadata().get("axes", (None,) * len(v.get_value().shape)))
    axes[name] = ("layers",) * (len(v.get_value().shape) - len(own)) + own
  return graphdef, shapes, axes


def differences(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
  """What keeps parameters of some shapes from being those of a model: a line each, none where they fit."""
  lines = [f"{n} {s} is missing" for n, s in expected.items() if n not in found]
  lines += [f"{n} {s} is unknown" for n, s in found.items() if n not in expected]
  wrong = [n for n in expected if n in found and found[n] != expected[n]]
  return lines + [f"{n} is {found[n]} where {expected[n]} is expected" for n in wrong]


def param(value: jax.Array, *axes: str | None) -> nnx.Param:
  """A parameter that carries the logical names of its axes."""
  assert value.ndim == len(axes), (value.shape, axes)
  return nnx.Param(value, axes=axes)
