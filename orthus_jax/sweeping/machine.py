"""What of this machine each of several runs at once gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path

from orthus_jax.errors import BadRequest


@dataclasses.dataclass(frozen=True)
class Share:
  """A run's part of the machine.

  Attributes:
    cores: numbers of the CPU cores that it may use; empty where the system can't say.
    environment: variables that are its own.
  """

  cores: tuple[int, ...]
  environment: dict[str, str]


def shares(jobs: int, environment: Mapping[str, str] = os.environ) -> list[Share]:
  """The machine shared out.

  Raises:
    BadRequest: if there are GPUs, and fewer than jobs: a run fills the memory of its own.
  """
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  devices = _gpus(environment)
  if devices and jobs > len(devices):
    raise BadRequest(
        f"--jobs={jobs}: there {'is one GPU' if len(devices) == 1 else f'are {len(devices)} GPUs'} here, and a run takes all of"
        f" one's memory: set --jobs={len(devices)}, or JAX_PLATFORMS=cpu"
    )
  visible = [{"CUDA_VISIBLE_DEVICES": ",".join(part)} if part and jobs > 1 else {} for part in split(devices, jobs)]
  return [Share(tuple(part), own) for part, own in zip(split(cores, jobs), visible)]


def split(things: Sequence, parts: int) -> list[list]:
  """As evenly as can be, in order; where there are fewer things than parts, several parts share one."""
  if not things:
    return [[] for _ in range(parts)]
  if len(things) < parts:
    return [[things[i % len(things)]] for i in range(parts)]
  edges = [len(things) * i // parts for i in range(parts + 1)]
  return [list(things[a:b]) for a, b in zip(edges, edges[1:])]


def _gpus(environment: Mapping[str, str]) -> list[str]:
  """NVIDIA's GPUs that jax would use, as CUDA_VISIBLE_DEVICES names them."""
  if environment.get("JAX_PLATFORMS", "").split(",")[0] not in ("", "cuda", "gpu"):
    return []
  if "CUDA_VISIBLE_DEVICES" in environment:
    return [d for d in environment["CUDA_VISIBLE_DEVICES"].split(",") if d]
  found = sorted(p.name.removeprefix("nvidia") for p in Path("/dev").glob("nvidia[0-9]*"))
  return sorted(found, key=int)
