"""Plans generation: the engine's one program, compiled for a batch of prompts that each ask for a picture."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from orthus_jax.config import Config
from orthus_jax.errors import BadRequest
from orthus_jax.inference import engine, engine_state
from orthus_jax.inference.requests import check_drawing
from orthus_jax.models import quantized, systems
from orthus_jax.models.orthus import compute_dtype
from orthus_jax.models.params import shapes_and_axes
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.planning import counting, estimate, hardware, program, work
from orthus_jax.planning.hardware import GIB, Topology

_PROMPT = 64  # positions of each branch's prompt


@dataclasses.dataclass(frozen=True)
class GeneratorPlan:
  """Generation of a picture for each of a batch of prompts, with guidance.

  Attributes:
    title, topology: as asked.
    rows: prompts at once, over all devices.
    solver_steps: of the diffusion head, for each patch (of early and late ones the mean); or passes over a picture.
    memory: bytes on one device: "parameters", "arguments", "temporaries", "peak", "capacity".
    fits: whether 5% of the memory stays free; None where that can't be told.
    flops, bytes: of one device, for the whole batch.
    traffic: collectives, see `estimate.Traffic`.
    times: seconds for the whole batch, see `estimate.Estimate`; empty where the chip has no published rates.
    pictures_per_second: calibrated, all devices together.
    seconds: that planning took.
    notes: what a reader should know.
  """

  title: str
  topology: str
  rows: int
  solver_steps: int
  memory: dict[str, int]
  fits: bool | None
  flops: float
  bytes: int
  traffic: tuple[dict[str, Any], ...]
  times: dict[str, Any]
  pictures_per_second: float
  seconds: dict[str, float]
  notes: tuple[str, ...] = ()

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def make(
  config: Config, topology: Topology, *, rows: int, title: str = "", stop_at: str = "code"
) -> GeneratorPlan:
  """Compiles the generator for a topology and works out its plan.

  Every turn of the engine's loop is counted as one that draws a patch (or passes over a picture), and the loop as running
  until a picture is done. Weights and cache are in 8 bits where the config's sampling has them so.

  Raises:
    BadRequest: if nothing draws (another task than an Orthus'), or not in so many steps, the topology has no place for the
      mesh, or the devices can't share the rows.
    Stopped: if what the compiler writes can't be read.
  """
  begin = time.monotonic()
  task, _ = program.orthus(config)
  check_drawing(config.sampling, config.model)
  mesh = program.lay(config, hardware.devices(topology))
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if rows % ways:
    raise BadRequest(f"--generate={rows} can't be split over data x fsdp = {ways} devices: make it a multiple")
  patches = config.model.vision_tokenizer.patches
  with jax.set_mesh(mesh):
    graphdef, shapes, axes = shapes_and_axes(task.init)
    params = {n: _parameter(config, mesh, n, s, axes[n]) for n, s in shapes.items()}
    slots = _PROMPT + patches + 2
    # A head that draws whole pictures passes over them so many times, and reads them once more.
    whole_pictures = systems.image_head(config.model).whole_pictures
    turns = 2 + (config.sampling.steps if whole_pictures else patches)
    steps = _steps_a_patch(config)
    fixed = engine_state.Program(
        positions=turns, window=slots, solvers=((config.sampling.solver, steps),),
        ids=engine_state.Ids(sep=8710, boi=8197, eoi=8196, image=8711, eos=2), kernel=config.sampling.solver_loop == "kernel",
    )  # fmt: skip
    whole = NamedSharding(mesh, PartitionSpec())
    text_V = jax.ShapeDtypeStruct((config.model.transformer.vocab_size,), jnp.bool, sharding=whole)
    guides = 0 if config.sampling.guidance == 1 else rows
    int8 = config.sampling.cache == "int8"
    empty = functools.partial(engine_state.empty, config.model, rows=rows, guides=guides, slots=slots, int8=int8)
    state = jax.eval_shape(empty)
    state = jax.tree.map(
      lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), state, engine_state.shardings(mesh, state)
    )
    most = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    traced = engine.advance.trace(
      graphdef, params, state, text_V, most, config=config.model, program=fixed
    )
    done = time.monotonic()
    text, memory = program.compile_traced(traced, mesh, whole=stop_at == "code")
  counted, traffic = counting.count(text, mesh, topology, rounds=turns) if text else (work.Work(()), [])
  times = dataclasses.asdict(estimate.estimate(counted, traffic, topology.chip)) if topology.chip.flops and text else {}
  own = sum(
    jax.ShapeDtypeStruct(s.sharding.shard_shape(s.shape), s.dtype).size * s.dtype.itemsize for s in jax.tree.leaves(params)
  )
  # The engine's own loop is the one that is known to run so often.
  others = tuple(loop for loop in counted.unknown_loops if not loop.endswith("(advance)/while"))
  notes = counting.notes(dataclasses.replace(counted, unknown_loops=others), topology, rounds=turns)
  if not text:
    notes.append("the compiler gave up for lack of memory: there are no FLOPs, bytes and times")
  if steps != config.sampling.steps:
    notes.append(f"sampling.late_steps: planned with {steps} steps at every patch, the mean of early and late ones")
  is_tpu = topology.chip.platform == "tpu"
  return GeneratorPlan(
      title=title, topology=str(topology), rows=rows, solver_steps=steps,
      memory={"parameters": own, "arguments": memory.arguments, "temporaries": memory.temporaries, "peak": memory.peak,
              "capacity": topology.chip.memory},
      fits=memory.peak <= 0.95 * topology.chip.memory if is_tpu else None, flops=counted.flops, bytes=counted.bytes,
      traffic=tuple(dataclasses.asdict(t) for t in traffic), times=times,
      pictures_per_second=rows / times["calibrated"] if times else 0.0,
      seconds={"trace": done - begin, "compile": time.monotonic() - done}, notes=tuple(notes),
  )  # fmt: skip


def _parameter(config: Config, mesh: Mesh, name: str, shape: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> Any:
  """A parameter as generation reads it: in the compute dtype, or what `quantized.quantize` makes of it."""
  stored = jax.ShapeDtypeStruct(shape.shape, compute_dtype(config.model, name) or shape.dtype)
  read = jax.eval_shape(functools.partial(quantized.quantize, name), stored) if config.sampling.weights == "int8" else stored
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=mesh_lib.sharding(mesh, s.shape, axes)), read
  )


def _steps_a_patch(config: Config) -> int:
  """Solver steps of each patch, or passes over a picture; of early and late patches' steps the mean, rounded up."""
  s, patches = config.sampling, config.model.vision_tokenizer.patches
  if not s.late_steps:
    return s.steps
  early = round(s.late_from * patches)
  return math.ceil((early * s.steps + (patches - early) * s.late_steps) / patches)


def text(plan: GeneratorPlan) -> str:
  """A plan as a few lines of text."""
  m, t = plan.memory, plan.times
  lines = [
      f"{plan.title}  generating on {plan.topology}: {plan.rows} pictures at once, sampling.steps={plan.solver_steps}",
      f"memory of one device: parameters {m['parameters'] / GIB:.2f} GiB, temporaries (the cache among them)"
      f" {m['temporaries'] / GIB:.2f}, peak {m['peak'] / GIB:.2f}"
      + (f" of {m['capacity'] / GIB:.2f}" if m["capacity"] else ""),
  ]  # fmt: skip
  if plan.fits is not None:
    lines.append(
      "fits"
      if plan.fits
      else f"DOES NOT FIT, by {(m['peak'] - 0.95 * m['capacity']) / GIB:.2f} GiB: fewer rows a device, or mesh.tensor"
    )
  lines.append(f"one device and batch: {plan.flops / 1e12:.1f} TFLOP, {plan.bytes / 1e9:.0f} GB of memory traffic")
  for c in plan.traffic[:5]:
    seconds = c["link_seconds"] + c["network_seconds"]
    lines.append(
      f"  {c['kind']} over {'+'.join(c['axes'])}: {c['count']} times, {c['bytes'] / 1e9:.2f} GB, {seconds:.2f} s"
    )
  if t:
    lines.append(f"bound {t['bound']:.1f} s ({t['limit']}), calibrated {t['calibrated']:.1f} s:"
                 f" {plan.pictures_per_second:.2f} pictures/s, {t['calibrated'] / plan.rows:.3f} s a picture")  # fmt: skip
  lines += [f"note: {note}" for note in plan.notes]
  lines.append(f"planned in {sum(plan.seconds.values()):.0f} s")
  return "\n".join(lines) + "\n"
