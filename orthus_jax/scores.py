"""Scores of benchmarks from files, a function each: no model is needed.

    import orthus_jax as oj
    oj.scores.mme("results/").scores["Perception"]

`orthus score --help` lists them; a function's keyword arguments are the command's options.
"""

from __future__ import annotations

from collections.abc import Callable

from orthus_jax.evaluation.benchmarks import registry
from orthus_jax.evaluation.benchmarks.base import Score

__all__ = ["Score", *registry.BENCHMARKS]


def __getattr__(name: str) -> Callable[..., Score]:
  if name in registry.BENCHMARKS:
    return registry.scorer(name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(registry.BENCHMARKS)}")


def __dir__() -> list[str]:
  return __all__
