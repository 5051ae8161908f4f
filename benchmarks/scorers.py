"""Speed of the scorers of answers, on made files of the benchmarks' true sizes; beside the original programs where they are.

    python benchmarks/scorers.py [--originals=DIR] [--scale=1] [--scratch=DIR] [--only=NAME] [--json]

Makes MME's 2,374 questions, POPE's 9,000, VQAv2's 214,354 (validation; ten people's answers each) and GQA's 132,062 (balanced
validation, with choices), and scores them in a process of its own: wall seconds from its start to the printed table, as a user
waits for them, its processor seconds, which other work on the machine changes less, those of the scorer alone, and its largest
memory beside the files' size; the least of three. DIR holds the original programs, of which those that are there are timed in
turns with ours, in this Python: mme/calculation.py, pope/evaluate.py (its two file names are filled in), vqav2/vqa.py and
vqav2/vqaEval.py (translated to Python 3), gqa/eval.py. The files are in the system's memory when they are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
import multiprocessing
import os
from pathlib import Path
import random
import re
import subprocess
import sys
import tempfile
import time

from orthus_jax.evaluation.benchmarks import mme as mme_scorer

_WORDS = "red blue green white black left right dog cat man woman table chair tree kitchen street pizza bus train water".split()


def mme(folder: Path, scale: float) -> None:
  """14 files; a subtask has 40 to 200 pictures' worth of pairs."""
  rng = random.Random(0)
  for subtask in (s for group in mme_scorer.SUBTASKS.values() for s in group):
    lines = []
    for i in range(int(scale * 2374 / 14 / 2)):
      for truth in ("Yes", "No"):
        answer = truth if rng.random() < 0.8 else rng.choice(("Yes", "No", "maybe", "No, there is none."))
        lines.append(f"{i:06d}.jpg\tIs this a {rng.choice(_WORDS)}? Please answer yes or no.\t{truth}\t{answer}\n")
    (folder / f"{subtask}.txt").write_text("".join(lines))


def pope(folder: Path, scale: float) -> None:
  """Three splits of 3,000 questions, six a picture."""
  rng = random.Random(0)
  (folder / "labels").mkdir()
  (folder / "answers").mkdir()
  for split in ("random", "popular", "adversarial"):
    labels, answers = [], []
    for i in range(int(scale * 3000)):
      question = f"Is there a {rng.choice(_WORDS)} in the image?"
      label = ("yes", "no")[i % 2]
      labels.append({"question_id": i + 1, "image": f"COCO_val2014_{i // 6:012d}.jpg", "text": question, "label": label})
      answers.append({"question": question, "answer": rng.choice(("Yes", "No", "Yes, there is.", "No, there isn't one."))})
    (folder / "labels" / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, labels)))
    (folder / "answers" / f"{split}.json").write_text("\n".join(map(json.dumps, answers)))


def vqav2(folder: Path, scale: float) -> None:
  """214,354 questions of 40,504 pictures, two thirds of them with people who differ."""
  rng = random.Random(0)
  people, questions, results = [], [], []
  for i in range(int(scale * 214354)):
    said = rng.choice(_WORDS)
    given = [said if rng.random() < 0.8 or i % 3 == 0 else f"a {rng.choice(_WORDS)} {rng.randrange(2000)}" for _ in range(10)]
    answers = [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(given)]
    sort = ("yes/no", "number", "other", "other")[i % 4]
    people.append({
        "question_type": f"what is {i % 65}", "multiple_choice_answer": said, "answers": answers, "image_id": i // 5,
        "answer_type": sort, "question_id": i,
    })  # fmt: skip
    questions.append({"image_id": i // 5, "question": f"What is the {said} thing?", "question_id": i})
    results.append({"question_id": i, "answer": said if rng.random() < 0.7 else rng.choice(_WORDS)})
  about = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
  (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(about | {"annotations": people}))
  (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(
      json.dumps(about | {"task_type": "Open-Ended", "questions": questions})
  )
  (folder / "v2_OpenEnded_mscoco_val2014_made_results.json").write_text(json.dumps(results))


def gqa(folder: Path, scale: float) -> None:
  """132,062 balanced questions of 10,234 pictures."""
  rng = random.Random(0)
  asked, choices, predictions = {}, {}, []
  for i in range(int(scale * 132062)):
    answer, about = rng.choice(_WORDS), rng.choice(_WORDS)
    asked[f"{i:09d}"] = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": f"{about} ({i})"},
                     {"operation": "relate", "dependencies": [0], "argument": f"{answer},to the left of,s ({i + 1})"},
                     {"operation": "query", "dependencies": [1], "argument": "name"}],
        "entailed": [f"{i:09d}"], "equivalent": [f"{i:09d}"], "question": f"What is the {about} to the left of the {answer}?",
        "imageId": str(i // 13), "isBalanced": True, "groups": {"global": f"group {i % 40}", "local": f"10-{about}"},
        "answer": answer, "semanticStr": f"select: {about} ({i})->relate: {answer},to the left of,s ({i + 1})->query: name [1]",
        "annotations": {"answer": {"0": str(i)}, "question": {"3": str(i)}, "fullAnswer": {"1": str(i)}},
        "types": {"detailed": "relS", "semantic": ("rel", "attr", "obj")[i % 3], "structural": ("query", "verify")[i % 2]},
        "fullAnswer": f"The {answer} is to the left of the {about}.",
    }  # fmt: skip
    choices[f"{i:09d}"] = {"valid": rng.sample(_WORDS, 12), "plausible": rng.sample(_WORDS, 5)}
    predictions.append({"questionId": f"{i:09d}", "prediction": answer if rng.random() < 0.6 else rng.choice(_WORDS)})
  for name, value in (("questions", asked), ("choices", choices), ("predictions", predictions), ("sceneGraphs", {})):
    (folder / f"val_{name}.json").write_text(json.dumps(value))


def _original(name: str, folder: Path, place: Path) -> list[str] | None:
  """The command that runs an original program on the files; None where it isn't there."""
  if name == "mme" and (script := place / "mme" / "calculation.py").exists():
    return [sys.executable, str(script), "--results_dir", str(folder)]
  if name == "pope" and (script := place / "pope" / "evaluate.py").exists():
    text = script.read_text()
    for split in ("random", "popular", "adversarial"):
      one = re.sub(r"(?m)^ans_file = .*", f"ans_file = {str(folder / 'answers' / f'{split}.json')!r}", text)
      one = re.sub(r"(?m)^label_file = .*", f"label_file = {str(folder / 'labels' / f'coco_pope_{split}.json')!r}", one)
      (folder / f"evaluate_{split}.py").write_text(one)
    runs = " && ".join(f"{sys.executable} {folder / f'evaluate_{s}.py'}" for s in ("random", "popular", "adversarial"))
    return ["sh", "-c", runs]
  if name == "vqav2" and (place / "vqav2" / "vqaEval.py").exists():
    files = {k: next(iter(folder.glob(f"*_{k}.json"))) for k in ("annotations", "questions", "results")}
    program = (
        f"import sys; sys.path.insert(0, {str(place / 'vqav2')!r}); from vqa import VQA; from vqaEval import VQAEval;"
        f"v = VQA({str(files['annotations'])!r}, {str(files['questions'])!r});"
        f"e = VQAEval(v, v.loadRes({str(files['results'])!r}, {str(files['questions'])!r}), n=2); e.evaluate()"
    )
    return [sys.executable, "-c", program]
  if name == "gqa" and (script := place / "gqa" / "eval.py").exists():
    options = [f"--{k}={folder}/val_{v}.json" for k, v in (("questions",) * 2, ("choices",) * 2,
                                                          ("predictions",) * 2, ("scenes", "sceneGraphs"))]  # fmt: skip
    return [sys.executable, str(script), "--tier", "val", *options]
  return None


def _timed(command: list[str]) -> dict[str, float]:
  """What one command, with all that it starts, took: wall and processor seconds, and its largest memory in MB."""
  with tempfile.TemporaryFile("w+") as said:
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
      said.seek(0)
      raise SystemExit(f"{command[:3]} failed: {said.read()[-800:]}")
  return {"seconds": seconds, "processor_seconds": used.ru_utime + used.ru_stime, "memory_MB": used.ru_maxrss / 1e3}


def _best(runs: list[dict[str, float]]) -> dict[str, float]:
  return {name: min(run[name] for run in runs) for name in runs[0]}


def main() -> None:
  """Makes files, times, prints a table."""
  made: dict[str, Callable[[Path, float], None]] = {"mme": mme, "pope": pope, "gqa": gqa, "vqav2": vqav2}
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--originals", type=Path, metavar="DIR")
  parser.add_argument("--scale", type=float, default=1.0)
  parser.add_argument("--scratch", type=Path, metavar="DIR")
  parser.add_argument("--only", choices=made)
  parser.add_argument("--json", action="store_true")
  options = parser.parse_args()
  rows = []
  for name, make in made.items():
    if options.only not in (None, name):
      continue
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
      folder = Path(scratch)
      making = multiprocessing.Process(target=make, args=(folder, options.scale))  # a process begins at its parent's memory
      making.start()
      making.join()
      argv = [str(folder)]
      size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
      ours = [sys.executable, "-m", "orthus_jax.cli", "score", name, *argv]
      program = f"from time import perf_counter as now; import orthus_jax as oj; t = now(); oj.scores.{name}({argv[0]!r})"
      scorer = min(float(subprocess.check_output([sys.executable, "-c", f"{program}; print(now() - t)"])) for _ in range(3))
      theirs = _original(name, folder, options.originals) if options.originals else None
      runs: dict[str, list[dict[str, float]]] = {"": [], "original_": []}
      for _ in range(3):  # in turns
        for whose, command in {"": ours, "original_": theirs}.items():
          if command:
            runs[whose].append(_timed(command))
      row = {"benchmark": name, "files_MB": size, "scorer_seconds": scorer}
      row |= {f"{whose}{k}": v for whose, found in runs.items() if found for k, v in _best(found).items()}
      rows.append(row)
      if not options.json:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v:<6}" for k, v in row.items()), flush=True)
  if options.json:
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
  main()
