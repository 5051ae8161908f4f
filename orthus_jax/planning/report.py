"""A plan: what was asked, what the compiled program holds, and what it should take. As figures and as text."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from typing import Any

from jax.sharding import AbstractMesh

from orthus_jax.config import Config
from orthus_jax.errors import BadRequest
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.planning import closed_form, counting, estimate, hardware, program, traced, work
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
  traffic: list[estimate.Traffic] = []
  if compiled.text:
    counted, traffic = counting.count(compiled.text, compiled.mesh, topology)
  else:
    products = traced.flops(compiled.jaxpr) / topology.devices
    counted = work.Work((work.Op("the traced program", "", 1, products=products),))
    if compiled.memory.limit:
      notes.append("the compiler gave up for lack of memory: FLOPs are the traced program's, without collectives")
  notes += counting.notes(counted, topology)

  closed = closed_form.closed(config, compiled.layout.names, kernel=counted.attention > 0, images=images)
  tokens = config.run.batch_size * config.data.sequence_length / topology.devices
  flops = {
      "products": counted.products, "attention": counted.attention, "total": counted.flops,
      "closed_form": sum(closed.program.values()) / topology.devices,
      "model": closed.model / topology.devices, "model_full": closed.model_full / topology.devices,
  }  # fmt: skip
  memory, fits = _memory(compiled, topology)
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
  notes += assumptions(config, images=images)
  return Plan(
      title=title, topology=str(topology), chips=topology.chips, mesh=mesh, rows=config.run.batch_size,
      length=config.data.sequence_length, remat=config.model.transformer.remat, memory=memory, fits=fits, flops=flops,
      bytes={"memory": counted.bytes, "host": counted.host_bytes},
      traffic=tuple(dataclasses.asdict(t) for t in traffic), times=times, tokens_per_chip=speed, mfu=mfu,
      seconds=compiled.seconds, notes=tuple(notes),
  )  # fmt: skip


def assumptions(config: Config, *, images: bool) -> list[str]:
  """What a plan takes for granted of a config; `images` says whether there are any."""
  found = []
  if (quantization := config.model.transformer.quantization) != "none":
    found.append(f"products in {quantization} are counted at the rate of bf16: where the chip does them faster, so is the step")
  if images and config.data.source == "prepared":
    found.append(
      "prepared data is taken to hold features: where it holds pixels or jpeg, encoding them takes time and memory besides"
    )
  if config.optimizer.name == "muon":
    found.append("the closed form leaves out the matrix products of Muon's updates")
  return found


def _memory(compiled: program.Program, topology: Topology) -> tuple[dict[str, int], bool | None]:
  m, capacity = compiled.memory, topology.chip.memory
  parts = {f"state_{n}": size for n, size in compiled.state_bytes.items()}
  parts |= {
      "arguments": m.arguments or sum(compiled.state_bytes.values()), "outputs": m.outputs, "temporaries": m.temporaries,
      "code": m.code, "host": m.host, "peak": m.peak, "capacity": capacity,
  }  # fmt: skip
  return parts, m.peak <= (1 - FREE_SHARE) * capacity if topology.chip.platform == "tpu" else None


def advice(config: Config, plan: Plan) -> str:
  """What to change where a plan doesn't fit, in one line; nothing that would be refused."""
  over = plan.memory["peak"] - (1 - FREE_SHARE) * plan.memory["capacity"]
  state = sum(v for n, v in plan.memory.items() if n.startswith("state_"))
  tips = []
  ways = plan.mesh["data"] * plan.mesh["fsdp"]
  if plan.rows > (fewest := ways * config.optimizer.accumulation):
    tips.append(f"--config.run.batch_size={fewest}")
  if plan.remat not in ("full", "offload"):  # "offload" keeps hardly more than "full" does
    tips.append("--config.model.transformer.remat=full")
  slices = hardware.named(plan.topology).slices
  if state > 0.5 * plan.memory["capacity"] and plan.mesh["data"] > slices:
    split = plan.mesh | {"data": slices, "fsdp": ways // slices}
    with contextlib.suppress(BadRequest):
      mesh_lib.check(AbstractMesh(tuple(split.values()), tuple(split)), config)
      tips.append(f"--config.mesh.data={slices} --config.mesh.fsdp={ways // slices}")
  if not tips:
    tips.append("a larger slice")
  return f"too large by {over / GIB:.1f} GiB a device; try {', or '.join(tips)}, or let --search look"


def read(values: dict[str, Any]) -> Plan:
  """A plan from its JSON.

  Raises:
    BadRequest: if it is no plan, or of other types.
  """
  hints = typing.get_type_hints(Plan)
  if not isinstance(values, dict) or not hints.keys() <= values.keys():
    raise BadRequest("this is no report of `orthus plan --json`")
  if strange := [n for n, hint in hints.items() if not _is(hint, values[n]) or not _has_compared(n, values)]:
    raise BadRequest(f"this is no report of `orthus plan --json`: {strange[0]} isn't as it writes it")
  fields: dict[str, Any] = {n: tuple(v) if isinstance(v := values[n], list) else v for n in hints}
  return Plan(**fields)


# Of fields that hold several figures, those that a comparison shows; times and what follows from them may all be empty.
_COMPARED = {
  "memory": ("peak",), "flops": ("total",), "bytes": ("memory",), "traffic": ("bytes",), "times": ("bound", "calibrated"),
  "tokens_per_chip": ("calibrated",), "mfu": ("calibrated",),
}  # fmt: skip


def _has_compared(name: str, values: dict[str, Any]) -> bool:
  if name in ("times", "tokens_per_chip", "mfu") and not values["times"]:
    return True
  rows = values[name] if isinstance(values[name], list) else [values[name]]
  return all(_is(float, row.get(key)) for row in rows for key in _COMPARED.get(name, ()))


def _is(hint: Any, value: Any) -> bool:
  """Whether a value of JSON is of a field's type: a list stands for a tuple, a whole number for a float."""
  args = typing.get_args(hint)
  if hint is Any or not args:
    kinds = (int, float) if hint is float else hint
    return hint is Any or (isinstance(value, kinds) and (hint is bool or not isinstance(value, bool)))
  if typing.get_origin(hint) is dict:
    return isinstance(value, dict) and all(_is(args[1], v) for v in value.values())
  if typing.get_origin(hint) is tuple:
    return isinstance(value, list) and all(_is(args[0], v) for v in value)
  return any(value is None if a is type(None) else _is(a, value) for a in args)
