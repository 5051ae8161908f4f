"""What Google Cloud calls TPUs, and how many hosts they have.

Sources: "About TPUs in GKE" (https://cloud.google.com/kubernetes-engine/docs/concepts/tpus: node selectors, shapes, chips of a
host), "TPU software versions" (https://cloud.google.com/tpu/docs/runtimes), and the pages of `planning/hardware.py`.
"""

from __future__ import annotations

import dataclasses
import math

from orthus_jax.errors import BadRequest
from orthus_jax.planning.hardware import Topology

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones are of cubes of 4 x 4 x 4


@dataclasses.dataclass(frozen=True)
class _Names:
  """Of one kind of chip.

  Attributes:
    gke: the node selector cloud.google.com/gke-tpu-accelerator.
    type: what accelerator types begin with.
    counted: what they count on a chip: TensorCores of v4, v5p and TPU7x, chips of the others.
    runtime: the TPU VM's software; "" where none is published.
  """

  gke: str
  type: str
  counted: int
  runtime: str


_NAMES = {
    "v4": _Names("tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": _Names("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": _Names("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": _Names("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e"),
    "tpu7x": _Names("tpu7x", "tpu7x", 2, ""),
}


def check(topology: Topology) -> None:
  """Refuses a shape that Google Cloud doesn't offer, of which a cluster would never find a node.

  Raises:
    BadRequest: naming those that it does.
  """
  given = shape(topology)
  if len(topology.shape) == 2:
    if given not in _FLAT:
      raise BadRequest(f"--topology={topology.chip.name}:{given}: {topology.chip.name} comes in {', '.join(_FLAT)}")
    return
  if given in _SMALL or (all(n % 4 == 0 for n in topology.shape) and list(topology.shape) == sorted(topology.shape)):
    return
  raise BadRequest(
      f"--topology={topology.chip.name}:{given}: {topology.chip.name} comes in {', '.join(_SMALL)} and in multiples of four,"
      " the smallest first, as 4x4x8"
  )


def shape(topology: Topology) -> str:
  """As node selectors and gcloud have it: 16x16."""
  return "x".join(map(str, topology.shape))


def chips_per_host(topology: Topology) -> int:
  """4, but of a single chip."""
  return min(_chips(topology), 4)


def hosts(topology: Topology) -> int:
  """Of one slice."""
  return _chips(topology) // chips_per_host(topology)


def _chips(topology: Topology) -> int:
  """Of one slice."""
  return math.prod(topology.shape)


def gke_accelerator(topology: Topology) -> str:
  """The node selector cloud.google.com/gke-tpu-accelerator."""
  return _NAMES[topology.chip.name].gke


def accelerator_type(topology: Topology) -> str:
  """v5litepod-256; of v4, v5p and TPU7x the count of TensorCores, which stands for one shape of several."""
  names = _NAMES[topology.chip.name]
  return f"{names.type}-{_chips(topology) * names.counted}"


def runtime(topology: Topology) -> str:
  """The software version of its TPU VMs.

  Raises:
    BadRequest: if none is known.
  """
  if not (found := _NAMES[topology.chip.name].runtime):
    raise BadRequest(f"{topology}: no software for TPU VMs of this chip is published: choose --on=jobset or --on=xpk")
  return found
