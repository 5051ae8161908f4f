"""Joining the processes of one run, before any device is touched.

Who is who comes from flags, or from jax's own detection of a cluster (SLURM, Open MPI, GKE, Cloud TPU). jax ends a process
from inside its C++ when another one never comes, and doesn't say which; so the processes first meet on the coordinator's
port, where whoever is missing can be named.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import re
import socket
import sys
import time

from orthus_jax.errors import BadRequest

_TIMEOUT = 300.0
_HELLO = b"orthus "


def initialize(
    *,
    coordinator: str | None = None,
    processes: str | None = None,
    process_id: int | None = None,
    timeout: float | None = None,
) -> None:
  """Joins the run's processes; does nothing where this one is alone.

  Args:
    coordinator: HOST:PORT of process 0.
    processes: how many, "auto" to have jax look for a cluster, or None to do so where the environment speaks of one.
    process_id: which of them this one is.
    timeout: seconds to wait for the others.

  Raises:
    BadRequest: on flags that don't go together, where no cluster is found, or naming processes that never joined.
  """
  timeout = _TIMEOUT if timeout is None else timeout
  given = {"--coordinator": coordinator, "--process_id": process_id}
  count = _count(processes)
  if count == 1 or (processes is None and not any(v is not None for v in given.values()) and not in_cluster(os.environ)):
    return
  if count is not None or any(v is not None for v in given.values()):
    missing = [f for f, v in ({"--processes": count} | given).items() if v is None]
    if count is None or coordinator is None or process_id is None:
      raise BadRequest(
          f"{' and '.join(missing)} missing: give --coordinator=HOST:PORT --processes=N --process_id=I together"
      )
    if not 0 <= process_id < count:
      raise BadRequest(f"--process_id={process_id} must lie in 0..{count - 1}, as there are --processes={count}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise BadRequest(f"--coordinator={coordinator} must be HOST:PORT of process 0")
    local = None
  else:
    coordinator, count, process_id, local = _detect(timeout)
  if count > 1:
    import jax

    meet(coordinator, count, process_id, timeout=timeout)
    _keep_stdout()
    jax.distributed.initialize(
        coordinator, count, process_id, local_device_ids=local, cluster_detection_method="deactivate",
        initialization_timeout=int(max(timeout, 60)),
    )  # fmt: skip


def _keep_stdout() -> None:
  """Leaves standard output to Python: gloo, which carries what CPUs send each other, prints there from C++."""
  sys.stdout.flush()
  sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)


def in_cluster(environment: Mapping[str, str]) -> bool:
  """Whether the environment speaks of several processes: a step of SLURM or Open MPI, or a TPU pod."""
  tasks = [environment.get(n, "1") for n in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")]
  several = any(t.isdigit() and int(t) > 1 for t in tasks)
  return several or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def _count(processes: str | None) -> int | None:
  if processes is None or processes == "auto":
    return None
  if not processes.isdigit() or int(processes) < 1:
    raise BadRequest(f"--processes={processes} must be a number from 1, or auto")
  return int(processes)


def _detect(timeout: float) -> tuple[str, int, int, list[int] | None]:
  """(coordinator, processes, this one's number, its devices) as jax finds them."""
  try:
    from jax._src import clusters  # jax has no public name for it

    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout))
  except Exception as e:  # whatever a metadata server may do
    raise BadRequest(f"the cluster can't be read: {e}; give --coordinator, --processes and --process_id") from e
  if None in found[:3]:
    raise BadRequest(
        "no cluster is found (SLURM, Open MPI, GKE, Cloud TPU): give --coordinator, --processes and --process_id"
    )
  coordinator, count, process_id = found[:3]
  # jax gives each process of SLURM one device; one that has its node to itself takes all of them.
  alone = re.match(r"1($|[(,])", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
  return coordinator, count, process_id, None if alone else found[3]


def meet(coordinator: str, count: int, process_id: int, *, timeout: float) -> None:
  """Waits until all processes have called this.

  Process 0 listens on the coordinator's port, which it then leaves to jax.

  Raises:
    BadRequest: naming the processes that didn't come in time.
  """
  deadline = time.monotonic() + timeout
  if process_id == 0:
    _host(coordinator, count, deadline, timeout)
  else:
    _visit(coordinator, count, process_id, deadline, timeout)


def _host(coordinator: str, count: int, deadline: float, timeout: float) -> None:
  port = int(coordinator.rpartition(":")[2])
  there: set[int] = set()
  visitors: list[socket.socket] = []
  verdict = ""
  try:
    server = _listen(port)
  except OSError as e:
    raise BadRequest(f"process 0 can't listen on port {port}: {e.strerror}; give another --coordinator=HOST:PORT") from e
  with server:
    while len(there) < count - 1 and not verdict:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        visitor, _ = server.accept()
        visitor.settimeout(5.0)
        words = visitor.makefile("rb").readline().split()
      except TimeoutError:
        if time.monotonic() >= deadline:
          verdict = _absent([i for i in range(1, count) if i not in there], count, timeout)
        continue
      except OSError:
        continue
      if len(words) != 3 or words[0] != _HELLO.strip() or not all(w.isdigit() for w in words[1:]):
        visitor.close()  # a stranger
        continue
      number, theirs = int(words[1]), int(words[2])
      if theirs != count or not 0 < number < count or number in there:
        verdict = (
            f"process {number} of {theirs} came to a run of {count}"
            if theirs != count or not 0 < number < count
            else f"two processes say that they are number {number} of {count}"
        ) + ": give every process the same --processes and a --process_id of its own"
      there.add(number)
      visitors.append(visitor)
    for visitor in visitors:
      try:
        visitor.sendall((verdict or "go").encode() + b"\n")
        visitor.close()
      except OSError:
        pass
  if verdict:
    raise BadRequest(verdict)


def _listen(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


def _visit(coordinator: str, count: int, process_id: int, deadline: float, timeout: float) -> None:
  host, _, port = coordinator.rpartition(":")
  while True:
    left = deadline - time.monotonic()
    if left <= 0:
      raise BadRequest(
          f"process 0 of {count} didn't listen on {coordinator} within {timeout:g} s: start it, or mend --coordinator"
      )
    try:
      with socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 5.0)) as connection:
        connection.sendall(_HELLO + f"{process_id} {count}\n".encode())
        connection.settimeout(max(left, 0.1) + 5.0)  # process 0 answers at its own deadline
        answer = connection.makefile("rb").readline().decode().strip()
    except TimeoutError:
      answer = ""
    except OSError:
      time.sleep(0.2)
      continue
    if answer == "go":
      return
    if answer:
      raise BadRequest(answer)
    time.sleep(0.2)


def _absent(numbers: list[int], count: int, timeout: float) -> str:
  shown = ", ".join(map(str, numbers[:20])) + (" …" if len(numbers) > 20 else "")
  what = f"process {shown}" if len(numbers) == 1 else f"processes {shown}"
  return f"{what} of {count} didn't join within {timeout:g} s: start them all, or raise --join_timeout"
