"""`orthus compare`: two runs of a benchmark, paired by prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path

from orthus_jax import paths
from orthus_jax.commands import common
from orthus_jax.evaluation.runs import compare


def parser() -> common.Parser:
  """The options."""
  parser = common.Parser(
      prog="orthus compare",
      description="Puts two runs of a benchmark side by side, paired by prompt and seed, with the interval of the difference.",
  )
  parser.add_argument("first", type=paths.user_path, metavar="RUN", help="a folder that `orthus evaluate --benchmark` wrote")
  parser.add_argument("second", type=paths.user_path, metavar="RUN", help="another of the same benchmark")
  parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
  return parser


def main(argv: Sequence[str]) -> int:
  """Compares two runs."""
  options = parser().parse_args(argv)
  found, notes = compare.compare(Path(options.first), Path(options.second))
  if options.json:
    print(json.dumps({"differences": [dataclasses.asdict(d) for d in found], "notes": notes}, indent=2))
    return 0
  width = max(len(d.tag) for d in found)
  print(f"{'':<{width}}  {'first':>7}  {'second':>7}  {'difference, 95%':>24}  better / worse of n")
  for d in found:
    difference = f"{100 * (d.b - d.a):+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    sure = " *" if d.low > 0 or d.high < 0 else ""
    changed = f"{d.better} / {d.worse} of {d.count:,}{sure}"
    print(f"{d.tag:<{width}}  {100 * d.a:6.1f}%  {100 * d.b:6.1f}%  {difference:>24}  {changed}")
  print("* the interval leaves 0 out")
  for note in notes:
    print(f"- {note}")
  return 0
