"""What a step doesn't do: whole rows' logits, work for frozen parts, sums that bfloat16 swallows."""

import dataclasses
import functools
import math

from flax import nnx
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np
import pytest
import test_meshes
import tiny

from orthus_jax.errors import BadRequest
from orthus_jax.models import lookup
from orthus_jax.models.orthus import Orthus, compute_dtype, describe
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import optimizer as optimizer_lib, step as step_lib
from orthus_jax.training.state import plan_run
from orthus_jax.training.tasks import OrthusTask

STAGE_1 = dict(
    optimizer__trainable=["token_embedding", "vision_embedding/", "image_head/"], model__transformer__text_loss_weight=0.0
)


def hashable(changes):
  return {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}


def plan(**changes):
  return planned(**hashable(changes))


@functools.cache
def planned(**changes):
  c = test_meshes.config(**{k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()})
  mesh = mesh_lib.make_mesh(c.mesh, devices=jax.devices()[:1])
  optimizer = optimizer_lib.make_optimizer(c.optimizer, c.run)
  task = OrthusTask(c, None)
  layout, create = plan_run(c, task.init, optimizer=optimizer, mesh=mesh)
  return c, layout, create, step_lib.train_step(task, optimizer, c, layout)


@pytest.mark.parametrize("patterns, told", [([".*"], True), (["transformer/.*"], False)])
def test_parameters_that_no_loss_reaches_are_told_of(patterns, told, caplog):
  plan(optimizer__trainable=patterns, optimizer__b2=0.93)  # of its own
  assert ("parameters of the vision tokenizer, which no loss reaches" in caplog.text) == told


def equations(jaxpr, times=1):
  """Every equation of a program, with how often it runs."""
  for e in jaxpr.eqns:
    yield e, times
    inner = times * (e.params["length"] if e.primitive.name == "scan" else 1)
    for part in jax.tree.leaves(list(e.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      part = getattr(part, "jaxpr", part)
      if hasattr(part, "eqns"):
        yield from equations(part, inner)


@functools.cache
def traced(**changes):
  """(config, equations) of a step, with what isn't used left out."""
  c, layout, _, step = plan(**changes)
  batch = test_meshes.batches()[0]
  jaxpr = jax.make_jaxpr(step)(layout.shapes, batch).jaxpr
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return c, list(equations(jaxpr))


def trace(**changes):
  return traced(**hashable(changes))


def products(equations):
  """(shape of the result, FLOPs) of each matrix product."""
  for e, times in equations:
    if e.primitive.name == "dot_general":
      (contract, _), _ = e.params["dimension_numbers"]
      shape = e.outvars[0].aval.shape
      yield shape, 2 * times * math.prod(shape) * math.prod(e.invars[0].aval.shape[d] for d in contract)


def largest_logits(equations, vocab):
  shapes = [v.aval.shape for e, _ in equations for v in e.outvars if getattr(v.aval, "shape", ())[-1:] == (vocab,)]
  return max([math.prod(s[:-1]) for s in shapes if len(s) > 2], default=0)


def test_whole_rows_logits_never_exist():
  c, found = trace()
  B, T, V = c.run.batch_size, c.data.sequence_length, c.model.transformer.vocab_size
  S = math.ceil(T / math.ceil(T / c.model.transformer.loss_chunk))
  assert largest_logits(found, V) == B * S < B * T
  assert largest_logits(trace(model__transformer__loss_chunk=0)[1], V) == B * T


def test_all_draws_never_exist_at_once():
  c, found = trace()

  def widest(found):
    W, Q = c.model.diffusion.width, c.model.diffusion.draws
    shapes = [s for s, _ in products(found) if s[-1] == W and Q in s[:-1]]
    return max(math.prod(s[:-1]) for s in shapes)

  B, J, Q = 8, 32, c.model.diffusion.draws
  assert widest(found) == B * 16 * Q  # 32 patches, at most 20 at a time
  assert widest(trace(model__diffusion__loss_chunk=0)[1]) == B * J * Q


def weight_gradients(c, found):
  """FLOPs of products that make a gradient of the backbone's or the LM head's weights."""
  t = c.model.transformer
  shapes = {
      frozenset(s) for s in ((t.width, t.mlp_width), (t.width, t.heads, t.head_dim), (t.width, t.kv_heads, t.head_dim),
                             (t.heads * t.head_dim, t.width), (t.width, t.vocab_size))
  }  # fmt: skip
  return sum(n for s, n in products(found) if frozenset(s) in shapes and len(s) < 4)


def test_frozen_parts_cost_no_gradients():
  c, full = trace()
  _, frozen = trace(**STAGE_1)
  assert weight_gradients(c, full) > 0 and weight_gradients(c, frozen) == 0
  assert largest_logits(frozen, c.model.transformer.vocab_size) == 0  # nor is the LM head run
  # The backbone: of forward, gradient of the input and gradient of the weights, a third falls away.
  t, tokens = c.model.transformer, c.run.batch_size * c.data.sequence_length
  per_token = 2 * t.layers * t.width * (3 * t.mlp_width + 2 * (t.heads + t.kv_heads) * t.head_dim)
  head = 2 * t.width * t.vocab_size
  saved = sum(n for _, n in products(full)) - sum(n for _, n in products(frozen))
  N, S = 3, 22  # 64 positions, at most 24 at a time
  assert saved == tokens * per_token + 3 * c.run.batch_size * N * S * head


def test_frozen_parts_hold_no_moments_and_half_the_bytes():
  compute = dict(model__transformer__dtype="bfloat16", optimizer__frozen_dtype="compute")
  c, layout, _, _ = plan(**STAGE_1, **compute)
  trained = layout.shapes.trained
  assert {n.split("/")[0] for n in trained} == {"token_embedding", "vision_embedding", "image_head"}
  assert sum(x.size for x in jax.tree.leaves(layout.shapes.moments)) <= 2 * sum(x.size for x in trained.values()) + 10
  dtypes = {n.split("/")[0]: str(x.dtype) for n, x in layout.shapes.frozen.items()}
  assert dtypes == {"transformer": "bfloat16", "lm_head": "bfloat16", "vision_tokenizer": "float32"}


def test_what_init_from_brings_is_not_drawn_at_random():
  _, layout, create, _ = plan(**STAGE_1)
  names = set(layout.shapes.params)

  def draws(brought):
    jaxpr = jax.make_jaxpr(functools.partial(create.__wrapped__, brought=frozenset(brought)))().jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(e.primitive.name in ("random_bits", "threefry2x32") for e, _ in equations(jaxpr))

  tokenizer = {n for n in names if n.startswith("vision_tokenizer/")}
  assert draws(()) > draws(tokenizer) > draws(names) == 0
  assert draws(tokenizer) == draws(()) - draws(names - tokenizer)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU")
@pytest.mark.parametrize("limit, donated", [(step_lib._COPIED_BYTES, False), (1000, True)])
def test_a_cpu_is_given_a_large_state_alone_for_good(limit, donated, monkeypatch):
  monkeypatch.setattr(step_lib, "_COPIED_BYTES", limit)
  c, layout, _, step = plan()
  batch, mesh = test_meshes.batches()[0], layout.shardings.step.mesh
  with jax.set_mesh(mesh):
    lowered = step_lib.jit_step(step, layout, mesh, batch, c).lower(layout.shapes, batch)
  assert all(x.donated == donated for x in jax.tree.leaves(lowered.args_info[0][0]))


def test_rounding_at_random_is_right_on_average():
  x = jnp.full(40_000, 1 + 2**-10, jnp.float32)  # an eighth of the way from 1 to the next bfloat16
  rounded = np.asarray(optimizer_lib.round_stochastically(x, jax.random.key(0)).astype(jnp.float32))
  assert set(np.unique(rounded)) == {1.0, 1 + 2**-7}
  assert rounded.mean() == pytest.approx(1 + 2**-10, abs=1e-4)
  odd = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 0.0, -2.5])
  kept = optimizer_lib.round_stochastically(odd, jax.random.key(0))
  np.testing.assert_array_equal(np.asarray(kept, np.float32), np.asarray(odd))


@pytest.mark.parametrize("rounding, moves", [("stochastic", True), ("nearest", False)])
def test_small_updates_of_bfloat16_parameters_count(rounding, moves):
  c = dataclasses.replace(
      tiny.config().optimizer, learning_rate=1e-4, warmup_steps=0, moment_dtype="bfloat16", rounding=rounding
  )
  rule = optimizer_lib.make_optimizer(c, tiny.config().run)
  params = {"w": jnp.ones(20_000, jnp.bfloat16)}
  moments = rule.init(params)
  grads = {"w": jnp.ones(20_000, jnp.bfloat16)}

  @jax.jit
  def step(params, moments, key):
    return optimizer_lib.update(rule, grads, moments, params, key=key, rounding=rounding)

  for i in range(3):
    params, moments = step(params, moments, jax.random.key(i))
  assert {x.dtype for x in jax.tree.leaves(moments) if x.ndim} == {jnp.dtype(jnp.bfloat16)}
  mean = float(params["w"].astype(jnp.float32).mean())
  assert mean == pytest.approx(1 - 3e-4, abs=5e-5) if moves else mean == 1.0


def test_the_norm_of_bfloat16_gradients_is_added_up_in_float32():
  # 300 arrays of norm 1 each: in bfloat16, a sum of ones stops at 256. Squares of 1.0078 would be rounded as well.
  grads = {str(i): jnp.full(64, 0.125, jnp.bfloat16) for i in range(300)} | {"x": jnp.full(10_000, 1.0078125, jnp.bfloat16)}
  expected = math.sqrt(sum(np.square(np.float64(g)).sum() for g in grads.values()))
  found = jax.jit(optimizer_lib.global_norm)(grads)
  assert found.dtype == jnp.float32 and float(found) == pytest.approx(expected, rel=1e-6)
  _, layout, _, step = plan(model__transformer__dtype="bfloat16", optimizer__trainable=["lm_head", "transformer"])
  _, metrics = jax.eval_shape(step, layout.shapes, test_meshes.batches()[0])
  assert {str(m.dtype) for m in metrics.values()} == {"float32"}


@pytest.mark.slow
def test_bfloat16_throughout_learns_alike():
  bf16 = dict(model__transformer__dtype="bfloat16", model__transformer__param_dtype="bfloat16")
  metrics, _, state = test_meshes.run(**bf16, optimizer__moment_dtype="bfloat16", optimizer__ema_decay=0.9)
  for a, b in zip(test_meshes.one_device()[0], metrics, strict=True):
    assert b["loss"] == pytest.approx(a["loss"], rel=0.03)
  assert state.trained["transformer/layers/mlp/up"].dtype == jnp.bfloat16
  assert state.ema["transformer/layers/mlp/up"].dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(state.moments) if x.ndim} == {jnp.dtype(jnp.bfloat16)}


def test_a_loss_of_no_weight_is_refused_only_if_both_are():
  tiny.config(model__transformer__text_loss_weight=0.0)
  with pytest.raises(BadRequest, match="nothing would be learnt"):
    tiny.config(model__transformer__text_loss_weight=0.0, model__diffusion__loss_weight=0.0)


def test_features_of_the_soft_vq_are_not_rounded():
  c = tiny.config(model__transformer__dtype="bfloat16").model
  kept = {n.split("/")[0] for n in describe(c)[2] if compute_dtype(c, n) is None}
  assert kept == {"vision_tokenizer", "vision_embedding"}


@pytest.mark.parametrize("add", [0.01, -0.3])
def test_gradients_of_a_common_tokens_row_are_added_up_in_float32(add):
  ids = jnp.asarray([[3] * 4096 + [1]])
  table = jnp.zeros((5, 2), jnp.bfloat16)
  gradient = jax.grad(lambda t: (lookup.rows(t, ids).astype(jnp.float32) * add).sum())(table)
  once = float(jnp.bfloat16(add))
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(gradient.astype(np.float32), [[0] * 2, [once] * 2, [0] * 2, [4096 * once] * 2, [0] * 2], rtol=1e-2)


def test_logits_of_bfloat16_states_are_not_rounded():
  plain, merged = (
      tiny.config(model__transformer__dtype="bfloat16", model__transformer__merge_positions=m).model for m in (False, True)
  )
  states = jax.random.normal(jax.random.key(0), (2, 3, plain.transformer.width)).astype(jnp.bfloat16)
  logits = [Orthus(c, rngs=nnx.Rngs(params=0)).logits(states) for c in (plain, merged)]
  assert logits[1].dtype == jnp.float32 and logits[1].shape[:2] == (2, 3)
  np.testing.assert_allclose(*logits, rtol=1e-6, atol=1e-6)
