"""One table from what the parts of `gpu.sh` left behind: a row for each figure, and one for each part that gave none, and why.

    python benchmarks/gpu_table.py FOLDER --out=FILE

FOLDER holds `parts`, a line for each part (name, limit and seconds, exit status; tabs between), and NAME.log of each that ran.
"""

from __future__ import annotations

import argparse
import datetime
from importlib.metadata import version
import json
from pathlib import Path
import re
import subprocess
from typing import Any

COLUMNS = ("what", "measured", "limit", "share of it", "aim", "memory", "note")
_TIME_IS_UP = (124, 137)  # as `timeout` ends
_MARK = "row: "


class Row(dict):
  """A row of the table; printed, it is a line that `read` finds in a log."""

  def __str__(self) -> str:
    return _MARK + json.dumps(self, ensure_ascii=False)


def row(
  what: str, *, measured: str = "", limit: str = "", share: str = "", aim: str = "", memory: int | None = None, note: str = "",
  failed: str = "",
) -> Row:  # fmt: skip
  """A figure, or why there is none; memory in bytes."""
  gib = f"{memory / 2**30:.1f} GiB" if memory else ""
  values = (what, "**failed**" if failed else measured, limit, share, aim, gib, failed or note)
  return Row(zip(COLUMNS, (" ".join(v.replace("|", "/").split())[:300] for v in values)))


def read(name: str, log: str) -> list[Row]:
  """The rows that a part's log has."""
  if name == "step":
    return _step(log)
  if name == "tests":
    return _tests(log)
  return [Row(json.loads(line.removeprefix(_MARK))) for line in log.splitlines() if line.startswith(_MARK)]


def _step(log: str) -> list[Row]:
  """What `train_step.py --json` printed."""
  if not (found := re.search(r"^\{$.*?^\}$", log, re.MULTILINE | re.DOTALL)):
    return []
  f = json.loads(found.group())
  shares = [f"MFU {f['mfu_causal']:.1%} causal, {f['mfu_full']:.1%} full"] if "mfu_causal" in f else []
  return [row(
      f"training step, {f['rows']} rows of {f['positions']:,} positions",
      measured=f"{f['tokens_per_second']:,.0f} tokens/s", aim="≥ 13,000 tokens/s (H200)", memory=round(f["memory_gib"] * 2**30),
      limit=f"{f['limit_seconds']:.2f} s (compute)" if "limit_seconds" in f else "",
      share=f"{f['limit_seconds'] / f['step_seconds']:.0%}" if "limit_seconds" in f else "",
      note="; ".join([f"{f['step_seconds']:.3f} s a step", *shares, f"compiled in {f['compile_seconds']:.0f} s"]),
  )]  # fmt: skip


def _tests(log: str) -> list[Row]:
  """Counted from pytest's lines, as it may not have come to its end."""
  ends = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", log, re.MULTILINE)
  if not ends:
    return []
  count = {kind: sum(k == kind for _, k in ends) for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
  wrong = [test.rpartition("/")[2] for test, kind in ends if kind in ("FAILED", "ERROR")]
  told = ", ".join(f"{n} {kind.lower()}" for kind, n in count.items() if n or kind in ("PASSED", "FAILED"))
  return [row("fast tests", measured=told, aim="none failed", note=f"failed: {', '.join(wrong[:5])}" if wrong else "")]


def why(status: str, limit: str, log: str) -> str:
  """Why a part came to no end; empty where it did."""
  if status == "0":
    return ""
  if status == "skipped":
    return "no time was left for it"
  lines = [line.strip() for line in log.splitlines() if line.strip()]
  last = re.sub(r"^row: .*", "a row", lines[-1]) if lines else "nothing"
  if status.isdigit() and int(status) in _TIME_IS_UP:
    return f"not done in {limit} s; last heard: {last}"
  return f"ended with status {status}: {last}"


def table(folder: Path) -> list[Row]:
  """All rows, part by part."""
  rows = []
  for line in (folder / "parts").read_text().splitlines():
    name, limit, seconds, status = line.split("\t")
    file = folder / f"{name}.log"
    log = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    try:
      found = read(name, log)
    except (ValueError, KeyError) as e:
      found, status = [], f"{status}, and what it printed can't be read ({e!r})"
    rows += found
    reason = why(status, limit, log)
    if not reason and not found:
      reason = "it ended well and printed no figure"
    if reason:
      rows.append(row(name, failed=f"{reason} ({seconds} s)"))
  return rows


def card() -> str:
  """Name, driver and memory of the first card."""
  asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
  try:
    name, driver, memory = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
  except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
    return "no card (nvidia-smi tells of none)"
  return f"{name}, {memory}, driver {driver}"


def page(rows: list[Row], *, small: bool) -> str:
  """The whole file."""
  commit = subprocess.run(
    ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
  ).stdout.strip()
  head = [
      f"{card()}; jax {version('jax')}, jaxlib {version('jaxlib')}; {datetime.date.today()}"
      + (f"; commit {commit}" if commit else ""), "",
  ]  # fmt: skip
  if small:
    head += ["Tiny shapes on whatever was there: a trial of the commands. No figure below says anything of a GPU.", ""]
  lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
  lines += [f"| {' | '.join(r[c] for c in COLUMNS)} |" for r in rows]
  return "\n".join([*head, *lines]) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=Path)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--small", action="store_true")
  options: Any = parser.parse_args()
  text = page(table(options.folder), small=options.small)
  options.out.write_text(text, encoding="utf-8")
  print(text, end="")


if __name__ == "__main__":
  main()
