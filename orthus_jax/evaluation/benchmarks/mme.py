"""MME: yes/no questions, two a picture; accuracy and the share of pictures with both right, added up."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, interval, resampled

LAYOUT = """PATH is a folder of 14 files, SUBTASK.txt, a question a line in four columns that tabs part:
  image, question, ground truth (Yes or No), answer
The two questions of a picture stand on consecutive lines. Perception: existence, count, position, color, posters, celebrity,
scene, landmark, artwork, OCR; Cognition: commonsense_reasoning, numerical_calculation, text_translation, code_reasoning."""
OPTIONS: dict[str, str] = {}
PROTOCOL = "calculation.py of MME's evaluation tool, as kept in OpenGVLab/InternVL 2410d1db, with scikit-learn below 1.3"
SUBTASKS = {
    "Perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    "Cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}  # fmt: skip
_OURS = "a straight reading joins an answer's columns, counts a missing answer as wrong and leaves blank lines out"


@dataclasses.dataclass
class _Pair:
  """What a picture's two lines add up to."""

  counted: int = 0
  right: int = 0
  straight_counted: int = 0
  straight_right: int = 0


def parse(answer: str) -> str:
  """What the tool reads in an answer: "yes", "no" or "other"."""
  answer = answer.lower()
  if answer in ("yes", "no"):
    return answer
  return next((word for word in ("yes", "no") if word in answer[:4]), "other")


def score(path: str | Path) -> Score:
  """MME's figures: a subtask's score is of 200, Perception's of 2,000, Cognition's of 800.

  Args:
    path: the folder of result files (LAYOUT).

  Raises:
    BadRequest: if a file isn't there or is one that the tool stops at.
  """
  folder = reading.existing(path, "MME's 14 result files, SUBTASK.txt,", folder=True)
  names = [n for group in SUBTASKS.values() for n in group]
  if missing := [n for n in names if not (folder / f"{n}.txt").is_file()]:
    held = f"{len(names) - len(missing)} of MME's {len(names)} files"
    raise BadRequest(f"{folder} holds {held}, and lacks {', '.join(f'{n}.txt' for n in missing[:4])}"
                     f"{', …' if len(missing) > 4 else ''}: a partial result has no score")  # fmt: skip
  notes = Notes()
  rows: list[dict[str, Any]] = []
  scores: dict[str, float] = dict.fromkeys(SUBTASKS, 0.0)
  details: dict[str, float] = {}
  straight: dict[str, float] = dict.fromkeys(SUBTASKS, 0.0)
  counts = dict.fromkeys(SUBTASKS, 0)
  drawn_N: dict[str, np.ndarray] = {}
  for seed, name in enumerate(names):
    total = "Perception" if name in SUBTASKS["Perception"] else "Cognition"
    pairs, judged = _read(folder / f"{name}.txt", notes)
    rows += judged
    figures = _figures(judged, pairs)
    scores[name] = figures.pop("score")
    details |= {f"{name}/{k}": v for k, v in figures.items()}
    counts[name] = sum(p.counted for p in pairs)
    counts[total] += counts[name]
    units_UK = np.array([(p.counted, p.right, p.right == 2, 1) for p in pairs])
    with np.errstate(all="ignore"):
      counted, right, both, n = resampled(units_UK, seed=seed).T
      drawn_N[name] = 100 * (np.where(counted, right / counted, 0) + both / n)
    drawn_N[total] = drawn_N.get(total, 0) + drawn_N[name]
    plain = [p for p in pairs if p.straight_counted]
    straight[name] = 100 * sum(p.straight_right for p in plain) / max(1, sum(p.straight_counted for p in plain))
    straight[name] += 100 * sum(p.straight_right == 2 for p in plain) / max(1, len(plain))
    scores[total] += scores[name]
    straight[total] += straight[name]
  return Score(
      "mme", PROTOCOL, scores | details, units={n: "of 200" for n in names} | {"Perception": "of 2,000", "Cognition": "of 800"},
      intervals={name: found for name, value_N in drawn_N.items() if (found := interval(value_N))}, counts=counts,
      straight={k: v for k, v in straight.items() if abs(v - scores[k]) > 1e-9}, notes=notes.lines(), rows=tuple(rows),
  )  # fmt: skip


def _read(file: Path, notes: Notes) -> tuple[list[_Pair], list[dict[str, Any]]]:
  """A subtask's pairs, and its answers as they were judged."""
  lines = reading.lines(file)
  if not lines:
    raise BadRequest(f"{file} is empty: MME's files have two lines a picture")
  if len(lines) % 2:
    blank = ": the last is blank" if not lines[-1].strip() else ""
    raise BadRequest(f"{file}:{len(lines)}: an odd number of lines{blank}: the two questions of a picture stand on two lines")
  pairs, rows = [], []
  for first in range(0, len(lines), 2):
    pair = _Pair()
    images = []
    for number in (first + 1, first + 2):
      columns = lines[number - 1].split("\t")
      images += columns[:1]
      rows += _judge(columns, file, number, pair, notes)
    if len(set(images)) == 2 and all(i.strip() for i in images):
      notes.add("pairs of lines that name two pictures, each counted as one picture's questions", file, first + 1)
    pairs.append(pair)
  if not rows:
    n = lines[0].count("\t") + 1
    raise BadRequest(f"{file}:1: {n} column{'s' * (n > 1)} where MME's files have four: image, question, ground truth, answer")
  if all(r["parsed"] == "other" for r in rows):
    notes.add("subtasks without one answer that begins with yes or no score 0; with scikit-learn 1.3 or later the tool stops",
              file)  # fmt: skip
  return pairs, rows


def _judge(columns: list[str], file: Path, number: int, pair: _Pair, notes: Notes) -> Iterator[dict[str, Any]]:
  """One line; nothing comes of one that the tool passes over."""
  if len(columns) != 4:
    if not "".join(columns).strip():
      notes.add(f"blank lines, half of a picture answered wrongly ({_OURS})", file, number)
      return
    notes.add(f"lines without four columns, left out of the accuracy, their pictures wrong ({_OURS})", file, number)
    truth = columns[2].lower().strip() if len(columns) > 2 else ""
    pair.straight_counted += 1
    pair.straight_right += len(columns) > 3 and parse("\t".join(columns[3:])) == truth
    return
  image, question, truth, answer = columns
  if truth.lower() not in ("yes", "no"):
    raise BadRequest(f"{file}:{number}: the ground truth is {truth!r}: it must be Yes or No, without blanks")
  parsed = parse(answer)
  right = parsed == truth.lower()
  pair.counted += 1
  pair.right += right
  pair.straight_counted += 1
  pair.straight_right += right
  yield {
      "subtask": file.stem, "line": number, "image": image, "question": question, "truth": truth.lower(),
      "answer": answer.rstrip("\n"), "parsed": parsed, "right": right,
  }  # fmt: skip


def _figures(rows: list[dict[str, Any]], pairs: list[_Pair]) -> dict[str, float]:
  """The tool's figures of a subtask; what is divided by nothing is 0, as scikit-learn has it."""
  met = [(r["truth"], r["parsed"]) for r in rows]
  tp, fn = met.count(("yes", "yes")), met.count(("yes", "no"))
  tn, fp = met.count(("no", "no")), met.count(("no", "yes"))
  acc, acc_plus = (tp + tn) / len(met), sum(p.right == 2 for p in pairs) / len(pairs)
  return {
      "score": acc * 100 + acc_plus * 100, "acc": acc, "acc_plus": acc_plus, "precision": tp / max(1, tp + fp),
      "recall": tp / max(1, tp + fn), "TP": tp, "FN": fn, "TN": tn, "FP": fp,
      "other_num": len(met) - tp - fn - tn - fp, "questions_counted": len(met),
  }  # fmt: skip
