"""What an update does to each parameter, held against plain loops and against optax's own rules."""

import dataclasses
import functools
import math
import re
import types

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest
import test_meshes
import tiny

from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import describe
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import initial_state, muon, optimizer as optimizer_lib
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.state import TrainState, plan_run
from orthus_jax.training.step import train_step
from orthus_jax.training.tasks import OrthusTask

STEPS = 4
RATES = dict(learning_rate=0.02, adamw_learning_rate=0.005, warmup_steps=2, schedule="linear")


def settings(name, **changes):
  rates = RATES if name == "muon" else {k: v for k, v in RATES.items() if k != "adamw_learning_rate"}
  return dataclasses.replace(tiny.config().optimizer, name=name, **rates, **changes)


def parameters(seed=0):
  """Every parameter of a tiny model, but of the vision tokenizer's one of each kind."""
  rng = np.random.default_rng(seed)
  alike = r"vision_tokenizer/(?!codebook|encoder/(conv_in|norm_out))"
  return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes().items() if not re.match(alike, n)}


@functools.cache
def shapes():
  return describe(tiny.config(model__vision_embedding__patch_positions=True).model)[1]


def updated(c, params, gradients, rule=None):
  """Parameters after an update for each of the gradients."""
  rule = rule or optimizer_lib.make_optimizer(c, dataclasses.replace(tiny.config().run, steps=STEPS))
  moments = rule.init(params)

  @jax.jit
  def step(params, moments, grads):
    return optimizer_lib.update(rule, grads, moments, params, key=jax.random.key(0), rounding=c.rounding)

  for grads in gradients:
    params, moments = step(params, moments, grads)
  return params


def rates(peak):
  """Warm-up over two steps, then a line to 0 over the other two."""
  return [peak / 2, peak, peak, peak / 2]


def of_matrix(name):
  return bool(re.search(r"layers/(attention/(q|k|v|out)|mlp/\w+)$|image_head/(blocks|cond|final|time_out).*kernel$", name))


@pytest.mark.parametrize("name", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_what_decays_shrinks_by_the_decay_and_nothing_else_moves(name):
  params = parameters()
  zeros = jax.tree.map(jnp.zeros_like, params)
  c = settings(name, weight_decay=0.3)
  after = updated(c, params, [zeros] * STEPS)
  decaying = {n for n in params if optimizer_lib.decays(n)}
  assert {"lm_head", "image_head/input/kernel", "image_head/output/kernel", "image_head/time_in/kernel"} < decaying
  for n, old in params.items():
    peak = c.adamw_learning_rate if name == "muon" and not of_matrix(n) else c.learning_rate
    factor = math.prod(1 - 0.3 * r for r in rates(peak)) if n in decaying else 1
    np.testing.assert_allclose(after[n], factor * old, rtol=1e-6 if n in decaying else 0, err_msg=n)


def test_what_decays():
  names = set(shapes())
  spared = {n for n in names if not optimizer_lib.decays(n)}
  kinds = r"norm|bias$|scale$|^token_embedding$|position_embedding$|codebook$"
  assert spared == {n for n in names if re.search(kinds, n)}
  assert "vision_embedding/position_embedding" in spared


@pytest.mark.parametrize("name, spared", [("showo", {"image_head/hidden_embedding"}), ("chameleon", set())])
def test_a_hidden_patch_s_embedding_does_not_decay(name, spared):
  heads = [n for n in describe(tiny.config(**tiny.SYSTEMS[name]).model)[1] if n.startswith("image_head/")]
  assert {n for n in heads if not optimizer_lib.decays(n)} == spared


def gradients():
  return [jax.tree.map(lambda g, s=s: g * 10.0**-s, parameters(seed=s)) for s in range(1, STEPS + 1)]


def a_few(values):
  kept = r"lm_head|.*(attention/q|attention/out|mlp/up|condition/kernel|k_norm/scale)$"
  return {n: v for n, v in values.items() if re.match(kept, n)}


def test_under_muon_what_is_no_matrix_of_a_layer_is_adamws():
  c = settings("muon", weight_decay=0.3, clip_norm=0.0)
  params = {n: v for n, v in parameters().items() if not n.startswith("transformer/layers/mlp")}
  rest = {n: v for n, v in params.items() if not of_matrix(n)}
  rate = optimizer_lib.schedule(c, STEPS, peak=c.adamw_learning_rate)
  rule = optax.adamw(
      rate, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=0.3, mask={n: optimizer_lib.decays(n) for n in rest}
  )
  found = updated(c, params, [{n: g[n] for n in params} for g in gradients()])
  expected = updated(c, rest, [{n: g[n] for n in rest} for g in gradients()], rule)
  for n in rest:
    np.testing.assert_array_equal(found[n], expected[n], err_msg=n)


def muon_by_hand(c, name, value, grads):
  """Keller Jordan's Muon in float64, its updates of AdamW's size, on one matrix after the other."""
  if "layers/" in name:  # of each layer
    return np.stack([muon_by_hand(c, name.rsplit("/")[-1], v, [g[i] for g in grads]) for i, v in enumerate(value)])
  inputs = math.prod(value.shape[:2]) if name == "out" else value.shape[0]
  flat = np.float64(value).reshape(inputs, -1)
  momentum = np.zeros_like(flat)
  for i, (g, rate) in enumerate(zip(grads, rates(c.learning_rate)), 1):
    g = np.float64(g).reshape(flat.shape)
    momentum = 0.95 * momentum + 0.05 * g
    x = 0.95 * momentum / (1 - 0.95 ** (i + 1)) + 0.05 * g / (1 - 0.95**i)
    x = x / (np.linalg.norm(x) + c.eps)
    for _ in range(c.newton_schulz_steps):
      a = x @ x.T
      x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    flat = flat - rate * (0.2 * max(flat.shape) ** 0.5 * x + c.weight_decay * flat)
  return flat.reshape(value.shape)


@pytest.mark.slow
def test_matrices_of_layers_are_muons():
  c = settings("muon", weight_decay=0.3, clip_norm=0.0, newton_schulz_steps=4)
  params = parameters()
  found = updated(c, params, gradients())
  matrices = {n: v for n, v in params.items() if of_matrix(n)}
  assert matrices.keys() == {n for n in params if muon.dimensions(n)}
  rule = optax.contrib.muon(
      optimizer_lib.schedule(c, STEPS), ns_steps=4, eps=c.eps, weight_decay=0.3, consistent_rms=0.2,
      muon_weight_dimension_numbers={n: muon.dimensions(n) for n in matrices},
  )  # fmt: skip
  of_optax = updated(c, matrices, [{n: g[n] for n in matrices} for g in gradients()], rule)
  for n, value in matrices.items():
    np.testing.assert_allclose(found[n], of_optax[n], rtol=1e-6, atol=1e-6, err_msg=n)
    by_hand = muon_by_hand(c, n, np.asarray(value), [np.asarray(g[n]) for g in gradients()])
    np.testing.assert_allclose(found[n], by_hand, rtol=1e-3, atol=1e-4, err_msg=n)


def test_an_update_is_computed_in_float32_whatever_moments_are_kept_in():
  c = settings("muon", rounding="nearest")
  half = dataclasses.replace(c, moment_dtype="bfloat16")
  params, grads = a_few(parameters()), [a_few(gradients()[0])]  # moments start at 0: rounding shows in a second update
  whole, half = updated(c, params, grads), updated(half, params, grads)
  for n in params:
    np.testing.assert_allclose(whole[n], half[n], rtol=1e-5, atol=1e-6, err_msg=n)


@pytest.mark.parametrize("trained", [["lm_head"], ["transformer/layers/mlp/up"]])
def test_muon_trains_one_kind_alone(trained):
  params, grads = ({n: v[n] for n in trained} for v in (parameters(), gradients()[0]))
  after = updated(settings("muon"), params, [grads])
  assert all(np.isfinite(after[n]).all() and (after[n] != params[n]).any() for n in trained)


def layout_of(c, devices=1):
  mesh = mesh_lib.make_mesh(c.mesh, devices=jax.devices()[:devices])
  rule = optimizer_lib.make_optimizer(c.optimizer, c.run)
  return plan_run(c, OrthusTask(c, None).init, optimizer=rule, mesh=mesh)


def zeros(layout):
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), layout.shapes)


def test_muons_moments_lie_as_their_parameters_do():
  c = test_meshes.config(mesh__fsdp=4, mesh__tensor=2, optimizer__name="muon", optimizer__moment_dtype="bfloat16")
  layout, _ = layout_of(c, 8)
  moments = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(layout.shapes.moments):
    if isinstance(path[-1], jax.tree_util.DictKey):
      moments.setdefault(path[-1].key, []).append(leaf)
      assert leaf.dtype == jnp.bfloat16
  places = jax.tree_util.tree_leaves_with_path(layout.shardings.moments)
  named = [(p[-1].key, place) for p, place in places if isinstance(p[-1], jax.tree_util.DictKey)]
  assert all(place == layout.shardings.trained[n] for n, place in named)
  assert {n: len(m) for n, m in moments.items()} == {n: 1 if of_matrix(n) else 2 for n in layout.shapes.trained}
  up = layout.shardings.moments[1].inner_states["muon"].inner_state[0].mu["transformer/layers/mlp/up"]
  assert up.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")


def as_optax_lays_it_out(c, layout):
  """The state that optax.contrib.muon itself keeps, as runs of it were saved, every moment a number of its own."""
  dims = {n: muon.dimensions(n) for n in layout.shapes.trained}
  rule = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.contrib.muon(
          optax.constant_schedule(0.1), weight_decay_mask=lambda p: dict.fromkeys(p, True), muon_weight_dimension_numbers=dims
      ),
  )
  leaves, structure = jax.tree.flatten(jax.eval_shape(rule.init, layout.shapes.trained))
  numbers = [jnp.full(x.shape, i, c.moment_dtype if x.ndim else x.dtype) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(structure, numbers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_of_optaxs_own_muon_goes_on(tmp_path, dtype):
  c = tiny.config(mesh__fsdp=1, optimizer__name="muon", optimizer__moment_dtype=dtype)
  layout, _ = layout_of(c)
  old = as_optax_lays_it_out(c.optimizer, layout)
  saver = Checkpointer(tmp_path, c.run)
  assert saver.save(dataclasses.replace(zeros(layout), moments=old))
  saver.wait()
  restored = saver.restore_newest(layout.shapes, layout.shardings)
  saver.close()
  for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(restored.moments), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_state_of_another_optimizer_is_refused_in_one_line(tmp_path):
  c = tiny.config(mesh__fsdp=1)
  checkpoint.open_workdir(tmp_path / "a", c)
  saver = Checkpointer(tmp_path / "a", c.run)
  assert saver.save(zeros(layout_of(c)[0]))
  saver.close()
  other = tiny.config(mesh__fsdp=1, optimizer__name="muon", run__resume_from=str(tmp_path / "a"))
  layout, create = layout_of(other)
  with pytest.raises(BadRequest, match="isn't a state of this model and optimizer") as e:
    initial_state.first_state(other, layout, create, Checkpointer(tmp_path / "b", c.run), {})
  assert "\n" not in str(e.value)


@pytest.mark.slow
def test_muons_updates_on_a_mesh_are_those_on_one_device():
  c = settings("muon", weight_decay=0.3)
  params, grads = a_few(parameters()), [a_few(g) for g in gradients()[:2]]
  layout, _ = layout_of(test_meshes.config(mesh__fsdp=4, mesh__tensor=2), 8)

  def split(values):
    return {n: jax.device_put(v, layout.shardings.trained[n]) for n, v in values.items()}

  found = updated(c, split(params), [split(g) for g in grads])
  for n, expected in updated(c, params, grads).items():
    np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-5, err_msg=n)


class One(nnx.Module):
  def __init__(self):
    self.w = nnx.Param(jnp.ones((2, 2)))


class Given:
  """A task whose gradient is what the batch says."""

  def counts(self, batch):
    return None

  def loss(self, model, batch, key, **_):
    loss = jnp.sum(model.w[...] * batch)
    return loss, {"loss": loss}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_rate_is_the_steps_after_skipped_updates_too(name):
  config = tiny.config(run__steps=9)
  config = dataclasses.replace(config, optimizer=settings(name, clip_norm=0.0, weight_decay=0.0))
  optimizer = optimizer_lib.make_optimizer(config.optimizer, config.run)
  graphdef, trained = params_lib.split(One())
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])
  layout = types.SimpleNamespace(graphdef=graphdef, shardings=types.SimpleNamespace(step=jax.NamedSharding(mesh, P())))
  step = jax.jit(train_step(Given(), optimizer, config, layout))
  state = TrainState(step=jnp.int32(0), trained=trained, frozen={}, moments=optimizer.init(trained), ema={})
  rate = optimizer_lib.schedule(config.optimizer, 9, peak=RATES["adamw_learning_rate"] if name == "muon" else None)
  for number in range(7):
    before, bad = state.trained["w"], number in (3, 4)
    state, metrics = step(state, jnp.full((2, 2), jnp.nan if bad else 1.0))
    assert metrics["skipped"] == bad
    # AdamW's update of a gradient that never changes is the rate itself.
    np.testing.assert_allclose(before - state.trained["w"], 0.0 if bad else rate(number), rtol=1e-4)
