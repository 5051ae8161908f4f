"""Reads a compiled program's text (XLA's HLO) into computations and instructions.

Only what counting needs: shapes with their memory space, operands, called computations and attributes. The grammar is
that of `Compiled.as_text()`; an instruction may run over several lines, as attribute strings can hold line breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
import re
from typing import NamedTuple

import numpy as np

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64,
    "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
HOST_SPACE = 5  # XLA's number for a host's memory


@dataclasses.dataclass(frozen=True)
class Array:
  """One array's type.

  Attributes:
    dtype: as HLO writes it.
    dims: sizes.
    space: XLA's memory space; 0 is the device's main memory, 5 the host's, others are on the chip itself.
    order: its axes from the minor-most, and `tile`, in whose multiples a TPU lays the first ones of these out; empty where
      the text has neither.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0
  order: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    return self.size * self._bits // 8

  @property
  def stored(self) -> int:
    """Bytes that it takes in memory, with what fills up its tiles."""
    dims = list(self.dims)
    for axis, side in zip(self.order, reversed(self.tile)):
      dims[axis] = -(-dims[axis] // side) * side
    return math.prod(dims) * self._bits // 8

  @property
  def _bits(self) -> int:
    return 8 if self.dtype.startswith("f8") else _BITS.get(self.dtype, 32)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: unique in its computation.
    opcode: such as "fusion".
    arrays: of the result, flattened where it is a tuple.
    operands: names of instructions of the same computation.
    argument: what stands between the parentheses.
    attributes: everything after them.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  argument: str
  attributes: str

  @property
  def bytes(self) -> int:
    return sum(a.bytes for a in self.arrays)

  @property
  def stored(self) -> int:
    return sum(a.stored for a in self.arrays)

  def called(self, attribute: str) -> str:
    """The computation that an attribute such as `body` names; empty for none."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return found.group(1) if found else ""

  @property
  def op_name(self) -> str:
    """Where in the source program it comes from, as JAX names it."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in order; the last one marked ROOT is the result."""

  name: str
  instructions: dict[str, Instruction]
  root: str

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """By name, the instructions that read it."""
    users: dict[str, list[Instruction]] = {n: [] for n in self.instructions}
    for i in self:
      for o in i.operands:
        if o in users:
          users[o].append(i)
    return users

  @functools.cached_property
  def parameters(self) -> dict[int, str]:
    return {int(i.argument): i.name for i in self if i.opcode == "parameter"}


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program: one device's part of it."""

  computations: dict[str, Computation]
  entry: str


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(",") if n)


def _closing(text: str, start: int) -> int:
  """Where the parenthesis at `start` closes; strings are not expected inside."""
  depth = 0
  for i in range(start, len(text)):
    if text[i] == "(":
      depth += 1
    elif text[i] == ")":
      depth -= 1
      if not depth:
        return i
  raise ValueError(f"unbalanced parenthesis in {text[:200]!r}")


def arrays(text: str) -> tuple[Array, ...]:
  """The arrays of a written shape, in order."""
  found = []
  for dtype, dims, layout in _ARRAY.findall(text):
    space = re.search(r"S\((\d+)\)", layout or "")
    sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
    order = re.match(r"[\d,]+", layout)
    tile = re.search(r":T\(([\d,]+)\)", layout)
    found.append(
      Array(
        dtype,
        sizes,
        int(space.group(1)) if space else 0,
        _numbers(order.group()) if order else (),
        _numbers(tile.group(1)) if tile else (),
      )
    )
  return tuple(found)


class _Line(NamedTuple):
  """An instruction as it is written, whether it is the root, and the text of its shape."""

  instruction: Instruction
  is_root: bool
  shape: str


def _instruction(text: str) -> _Line | None:
  head = _INSTRUCTION.match(text)
  if head is None:
    return None
  rest = text[head.end() :]
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  opcode, _, _ = rest[end:].lstrip().partition("(")
  start = rest.index("(", end)
  close = _closing(rest, start)
  argument = rest[start + 1 : close]
  operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)*)", argument))
  instruction = Instruction(head.group(2), opcode.strip(), arrays(rest[:end]), operands, argument, rest[close + 1 :])
  return _Line(instruction, bool(head.group(1)), rest[:end])


def _elements(shape: str) -> list[str]:
  """The written shapes of a tuple's elements."""
  if not shape.startswith("("):
    raise ValueError(f"{shape[:80]!r} is no tuple, but an element of it is read")
  parts, depth, begin = [], 0, 1
  for at, c in enumerate(shape):
    depth += (c in "([{") - (c in ")]}")
    if (c == "," and depth == 1) or (c == ")" and depth == 0):
      parts.append(shape[begin:at].strip())
      begin = at + 1
  return parts


def _computation(name: str, lines: list[_Line]) -> Computation:
  """Names an element of a tuple that is written `%tuple#2` (from libtpu 0.0.50 on) as the instruction that it stands for."""
  found = {line.instruction.name: line.instruction for line in lines}
  shapes = {line.instruction.name: line.shape for line in lines}
  root = next((line.instruction.name for line in lines if line.is_root), next(reversed(found), ""))
  for line in lines:
    for operand in line.instruction.operands:
      whole, *path = operand.split("#")
      for index in path:
        element = f"{whole}#{index}"
        if element not in found:
          shapes[element] = _elements(shapes[whole])[int(index)]
          found[element] = Instruction(
              element, "get-tuple-element", arrays(shapes[element]), (whole,), f"%{whole}", f", index={index}"
          )
        whole = element
  return Computation(name, found, root)


def parse(text: str) -> Module:
  """Reads a module's text.

  Raises:
    ValueError: if it isn't HLO text or has no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry = None
  name: str | None = None
  pending: list[str] = []
  lines: list[_Line] = []

  def flush():
    if pending:
      parsed = _instruction("\n".join(pending))
      if parsed:
        lines.append(parsed)
      pending.clear()

  for line in text.splitlines():
    if name is None:
      header = _COMPUTATION.match(line)
      if header:
        name, lines = header.group(2), []
        if header.group(1):
          entry = name
    elif line == "}" or line.startswith("}, "):  # what runs on a SparseCore says so behind it
      flush()
      computations[name] = _computation(name, lines)
      name = None
    elif _INSTRUCTION.match(line):
      flush()
      pending.append(line)
    elif pending:
      pending.append(line)
  if entry is None:
    raise ValueError("no entry computation: this is no HLO text")
  return Module(computations, entry)


def replica_groups(attributes: str) -> np.ndarray | None:
  """Groups of partitions [groups, size] of a collective, in any of XLA's notations; None if it can't be told."""
  found = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes)
  if found:
    groups = [[int(n) for n in g.split(",") if n] for g in re.findall(r"\{([\d, ]*)\}", found.group(1))]
    return np.asarray(groups) if len({len(g) for g in groups}) == 1 else None
  found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
  if found:
    shape, dims = ([int(n) for n in found.group(k).split(",")] for k in (1, 2))
    ids = np.arange(math.prod(dims)).reshape(dims)
    if found.group(3):
      ids = ids.transpose([int(n) for n in found.group(3).split(",")])
    return ids.reshape(shape)
  found = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", attributes
  )
  if found:
    axes = re.findall(r"'([\w.]+)'=(\d+)", found.group(1))
    sizes = [int(n) for _, n in axes]
    ids = np.arange(math.prod(sizes))
    if found.group(2):
      ids = ids.reshape([int(n) for n in found.group(2).split(",")])
    if found.group(3):
      ids = ids.transpose([int(n) for n in found.group(3).split(",")])
    named = re.findall(r"'([\w.]+)'", found.group(4))
    if re.search(r":\(", found.group(4)):  # a part of an axis
      return None
    which = [k for k, (n, _) in enumerate(axes) if n in named]
    rest = [k for k in range(len(sizes)) if k not in which]
    return ids.reshape(sizes).transpose(rest + which).reshape(-1, math.prod(sizes[k] for k in which))
  found = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes)
  if found:
    return np.asarray([[int(n) for n in p.split(",")] for p in re.findall(r"\{([\d, ]+)\}", found.group(1))])
  return None
