"""What `faults.py` does to runs of two machines that have a bucket alone in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import subprocess
import time

from fault_bench import PATIENCE, Bench, Row, kill, lines, until
from storage_faults import Cloud, cloud_of, went_on


def storage_pair(bench: Bench, *, kills: int) -> Iterator[Row]:
  """Machines that are lost, and a bucket that fails: the run ends in it with the digest of one that nothing befell."""
  with cloud_of(bench, "--config.run.batch_size=4", "--config.run.checkpoint_every=4") as cloud:
    wanted = _finish(cloud, cloud.fresh("whole"), _machines(cloud))
    yield _killed(cloud, wanted, times=kills, both=True)
    yield _killed(cloud, wanted, times=kills, both=False)
    yield _failing(cloud, wanted)
    yield _away_at_the_end(cloud, wanted)


def _workdir(cloud: Cloud, url: str, machine: Path) -> Path:
  return cloud.workdir(f"{url}.process-0", machine)


def _machines(cloud: Cloud) -> list:
  return [cloud.machine(), cloud.machine()]


def _ended(processes: list[subprocess.Popen]) -> list[int] | None:
  """The exit statuses; None where one hung."""
  end = time.monotonic() + PATIENCE
  try:
    return [p.wait(max(end - time.monotonic(), 1)) for p in processes]
  except subprocess.TimeoutExpired:
    kill(processes)
    return None


def _finish(cloud: Cloud, url: str, machines: list) -> str:
  """The digest of the run in the bucket, trained to its end; or what went wrong."""
  statuses = _ended(cloud.pair(url, machines))
  if statuses is None:
    return "it hung"
  return f"exit statuses {statuses}, see {machines[0]}.log" if any(statuses) else cloud.whole(url)


def _killed(cloud: Cloud, wanted: str, *, times: int, both: bool) -> Row:
  """SIGKILL at a random moment, of both machines or of one, whose loss ends the other; then two others go on."""
  row = Row(f"storage: SIGKILL of {'both' if both else 'one'} of two machines")
  url, rng, last, hit, ends = cloud.fresh("pair"), cloud.bench.rng, 0, 0, []
  for i in range(times):
    machines = _machines(cloud)
    processes, workdir = cloud.pair(url, machines), _workdir(cloud, url, machines[0])
    enough = last + rng.randint(2, max(cloud.bench.steps // times, 3))
    if not until(lambda: lines(workdir) >= enough, processes):  # noqa: B023 - called within the round
      break
    time.sleep(rng.random())
    if both:
      kill(processes)
    else:
      kill([processes[i % 2]])
      ends.append(_ended([processes[1 - i % 2]]))
    hit, last = hit + 1, lines(workdir)
  _ended(processes)
  other = _machines(cloud)
  got = _finish(cloud, url, other)
  for _ in range(hit):
    row.add(got == wanted)
  row.note += "" if got == wanted else f" [{got}, not {wanted}]"
  row.note += f" two others {went_on(cloud.log(other[0]))}"
  row.note += f"; the other ended with {sorted({e[0] for e in ends if e})}" if ends else ""
  return row


def _failing(cloud: Cloud, wanted: str) -> Row:
  """Requests fail all the while."""
  row, url = Row("storage: two machines, one request of 20 answered with 500"), cloud.fresh("pair-500")
  met = cloud.share("500", 0.05)
  got = _finish(cloud, url, _machines(cloud))
  row.add(got == wanted, got)
  row.note += f" {len(met)} of them"
  return row


def _away_at_the_end(cloud: Cloud, wanted: str) -> Row:
  """Nothing can be uploaded any more: status 1, and the same command on the same machines uploads the rest."""
  row, url, machines = Row("storage: server away at two machines' end"), cloud.fresh("pair-end"), _machines(cloud)
  processes = cloud.pair(url, machines)
  until(lambda: lines(_workdir(cloud, url, machines[0])) >= cloud.bench.steps // 2, processes)
  cloud.share("500", 1.0)
  statuses = _ended(processes)
  cloud.well()
  row.add(statuses == [1, 1] and "the same command uploads the rest" in cloud.log(machines[0]), f"statuses {statuses}")
  got = _finish(cloud, url, machines)
  row.add(got == wanted, got)
  row.add("which an earlier start left on the disks" in cloud.log(machines[0]), "parts were left there")
  row.note += " status 1; the same command uploaded the rest"
  return row
