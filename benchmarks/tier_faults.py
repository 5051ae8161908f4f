"""How many steps a kill costs, with and without local checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
import re
import time

from fault_bench import PATIENCE, Bench, Row, kill, lines, rows_of, until

_EVERY = 20  # steps between checkpoints, where the other faults have 3
_WENT_ON = re.compile(r"going on from this run's (?:own|local) checkpoint of step ([0-9]+)|starting at step (0)")


def tiers(bench: Bench, *, times: int, two: bool) -> Iterator[Row]:
  """SIGKILL at the same random steps, without and with a local checkpoint every two steps."""
  name = "2 processes x 2 devices" if two else "1 process"
  more = [f"--config.run.checkpoint_every={_EVERY}", f"--config.run.local_checkpoint_dir={bench.folder / 'local'}"]
  begin = (lambda run, *a: bench.pair(run, *more, *a)) if two else (lambda run, *a: [bench.start(run, *more, *a)])
  whole = bench.fresh("whole")
  wanted = bench.ended(begin(whole), whole)
  steps = sorted(bench.rng.sample(range(3, bench.steps - 2), times))
  for every in (0, 2):
    run, at = bench.fresh("tiers"), []
    row = Row(f"SIGKILL, {name}, {'local checkpoints' if every else 'no local checkpoints'}")
    for step in steps:
      processes = begin(run, f"--config.run.local_checkpoint_every={every}")
      until(lambda: lines(run) >= step, processes)
      time.sleep(bench.rng.uniform(0, 0.1))
      bench.rng.choice(processes).kill()
      for p in processes:  # the other one notices by itself
        p.wait(PATIENCE)
      kill(processes)
      at.append(max((r["step"] for r in rows_of(run)), default=0))
    got = bench.ended(begin(run, f"--config.run.local_checkpoint_every={every}"), run)
    for _ in at:
      row.add(got == wanted)
    row.note += "" if got == wanted else f" [{got}, not {wanted}]"
    began = [int(a or b) for a, b in _WENT_ON.findall(bench.log(run))][1:]
    again = [there - here for there, here in zip(at, began, strict=True)]
    row.note += f" {sum(again) / len(again):.1f} steps done again a kill, at most {max(again)}"
    if every and list((bench.folder / "local").glob("*/*")):
      row.note += " [local checkpoints are left]"
    yield row
