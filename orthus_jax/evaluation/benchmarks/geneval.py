"""GenEval: are the things asked for in the picture, as many, of that colour, in that place?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import importlib
import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from orthus_jax.data import images as images_lib
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import geneval_rules, reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, bootstrap
from orthus_jax.evaluation.benchmarks.geneval_rules import Detection, Rules

LAYOUT = """PATH is one of
  results.jsonl as GenEval's own tool writes it: filename, tag, prompt, correct, reason, metadata, details
  a folder of NNNNN/metadata.jsonl and NNNNN/samples/NNNN.png, with --judge or --detections"""
OPTIONS = {
    "judge": "module:function, called with a picture's pixels (uint8 [height, width, 3]); returns an object each: class, bbox"
             " [x0, y0, x1, y1], score, color. orthus_jax.evaluation.shapes_geneval:detect is the built-in world's",
    "detections": "a JSON object of such lists by the picture's path below PATH, each {\"objects\": [...]}",
    "metadata": "evaluation_metadata.jsonl, to name the prompts that have no picture",
    "threshold": "a detection's least score; 0.3", "counting_threshold": "for prompts that count; 0.9",
    "max_objects": "of a class at most so many; 16",
    "max_overlap": "of a class, the less sure of two that overlap as much goes; 1 keeps all",
    "position_threshold": "how far off a thing must be to be beside another, as a share of both; 0.1",
}  # fmt: skip
PROTOCOL = "evaluate_images.py and summary_scores.py of djghosh13/geneval af4902f2"
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
Judge = Callable[[np.ndarray], Sequence[Mapping[str, Any]]]
Finder = Callable[[str, Path], Sequence[Detection]]
_ROW = "GenEval's results.jsonl has filename, tag, prompt, correct, reason, metadata and details in each line"
_PICTURE = re.compile(r"\d+\.png")  # matched from the start alone: 0007.png.bak is one
_FULL = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}


def score(
    path: str | Path, *, judge: str | Judge | None = None, detections: str | Path | None = None,
    metadata: str | Path | None = None, threshold: float = 0.3, counting_threshold: float = 0.9, max_objects: int = 16,
    max_overlap: float = 1.0, position_threshold: float = 0.1,
) -> Score:  # fmt: skip
  """GenEval's figures: each tag's share of right pictures, and their unweighted mean over the tags that are present.

  Args:
    path: results.jsonl, or a folder of pictures (LAYOUT).
    judge: finds what is in a picture; "module:function" or the function.
    detections: what was found already.
    metadata: the benchmark's own list, to name prompts without pictures.
    threshold, counting_threshold, max_objects, max_overlap, position_threshold: the original's options.

  Raises:
    BadRequest: if files are missing, or hold something else.
  """
  path, notes = Path(path), Notes()
  if judge is not None or detections is not None:
    rules = Rules(threshold, counting_threshold, max_objects, max_overlap, position_threshold)
    rows = list(judged(path, _finder(path, judge, detections), rules, notes))
    if not rows:
      raise BadRequest(f"{path} has no NNNNN/samples/NNNN.png: name the folder that holds GenEval's pictures")
  else:
    file = path / "results.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
      raise BadRequest(f"{path} has no results.jsonl: give --judge or --detections to have its pictures judged")
    rows = _read(reading.existing(file, "GenEval's results.jsonl"))
  if metadata is not None:
    _missing(Path(metadata), rows, notes)
  return _summary(rows, notes)


def _summary(rows: Sequence[Mapping[str, Any]], notes: Notes) -> Score:
  tags = list(dict.fromkeys(r["tag"] for r in rows))
  prompts: dict[str, dict[str, Any]] = {}  # two folders with the same metadata are one prompt
  for r in rows:
    prompt = prompts.setdefault(r["metadata"], {"tag": r["tag"], "right": 0, "of": 0})
    prompt["right"] += r["correct"]
    prompt["of"] += 1
  right = {t: [r["correct"] for r in rows if r["tag"] == t] for t in tags}
  by_tag = {t: float(np.mean(right[t])) for t in tags}
  any_right = float(np.mean([p["right"] > 0 for p in prompts.values()]))
  scores = {
      **by_tag, "Overall": float(np.mean(list(by_tag.values()))), "images": float(np.mean([r["correct"] for r in rows])),
      "prompts": any_right,
  }  # fmt: skip
  counts = {t: len(right[t]) for t in tags} | {"Overall": len(rows), "images": len(rows), "prompts": len(prompts)}
  number = {t: sum(p["tag"] == t for p in prompts.values()) for t in tags}
  if missing := [t for t in TAGS if t not in tags]:
    notes.say(f"Overall is the mean of the {len(tags)} tags that are present: {', '.join(missing)} missing")
  if short := [f"{t} {number[t]} of {n}" for t, n in _FULL.items() if 0 < number.get(t, n) != n]:
    notes.say(f"not GenEval's own 553 prompts: {', '.join(short)}")
  samples = sorted({p["of"] for p in prompts.values()})
  if samples != [4]:
    notes.say(f"pictures a prompt: {', '.join(map(str, samples))}, where GenEval has 4")
  return Score(
      "geneval", PROTOCOL, scores, intervals=_intervals(list(prompts.values()), tags), counts=counts, notes=notes.lines(),
      rows=tuple(dict(r) for r in rows),
  )  # fmt: skip


def _intervals(prompts: Sequence[Mapping[str, Any]], tags: Sequence[str]) -> dict[str, tuple[float, float]]:
  """Prompts are drawn with all their pictures."""
  units_UK = np.zeros((len(prompts), 2 * len(tags) + 2))
  for u, p in enumerate(prompts):
    k = 2 * tags.index(p["tag"])
    units_UK[u, [k, k + 1]] = p["right"], p["of"]
    units_UK[u, -2:] = p["right"] > 0, 1

  def figures(sums_NK: np.ndarray) -> dict[str, np.ndarray]:
    right_NT, of_NT = sums_NK[:, :-2:2], sums_NK[:, 1:-2:2]
    by_tag_NT = right_NT / of_NT
    return {
        **{t: by_tag_NT[:, i] for i, t in enumerate(tags)}, "Overall": np.nanmean(by_tag_NT, axis=1),
        "images": right_NT.sum(1) / of_NT.sum(1), "prompts": sums_NK[:, -2] / sums_NK[:, -1],
    }  # fmt: skip

  return bootstrap(units_UK, figures)


def judged(folder: Path, find: Finder, rules: Rules, notes: Notes) -> Iterator[dict[str, Any]]:
  """Rows of results.jsonl for all pictures of a folder, in order.

  Args:
    folder: the pictures'.
    find: from a picture's path below the folder, and the file, to what is in it.
    rules: the options.
    notes: where what is passed over is told.
  """
  reading.existing(folder, "GenEval's pictures, NNNNN/samples/NNNN.png,", folder=True)
  for home in sorted(p for p in folder.iterdir() if p.is_dir()):
    if not home.name.isdigit():
      notes.add("folders whose names aren't numbers, passed over", home)
      continue
    for name in ("metadata.jsonl", "samples"):
      if not (home / name).exists():
        raise BadRequest(f"{home} has no {name}, on which GenEval's own tool stops: complete or remove the folder")
    metadata = _metadata(home / "metadata.jsonl")
    pictures = sorted(p for p in (home / "samples").iterdir() if _PICTURE.match(p.name))
    if not pictures:
      notes.add("prompts without a picture, left out", home)
    for picture in pictures:
      relative = picture.relative_to(folder).as_posix()
      found = geneval_rules.kept(find(relative, picture), rules, counting=metadata["tag"] == "counting")
      right, reason = geneval_rules.judge(found, metadata, rules)
      details = {n: [[*map(float, d.box_4), float(np.float32(d.score))] for d in of_it] for n, of_it in found.items()}
      yield {
          "filename": (Path(folder.name) / relative).as_posix(), "tag": metadata["tag"], "prompt": metadata["prompt"],
          "correct": right, "reason": reason, "metadata": json.dumps(metadata), "details": json.dumps(details),
      }  # fmt: skip


def _metadata(file: Path) -> dict[str, Any]:
  try:
    row = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(row, dict) or not isinstance(row["tag"], str) or not isinstance(row["prompt"], str):
      raise TypeError("tag and prompt aren't texts")
    for number, group in enumerate([*row.get("include", ()), *row.get("exclude", ())]):
      if not isinstance(group["class"], str) or not isinstance(group["count"], int):
        raise TypeError("a class isn't a text, or its count no number")
      if "position" in group and not 0 <= group["position"][1] < number:
        raise TypeError("a position is told from a thing that doesn't come before")
  except (ValueError, KeyError, TypeError, IndexError) as e:
    raise BadRequest(f"{file} isn't a prompt of GenEval's (tag, include, prompt): {type(e).__name__}: {e}") from e
  return row


def _finder(folder: Path, judge: str | Judge | None, detections: str | Path | None) -> Finder:
  if judge is not None and detections is not None:
    raise BadRequest("give a judge or detections, not both")
  if detections is not None:
    file = reading.existing(detections, "detections, a JSON object by picture,")
    known = reading.whole_json(file, dict, "detections by picture")

    def look_up(relative: str, picture: Path) -> Sequence[Detection]:
      if relative not in known:
        raise BadRequest(f"{file} has no detections of {relative}: name its pictures by their path below {folder}")
      return _detections(known[relative]["objects"] if isinstance(known[relative], dict) else known[relative], relative)

    return look_up
  called = _load(judge) if isinstance(judge, str) else judge
  assert called is not None
  return lambda relative, picture: _detections(called(images_lib.load_image(picture)), relative)


def _load(judge: str) -> Judge:
  module, _, function = judge.partition(":")
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as e:
    raise BadRequest(f"--judge={judge} can't be loaded: {e}; name it as module:function") from e


def _detections(found: Sequence[Mapping[str, Any]], where: str) -> list[Detection]:
  try:
    more = [{k: o[k] for k in geneval_rules.EXTRA if k in o} for o in found]
    return [
        Detection(str(o["class"]), tuple(o["bbox"]), float(o.get("score", 1.0)), o.get("color", ""), m)
        for o, m in zip(found, more)
    ]
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise BadRequest(f"what was found in {where} isn't a list of class, bbox and score: {type(e).__name__}: {e}") from e


def _read(file: Path) -> list[dict[str, Any]]:
  rows = []
  for number, row in enumerate(reading.json_lines(file), 1):
    for name in ("tag", "metadata"):
      reading.field(row, name, str, _ROW, file, number)
    rows.append(row | {"correct": bool(reading.field(row, "correct", (bool, int), _ROW, file, number))})
  if not rows:
    raise BadRequest(f"{file} holds no line: {_ROW}")
  return rows


def _missing(file: Path, rows: Sequence[Mapping[str, Any]], notes: Notes) -> None:
  """Names the benchmark's prompts that have no picture."""
  there = {r["prompt"] for r in rows}
  for number, row in enumerate(reading.json_lines(reading.existing(file, "evaluation_metadata.jsonl")), 1):
    if row.get("prompt") not in there:
      notes.add("prompts of the benchmark have no picture, and count for nothing", file, number, str(row.get("prompt")))
