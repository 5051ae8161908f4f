"""`orthus plan --generate`: what the config's sampling asks for is what is planned, and what can't be planned is refused."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_plan_counting import PROGRAM
import tiny

from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.inference import engine_state
from orthus_jax.models import quantized
from orthus_jax.models.orthus import describe
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.planning import generator, hardware, program, traced

pytestmark = pytest.mark.planner


@pytest.fixture
def planned(monkeypatch):
  """Makes a plan, and what was traced for it; nothing is compiled."""

  def plan(topology="cpu:2", text="", **changes):
    found = []

    def compile_traced(traced, mesh, *, whole):
      found.append(traced)
      return text, program.Memory(1, 2, 3, 0)

    monkeypatch.setattr(program, "compile_traced", compile_traced)
    return generator.make(tiny.config(**changes), hardware.parse(topology), rows=4, title="tiny"), found[0]

  return plan


def test_weights_and_cache_in_8_bits_are_planned_so(planned):
  (stored, before) = planned(mesh__data=2)  # so that each device holds all parameters
  (small, after) = planned(mesh__data=2, sampling__weights="int8", sampling__cache="int8")
  shapes = describe(tiny.config().model)[1]
  made = jax.jit(lambda: {name: quantized.quantize(name, jnp.ones(shape)) for name, shape in shapes.items()})()
  held = sum(v.nbytes for v in made.values())
  assert stored.memory["parameters"] == 4 * sum(math.prod(shape) for shape in shapes.values())
  assert small.memory["parameters"] == held < 0.65 * stored.memory["parameters"]
  caches = [next(x for x in t.args_info[0] if isinstance(x, engine_state.State)).cache for t in (before, after)]
  assert [c.k_LXSKH.dtype for c in caches] == [np.float32, np.int8] and caches[1].k_scale_LXSK.dtype == np.float32


def test_early_and_late_steps_take_their_mean(planned):
  work = {}
  for late in (0, 2, 4):
    plan, program = planned(sampling__late_steps=late, sampling__late_from=0.25)
    assert plan.solver_steps == (3 if late == 2 else 4)  # of 4 and 12 patches: 2.5 steps
    assert any("sampling.late_steps: planned with 3 steps" in n for n in plan.notes) == (late == 2)
    work[late] = traced.flops(program.jaxpr)
  assert work[2] < work[4] == work[0]


def test_a_gpus_plan_says_whose_program_it_is_and_what_was_not_counted(planned):
  unknown = PROGRAM.replace("%limit = s32[] constant(3)", "%limit = s32[] get-tuple-element(%state), index=0")
  plan, _ = planned("h100:4", unknown, mesh__data=4)
  shown = generator.text(plan)
  for said in ("in the place of GPUs", "a GPU is faster than both times", "is counted 18 times: loop"):
    assert sum(said in n for n in plan.notes) == 1 and said in shown
  engines = unknown.replace("body=%body", 'body=%body, metadata={op_name="jit(advance)/while"}')
  assert not any("is counted" in n for n in planned("h100:4", engines, mesh__data=4)[0].notes)  # that one does run so often
  assert json.loads(json.dumps(plan.to_json()))["notes"] == list(plan.notes)


def test_what_cannot_be_planned_is_refused(planned, monkeypatch):
  with pytest.raises(Stopped, match="can't be read .*nothing is planned"):
    planned(text="HloModule of another kind")
  with pytest.raises(BadRequest, match="no plan for task=vision_tokenizer"):
    planned(task="vision_tokenizer")
  with pytest.raises(BadRequest, match="sampling.steps=100000 must be at most 1000"):
    planned(sampling__steps=100000)

  def no_place(config, *, devices):
    raise NotImplementedError("Failed to find assignment for logical_axis_index 1")

  monkeypatch.setattr(mesh_lib, "make_mesh", no_place)
  with pytest.raises(BadRequest, match="the mesh data=2 x fsdp=1 .* can't be laid on this topology"):
    planned(mesh__data=2, mesh__fsdp=1)
