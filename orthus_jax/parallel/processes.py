"""Joining the processes of one run, before any device is touched.

Who is who comes from flags, from the launcher's environment variables (`launchers.py`), or from jax's own detection of a
cluster (GKE, Cloud TPU). jax ends a process from inside its C++ when another one never comes, and doesn't say which; so the
processes first meet on the coordinator's port, where whoever is missing can be named.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from orthus_jax.errors import BadRequest
from orthus_jax.parallel import launchers

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
    coordinator: HOST:PORT of process 0; enough by itself where a launcher says the rest.
    processes: how many, "auto" to have jax look for a cluster, or None to do so where the environment speaks of one.
    process_id: which of them this one is.
    timeout: seconds to wait for the others.

  Raises:
    BadRequest: on flags that don't go together, where no cluster is found, or naming processes that never joined.
  """
  timeout = _TIMEOUT if timeout is None else timeout
  count, local = _count(processes), None
  named = any(v is not None for v in (coordinator, count, process_id))
  if count == 1 or (processes is None and not named and not launchers.in_cluster(os.environ)):
    return
  if coordinator is not None and count is None and process_id is None:
    if (place := launchers.find(os.environ)) and place.count > 1:  # the launcher says the rest
      count, process_id, local = place.count, place.number, place.local
  if not named:
    coordinator, count, process_id, local = _detect(timeout)
  if count is None or coordinator is None or process_id is None:
    given = {"--processes": count, "--coordinator": coordinator, "--process_id": process_id}
    missing = " and ".join(f for f, v in given.items() if v is None)
    raise BadRequest(f"{missing} missing: give --coordinator=HOST:PORT --processes=N --process_id=I together")
  if not 0 <= process_id < count:
    raise BadRequest(f"--process_id={process_id} must lie in 0..{count - 1}, as there are --processes={count}")
  host, _, port = coordinator.rpartition(":")
  if count > 1 and (not host or not port.isdigit() or not 0 < int(port) < 65536):
    raise BadRequest(f"--coordinator={coordinator} must be HOST:PORT of process 0")
  if count > 1:
    import jax

    meet(coordinator, count, process_id, timeout=timeout)
    _keep_stdout()
    _without_proxy(coordinator)
    jax.distributed.initialize(
        coordinator, count, process_id, local_device_ids=local, cluster_detection_method="deactivate",
        initialization_timeout=int(max(timeout, 60)),
    )  # fmt: skip


def _keep_stdout() -> None:
  """Leaves standard output to Python: gloo, which carries what CPUs send each other, prints there from C++."""
  sys.stdout.flush()
  sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)


def _without_proxy(coordinator: str) -> None:
  """Has gRPC, which jax talks to process 0 with, reach it directly, whatever http_proxy and its like say."""
  import jax

  jax.config.update("jax_check_proxy_envs", False)  # a warning of what is seen to here
  if not any(os.environ.get(n) for n in ("grpc_proxy", "https_proxy", "http_proxy")):
    return
  excepted = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")  # gRPC reads the first that is there
  host = coordinator.rpartition(":")[0].strip("[]")
  os.environ["no_grpc_proxy"] = f"{excepted},{host}" if excepted else host


def _count(processes: str | None) -> int | None:
  if processes is None or processes == "auto":
    return None
  if not processes.isdigit() or int(processes) < 1:
    raise BadRequest(f"--processes={processes} must be a number from 1, or auto")
  return int(processes)


def _detect(timeout: float) -> tuple[str, int, int, list[int] | None]:
  """(coordinator, processes, this one's number, its devices) as the launcher's variables say, or as jax finds them."""
  ask = "give every process --coordinator, --processes and --process_id"
  place = launchers.find(os.environ)
  if place is not None:
    if place.count > 1 and place.coordinator is None:
      raise BadRequest(
          f"{place.seen} says that this is process {place.number} of {place.count}, but not where process 0 listens: give"
          " every process --coordinator=HOST:PORT (or all of --coordinator, --processes and --process_id); --processes=1"
          " trains alone"
      )
    return place.coordinator or "", place.count, place.number, place.local
  try:
    from jax._src import clusters  # jax has no public name for it

    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout))
  except Exception as e:  # whatever a metadata server may do
    raise BadRequest(f"the cluster can't be read: {e}; {ask}") from e
  if None in found[:3]:
    if hints := launchers.hints(os.environ):
      raise BadRequest(
          f"{hints}: there seem to be several processes, but not which of them this is; {ask}; --processes=1 trains alone"
      )
    raise BadRequest(f"no cluster is found (SLURM, Open MPI, torchrun, GKE, Cloud TPU): {ask}")
  return found


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
