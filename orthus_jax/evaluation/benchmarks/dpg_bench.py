"""DPG-Bench: 1,065 dense prompts, each with yes/no questions about what must be in its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import dpg_bench_files, reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, bootstrap, refuse
from orthus_jax.evaluation.benchmarks.dpg_bench_files import Items, Judge, Picture
from orthus_jax.evaluation.benchmarks.geneval import load_judge

LAYOUT = """PATH is one of
  *_detail.txt as DPG-Bench's own tool writes it, `picture, (x0, y0, x1, y1), question, answer` in each line, or a folder of one
  a folder of ITEM.png, four pictures of ITEM's prompt as a square, with --judge
The questions are dpg_bench.csv, given by --csv or beside PATH."""
OPTIONS = {
    "csv": "the questions; default dpg_bench.csv in PATH or beside it",
    "judge": "module:function, called with a picture's pixels (uint8 [height, width, 3]) and a question; returns the answer",
    "pic_num": "how many of the square's pictures are looked at, 1 to 4; default: as many as the answers name, with --judge 4",
    "resolution": "width of one picture of the square; default half the square's",
}
PROTOCOL = "compute_dpg_bench.py of TencentQQGYLab/ELLA 3c228f1d"
_STRAIGHT = ("a straight reading keeps the CSV's first line, takes categories from all quarters after parents were applied, and"
             " heeds all ancestors of a question")  # fmt: skip
_Judged = list[tuple[float, list[tuple[str, float]]]]  # of each picture its score, and each answer's category and score


def score(
    path: str | Path, *, csv: str | Path | None = None, judge: str | Judge | None = None, pic_num: int = 0, resolution: int = 0
) -> Score:
  """DPG-Bench's figures: the mean over pictures, and over answers by category (L1) and detailed category (L2), in per cent.

  Args:
    path: the answers, or the pictures (LAYOUT).
    csv: the questions.
    judge: answers a question about a picture; "module:function" or the function.
    pic_num: how many pictures a square holds; 0 for as many as the answers name, or four.
    resolution: of a picture of the square, for a judge; 0 for half the square's width.

  Raises:
    BadRequest: if files are missing, or hold something else, or there is a resolution without a judge.
  """
  path, notes = Path(path), Notes()
  if not 0 <= pic_num <= 4:
    raise BadRequest(f"pic_num is 1 to 4, not {pic_num}")
  if judge is None:
    refuse(score, "judge", resolution=resolution)
  near = [p / "dpg_bench.csv" for p in (path, path.parent)]
  file = reading.existing(csv if csv is not None else next((p for p in near if p.is_file()), near[1]), "DPG-Bench's questions")
  tool, plain = dpg_bench_files.read_csv(file, notes)
  if judge is not None:
    reading.existing(path, "DPG-Bench's pictures, ITEM.png,", folder=True)
    called = cast(Judge, load_judge(judge)) if isinstance(judge, str) else judge
    pictures = list(dpg_bench_files.ask(path, plain, called, resolution, pic_num or 4, notes))
  else:
    detail = reading.only(path, "*_detail.txt", "DPG-Bench's answers (or give --judge)") if path.is_dir() else path
    if (beside := detail.with_name(f"{detail.stem}_detail.txt")).is_file():  # of the file of each picture's scores
      detail = beside
    pictures = dpg_bench_files.read_detail(reading.existing(detail, "DPG-Bench's answers, *_detail.txt"), tool, notes)
  pic_num = pic_num or max((len(p.quarters) for p in pictures), default=4)
  _told(path, pictures, tool, notes)
  judged, rows = _as_the_tool(path, pictures, tool, pic_num, notes)
  if not judged:
    raise BadRequest(f"{path}: not one picture has all its answers: {_why(notes)}")
  straight = _figures(_straight(path, pictures, plain, pic_num, notes))
  figures = _figures(judged)
  how = f"{pic_num} of a square's pictures are looked at; categories are of the last's answers, before parents are applied"
  return Score(
      "dpg_bench", PROTOCOL, {k: v for k, (v, _) in figures.items()}, unit="%", counts={k: n for k, (_, n) in figures.items()},
      intervals=_intervals(judged), notes=(*notes.lines(), f"{how}; {_STRAIGHT}"), rows=tuple(rows),
      straight={k: v for k, (v, _) in straight.items() if k not in figures or abs(v - figures[k][0]) > 1e-9},
  )  # fmt: skip


def _why(notes: Notes) -> str:
  return "; ".join(notes.lines()) or "the folder is empty"


def _told(path: Path, pictures: Sequence[Picture], items: Items, notes: Notes) -> None:
  """Names items without a picture, and answers that are nearly yes."""
  there: dict[str, str] = {}
  for p in pictures:
    if p.item in there:
      notes.add("more pictures of an item, each counted", path, name=p.name)
    there[p.item] = p.name
    for answer in (a for quarter in p.quarters for a in quarter.values()):
      if answer != "yes" and answer.strip(" .").lower() == "yes":
        notes.add('answers that are "yes" but for case, blanks or a full stop, counted as no', path, name=p.name)
  if lacking := [item for item in items if item not in there]:
    notes.say(f"a partial result: {len(lacking):,} of {len(items):,} items have no picture, and count for nothing: "
              f"{_named(lacking)}")  # fmt: skip


def _as_the_tool(
    path: Path, pictures: Sequence[Picture], items: Items, pic_num: int, notes: Notes
) -> tuple[_Judged, list[dict[str, Any]]]:
  judged, rows, lacking = [], [], []
  for picture in pictures:
    questions = items.get(picture.item)
    if questions is None:
      notes.add("pictures fail in the tool and are left out, as the CSV has no such item", path, name=picture.name)
      continue
    means: list[float] = []
    try:
      for quarter in picture.quarters[:pic_num]:
        if set(questions) - set(quarter):
          break
        after = dpg_bench_files.after_parents(questions, quarter)
        means.append(sum(after.values()) / len(after))
    except KeyError as e:
      notes.add("pictures fail in the tool and are left out, as the CSV lacks a parent of one of their questions", path,
                name=f"{picture.name}, question {e}")  # fmt: skip
      continue
    if len(means) < pic_num:
      lacking.append(picture.name)
      continue
    last = picture.quarters[pic_num - 1]
    judged.append((sum(means) / len(means), [(q.category, float(last[n] == "yes")) for n, q in questions.items()]))
    answers = {str(n): [quarter[n] for quarter in picture.quarters[:pic_num]] for n in questions}
    rows.append({"picture": picture.name, "item": picture.item, "grid_scores": means, "average": judged[-1][0],
                 "answers": answers})  # fmt: skip
  if lacking:
    notes.say(f"a partial result: {len(lacking):,} pictures lack answers, and are left out: {_named(lacking)}")
  return judged, rows


def _named(names: Sequence[str]) -> str:
  return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def _straight(path: Path, pictures: Sequence[Picture], items: Items, pic_num: int, notes: Notes) -> _Judged:
  judged = []
  for picture in pictures:
    questions, quarters = items.get(picture.item, {}), picture.quarters[:pic_num]
    if not questions or len(quarters) < pic_num or any(set(questions) - set(quarter) for quarter in quarters):
      if questions and quarters and set(questions) - set(quarters[0]):
        notes.add("pictures aren't in the straight reading, as the tool asked not all their questions", path, name=picture.name)
      continue
    after = [dpg_bench_files.straight_after_parents(questions, quarter) for quarter in quarters]
    answers = [(q.category, quarter[n]) for quarter in after for n, q in questions.items()]
    judged.append((float(np.mean([np.mean(list(quarter.values())) for quarter in after])), answers))
  return judged


def _categories(answers: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
  """Scores by L1 category, in the order in which they are met, and by L2 category, sorted."""
  l1: dict[str, list[float]] = {}
  l2: dict[str, list[float]] = {}
  for category, value in answers:
    l1.setdefault(f"L1/{category.split('-')[0].strip()}", []).append(value)
    l2.setdefault(f"L2/{category}", []).append(value)
  return l1 | dict(sorted(l2.items()))


def _figures(judged: _Judged) -> dict[str, tuple[float, int]]:
  """Each figure, and of how many pictures or answers it is the mean."""
  if not judged:
    return {}
  of = {"score": [s for s, _ in judged]} | _categories([a for _, answers in judged for a in answers])
  return {name: (float(np.mean(values)) * 100, len(values)) for name, values in of.items()}


def _intervals(judged: _Judged) -> dict[str, tuple[float, float]]:
  """Pictures are drawn with all their answers."""
  names = list(_figures(judged))
  units_UK = np.zeros((len(judged), 2 * len(names)))
  for u, (mean, answers) in enumerate(judged):
    for name, values in ({"score": [mean]} | _categories(answers)).items():
      k = 2 * names.index(name)
      units_UK[u, [k, k + 1]] = sum(values), len(values)
  return bootstrap(units_UK, lambda sums_NK: {n: 100 * sums_NK[:, 2 * k] / sums_NK[:, 2 * k + 1] for k, n in enumerate(names)})
