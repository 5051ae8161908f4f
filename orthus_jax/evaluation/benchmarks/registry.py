"""The benchmarks that can be scored, by name."""

from __future__ import annotations

from collections.abc import Callable
import importlib
from types import ModuleType

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks.base import Score

# Name → what it is. A module of the same name has `score(path, *, …) -> Score`, `LAYOUT`, the files that it reads in words,
# and `OPTIONS`, what `orthus score` says of each keyword argument.
BENCHMARKS: dict[str, str] = {
    "dpg_bench": "questions about what long prompts ask for",
    "fid": "FID and KID of two sets of features",
    "geneval": "things, counts, colours and places in drawn pictures",
    "gqa": "questions composed of steps",
    "ip2p": "edited pictures, from CLIP embeddings: CLIP-T, CLIP-I and CLIP-D",
    "mmmu": "questions of 30 college subjects",
    "mme": "yes/no questions in 14 subtasks, two a picture",
    "pope": "whether an object is in the picture, in three splits",
    "vqav2": "questions that ten people answered",
    "wise": "pictures of what a prompt implies, in two versions",
}


def module(name: str) -> ModuleType:
  """A benchmark's module.

  Raises:
    BadRequest: if there is none of that name.
  """
  if name not in BENCHMARKS:
    raise BadRequest(f"no benchmark is called {name!r}: {', '.join(BENCHMARKS)}")
  return importlib.import_module(f"orthus_jax.evaluation.benchmarks.{name}")


def scorer(name: str) -> Callable[..., Score]:
  """A benchmark's scorer."""
  return module(name).score
