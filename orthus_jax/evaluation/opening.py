"""What a report opens with: of each kind the first that is right, and one that isn't."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses

from orthus_jax.data.shapes.language import TAGS
from orthus_jax.evaluation.results import Case, Result


@dataclasses.dataclass(frozen=True)
class Opening:
  """Examples to begin with.

  Attributes:
    pictures: the first right one of each tag, at most six.
    wrong: the first picture that is wrong.
    edit: the first that is right; where none is, the one with the most points.
    answer: likewise.
    story: likewise.
    missing: the kinds of which none is right.
  """

  pictures: tuple[Case, ...]
  wrong: Case | None
  edit: Case | None
  answer: Case | None
  story: Case | None
  missing: tuple[str, ...]


def choose(result: Result) -> Opening:
  """Picks the examples by their verdicts and their order alone."""
  by_kind: dict[str, list[Case]] = {}
  for case in result.cases:
    by_kind.setdefault(case.kind, []).append(case)
  drawn = by_kind.get("caption_to_image", [])
  right = [next((c for c in drawn if c.tag == tag and c.right), None) for tag in TAGS]
  best = {
      "picture": next(iter(c for c in right if c), None),
      "edit": _best(by_kind.get("edit", ())),
      "answer": _best(c for c in by_kind.get("question", ()) if c.expected not in ("yes", "no")),
      "story": _best(by_kind.get("story", ())),
  }
  there = {"picture": drawn, "edit": by_kind.get("edit"), "answer": by_kind.get("question"), "story": by_kind.get("story")}
  return Opening(
      tuple(c for c in right if c), next((c for c in drawn if not c.right), None), best["edit"], best["answer"], best["story"],
      tuple(kind for kind, case in best.items() if there[kind] and not (case and case.right)),
  )  # fmt: skip


def _best(cases: Iterable[Case]) -> Case | None:
  """The first of those that are right, or else of those with the largest share of turns, or of points."""

  def rank(case: Case) -> tuple[bool, float, float]:
    got, of = (sum(v) for v in zip(*case.marks.values())) if case.marks else (0.0, 1.0)
    return case.right, sum(t.right for t in case.turns) / max(len(case.turns), 1), got / max(of, 1.0)

  return max(cases, key=rank, default=None)
