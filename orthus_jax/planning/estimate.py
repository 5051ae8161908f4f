"""From a device's work to a step's time: a bound at published rates, and a calibrated time.

The bound is the largest of three times, as if each ran at its published rate and all overlapped: FLOPs over peak, bytes
over memory bandwidth, collectives over links.

The calibrated time is a sum over the program's instructions, which one core runs one after another. Each takes the longer
of its FLOPs and its bytes, or as long as the collectives that it doesn't hide, at the shares of the published rates that
`Calibration` states. Copies that the compiler starts ahead of their use run beside them, as far as the memory's bandwidth goes.
The shares are fitted to published runs (`published.py`), and are few on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from orthus_jax.planning.hardware import Chip, Topology
from orthus_jax.planning.work import Collective, Op, Work

# Bytes that a device sends, per byte of a collective's whole array, over n devices: the cheapest algorithm's.
_SENT = {
  "all-gather": lambda n: (n - 1) / n,
  "reduce-scatter": lambda n: (n - 1) / n,
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "all-to-all": lambda n: (n - 1) / n,
  "ragged-all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Shares of published rates that programs reach.

  Attributes:
    products: of the peak, by matrix products.
    attention: of the peak, by attention kernels.
    bandwidth: of the memory's.
    links: of the links within a slice, by collectives.
    network: of the network between slices, likewise.
  """

  products: float
  attention: float
  bandwidth: float
  links: float
  network: float


CALIBRATION = Calibration(products=0.68, attention=0.35, bandwidth=0.60, links=0.40, network=0.50)


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind over the same mesh axes, in one step of one device.

  Attributes:
    kind: such as "all-gather".
    axes: the mesh axes that take part.
    count: how many run.
    bytes: of the arrays gathered, scattered or reduced.
    link_seconds: over the links within a slice, at published rates.
    network_seconds: between slices.
    hidden_seconds: of the links' time, what goes on while the instructions compute that the compiler has spread it over.
  """

  kind: str
  axes: tuple[str, ...]
  count: int
  bytes: int
  link_seconds: float
  network_seconds: float
  hidden_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A step's times in seconds.

  Attributes:
    compute, memory, network, host: each alone at published rates.
    bound: the largest.
    limit: which that is.
    calibrated: what to expect.
  """

  compute: float
  memory: float
  network: float
  host: float
  bound: float
  limit: str
  calibrated: float


def estimate(work: Work, traffic: Sequence[Traffic], chip: Chip, calibration: Calibration = CALIBRATION) -> Estimate:
  """A step's times on one chip."""
  parts = {
    "compute": work.flops / chip.flops,
    "memory": work.bytes / chip.bandwidth,
    "network": sum(t.link_seconds + t.network_seconds for t in traffic),
    "host": work.host_bytes / 2 / chip.host_link,  # out and back go at once, in both directions
  }
  limit = max(parts, key=lambda part: parts[part])
  own = sum(o.times * op_seconds(o, chip, calibration) for o in work.ops if not o.beside)
  own = max(own, parts["memory"] / calibration.bandwidth)  # copies that run beside instructions share the memory with them
  sent = sum(
    (t.link_seconds - t.hidden_seconds) / calibration.links + t.network_seconds / calibration.network for t in traffic
  )
  calibrated = max(own + sent, parts["host"])
  return Estimate(**parts, bound=parts[limit], limit=limit, calibrated=calibrated)


def op_seconds(op: Op, chip: Chip, c: Calibration) -> float:
  """One run of an instruction: the longer of its FLOPs and its bytes."""
  flops = op.products / (chip.flops * c.products) + op.attention / (chip.flops * c.attention)
  return max(flops, op.bytes / (chip.bandwidth * c.bandwidth))


def traffic(
  work: Work,
  mesh_shape: dict[str, int],
  topology: Topology,
  places: np.ndarray,
  calibration: Calibration = CALIBRATION,
) -> list[Traffic]:
  """Collectives by kind and mesh axes, the dearest first.

  Args:
    work: of one device.
    mesh_shape: devices by mesh axis.
    topology: that the mesh lies on.
    places: where each device stands, in the order of the mesh; see `hardware.places`.
    calibration: says how much of a collective's time passes while a fusion computes.
  """
  runs = {c.chain: times for c, times in work.collectives() if c.chain}
  room: dict[str, float] = {}  # of each chain, seconds of one run
  for op in work.ops if topology.chip.flops else ():
    for chain in op.carries:
      # A whole loop may run meanwhile.
      seconds = op_seconds(op, topology.chip, calibration) * op.times / runs.get(chain, op.times)
      room[chain] = room.get(chain, 0.0) + seconds / len(op.carries)
  rows: dict[tuple[str, tuple[str, ...]], list[float]] = {}
  known: dict[tuple, tuple] = {}
  for collective, times in work.collectives():
    if collective.slices:
      axes, link = ("data",), 0.0
      network = _SENT[collective.kind](collective.slices) * collective.bytes / topology.chip.network
    else:
      groups = _groups(collective, mesh_shape)
      key = (groups.shape, groups.tobytes())
      if key not in known:
        known[key] = (_axes(groups, mesh_shape), _Reach.of(groups, topology, places))
      axes, reach = known[key]
      link, network = reach.seconds(collective, topology.chip)
    row = rows.setdefault((collective.kind, axes), [0, 0, 0.0, 0.0, 0.0])
    hidden = min(link, room.get(collective.chain, 0.0) * calibration.links)
    for k, v in enumerate((1, collective.bytes, link, network, hidden)):
      row[k] += times * v
  found = [Traffic(kind, axes, int(r[0]), int(r[1]), r[2], r[3], r[4]) for (kind, axes), r in rows.items()]
  return sorted(found, key=lambda t: -(t.link_seconds + t.network_seconds) or -t.bytes)


def _groups(collective: Collective, mesh_shape: dict[str, int]) -> np.ndarray:
  if collective.groups is None or collective.groups.size == 0:
    return np.arange(math.prod(mesh_shape.values()))[None]
  return collective.groups


def _axes(groups: np.ndarray, mesh_shape: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes along which a group's members differ."""
  at = np.stack(np.unravel_index(groups, tuple(mesh_shape.values())))
  differs = (at != at[:, :, :1]).any(axis=(1, 2))
  return tuple(a for a, d in zip(mesh_shape, differs) if d)


@dataclasses.dataclass(frozen=True)
class _Reach:
  """How a group lies on the machine: devices within a slice, of one chip, slices, and what share of the links it can use."""

  within: int
  of_chip: int
  slices: int
  share: float

  @classmethod
  def of(cls, groups: np.ndarray, topology: Topology, places: np.ndarray) -> _Reach:
    at = places[groups[0]]
    slices = len(np.unique(at[:, 0]))
    within = max(groups.shape[1] // slices, 1)
    of_chip = len(np.unique(at[:, -1])) if topology.chip.devices > 1 else 1
    torus = topology.chip.torus
    if not torus:
      return cls(within, of_chip, slices, 1.0)
    # A ring uses the links of the dimensions that it runs along, both ways where the torus closes there.
    share = 0.0
    for d, size in enumerate(topology.shape):
      span = int(at[:, 1 + d].max() - at[:, 1 + d].min()) + 1
      if span > 1:
        share += (1.0 if span == size and size % topology.chip.wrap == 0 else 0.5) / torus
    return cls(within, of_chip, slices, share or 1.0)

  def seconds(self, collective: Collective, chip: Chip) -> tuple[float, float]:
    """(over links, between slices)."""
    if not chip.link:
      return 0.0, 0.0
    sent = _SENT[collective.kind]
    if collective.kind == "collective-permute":  # its pairs aren't a group
      return (
        (collective.bytes / (chip.link * self.share), 0.0)
        if self.slices == 1
        else (0.0, collective.bytes / chip.network)
      )
    link = self._bytes(collective) / (chip.link * self.share)
    # Between slices each device of a group carries its share of the array.
    network = sent(self.slices) * collective.bytes / self.within / chip.network if self.slices > 1 else 0.0
    return link, network

  def _bytes(self, collective: Collective) -> float:
    """What a device sends over its links within the slice."""
    sent, within = _SENT[collective.kind], self.within
    if within == 1:
      return 0.0
    if self.of_chip == 1 or collective.kind.endswith("all-to-all"):
      return sent(within) * collective.bytes
    # An array that all have in the end crosses a chip's links once, half by each device, which pass it on to each other; a
    # group within one chip does nothing else, at the rate of all its links.
    chips = within // self.of_chip
    return sent(chips if chips > 1 else within) * collective.bytes / self.of_chip
