"""Which of a checkpoint's files this process's devices need: zarr keeps each chunk of an array in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import itertools
from pathlib import Path
from typing import Any

from jax.sharding import Sharding

from orthus_jax import files
from orthus_jax.training.checkpoints import orbax_items


def of(folder: Path, names: Iterable[str], shapes: Mapping[str, Any], shardings: Mapping[str, Any]) -> list[str]:
  """Those of a checkpoint's files that aren't other processes' chunks.

  What isn't known to be another's is needed: all of what Orbax has in another layout.

  Args:
    folder: the checkpoint's, with what describes its arrays.
    names: of its files, relative to it.
    shapes, shardings: of the arrays that are read, by item.
  """
  wanted = dict.fromkeys(names)
  for item, tree in shapes.items():
    places = orbax_items.flatten(shardings[item])
    for array, leaf in orbax_items.flatten(tree).items():
      about = files.read_json(folder / item / array / ".zarray")
      if tuple(about.get("shape", ())) != tuple(leaf.shape) or not about.get("chunks"):
        continue
      own = _chunks(tuple(leaf.shape), about["chunks"], places[array], about.get("dimension_separator", "."))
      first = f"{item}/{array}/"
      for name in [n for n in wanted if n.startswith(first) and n.removeprefix(first)[0].isdigit()]:
        if name.removeprefix(first) not in own:
          del wanted[name]
  return list(wanted)


def _chunks(shape: tuple[int, ...], chunks: list[int], sharding: Sharding, separator: str) -> set[str]:
  """Names of the chunks that hold what this process's devices hold."""
  found: set[str] = set()
  for index in sharding.addressable_devices_indices_map(shape).values():
    spans = (i.indices(n)[:2] for i, n in zip(index or (), shape))
    grid = [range(begin // c, -(-end // c)) for (begin, end), c in zip(spans, chunks)]
    found.update(separator.join(map(str, place)) or "0" for place in itertools.product(*grid))  # "0" of a single number
  return found
