"""Both ends of the libraries that are tested, side by side: a step of the quickstart, pictures drawn, and a plan.

    python benchmarks/stacks.py                                        # python3.11 and python3.13
    python benchmarks/stacks.py --pythons=python3.11,/opt/py/bin/python3.13 --rounds=5

Makes a fresh environment for each Python, in a temporary folder, and installs this package there with what pip resolves, which
takes minutes and 3 GB. Then each round has both do the same, one after the other, and in the other order the next time: 40
steps of the quickstart, eight pictures of that run, and (with libtpu) the plan of the 7B post-training on v5e-256. Figures
are medians of the rounds; what counts is the ratio, as absolute times are this machine's.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile

_ROOT = Path(__file__).resolve().parent.parent
_STEPS, _WARM = 40, 20  # the first steps compile, and are left out


class Stack:
  """One Python with what pip gives it."""

  def __init__(self, python: str, folder: Path):
    self.folder = folder
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    self._bin = folder / "venv" / "bin"
    subprocess.run([self._bin / "python", "-m", "pip", "install", "-q", f"{_ROOT}[tpu]"], check=True)
    asked = "import importlib.metadata as m, platform; v = m.version; print(platform.python_version(), v('jax'), v('libtpu'))"
    said = subprocess.run([self._bin / "python", "-c", asked], check=True, capture_output=True, text=True).stdout.split()
    self.name = f"Python {said[0]}, jax {said[1]}, libtpu {said[2]}"
    self.figures: dict[str, list[float]] = {}

  def _orthus(self, *arguments: str) -> str:
    env = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "ORTHUS_CACHE": str(self.folder / "cache")}
    done = subprocess.run(
        [self._bin / "orthus", *arguments], env=env, cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
      sys.exit(f"{self.name}: orthus {arguments[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout

  def round(self, number: int) -> None:
    """Trains, draws and plans once."""
    run = self.folder / f"run{number}"
    self._orthus(
        "train", "--config=configs/shapes.py", f"--workdir={run}", f"--config.run.steps={_STEPS}", "--config.run.log_every=1",
        "--config.run.report=False", "--config.run.sample_every=0",
    )  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    positions = config["run"]["batch_size"] * config["data"]["sequence_length"]
    seconds = [positions / r["tokens_per_second"] for r in rows if r["step"] > _WARM and r.get("tokens_per_second")]
    drawn = json.loads(self._orthus(
        "generate", str(run), "--prompt=a red circle", "--respond=image", "--count=8", f"--out={run / 'drawn'}", "--json"
    ))  # fmt: skip
    plan = json.loads(self._orthus(
        "plan", "--config=configs/orthus_7b.py:post-v5e-256", "--topology=v5e:16x16", "--json"
    ))  # fmt: skip
    found = {
        "a step, s": statistics.median(seconds), "eight pictures with compiling, s": drawn["seconds"],
        "a plan, s": sum(plan["seconds"].values()), "its MFU, %": 100 * plan["mfu"]["calibrated"],
    }  # fmt: skip
    for name, value in found.items():
      self.figures.setdefault(name, []).append(value)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--pythons", default="python3.11,python3.13", help="two, divided by a comma")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    stacks = []
    for n, python in enumerate(args.pythons.split(",")):
      (Path(folder) / str(n)).mkdir()
      stacks.append(Stack(python, Path(folder) / str(n)))
      print("installed", stacks[-1].name, flush=True)
    for number in range(args.rounds):
      for stack in stacks if number % 2 == 0 else stacks[::-1]:
        stack.round(number)
      print(f"round {number + 1} of {args.rounds} done", flush=True)
  print(f"{'':<36}" + "".join(f"{s.name:>45}" for s in stacks) + f"{'ratio':>8}")
  for name in stacks[0].figures:
    medians = [statistics.median(s.figures[name]) for s in stacks]
    print(f"{name:<36}" + "".join(f"{m:>45.3f}" for m in medians) + f"{medians[-1] / medians[0]:>8.2f}")


if __name__ == "__main__":
  main()
