"""Bytes that one instruction of a compiled program moves, with what fills up tiles.

What the compiler keeps on the chip (a memory space of its own) is free, and of an array that is only sliced, the slice counts.
"""

from __future__ import annotations

from orthus_jax.planning import hlo
from orthus_jax.planning.hlo import Array, Computation, Instruction, Module


def main_and_host(module: Module, computation: Computation, i: Instruction) -> tuple[int, int]:
  """(bytes of main memory, bytes to or from the host), with what fills up tiles."""
  shapes = {o: computation.instructions[o].arrays for o in i.operands if o in computation.instructions}

  def main(arrays) -> int:
    return sum(a.stored for a in arrays if a.space == 0)

  def moved(part: int, *between: Array) -> tuple[int, int]:
    spaces = [a.space for a in between]
    return part * spaces.count(0), part * (hlo.HOST_SPACE in spaces)

  if i.opcode in ("copy-start", "slice-start", "dynamic-slice-start"):  # the result holds the operand too, either first
    return moved(min(i.arrays[0].stored, i.arrays[1].stored), *i.arrays[:2])
  if i.opcode == "custom-call" and '"AllocateBuffer"' in i.attributes:
    return 0, 0
  if i.opcode in ("send", "recv"):
    return moved(i.arrays[0].stored, i.arrays[0])
  if i.opcode in ("dynamic-slice", "slice", "gather"):
    return moved(i.arrays[0].stored, i.arrays[0], *shapes.get(i.operands[0], ())[:1])
  if i.opcode in ("dynamic-update-slice", "dynamic-update-slice-start"):
    (part,) = shapes[i.operands[1]]
    return moved(part.stored, part, i.arrays[0])
  if i.opcode == "scatter" and len(i.operands) == 3:
    return main(shapes.get(i.operands[1], ())) + 2 * main(shapes.get(i.operands[2], ())), 0
  if i.opcode == "fusion":
    inner = module.computations[i.called("calls")]
    # What a chained collective gathers is handed from fusion to fusion, and moved by the network.
    passed = {a.dims for j in inner if "chain_id" in j.attributes for a in j.arrays}
    read = 0
    for k, o in enumerate(i.operands):
      if main(shapes.get(o, ())) and not any(a.dims in passed for a in shapes[o]):
        read += _read(module, inner, inner.parameters[k])
    root = inner.instructions[inner.root]
    results = root.operands if root.opcode == "tuple" else (inner.root,)
    if len(results) != len(i.arrays):
      return read + main(i.arrays), 0
    written = 0
    for name, array in zip(results, i.arrays):
      if array.space == 0 and array.dims not in passed:
        stored = _written(module, inner, name)
        written += array.stored if stored is None else min(stored, array.stored)
    return read + written, 0
  if i.opcode.endswith("-start"):
    return main(i.arrays), 0  # its result holds the operand too
  return main(i.arrays) + sum(main(a) for a in shapes.values()), 0


def _read(module: Module, computation: Computation, parameter: str) -> int:
  """Bytes of main memory that a fused computation reads of one parameter."""
  me = computation.instructions[parameter]
  total, whole = 0, sum(a.stored for a in me.arrays if a.space == 0)
  for user in computation.users[parameter]:
    if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == parameter:
      total += user.stored
    elif user.opcode in ("bitcast", "get-tuple-element"):
      total += _read(module, computation, user.name) if user.opcode == "bitcast" else user.stored
    elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == parameter:
      continue  # written in place; of a scatter, whoever adds to what is there reads it too, which is counted as nothing
    elif user.opcode == "fusion" and "output_to_operand_aliasing" in user.attributes:
      total += _read(module, computation, user.name)  # the same place seen in other tiles, as on a TPU7x
    elif user.opcode == "fusion":
      inner = module.computations[user.called("calls")]
      total += sum(_read(module, inner, inner.parameters[k]) for k, o in enumerate(user.operands) if o == parameter)
    else:
      return whole
  return min(total, whole)


def _written(module: Module, computation: Computation, name: str) -> int | None:
  """Bytes that a fused computation's result writes where that is less than the result; None where it is all of it."""
  i = computation.instructions[name]
  if i.opcode == "bitcast":
    return _written(module, computation, i.operands[0])
  if i.opcode in ("dynamic-update-slice", "scatter"):
    return computation.instructions[i.operands[1 if i.opcode == "dynamic-update-slice" else 2]].stored
  if i.opcode == "fusion":
    inner = module.computations[i.called("calls")]
    return _written(module, inner, inner.root)
  return None
