"""A benchmark run's page: figures beside published ones, by tag, and cases."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
import urllib.parse

from orthus_jax.evaluation.benchmarks.base import Score
from orthus_jax.evaluation.benchmarks.published import PUBLISHED
from orthus_jax.evaluation.report import write_page
from orthus_jax.evaluation.runs.judged import Judged

_CASES = 8  # of each sort, of each tag
_EMBEDDED = 1 << 17  # bytes of a picture that is put into the page; larger ones are linked to


def write(
    out: Path, *, title: str, score: Score, found: Sequence[Judged], protocol: Mapping[str, Any], published: bool = True
) -> Path:
  """Writes OUT/index.html.

  Args:
    out: the run's folder.
    title: the page's.
    score: its figures.
    found: the judged answers.
    protocol: what they depend on.
    published: whether the questions are the benchmark's own, so that others' figures may stand beside.
  """
  main, times, others = PUBLISHED.get(score.benchmark, ("", 1.0, ())) if published else ("", 1.0, ())
  own = score.scores.get(main)
  bars: list[dict[str, Any]] = [{"system": p.system, "value": p.value, "source": p.source, "own": False} for p in others]
  if own is not None:
    low, high = score.intervals.get(main, (own, own))
    interval = f"{low * times:,.4g} to {high * times:,.4g}"
    bars.append({"system": "this run", "value": own * times, "source": interval, "own": True})
  full = max((b["value"] for b in bars), default=1.0) or 1.0
  return write_page(
      out / "index.html", "benchmark.html.j2", title=title, score=score, main=main,
      bars=sorted(bars, key=lambda b: -b["value"]), full=full, groups=_groups(out, found), protocol=_lines(protocol),
      rows=[(n, v, score.intervals.get(n), score.counts.get(n), score.straight.get(n)) for n, v in score.scores.items()],
  )  # fmt: skip


def _groups(out: Path, found: Sequence[Judged]) -> list[dict[str, Any]]:
  """By tag: the worst cases and those in the middle, each in the benchmark's order."""
  groups = []
  for tag in dict.fromkeys(j.tag for j in found):
    there = sorted((j for j in found if j.tag == tag), key=lambda j: j.points)
    middle = max(len(there) // 2 - _CASES // 2, 0)
    sorts = {"worst": there[:_CASES], "median": there[middle : middle + _CASES]}
    if len(there) <= _CASES:
      sorts = {"all": there}
    mean = sum(j.points for j in there) / len(there)
    cases = {name: [(j, _source(out, j.picture)) for j in chosen] for name, chosen in sorts.items()}
    groups.append({"tag": tag, "count": len(there), "mean": mean, "sorts": cases})
  return groups


def _source(out: Path, picture: str) -> str:
  """What a page shows of a picture: itself if it is small, else where it lies."""
  if not picture:
    return ""
  path = Path(picture) if Path(picture).is_absolute() else out / picture
  try:
    if path.stat().st_size <= _EMBEDDED:
      kind = "png" if path.suffix == ".png" else "jpeg"
      return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
  except OSError:
    return ""
  return urllib.parse.quote(picture) if not Path(picture).is_absolute() else path.as_uri()


def _lines(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
  found = []
  for name, value in protocol.items():
    if isinstance(value, Mapping):
      value = ", ".join(f"{k}={v}" for k, v in value.items())
    found.append((name.replace("_", " "), str(value)))
  return found
