"""A whole sweep: its runs, then their pictures, then the table and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
from typing import Any

from orthus_jax import files
from orthus_jax.data.sources import registry as sources
from orthus_jax.sweeping import page, pictures, state, table, todo
from orthus_jax.sweeping.machine import Share
from orthus_jax.sweeping.plan import Planned
from orthus_jax.sweeping.running import Runner, Signals
from orthus_jax.sweeping.state import State
from orthus_jax.training.checkpoints import workdir as checkpoint


def states(folder: Path, runs: Sequence[Planned]) -> dict[str, State]:
  """What has become of each run.

  Raises:
    BadRequest: if one was begun with another config.
  """
  return {run.id: state.read(folder, run) for run in runs}


def make_data(runs: Sequence[Planned]) -> None:
  """Makes the built-in world that runs read, once, ahead of several that would at once."""
  for data in dict.fromkeys(r.config.data for r in runs if r.config.data.source == "shapes"):
    sources.open_source(next(r.config for r in runs if r.config.data == data), data.split)


def carry_out(
    folder: Path, runs: Sequence[Planned], shares: Sequence[Share], signals: Signals, *, quiet: bool, count: int,
    prompts: str,
) -> dict[str, str]:  # fmt: skip
  """Does what the sweep lacks.

  Args:
    folder: the sweep's, opened.
    runs: of the sweep.
    shares: of the machine, one for each run at once.
    signals: which end it early.
    quiet: tell nothing on the way.
    count: pictures to draw for each group; 0 for none.
    prompts: requests for them, from `pictures.read_requests`; empty for captions of the runs' data.

  Returns:
    Why runs failed, by id. A group that can't draw isn't a failure; its page says why.
  """
  runner = Runner(folder, shares, signals, quiet=quiet)
  now = states(folder, runs)
  tasks = [todo.task(folder, r, now[r.id]) for r in runs if now[r.id].what not in ("finished", "running")]
  failed = runner.run(tasks) if tasks else {}
  if signals.count:
    return failed
  now = states(folder, runs)
  requests = pictures.write_requests(folder, runs[0].config, count=count, given=prompts)
  if requests is None:
    return failed
  found = pictures.drawings(folder, runs, now, requests)
  draw = {t.id: (t, d) for d in found.values() if (t := pictures.task(folder, d, requests)) is not None}
  for name, error in runner.run([t for t, _ in draw.values()]).items():
    pictures.keep_failure(draw[name][1], error)
  return failed


def collect(folder: Path, spec: str, runs: Sequence[Planned], now: Mapping[str, State]) -> dict[str, Any]:
  """Writes table.csv, table.json and index.html; returns what table.json holds."""
  rows = table.rows(folder, runs, now)
  groups = table.groups(rows)
  file = folder / "requests.jsonl"
  requests = file if file.is_file() else None
  drawings = pictures.drawings(folder, runs, now, requests)
  told = {
      "config": spec, "runs": rows, "groups": groups,
      "pictures": {
          name: {i: os.path.relpath(p, folder) for i, p in pictures.drawn(d).items()} for name, d in drawings.items()
      },
      "versions": checkpoint.versions(),
  }  # fmt: skip
  files.write_text(folder / "table.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
  files.write_text(folder / "table.csv", table.as_csv(rows))
  name = Path(spec.partition(":")[0]).name + (f", {spec.partition(':')[2]}" if ":" in spec else "")
  page.write(folder, title=f"Sweep of {name}", runs=rows, groups=groups, drawings=drawings, requests=requests)
  return told
