"""A file of requests of all kinds, answered in one running batch: beside one by one, or beside another checkout of the project.

    python benchmarks/generate.py --mixed RUN [--requests=200] [--rounds=3]
    python benchmarks/generate.py --mixed RUN --against=CHECKOUT [--their-run=RUN] [--commands]

RUN is the directory of a run on the built-in world (the quickstart's, say), from whose test split the requests come: of every
200, 88 captions to draw, 72 questions, 30 edits and 10 stories, in a random order. The file is answered as by
`orthus generate --requests`, by each side in a process of its own and in turns. The first time of each, which compiles, or
loads what a cache of programs holds, is told apart. With --commands, each time is a whole command's, start and loading
included, first with an empty cache of programs and then with what that left. A ratio below 1 says that this checkout's running
batch takes less time; it is the median round's. Answers that differ are counted. `serve.py` and `serve_load.py` ask the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import itertools
import json
import os
from pathlib import Path
import random
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import PIL.Image

from orthus_jax.config import Config
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Text
from orthus_jax.data.sources.registry import open_world
from orthus_jax.training.checkpoints import workdir

ROWS = 32
_HERE = Path(__file__).resolve().parent.parent
_SHARES = {"caption_to_image": 88, "question": 72, "edit": 30, "story": 10}
_RESPOND = {"caption_to_image": "image", "question": "text", "edit": "image", "story": "auto"}


def write(config: Config, folder: Path, number: int = 200) -> Path:
  """Writes the file and its pictures; returns the file's path.

  Args:
    config: of the model that is to answer; its pictures have that resolution.
    folder: made if absent.
    number: of requests.
  """
  folder.mkdir(parents=True, exist_ok=True)
  chosen = [(kind, d) for kind, d in _documents(config, {k: -(-n * number // 200) for k, n in _SHARES.items()})][:number]
  random.Random(0).shuffle(chosen)
  lines = [json.dumps(_record(folder, n, kind, document)) for n, (kind, document) in enumerate(chosen)]
  file = folder / "requests.jsonl"
  file.write_text("\n".join(lines) + "\n")
  return file


def _documents(config: Config, wanted: dict[str, int]):
  world, counts = open_world(config), dict.fromkeys(wanted, 0)
  for number in itertools.count():
    if counts == wanted:
      return
    document = world[number % len(world)]
    if document is not None and counts.get(document.kind, 0) < wanted.get(document.kind, 0):
      counts[document.kind] += 1
      yield document.kind, document.prompt()


def _record(folder: Path, number: int, kind: str, prompt: Document) -> dict:
  text, files = "", []
  for segment in prompt.segments:
    if isinstance(segment, Text):
      text += segment.text
    else:
      files.append(f"{number}-{len(files)}.png")
      images_lib.save_png(folder / files[-1], segment.pixels)
      text += "<image>"
  return {"id": f"{kind}-{number}", "prompt": text, "images": files, "respond": _RESPOND[kind], "seed": number}


class Offline:
  """`orthus generate --requests`' own function in a process of its own, a run of the file a line of its input."""

  _PROGRAM = """
import pathlib, shutil, sys
from orthus_jax.commands import common
(common.initialize if hasattr(common, "initialize") else common.start)()  # the latter in older checkouts
from orthus_jax.inference import model as model_lib, requests_file
model = model_lib.load(sys.argv[1])
for _ in sys.stdin:
  shutil.rmtree(sys.argv[3], ignore_errors=True)
  counts = requests_file.serve(
      model, sys.argv[2], pathlib.Path(sys.argv[3]), base=model.config.sampling, respond="auto", seed=0,
      batch_size=int(sys.argv[4]), preview_rows=0, quiet=True)
  assert counts["finished"] == counts["requests"], counts
  print(counts["seconds"], flush=True)
"""

  def __init__(self, run: str, file: Path, out: Path, *, checkout: Path = _HERE, rows: int = ROWS):
    self.out = out
    command = [sys.executable, "-c", self._PROGRAM, *map(os.path.abspath, (run, file, out)), str(rows)]
    self.process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )  # fmt: skip

  def seconds(self) -> float:
    print("go", file=self.process.stdin, flush=True)
    if not (line := self.process.stdout.readline()):
      raise SystemExit("generate --requests failed")
    return float(line)

  def answers(self) -> dict[str, list[str | np.ndarray]]:
    """What the last run of the file came to, by request."""
    lines = (self.out / "results.jsonl").read_text().splitlines()
    return {
        r["id"]: [x["text"] if "text" in x else np.asarray(PIL.Image.open(self.out / x["image"]), int) for x in r["response"]]
        for r in map(json.loads, lines)
    }

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait(60)


class Command:
  """`orthus generate --requests` as a whole."""

  def __init__(self, run: str, file: Path, out: Path, *, checkout: Path = _HERE, rows: int = ROWS):
    self.out, self.cache, self.checkout = out, out.with_suffix(".cache"), checkout
    model, file, out = map(os.path.abspath, (run, file, out))
    self.command = [
        sys.executable, "-m", "orthus_jax.cli", "generate", model, f"--requests={file}", f"--out={out}", f"--batch-size={rows}"
    ]  # fmt: skip

  def seconds(self, *, kept: bool) -> float:
    for folder in (self.out, *(() if kept else (self.cache,))):
      shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(self.checkout), "ORTHUS_CACHE": str(self.cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # pip leaves bytecode of all that it installs
    begin = time.monotonic()
    done = subprocess.run(self.command, cwd=self.checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
      raise SystemExit(f"generate --requests failed: {done.stderr[-500:]}")
    return time.monotonic() - begin


def alike(a: list[str | np.ndarray], b: list[str | np.ndarray]) -> bool:
  """The same texts, and pictures within one of 255 levels."""
  return len(a) == len(b) and all(
      x == y if isinstance(x, str) else not isinstance(y, str) and np.abs(x - y).max() <= 1 for x, y in zip(a, b)
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Times both and prints the ratio."""
  parser = argparse.ArgumentParser(
      prog="generate.py --mixed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run")
  parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another one; by default this one, a request at a time")
  parser.add_argument("--their-run", metavar="RUN", help="which that one is to answer with, where it can't read RUN's config")
  parser.add_argument("--commands", action="store_true", help="time whole commands")
  parser.add_argument("--requests", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=3)
  options = parser.parse_args(argv)
  other = {"checkout": options.against.resolve()} if options.against else {"rows": 1}
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    file = write(workdir.load_config(workdir.find(options.run)[0]), folder / "requests", options.requests)
    names = f"{ROWS} rows", str(options.against or "one by one")
    made = zip((options.run, options.their_run or options.run), (folder / "0", folder / "1"), ({}, other))
    if options.commands:
      return _time_commands([Command(run, file, out, **how) for run, out, how in made], names, options.rounds)
    sides = [Offline(run, file, out, **how) for run, out, how in made]
    for name, side in zip(names, sides):
      print(f"{name}, first time: {side.seconds():.2f} s", flush=True)
    rounds = []
    for _ in range(options.rounds):
      rounds.append([side.seconds() for side in sides])
      print("  ".join(f"{name}: {s:.2f} s" for name, s in zip(names, rounds[-1])), flush=True)
    ours, theirs = (side.answers() for side in sides)
    for side in sides:
      side.close()
  ratios = sorted(a / b for a, b in rounds)
  different = [i for i in theirs if not alike(ours[i], theirs[i])]
  print(f"{len(theirs)} requests, {names[0]} against {names[1]}: {np.median(ratios):.2f} of the time (median round)")
  told = f": not {', '.join(different[:5])}" if different else ""
  print(f"{len(theirs) - len(different)} of {len(theirs)} answers are alike{told}")


def _time_commands(sides: Sequence[Command], names: Sequence[str], rounds: int) -> None:
  for kept in (False, True):
    times = []
    for _ in range(rounds):
      times.append([side.seconds(kept=kept) for side in sides])
      told = "  ".join(f"{name}: {s:.1f} s" for name, s in zip(names, times[-1]))
      print(f"{'programs kept' if kept else 'nothing compiled'}: {told}  ratio {times[-1][0] / times[-1][1]:.2f}", flush=True)
    print(f"{np.median([a / b for a, b in times]):.2f} of the time (median round)")
