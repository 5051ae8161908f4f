"""The table of `benchmarks/gpu.sh`, from its parts' logs.

    python benchmarks/gpu_table.py gpu_figures
"""

from __future__ import annotations

import datetime
from importlib.metadata import version
import json
from pathlib import Path
import re
import subprocess
import sys

# Parts that draw, and what they differ in.
_DRAWN = {
    "draw": "100 steps, bfloat16", "draw_many": "100 steps, bfloat16", "draw_int8": "100 steps, weights and cache in int8",
    "draw_few_steps": "25 steps of DPM-Solver++",
}  # fmt: skip
_STEP_AIM, _PICTURE_AIMS = 13_000, {1: 5.0, 64: 0.29}  # tokens/s on an H200; seconds a picture, by batch


def machine() -> str:
  """Card, driver, versions, date."""
  ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
  try:
    card = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()[0]
  except (OSError, subprocess.CalledProcessError, IndexError):
    card = "no NVIDIA card"
  return f"{card}; jax {version('jax')}, jaxlib {version('jaxlib')}; {datetime.date.today()}"


def missing(folder: Path, name: str) -> str:
  """Why a part has no figures; empty where it has."""
  try:
    status, seconds, limit = (folder / f"{name}.status").read_text().split()
  except (OSError, ValueError):
    return "it wasn't run"
  if status == "0":
    return ""
  if status in ("124", "137"):
    return f"not done after {limit} s"
  said = ((folder / f"{name}.err").read_text() + (folder / f"{name}.log").read_text()).strip().splitlines()
  return f"exit status {status} after {seconds} s: {said[-1][:160] if said else 'not a word'}".replace("|", "/")


def step(folder: Path) -> list[str]:
  """The training step's rows."""
  if why := missing(folder, "step"):
    return [f"| training step | {why} | {_STEP_AIM:,} tokens/s (7B, H200) |"]
  found = json.loads((folder / "step.log").read_text())
  mfu = f", MFU {found['mfu_causal']:.1%}" if "mfu_causal" in found else ""
  told = (
      f"{found['tokens_per_second']:,.0f} tokens/s, {found['step_seconds']:.3f} s a step of {found['rows']} rows of"
      f" {found['positions']}{mfu}, {found['memory_gib']:.1f} GiB, {found['parameters'] / 1e9:.2f}B parameters"
  )
  return [f"| training step | {told} | {_STEP_AIM:,} tokens/s (7B, H200) |"]


def drawn(folder: Path, name: str) -> list[str]:
  """A row for each batch size."""
  what = f"drawing, {_DRAWN[name]}"
  if why := missing(folder, name):
    return [f"| {what} | {why} | |"]
  lines = [[c.strip() for c in line.strip("|").split("|")] for line in (folder / f"{name}.log").read_text().splitlines()
           if line.startswith("| ")]  # fmt: skip
  rows = []
  for values in lines[1:]:
    of = dict(zip(lines[0], values))
    batch = int(of["batch"])
    seconds = f"{of['seconds a picture']} s a picture, " if "seconds a picture" in of else ""
    share = f", {of['share of the limit']} of the memory's limit ({of['limit']} s)" if "limit" in of else ""
    aim = f"{_PICTURE_AIMS[batch]:g} s a picture" if batch in _PICTURE_AIMS else ""
    rows.append(f"| {what}, batch {batch} | {seconds}{of['patches/s']} patches/s{share} | {aim} |")
  return rows


def tests(folder: Path) -> list[str]:
  """What the tests ended with."""
  log = folder / "tests.log"
  found = re.findall(r"^=*\s*(\d+ (?:passed|failed).*?)\s*=*$", log.read_text(), re.MULTILINE) if log.is_file() else []
  why = missing(folder, "tests")
  return [f"| tests on the device: attention, layers, heads, solvers | {found[-1] if found else why or 'nothing'} | all pass |"]


def main() -> None:
  """Prints the table."""
  folder = Path(sys.argv[1])
  print(f"{machine()}\n\n| | | aim |\n|---|---|---|")
  rows = [*step(folder), *(row for name in _DRAWN for row in drawn(folder, name)), *tests(folder)]
  print("\n".join(rows))
  log = folder / "step.log"
  if log.is_file() and '"1 x cpu"' in log.read_text():
    print("\nSmall sizes on a CPU: this shows that all of it runs, and no figure means anything.")


if __name__ == "__main__":
  main()
