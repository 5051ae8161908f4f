"""`orthus runs`: what runs there are, how far they got, and whether their checkpoints are whole."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import json
from pathlib import Path
import re
import shutil
import sys
import time
from typing import Any

from orthus_jax import files
from orthus_jax.commands import common
from orthus_jax.config.ranges import Range
from orthus_jax.errors import BadRequest
from orthus_jax.paths import user_path
from orthus_jax.storage import bring
from orthus_jax.storage.bucket import Bucket, is_url

_WIDTH = 112  # letters, where no terminal says how many
_EXAMPLES = """examples:
  orthus runs                     those under runs/
  orthus runs /data/runs --json   those under another directory, for a program to read
  orthus runs gs://mine/runs      those in a bucket (docs/storage.md)
  orthus runs verify runs/shapes  reads every checkpoint of a run through; in a bucket, too
  orthus runs verify runs/shapes/checkpoints/840
  orthus runs watch runs/shapes   a page that follows a run, from any machine that sees its files; --once prints it once
"""


def main(argv: Sequence[str]) -> int:
  """Lists runs, follows them, or verifies one: exit status 1 if any of its checkpoints is damaged."""
  argv = list(argv)
  if argv[:1] == ["watch"]:
    return _watch(argv[1:])
  verify = argv[:1] == ["verify"]
  parser = common.Parser(
      prog="orthus runs verify" if verify else "orthus runs", epilog=_EXAMPLES,
      description="Reads checkpoints through and compares them with their checksums." if verify
      else "Lists runs with their steps, checkpoints, times, scores and digests; `orthus runs verify DIR` reads a run's"
      " checkpoints, `orthus runs watch DIR` follows it.",
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  nargs: dict[str, Any] = {} if verify else {"nargs": "?", "default": "runs"}
  parser.add_argument("directory", type=user_path, metavar="DIR", help="a run, or a directory of runs (default runs/)", **nargs)
  parser.add_argument("--json", action="store_true", help="print JSON")
  options = parser.parse_args(argv[1:] if verify else argv)
  if is_url(options.directory) and not verify:
    return _list(options.directory, options.json)
  if not verify:
    return _list(_place(options), options.json)
  return _verify(_checkpoints(options), options.directory, options.json)


def _place(options: argparse.Namespace) -> Path:
  place = Path(bring.local(options.directory))
  if not place.is_dir():
    raise BadRequest(f"there is no directory {place}: give a run's, or one that holds runs")
  common.initialize(devices=False)
  return place


def _watch(argv: Sequence[str]) -> int:
  parser = common.Parser(
      prog="orthus runs watch",
      description="Follows a run, or all that lie in a directory, until they finish or Ctrl-C ends the watching (status 0)."
      " It reads their files alone, and may run on another machine. Where no terminal shows it, it prints once.",
  )  # fmt: skip
  parser.add_argument("directory", type=user_path, nargs="?", default="runs", metavar="DIR", help="as for `orthus runs`")
  parser.add_argument("--once", action="store_true", help="print once")
  seconds = common.number(float, Range(0.1, 3600))
  parser.add_argument("--every", type=seconds, default=2.0, metavar="SECONDS", help="between two looks (default 2)")
  options = parser.parse_args(argv)
  if is_url(options.directory):
    url = options.directory
    raise BadRequest(f"{url}: only files on disk are followed; `orthus runs {url}` tells how far it is")
  place = _place(options)

  from rich.console import Console
  from rich.live import Live

  from orthus_jax.commands import watch_page
  from orthus_jax.training.checkpoints import listing
  from orthus_jax.training.snapshot import Reader

  readers: dict[Path, Reader] = {}
  tty = sys.stdout.isatty()
  console = Console(file=sys.stdout, width=None if tty else _WIDTH, highlight=False)

  def look() -> tuple[Any, bool]:
    runs = list(listing.find(place))
    if not runs:
      raise BadRequest(f"{place} holds no run: one has a config.json beside its checkpoints/")
    found = [readers.setdefault(run, Reader(run)).read() for run in runs]
    alone = (place / "config.json").is_file()
    return watch_page.page(found[0]) if alone else watch_page.table(found, place), all(s.finished for s in found)

  if options.once or not tty:
    console.print(look()[0])
    return 0
  with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
    while True:
      shown, over = look()
      live.update(shown, refresh=True)
      if over:
        break
      time.sleep(options.every)
  return 0


def _list(place: Path | str, as_json: bool) -> int:
  """Of a directory, or of a URL, as text."""
  from orthus_jax.training import goodput
  from orthus_jax.training.checkpoints import listing

  found = listing.about_remote(place) if isinstance(place, str) else [listing.about(run) for run in listing.find(place)]
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
    if run["goodput"]["starts"]:
      print(f"  time         {goodput.Totals(**run['goodput']).told()}")
    if run["scores"]:
      print("  scores       " + ", ".join(f"{n} {v:.3g}" for n, v in run["scores"].items()))
    if run["params_digest"]:
      print(f"  digest       {run['params_digest']}")
  return 0


def _checkpoints(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
  """Names and folders of the checkpoints to be read; those in a bucket are brought one by one."""
  from orthus_jax.training.checkpoints import listing

  given = options.directory.rstrip("/")
  if re.search(r"(^|/)checkpoints/\d+$", given):
    yield given, _place(options)
  elif is_url(given):
    common.initialize(devices=False)
    for run, _, whole, _ in bring.overview(given):
      for step in whole:
        folder = bring.place(f"{run}/checkpoints/{step}")
        there = folder.exists()
        try:
          bring.remote_run_to(Bucket(run), bring.place(run), step=step)
        except OSError as e:
          raise BadRequest(f"{run}/checkpoints/{step} can't be brought here: {files.first_line(e)}") from e
        yield f"{run}/checkpoints/{step}", folder
        if not there:  # all of a run's would fill the disk
          shutil.rmtree(folder, ignore_errors=True)
  else:
    for workdir in listing.find(_place(options)):
      yield from ((str(folder), folder) for folder in listing.checkpoints(workdir))


def _verify(checkpoints: Iterator[tuple[str, Path]], given: str, as_json: bool) -> int:
  from orthus_jax.training.checkpoints import listing, manifest

  found = []
  for name, folder in checkpoints:
    reason = listing.damage(folder)
    sums = manifest.has_checksums(folder)
    found.append({"checkpoint": name, "damage": reason, "checksums": sums})
    if not as_json:
      print(f"{name}  {reason or ('whole' if sums else 'has no checksums: only restoring it tells')}", flush=True)
  if not found:
    raise BadRequest(f"{given} holds no checkpoint: give a run's directory or one of its checkpoints")
  if as_json:
    print(json.dumps(found, indent=2))
  return int(any(f["damage"] for f in found))
