"""Compilations that are read on their way, and functions in a process of their own."""

import importlib.util
import os
from pathlib import Path
import signal
import threading
import time
import types

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.planning import buffer_assignment, child_process, hardware, program

TOTALS = """Memory Space: default (color=0)
Total bytes: 1100 (1.1KiB)
  cumulative_size;       size; ...
Memory Space: vmem (color=1)
Total bytes: 4000 (3.9KiB)
Memory Space: host (color=5)
Total bytes: 77 (77B)
"""
ASSIGNMENT = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <742 add.5573 @0> (size=512,offset=0): bf16[]{:T(256)}
allocation 1: size 300, parameter 49, shape |f32[3,25]| at ShapeIndex {}, maybe-live-out:
 value: <18655 param.149 @0> (size=300,offset=0): f32[3,25]{1,0}
allocation 2: size 40, parameter 2, shape |f32[10]| at ShapeIndex {}:
allocation 3: size 60, maybe-live-out:
allocation 4: size 77, color 5, parameter 3, shape |f32[10]| at ShapeIndex {}:
allocation 5: size 900, preallocated-temp:
"""


def test_bytes_by_part():
  found = buffer_assignment.read(TOTALS, ASSIGNMENT)
  assert found == {"arguments": 340, "outputs": 60, "temporaries": 700, "host": 77}
  assert buffer_assignment.read("Memory: 3", ASSIGNMENT) is None


def _compiler(then, *, upto: int = 4, program: str = "HloModule m"):
  """Stands in for a compiler that writes its first files, and then goes on."""

  def compile_(options):
    names = [
      "m1.after_optimizations.txt", "m1.after_optimizations-buffer-assignment.txt",
      "m1.after_optimizations-memory-usage-report.txt", "m1.after_optimizations_after_buffer_assignment.txt",
    ]  # fmt: skip
    for name, text in list(zip(names, (program, ASSIGNMENT, TOTALS, "HloM")))[:upto]:
      (Path(options["xla_dump_to"]) / name).write_text(text)
    return then()

  return compile_


def test_a_compilation_is_left_where_the_program_is_scheduled():
  on = threading.Event()
  compiled, text, parts, error = buffer_assignment.compile_watched(_compiler(lambda: on.wait(60)), whole=False)
  on.set()
  assert (compiled, text, error) == (None, "HloModule m", None) and parts["arguments"] == 340


def test_a_compilation_is_left_once_what_it_wrote_is_complete_and_stays(monkeypatch):
  monkeypatch.setattr(buffer_assignment, "_SETTLED", 0.3)
  complete, cut = "HloModule m\nENTRY %main () -> s32[] {\n  ROOT %a = s32[] parameter(0)\n}\n\n", "HloModule m\n  %a = {}"
  for written, ends in ((complete, False), (cut, True)):
    on = threading.Event()
    compiler = _compiler(lambda: on.wait(1) or "code", upto=3, program=written)
    compiled, text, parts, _ = buffer_assignment.compile_watched(compiler, whole=False)
    on.set()
    assert (compiled, text) == ("code" if ends else None, written) and parts["temporaries"] == 700


def test_a_whole_one_is_waited_for():
  compiled, text, parts, error = buffer_assignment.compile_watched(_compiler(lambda: time.sleep(0.5) or "code"), whole=True)
  assert (compiled, text, error) == ("code", "HloModule m", None) and parts["temporaries"] == 700


@pytest.mark.parametrize("text, parts", [("HloModule m", None), ("", None), ("", {"arguments": 1})])
def test_what_cannot_be_read_is_no_plan(text, parts, monkeypatch):
  monkeypatch.setattr(buffer_assignment, "compile_watched", lambda compile_, *, whole: (None, text, parts, None))
  lowered = types.SimpleNamespace(lower=lambda lowering_platforms: None)
  mesh = types.SimpleNamespace(devices=np.asarray([types.SimpleNamespace(platform="tpu")]))
  with pytest.raises(Stopped, match="can't be read, so nothing is planned") as e:
    program.compile_traced(lowered, mesh, whole=False)
  assert e.value.status == 1


def test_one_that_writes_nothing_ends_by_itself():
  assert buffer_assignment.compile_watched(lambda options: "code", whole=False) == ("code", "", None, None)


def test_what_the_compiler_raises_comes_back_with_what_it_wrote():
  def fail():
    raise ValueError("Ran out of memory, the total memory required (16.12G) exceeds available HBM (15.75G).")

  compiled, text, parts, error = buffer_assignment.compile_watched(_compiler(fail, upto=3), whole=False)
  assert compiled is None and text == "HloModule m" and parts["temporaries"] == 700 and "15.75G" in str(error)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[tpu]")
@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rows, fits", [(4, True), (400, False)])
def test_memory_of_a_real_program(planned_products, rows, fits, whole):
  memory, text = planned_products[rows, whole]
  arguments = 8192 * 8192 * 2 + rows * 4096 * 8192 * 2  # on each device
  assert memory.arguments == pytest.approx(arguments, rel=0.01)
  assert (memory.arguments + memory.outputs + memory.temporaries <= 15.75 * 2**30) == fits
  assert (memory.limit > 0) == (not fits)
  assert not whole or (memory.code > 0) == fits
  assert "HloModule" in text


@pytest.fixture(scope="module")
def planned_products():
  # The one that is left on its way comes last.
  cases = [(4, True), (400, True), (400, False), (4, False)]
  return dict(zip(cases, child_process.run(_plan_products, cases)))


def _plan_products(cases):
  return [_plan_product(*case) for case in cases]


def _plan_product(rows: int, whole: bool):
  jax.config.update("jax_enable_compilation_cache", False)
  mesh = Mesh(np.asarray(hardware.devices(hardware.parse("v5e:2x2"))), ("d",))
  x = jax.ShapeDtypeStruct((4 * rows, 4096, 8192), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("d")))
  w = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
  with jax.set_mesh(mesh):
    text, memory = program.compile_traced(jax.jit(lambda x, w: jnp.sum((x @ w) @ w)).trace(x, w), mesh, whole=whole)
  return memory, text


# --- apart ------------------------------------------------------------------------------------------------------------


def _double(x):
  threading.Thread(target=time.sleep, args=(600,)).start()  # would keep an ordinary process from ending
  return 2 * x


def _raise(error):
  raise error


def _die(number):
  os.kill(os.getpid(), number)


def test_a_process_of_its_own_ends_with_its_function():
  begin = time.monotonic()
  assert child_process.run(_double, 21) == 42
  assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_errors_come_back():
  with pytest.raises(BadRequest, match="no such mesh"):
    child_process.run(_raise, BadRequest("no such mesh"))
  with pytest.raises(RuntimeError, match="(?s)in the process that compiled.*KeyError: 3"):
    child_process.run(_raise, KeyError(3))
  with pytest.raises(Stopped, match="status -9"):
    child_process.run(_die, signal.SIGKILL)
