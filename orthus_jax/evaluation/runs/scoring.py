"""Scoring what a run answered, where that can be done here."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

from orthus_jax import files
from orthus_jax.evaluation.benchmarks import gqa, registry
from orthus_jax.evaluation.benchmarks.base import Score
from orthus_jax.evaluation.runs import judged
from orthus_jax.evaluation.runs.judged import Judged
from orthus_jax.evaluation.runs.task import Task

SCORE = "score.json"
# What has to be done elsewhere first.
ELSEWHERE = {
    "geneval": "have a detector judge them: --judge=module:function here, or GenEval's own tool on the same folder",
    "dpg_bench": "have DPG-Bench's own tool ask its network about them, or a judge: `orthus score dpg_bench --help`",
    "wise": "have a judge of WISE's score them, then `orthus score wise` its files",
}


def score(name: str, task: Task, out: Path, given: Path, *, judge: str | None = None) -> tuple[Score, list[Judged]] | str:
  """Scores a run, and writes score.json and judged.jsonl to its folder.

  Args:
    name: of the benchmark.
    task: what was asked.
    out: the run's folder.
    given: what `task.finish` gave.
    judge: for GenEval.

  Returns:
    (figures, judged answers), or why there are none yet.
  """
  if name in ELSEWHERE and not (name == "geneval" and judge):
    return ELSEWHERE[name]
  if task.respond == "text" and (lacking := task.lacking(out)):
    return f"{lacking}; the benchmark's tool wants all"
  how = _options(name, task)
  if isinstance(how, str):
    return how
  if name == "geneval":
    how = {"judge": judge, "metadata": task.sources[0]}  # names the prompts that couldn't be drawn
  found = registry.scorer(name)(given, **how)
  rows = judged.judged(name, task, out, found)
  if name == "geneval":  # as the original tool leaves them
    files.write_text(out / "results.jsonl", "".join(f"{json.dumps(r)}\n" for r in found.rows))
  judged.write(out, rows)
  files.write_text(out / SCORE, json.dumps(found.to_json(), indent=2) + "\n")
  return found, rows


def _options(name: str, task: Task) -> dict[str, Any] | str:
  """What a scorer needs beside the answers, or why it can't be had."""
  source = task.sources[0]
  needs: dict[str, Callable[[], dict[str, Any] | str]] = {
      "geneval": lambda: {}, "mme": lambda: {}, "pope": lambda: {"labels": source if len(task.sources) == 1 else source.parent},
      "vqav2": lambda: _annotations(source), "gqa": lambda: _of_gqa(source), "mmmu": lambda: {},
  }  # fmt: skip
  return needs[name]()


def _of_gqa(questions: Path) -> dict[str, Any]:
  """With the choices of the tier, where they lie beside its questions: without them validity and plausibility are 0."""
  choices = questions.with_name(f"{gqa.tier(questions)}_choices.json")
  return {"questions": questions} | ({"choices": choices} if choices.is_file() else {})


def _annotations(questions: Path) -> dict[str, Any] | str:
  split = questions.name.removeprefix("v2_OpenEnded_mscoco_").removesuffix("_questions.json")
  if split.startswith("test"):
    return "the answers to this split aren't public: hand the file in at the benchmark's evaluation server"
  found = sorted(questions.parent.rglob(f"v2_mscoco_{split}_annotations.json"))
  if not found:
    return f"{questions.parent} has no v2_mscoco_{split}_annotations.json, VQAv2's answers: put it there, and run it again"
  return {"annotations": found[0]}
