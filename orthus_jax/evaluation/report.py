"""Self-contained pages: the report of a run, and the worst cases of an evaluation."""

from __future__ import annotations

import base64
import collections
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from orthus_jax import files
from orthus_jax.config import Config, to_dict
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document
from orthus_jax.data.shapes.language import TAGS
from orthus_jax.evaluation import curves, opening, shapes_table
from orthus_jax.evaluation.results import Case, Result
from orthus_jax.progress import duration
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.metric_writer import read_metrics

HEADLINE = {
    "single_object": ("Pictures of one thing right", "another caption's picture"),
    "geneval_overall": ("Pictures, mean of six tasks", "another caption's picture"),
    "open_accuracy": ("Open answers right", "the commonest answer"),
    "yes_no_accuracy": ("Yes/no answers right", "always yes"),
    "edits": ("Edits carried out", "leaving it as it is"),
    "story_turns": ("Turns of stories right", ""),
}
CURVES = {
    "text_loss": "Text loss", "image_loss": "Image loss", "loss": "Loss", "text_accuracy": "Text accuracy",
    "grad_norm": "Gradient norm", "learning_rate": "Learning rate", "tokens_per_second": "Positions a second",
}  # fmt: skip
NOT_SMOOTHED = ("learning_rate",)
_KINDS = {
    "caption_to_image": "Pictures from captions", "question": "Questions", "image_to_caption": "Captions",
    "edit": "Edits", "story": "Stories",
}  # fmt: skip
_DRAWINGS_PER_TAG, _QUESTION_CARDS, _CAPTION_CARDS, _EDITS, _STORIES = 8, 6, 6, 8, 3


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
      loader=jinja2.PackageLoader("orthus_jax.evaluation"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
      undefined=jinja2.StrictUndefined,
  )  # fmt: skip
  environment.filters["png"] = _data_url
  return environment


def _data_url(pixels: np.ndarray) -> str:
  return "data:image/png;base64," + base64.b64encode(images_lib.png_bytes(pixels)).decode()


def write_page(path: Path, template: str, **values: Any) -> Path:
  """Writes a page of one of templates/."""
  files.write_text(path, _environment().get_template(template).render(**values))
  return path


def write_report(
    workdir: Path,
    *,
    config: Config,
    result: Result | None = None,
    figures: Mapping[str, Any],
    samples: Sequence[Document] = (),
    split: str = "test",
    title: str = "",
) -> Path:
  """Writes WORKDIR/report.html: scores, examples, curves and costs on one page without outside resources.

  Args:
    workdir: the run's; its metrics are drawn as curves.
    config: the experiment.
    result: from `shapes.evaluate`; None where the data isn't the built-in world.
    figures: what report.json holds; "seconds" (by part, and "total"), "peak_memory_bytes", "params_digest" and
      "versions" are laid out, other numbers and texts listed.
    samples: documents to show as they are, learnt segments being the model's.
    split: what the scores were measured on.
    title: by default made from the workdir's name.

  Returns:
    The page's path.
  """
  workdir = Path(workdir)
  values: dict[str, Any] = {
      "title": title or f"Orthus, trained in {workdir.name}", "subtitle": _subtitle(config, figures), "split": split,
      "samples": samples, "config": json.dumps(to_dict(config), indent=2), "curves": _draw_curves(workdir),
      "parts": _parts(figures.get("seconds", {})), "facts": _facts(figures),
  }  # fmt: skip
  values |= {name: [] for name in ("headline", "drawings", "questions", "captions", "edits", "stories", "rows")}
  values["opening"] = None
  if result is not None:
    values |= _examples(result) | {"headline": _headline(result), "rows": _rows(result), "opening": opening.choose(result)}
  return write_page(workdir / "report.html", "report.html.j2", **values)


def write_worst(path: Path, *, result: Result, title: str, subtitle: str = "", most: int = 40) -> Path:
  """Writes a page of an evaluation's cases, wrong ones first.

  Args:
    path: the page's.
    result: from `shapes.evaluate`.
    title: the page's.
    subtitle: a line below it.
    most: cases of each kind.
  """
  by_kind = collections.defaultdict(list)
  for case in result.cases:
    by_kind[case.kind].append(case)
  groups = [
      {"kind": kind, "label": label, "count": len(by_kind[kind]), "wrong": sum(not c.right for c in by_kind[kind]),
       "cases": sorted(by_kind[kind], key=_badness)[:most]}
      for kind, label in _KINDS.items() if by_kind[kind]
  ]  # fmt: skip
  return write_page(Path(path), "worst.html.j2", title=title, subtitle=subtitle, groups=groups)


def _badness(case: Case) -> tuple[bool, float]:
  """Sorts wrong cases first, those with the least points among them before the others."""
  got, of = np.sum(list(case.marks.values()), axis=0) if case.marks else (0.0, 1.0)
  return case.right, got / max(of, 1.0)


# --- parts of the page ----------------------------------------------------------------------------------------------


def _subtitle(config: Config, figures: Mapping[str, Any]) -> str:
  parts = [f"{config.run.steps:,} steps of {config.run.batch_size} rows"]
  if isinstance(figures.get("parameters"), int):
    parts.insert(0, f"{figures['parameters'] / 1e6:.1f} million parameters")
  if "total" in figures.get("seconds", {}):
    parts.append(f"{duration(figures['seconds']['total'])} in all")
  return ", ".join(parts)


def _rows(result: Result) -> list[dict[str, Any]]:
  return [
      {"section": section, "place": i, "label": label} | _score(result, name)
      for i, (section, name, label) in enumerate(shapes_table.rows(result))
  ]  # fmt: skip


def _score(result: Result, name: str) -> dict[str, Any]:
  return {"name": name, "score": result.scores[name], "interval": result.intervals[name],
          "count": result.counts[name], "baseline": result.baselines.get(name)}  # fmt: skip


def _headline(result: Result) -> list[dict[str, Any]]:
  return [{"label": label, "trivial": trivial} | _score(result, name)
          for name, (label, trivial) in HEADLINE.items() if name in result.scores]  # fmt: skip


def _examples(result: Result) -> dict[str, Any]:
  """The first cases of each kind."""
  def first(kind: str, n: int) -> list[Case]:
    return [c for c in result.cases if c.kind == kind][:n]

  drawings = []
  labels = shapes_table.SECTIONS["Pictures from captions"]
  for tag in TAGS:
    # One picture a caption, so that more captions are seen.
    by_caption = {c.id: c for c in reversed(result.cases) if c.kind == "caption_to_image" and c.tag == tag}
    if by_caption:
      most = _DRAWINGS_PER_TAG * (2 if tag == TAGS[0] else 1)
      cases = list(reversed(by_caption.values()))[:most]
      drawings.append(_score(result, tag) | {"label": labels[tag].capitalize(), "cases": cases})
  by_picture = collections.defaultdict(list)
  for case in result.cases:
    if case.kind == "question":
      by_picture[case.id].append(case)
  return {
      "drawings": drawings, "questions": list(by_picture.values())[:_QUESTION_CARDS],
      "captions": first("image_to_caption", _CAPTION_CARDS), "edits": first("edit", _EDITS),
      "stories": first("story", _STORIES),
  }  # fmt: skip


def _draw_curves(workdir: Path) -> list[dict[str, Any]]:
  records = read_metrics(workdir)
  found = []
  for name, label in CURVES.items():
    points = [(r["step"], r[name]) for r in records if isinstance(r.get(name), (int, float))]
    if len(points) > 1 and not (name == "loss" and any("text_loss" in r for r in records)):
      steps, values = zip(*points)
      # The file is read by people who want a rough figure: the mean of the last twentieth, not one noisy value.
      last = float(np.mean(values[-max(len(values) // 20, 1):])) if name not in NOT_SMOOTHED else values[-1]
      svg = curves.line_chart(steps, values, label=f"{label} by step", smoothed=name not in NOT_SMOOTHED)
      found.append({"label": label, "last": curves.number(float(f"{last:.3g}")), "svg": markupsafe.Markup(svg)})
  return found


def _parts(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
  parts = {k: v for k, v in seconds.items() if k != "total" and isinstance(v, (int, float)) and v > 0}
  if not parts:
    return []
  total = sum(parts.values())
  rest = seconds.get("total", total) - total
  if rest > 0.005 * total:
    parts["other"] = rest
  # Shades of one colour tell neighbours apart.
  shades = np.linspace(1.0, 0.25, len(parts))
  return [{"label": k.replace("_", " "), "share": v, "time": duration(v), "opacity": f"{o:.2f}"}
          for (k, v), o in zip(parts.items(), shades)]  # fmt: skip


def _facts(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
  facts = []
  if "total" in figures.get("seconds", {}):
    facts.append(("Time", duration(figures["seconds"]["total"])))
  if "peak_memory_bytes" in figures:
    facts.append(("Peak memory", f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB"))
  known = ("scores", "intervals", "counts", "baselines", "seconds", "peak_memory_bytes", "params_digest", "versions")
  for name, value in figures.items():
    if name not in known and isinstance(value, (int, float, str)) and not isinstance(value, bool):
      shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
      facts.append((name.replace("_", " ").capitalize(), shown))
  if "params_digest" in figures:
    facts.append(("SHA-256 of the parameters", figures["params_digest"]))
  versions = figures.get("versions") or checkpoint.versions()
  return [*facts, ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items()))]
