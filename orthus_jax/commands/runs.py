"""`orthus runs`: what runs there are, how far they got, and whether their checkpoints are whole."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from orthus_jax.commands import common
from orthus_jax.errors import BadRequest
from orthus_jax.paths import user_path

_EXAMPLES = """examples:
  orthus runs                     those under runs/
  orthus runs /data/runs --json   those under another directory, for a program to read
  orthus runs verify runs/shapes  reads every checkpoint of a run through
  orthus runs verify runs/shapes/checkpoints/840
"""


def main(argv: Sequence[str]) -> int:
  """Lists runs, or verifies one: exit status 1 if any of its checkpoints is damaged."""
  argv = list(argv)
  verify = argv[:1] == ["verify"]
  parser = common.Parser(
      prog="orthus runs verify" if verify else "orthus runs", epilog=_EXAMPLES,
      description="Reads checkpoints through and compares them with their checksums." if verify
      else "Lists runs with their steps, checkpoints, scores and digests; `orthus runs verify DIR` reads a run's checkpoints.",
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  nargs: dict[str, Any] = {} if verify else {"nargs": "?", "default": "runs"}
  parser.add_argument("directory", type=user_path, metavar="DIR", help="a run, or a directory of runs (default runs/)", **nargs)
  parser.add_argument("--json", action="store_true", help="print JSON")
  options = parser.parse_args(argv[1:] if verify else argv)
  place = Path(options.directory)
  if not place.is_dir():
    raise BadRequest(f"there is no directory {place}: give a run's, or one that holds runs")
  common.initialize(devices=False)
  return _verify(place, options.json) if verify else _list(place, options.json)


def _list(place: Path, as_json: bool) -> int:
  from orthus_jax.training.checkpoints import listing

  found = [listing.about(run) for run in listing.find(place)]
  if not found:
    raise BadRequest(f"{place} holds no run: one has a config.json beside its checkpoints/")
  if as_json:
    print(json.dumps(found, indent=2))
    return 0
  for run in found:
    print(f"{run['run']}  {run['state']}")
    whole = [str(c["step"]) for c in run["checkpoints"] if not c["damage"]]
    print(f"  checkpoints  {', '.join(whole) or 'none'}")
    for c in run["checkpoints"]:
      if c["damage"]:
        print(f"  damaged      {c['step']}: {c['damage']}")
    for name in run["unfinished"]:
      print(f"  unfinished   {name}")
    for name in run["set_aside"]:
      print(f"  set aside    {name}")
    if run["scores"]:
      print("  scores       " + ", ".join(f"{n} {v:.3g}" for n, v in run["scores"].items()))
    if run["params_digest"]:
      print(f"  digest       {run['params_digest']}")
  return 0


def _verify(place: Path, as_json: bool) -> int:
  from orthus_jax.training.checkpoints import listing, manifest

  single = place.parent.name == "checkpoints" and place.name.isdigit()
  found = []
  for run in [None] if single else listing.find(place):
    for folder in [place] if run is None else listing.checkpoints(run):
      reason = listing.damage(folder)
      sums = manifest.has_checksums(folder)
      found.append({"checkpoint": str(folder), "damage": reason, "checksums": sums})
      if not as_json:
        print(f"{folder}  {reason or ('whole' if sums else 'has no checksums: only restoring it tells')}", flush=True)
  if not found:
    raise BadRequest(f"{place} holds no checkpoint: give a run's directory or one of its checkpoints")
  if as_json:
    print(json.dumps(found, indent=2))
  return int(any(f["damage"] for f in found))
