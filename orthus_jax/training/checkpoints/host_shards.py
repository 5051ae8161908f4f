"""What of a state this process's devices hold, as plain arrays in host memory, and back.

An array that lies on several of the devices is taken once. Which pieces there are, and in which order, follows from the state's
shapes and shardings alone, so that bytes mean something only to a process that holds the very same pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import json
from typing import Any, NamedTuple

import jax
import numpy as np

Span = tuple[tuple[int, int], ...]  # (begin, end) along each axis of the global array


class Piece(NamedTuple):
  """One part of one array.

  Attributes:
    name: the array's path in the tree.
    span: which part of it.
    dtype: of its values.
  """

  name: str
  span: Span
  dtype: np.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(end - begin for begin, end in self.span)


def pieces(shapes: Any, shardings: Any) -> list[Piece]:
  """Which pieces of a tree this process holds, in their order.

  Args:
    shapes: a tree with `shape` and `dtype`.
    shardings: of the same structure.
  """
  found = []
  for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings)):
    spans = {_span(i, leaf.shape) for i in sharding.addressable_devices_indices_map(tuple(leaf.shape)).values()}
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found += [Piece(name, span, np.dtype(leaf.dtype)) for span in sorted(spans)]
  return found


def nbytes(held: list[Piece]) -> int:
  """Of all pieces."""
  return sum(int(np.prod(p.shape)) * p.dtype.itemsize for p in held)


def digest(held: list[Piece]) -> str:
  """Tells whether two processes, or two starts of one, hold the same pieces."""
  said = [[p.name, p.span, p.dtype.name] for p in held]
  return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


class Copies:
  """Copies of trees of one kind in memory that no step writes to, one at a time."""

  def __init__(self) -> None:
    self._memory: list[np.ndarray] = []

  def take(self, tree: Any) -> list[np.ndarray]:
    """This process's pieces of a tree, as `pieces` has them, over those taken last; waits for nothing but the copies."""
    parts = [part for leaf in jax.tree.leaves(tree) for part in _distinct(leaf)]
    for part in parts:
      part.copy_to_host_async()
    values = [np.asarray(part) for part in parts]
    if not parts or parts[0].device.platform != "cpu":
      return values
    # On a CPU jax gives a view, and while there is one the next step can't have that memory: it would take as much again.
    self._memory = self._memory or [np.empty_like(value) for value in values]
    for copy, value in zip(self._memory, values, strict=True):
      np.copyto(copy, value)
    return self._memory


def give(held: list[Piece], values: Iterator[np.ndarray], shapes: Any, shardings: Any) -> Any:
  """The tree, placed as `shardings` say, from each process's pieces.

  Args:
    held: from `pieces`.
    values: of each of them.
    shapes, shardings: as for `pieces`.
  """
  by_name: dict[str, dict[Span, np.ndarray]] = {}
  for piece, value in zip(held, values, strict=True):
    by_name.setdefault(piece.name, {})[piece.span] = value

  def place(path: Any, leaf: Any, sharding: Any) -> jax.Array:
    own = by_name.pop(jax.tree_util.keystr(path, simple=True, separator="/"))
    return jax.make_array_from_callback(tuple(leaf.shape), sharding, lambda index: own[_span(index, leaf.shape)])

  return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def _distinct(leaf: jax.Array) -> list[jax.Array]:
  found = {_span(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
  return [found[span] for span in sorted(found)]


def _span(index: tuple[slice, ...], shape: tuple[int, ...]) -> Span:
  return tuple(i.indices(n)[:2] for i, n in zip(index, shape))
