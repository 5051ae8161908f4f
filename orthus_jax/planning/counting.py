"""A compiled program's work and collectives, and what a reader of a plan should know of them: for steps and for generators."""

from __future__ import annotations

from jax.sharding import Mesh

from orthus_jax.errors import Stopped
from orthus_jax.planning import estimate, hardware, hlo, work
from orthus_jax.planning.hardware import Topology


def count(text: str, mesh: Mesh, topology: Topology, *, rounds: int = 1) -> tuple[work.Work, list[estimate.Traffic]]:
  """What one device does, and its collectives, the dearest first.

  Args:
    text: of the compiled program.
    mesh: that it is for.
    topology: that the mesh lies on.
    rounds: how often loops run whose number of rounds can't be told.

  Raises:
    Stopped: if the text can't be read.
  """
  try:
    found = work.count(hlo.parse(text), rounds=rounds)
    axes = {a: int(n) for a, n in mesh.shape.items()}
    return found, estimate.traffic(found, axes, topology, hardware.places(topology, list(mesh.devices.flat)))
  except (ValueError, KeyError, AttributeError, IndexError) as e:
    # A time without memory and collectives would look better than any true one.
    raise Stopped(
      f"the compiled program's text can't be read ({type(e).__name__}: {e}), so nothing is planned: this compiler writes what"
      " the planner doesn't know; plan with the versions that docs/planning.md names"
    ) from e


def notes(found: work.Work, topology: Topology, *, rounds: int = 1) -> list[str]:
  """What was counted otherwise than it runs, and what stands in for the chip's compiler; `rounds` as for `count`."""
  times = "once" if rounds == 1 else f"{rounds} times"
  said = [f"a loop whose rounds can't be told is counted {times}: {loop}" for loop in found.unknown_loops]
  said += [f"a kernel whose FLOPs aren't known is left out: {kernel}" for kernel in found.unknown_kernels]
  if topology.chip.platform == "gpu":
    said.append("compiled for CPU devices in the place of GPUs: FLOPs and collectives are the partitioned program's")
    said.append("bytes are the CPU's program's, which writes out whole attention matrices: a GPU is faster than both times")
  if topology.chip.platform != "tpu":
    said.append("temporaries are the CPU compiler's, which keeps more than an accelerator's would")
  return said
