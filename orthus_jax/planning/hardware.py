"""Accelerators by their published figures, and topologies of them.

Sources. TPUs: Google Cloud's documentation, pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)"
(https://cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e, .../tpu7x); data-centre network per chip from the same pages:
per pod, divided by its chips (v5e 6.4 Tbit/s, v6e 25.6 Tbit/s, of 256), per chip (v5p 50, TPU7x 100 Gbit/s), per host of four
chips (v4). v4's page tells its links by a pod's 1.1 PB/s of all-reduces, 268 GB/s a chip, and 24 TB/s of bisection, 47 GB/s for
each of 512 links: taken as six of 50 GB/s each way (v5e's and v6e's all-reduces, 51.2 and 102.4 TB/s, are all their links').
Memory is what the compiler lets a program use, where that is less than the published size. GPUs: NVIDIA's data sheets of the
A100 80GB, H100 and H200 SXM (dense bf16, NVLink both directions together), and a network adapter of 400 Gbit/s
(A100: 200) for each GPU, as in DGX systems. B200: an eighth of the DGX B200 (1,440 GB, 64 TB/s, NVLink 14.4 TB/s), GB200: a
72nd of the GB200 NVL72 (13.4 TB, 576 TB/s, NVLink 130 TB/s, sparse bf16 360 PFLOP/s), each of half its sparse rate where the
dense one isn't told; a GB200's link to its host is half of a superchip's NVLink-C2C, 900 GB/s both ways. Of these two NVIDIA's
own pages weren't at hand; memory and links are as MLCommons' inference_results_v6.0 and v6.1 describe such systems.

Without a source: TPU7x's link to its host, taken as v6e's, and the rate between the two cores of its chip, taken as that of
all the chip's links together.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import difflib
import importlib.util
import math
import os
import re
import sys
from typing import Any

import jax
import numpy as np

from orthus_jax.errors import BadRequest

GIB = 1 << 30
_LIBTPU = {
  "TPU_SKIP_MDS_QUERY": "1",  # it would look for a TPU machine's metadata
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it only compiles, so that several processes don't disturb each other
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator as its maker publishes it; memory and rates are those of one device.

  Attributes:
    name: as a topology names it.
    platform: "tpu", "gpu" or "cpu".
    memory: bytes that a program can use.
    flops: dense bf16 FLOP/s.
    bandwidth: bytes/s of its memory.
    link: bytes/s that it can send to its neighbours over all its links at once, one direction.
    torus: dimensions of the network between neighbours; 0 for a switch.
    wrap: a torus closes along a dimension that is a multiple of this.
    network: bytes/s that it can send beyond its slice (or node).
    host_link: bytes/s to its host, one direction.
    largest: chips of the largest slice (or node).
    devices: that jax sees of a chip; each has its share of memory, FLOP/s, links and network, and the links are the chip's: one
      device has all of them where the others send nothing.
  """

  name: str
  platform: str
  memory: int
  flops: float
  bandwidth: float
  link: float
  torus: int
  wrap: int
  network: float
  host_link: float
  largest: int
  devices: int = 1


CHIPS = {
    c.name: c
    for c in (
        Chip("v4", "tpu", int(30.75 * GIB), 275e12, 1228e9, 300e9, 3, 4, 6.25e9, 16e9, 4096),
        Chip("v5e", "tpu", int(15.75 * GIB), 197e12, 819e9, 200e9, 2, 16, 3.125e9, 16e9, 256),
        Chip("v5p", "tpu", 95 * GIB, 459e12, 2765e9, 600e9, 3, 4, 6.25e9, 16e9, 6144),
        Chip("v6e", "tpu", int(31.25 * GIB), 918e12, 1638e9, 400e9, 2, 16, 12.5e9, 32e9, 256),
        # Two cores, each a device with half of 192 GiB, 2,307 TFLOP/s, 7,380 GB/s, 600 GB/s one way and 100 Gbit/s.
        Chip("tpu7x", "tpu", int(94.74 * GIB), 1153.5e12, 3690e9, 300e9, 3, 4, 6.25e9, 16e9, 9216, devices=2),
        Chip("a100", "gpu", int(80e9), 312e12, 2039e9, 300e9, 0, 0, 25e9, 32e9, 8),
        Chip("h100", "gpu", int(80e9), 989e12, 3350e9, 450e9, 0, 0, 50e9, 64e9, 8),
        Chip("h200", "gpu", int(141e9), 989e12, 4800e9, 450e9, 0, 0, 50e9, 64e9, 8),
        Chip("b200", "gpu", int(180e9), 2250e12, 8000e9, 900e9, 0, 0, 50e9, 64e9, 8),
        Chip("gb200", "gpu", int(186e9), 2500e12, 8000e9, 900e9, 0, 0, 50e9, 225e9, 72),
        # Nobody publishes figures of "a CPU": a plan for one shows sizes and shares, and no times.
        Chip("cpu", "cpu", 0, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, 4096),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """Equal slices (or nodes) of one kind of chip.

  Attributes:
    chip: the kind.
    shape: chips along each dimension of a slice.
    slices: how many of them.
  """

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def per_slice(self) -> int:
    """Devices of a slice."""
    return math.prod(self.shape) * self.chip.devices

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    return self.per_slice * self.slices

  def __str__(self) -> str:
    name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
    return name if self.slices == 1 else f"{self.slices} x {name}"


def parse(text: str, slices: int = 1) -> Topology:
  """Reads CHIP:SHAPE, such as v5e:16x16, v5p:4x4x4, h100:8 or cpu:8.

  Raises:
    BadRequest: on an unknown chip or a shape that it doesn't come in.
  """
  name, colon, shape = text.strip().lower().partition(":")
  if name not in CHIPS:
    alias = re.fullmatch(r"(v4|v5e|v5litepod|v5p|v6e|tpu7x)-(\d+)", name)
    near = difflib.get_close_matches(name, CHIPS, n=1, cutoff=0.0)[0]
    hint = (
      "counts cores or chips, not a shape: write the shape in chips, such as v5p:4x4x4"
      if alias
      else f"the nearest is {near}"
    )
    raise BadRequest(f"unknown topology {text!r}: {hint} (chips: {', '.join(CHIPS)})")
  chip = CHIPS[name]
  if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
    raise BadRequest(f"--topology={text}: give its shape in chips, such as {_example(chip)}")
  sizes = tuple(int(n) for n in shape.split("x"))
  if slices < 1:
    raise BadRequest(f"--slices={slices} must be at least 1")
  wanted = chip.torus or 1
  if len(sizes) != wanted:
    raise BadRequest(f"--topology={text}: {name} has {wanted} dimension{'s' * (wanted > 1)}: write {_example(chip)}")
  if math.prod(sizes) > chip.largest:
    kind = "slice" if chip.torus else "node"
    raise BadRequest(
      f"--topology={text}: the largest {kind} of {name} has {chip.largest} chips; use --slices for several"
    )
  return Topology(chip, sizes, slices)


def _example(chip: Chip) -> str:
  return f"{chip.name}:{ {3: '4x4x4', 2: '16x16'}.get(chip.torus, '8') }"


def named(text: str) -> Topology:
  """The topology that `str` gives as this text.

  Raises:
    BadRequest: if none does.
  """
  slices, several, name = text.rpartition(" x ")
  return parse(name, int(slices)) if several and slices.isdecimal() else parse(text)


def devices(topology: Topology) -> list[Any]:
  """What a program for a topology is compiled for: described TPUs, or this machine's CPU devices as stand-ins.

  Raises:
    BadRequest: if libtpu is missing, or doesn't know the shape, or there are too few CPU devices.
  """
  if topology.chip.platform != "tpu":
    found = jax.devices("cpu")
    if len(found) < topology.devices:
      raise BadRequest(
        f"{topology} needs {topology.devices} CPU devices and jax has {len(found)}: set jax_num_cpu_devices"
      )
    return found[: topology.devices]
  from jax.experimental import topologies

  more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
  if math.prod(topology.shape) == 1:
    more["chips_per_host_bounds"] = (1, 1, 1)  # libtpu takes a host to have four, which is no part of such a shape
  name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
  for variable, value in _LIBTPU.items():
    os.environ.setdefault(variable, value)
  try:
    with _quiet():
      found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
  except Exception as e:  # the plug-in raises whatever it likes
    if "libtpu" in str(e).lower() and not _has_libtpu():
      raise BadRequest("planning for TPUs needs libtpu: pip install 'orthus_jax[tpu]'") from e
    raise BadRequest(f"libtpu can't describe --topology={name}: {str(e).splitlines()[0][:200]}") from e
  # v4 without fused cores shows two devices a chip; a mesh of its is of chips. A TPU7x's cores can't be fused.
  return [d for d in found if getattr(d, "core_on_chip", 0) < topology.chip.devices]


def _has_libtpu() -> bool:
  return importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Standard error to nowhere, also of C++ code: libtpu complains at length that this machine is no TPU's."""
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def places(topology: Topology, devices: list[Any]) -> np.ndarray:
  """Where each device stands: [devices, 2 + dimensions], its slice first and last its place on the chip."""
  if topology.chip.platform == "tpu":
    dimensions = len(topology.shape)
    return np.asarray(
      [(getattr(d, "slice_index", None) or 0, *d.coords[:dimensions], getattr(d, "core_on_chip", 0)) for d in devices]
    )
  n = np.arange(len(devices))
  return np.stack([n // topology.per_slice, n % topology.per_slice, np.zeros_like(n)], axis=1)
