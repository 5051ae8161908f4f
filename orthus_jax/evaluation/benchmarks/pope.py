"""POPE: is there such an object in the picture? Accuracy, precision, recall, F1 and the share of yes, a split each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, bootstrap

LAYOUT = """PATH holds answers, JSON lines; the labels are coco_pope_SPLIT.json, JSON lines of question_id, image, text, label.
  POPE's own form: a folder of SPLIT.json (or of answers/SPLIT.json beside labels/), or one split's file; a line
  {"question": …, "answer": …} for each line of the labels, in their order
  LLaVA's form, with --questions=FILE: one file for all splits, a line {"question_id": …, "text": …}; FILE is
  llava_pope_test.jsonl, whose lines have question_id and category, the split"""
OPTIONS = {
    "labels": "the folder of coco_pope_SPLIT.json, or one of them; default PATH/labels, or what lies beside PATH",
    "questions": "LLaVA's llava_pope_test.jsonl: PATH is then LLaVA's answers file, scored as its eval_pope.py does",
}
PROTOCOL = "evaluate.py of AoiDragon/POPE 08d957b9"
PROTOCOL_LLAVA = "eval_pope.py of haotian-liu/LLaVA c121f043"
_WHAT = "POPE's answers are JSON lines"
_LABELS = "POPE's labels are JSON lines of question_id, image, text and label"
_FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


@dataclasses.dataclass
class _Split:
  """A split's lines, each with where it stands in its file."""

  name: str
  answers: list[dict[str, Any]]
  answers_at: list[int]
  answers_file: Path
  labels: list[dict[str, Any]]
  labels_file: Path
  key: str


def parse(text: str) -> str:
  """What the tool reads in an answer: "yes" or "no"."""
  words = text.partition(".")[0].replace(",", "").split(" ")
  return "no" if {"No", "not", "no"} & set(words) else "yes"


def score(path: str | Path, *, labels: str | Path | None = None, questions: str | Path | None = None) -> Score:
  """POPE's figures of each split that is there, and their means, which are ours.

  Args:
    path: the answers (LAYOUT).
    labels: the folder of label files, or one.
    questions: LLaVA's question file, for its form.

  Raises:
    BadRequest: if files are missing, or hold something else.
  """
  notes = Notes()
  splits = _llava(path, questions, labels, notes) if questions is not None else _own(path, labels)
  scores: dict[str, float] = {}
  straight: dict[str, float] = {}
  intervals: dict[str, tuple[float, float]] = {}
  counts: dict[str, int] = {}
  rows: list[dict[str, Any]] = []
  for split in splits:
    judged, found, plain, answered = _score(split, notes, llava=questions is not None)
    rows += judged
    scores |= {f"{split.name}/{k}": v for k, v in found.items()}
    straight |= {f"{split.name}/{k}": v for k, v in plain.items()}
    intervals |= {f"{split.name}/{k}": v for k, v in _intervals(judged).items()}
    counts |= {f"{split.name}/{k}": len(judged) for k in _FIGURES[:-1]} | {f"{split.name}/yes_ratio": answered}
  if len(splits) > 1:
    for k in _FIGURES:
      scores[f"mean/{k}"] = float(np.mean([scores[f"{s.name}/{k}"] for s in splits]))
      straight[f"mean/{k}"] = float(np.mean([straight[f"{s.name}/{k}"] for s in splits]))
    intervals |= {f"mean/{k}": v for k, v in _intervals(rows).items()}
    counts |= dict.fromkeys((f"mean/{k}" for k in _FIGURES), len(rows))
  intervals = {k: v for k, v in intervals.items() if scores[k] == scores[k]}
  sizes = ", ".join(f"{s.name} {len(s.labels):,}" for s in splits)
  return Score(
      "pope", PROTOCOL if questions is None else PROTOCOL_LLAVA, scores, intervals=intervals, counts=counts,
      straight={k: v for k, v in straight.items() if not abs(v - scores[k]) <= 1e-12},
      notes=(*notes.lines(), f"questions by split, as the label files hold them: {sizes}"), rows=tuple(rows),
  )  # fmt: skip


def split_of(labels: Path) -> str:
  """The split that a label file is of, by its name; its answers are SPLIT.json."""
  return labels.stem.removeprefix("coco_pope_").removesuffix("_labels")


def by_split(labels: Sequence[Path]) -> dict[str, Path]:
  """Label files by their split.

  Raises:
    BadRequest: if two are of one, whose answers would have one name.
  """
  found: dict[str, Path] = {}
  for path in labels:
    if (other := found.setdefault(split_of(path), path)) != path:
      raise BadRequest(f"{other} and {path} are both of POPE's split {split_of(path)}: name the folder or file of one")
  return found


def _label_files(path: Path) -> dict[str, Path]:
  """By split."""
  if os.path.isfile(path):
    return {split_of(path): path}
  reading.existing(path, "POPE's label files, coco_pope_SPLIT.json,", folder=True)
  found = by_split(sorted(path.glob("coco_pope_*.json")))
  if not found:
    raise BadRequest(f"{path} holds no coco_pope_SPLIT.json: give POPE's label files by labels")
  order = ("random", "popular", "adversarial")
  return {k: found[k] for k in sorted(found, key=lambda k: (order.index(k) if k in order else 3, k))}


def _own(path: str | Path, labels: str | Path | None) -> list[_Split]:
  """POPE's own form: answers by line."""
  path = Path(path)
  if not os.path.isfile(path):
    reading.existing(path, "POPE's answers, SPLIT.json,", folder=True)
  base = path if os.path.isdir(path) else path.parent
  places = [Path(labels)] if labels is not None else [base / "labels", base.parent / "labels", base]
  files = _label_files(next((p for p in places if os.path.isfile(p) or any(p.glob("coco_pope_*.json"))), places[0]))
  if os.path.isfile(path):
    fits = [k for k in files if k in path.stem] if len(files) > 1 else list(files)
    if len(fits) != 1:
      raise BadRequest(f"{path} may be any of {', '.join(files)}: give its split's label file by labels")
    chosen = {fits[0]: path}
  else:
    folder = path / "answers" if (path / "answers").is_dir() else path
    chosen = {k: folder / f"{k}.json" for k in files if (folder / f"{k}.json").is_file()}
    if missing := [f"{k}.json" for k in files if k not in chosen]:
      raise BadRequest(f"{folder} lacks {', '.join(missing)}, answers to {files[missing[0][:-5]]} and so on:"
                       " give one split's file to score it alone")  # fmt: skip
  splits = []
  for name, file in chosen.items():
    answers = reading.json_lines(file)
    splits.append(
        _Split(name, answers, list(range(1, len(answers) + 1)), file, reading.json_lines(files[name]), files[name], "answer")
    )
  return splits


def _llava(path: str | Path, questions: str | Path, labels: str | Path | None, notes: Notes) -> list[_Split]:
  """LLaVA's form: a split's answers in the order of the answers file."""
  file = reading.existing(path, "LLaVA's answers to POPE, JSON lines,")
  asked = reading.existing(questions, "llava_pope_test.jsonl")
  files = _label_files(Path(labels) if labels is not None else file.parent / "labels")
  what = "llava_pope_test.jsonl has question_id and category in each line"
  category: dict[Any, str] = {}
  text: dict[Any, str] = {}
  for number, row in enumerate(reading.json_lines(asked), 1):
    asked_id = reading.field(row, "question_id", (int, str), what, asked, number)
    category[asked_id], text[asked_id] = reading.field(row, "category", str, what, asked, number), str(row.get("text", ""))
  by_split: dict[str, _Split] = {k: _Split(k, [], [], file, reading.json_lines(f), f, "text") for k, f in files.items()}
  seen: set[Any] = set()
  for number, row in enumerate(reading.json_lines(file), 1):
    asked_id = reading.field(row, "question_id", (int, str), f"{_WHAT} of question_id and text", file, number)
    if asked_id not in category:
      raise BadRequest(f"{file}:{number}: question {asked_id!r} isn't in {asked.name}: give the question file it answers")
    if asked_id in seen:
      notes.add("second answers to a question, each counted as one more", file, number, str(asked_id))
    seen.add(asked_id)
    if (split := by_split.get(category[asked_id])) is None:
      notes.add("answers to a split without a label file, left out", file, number, category[asked_id])
      continue
    split.answers.append(row)
    split.answers_at.append(number)
  order = {k: [i for i, c in category.items() if c == k] for k in by_split}
  for name, split in by_split.items():
    place = {i: n for n, i in enumerate(order[name])}
    for row in split.answers:
      row["at_label"] = place[row["question_id"]]
    if len(order[name]) != len(split.labels):
      held = f"{split.labels_file.name} {len(split.labels):,} labels"
      notes.say(f"{asked.name} has {len(order[name]):,} questions of {name}, {held}")
    for number, (i, label) in enumerate(zip(order[name], split.labels), 1):
      if not text[i].startswith(str(label.get("text", ""))):  # a prompt's suffix may follow
        notes.add(f"labels of {name} whose question isn't the one in its place in {asked.name}", split.labels_file, number)
  return list(by_split.values())


def _score(
    split: _Split, notes: Notes, *, llava: bool
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, float], int]:
  """A split's judged answers, the tool's figures, a straight reading's, and how many answers there are."""
  file, n = split.answers_file, len(split.answers)
  if not n or not split.labels:
    raise BadRequest(f"{file if not n else split.labels_file}: holds no line for {split.name}")
  what = f"{_WHAT} of {'question_id and text' if llava else 'question and answer'}"
  truth = []
  for number, row in enumerate(split.labels, 1):
    label = reading.field(row, "label", str, _LABELS, split.labels_file, number)
    truth.append("no" if label == "no" else "yes")
    if truth[-1] != _plain(label):
      notes.add('labels that are no but for case or blanks, counted as yes', split.labels_file, number, label)
    elif label.strip().lower() not in ("yes", "no"):
      notes.add("labels that are neither yes nor no, counted as yes", split.labels_file, number, label)
  if n != len(truth):
    held = f"{n:,} answers to {split.name} and {split.labels_file.name} {len(truth):,} labels"
    notes.say(f"{file.name} has {held}: counts are of the first {min(n, len(truth)):,}, the yes ratio is of all answers")
  ids = [_id(row) for row in split.labels]
  known = {i: k for k, i in enumerate(ids)} if None not in ids else {}
  rows, matched, said = [], [], []
  for k, (answer, number) in enumerate(zip(split.answers, split.answers_at)):
    text = reading.field(answer, split.key, str, what, file, number)
    said.append(parse(text))
    at = answer.get("at_label", known.get(_id(answer), k))
    if at < len(truth):
      matched.append((_plain(split.labels[at]["label"]), said[-1]))
    if at != k:
      notes.add(f"answers of {split.name} that aren't in the labels' order, each paired with the label on its own line (a"
                " straight reading pairs by question_id)", file, number)  # fmt: skip
    if k >= len(truth):
      continue
    label = split.labels[k]
    if not llava and "question" in answer and answer["question"] != label.get("text"):
      notes.add(f"answers of {split.name} whose question isn't the label's on that line", file, number)
    rows.append({
        "split": split.name, "line": number, "image": label.get("image"), "question": label.get("text"), "truth": truth[k],
        "answer": text, "parsed": said[-1], "right": truth[k] == said[-1],
    })  # fmt: skip
  yes = said.count("yes") / n
  figures = _figures([(r["truth"], r["parsed"]) for r in rows])
  if np.isnan(figures["f1"]):
    notes.say(f"{file.name}: the tool prints the counts of {split.name} and stops at a division by zero (nan here), as there is"
              " no answer of yes, no label of yes, or no right one among these")  # fmt: skip
  return rows, figures | {"yes_ratio": yes}, _figures(matched, straight=True) | {"yes_ratio": yes}, n


def _id(row: dict[str, Any]) -> int | str | None:
  value = row.get("question_id")
  return value if isinstance(value, int | str) else None


def _plain(label: str) -> str:
  return "no" if label.strip().lower() == "no" else "yes"


def _figures(met: Sequence[tuple[str, str]], *, straight: bool = False) -> dict[str, float]:
  """Of (label, answer); where the tool divides by zero its ratios are nan, and 0 in a straight reading."""
  count = Counter(met)
  tp, fp, tn, fn = count["yes", "yes"], count["no", "yes"], count["no", "no"], count["yes", "no"]
  stops = 0.0 if straight else float("nan")
  precision = tp / (tp + fp) if tp + fp else stops
  recall = tp / (tp + fn) if tp + fn else stops
  f1 = 2 * precision * recall / (precision + recall) if precision + recall else stops
  accuracy = (tp + tn) / max(1, len(met)) if straight or f1 == f1 else stops
  return {"TP": tp, "FP": fp, "TN": tn, "FN": fn, "accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def _intervals(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
  """By pictures, whose questions are drawn together; of several splits, their mean's."""
  splits = list(dict.fromkeys(r["split"] for r in rows))
  column = {(s, t, p): 4 * i + 2 * (t == "yes") + (p == "yes") for i, s in enumerate(splits)
            for t in ("yes", "no") for p in ("yes", "no")}  # fmt: skip
  unit: dict[Any, int] = {}
  unit_R = [unit.setdefault(str(r["image"]) if r["image"] else (r["split"], r["line"]), len(unit)) for r in rows]
  units_UK = np.zeros((len(unit), 4 * len(splits)))
  for u, r in zip(unit_R, rows):
    units_UK[u, column[r["split"], r["truth"], r["parsed"]]] += 1

  def figures(sums_NK: np.ndarray) -> dict[str, np.ndarray]:
    tn, fp, fn, tp = np.moveaxis(sums_NK.reshape(len(sums_NK), -1, 4), 2, 0)
    n = tn + fp + fn + tp
    found = {"accuracy": (tp + tn) / n, "precision": tp / (tp + fp), "recall": tp / (tp + fn),
             "f1": 2 * tp / (2 * tp + fp + fn), "yes_ratio": (tp + fp) / n}  # fmt: skip
    return {k: v.mean(1) for k, v in found.items()}

  return bootstrap(units_UK, figures)
