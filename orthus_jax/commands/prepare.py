"""`orthus prepare`: makes the data set that a config reads, ahead of training."""

from __future__ import annotations

from collections.abc import Sequence
import collections

from orthus_jax.commands import common
from orthus_jax.config import BadRequest
from orthus_jax.data import sources


def main(argv: Sequence[str]) -> int:
  """Makes it, and counts its documents."""
  from orthus_jax.commands.train import read_config

  if "--help" in argv or "-h" in argv or not argv:
    print("usage: orthus prepare --config=FILE[:ARGUMENT] [--config.some.field=value ...]\n\n"
          "Makes the data set that the config reads, unless it is there, and counts its documents.")
    return 0
  config, _ = read_config(argv)
  common.start(verbose=True)
  splits = ("train", "validation", "test") if config.data.source == "shapes" else (config.data.split,)
  for split in splits:
    source = sources.open_source(config, split)
    documents = (source[i] for i in range(len(source)))
    kinds = collections.Counter(d.kind if d is not None else "bad" for d in documents)
    print(f"{split}: {len(source)} documents (" + ", ".join(f"{n} {k}" for k, n in sorted(kinds.items())) + ")")
    if set(kinds) == {"bad"}:
      raise BadRequest(f"{split} holds no good document")
  return 0
