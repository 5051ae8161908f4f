"""What one device does in a compiled step: FLOPs, bytes and collectives, with loops counted as often as they run.

XLA's own cost analysis counts a loop's body once, and knows nothing of what happens inside a hand-written kernel.
FLOPs are those of matrix products, convolutions and attention kernels; elementwise work shows in the bytes.
Bytes are those of the device's main memory: what the compiler keeps on the chip (a memory space of its own) is free, and
of an array that is only sliced, the slice counts.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import re

import numpy as np

from orthus_jax.planning import hlo, instruction_bytes, instruction_flops, trip_count
from orthus_jax.planning.hlo import Array, Computation, Instruction, Module

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Instructions that move nothing: names for what is there already, or the end of something counted at its start.
_FREE = frozenset((
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
    "opt-barrier", "copy-done", "async-done", "async-update", "send-done", "recv-done", "all-gather-done",
    "all-reduce-done", "collective-permute-done", "add-dependency",
))  # fmt: skip
_COPIES = ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start", "send", "recv")
# What goes from slice to slice is handed to the runtime of several slices by a send, whose targets are "{slices}x{devices}".
_BETWEEN_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}.*?_xla_megascale_transfer_type="([A-Z_]+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective.

  Attributes:
    kind: such as "all-gather".
    bytes: of its whole array on one device: gathered, ahead of being scattered, reduced or permuted.
    groups: partitions that take part together [groups, size]; None for all. Pairs for a permutation.
    chain: names what computes meanwhile: the fusions that the compiler has spread it over, or the instructions between its
      start and its end; empty if everything waits for it.
    slices: that the runtime has take part, between which each device exchanges its own array; 0 within a slice.
  """

  kind: str
  bytes: int
  groups: np.ndarray | None
  chain: str = ""
  slices: int = 0


@dataclasses.dataclass
class Op:
  """One instruction of a device's program, `times` over.

  Attributes:
    name: of the instruction.
    source: where in the source program it comes from.
    times: how often it runs in a step.
    products: FLOPs of matrix products and convolutions, of one run.
    attention: FLOPs of attention kernels.
    bytes: to and from main memory.
    host_bytes: between the device and its host.
    collectives: in it.
    beside: a copy that runs beside the instructions between its start and its end.
    carries: the chains of the collectives that go on meanwhile.
  """

  name: str
  source: str
  times: int
  products: float = 0.0
  attention: float = 0.0
  bytes: int = 0
  host_bytes: int = 0
  collectives: tuple[Collective, ...] = ()
  beside: bool = False
  carries: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Work:
  """A step of one device.

  Attributes:
    ops: everything that takes time.
    unknown_loops: loops whose number of rounds can't be told from the text; they are counted once.
    unknown_kernels: hand-written kernels whose FLOPs aren't known; they are counted as none.
  """

  ops: tuple[Op, ...]
  unknown_loops: tuple[str, ...] = ()
  unknown_kernels: tuple[str, ...] = ()

  @property
  def products(self) -> float:
    return sum(o.times * o.products for o in self.ops)

  @property
  def attention(self) -> float:
    return sum(o.times * o.attention for o in self.ops)

  @property
  def flops(self) -> float:
    return self.products + self.attention

  @property
  def bytes(self) -> int:
    return sum(o.times * o.bytes for o in self.ops)

  @property
  def host_bytes(self) -> int:
    return sum(o.times * o.host_bytes for o in self.ops)

  def collectives(self) -> Iterator[tuple[Collective, int]]:
    """(collective, how often it runs)."""
    for o in self.ops:
      for c in o.collectives:
        yield c, o.times


def count(module: Module, *, rounds: int = 1) -> Work:
  """Walks a module from its entry; `rounds` is how often loops run whose number of rounds can't be told."""
  return _Counter(module, rounds).run()


class _Counter:
  """One walk over a module."""

  def __init__(self, module: Module, rounds: int):
    self._module = module
    self._rounds = rounds
    self._ops: list[Op] = []
    self._loops: list[str] = []
    self._kernels: list[str] = []
    self._running: dict[str, str] = {}  # chains of collectives that were started, by the instruction that the next one names
    self._waiting: set[str] = set()  # those of them that wait for their operands

  def run(self) -> Work:
    self._walk(self._module.computations[self._module.entry], 1)
    return Work(tuple(self._ops), tuple(dict.fromkeys(self._loops)), tuple(dict.fromkeys(self._kernels)))

  def _walk(self, computation: Computation, times: int, *, chain: str = "", beside: bool = False) -> None:
    """Adds a computation's instructions; those of one that was started and goes on beside others are of its `chain`."""
    chains: set[str] = set()
    for i in computation:
      if self._follow(i) or i.opcode in _FREE or i.opcode.endswith("-done") or "collective-done" in i.name:
        continue
      if i.opcode == "while":
        trips = trip_count.trip_count(self._module, computation, i)
        if trips is None:
          self._loops.append(i.op_name or i.name)
        self._walk(self._module.computations[i.called("body")], times * (self._rounds if trips is None else trips))
      elif i.opcode == "call":
        self._walk(self._module.computations[i.called("to_apply")], times, chain=chain, beside=beside)
      elif i.opcode == "async-start":
        self._start(i, self._module.computations[i.called("calls")], times)
      elif i.opcode == "conditional":
        self._walk(self._dearest(i), times)
      else:
        started = i.opcode.removesuffix("-start") in _COLLECTIVES and i.opcode.endswith("-start")
        own = f"{computation.name}/{i.name}" if started else chain
        self._add(computation, i, times, chains, chain=own, beside=beside or i.opcode in _COPIES)
        if started:
          self._running[i.name] = own

  def _start(self, i: Instruction, called: Computation, times: int) -> None:
    """What a start begins. A collective is under way from there, or from the update that hands its operands to it."""
    chain, before = f"{called.name}/{i.name}", len(self._ops)
    self._walk(called, times, chain=chain, beside=True)
    if any(o.collectives for o in self._ops[before:]):
      self._running[i.name] = chain
      if not i.operands:
        self._waiting.add(i.name)

  def _follow(self, i: Instruction) -> bool:
    """Keeps account of the collectives under way where an instruction hands on or ends one; says whether it does."""
    if i.opcode == "async-update" and i.operands[0] in self._running:
      self._waiting.discard(i.operands[0])
      self._running[i.name] = self._running.pop(i.operands[0])
      return True
    return i.opcode.endswith("-done") and self._running.pop(i.operands[0], None) is not None

  def _dearest(self, i: Instruction) -> Computation:
    """Of a conditional's branches, of which only one runs, the one that computes most."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    names = (
      re.findall(r"[\w.\-]+", listed.group(1))
      if listed
      else [i.called("true_computation"), i.called("false_computation")]
    )
    return max((self._module.computations[n] for n in names), key=lambda c: (self._flops(c)[0], len(c.instructions)))

  def _add(
    self, computation: Computation, i: Instruction, times: int, chains: set[str], *, chain: str, beside: bool
  ) -> None:
    products, attention = self._own_flops(computation, i)
    met = tuple(self._collectives(computation, i, where=computation.name))
    carries = tuple(dict.fromkeys(c.chain for c in met if c.chain))
    if chain:
      met, beside = tuple(dataclasses.replace(c, chain=chain) for c in met), True
    elif not beside:
      carries += tuple(c for name, c in self._running.items() if name not in self._waiting)
    # One that a TPU spreads over a chain of fusions is written in each, and counts once.
    first = {c.chain: c for c in met if c.chain and c.chain not in chains}
    collectives = (*(c for c in met if not c.chain), *first.values())
    chains.update(carries)
    moved, host = instruction_bytes.main_and_host(self._module, computation, i)
    if products or attention or moved or host or met:
      beside = beside and not (products or attention)
      self._ops.append(Op(i.name, i.op_name, times, products, attention, moved, host, collectives, beside, carries))

  def _own_flops(self, computation: Computation, i: Instruction) -> tuple[float, float]:
    def shape(k: int) -> Array:
      return computation.instructions[i.operands[k]].arrays[0]

    if i.opcode == "fusion":
      return self._flops(self._module.computations[i.called("calls")])
    if i.opcode == "convolution":
      key = re.sub(r"metadata=\{[^}]*\}.*", "", i.attributes)
      return instruction_flops.convolution(i.arrays[0].dims, shape(0).dims, shape(1).dims, key), 0.0
    if i.opcode == "dot":
      return instruction_flops.dot(i.arrays[0], shape(0), i.attributes), 0.0
    if i.opcode == "custom-call" and ("tpu_custom_call" in i.attributes or "triton" in i.attributes):
      flops = instruction_flops.kernel(i)
      if flops:
        return 0.0, flops
      self._kernels.append(i.name)
    return 0.0, 0.0

  @functools.cache  # noqa: B019  (a walk ends with its counter)
  def _flops_of(self, name: str) -> tuple[float, float]:
    parts = [self._own_flops(self._module.computations[name], i) for i in self._module.computations[name]]
    return sum(p[0] for p in parts), sum(p[1] for p in parts)

  def _flops(self, computation: Computation) -> tuple[float, float]:
    return self._flops_of(computation.name)

  def _collectives(self, computation: Computation, i: Instruction, *, where: str) -> Iterator[Collective]:
    """Collectives in an instruction of the computation `where`, or of one that it fuses."""
    kind = i.opcode.removesuffix("-start")
    if i.opcode == "send":
      sent = _BETWEEN_SLICES.search(i.attributes)
      if sent and (kind := sent.group(2).lower().replace("_", "-")) in _COLLECTIVES:
        yield Collective(kind, i.arrays[0].bytes, None, slices=sent.group(1).count(",") + 1)
    elif i.opcode == "fusion":
      inner = self._module.computations[i.called("calls")]
      for j in inner:
        yield from self._collectives(inner, j, where=where)
    elif kind in _COLLECTIVES:
      spread, chain = re.search(r'chain_id="(\d+)"', i.attributes), ""
      if spread:
        channel = re.findall(r"channel_id=(\d+)", i.attributes)[0]
        chain = f"{where}/{channel}/{spread.group(1)}"
      operands = sum(computation.instructions[o].bytes for o in i.operands)
      if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        kind = "reduce-scatter"  # what TPU compilers write as an all-reduce of which each device keeps its part
      groups = hlo.replica_groups(i.attributes)
      whole = operands
      if kind == "all-gather":
        whole = operands * (groups.shape[1] if groups is not None else 1)
      yield Collective(kind, whole, groups, chain=chain)
