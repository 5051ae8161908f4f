"""`orthus score`: a benchmark's figures from the files that its own tools read; no model is needed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import inspect
import json
from pathlib import Path
import textwrap
from types import ModuleType

from orthus_jax import files, paths
from orthus_jax.commands import common
from orthus_jax.config.ranges import Range
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import registry
from orthus_jax.evaluation.benchmarks.base import Score, finite
from orthus_jax.storage import bring

_EXAMPLES = """examples:
  orthus score mme results/                     a table of its 14 subtasks
  orthus score vqav2 answers.json --annotations=v2_mscoco_val2014_annotations.json --json
  orthus score pope answers/ --labels=labels/ --out=scores/pope
"""


def _list() -> str:
  rows = "\n".join(f"  {name:<10} {what}" for name, what in registry.BENCHMARKS.items())
  return (
      "usage: orthus score NAME PATH [OPTIONS]\n\nScores a benchmark from its files; prints a table with 95% intervals.\n\n"
      f"{rows}\n\n{_EXAMPLES}\n`orthus score NAME --help` tells which files it reads, and its options."
  )


def parser(name: str, module: ModuleType) -> common.Parser:
  """The options of one benchmark: its own, which are its scorer's keyword arguments, and those of all."""
  parser = common.Parser(
      prog=f"orthus score {name}", description=f"{name}: {registry.BENCHMARKS[name]}.\n\n{module.LAYOUT}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("path", type=paths.user_path, metavar="PATH", help="the files to score")
  own = parser.add_argument_group(f"of {name}") if module.OPTIONS else parser
  for key, parameter in inspect.signature(module.score).parameters.items():
    if parameter.kind is not parameter.KEYWORD_ONLY:
      continue
    flag = f"--{key.replace('_', '-')}"
    if isinstance(parameter.default, bool):
      own.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=module.OPTIONS[key])
    else:
      kind = type(parameter.default)
      read = common.number(kind, Range(0, 2**31 - 1)) if kind in (int, float) else paths.user_path
      own.add_argument(flag, type=read, default=argparse.SUPPRESS, metavar=key.upper(), help=module.OPTIONS[key])
  parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
  parser.add_argument("--out", type=paths.user_path, metavar="DIR", help="also write score.json and rows.jsonl there")
  return parser


def main(argv: Sequence[str]) -> int:
  """Scores one benchmark, prints it and writes it where that is asked for."""
  argv = list(argv)
  if not argv or argv[0] in ("-h", "--help"):
    if not argv:
      raise BadRequest(f"name a benchmark: {', '.join(registry.BENCHMARKS)} (`orthus score --help` tells more)")
    print(_list())
    return 0
  name = argv[0]
  module = registry.module(name)
  options = vars(parser(name, module).parse_args(argv[1:]))
  path, as_json, out = options.pop("path"), options.pop("json"), options.pop("out")
  if out:
    paths.check_writable(Path(out), option="--out")
    for written in ("score.json", "rows.jsonl"):
      paths.check_writable(Path(out) / written, option="--out", file=True)
  options = {k: bring.local(v) if isinstance(v, str) else v for k, v in options.items()}
  score = module.score(bring.local(path), **options)
  text = json.dumps(score.to_json(), indent=2) + "\n"
  if out:
    with files.writing(Path(out), "run it again"):
      Path(out).mkdir(parents=True, exist_ok=True)
      files.write_text(Path(out) / "rows.jsonl", "".join(f"{json.dumps(finite(r))}\n" for r in score.rows))
      files.write_text(Path(out) / "score.json", text)
  print(text if as_json else table(score), end="")
  if out and not as_json:
    print(f"written: {Path(out) / 'score.json'} and rows.jsonl")
  return 0


def table(score: Score) -> str:
  """The figures, what is to be known of them, and whose they are; what rests on no answer, and details, are JSON's alone."""
  lines = []
  for name, value in score.scores.items():
    if score.counts.get(name) == 0 or ("/" in name and not {name} & {*score.intervals, *score.counts}):
      continue
    unit = score.units.get(name, score.unit)
    places = 2 if unit == "%" or unit.startswith("of ") else 4
    low_high = [f"{v:,.{places}f}" for v in score.intervals.get(name, ())]
    lines.append((
        name, f"{value:,.{places}f}{'%' * (unit == '%')}", unit * (unit != "%"), f"[{', '.join(low_high)}]" * bool(low_high),
        f"n = {score.counts[name]:,}" if name in score.counts else "",
        f"straight reading {score.straight[name]:,.{places}f}" if name in score.straight else "",
    ))  # fmt: skip
  widths = [max((len(line[i]) for line in lines), default=0) for i in range(6)]
  rows = []
  for name, figure, *rest in lines:
    cells = (f"{cell:<{w}}" for cell, w in zip(rest, widths[2:]) if w)
    rows.append(f"{name:<{widths[0]}}  {figure:>{widths[1]}}  {'  '.join(cells)}".rstrip())
  notes = [textwrap.fill(f"- {n}", 128, subsequent_indent="  ", break_long_words=False) for n in score.notes]
  intervals = "\nIn brackets: 95% intervals of a bootstrap." * bool(score.intervals)
  return "\n".join([*rows, "", *notes, *[""] * bool(notes), f"Figures as of {score.protocol}.{intervals}"]) + "\n"
