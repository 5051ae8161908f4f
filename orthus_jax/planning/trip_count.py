"""How often a loop of a compiled program runs, read out of its condition and its body."""

from __future__ import annotations

import re

from orthus_jax.planning.hlo import Computation, Instruction, Module


def constant(computation: Computation, name: str) -> int | None:
  """The integer that an instruction is, looking through copies and conversions; None if it is no constant."""
  i = computation.instructions.get(name)
  while (
    i is not None and i.opcode in ("copy", "convert", "bitcast", "reshape", "copy-start", "copy-done") and i.operands
  ):
    i = computation.instructions.get(i.operands[0])
  if i is None or i.opcode != "constant" or not re.fullmatch(r"-?\d+", i.argument.strip()):
    return None
  return int(i.argument)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
  """How often a `while` runs; None where its condition isn't a counter against a constant.

  XLA's own note is taken where there is one. Else the condition must compare one element of the state, which starts at a
  constant and grows by one or, where a loop was unrolled, another constant, with a constant.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known.group(1))
  condition = module.computations[loop.called("condition")]
  test = condition.instructions[condition.root]
  values = list(test.operands)
  where = condition
  if test.opcode == "fusion":  # the comparison is wrapped: read its operands through the wrapper's parameters
    inner = module.computations[test.called("calls")]
    compare = inner.instructions[inner.root]
    by_parameter = {n: test.operands[k] for k, n in inner.parameters.items()}
    values = [by_parameter.get(o, o) for o in compare.operands]
    if compare.opcode != "compare":
      return None
    limits = [constant(where, v) if v in where.instructions else constant(inner, v) for v in values]
    direction = re.search(r"direction=(\w+)", compare.attributes)
  elif test.opcode == "compare":
    limits = [constant(where, v) for v in values]
    direction = re.search(r"direction=(\w+)", test.attributes)
  else:
    return None
  if direction is None or direction.group(1) not in ("LT", "LE") or len(limits) != 2 or limits[1] is None:
    return None
  counter = where.instructions.get(values[0])
  while counter is not None and counter.opcode in ("copy", "convert", "bitcast"):
    counter = where.instructions.get(counter.operands[0])
  start, step = 0, 1
  if counter is not None and counter.opcode == "get-tuple-element":
    index = int(re.findall(r"index=(\d+)", counter.attributes)[0])
    state = computation.instructions.get(loop.operands[0])
    if state is not None and state.opcode == "tuple" and index < len(state.operands):
      start = constant(computation, state.operands[index]) or 0
    step = _step(module.computations[loop.called("body")], index)
  return max(-(-(limits[1] - start + (direction.group(1) == "LE")) // step), 0)


def _step(body: Computation, index: int) -> int:
  """By how much an element of a loop's state grows in each round; 1 where that can't be told."""
  root = body.instructions[body.root]
  if root.opcode != "tuple" or index >= len(root.operands):
    return 1
  grown = body.instructions.get(root.operands[index])
  while grown is not None and grown.opcode in ("copy", "convert", "bitcast"):
    grown = body.instructions.get(grown.operands[0])
  if grown is None or grown.opcode != "add":
    return 1
  steps = [s for o in grown.operands if (s := constant(body, o)) is not None]
  return steps[0] if len(steps) == 1 and steps[0] > 0 else 1
