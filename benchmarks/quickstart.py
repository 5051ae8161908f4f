"""The quickstart beside an older build's, in turns on one machine: wall time, memory and scores of both, seed by seed.

    python benchmarks/quickstart.py                                  # against 92d7e09; two seeds: an hour and a half and more
    python benchmarks/quickstart.py --whole                          # scores of whole splits too
    python benchmarks/quickstart.py --argument=:direct --seeds=0     # another config of this build's
    python benchmarks/quickstart.py --config.run.steps=20            # tries the commands out: overrides go to both

Each build trains by its own command with a cache of its own, empty at first; the order changes from seed to seed. The older one
is a git worktree. What is finished is kept in DIR/runs.json, and the same command goes on. Nothing else should be running. Wall
time is that of the whole command, memory the largest that the system saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time
from typing import Any

_REPOSITORY = Path(__file__).resolve().parent.parent
_SHOWN = {
    "single_object": "one thing", "geneval_overall": "six tags", "open_accuracy": "open answers", "yes_no_accuracy": "yes/no",
    "caption_attributes": "descriptions' attributes", "edits": "edits", "kept": "untouched things kept",
    "story_on_topic": "stories on topic", "story_turns": "turns right",
}  # fmt: skip
# Parts of --whole, and their options. The older build can't make a split of another seed.
_WHOLE = {"the whole test split": ("--split=test",), "the whole validation split": ("--split=validation",)}
_ANOTHER = {"a test split of another seed": ("--split=test", "--world-seed=1")}


def worktree(commit: str, folder: Path) -> Path:
  """The older build's files; made once."""
  if not folder.exists():
    _git("worktree", "prune")
    _git("worktree", "add", "--detach", str(folder), commit)
  return folder


def _git(*command: str) -> str:
  done = subprocess.run(["git", "-C", str(_REPOSITORY), *command], capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f"git {' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
  return done.stdout.strip()


def orthus(build: Path, scratch: Path, log: Path, *command: str) -> tuple[float, int]:
  """Runs a build's command; returns wall seconds and the largest memory in bytes."""
  environment = dict(os.environ, PYTHONPATH=str(build), ORTHUS_CACHE=str(scratch / "cache"), PYTHONSAFEPATH="1")
  with log.open("a") as out:
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "orthus_jax.cli", *command], cwd=build, env=environment, stdout=out, stderr=out
    )
    _, status, usage = os.wait4(process.pid, 0)
  if code := os.waitstatus_to_exitcode(status):
    raise SystemExit(f"orthus {' '.join(command)} ended with {code}: {log} tells why")
  return time.monotonic() - begin, usage.ru_maxrss * 1024


def measure(
    build: Path, scratch: Path, argument: str, overrides: Sequence[str], *, parts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  """One training run and its figures, in an empty folder."""
  shutil.rmtree(scratch, ignore_errors=True)
  scratch.mkdir(parents=True)
  log, run = scratch / "log.txt", scratch / "run"
  seconds, memory = orthus(
      build, scratch, log, "train", f"--config=configs/shapes.py{argument}", f"--workdir={run}", *overrides
  )
  report = json.loads((run / "report.json").read_text())
  found = {
      "seconds": seconds, "memory_bytes": memory, "digest": report["params_digest"], "parts": report["seconds"],
      "the report's sample": report.get("scores", {}),
  }  # fmt: skip
  for i, (part, options) in enumerate(parts.items()):
    out = scratch / f"scores{i}"
    orthus(build, scratch, log, "evaluate", str(run), *options, "--samples=1", f"--out={out}")
    found[part] = json.loads((out / "evaluation.json").read_text())["scores"]
  return found


def rows(runs: dict[str, dict[str, Any]], seeds: Sequence[int]) -> Iterator[tuple[str, ...]]:
  """The table's lines: what, then older and newer of each seed."""
  both = [[runs[f"{build},seed={seed}"] for build in ("older", "newer")] for seed in seeds]
  yield "wall time, s", *(f"{r['seconds']:.0f}" for pair in both for r in pair)
  yield "ratio", *(cell for old, new in both for cell in ("", f"{new['seconds'] / old['seconds']:.2f}"))
  yield "memory, GiB", *(f"{r['memory_bytes'] / 2**30:.2f}" for pair in both for r in pair)
  yield "parameters' digest", *(r["digest"][:8] for pair in both for r in pair)
  for part in ("the report's sample", *_WHOLE, *_ANOTHER):
    for name, words in _SHOWN.items():
      cells = [r.get(part, {}).get(name) for pair in both for r in pair]
      if any(c is not None for c in cells):
        yield f"{words}, {part}", *("–" if c is None else f"{100 * c:.1f}%" for c in cells)


def main() -> None:
  """Trains what is missing, in turns, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--against", default="92d7e09", metavar="COMMIT")
  parser.add_argument("--argument", default="", metavar=":WORDS", help="of this build's config")
  parser.add_argument("--seeds", default="0,1", type=lambda text: [int(s) for s in text.split(",")])
  parser.add_argument("--whole", action="store_true", help="score whole splits too")
  parser.add_argument("--scratch", type=Path, default=Path("quickstart_benchmark"), metavar="DIR")
  options, overrides = parser.parse_known_args()
  if stray := [o for o in overrides if not o.startswith("--config.")]:
    parser.error(f"unknown option {stray[0]}")
  scratch = options.scratch.resolve()
  scratch.mkdir(parents=True, exist_ok=True)
  builds = {"older": (worktree(options.against, scratch / "build"), ""), "newer": (_REPOSITORY, options.argument)}
  parts = [*_WHOLE, *_ANOTHER] if options.whole else []
  of = [options.against, _git("rev-parse", "HEAD"), options.argument, parts, overrides]
  kept = scratch / "runs.json"
  runs = json.loads(kept.read_text()) if kept.exists() else {"of": of}
  if runs["of"] != of:
    raise SystemExit(f"{kept} holds runs of other options, {runs['of']}: name another --scratch")
  for i, seed in enumerate(options.seeds):
    for name in list(builds)[:: 1 - 2 * (i % 2)]:
      key, (build, argument) = f"{name},seed={seed}", builds[name]
      if key not in runs:
        print(f"{key} …", file=sys.stderr, flush=True)
        judged = (_WHOLE | (_ANOTHER if name == "newer" else {})) if options.whole else {}
        runs[key] = measure(build, scratch / key, argument, [*overrides, f"--config.run.seed={seed}"], parts=judged)
        kept.with_suffix(".new").write_text(json.dumps(runs, indent=1))
        kept.with_suffix(".new").replace(kept)
  names = [f"{n}, seed {s}" for s in options.seeds for n in (options.against, "now")]
  print("| |" + "".join(f" {n} |" for n in names) + "\n|---|" + "---|" * len(names))
  for row in rows(runs, options.seeds):
    print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
  main()
