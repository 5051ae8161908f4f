"""Products of factors rounded to bfloat16: what they give, where they are used, and what asks for them."""

import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from orthus_jax.config import MeshConfig
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.models import products
from orthus_jax.models.params import Keys
from orthus_jax.models.transformer import Transformer
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.training import muon
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import plan_run
from orthus_jax.training.step import jit_step, train_step
from orthus_jax.training.tasks import OrthusTask


def rounded(x):
  return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("kind", ("cpu", "anywhere"))
@pytest.mark.parametrize("rows, outputs", [((6,), (5,)), ((2, 3), (5,)), ((2, 3), (4, 5))])
def test_a_product_and_its_gradients_are_those_of_rounded_factors(kind, rows, outputs):
  rng = np.random.default_rng(0)
  x, kernel, g = (rng.standard_normal(s).astype(np.float32) for s in ((*rows, 7), (7, *outputs), (*rows, *outputs)))
  with products.rounding(kind):
    y, back = jax.vjp(products.dot, x, kernel)
    to_x, to_kernel = back(g)
  assert y.dtype == to_x.dtype == to_kernel.dtype == jnp.float32
  x_ND, kernel_DF, g_NF = rounded(x).reshape(-1, 7), rounded(kernel).reshape(7, -1), rounded(g).reshape(-1, np.prod(outputs))
  for found, expected in ((y, x_ND @ kernel_DF), (to_x, g_NF @ kernel_DF.T), (to_kernel, x_ND.T @ g_NF)):
    np.testing.assert_allclose(np.asarray(found).ravel(), expected.ravel(), rtol=1e-5, atol=1e-5)
  assert abs(np.asarray(y).ravel() - (x.reshape(-1, 7) @ kernel.reshape(7, -1)).ravel()).max() > 1e-4


def mesh_of(platform, size=1, processes=1):
  devices = [types.SimpleNamespace(platform=platform, process_index=i % processes) for i in range(size)]
  return types.SimpleNamespace(devices=np.asarray(devices), size=size)


def asks(precision, **changes):
  return tiny.config(model__transformer__matmul_precision=precision, **changes)


def test_auto_is_for_processors_that_multiply_bfloat16(monkeypatch):
  for able in (True, False):
    monkeypatch.setattr(products, "_cpu_multiplies_bfloat16", lambda able=able: able)
    assert products.kind(asks("auto"), mesh_of("cpu")) == ("cpu" if able else "")
    assert products.kind(asks("auto"), mesh_of("cpu", 2)) == ("anywhere" if able else "")
    # Machines may differ in it, and other tasks and dtypes have no such products.
    assert products.kind(asks("auto"), mesh_of("cpu", 2, processes=2)) == ""
    assert products.kind(asks("auto", model__transformer__dtype="bfloat16"), mesh_of("cpu")) == ""
    assert products.kind(asks("bfloat16", task="vision_tokenizer"), mesh_of("cpu")) == ""
    assert products.kind(asks("auto"), mesh_of("tpu")) == products.kind(asks("default"), mesh_of("cpu")) == ""
    assert [products.kind(asks("bfloat16"), mesh_of(p)) for p in ("gpu", "cpu")] == ["anywhere", "cpu"]


def test_what_is_rounded_ends_with_its_block_and_is_float32():
  x = jnp.zeros((2, 2))
  with products.rounding("cpu"):
    assert products.rounded(x) and not products.rounded(x.astype(jnp.bfloat16))
    with products.rounding(""):
      assert not products.rounded(x)
  assert not products.rounded(x)


def test_the_library_that_is_fast_with_bfloat16_is_left_on():
  cpu = mesh_lib.make_mesh(MeshConfig(), devices=jax.devices()[:1])
  assert compiler.options(cpu) and not compiler.options(cpu, bfloat16_factors=True)


@pytest.mark.parametrize("precision", ("default", "bfloat16"))
def test_every_product_with_a_weight_is_asked_for_in_bfloat16(precision):
  config = tiny.config(model__transformer__matmul_precision=precision, model__transformer__merge_positions=True,
                       optimizer__name="muon")  # fmt: skip
  task = OrthusTask(config, Pipeline(tiny.TinySource(), tiny.tokenizer(), config))
  mesh = mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])
  optimizer = make_optimizer(config.optimizer, config.run)
  with jax.set_mesh(mesh):
    layout, _ = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    batch = task.batch(0)
    step = jit_step(train_step(task, optimizer, config, layout), layout, mesh, batch, config)
    text = step.lower(layout.shapes, batch).as_text()
  lines = [line for line in text.splitlines() if "dot_general" in line]
  of_bfloat16 = [line for line in lines if "bf16" in line]
  assert lines and all("xbf16>) -> tensor<" in line and "xf32>" in line for line in of_bfloat16)
  if precision == "default":
    assert not of_bfloat16
  else:
    # Left in float32: those with the codes, and the tokenizer's two.
    assert len(lines) - len(of_bfloat16) <= 7 and len(of_bfloat16) > 60


@pytest.mark.parametrize("remat", ("none", "mlp"))
def test_a_backbone_on_a_cpu_is_nearly_float32s(remat):
  """With grouped queries, documents that share one, and pictures seen whole."""
  config = tiny.config(model__transformer__remat=remat).model.transformer
  model = Transformer(config, rngs=Keys(0))
  graphdef, params = nnx.split(model)
  rng = np.random.default_rng(0)
  x_BTD, g_BTD = (jnp.asarray(rng.standard_normal((2, 24, config.width)), jnp.float32) for _ in range(2))
  segments = np.r_[np.full(8, 1), np.full(9, 2), np.full(7, 3)][None].repeat(2, 0)
  where = dict(
      position_BT=jnp.asarray(np.r_[0:8, 8:17, 8:15][None].repeat(2, 0)), segment_ids_BT=jnp.asarray(segments),
      shared_ids_BT=jnp.asarray(np.where(segments > 1, 1, 0)),
      last_BT=jnp.asarray(np.arange(24)[None].repeat(2, 0) // 4 * 4 + 3),
  )  # fmt: skip

  def loss(params, x_BTD):
    return jnp.sum(nnx.merge(graphdef, params)(x_BTD, **where) * g_BTD)

  found = {}
  for kind in ("", "cpu"):
    with products.rounding(kind):
      found[kind] = jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x_BTD))
  for a, b in zip(*found.values(), strict=True):
    assert 0 < jnp.linalg.norm(a - b) < 0.03 * jnp.linalg.norm(a)


def test_a_gated_product_has_the_gradients_of_its_definition():
  gate, up, g = (jnp.asarray(np.random.default_rng(i).standard_normal((5, 7)), jnp.float32) for i in range(3))
  (y, back), (expected, plain) = jax.vjp(products.gated, gate, up), jax.vjp(lambda a, b: jax.nn.silu(a) * b, gate, up)
  np.testing.assert_array_equal(y, expected)
  for found, wanted in zip(back(g), plain(g), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ("cpu", "anywhere"))
@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 24, 8), (2, 8, 3, 4)])
def test_muons_matrices_are_nearly_what_float32_gives(shape, kind):
  name = "transformer/layers/attention/q" if len(shape) == 4 else "transformer/layers/mlp/up"
  updates = {name: jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)}
  rule = muon.scaled_by_muon(iterations=5, eps=1e-8)
  plain, _ = rule.update(updates, rule.init(updates))
  with products.rounding(kind):  # compiled, as transpositions are folded into products then
    found, state = jax.jit(lambda u: rule.update(u, rule.init(u)))(updates)
  assert optax.global_norm(found) == pytest.approx(float(optax.global_norm(plain)), rel=0.02)
  assert 0 < jnp.linalg.norm(found[name] - plain[name]) < 0.05 * jnp.linalg.norm(plain[name])
  assert jax.tree.structure(state) == jax.tree.structure(rule.init(updates))
