"""Breaks a run in every way that is promised to do no harm, and counts what was lost.

    python benchmarks/faults.py            all of it: an hour on two cores
    python benchmarks/faults.py --short    the first of each kind
    python benchmarks/faults.py --only=kill,data --markdown

The run is that of configs/shapes.py made small: its model with one layer, its data prepared once. Prints one line a fault
(tried, survived, lost); exits with 1 if anything was lost. A run survives if it ends with the very parameters (SHA-256) of
the undisturbed one, or, on other devices, with the same batches and losses within 1e-5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from fault_bench import PATIENCE, Bench, Row, environment, kill, lines, rows_of, until

# --- kills ----------------------------------------------------------------------------------------------------------


def kills(bench: Bench, *, times: int, rows: int, two: bool) -> Iterator[Row]:
  """SIGKILL at random moments, a third of them while a checkpoint is being written."""
  name = "2 processes x 2 devices" if two else "1 process"
  total = bench.steps // 2 if two else bench.steps  # two processes share two cores, and wait for each other at every layer
  less = [f"--config.run.steps={total}", f"--config.run.batch_size={rows}"]
  begin = (lambda run: bench.pair(run, *less)) if two else (lambda run: [bench.start(run, *less)])
  whole = bench.fresh("whole")
  wanted = bench.ended(begin(whole), whole)
  run, moments = bench.fresh("killed"), {"start": 0, "steps": 0, "save": 0}
  row = Row(f"SIGKILL, {name}")
  for i in range(times):
    processes, before = begin(run), lines(run)
    kind = ("save", "steps", "steps", "save", "start", "steps")[i % 6]
    if kind == "start":
      time.sleep(bench.rng.uniform(0, 8))
    else:
      steps = bench.rng.randint(1, 4 if two else 8)  # past where it was killed before, so that the run comes to its end
      until(lambda: lines(run) >= before + steps, processes)
      time.sleep(bench.rng.uniform(0, 0.3))
      if kind == "save":
        until(lambda: any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*")), processes)
        time.sleep(bench.rng.uniform(0, 0.02))
    victim = bench.rng.choice(processes)
    if all(p.poll() is None for p in processes):
      moments[kind] += 1
    victim.kill()
    try:  # the other one must notice by itself
      for p in processes:
        p.wait(PATIENCE)
    except subprocess.TimeoutExpired:
      row.note += f" [kill {i}: the other process went on waiting]"
    kill(processes)
    if (run / "report.json").exists():
      break  # it was done
  got = bench.ended(begin(run), run)
  for _ in range(sum(moments.values())):
    row.add(got == wanted)
  if got != wanted:
    row.note += f" [{got}, not {wanted}]"
  row.note += " " + ", ".join(f"{n} at {k}" for k, n in moments.items())
  steps = [r["step"] for r in rows_of(run)]
  row.note += "" if steps == list(range(1, total + 1)) else " [metrics lack steps]"
  row.note += f"; went on from {len(set(re.findall('own checkpoint of step ([0-9]+)', bench.log(run))))} different steps"
  yield row


def preemption(bench: Bench, *, times: int) -> Iterator[Row]:
  """SIGTERM: one checkpoint, exit status 75, and on from there."""
  run, slowest = bench.fresh("preempted"), 0.0
  row = Row("SIGTERM")
  for _ in range(times):
    processes, before = [bench.start(run)], lines(run)
    if not until(lambda: lines(run) > before + 2, processes):
      break
    begin = time.monotonic()
    processes[0].send_signal(signal.SIGTERM)
    status = processes[0].wait(PATIENCE)
    slowest = max(slowest, time.monotonic() - begin)
    last = max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    row.add(status == 75 and last == rows_of(run)[-1]["step"], f"status {status}, checkpoint {last}")
  row.add(bench.finish(run) == bench.finish(bench.fresh("whole")), "another digest")
  row.note += f" slowest to exit {slowest:.1f} s"
  yield row


def elastic(bench: Bench, *, devices: tuple[int, ...]) -> Iterator[Row]:
  """Other device counts on the way."""
  whole, run = bench.fresh("whole"), bench.fresh("elastic")
  bench.finish(whole, devices=devices[0])
  row = Row(f"devices {' > '.join(map(str, devices))}")
  for i, n in enumerate(devices):
    mesh = ["--config.mesh.tensor=2", "--config.mesh.fsdp=-1"] if i == 1 and n > 1 else []
    if i == len(devices) - 1:
      row.add(len(bench.finish(run, devices=n)) == 64, "it didn't end")
      break
    processes, before = [bench.start(run, *mesh, devices=n)], lines(run)
    until(lambda: lines(run) >= before + bench.steps // (len(devices) + 1), processes)
    processes[0].send_signal(signal.SIGTERM)
    row.add(processes[0].wait(PATIENCE) == 75, "it didn't stop")
  a, b = ({r["step"]: r for r in rows_of(x)} for x in (whole, run))
  same = a.keys() == b.keys() and all(a[s]["batch_digest"] == b[s]["batch_digest"] for s in a)
  row.add(same, "other batches")
  worst = max(abs(a[s]["loss"] - b[s]["loss"]) / abs(a[s]["loss"]) for s in a.keys() & b.keys())
  row.add(worst <= 1e-5, "other losses")
  row.note += f" losses within {worst:.1e}"
  yield row


# --- checkpoints ----------------------------------------------------------------------------------------------------


def stopped(bench: Bench) -> tuple[Path, str]:
  """A run that was stopped half-way, and the digest that it should come to."""
  base = bench.fresh("base")
  processes = [bench.start(base, "--config.run.keep_checkpoints=3")]
  until(lambda: lines(base) >= bench.steps // 2, processes)
  processes[0].send_signal(signal.SIGTERM)
  processes[0].wait(PATIENCE)
  return base, bench.finish(bench.fresh("whole"))


def checkpoints(bench: Bench, *, only: int | None) -> Iterator[Row]:
  """Damage to the newest checkpoint of a run that stopped."""
  base, wanted = stopped(bench)

  def newest(run: Path) -> Path:
    return max((p for p in (run / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))

  def files(run: Path) -> list[Path]:
    found = [p for p in newest(run).rglob("*") if p.is_file() and "/d/" in p.as_posix()]
    return sorted(found, key=lambda p: p.stat().st_size)

  def cut(run: Path) -> None:
    os.truncate(files(run)[-1], files(run)[-1].stat().st_size // 2)

  def flip(run: Path) -> None:
    data = bytearray(files(run)[-1].read_bytes())
    data[len(data) // 2] ^= 1
    files(run)[-1].write_bytes(data)

  def half_written(run: Path) -> None:
    newest(run).rename(run / "checkpoints" / f"{newest(run).name}.orbax-checkpoint-tmp")

  harms = {
      "file truncated": (cut, "bytes, not"), "one bit flipped": (flip, "holds other bytes"),
      "shard deleted": (lambda run: files(run)[0].unlink(), "is missing"),
      "killed before its name": (half_written, "its writing never ended"),
      "manifest damaged": (lambda run: os.truncate(newest(run) / "manifest.json", 9), "manifest.json can't be read"),
  }
  for name, (harm, reason) in list(harms.items())[:only]:
    run = bench.fresh("harmed")
    shutil.copytree(base, run)
    harm(run)
    row = Row(f"checkpoint: {name}")
    got = bench.finish(run)
    row.add(got == wanted, got)
    row.add("passed over the checkpoint of step" in bench.log(run) and reason in bench.log(run), "not told why")
    yield row


def disk(bench: Bench) -> Iterator[Row]:
  """A disk that is full: no file can get longer than 200 KB."""
  base, wanted = stopped(bench)
  run = bench.fresh("full")
  shutil.copytree(base, run)
  limited = subprocess.Popen(
      ["bash", "-c", 'ulimit -f 200; exec "$@"', "-", sys.executable, "-c", _TRAIN, *bench.common, f"--workdir={run}"],
      env=environment(),
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  said = limited.communicate(timeout=PATIENCE)[1]
  row = Row("checkpoint: disk full")
  left = [p.name for p in (run / "checkpoints").iterdir() if not p.name.isdigit() and p.name != "metadata"]
  whole = limited.returncode == 1 and "couldn't be written" in said and lines(run) == bench.steps
  row.add(whole, f"status {limited.returncode}")
  row.add(not left, f"left {left}")
  row.add(bench.finish(run) == wanted, "another digest once there was room")
  yield row


_TRAIN = "import sys; from orthus_jax import cli; sys.exit(cli.main(['train', *sys.argv[1:]]))"


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--short", action="store_true", help="the first of each kind")
  parser.add_argument(
      "--only", default="",
      help="data, checkpoint, disk, preempt, elastic, kill, tiers, tiers_pair, pair, storage, storage_pair; separated by"
      " commas",
  )  # fmt: skip
  parser.add_argument("--markdown", action="store_true", help="print a table for the docs at the end")
  parser.add_argument("--seed", type=int, default=0, help="of the random moments")
  parser.add_argument("--keep", metavar="DIR", help="work there, and leave everything behind")
  options = parser.parse_args()
  import data_faults  # these load the package, which the help needn't
  import pair_storage_faults
  import storage_faults
  import tier_faults

  short = options.short
  place = Path(options.keep or tempfile.mkdtemp(prefix="orthus-faults-"))
  bench = Bench(place.absolute(), steps=40 if short else 120, documents=30 if short else 120, seed=options.seed)
  parts: dict[str, Callable[[], Iterator[Row]]] = {
      "data": lambda: data_faults.data(bench),
      "checkpoint": lambda: checkpoints(bench, only=1 if short else None),
      "disk": lambda: disk(bench),
      "preempt": lambda: preemption(bench, times=1 if short else 4),
      "elastic": lambda: elastic(bench, devices=(4, 2) if short else (8, 4, 2, 8)),
      "kill": lambda: kills(bench, times=2 if short else 20, rows=2 if short else 8, two=False),
      "tiers": lambda: tier_faults.tiers(bench, times=2 if short else 8, two=False),
      "tiers_pair": lambda: tier_faults.tiers(bench, times=1 if short else 4, two=True),
      "pair": lambda: kills(bench, times=1 if short else 20, rows=4, two=True),
      "storage": lambda: storage_faults.storage(bench, kills=3 if short else 20),
      "storage_pair": lambda: pair_storage_faults.storage_pair(bench, kills=1 if short else 5),
  }
  chosen = [p for p in options.only.split(",") if p] or list(parts)
  if unknown := [p for p in chosen if p not in parts]:
    parser.error(f"unknown part {unknown[0]}: choose from {', '.join(parts)}")
  done: list[Row] = []
  try:
    place.mkdir(parents=True, exist_ok=True)
    bench.prepare()
    print(f"{'fault':42} {'tried':>5} {'survived':>8} {'lost':>5}", flush=True)
    for name in chosen:
      begin = time.monotonic()
      for row in parts[name]():
        done.append(row)
        print(f"{row.fault:42} {row.tried:5} {row.survived:8} {row.lost:5} {row.note}", flush=True)
      print(f"  ({name}: {time.monotonic() - begin:.0f} s)", flush=True)
  finally:
    if not options.keep:
      shutil.rmtree(place, ignore_errors=True)
  if options.markdown:
    print("\n| fault | tried | survived | lost | |\n|---|---:|---:|---:|---|")
    for row in done:
      print(f"| {row.fault} | {row.tried} | {row.survived} | {row.lost} | {row.note.strip()} |")
  return int(any(r.lost for r in done))


if __name__ == "__main__":
  sys.exit(main())
