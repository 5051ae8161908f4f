"""What every benchmark's scorer gives back, and the intervals of its figures.

A scorer reads the files that the benchmark's own tools read, and gives that tool's figures. Where the tool has a fault, its
figure stands among `scores`, and `straight` has beside it what a straight reading of the same files gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest, one_line
from orthus_jax.files import first_line

_RESAMPLES = 1000
_NAMED = 3
_LETTERS = 80


@dataclasses.dataclass(frozen=True)
class Score:
  """A benchmark's figures.

  Attributes:
    benchmark: its name, as `orthus score` takes it.
    protocol: whose figures these are: the tool, its commit or version, and what was chosen where it has variants.
    scores: by name, in the tool's own units and order; "a/b" is b of subtask a.
    units: what a score is counted in, by name; what isn't named is in `unit`.
    unit: of the others, such as "%" or "of 2,000"; "" for a plain number.
    intervals: 95% bootstrap intervals, by the score's name.
    counts: how many answers, pictures or pairs each score rests on.
    straight: what a straight reading gives where the tool's figure differs from it, by the score's name.
    notes: what was met in the files that a reader of the figures must know, a line each.
    rows: per answer or picture what was read and how it was judged, as JSON holds it.
  """

  benchmark: str
  protocol: str
  scores: dict[str, float]
  unit: str = ""
  units: dict[str, str] = dataclasses.field(default_factory=dict)
  intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  straight: dict[str, float] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()
  rows: tuple[dict[str, Any], ...] = ()

  def to_json(self) -> dict[str, Any]:
    """All but the rows, as JSON holds it; figures that aren't finite are the words "nan", "inf" and "-inf"."""
    values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rows"}
    return finite(values)


def finite(value: Any) -> Any:
  """A value as JSON holds it: numbers in it that aren't finite, for which JSON has no form, become "nan", "inf" and "-inf"."""
  if isinstance(value, Mapping):
    return {k: finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite(v) for v in value]
  if isinstance(value, float | np.floating):
    return float(value) if np.isfinite(value) else str(float(value))
  return value


def under(protocol: str, scorer: Callable[..., Score], **options: Any) -> str:
  """A protocol's name with the options that aren't the scorer's defaults: figures under other rules are other figures."""
  usual = inspect.signature(scorer).parameters
  changed = [f"{name} {value}" for name, value in options.items() if value != usual[name].default]
  return f"{protocol}, with {', '.join(changed)}" if changed else protocol


def refuse(scorer: Callable[..., Score], wanted: str, **options: Any) -> None:
  """Refuses options that aren't the scorer's defaults, where what they belong to isn't asked for.

  Raises:
    BadRequest: naming the first, and what it goes with.
  """
  usual = inspect.signature(scorer).parameters
  for name, value in options.items():
    if value != usual[name].default:
      raise BadRequest(f"{name}={value} goes with {wanted}: give that too, or leave it out")


class Notes:
  """Counts what a file holds that isn't as it should be, and names the first few."""

  def __init__(self) -> None:
    self._said: list[str] = []
    self._found: dict[str, list[str]] = {}

  def say(self, line: str) -> None:
    """A line about a file as a whole, such as that it is partial; these stand first."""
    if line not in self._said:
      self._said.append(line)

  def add(self, what: str, file: Path, line: int | None = None, name: str = "") -> None:
    """Counts one.

    Args:
      what: what is the matter and what the tool does with it, as it stands behind a number: "lines without four columns, …".
      file: where it was met.
      line: counted from 1.
      name: of the item, where it has one.
    """
    where = file.name if line is None else f"{file.name}:{line}"
    self._found.setdefault(what, []).append(f"{where} ({one_line(name)[:_LETTERS]})" if name else where)

  def lines(self) -> tuple[str, ...]:
    """A line for each matter, in the order in which they were met."""
    return *self._said, *(
        f"{len(at):,} {what}: {', '.join(at[:_NAMED])}{', …' if len(at) > _NAMED else ''}" for what, at in self._found.items()
    )


def resampled(units_UK: np.ndarray, *, seed: int = 0) -> np.ndarray:
  """Sums over resamples of independent units.

  Args:
    units_UK: for each unit that is drawn as a whole (a prompt, a picture, a question) K numbers that are added up.
    seed: of the draws; independent groups of units that are drawn apart (strata) take a seed each.

  Returns:
    [N, K], a resample a row.
  """
  units_UK = np.asarray(units_UK, np.float64)
  rng = np.random.default_rng(seed)
  rows_RK, count_R = np.unique(units_UK, axis=0, return_counts=True)
  u, r = len(units_UK), len(rows_RK)
  if 16 * r < u:  # units that are alike are drawn together
    return rng.multinomial(u, count_R / u, size=_RESAMPLES) @ rows_RK
  return np.stack([np.bincount(rng.integers(u, size=u), minlength=u) @ units_UK for _ in range(_RESAMPLES)])


def interval(value_N: np.ndarray) -> tuple[float, float] | None:
  """What 95% of the resamples' figures lie between; those that aren't finite are left out, None where all are so."""
  if not len(finite := value_N[np.isfinite(value_N)]):
    return None
  low, high = np.quantile(finite, (0.025, 0.975))
  return float(low), float(high)


def bootstrap(
    units_UK: np.ndarray, statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
  """95% intervals of figures that follow from sums over independent units.

  Args:
    units_UK: for each unit that is drawn as a whole (a prompt, a picture, a question) K numbers that are added up.
    statistic: from sums [N, K] of N resamples to figures [N] by name. What isn't finite is left out of an interval.
    seed: of the draws.

  Returns:
    (low, high) by name; none where no resample has a finite figure.
  """
  if not len(units_UK):
    return {}
  sums_NK = resampled(units_UK, seed=seed)
  with np.errstate(all="ignore"):
    figures = statistic(sums_NK)
  return {name: found for name, value_N in figures.items() if (found := interval(value_N))}


def judging(judge: Callable[..., Any]) -> Callable[..., Any]:
  """A judge of one's own whose failure says of which picture; its first argument is the picture's name."""

  def called(name: str, *given: Any) -> Any:
    try:
      return judge(*given)
    except Exception as e:  # it is somebody else's code
      raise BadRequest(f"the judge fails on {name}: {type(e).__name__}: {first_line(e)} (--debug shows where)") from e

  return called
