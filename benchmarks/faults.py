"""Breaks a run in every way that is promised to do no harm, and counts what was lost.

    python benchmarks/faults.py            all of it: some forty minutes on two cores
    python benchmarks/faults.py --short    the first of each kind
    python benchmarks/faults.py --only=kill,data --markdown

The run is that of configs/shapes.py made small: its model with one layer, its data prepared once. Prints one line a fault
(tried, survived, lost); exits with 1 if anything was lost. A run survives if it ends with the very parameters (SHA-256) of
the undisturbed one, or, on other devices, with the same batches and losses within 1e-5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import io
import json
import os
from pathlib import Path
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
STEPS = 120
_PATIENCE = 300  # seconds


@dataclasses.dataclass
class Row:
  """What came of one fault."""

  fault: str
  tried: int = 0
  survived: int = 0
  note: str = ""

  def add(self, survived: bool, why: str = "") -> None:
    self.tried += 1
    self.survived += survived
    if not survived and why:
      self.note += f" [{why}]"

  @property
  def lost(self) -> int:
    return self.tried - self.survived


class Bench:
  """One place with prepared data, and runs of it."""

  def __init__(self, folder: Path, seed: int):
    self.folder, self.rng = folder, random.Random(seed)
    self._runs = 0
    self._common = [
        f"--config={REPOSITORY / 'configs' / 'shapes.py'}", "--config.model.transformer.layers=1",
        "--config.model.transformer.scan_unroll=1", "--config.data.source=prepared", f"--config.data.path={folder / 'data'}",
        "--config.data.cache_features=False", "--config.data.later_kinds=()", f"--config.run.steps={STEPS}",
        "--config.run.batch_size=8", "--config.run.log_every=1", "--config.run.sample_every=0",
        "--config.run.checkpoint_every=3", "--config.run.report=False",
    ]  # fmt: skip

  def prepare(self) -> None:
    """Lays the data out: a few hundred documents of the built-in world."""
    from orthus_jax.commands import common, train
    from orthus_jax.data import prepared, sources
    from orthus_jax.data.shapes import builder

    common.start()
    sizes = dict(train={k: 120 for k in builder.TRAIN}, test={k: 4 for k in builder.TEST})
    builder.prepare(self.folder / "world", 32, **sizes)
    source = builder.documents(self.folder / "world", "train", 32, **sizes)
    config, _ = train.read_config([a for a in self._common if ".data." not in a])
    prepared.prepare(source, sources.open_tokenizer(config), config, self.folder / "data", images="pixels")

  def start(
      self, run: Path, *more: str, devices: int = 1, process: int | None = None, port: int = 0
  ) -> subprocess.Popen:
    where = [] if process is None else [f"--coordinator=localhost:{port}", "--processes=2", f"--process_id={process}", "--join_timeout=15"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    log = (self.folder / f"{run.name}-{process or 0}.log").open("a")
    command = [sys.executable, "-m", "orthus_jax.cli", "train", *self._common, f"--workdir={run}", *more, *where]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

  def pair(self, run: Path, *more: str) -> list[subprocess.Popen]:
    with socket.create_server(("", 0)) as s:
      port = s.getsockname()[1]
    return [self.start(run, *more, devices=2, process=i, port=port) for i in (0, 1)]

  def fresh(self, name: str) -> Path:
    self._runs += 1
    return self.folder / f"{name}-{self._runs}"

  def finish(self, run: Path, *more: str, devices: int = 1) -> str:
    """Runs to the end; the final digest, or what went wrong."""
    return self.ended([self.start(run, *more, devices=devices)], run)

  def ended(self, processes: list[subprocess.Popen], run: Path) -> str:
    try:
      statuses = [p.wait(_PATIENCE) for p in processes]
    except subprocess.TimeoutExpired:
      kill(processes)
      return "it hung"
    if any(statuses):
      return f"exit status {max(statuses)}, see {self.folder / run.name}-0.log"
    return json.loads((run / "report.json").read_text())["params_digest"]

  def log(self, run: Path) -> str:
    return (self.folder / f"{run.name}-0.log").read_text(errors="replace")


def kill(processes: list[subprocess.Popen]) -> None:
  for p in processes:
    p.kill()
  for p in processes:
    p.wait()


def rows_of(run: Path) -> list[dict]:
  from orthus_jax.training.metrics import read_metrics

  return read_metrics(run)


def until(condition: Callable[[], bool], processes: list[subprocess.Popen]) -> bool:
  """Waits for a condition; False if a process ended first."""
  end = time.monotonic() + _PATIENCE
  while time.monotonic() < end and all(p.poll() is None for p in processes):
    if condition():
      return True
    time.sleep(0.005)
  return False


def lines(run: Path) -> int:
  file = run / "metrics.jsonl"
  return file.read_bytes().count(b"\n") if file.is_file() else 0


# --- kills ----------------------------------------------------------------------------------------------------------


def kills(bench: Bench, *, times: int, two: bool) -> Iterator[Row]:
  """SIGKILL at random moments, a third of them while a checkpoint is being written."""
  name = "2 processes x 2 devices" if two else "1 process"
  total = STEPS // 2 if two else STEPS  # two processes share two cores, and wait for each other at every layer
  less = [f"--config.run.steps={total}", "--config.run.batch_size=4"]
  begin = (lambda run: bench.pair(run, *less)) if two else (lambda run: [bench.start(run)])
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
      steps = bench.rng.randint(1, 5 if two else 9)  # so that most starts get past a checkpoint, and the run comes to its end
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
        p.wait(_PATIENCE)
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
    status = processes[0].wait(_PATIENCE)
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
    until(lambda: lines(run) >= before + STEPS // (len(devices) + 1), processes)
    processes[0].send_signal(signal.SIGTERM)
    row.add(processes[0].wait(_PATIENCE) == 75, "it didn't stop")
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
  until(lambda: lines(base) >= STEPS // 2, processes)
  processes[0].send_signal(signal.SIGTERM)
  processes[0].wait(_PATIENCE)
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
      ["bash", "-c", 'ulimit -f 200; exec "$@"', "-", sys.executable, "-c", _TRAIN, *bench._common, f"--workdir={run}"],
      env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""},
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  said = limited.communicate(timeout=_PATIENCE)[1]
  row = Row("checkpoint: disk full")
  left = [p.name for p in (run / "checkpoints").iterdir() if not p.name.isdigit() and p.name != "metadata"]
  row.add(limited.returncode == 1 and "couldn't be written" in said and lines(run) == STEPS, f"status {limited.returncode}")
  row.add(not left, f"left {left}")
  row.add(bench.finish(run) == wanted, "another digest once there was room")
  yield row


_TRAIN = "import sys; from orthus_jax import cli; sys.exit(cli.main(['train', *sys.argv[1:]]))"


# --- data -----------------------------------------------------------------------------------------------------------


def data(bench: Bench) -> Iterator[Row]:
  """Broken records and files: each counted, and no good one lost."""
  from orthus_jax.data import images, shards
  from orthus_jax.data.bad_records import BadRecords
  from orthus_jax.data.folder import FolderSource
  from orthus_jax.data.tar import TarSource
  import numpy as np

  import logging
  import tarfile
  import warnings

  logging.getLogger("orthus_jax").setLevel(logging.CRITICAL)
  warnings.simplefilter("ignore")
  shards._WAITS = (0.01,)
  place = bench.fresh("data")
  good = images.png_bytes(np.full((40, 40, 3), 90, np.uint8))

  def folder(bad: list[tuple[bytes, bytes | None]]) -> tuple[int, int]:
    """(good documents read, bad rows counted) of 20 good rows and these bad ones: text, and a picture's bytes."""
    where = place / f"folder-{len(list(place.glob('*'))) if place.exists() else 0}"
    where.mkdir(parents=True)
    (where / "good.png").write_bytes(good)
    rows = [b'{"image": "good.png", "text": "a box"}'] * 20
    for i, (row, picture) in enumerate(bad):
      if picture is not None:
        (where / f"bad{i}.png").write_bytes(picture)
      rows.insert(3 * i, row.replace(b"BAD", f"bad{i}.png".encode()))
    (where / "metadata.jsonl").write_bytes(b"\n".join(rows))
    source = FolderSource(where, resolution=32, max_bad_share=0.9, pairs="to_image")
    return sum(source[i] is not None for i in range(len(source))), source.bad.distinct

  plain = b'{"image": "BAD", "text": "a box"}'
  kinds = {
      "undecodable picture": [(plain, b"hello"), (plain, good[:60])], "zero-sized picture": [(plain, b"")],
      "gigantic picture": [(plain, _bomb())], "missing picture": [(plain, None)],
      "caption not UTF-8": [(b'{"image": "good.png", "text": "\xff\xfe\xfa"}', None)],
      "JSON lines cut short": [(b'{"image": "good.png", "te', None), (b'{"image": "good.png"}', None)],
  }
  for name, bad in kinds.items():
    row = Row(f"data: {name}")
    got, counted = folder(bad)
    for _ in bad:
      row.add((got, counted) == (20, len(bad)), f"{got} of 20 read, {counted} of {len(bad)} counted")
    yield row

  def tar(name: str, samples: int) -> tuple[Path, list[int]]:
    starts = []
    with tarfile.open(place / name, "w") as t:
      for i in range(samples):
        for extension, body in (("png", good), ("txt", b"a box")):
          member = tarfile.TarInfo(f"{i:03d}.{extension}")
          member.size = len(body)
          starts.append(t.offset)
          t.addfile(member, io.BytesIO(body))
    return place / name, starts

  for name, harm, least in (("tar cut short", lambda f, s: os.truncate(f, s[40] + 700), 20),
                            ("tar corrupt", lambda f, s: _overwrite(f, s[40], 512), 39)):  # fmt: skip
    file, starts = tar(f"{name.split()[1]}.tar", 40)
    harm(file, starts)
    source = TarSource(file, resolution=32, max_bad_share=0.9, pairs="to_image")
    got = sum(source[i] is not None for i in range(len(source)))
    row = Row(f"data: {name}")
    row.add(got == least and source.bad.distinct >= 1, f"{got} read, {source.bad.distinct} counted")
    yield row

  from array_record.python import array_record_module

  def shard(name: str) -> Path:
    writer = array_record_module.ArrayRecordWriter(str(place / name), "group_size:1,uncompressed")
    for i in range(100):
      writer.write(bytes([i]) * 2000)
    writer.close()
    return place / name

  for name, harm, least in (
      ("ArrayRecord corrupt", lambda f: _overwrite(f, f.stat().st_size // 2, 50), 197),
      ("ArrayRecord cut short", lambda f: os.truncate(f, f.stat().st_size // 2), 100),
      ("unreachable shard", lambda f: f.unlink(), 100),
  ):
    files = [shard("a.array_record"), shard("b.array_record")]
    harm(files[0])
    reader = shards.Shards(files, [100, 100], BadRecords(max_share=0.9, total=200))
    read = [reader.read(i) for i in range(200)]
    right = all(r is None or r == bytes([i % 100]) * 2000 for i, r in enumerate(read))
    missing = sum(r is None for r in read)
    row = Row(f"data: {name}")
    row.add(right and 200 - missing >= least and 0 < missing == reader.bad.distinct, f"{missing} missing, {reader.bad.distinct} counted")
    yield row

  run, original = bench.fresh("too-bad"), bench.folder / "data"
  damaged = bench.folder / "data-damaged"
  shutil.copytree(original, damaged)
  for file in damaged.glob("pictures-*"):
    os.truncate(file, file.stat().st_size // 2)
  process = bench.start(run, f"--config.data.path={damaged}")
  row = Row("data: more than the share put up with")
  row.add(process.wait(_PATIENCE) == 2 and "are bad so far" in bench.log(run), f"status {process.returncode}")
  yield row


def _overwrite(file: Path, at: int, n: int) -> None:
  with file.open("r+b") as f:
    f.seek(at)
    f.write(bytes(range(1, 251)) * (n // 250 + 1))


def _bomb() -> bytes:
  import struct
  import zlib

  def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

  head = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--short", action="store_true", help="the first of each kind")
  parser.add_argument("--only", default="", help="data, checkpoint, disk, preempt, elastic, kill, pair; separated by commas")
  parser.add_argument("--markdown", action="store_true", help="print a table for the docs at the end")
  parser.add_argument("--seed", type=int, default=0, help="of the random moments")
  parser.add_argument("--keep", metavar="DIR", help="work there, and leave everything behind")
  options = parser.parse_args()
  short = options.short
  if short:
    global STEPS
    STEPS = 40
  place = Path(options.keep or tempfile.mkdtemp(prefix="orthus-faults-"))
  bench = Bench(place.absolute(), options.seed)
  parts: dict[str, Callable[[], Iterator[Row]]] = {
      "data": lambda: data(bench),
      "checkpoint": lambda: checkpoints(bench, only=1 if short else None),
      "disk": lambda: disk(bench),
      "preempt": lambda: preemption(bench, times=1 if short else 4),
      "elastic": lambda: elastic(bench, devices=(4, 2) if short else (8, 4, 2, 8)),
      "kill": lambda: kills(bench, times=2 if short else 20, two=False),
      "pair": lambda: kills(bench, times=1 if short else 20, two=True),
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
