"""A plan: what was asked, what the compiled program holds, and what it should take. As figures and as text."""

from __future__ import annotations

import dataclasses
from typing import Any

from orthus_jax.config import Config
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.planning import closed_form, estimate, hardware, hlo, program, traced, work
from orthus_jax.planning.hardware import GIB, Topology

FREE_SHARE = 0.05  # what a plan that fits leaves free, for what the compiler doesn't see


@dataclasses.dataclass(frozen=True)
class Plan:
  """A config on a topology.

  Attributes:
    title: config and topology.
    topology: as asked.
    chips: in all; a TPU7x's shows jax two devices.
    mesh: devices by axis.
    rows, length: of the global batch.
    remat: what the backward pass computes again.
    memory: bytes on one device: by part, "peak", and what the chip has ("capacity"); "capacity" 0 where it isn't known.
    fits: whether the peak leaves FREE_SHARE of the memory free; None where that can't be told.
    flops: of one device and step: "products", "attention", "closed_form" (what they should add up to), "model" (what MFU
      counts, causal), "model_full".
    bytes: to and from one device's memory; "host": to and from its host.
    traffic: collectives by kind and axes.
    times: seconds, see `estimate.Estimate`; empty where the chip has no published rates.
    tokens_per_chip: positions per second and chip, "calibrated" and "bound".
    mfu: shares of the peak: calibrated and bound, causal and full.
    seconds: that planning took.
    notes: what a reader should know.
  """

  title: str
  topology: str
  chips: int
  mesh: dict[str, int]
  rows: int
  length: int
  remat: str
  memory: dict[str, int]
  fits: bool | None
  flops: dict[str, float]
  bytes: dict[str, int]
  traffic: tuple[dict[str, Any], ...]
  times: dict[str, Any]
  tokens_per_chip: dict[str, float]
  mfu: dict[str, float]
  seconds: dict[str, float]
  notes: tuple[str, ...]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def make(
  config: Config, topology: Topology, *, title: str = "", build: Any = program.orthus, stop_at: str = "code"
) -> Plan:
  """Compiles a config's step for a topology and works out its plan.

  Args:
    config: the experiment.
    topology: what it is to run on.
    title: of the plan.
    build: see `program.compile_step`.
    stop_at: "schedule" or "code"; see `program.compile_step`.

  Raises:
    BadRequest: if mesh, batch or shapes don't fit each other or the topology.
  """
  compiled = program.compile_step(config, hardware.devices(topology), build=build, stop_at=stop_at)
  return from_program(config, topology, compiled, title=title, images=build is program.orthus)


def from_program(config: Config, topology: Topology, compiled: program.Program, *, title: str, images: bool) -> Plan:
  """The plan of a compiled step."""
  chip, notes = topology.chip, []
  mesh = {a: int(n) for a, n in compiled.mesh.shape.items()}
  counted, traffic = None, []
  if compiled.text:
    try:
      counted = work.count(hlo.parse(compiled.text))
      traffic = estimate.traffic(counted, mesh, topology, hardware.places(topology, list(compiled.mesh.devices.flat)))
    except (ValueError, KeyError, AttributeError, IndexError) as e:
      # A time without memory and collectives would look better than any true one.
      raise Stopped(
        f"the compiled program's text can't be read ({type(e).__name__}: {e}), so nothing is planned: this compiler writes what"
        " the planner doesn't know; plan with the versions that docs/planning.md names"
      ) from e
  if counted is None:
    products = traced.flops(compiled.jaxpr) / topology.devices
    counted = work.Work((work.Op("the traced program", "", 1, products=products),))
    if compiled.memory.limit and not compiled.text:
      notes.append("the compiler gave up for lack of memory: FLOPs are the traced program's, without collectives")
  for loop in counted.unknown_loops:
    notes.append(f"a loop whose rounds can't be told is counted once: {loop}")
  for kernel in counted.unknown_kernels:
    notes.append(f"a kernel whose FLOPs aren't known is left out: {kernel}")

  closed = closed_form.closed(config, compiled.layout.names, kernel=counted.attention > 0, images=images)
  tokens = config.run.batch_size * config.data.sequence_length / topology.devices
  flops = {
      "products": counted.products, "attention": counted.attention, "total": counted.flops,
      "closed_form": sum(closed.program.values()) / topology.devices,
      "model": closed.model / topology.devices, "model_full": closed.model_full / topology.devices,
  }  # fmt: skip
  memory, fits = _memory(compiled, topology, notes)
  times: dict[str, float] = {}
  speed: dict[str, float] = {}
  mfu: dict[str, float] = {}
  if chip.flops:
    found = estimate.estimate(counted, traffic, chip)
    times = dataclasses.asdict(found)
    for kind in ("calibrated", "bound"):
      speed[kind] = tokens * chip.devices / times[kind]
      mfu |= {
        kind: flops["model"] / times[kind] / chip.flops,
        f"{kind}_full": flops["model_full"] / times[kind] / chip.flops,
      }
  if (quantization := config.model.transformer.quantization) != "none":
    notes.append(f"products in {quantization} are counted at the rate of bf16: where the chip does them faster, so is the step")
  if config.optimizer.name == "muon":
    notes.append("the closed form leaves out the matrix products of Muon's updates")
  if chip.platform == "gpu":
    notes.append("compiled for CPU devices in the place of GPUs: FLOPs and collectives are the partitioned program's")
    notes.append("bytes are the CPU's program's, which writes out whole attention matrices: a GPU is faster than both times")
  return Plan(
      title=title, topology=str(topology), chips=topology.chips, mesh=mesh, rows=config.run.batch_size,
      length=config.data.sequence_length, remat=config.model.transformer.remat, memory=memory, fits=fits, flops=flops,
      bytes={"memory": counted.bytes, "host": counted.host_bytes},
      traffic=tuple(dataclasses.asdict(t) for t in traffic), times=times, tokens_per_chip=speed, mfu=mfu,
      seconds=compiled.seconds, notes=tuple(notes),
  )  # fmt: skip


def _memory(compiled: program.Program, topology: Topology, notes: list[str]) -> tuple[dict[str, int], bool | None]:
  m, capacity = compiled.memory, topology.chip.memory
  parts = {f"state_{n}": size for n, size in compiled.state_bytes.items()}
  parts |= {
      "arguments": m.arguments or sum(compiled.state_bytes.values()), "outputs": m.outputs, "temporaries": m.temporaries,
      "code": m.code, "host": m.host, "peak": m.peak, "capacity": capacity,
  }  # fmt: skip
  if topology.chip.platform != "tpu":
    notes.append("temporaries are the CPU compiler's, which keeps more than an accelerator's would")
    return parts, None
  return parts, m.peak <= (1 - FREE_SHARE) * capacity


def advice(config: Config, plan: Plan) -> str:
  """What to change where a plan doesn't fit, in one line."""
  over = plan.memory["peak"] - (1 - FREE_SHARE) * plan.memory["capacity"]
  state = sum(v for n, v in plan.memory.items() if n.startswith("state_"))
  tips = []
  if plan.rows > plan.mesh["data"] * plan.mesh["fsdp"]:
    tips.append(f"--config.run.batch_size={plan.mesh['data'] * plan.mesh['fsdp']}")
  if plan.remat != "full":
    tips.append("--config.model.transformer.remat=full")
  if state > 0.5 * plan.memory["capacity"] and plan.mesh["data"] > 1:
    tips.append(f"--config.mesh.data=1 --config.mesh.fsdp={plan.mesh['data'] * plan.mesh['fsdp']}")
  if not tips:
    tips.append(f"a larger slice, or --config.mesh.tensor={2 * plan.mesh['tensor']}")
  return f"too large by {over / GIB:.1f} GiB a device; try {', or '.join(tips)}, or let --search look"


def read(values: dict[str, Any]) -> Plan:
  """A plan from its JSON.

  Raises:
    BadRequest: if it is no plan.
  """
  names = {f.name for f in dataclasses.fields(Plan)}
  if not isinstance(values, dict) or not names <= set(values):
    raise BadRequest("this is no report of `orthus plan --json`")
  fields: dict[str, Any] = {n: tuple(v) if isinstance(v := values[n], list) else v for n in names}
  return Plan(**fields)
