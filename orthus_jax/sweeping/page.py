"""A sweep's page: scores of all groups with intervals, curves, their pictures beside each other, and every run."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
import math
from pathlib import Path
from typing import Any
import urllib.parse

import markupsafe

from orthus_jax.evaluation import curves
from orthus_jax.evaluation.report import CURVES, HEADLINE, NOT_SMOOTHED, write_page
from orthus_jax.progress import duration
from orthus_jax.sweeping import pictures
from orthus_jax.sweeping.pictures import Drawing
from orthus_jax.training.metric_writer import read_metrics

COLOURS = 10  # that the page tells groups apart by
_FEW = 6  # scores that are drawn large
_DRAWN = ("loss", "text_loss", "image_loss", "text_accuracy", "tokens_per_second")


def write(
    folder: Path, *, title: str, runs: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]],
    drawings: Mapping[str, Drawing], requests: Path | None,
) -> Path:  # fmt: skip
  """Writes FOLDER/index.html, which stands alone but for links to runs' own reports.

  Args:
    folder: the sweep's.
    title: the page's.
    runs, groups: from `table.rows` and `table.groups`.
    drawings: group → what draws for it.
    requests: what all were asked to draw.
  """
  # Scores that are counted, of so many judgements; a published benchmark's may be points.
  shares = {n for r in runs for n in r["counts"]}
  shares -= {n for r in runs for n, v in r["scores"].items() if v is not None and not 0 <= v <= 1}
  colour = {g["group"]: f"c{i % COLOURS}" for i, g in enumerate(groups)}
  asked = pictures.asked(requests) if requests is not None and drawings else []
  return write_page(
      folder / "index.html", "sweep.html.j2", title=title, subtitle=_subtitle(runs, groups), groups=groups, colour=colour,
      failed=[r for r in runs if r["error"]],
      headline=_headline(groups, shares), shares=shares, curves=_draw_curves(folder, runs, colour),
      prompts=[p for _, p in asked], drawings=[_drawn(name, d, asked) for name, d in drawings.items()],
      scores=list(dict.fromkeys(n for g in groups for n in g["scores"])),
      rows=[_listed(folder, r) for r in runs],
      shown=_shown, duration=duration,
  )  # fmt: skip


def _listed(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
  """A run as the page lists it."""
  losses = {n: v for n, v in run["losses"].items() if v is not None}
  return {**run, "losses": losses, "report": _link(folder, run["id"]), "duration": duration(run["costs"].get("seconds", 0.0))}


def _subtitle(runs: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> str:
  counts: dict[str, int] = {}
  for r in runs:
    counts[r["state"]] = counts.get(r["state"], 0) + 1
  text = f"{_many(len(runs), 'run')} in {_many(len(groups), 'group')}: {', '.join(f'{n} {what}' for what, n in counts.items())}"
  seconds = sum(r["costs"].get("seconds", 0.0) for r in runs)
  return f"{text}; {duration(seconds)} of work" if seconds else text


def _many(n: int, what: str) -> str:
  return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _headline(groups: Sequence[Mapping[str, Any]], shares: Collection[str]) -> list[dict[str, Any]]:
  """The scores that say most, as bars of all groups; the first few of those that there are where none is known."""
  there = dict.fromkeys(n for g in groups for n in g["scores"])
  names = [n for n in HEADLINE if n in there] or list(there)[:_FEW]
  found = []
  for name in names:
    bars = [{"group": g["group"], **g["scores"][name]} for g in groups if name in g["scores"]]
    # A share of 1 fills a bar; of what is no share, the largest value does.
    full = 1.0 if name in shares else max(max(abs(b["mean"]), abs(b["high"] or 0.0)) for b in bars) or 1.0
    for b in bars:
      b |= {f"{end}_at": None if b[end] is None else min(max(b[end] / full, 0.0), 1.0) for end in ("mean", "low", "high")}
    found.append({"label": HEADLINE[name][0] if name in HEADLINE else name, "name": name, "bars": bars})
  return found


def _draw_curves(folder: Path, runs: Sequence[Mapping[str, Any]], colour: Mapping[str, str]) -> list[dict[str, Any]]:
  metrics = {r["id"]: read_metrics(folder / "runs" / r["id"]) for r in runs}
  found = []
  for name in _DRAWN:
    series: dict[str, list] = {}
    for r in runs:
      numbers = (m for m in metrics[r["id"]] if isinstance(m.get(name), (int, float)) and math.isfinite(m[name]))
      points = [(m["step"], m[name]) for m in numbers]
      if len(points) > 1:
        series.setdefault(r["group"], []).append(tuple(zip(*points)))
    if series:
      drawn = [curves.Series(colour[group], lines) for group, lines in series.items()]
      svg = curves.series_chart(drawn, label=f"{CURVES[name]} by step", smoothed=name not in NOT_SMOOTHED)
      found.append({"label": CURVES[name], "svg": markupsafe.Markup(svg)})
  return found


def _drawn(group: str, drawing: Drawing, asked: Sequence[tuple[str, str]]) -> dict[str, Any]:
  there = pictures.drawn(drawing)
  urls = ["data:image/png;base64," + base64.b64encode(there[i].read_bytes()).decode() if i in there else "" for i, _ in asked]
  return {"group": group, "run": drawing.run.id, "pictures": urls, "failure": pictures.failure(drawing)}


def _link(folder: Path, run: str) -> str:
  place = f"runs/{run}/report.html"
  return urllib.parse.quote(place) if (folder / place).is_file() else ""


def _shown(value: Mapping[str, Any] | None, share: bool = False) -> str:
  """A mean with half its interval: 0.52 ± 0.04, in hundredths if it is a share."""
  if value is None:
    return ""
  by = 100.0 if share else 1.0
  mean = f"{by * value['mean']:.1f}" if share else curves.number(float(f"{value['mean']:.3g}"))
  if value["low"] is None:
    return mean
  half = by * (value["high"] - value["low"]) / 2
  return f"{mean} ± {half:.1f}" if share else f"{mean} ± {curves.number(float(f'{half:.2g}'))}"
