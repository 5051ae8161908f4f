"""What `faults.py` breaks: runs of one small config, each in a place of its own."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import json
import os
from pathlib import Path
import random
import socket
import subprocess
import sys
import time

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
PATIENCE = 900  # seconds: machines are shared


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
  """One place with prepared data, and runs of it.

  Args:
    folder: made here.
    steps: of each run.
    documents: of each kind.
    seed: of the random moments.
  """

  def __init__(self, folder: Path, *, steps: int, documents: int, seed: int):
    self.folder, self.steps, self.documents, self.rng = folder, steps, documents, random.Random(seed)
    self._runs = 0
    self.common = [
        f"--config={REPOSITORY / 'configs' / 'shapes.py'}", "--config.model.transformer.layers=1",
        "--config.model.transformer.scan_unroll=1", "--config.data.source=prepared", f"--config.data.path={folder / 'data'}",
        "--config.data.cache_features=False", "--config.data.later_kinds=()", f"--config.run.steps={steps}",
        "--config.run.batch_size=8", "--config.run.log_every=1", "--config.run.sample_every=0",
        "--config.run.checkpoint_every=3", "--config.run.report=False",
    ]  # fmt: skip

  def prepare(self) -> None:
    """Lays the data out: a few hundred documents of the built-in world."""
    from orthus_jax.commands import common
    from orthus_jax.config import command_line
    from orthus_jax.data.prepared import writer as prepared
    from orthus_jax.data.shapes import builder
    from orthus_jax.data.sources import registry as sources

    common.initialize()
    sizes = dict(train={k: self.documents for k in builder.TRAIN}, test={k: 4 for k in builder.TEST})
    builder.prepare(self.folder / "world", 32, **sizes)
    source = builder.documents(self.folder / "world", "train", 32, **sizes)
    config, _ = command_line.read_config([a for a in self.common if ".data." not in a])
    prepared.prepare(source, sources.open_tokenizer(config), config, self.folder / "data", images="pixels")

  def start(
      self, run: Path, *more: str, devices: int = 1, process: int | None = None, port: int = 0
  ) -> subprocess.Popen:
    where = []
    if process is not None:
      where = [f"--coordinator=localhost:{port}", "--processes=2", f"--process_id={process}", "--join_timeout=15"]
    log = (self.folder / f"{run.name}-{process or 0}.log").open("a")
    command = [sys.executable, "-m", "orthus_jax.cli", "train", *self.common, f"--workdir={run}", *more, *where]
    return subprocess.Popen(command, env=environment(devices), stdout=log, stderr=log)

  def pair(self, run: Path, *more: str) -> list[subprocess.Popen]:
    port = free_port()
    return [self.start(run, *more, devices=2, process=i, port=port) for i in (0, 1)]

  def fresh(self, name: str) -> Path:
    self._runs += 1
    return self.folder / f"{name}-{self._runs}"

  def finish(self, run: Path, *more: str, devices: int = 1) -> str:
    """Runs to the end; the final digest, or what went wrong."""
    return self.ended([self.start(run, *more, devices=devices)], run)

  def ended(self, processes: list[subprocess.Popen], run: Path) -> str:
    try:
      statuses = [p.wait(PATIENCE) for p in processes]
    except subprocess.TimeoutExpired:
      kill(processes)
      return "it hung"
    if any(statuses):
      return f"exit status {max(statuses)}, see {self.folder / run.name}-0.log"
    return json.loads((run / "report.json").read_text())["params_digest"]

  def log(self, run: Path) -> str:
    return (self.folder / f"{run.name}-0.log").read_text(errors="replace")


def free_port() -> int:
  with socket.create_server(("", 0)) as s:
    return s.getsockname()[1]


def environment(devices: int = 1) -> dict[str, str]:
  """Of a run on so many devices of a CPU; what else XLA_FLAGS asks for stays."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  return os.environ | {
      "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(),
      "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
  }  # fmt: skip


def kill(processes: list[subprocess.Popen]) -> None:
  for p in processes:
    p.kill()
  for p in processes:
    p.wait()


def rows_of(run: Path) -> list[dict]:
  from orthus_jax.training.metric_writer import read_metrics

  return read_metrics(run)


def until(condition: Callable[[], bool], processes: list[subprocess.Popen]) -> bool:
  """Waits for a condition; False if a process ended first."""
  end = time.monotonic() + PATIENCE
  while time.monotonic() < end and all(p.poll() is None for p in processes):
    if condition():
      return True
    time.sleep(0.005)
  return False


def lines(run: Path) -> int:
  file = run / "metrics.jsonl"
  return file.read_bytes().count(b"\n") if file.is_file() else 0
