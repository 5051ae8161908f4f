"""What a config file says of a sweep: a plain list of runs, made by small functions that multiply, pair and add lists up.

    from orthus_jax import sweep

    def get_sweep(arg=""):
      systems = [sweep.Run("orthus"), sweep.Run("chameleon", argument="chameleon")]
      return sweep.product(systems, sweep.grid({"run.seed": range(3)}))

`orthus sweep` trains them (docs/sweep.md). The functions are those of XManager's and big_vision's hyper, but for fields, which
are keys of a mapping, since they have dots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import itertools
import math
from typing import Any
import zlib

import numpy as np

from orthus_jax.errors import BadRequest

Draw = Callable[[float], Any]  # a number from 0 to 1, drawn evenly, to a value


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep, told by how it differs from the config that the sweep is of.

  Attributes:
    name: what its directory's name begins with, in the place of what it overrides; by default its argument, and overrides.
    argument: for the config file's get_config; by default what `orthus sweep --config=FILE:ARGUMENT` gives.
    overrides: dotted field → value, as in {"optimizer.learning_rate": 1e-3}.
    evaluate: options of `orthus evaluate` for when it is trained ("" for none); by default it isn't evaluated beyond its
      own report.
    named: fields that the name stands for; by default all of a run with a name.
  """

  name: str = ""
  argument: str | None = None
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  evaluate: str | None = None
  named: frozenset[str] | None = None

  def __post_init__(self):
    if self.named is None:
      object.__setattr__(self, "named", frozenset(self.overrides) if self.name else frozenset())


Runs = Run | Iterable[Run]


def grid(fields: Mapping[str, Iterable[Any]]) -> list[Run]:
  """Every combination of some fields' values, the last field's changing fastest.

  Raises:
    BadRequest: if there is no field, or one has no values.
  """
  if not fields:
    raise BadRequest("an empty grid: give it fields, such as run.seed=0,1,2")
  values = {field: _values(field, given) for field, given in fields.items()}
  return [Run(overrides=dict(zip(values, chosen))) for chosen in itertools.product(*values.values())]


def product(*parts: Runs) -> list[Run]:
  """Every combination of runs of each part; their names are joined, and all their overrides hold.

  Raises:
    BadRequest: if two say the same thing.
  """
  return [_merged(runs) for runs in itertools.product(*map(_runs, parts))]


def zipit(*parts: Runs) -> list[Run]:
  """The parts' first runs combined, their second ones, and so on.

  Raises:
    BadRequest: if they aren't equally many, or two say the same thing.
  """
  lists = [_runs(p) for p in parts]
  if len({len(runs) for runs in lists}) > 1:
    raise BadRequest(f"zipit needs equally many runs of each part, not {', '.join(str(len(runs)) for runs in lists)}")
  return [_merged(runs) for runs in zip(*lists)]


def chain(*parts: Runs) -> list[Run]:
  """The runs of all parts, one after the other."""
  return list(itertools.chain.from_iterable(map(_runs, parts)))


def draws(seed: int, n: int, fields: Mapping[str, Draw]) -> list[Run]:
  """Runs whose fields are drawn at random, each draw once.

  A field's values depend on the seed and its name alone, and the first n on no more that follow: fields and runs can be added
  to a sweep that has begun.

  Args:
    seed: of the draws.
    n: draws; there are as many runs, less those that were drawn before.
    fields: dotted field → `uniform`, `loguniform`, `integer` or `choice`.

  Raises:
    BadRequest: if there is nothing to draw.
  """
  if n < 1 or not fields:
    raise BadRequest(f"{n} draws of {len(fields)} fields: give a number from 1, and fields")
  if wrong := [f for f, draw in fields.items() if not callable(draw)]:
    raise BadRequest(f"{wrong[0]}={fields[wrong[0]]!r} is no distribution: write uniform, loguniform, integer or choice")
  shares = {f: np.random.default_rng((seed, zlib.crc32(f.encode()))).random(n) for f in fields}
  drawn = [{f: draw(float(shares[f][i])) for f, draw in fields.items()} for i in range(n)]
  return [Run(overrides=overrides) for overrides in {repr(o): o for o in drawn}.values()]


def uniform(low: float, high: float) -> Draw:
  """Evenly between two numbers, to four digits."""
  _check(low < high, "uniform", low, high, "the first below the second")
  return lambda u: _rounded(low + (high - low) * u)


def loguniform(low: float, high: float) -> Draw:
  """Evenly in the logarithm, to four digits."""
  _check(0 < low < high, "loguniform", low, high, "above 0, the first below the second")
  return lambda u: _rounded(low * (high / low) ** u)


def integer(low: int, high: int) -> Draw:
  """A whole number, both ends among them."""
  whole = float(low).is_integer() and float(high).is_integer()
  _check(low < high and whole, "integer", low, high, "whole numbers, the first below the second")
  return lambda u: int(low) + int((high + 1 - low) * u)


def choice(*values: Any) -> Draw:
  """One of some values."""
  if not values:
    raise BadRequest("choice() has no values to choose from")
  return lambda u: values[int(len(values) * u)]


def _rounded(value: float) -> float:
  """To four digits: names of runs show all of it."""
  return float(f"{value:.4g}")


def _check(holds: bool, name: str, low: float, high: float, wanted: str) -> None:
  if not (holds and math.isfinite(low) and math.isfinite(high)):
    raise BadRequest(f"{name}({low:g}, {high:g}) must be {wanted}")


def _values(field: str, given: Any) -> list[Any]:
  if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
    raise BadRequest(f"{field}={given!r} must be a list of values in a grid")
  if not (values := list(given)):
    raise BadRequest(f"an empty grid: {field} has no values")
  return values


def _runs(part: Any) -> list[Run]:
  runs = [part] if isinstance(part, Run) else list(part) if hasattr(part, "__iter__") else [part]
  if wrong := [r for r in runs if not isinstance(r, Run)]:
    raise BadRequest(f"a sweep is of runs, such as sweep.Run('name') or what sweep.grid gives, not of {wrong[0]!r}")
  return runs


def _merged(runs: Iterable[Run]) -> Run:
  runs = list(runs)
  overrides: dict[str, Any] = {}
  for run in runs:
    if both := [f for f in run.overrides if f in overrides]:
      raise BadRequest(f"two parts of a sweep say what {both[0]} is: leave it to one")
    overrides |= run.overrides
  return Run(
      "-".join(r.name for r in runs if r.name), _one("argument", [r.argument for r in runs]), overrides,
      _one("evaluate", [r.evaluate for r in runs]), frozenset().union(*(r.named or () for r in runs)),
  )  # fmt: skip


def _one(what: str, given: list[str | None]) -> str | None:
  said = [g for g in given if g is not None]
  if len(said) > 1:
    raise BadRequest(f"two parts of a sweep say what {what} is ({said[0]!r}, {said[1]!r}): leave it to one")
  return said[0] if said else None
