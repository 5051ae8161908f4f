"""Compiles the real training step for devices that aren't here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from orthus_jax.config import Config
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.planning import buffer_assignment
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import Layout, plan_run
from orthus_jax.training.step import jit_step, train_step
from orthus_jax.training.tasks import OrthusTask, batch_shapes


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  Attributes:
    arguments: the training state and the batch.
    outputs: results that don't take an argument's place.
    temporaries: everything between.
    code: the program itself; 0 where compilation ended ahead of it.
    host: on its host.
    limit: what the compiler had, where it gave up; 0 otherwise.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int
  host: int = 0
  limit: int = 0

  @property
  def peak(self) -> int:
    return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step.

  Attributes:
    mesh: its devices.
    layout: of the training state.
    memory: of one device.
    text: the compiled program; empty where it didn't fit or can't be had.
    jaxpr: the program ahead of compilation.
    state_bytes: of the training state on one device, by part.
    seconds: "trace" and "compile".
  """

  mesh: Mesh
  layout: Layout
  memory: Memory
  text: str
  jaxpr: Any
  state_bytes: dict[str, int]
  seconds: dict[str, float]


def orthus(config: Config) -> tuple[Any, Any]:
  """(task, batch shapes) of a config.

  Raises:
    BadRequest: if it trains something else than a whole Orthus.
  """
  if config.task != "orthus":
    raise BadRequest(f"there is no plan for task={config.task}: it fits any device")
  return OrthusTask(config, None), batch_shapes(config)


def lay(config: Config, devices: Sequence[Any]) -> Mesh:
  """A config's mesh on given devices, described or present.

  Raises:
    BadRequest: if its sizes don't multiply to their number, or their torus has no place for it.
  """
  try:
    return mesh_lib.make_mesh(config.mesh, devices=list(devices))
  except NotImplementedError as e:  # jax lays a mesh axis along whole dimensions of a torus
    sizes = " x ".join(f"{a}={n}" for a, n in dataclasses.asdict(config.mesh).items())
    raise BadRequest(
      f"the mesh {sizes} can't be laid on this topology: let each axis cover whole dimensions of it"
    ) from e


def compile_step(
  config: Config,
  devices: Sequence[Any],
  *,
  build: Callable[[Config], tuple[Any, Any]] = orthus,
  stop_at: str = "code",
) -> Program:
  """Traces, lowers and compiles a config's training step, as `training.loop` does, for given devices.

  Args:
    config: the experiment.
    devices: of the mesh, described or present.
    build: what gives the task and its batch's shapes.
    stop_at: "trace" leaves out the compilation; "schedule" ends it there for TPUs, and the process should end soon
      (`buffer_assignment.compile_watched`); "code" is all of it.

  Raises:
    BadRequest: if mesh, batch or shapes don't fit each other.
    Stopped: as `compile_traced` does.
  """
  begin = time.monotonic()
  mesh = lay(config, devices)
  mesh_lib.check(mesh, config)
  task, batch = build(config)
  optimizer = make_optimizer(config.optimizer, config.run)
  with jax.set_mesh(mesh):
    layout, _ = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    step = train_step(task, optimizer, config, layout)
    step = jit_step(step, layout, mesh, batch, config)
    traced = step.trace(layout.shapes, batch)
    done = time.monotonic()
    text, memory = "", Memory(0, 0, 0, 0)
    if stop_at != "trace":
      with compiler.refusals():
        text, memory = compile_traced(traced, mesh, whole=stop_at == "code")
  seconds = {"trace": done - begin, "compile": time.monotonic() - done}
  return Program(mesh, layout, memory, text, traced.jaxpr, _state_bytes(layout), seconds)


def compile_traced(traced: Any, mesh: Mesh, *, whole: bool = True) -> tuple[str, Memory]:
  """(text of the compiled program, its memory); no text where it doesn't fit the device's memory and wasn't written down.

  Args:
    traced: the program.
    mesh: that it is for.
    whole: whether to go on to machine code where less would do; see `buffer_assignment.compile_watched`.

  Raises:
    Stopped: if a TPU's compiler was left with nothing written down that can be read.
  """
  platform = mesh.devices.flat[0].platform
  lowered = traced.lower(lowering_platforms=(platform,))
  if platform != "tpu":
    compiled = lowered.compile()
    return compiled.as_text(), _analysis(compiled)
  compiled, text, parts, error = buffer_assignment.compile_watched(lambda o: lowered.compile(compiler_options=o), whole=whole)
  if compiled is None and error is None and not (text and parts is not None):
    # Nothing at all would look like a program that needs no memory.
    what = "memory report" if text else "program's text"
    raise Stopped(
      f"the compiler's {what} can't be read, so nothing is planned: this compiler writes what the planner doesn't know; plan"
      " with the versions that docs/planning.md names, or with --whole, which asks the finished program"
    )
  memory = Memory(0, 0, 0, 0)
  if error is not None:
    memory = _from_error(error)
  elif compiled is not None:
    memory = _analysis(compiled)
    text = text or compiled.as_text()
  if parts is not None:
    memory = Memory(
      **(parts | {"host": max(parts["host"], memory.host)}), code=memory.code, limit=memory.limit
    )
  return text, memory


def _analysis(compiled: Any) -> Memory:
  """As a compiled program tells."""
  stats = compiled.memory_analysis()
  return Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
    host=stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
  )


def _from_error(error: Exception) -> Memory:
  """As the compiler tells that has run out of memory; raises what it raised for anything else."""
  found = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", str(error))
  found = found or re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", str(error))
  if found is None:
    raise error
  used, limit = (_bytes(found.group(k), found.group(k + 1)) for k in (1, 3))
  arguments = re.search(r"Arguments? size ([\d.]+)([KMGT])", str(error))
  size = _bytes(arguments.group(1), arguments.group(2)) if arguments else 0
  return Memory(size, 0, used - size, 0, limit=limit)


def _bytes(number: str, unit: str) -> int:
  return int(float(number) * 1024 ** (1 + "KMGT".index(unit)))


def _state_bytes(layout: Layout) -> dict[str, int]:
  """Bytes of each part of the state on one device."""

  def size(shape: jax.ShapeDtypeStruct, sharding: Any) -> int:
    own = jax.ShapeDtypeStruct(sharding.shard_shape(shape.shape), shape.dtype)
    return own.size * own.dtype.itemsize

  sizes = jax.tree.map(size, layout.shapes, layout.shardings)
  parts = {f.name: sum(jax.tree.leaves(getattr(sizes, f.name))) for f in dataclasses.fields(sizes)}
  return {n: s for n, s in parts.items() if n != "step" and s}
