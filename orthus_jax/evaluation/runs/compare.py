"""Two runs of a benchmark beside each other, item by item."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.benchmarks.base import bootstrap
from orthus_jax.evaluation.runs import judged
from orthus_jax.evaluation.runs.execute import PROTOCOL
from orthus_jax.evaluation.runs.judged import Judged
from orthus_jax.training.checkpoints import agreement


@dataclasses.dataclass(frozen=True)
class Difference:
  """How two runs differ in some items.

  Attributes:
    tag: of the items; "all", or "mean of tags", unweighted.
    count: items that both have.
    a, b: mean points of each run.
    low, high: 95% interval of b - a; units are resampled with both runs' items.
    better, worse: items in which b has more, or fewer, points than a.
  """

  tag: str
  count: int
  a: float
  b: float
  low: float
  high: float
  better: int
  worse: int


def compare(first: Path, second: Path) -> tuple[list[Difference], list[str]]:
  """The differences by tag, and what the two runs' protocols differ in.

  Raises:
    BadRequest: if one isn't scored, or they are of different benchmarks or have no item in common.
  """
  protocol, other = _protocol(first), _protocol(second)
  if protocol.get("benchmark") != other.get("benchmark"):
    names = f"{first} is a run of {protocol.get('benchmark')}, and {second} of {other.get('benchmark')}"
    raise BadRequest(f"{names}: compare two of one benchmark")
  a, b = ({j.id: j for j in judged.read(p)} for p in (first, second))
  both = [(a[i], b[i]) for i in a if i in b]
  if not both:
    raise BadRequest(f"{first} and {second} have no item in common")
  notes = []
  alone = len(a) - len(both), len(b) - len(both)
  if any(alone):
    notes.append(f"{alone[0]:,} items of {first} and {alone[1]:,} of {second} have no counterpart, and are left out")
  unlike = [d for d in agreement.between(protocol, other) if not agreement.within(d.field, ("versions",))]
  notes += [f"{name}: {x} and {y}" for name, x, y in unlike]
  return _differences(both), notes


def _protocol(run: Path) -> dict[str, Any]:
  path = run / PROTOCOL
  if not path.exists():
    raise BadRequest(f"{run} isn't a benchmark's run: it has no {PROTOCOL}")
  return reading.whole_json(path, dict, "a run's protocol")


def _differences(both: Sequence[tuple[Judged, Judged]]) -> list[Difference]:
  tags = list(dict.fromkeys(x.tag for x, _ in both))
  unit = {u: n for n, u in enumerate(dict.fromkeys(x.unit for x, _ in both))}
  units_UK = np.zeros((len(unit), 3 * len(tags)))
  for x, y in both:
    k = 3 * tags.index(x.tag)
    units_UK[unit[x.unit], k : k + 3] += x.points, y.points, 1

  def means(sums_NK: np.ndarray) -> np.ndarray:
    """[N, tags + 2, 2]: of each tag, the mean of tags, all."""
    sums_NT3 = sums_NK.reshape(len(sums_NK), -1, 3)
    by_tag_NT2 = sums_NT3[..., :2] / sums_NT3[..., 2:]
    all_N12 = (sums_NT3[..., :2].sum(1) / sums_NT3[..., 2:].sum(1))[:, None]
    return np.concatenate([by_tag_NT2, np.nanmean(by_tag_NT2, axis=1, keepdims=True), all_N12], axis=1)

  names = [*tags, "mean of tags", "all"]
  intervals = bootstrap(units_UK, lambda s: {n: np.diff(means(s)[:, i])[:, 0] for i, n in enumerate(names)})
  mean_T2 = means(units_UK.sum(0, keepdims=True))[0]
  found = []
  for name, (a, b) in zip(names, mean_T2):
    ours = [(x, y) for x, y in both if name in (x.tag, "all", "mean of tags")]
    better, worse = (sum(s * (y.points - x.points) > 0 for x, y in ours) for s in (1, -1))
    found.append(Difference(name, len(ours), float(a), float(b), *intervals[name], better, worse))
  return found if len(tags) > 1 else found[-1:]
