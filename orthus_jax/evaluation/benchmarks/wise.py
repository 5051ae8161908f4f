"""WISE: does a picture show what its prompt only implies? 1,000 prompts of culture, time, space and three sciences."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, interval, resampled

LAYOUT = """PATH is a folder of score files as WISE's judges write them, or one such file: *_scores.jsonl, *_results.jsonl or
*_scores_results.jsonl, told by their fields and not their names; a line a prompt:
  verified  {"prompt_id": …, "score": 0 or 1}
  legacy    {"prompt_id": …, "consistency": 0 to 2, "realism": …, "aesthetic_quality": …}
The two versions share nothing but the layout: other prompts under the same ids, other weights, another formula."""
OPTIONS = {
    "version": "legacy or verified; default: which one the files' fields are of",
    "category": "culture, space-time or science, to score a part; default all, which asks for all 1,000 prompts",
}
CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
_PARTS = {"culture": (0, 1), "space-time": (1, 3), "science": (3, 6), "all": (0, 6)}  # slices of CATEGORIES


@dataclasses.dataclass(frozen=True)
class _Version:
  name: str
  protocol: str
  fields: tuple[str, ...]
  last_ids: tuple[int, ...]
  weights: tuple[float, ...]


VERSIONS = {
    "legacy": _Version(
        "legacy", "WISE's legacy version (three scores each), WISE_legacy/Calculate.py of PKU-YuanGroup/WISE eb511744",
        ("consistency", "realism", "aesthetic_quality"), (400, 567, 700, 800, 900, 1000), (0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    ),
    "verified": _Version(
        "verified", "WISE's verified version (a score of 0 or 1 each), calculate_verified.py of PKU-YuanGroup/WISE eb511744",
        ("score",), (400, 520, 640, 760, 880, 1000), (0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
    ),
}  # fmt: skip


def score(path: str | Path, *, version: str | None = None, category: str = "all") -> Score:
  """WISE's figures: the mean of each category, and their weighted mean, the overall WiScore.

  Args:
    path: the judges' score files (LAYOUT).
    version: "legacy" or "verified"; None for the one whose fields the files have.
    category: which prompts must all be there; with "all" alone there is an overall figure.

  Raises:
    BadRequest: if files or prompts are missing, or are another version's.
  """
  for value, known in ((version or "legacy", VERSIONS), (category, _PARTS)):
    if value not in known:
      raise BadRequest(f"WISE has no {value!r}: {', '.join(known)}")
  path, notes = Path(path), Notes()
  files = _score_files(path, notes) if path.is_dir() else [reading.existing(path, "WISE's scores")]
  lines = [line for file in files for line in _objects(file, notes)]
  kind = _version(lines, files[0], version)
  rows, there = _judged(lines, kind, notes)
  _complete(there, kind, category, files, notes)
  scores: dict[str, float] = {}
  straight, counts, drawn = {}, {}, {}
  for seed, name in enumerate(CATEGORIES):
    found = [r for r in rows if r["category"] == name]
    if not found:
      continue
    by_id: dict[int, list[float]] = {}
    for r in found:
      by_id.setdefault(int(r["prompt_id"]), []).append(r["wiscore"])
    scores[name] = sum(r["wiscore"] for r in found) / len(found)
    straight[name] = float(np.mean([np.mean(v) for v in by_id.values()]))
    counts[name] = len(found)
    sum_N, count_N = resampled(np.array([(sum(v), len(v)) for v in by_id.values()]), seed=seed).T
    drawn[name] = sum_N / count_N
  if category == "all" and len(scores) == len(CATEGORIES):
    for figures in (scores, straight, drawn):
      figures["overall"] = sum(w * figures[name] for w, name in zip(kind.weights, CATEGORIES))  # type: ignore[attr-defined]
    counts["overall"] = len(rows)
  elif category == "all":
    notes.say(f"no overall figure, as {', '.join(c for c in CATEGORIES if c not in scores)} has no sample")
  return Score(
      "wise", kind.protocol, scores, counts=counts, intervals={k: v for k, d in drawn.items() if (v := interval(d))},
      straight={k: v for k, v in straight.items() if abs(v - scores[k]) > 1e-9}, notes=notes.lines(), rows=tuple(rows),
  )  # fmt: skip


def _score_files(folder: Path, notes: Notes) -> list[Path]:
  """The files of a folder that have a line with scores: WISE's two versions name theirs differently, and users do too."""
  found = []
  there = sorted(p for p in folder.glob("*.jsonl") if p.is_file())
  for file in there:
    if _has_scores(file):
      found.append(file)
    else:
      notes.add("files that are no scores of WISE's judges, passed over", file)
  if not found:
    what = f"{len(there)} *.jsonl, none of them scores of WISE's judges" if there else "no *.jsonl"
    raise BadRequest(f"{folder} holds {what}: name the folder of the judges' *_scores.jsonl or *_results.jsonl")
  return found


def _has_scores(file: Path) -> bool:
  fields = {f for kind in VERSIONS.values() for f in kind.fields}
  for text in reading.lines(file):
    try:
      row = json.loads(text)
    except (ValueError, RecursionError):
      continue  # told of where the file is read
    if isinstance(row, dict) and fields & set(row):
      return "wiscore" not in row  # rows.jsonl, which `orthus score wise --out` writes
  return False


def _objects(file: Path, notes: Notes) -> list[tuple[Path, int, dict[str, Any]]]:
  """A file's lines; those that aren't JSON are passed over, as the tool does."""
  found = []
  for number, text in enumerate(reading.lines(file), 1):
    try:
      row = json.loads(text)
    except json.JSONDecodeError:
      notes.add("lines that aren't JSON, passed over", file, number)
      continue
    except (ValueError, RecursionError) as e:
      raise BadRequest(f"{file}:{number}: JSON that can't be read: {type(e).__name__}") from e
    if not isinstance(row, dict):
      raise BadRequest(f"{file}:{number}: isn't an object, at which WISE's tool drops the whole file: remove or mend the line")
    found.append((file, number, row))
  return found


def _version(lines: Sequence[tuple[Path, int, dict[str, Any]]], first: Path, version: str | None) -> _Version:
  """The version that was asked for, or that the lines are of."""
  met: dict[str, tuple[Path, int]] = {}
  for file, number, row in lines:
    for name, kind in VERSIONS.items():
      if set(kind.fields) & set(row):
        met.setdefault(name, (file, number))
  if not met:
    raise BadRequest(f"{first}: no line has a score of WISE's (score, or consistency, realism and aesthetic_quality)")
  file, number = list(met.values())[-1]
  if version is None and len(met) > 1:
    raise BadRequest(f"{file}:{number}: has the scores of WISE's {list(met)[-1]} version, ahead of it are {list(met)[0]} ones:"
                     " score them apart, or name one by version")  # fmt: skip
  if version is not None and version not in met:
    raise BadRequest(f"{file}:{number}: has the scores of WISE's {list(met)[0]} version, and none of the {version} one: the two"
                     " have other prompts under the same ids")  # fmt: skip
  return VERSIONS[version or list(met)[0]]


def _judged(
    lines: Sequence[tuple[Path, int, dict[str, Any]]], kind: _Version, notes: Notes
) -> tuple[list[dict[str, Any]], set[int]]:
  """The lines that count, and all ids that are there: an id is present even where its scores are no numbers."""
  rows, there, scored = [], set(), set()
  for file, number, row in lines:
    prompt = row.get("prompt_id")
    if not isinstance(prompt, int):
      notes.add("lines whose prompt_id is no whole number, passed over", file, number)
      continue
    there.add(prompt)
    values = [v for f in kind.fields if isinstance(v := row.get(f), int | float)]
    if len(values) < len(kind.fields):
      notes.add("prompts whose scores aren't numbers, left out of the means", file, number, f"prompt {prompt}")
      continue
    if kind.name == "verified" and values[0] not in (0, 1):
      notes.add("scores other than 0 and 1, left out of the means", file, number, f"prompt {prompt}")
      continue
    if not 1 <= prompt <= kind.last_ids[-1]:
      notes.add("ids that WISE doesn't have, left out", file, number, f"prompt {prompt}"[:40])
      continue
    try:
      wiscore = float(values[0] if len(values) == 1 else (0.7 * values[0] + 0.2 * values[1] + 0.1 * values[2]) / 2)
    except OverflowError:
      wiscore = np.inf
    if not np.isfinite(wiscore):
      raise BadRequest(f"{file}:{number}: the scores make no finite number")
    if not 0 <= wiscore <= 1:
      notes.add("scores beyond 0 to 2, counted as they are", file, number, f"prompt {prompt}")
    if prompt in scored:
      notes.add("second lines of a prompt, each counted (a straight reading counts a prompt once)", file, number,
                f"prompt {prompt}")  # fmt: skip
    scored.add(prompt)
    category = CATEGORIES[next(i for i, last in enumerate(kind.last_ids) if prompt <= last)]
    rows.append({"prompt_id": int(prompt), "category": category, "file": file.name, "line": number,
                 **dict(zip(kind.fields, values)), "wiscore": wiscore})  # fmt: skip
  return rows, there


def _complete(there: set[int], kind: _Version, category: str, files: Sequence[Path], notes: Notes) -> None:
  """Whether all prompts of the category are there; with several files and a category the tool doesn't ask."""
  first, stop = _PARTS[category]
  wanted = range(kind.last_ids[first - 1] + 1 if first else 1, kind.last_ids[stop - 1] + 1)
  if not (missing := [i for i in wanted if i not in there]):
    return
  told = f"{len(missing):,} of the {len(wanted):,} prompts of {category} are missing: {', '.join(map(str, missing[:3]))}"
  told += ", …" * (len(missing) > 3)
  if category == "all" or len(files) == 1:
    raise BadRequest(f"{files[0].parent if len(files) > 1 else files[0]}: {told}; WISE's tool gives no figure of a partial"
                     f" result{' (--category scores a part)' if category == 'all' else ''}")  # fmt: skip
  notes.say(f"{told} (of several files with a category the tool asks for none)")
