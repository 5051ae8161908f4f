"""The tables of docs/study.md, from the runs of a sweep over configs/study.py.

    python benchmarks/study_tables.py study                                       # the sweep's directory
    python benchmarks/study_tables.py study docs/notes/study_runs.json            # and runs of other machines
    python benchmarks/study_tables.py study --keep=docs/notes/study_runs.json     # keep its finished runs' figures

Sweeps of several machines are read together, by their directories or by the figures that were kept of them; of a run that
stands in several the first counts. Prints Markdown: each of the paper's comparisons in small beside the paper's own numbers,
then whether its order is reproduced. An order is judged by the differences of runs of the same seed, which see the same
documents in the same order: reproduced where their 95% interval (Student's) lies above 0, not reproduced where it lies below,
otherwise, or from fewer than three seeds, undecided at this size.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import sys
from typing import Any

from orthus_jax import files
from orthus_jax.errors import BAD_REQUEST, BadRequest, print_error
from orthus_jax.sweeping.table import groups, interval

# Our scores that stand for the paper's, and whether more is better.
SCORES = {
    "single_object": ("one thing all right, %", 100.0, True), "geneval_overall": ("GenEval's six, %", 100.0, True),
    "open_accuracy": ("open answers, %", 100.0, True), "yes_no_accuracy": ("yes/no answers, %", 100.0, True),
    "caption_attributes": ("descriptions' attributes, %", 100.0, True), "frechet": ("Fréchet distance", 1.0, False),
    "sharpness": ("sharpness, % of real", 100.0, True), "pictures_per_second": ("pictures/s", 1.0, True),
}  # fmt: skip
_DRAWN = ("single_object", "geneval_overall", "frechet", "sharpness")
_READ = ("open_accuracy", "yes_no_accuracy")
# The paper's tables (arXiv 2412.00127): what is compared, by our groups, with its own numbers.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]] = {
    "Systems (POPE, MME-P, GQA, GenEval)": (
        ("orthus", "chameleon", "showo"), tuple(SCORES),
        {"orthus": "79.6, 1265.8, 52.8, 0.58", "chameleon": "77.8, 1056.9, 49.6, 0.43", "showo": "73.8, 948.4, 48.7, 0.53"},
    ),
    "Vision embedding, understanding alone (POPE, MME-P, GQA)": (
        ("understanding_soft", "understanding_argmin", "understanding_linear"), (*_READ, "caption_attributes"),
        {"understanding_soft": "78.7, 1244.2, 51.9", "understanding_argmin": "77.6, 1064.8, 50.1",
         "understanding_linear": "70.4, 800.7, 44.5"},
    ),
    "Vision embedding in the place of a discrete model's, 200 steps (POPE, MME-P, GQA)": (
        ("converted_soft", "converted_argmin", "converted_linear"), (*_READ, "caption_attributes"),
        {"converted_soft": "78.7, 1244.2, 51.9", "converted_argmin": "77.6, 1064.8, 50.1",
         "converted_linear": "70.4, 800.7, 44.5"},
    ),
    "Vision embedding, the whole mix (not in the paper)": (("orthus", "argmin", "linear"), tuple(SCORES)[:7], {}),
    "One model for both (POPE, MME-P, GQA; GenEval)": (
        ("orthus", "understanding_soft", "generation"), ("single_object", "geneval_overall", "frechet", *_READ),
        {"orthus": "79.6, 1265.8, 52.8; 0.58", "understanding_soft": "78.7, 1244.2, 51.9; -", "generation": "-; 0.56"},
    ),
    "Image head (the paper: a regression head's pictures are washed out)": (("orthus", "regression"), _DRAWN, {}),
}  # fmt: skip
# The paper's orders: (what it says, the better group, the worse one, scores).
ORDERS = (
    ("Orthus over Chameleon in pictures", "orthus", "chameleon", _DRAWN),
    ("Orthus over Chameleon in answers", "orthus", "chameleon", _READ),
    ("Orthus over Show-o in pictures", "orthus", "showo", _DRAWN),
    ("Orthus over Show-o in answers", "orthus", "showo", _READ),
    ("softmax over argmin", "understanding_soft", "understanding_argmin", _READ),
    ("argmin over linear", "understanding_argmin", "understanding_linear", _READ),
    ("softmax over linear", "understanding_soft", "understanding_linear", _READ),
    ("softmax over argmin, converted", "converted_soft", "converted_argmin", _READ),
    ("argmin over linear, converted", "converted_argmin", "converted_linear", _READ),
    ("softmax over linear, converted", "converted_soft", "converted_linear", _READ),
    ("diffusion over regression", "orthus", "regression", _DRAWN),
    ("both over understanding alone", "orthus", "understanding_soft", _READ),
    ("both over generation alone", "orthus", "generation", _DRAWN[:2]),
)


_SEEDS = 3  # fewer judge no order


def verdict(runs: Sequence[Mapping[str, Any]], better: str, worse: str, score: str) -> tuple[str, str]:
  """(the paired difference with its interval, what that says) of two groups' runs of the same seeds."""
  _, scale, more = SCORES[score]
  by = {
      group: {r["seed"]: r["scores"][score] for r in runs if r["group"] == group and score in r["scores"]}
      for group in (better, worse)
  }
  seeds = sorted(set(by[better]) & set(by[worse]))
  if not seeds:
    return "", "not run"
  found = interval([scale * (by[better][s] - by[worse][s]) * (1 if more else -1) for s in seeds])
  if found["low"] is None:
    return f"{found['mean']:+.2f} (one seed)", "undecided"
  said = "reproduced" if found["low"] > 0 else "not reproduced" if found["high"] < 0 else "undecided"
  if len(seeds) < _SEEDS:  # two may agree by chance, and their interval then has no width
    said = "undecided"
  return f"{found['mean']:+.2f} ({found['low']:+.2f} … {found['high']:+.2f}, {len(seeds)} seeds)", said


def _cell(group: Mapping[str, Any], score: str) -> str:
  value, scale = group["scores"].get(score), SCORES[score][1]
  if value is None:
    return ""
  digits = 1 if scale == 100 or value["mean"] > 10 else 3
  half = "" if value["low"] is None else f" ± {scale * (value['high'] - value['low']) / 2:.{digits}f}"
  return f"{scale * value['mean']:.{digits}f}{half}"


def _cost(group: Mapping[str, Any], name: str, scale: float) -> str:
  cost = group["costs"].get(name)
  return "" if cost is None else f"{scale * cost['mean']:.2f}"


def _line(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


def tables(table: Mapping[str, Any]) -> str:
  """All of it, as Markdown, of a sweep's table.json."""
  groups = {g["group"]: g for g in table["groups"] if g["finished"]}
  lines: list[str] = []
  for title, (names, scores, paper) in TABLES.items():
    there = [n for n in names if n in groups]
    if not there:
      continue
    lines += [f"### {title}", ""]
    heads = ["", *(SCORES[s][0] for s in scores), "s a step", "M parameters", "runs", *(["the paper"] if paper else [])]
    lines += [_line(heads), "|---" * len(heads) + "|"]
    for name in there:
      g = groups[name]
      costs = [_cost(g, "seconds_a_step", 1.0), _cost(g, "parameters", 1e-6)]
      cells = [name, *(_cell(g, s) for s in scores), *costs, str(g["finished"])]
      lines.append(_line(cells + ([paper[name]] if paper else [])))
    lines.append("")
  lines += ["### The paper's orders", "", "| order | score | difference, the better way up | here |", "|---|---|---|---|"]
  finished = [r for r in table["runs"] if r["state"] == "finished"]
  for said, better, worse, scores in ORDERS:
    lines += [f"| {said} | {SCORES[s][0]} | {d} | {v} |" for s in scores for d, v in [verdict(finished, better, worse, s)]]
  lines += ["", "### Runs", "", "| run | SHA-256 of its parameters |", "|---|---|"]
  lines += [f"| {r['id']} | {r['params_digest'][:16]} |" for r in finished]
  return "\n".join(lines) + "\n"


def together(paths: Sequence[Path]) -> dict[str, Any]:
  """The finished runs of sweeps' directories and of files that --keep wrote, as one table.

  Raises:
    BadRequest: if one can't be read, or two tell of a run of one name and other fields.
  """
  runs: dict[str, dict[str, Any]] = {}
  for path in paths:
    file = path / "table.json" if path.is_dir() else path
    try:
      found = json.loads(file.read_text(encoding="utf-8"))["runs"]
      for run in found:
        if run["state"] == "finished" and run["fields"] != runs.setdefault(run["id"], run)["fields"]:
          raise BadRequest(f"{file}: {run['id']} has other fields than in a table before: they are of different sweeps")
    except FileNotFoundError as e:
      missing = "isn't there; a sweep that isn't done yet writes it by orthus sweep … --collect"
      raise BadRequest(f"{file} {missing if path.is_dir() else missing.partition(';')[0]}") from e
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise BadRequest(f"{file} can't be read as a sweep's table: give a sweep's directory, or a file made by --keep") from e
  if not runs:
    raise BadRequest(f"no run of {', '.join(map(str, paths))} is finished")
  return {"runs": list(runs.values()), "groups": groups(list(runs.values()))}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("sweeps", type=Path, nargs="+", help="a sweep's directory, or a file of runs that were kept")
  parser.add_argument("--keep", type=Path, metavar="FILE", help="write the figures of all finished runs there")
  options = parser.parse_args()
  try:
    table = together(options.sweeps)
    if options.keep:
      # Where the config lay on this machine tells others nothing.
      kept = [r | {"config": Path(r.get("config", "")).name} for r in table["runs"]]
      files.write_text(options.keep, json.dumps({"runs": kept}, indent=1, ensure_ascii=False) + "\n")
  except BadRequest as e:
    print_error(e)
    return BAD_REQUEST
  except OSError as e:
    print_error(BadRequest(f"--keep={options.keep} can't be written: {e.strerror or e}; choose another place"))
    return BAD_REQUEST
  print(tables(table), end="")
  return 0


if __name__ == "__main__":
  sys.exit(main())
