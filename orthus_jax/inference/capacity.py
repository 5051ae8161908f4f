"""What a running batch's programs are compiled for: how many requests at once, how long, by which solvers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from orthus_jax.inference.requests import Prepared

MOST_GUIDES = 2  # of a request
_SLOTS = 64  # the cache's length is a multiple of it, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Size:
  """Of the running batch.

  Attributes:
    rows, guides: lanes.
    slots: positions of each.
    positions: that rows move ahead in one call.
    int8: whether the cache is in 8 bits.
    kernel: whether the image head's solver steps are one kernel.
  """

  rows: int
  guides: int
  slots: int
  positions: int = 64
  int8: bool = False
  kernel: bool = False


@dataclasses.dataclass(frozen=True)
class Capacity:
  """What a batch takes.

  Attributes:
    size: of the batch.
    fixed: weights, cache and solver_loop, which are one for all requests.
    solvers: all (name, steps) that requests may ask for.
    sampled, repeats: whether a request's text may be other than greedy, or have a rule about repetition.
  """

  size: Size
  fixed: tuple[str, str, str]
  solvers: tuple[tuple[str, int], ...]
  sampled: bool = True
  repeats: bool = True

  def refusal(self, request: Prepared) -> str:
    """Why a request doesn't fit into an empty batch; "" where it does."""
    if request.fixed != self.fixed:
      return f"weights, cache and solver_loop are {self.fixed} here, and {request.fixed} in the request: leave them out"
    if other := [s for s in request.solvers if s not in self.solvers]:
      here = ", ".join(f"{name} with {steps}" for name, steps in self.solvers)
      return f"solver and steps must be one of those that this engine was started with: {here}, and not {other[0]}"
    if request.slots > self.size.slots:
      return f"the request takes up to {request.slots} positions, and there are {self.size.slots}: ask for less"
    if len(request.guides) > self.size.guides:
      return f"guidance needs {len(request.guides)} lanes of {self.size.guides}: set it to 1"
    if request.sampling.temperature > 0 and not self.sampled:
      return "text is greedy here: set temperature to 0"
    if request.sampling.repetition_penalty != 1 and not self.repeats:
      return "text has no rule about repetition here: set repetition_penalty to 1"
    return ""


def make(
    fixed: tuple[str, str, str], *, rows: int, guides: int, slots: int, positions: int, solvers: Sequence[tuple[str, int]],
    sampled: bool = True, repeats: bool = True,
) -> Capacity:  # fmt: skip
  """A capacity of so many rows and guides, each of so many slots or a few more, that move `positions` ahead in one call."""
  _, cache, loop = fixed
  size = Size(
      rows=rows, guides=guides, slots=-(-slots // _SLOTS) * _SLOTS, positions=positions, int8=cache == "int8",
      kernel=loop == "kernel",
  )  # fmt: skip
  return Capacity(size, fixed, tuple(dict.fromkeys(solvers)), sampled, repeats)


def for_requests(
    requests: Sequence[Prepared], *, batch_size: int, positions: int, before: Capacity | None = None
) -> Capacity:
  """What holds each of some requests, and as many of them at once as are asked for.

  Args:
    requests: at least one; they agree in what is fixed.
    batch_size: rows at most.
    positions: that rows move ahead in one call.
    before: what it may not fall behind, so that requests of two sorts in turns don't have it made anew each time.
  """
  rows = min(batch_size, _round_up_power(len(requests)))
  guides = sum(sorted((len(r.guides) for r in requests), reverse=True)[:rows])
  found = make(
      requests[0].fixed, rows=rows, guides=min(_round_up_power(guides), 2 * rows) if guides else 0,
      slots=max(r.slots for r in requests), positions=positions, solvers=[s for r in requests for s in r.solvers],
      sampled=any(r.sampling.temperature > 0 for r in requests),
      repeats=any(r.sampling.repetition_penalty != 1 for r in requests),
  )  # fmt: skip
  if before is None:
    return found
  size, old = found.size, before.size
  return Capacity(
      dataclasses.replace(
          size, rows=max(size.rows, old.rows), guides=max(size.guides, old.guides), slots=max(size.slots, old.slots)
      ),
      found.fixed, tuple(dict.fromkeys((*before.solvers, *found.solvers))), found.sampled or before.sampled,
      found.repeats or before.repeats,
  )  # fmt: skip


def _round_up_power(n: int) -> int:
  return 1 << (n - 1).bit_length()
