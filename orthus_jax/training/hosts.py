"""What several processes of one run agree on, and what they hold together. All of it is nothing much for one process.

Process 0 writes: logs, metrics, samples, report. What it computes alone (samples, scores) it computes on its own devices
from a copy of the parameters, while the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import socket
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
import numpy as np
from orbax.checkpoint import multihost

from orthus_jax.config import MeshConfig
from orthus_jax.errors import BadRequest
from orthus_jax.parallel import mesh as mesh_lib

PIECE = 1 << 28  # bytes of an array that are gathered at once
_MESSAGE = 500
_NAME = 64  # bytes of a machine's name
_PATIENCE = 24 * 3600  # seconds that processes wait for one that computes alone; a lost one is noticed by jax itself


def primary() -> bool:
  """Whether this is the process that writes."""
  return jax.process_index() == 0


def several() -> bool:
  """Whether the run has more than this process."""
  return jax.process_count() > 1


def wait(name: str, *, patience: int = _PATIENCE) -> None:
  """Returns once every process has come here, within so many seconds; needs no device. A name serves once."""
  if several():
    multihost.get_barrier_sync_fn()(key=f"orthus {name}", timeout_ms=patience * 1000)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """A block that fails on all processes where it fails on one with a BadRequest, so that none waits for it.

  Raises:
    BadRequest: its own, or another process's, saying whose.
  """
  error: BadRequest | None = None
  try:
    yield
  except BadRequest as e:
    error = e
  said = agree(str(error) if error else None)
  if error is None and said is not None:
    error = BadRequest(said)
  if error is not None:
    raise error


def agree(text: str | None) -> str | None:
  """What this process has to say, or else what the first of the others has, saying whose it is; None where none has."""
  if not several():
    return text
  mine = np.zeros(_MESSAGE, np.uint8)
  encoded = (text or "").encode()[:_MESSAGE]
  mine[: len(encoded)] = np.frombuffer(encoded, np.uint8)
  for i, other in enumerate(gather(mine)):
    said = other.tobytes().rstrip(b"\0").decode(errors="replace")
    if said and text is None:
      text = said if said.startswith("process ") else f"process {i}: {said}"
  return text


def gather(x: np.ndarray) -> np.ndarray:
  """A small array of each process, [processes, ...]; every process must bring one."""
  return np.asarray(multihost_utils.process_allgather(x)) if several() else x[None]


def names() -> list[str]:
  """Of the machines, by process."""
  mine = np.zeros(_NAME, np.uint8)
  name = socket.gethostname().encode()[:_NAME]
  mine[: len(name)] = np.frombuffer(name, np.uint8)
  return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in gather(mine)]


def first_alone(f: Callable[[], Any]) -> Any:
  """What `f` returns, process 0's call first: for what it makes on a disk that all share."""
  with together():
    result = f() if primary() else None
  with together():
    return result if primary() else f()


def fetch(x: jax.Array | np.ndarray) -> np.ndarray:
  """A whole array on this host; every process must ask for it."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
    return np.concatenate([p for p in pieces(x)]) if x.ndim and x.nbytes > PIECE else _gather(x)
  return np.asarray(x)


def pieces(x: jax.Array | np.ndarray) -> Iterator[np.ndarray]:
  """`fetch` in slices along the first axis, so that no device ever holds the whole of a large array."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated or not x.ndim:
    yield np.asarray(x)
    return
  rows = max(1, PIECE * x.shape[0] // x.nbytes)
  for begin in range(0, x.shape[0], rows):
    yield _gather(x[begin : begin + rows])


def _gather(x: jax.Array) -> np.ndarray:
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def own_mesh(*, devices: int | None = None) -> Mesh:
  """A mesh of this process's devices alone (the first so many), for what one process computes without the others."""
  return mesh_lib.make_mesh(MeshConfig(), devices=jax.local_devices()[:devices])


def own_rows(shardings: Any) -> np.ndarray:
  """The rows of the global batch that this process's devices hold, in order.

  Args:
    shardings: pairs (sharding, global shape) of a batch's arrays.
  """
  rows: set[int] = set()
  for sharding, shape in shardings:
    for index in sharding.addressable_devices_indices_map(tuple(shape)).values():
      rows.update(range(*index[0].indices(shape[0])))
  return np.asarray(sorted(rows))


def place_batch(batch: Any, shardings: Any, rows: np.ndarray, size: int) -> Any:
  """A global batch from the rows that each process made.

  Args:
    batch: a tree of arrays of `rows` alone.
    shardings: where the global arrays lie.
    rows: which rows of the global batch they are.
    size: B, rows of the global batch.
  """
  if not several():
    return jax.device_put(batch, shardings)
  place = {int(r): i for i, r in enumerate(rows)}

  def one(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
      wanted = range(*index[0].indices(size))
      return x[(slice(place[wanted[0]], place[wanted[-1]] + 1), *index[1:])]

    return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

  return jax.tree.map(one, batch, shardings)
