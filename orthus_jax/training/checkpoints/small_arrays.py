"""Small arrays of a checkpoint, kept as one for each dtype.

A library that stores arrays takes about a millisecond for each of them, however small it is, and most of a model's are: of
the quickstart's 347 (parameters, average, moments) all but nine are. What lies where is said in JSON beside the arrays
(Orbax' `custom_metadata`), so that a reader needs no rule of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

KEY = "packed"  # in the metadata
SMALL = 1 << 20  # bytes
Packing = dict[str, list[list[Any]]]  # name of a packed array → [name, shape] of those in it, in their order


def plan(arrays: Mapping[str, Any]) -> Packing:
  """Which arrays go together: the small ones of a dtype, in the order of their names.

  Args:
    arrays: with `shape` and `dtype`.
  """
  packing: Packing = {}
  for name in sorted(arrays):
    a = arrays[name]
    if math.prod(a.shape) * np.dtype(a.dtype).itemsize <= SMALL:
      packing.setdefault(f"{KEY}.{np.dtype(a.dtype).name}", []).append([name, list(a.shape)])
  return packing


def pack(arrays: Mapping[str, jax.Array], packing: Packing) -> dict[str, jax.Array]:
  """The arrays with the small ones in packed form: one-dimensional, a copy of its own on each device."""
  inside = {name for parts in packing.values() for name, _ in parts}
  packed = {k: _concatenate([arrays[name] for name, _ in parts]) for k, parts in packing.items()}
  return packed | {name: a for name, a in arrays.items() if name not in inside}


def _concatenate(parts: list[jax.Array]) -> jax.Array:
  sharding = next((a.sharding for a in parts if isinstance(a.sharding, NamedSharding)), None)
  whole = NamedSharding(sharding.mesh, PartitionSpec()) if sharding else None
  return jax.jit(_flat, out_shardings=whole)(parts)


def _flat(parts: list[jax.Array]) -> jax.Array:
  return jnp.concatenate([a.reshape(-1) for a in parts])


def unpack(packed: np.ndarray, parts: list[list[Any]]) -> dict[str, np.ndarray]:
  """What a packed array holds, by name: views of it.

  Raises:
    ValueError: if it has another length than its parts say.
  """
  sizes = [math.prod(shape) for _, shape in parts]
  if packed.shape != (sum(sizes),):
    raise ValueError(f"a packed array has shape {packed.shape}, its parts take {sum(sizes)}")
  pieces = np.split(packed, np.cumsum(sizes)[:-1])
  return {name: piece.reshape(shape) for (name, shape), piece in zip(parts, pieces)}
