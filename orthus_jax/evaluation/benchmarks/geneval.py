"""GenEval: are the things asked for in the picture, as many, of that colour, in that place?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import importlib
import json
from pathlib import Path
import re
import reprlib
from typing import Any

import numpy as np

from orthus_jax.data import images as images_lib
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import geneval_rules, reading
from orthus_jax.evaluation.benchmarks.base import Notes, Score, interval, judging, refuse, resampled, under
from orthus_jax.evaluation.benchmarks.geneval_rules import Detection, Rules
from orthus_jax.files import first_line

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
    BadRequest: if files are missing, or hold something else, or options are given for what was judged already.
  """
  path, notes = Path(path), Notes()
  rules = Rules(threshold, counting_threshold, max_objects, max_overlap, position_threshold)
  if judge is not None or detections is not None:
    rows = list(judged(path, _finder(path, judge, detections, notes), rules, notes))
    if not rows:
      raise BadRequest(f"{path} has no NNNNN/samples/NNNN.png: name the folder that holds GenEval's pictures")
  else:
    refuse(score, "judge or detections", **dataclasses.asdict(rules))
    file = path / "results.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
      raise BadRequest(f"{path} has no results.jsonl: give --judge or --detections to have its pictures judged")
    rows = _read(reading.existing(file, "GenEval's results.jsonl"), notes)
  if metadata is not None:
    _missing(Path(metadata), rows, notes)
  return _summary(rows, under(PROTOCOL, score, **dataclasses.asdict(rules)), notes)


def _summary(rows: Sequence[Mapping[str, Any]], protocol: str, notes: Notes) -> Score:
  scores, prompts = _means(rows)
  tags = list(scores)[:-3]
  counts = {t: sum(r["tag"] == t for r in rows) for t in tags}
  counts |= {"Overall": len(rows), "images": len(rows), "prompts": len(prompts)}
  number = {t: sum(p["tag"] == t for p in prompts) for t in tags}
  if missing := [t for t in TAGS if t not in tags]:
    notes.say(f"Overall is the mean of the {len(tags)} tags that are present: {', '.join(missing)} missing")
  if other := [t for t in tags if t not in TAGS]:
    notes.say(f"tags that GenEval hasn't, which count in Overall: {', '.join(other[:4])}{', …' if len(other) > 4 else ''}")
  if short := [f"{t} {number[t]} of {n}" for t, n in _FULL.items() if 0 < number.get(t, n) != n]:
    notes.say(f"not GenEval's own 553 prompts: {', '.join(short)}")
  samples = sorted({p["of"] for p in prompts})
  if samples != [4]:
    notes.say(f"pictures a prompt: {', '.join(map(str, samples))}, where GenEval has 4")
  once, _ = _means(list({r["filename"]: r for r in rows}.values()))
  return Score(
      "geneval", protocol, scores, intervals=_intervals(prompts, tags), counts=counts, notes=notes.lines(),
      straight={k: v for k, v in once.items() if v != scores[k]}, rows=tuple(dict(r) for r in rows),
  )  # fmt: skip


def _means(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """The tool's figures by name, tags first; and of each prompt its tag and how many of its pictures are right."""
  by_tag: dict[str, list[bool]] = {}
  prompts: dict[str, dict[str, Any]] = {}  # two folders with the same metadata are one prompt
  for r in rows:
    by_tag.setdefault(r["tag"], []).append(r["correct"])
    prompt = prompts.setdefault(r["metadata"], {"tag": r["tag"], "right": 0, "of": 0})
    prompt["right"] += r["correct"]
    prompt["of"] += 1
  means = {t: float(np.mean(right)) for t, right in by_tag.items()}
  return {
      **means, "Overall": float(np.mean(list(means.values()))), "images": float(np.mean([r["correct"] for r in rows])),
      "prompts": float(np.mean([p["right"] > 0 for p in prompts.values()])),
  }, list(prompts.values())  # fmt: skip


def _intervals(prompts: Sequence[Mapping[str, Any]], tags: Sequence[str]) -> dict[str, tuple[float, float]]:
  """Prompts are drawn with all their pictures, within their tag: each tag has the number of prompts that it has."""
  drawn_TNK = np.stack([
      resampled(np.array([(p["right"], p["of"], p["right"] > 0, 1) for p in prompts if p["tag"] == t]), seed=seed)
      for seed, t in enumerate(tags)
  ])
  share_TN = drawn_TNK[..., 0] / drawn_TNK[..., 1]
  all_NK = drawn_TNK.sum(0)
  figures = {t: share_TN[i] for i, t in enumerate(tags)} | {
      "Overall": share_TN.mean(0), "images": all_NK[:, 0] / all_NK[:, 1], "prompts": all_NK[:, 2] / all_NK[:, 3],
  }  # fmt: skip
  return {name: found for name, value_N in figures.items() if (found := interval(value_N))}


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
  row = reading.whole_json(reading.existing(file, "a prompt of GenEval's"), dict, "a prompt of GenEval's: tag, include, prompt")
  try:
    if not isinstance(row["tag"], str) or not isinstance(row["prompt"], str):
      raise TypeError("tag and prompt aren't texts")
    for number, group in enumerate([*row.get("include", ()), *row.get("exclude", ())]):
      if not isinstance(group["class"], str) or not isinstance(group["count"], int) or group["count"] < 1:
        raise TypeError("a class isn't a text, or its count no number from 1")
      if "position" in group:
        relation, target = group["position"]
        if not isinstance(relation, str) or not isinstance(target, int) or not 0 <= target < number:
          raise TypeError("a position is told from a thing that doesn't come before")
  except KeyError as e:
    raise BadRequest(f"{file} isn't a prompt of GenEval's (tag, include, prompt): it has no {e}") from e
  except (ValueError, TypeError) as e:
    raise BadRequest(f"{file} isn't a prompt of GenEval's (tag, include, prompt): {e}") from e
  return row


def _finder(folder: Path, judge: str | Judge | None, detections: str | Path | None, notes: Notes) -> Finder:
  if judge is not None and detections is not None:
    raise BadRequest("give a judge or detections, not both")
  if detections is not None:
    file = reading.existing(detections, "detections, a JSON object by picture,")
    known = reading.whole_json(file, dict, "detections by picture")
    there = {p.relative_to(folder).as_posix() for p in folder.glob("*/samples/*")}
    for name in known:
      if name not in there:
        notes.add("pictures with detections aren't there, and count for nothing", file, name=name)

    def look_up(relative: str, picture: Path) -> Sequence[Detection]:
      if relative not in known:
        raise BadRequest(f"{file} has no detections of {relative}: name its pictures by their path below {folder}")
      found = known[relative]
      return _detections(found.get("objects") if isinstance(found, dict) else found, file, relative, notes)

    return look_up
  called = load_judge(judge) if isinstance(judge, str) else judge
  assert called is not None
  guarded = judging(called)
  return lambda relative, picture: _detections(
      guarded(relative, images_lib.load_image(picture)), picture, relative, notes
  )


def load_judge(judge: str) -> Judge:
  """What `module:function` names.

  Raises:
    BadRequest: if it isn't there, or can't be called.
  """
  module, _, function = judge.partition(":")
  try:
    found = getattr(importlib.import_module(module), function)
  except Exception as e:  # a module that is loaded for the first time may raise anything
    raise BadRequest(f"--judge={judge} can't be loaded: {first_line(e)}; name it as module:function") from e
  if not callable(found):
    raise BadRequest(f"--judge={judge} is {reprlib.repr(found)}, which can't be called; name it as module:function")
  return found


def _detections(found: Any, file: Path, picture: str, notes: Notes) -> list[Detection]:
  """Detections as the rules want them; `file` is what they were found in."""
  wanted = f"{file}: what was found in {picture} isn't a list of class, bbox and score"
  try:
    result = []
    for o in found:
      box = tuple(float(v) for v in o["bbox"])
      if len(box) != 4 or not np.isfinite(box).all():
        raise ValueError(f"bbox is {str(o['bbox'])[:60]}, not x0, y0, x1, y1")
      color = o.get("color") or functools.partial(_no_color, file, picture, notes)
      if isinstance(color, str):
        color = color.split(">", 1)[0]  # "orange>red": the surer ahead of the next
      more = {k: o[k] for k in geneval_rules.EXTRA if k in o}
      result.append(Detection(str(o["class"]), box, float(o.get("score", 1.0)), color, more))
    return result
  except KeyError as e:
    raise BadRequest(f"{wanted}: {e} is missing") from e
  except (TypeError, ValueError, AttributeError, OverflowError) as e:
    raise BadRequest(f"{wanted}: {e}") from e


def _no_color(file: Path, picture: str, notes: Notes) -> str:
  """What a classifier that finds all colours alike says."""
  first = geneval_rules.COLORS[0]
  what = f"things without a color where one is asked for, taken for {first}, the first of GenEval's colours"
  notes.add(what, file, name=picture)
  return first


def _read(file: Path, notes: Notes) -> list[dict[str, Any]]:
  rows: list[dict[str, Any]] = []
  seen = set()
  tags: dict[str, str] = {}
  for number, row in enumerate(reading.json_lines(file), 1):
    for name in ("filename", "tag", "prompt", "metadata"):
      reading.field(row, name, str, _ROW, file, number)
    if (right := reading.field(row, "correct", (bool, int), _ROW, file, number)) not in (0, 1):
      raise BadRequest(f"{file}:{number}: 'correct' is {right}, neither true nor false: {_ROW}")
    if tags.setdefault(row["metadata"], row["tag"]) != row["tag"]:
      raise BadRequest(f"{file}:{number}: tag {row['tag']!r}, but {tags[row['metadata']]!r} with the same metadata before")
    if row["filename"] in seen:
      notes.add("pictures that stand there already; the tool counts each line, the straight reading the last", file, number,
                row["filename"])  # fmt: skip
    seen.add(row["filename"])
    rows.append(row | {"correct": bool(right)})
  if not rows:
    raise BadRequest(f"{file} holds no line: {_ROW}")
  return rows


def _missing(file: Path, rows: Sequence[Mapping[str, Any]], notes: Notes) -> None:
  """Names the benchmark's prompts that have no picture."""
  there = {r["prompt"] for r in rows}
  for number, row in enumerate(reading.json_lines(reading.existing(file, "evaluation_metadata.jsonl")), 1):
    prompt = reading.field(row, "prompt", str, "GenEval's evaluation_metadata.jsonl has tag, include and prompt", file, number)
    if prompt not in there:
      notes.add("prompts of the benchmark have no picture, and count for nothing", file, number, prompt)
