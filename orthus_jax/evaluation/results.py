"""What a benchmark hands back: judged cases, and the scores, intervals and baselines that add up from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any
import zlib

import numpy as np

from orthus_jax.data.documents import Image, Segment, Text

Marks = Mapping[str, tuple[float, float]]
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Turn:
  """One step of a story: what was told, what was drawn, and whether both are right.

  Attributes:
    text: "" where a picture came without words.
    pixels: uint8 [R, R, 3]; None where words came without a picture.
    right: whether the turn counts.
    reason: what is wrong with it.
  """

  text: str
  pixels: np.ndarray | None
  right: bool
  reason: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
  """One judged response.

  Attributes:
    kind: the document's.
    tag: a finer name: GenEval's tag, the question's type, the edit's operation.
    id: of the document; cases of one document are resampled together.
    prompt: the words of the prompt.
    given: the picture of the prompt, uint8 [R, R, 3].
    response: what the model answered.
    expected: the right answer in words.
    target: the right picture, where there is just one.
    seen: what the judge read in the response's picture.
    right: the verdict.
    reason: what is wrong, "" if nothing is.
    marks: score name → (points got, points there were).
    baseline: the same for a trivial model.
    turns: of a story.
  """

  kind: str
  tag: str
  id: str
  prompt: str
  right: bool
  marks: Marks
  given: np.ndarray | None = None
  response: tuple[Segment, ...] = ()
  expected: str = ""
  target: np.ndarray | None = None
  seen: str = ""
  reason: str = ""
  baseline: Marks = dataclasses.field(default_factory=dict)
  turns: tuple[Turn, ...] = ()

  @property
  def text(self) -> str:
    """All words of the response."""
    return " ".join(s.text for s in self.response if isinstance(s, Text))

  @property
  def picture(self) -> np.ndarray | None:
    """The response's first picture."""
    return next((s.pixels for s in self.response if isinstance(s, Image)), None)


@dataclasses.dataclass(frozen=True)
class Result:
  """A benchmark's outcome.

  Attributes:
    scores: by name, each a share from 0 to 1.
    intervals: 95% bootstrap intervals, documents resampled; they collapse where all is right or all is wrong.
    counts: how many judgements each score rests on.
    baselines: what a trivial model scores.
    seconds: by part.
    cases: everything judged, in the data set's order.
    measures: what isn't a share, such as a distance, by name.
  """

  scores: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  counts: dict[str, int]
  baselines: dict[str, float]
  seconds: dict[str, float]
  cases: tuple[Case, ...]
  measures: dict[str, float] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """All but the cases, as JSON holds it."""
    return {
        "scores": dict(self.scores), "intervals": {k: list(v) for k, v in self.intervals.items()},
        "counts": dict(self.counts), "baselines": dict(self.baselines), "measures": dict(self.measures),
        "seconds": dict(self.seconds),
    }  # fmt: skip


def summarize(
    cases: Sequence[Case], *, means: Mapping[str, Sequence[str]], seconds: Mapping[str, float], seed: int = 0
) -> Result:
  """Adds the cases' marks up.

  Args:
    cases: judged responses.
    means: names of scores that are unweighted means of others; left out where one of those is missing.
    seconds: by part.
    seed: of the bootstrap.
  """
  points, trivial = _by_document(cases, "marks"), _by_document(cases, "baseline")
  scores = {name: _ratio(v_D2) for name, v_D2 in points.items()}
  counts = {name: int(round(v_D2[:, 1].sum())) for name, v_D2 in points.items()}
  baselines = {name: _ratio(v_D2) for name, v_D2 in trivial.items()}
  replicates = {name: _resample(v_D2, name, seed) for name, v_D2 in points.items()}
  for name, parts in means.items():
    if not all(p in scores for p in parts):
      continue
    scores[name] = float(np.mean([scores[p] for p in parts]))
    counts[name] = sum(counts[p] for p in parts)
    replicates[name] = np.mean([replicates[p] for p in parts], axis=0)
    if all(p in baselines for p in parts):
      baselines[name] = float(np.mean([baselines[p] for p in parts]))
  quantiles = {name: np.quantile(r, (0.025, 0.975)) for name, r in replicates.items()}
  intervals = {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}
  return Result(scores, intervals, counts, baselines, dict(seconds), tuple(cases))


def _by_document(cases: Iterable[Case], field: str) -> dict[str, np.ndarray]:
  """Score name → points got and points there were, [documents, 2]."""
  found: dict[str, dict[str, list[float]]] = {}
  for case in cases:
    for name, (got, of) in getattr(case, field).items():
      total = found.setdefault(name, {}).setdefault(case.id, [0.0, 0.0])
      total[0] += got
      total[1] += of
  tables = {name: np.asarray(list(by_id.values())) for name, by_id in found.items()}
  return {name: table for name, table in tables.items() if table[:, 1].sum() > 0}


def _ratio(points_D2: np.ndarray) -> float:
  got, of = points_D2.sum(0)
  return float(got / of)


def _resample(points_D2: np.ndarray, name: str, seed: int) -> np.ndarray:
  # Seeded by name, so that one score's interval doesn't hang on which others there are.
  rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
  points_D2 = points_D2[points_D2[:, 1] > 0]
  drawn_ND = rng.integers(len(points_D2), size=(_RESAMPLES, len(points_D2)))
  got_N, of_N = points_D2[drawn_ND].sum(1).T
  return got_N / of_N
