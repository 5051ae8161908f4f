"""What `faults.py` does to runs in a bucket: an S3 server on loopback that fails, and machines that are lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import json
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from fault_bench import PATIENCE, REPOSITORY, Bench, Row, environment, free_port, kill, lines, until

sys.path.insert(0, str(REPOSITORY / "tests"))
import buckets  # noqa: E402

from orthus_jax.storage import bring, remote_run  # noqa: E402
from orthus_jax.storage.bucket import Bucket  # noqa: E402
from orthus_jax.training.checkpoints import manifest  # noqa: E402

# A process of a machine by another name. It looks for what is new every half second, not every 30, as the whole run takes less;
# and takes a lock's holder for dead after 6 s without a sign of life, not 90.
_PROGRAM = """
import sys
from orthus_jax import cli, lock_record
from orthus_jax.storage import mirror, remote_lock
name = sys.argv[1]
lock_record.machine = lambda: name
mirror.EVERY, remote_lock.BEAT, remote_lock.PATIENCE = 0.5, 1.0, 6.0
if "--processes=2" in sys.argv:
  from orthus_jax.training import bucket_of_several
  bucket_of_several.EVERY = bucket_of_several._LOOK = 0.5
sys.exit(cli.main(sys.argv[2:]))
"""


class Cloud:
  """A bucket, and machines that have it alone in common.

  Args:
    bench: whose run is trained there.
    server: has the bucket.
    more: of the run's options.
  """

  def __init__(self, bench: Bench, server: buckets.Server, *more: str):
    self.bench, self.server, self._more = bench, server, more
    self._machines = 0
    self._lock = threading.Lock()

  def machine(self) -> Path:
    """A new one: where it keeps things."""
    self._machines += 1
    return self.bench.folder / f"machine-{self._machines}"

  def orthus(self, machine: Path, *argv: str, devices: int = 1) -> subprocess.Popen:
    with machine.with_suffix(".log").open("a") as log:
      command = [sys.executable, "-c", _PROGRAM, machine.name, *argv]
      return subprocess.Popen(command, env=environment(devices) | {"ORTHUS_CACHE": str(machine)}, stdout=log, stderr=log)

  def pair(self, url: str, machines: Sequence[Path]) -> list[subprocess.Popen]:
    """Two machines that train one run."""
    more = ["train", *self.bench.common, *self._more, f"--workdir={url}", f"--coordinator=localhost:{free_port()}"]
    more += ["--processes=2", "--join_timeout=60"]
    return [self.orthus(m, *more, f"--process_id={i}", devices=2) for i, m in enumerate(machines)]

  def train(self, url: str, machine: Path) -> subprocess.Popen:
    return self.orthus(machine, "train", *self.bench.common, *self._more, f"--workdir={url}")

  def fresh(self, name: str) -> str:
    return f"s3://mine/{self.bench.fresh(name).name}"

  @staticmethod
  def workdir(url: str, machine: Path) -> Path:
    return machine / "runs" / url.replace("://", "/")

  def log(self, machine: Path) -> str:
    return machine.with_suffix(".log").read_text(errors="replace")

  def share(self, fault: str, share: float, *, method: str = "") -> list[str]:
    """That share of requests for objects fails; what befell them is added to the list."""
    met: list[str] = []

    def of(verb: str, path: str) -> str:
      with self._lock:
        if path.count("/") < 3 or method not in ("", verb) or self.bench.rng.random() >= share:
          return ""
        met.append(verb)
        return fault

    self.server.fault = of
    return met

  def well(self) -> None:
    self.server.fault = lambda method, path: ""

  def finish(self, url: str, machine: Path) -> str:
    """Runs to the end, by the same command again if the last of it couldn't be uploaded; then as `whole`."""
    for _ in range(2):
      try:
        status = (process := self.train(url, machine)).wait(PATIENCE)
      except subprocess.TimeoutExpired:
        kill([process])
        return "it hung"
      if status != 1 or "the same command uploads the rest" not in self.log(machine):
        break
      self.well()
    return f"exit status {status}, see {machine}.log" if status else self.whole(url)

  def whole(self, url: str) -> str:
    """The digest that the run in the bucket has; another machine reads its newest checkpoint through."""
    self.well()
    bucket, machine = Bucket(url), self.machine()
    bring.remote_run_to(bucket, machine)
    for checkpoint in (machine / "checkpoints").iterdir():
      if reason := manifest.damage(checkpoint):
        return f"the checkpoint of step {checkpoint.name} is damaged in the bucket: {reason}"
    if strange := [n for n in bucket.list() if n.endswith(".unfinished") or n == remote_run.LOCK]:
      return f"left behind: {strange}"
    return json.loads(bucket.read("report.json"))["params_digest"]


@contextlib.contextmanager
def cloud_of(bench: Bench, *more: str) -> Iterator[Cloud]:
  """An empty bucket, whose runs take some options more."""
  with buckets.s3() as server:
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # what is left of a request that was cut off is none to it
    # Machines that are new each time would spend most of it on compiling: programs are the one thing that they share.
    os.environ |= buckets.ENVIRONMENT | {
        "AWS_ENDPOINT_URL": server.url, "JAX_COMPILATION_CACHE_DIR": str(bench.folder / "programs"),
    }  # fmt: skip
    server.make("mine")
    yield Cloud(bench, server, *more)


def storage(bench: Bench, *, kills: int) -> Iterator[Row]:
  """A bucket that fails, and machines that are lost: the run ends in it with the digest of one on disk."""
  less = ["--config.run.batch_size=2", "--config.run.checkpoint_every=4"]  # what is sent is as large
  with cloud_of(bench, *less) as cloud:
    wanted = bench.finish(bench.fresh("whole"), *less)
    yield _killed(cloud, wanted, times=kills)
    for fault, share, method, name in (
        ("500", 0.05, "", "storage: one request of 20 answered with 500"),
        ("reset", 0.05, "", "storage: one connection of 20 reset"),
        ("cut", 0.05, "GET", "storage: one read of 20 cut short"),
        ("slow", 1.0, "", "storage: each request 0.3 s late"),
    ):
      yield _failing(cloud, wanted, fault, share, method, name)
    yield _away_at_the_end(cloud, wanted)
    yield _damaged(cloud, wanted)
    yield _two(cloud, wanted)
    yield _away(cloud, wanted)


def _killed(cloud: Cloud, wanted: str, *, times: int) -> Row:
  """SIGKILL at one request or another of an upload, then another machine each time."""
  row, url, rng = Row("storage: SIGKILL in an upload"), cloud.fresh("killed"), cloud.bench.rng
  moments = {
      "a file": ("PUT", "/params/"), "a manifest": ("PUT", "/manifest.json"), "a marker's removal": ("DELETE", ".unfinished"),
      "metrics": ("PUT", "metrics.jsonl"), "an old one's removal": ("DELETE", "/d/"),
  }  # fmt: skip
  met = dict.fromkeys(moments, 0)
  last = 0
  for i in range(times):
    machine, moment = cloud.machine(), list(moments)[i % len(moments)]
    verb, part = moments[moment]
    process, workdir = cloud.train(url, machine), cloud.workdir(url, machine)
    enough, passed = last + rng.randint(2, max(cloud.bench.steps // times, 3)), rng.randint(0, 3)

    def of(method: str, path: str) -> str:
      nonlocal passed
      if method == verb and part in path and lines(workdir) >= enough:  # noqa: B023 - called within the round
        passed -= 1
        if passed < 0:
          process.kill()  # noqa: B023
          return "reset"
      return ""

    cloud.server.fault = of
    met[moment] += process.wait(PATIENCE) == -signal.SIGKILL
    cloud.well()
    last = lines(workdir)
    if process.returncode == 0:
      break
  got = cloud.finish(url, cloud.machine())
  for _ in range(sum(met.values())):
    row.add(got == wanted)
  row.note += "" if got == wanted else f" [{got}, not {wanted}]"
  row.note += " at " + ", ".join(f"{k} ({n})" for k, n in met.items() if n) + "; another machine went on each time"
  return row


def _failing(cloud: Cloud, wanted: str, fault: str, share: float, method: str, name: str) -> Row:
  """Requests fail all the while; half-way the machine is lost."""
  row, url, machine = Row(name), cloud.fresh(fault), cloud.machine()
  met = cloud.share(fault, share, method=method)
  process = cloud.train(url, machine)
  until(lambda: lines(cloud.workdir(url, machine)) >= cloud.bench.steps // 2, [process])
  kill([process])
  got = cloud.finish(url, other := cloud.machine())
  row.add(got == wanted, got)
  row.note += f" {len(met)} of them; {went_on(cloud.log(other))}"
  return row


def _away(cloud: Cloud, wanted: str) -> Row:
  """The server is away for longer than all tries of a request take; later the machine is lost."""
  row, url, machine = Row("storage: server away for 20 s"), cloud.fresh("away"), cloud.machine()
  workdir = cloud.workdir(url, machine)
  process = cloud.train(url, machine)
  until(lambda: lines(workdir) >= 5, [process])
  port = int(cloud.server.url.rpartition(":")[2])
  cloud.server.close()
  before, begin = lines(workdir), time.monotonic()
  until(lambda: time.monotonic() > begin + 20, [process])
  row.note += f" {lines(workdir) - before} steps meanwhile;"
  cloud.server.listen(port)
  until(lambda: "work again" in cloud.log(machine), [process])
  told = [said for said in ("it is tried again", "work again") if said in cloud.log(machine)]
  row.note += f" told: {', '.join(told)};"
  kill([process])
  got = cloud.finish(url, other := cloud.machine())
  row.add(got == wanted, got)
  row.note += f" {went_on(cloud.log(other))}"
  return row


def _away_at_the_end(cloud: Cloud, wanted: str) -> Row:
  """Nothing can be uploaded any more: status 1, and the same command uploads the rest."""
  row, url, machine = Row("storage: server away at the end"), cloud.fresh("end"), cloud.machine()
  process = cloud.train(url, machine)
  until(lambda: lines(cloud.workdir(url, machine)) >= cloud.bench.steps // 2, [process])
  cloud.share("500", 1.0)
  status = process.wait(PATIENCE)
  cloud.well()
  row.add(status == 1 and "the same command uploads the rest" in cloud.log(machine), f"status {status}")
  got = cloud.finish(url, machine)
  row.add(got == wanted, got)
  row.note += " status 1; the same command uploaded the rest"
  return row


def _damaged(cloud: Cloud, wanted: str) -> Row:
  """A bit of the newest checkpoint is another one in the bucket by now."""
  row, url, machine = Row("storage: one bit flipped in the bucket"), cloud.fresh("damaged"), cloud.machine()
  process = cloud.train(url, machine)
  until(lambda: lines(cloud.workdir(url, machine)) >= cloud.bench.steps // 2, [process])
  process.send_signal(signal.SIGTERM)
  process.wait(PATIENCE)
  bucket = Bucket(url)
  found = bucket.list()
  files = remote_run.of_step(found, remote_run.whole_steps(found)[-1])
  name = max((n for n in files if "/d/" in n), key=lambda n: files[n].size)
  data = bytearray(bucket.read(name))
  data[len(data) // 2] ^= 1
  bucket.write(name, bytes(data))
  got = cloud.finish(url, other := cloud.machine())
  row.add(got == wanted, got)
  row.add("passed over the checkpoint of step" in cloud.log(other) and "holds other bytes" in cloud.log(other), "not told why")
  row.note += f" {went_on(cloud.log(other))}"
  return row


def _two(cloud: Cloud, wanted: str) -> Row:
  """A second machine starts the same run."""
  row, url, machine, other = Row("storage: two at once"), cloud.fresh("two"), cloud.machine(), cloud.machine()
  process = cloud.train(url, machine)
  until(lambda: lines(cloud.workdir(url, machine)) >= 1, [process])
  status = cloud.train(url, other).wait(PATIENCE)
  row.add(status == 2 and "is in use" in cloud.log(other), f"status {status}")
  status = process.wait(PATIENCE)
  got = cloud.whole(url) if not status else f"status {status}"
  row.add(got == wanted, got)
  row.note += " the second was refused, status 2"
  return row


def went_on(log: str) -> str:
  where = [line for line in log.splitlines() if "own checkpoint of step" in line]
  return "went on from step " + where[0].split("own checkpoint of step ")[1].split()[0].rstrip(",") if where else "began anew"
