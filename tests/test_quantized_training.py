"""Training with products in 8 bits: what they compute, where they are, and who can't have them."""

import functools
import importlib.util
import math
import re
from types import SimpleNamespace

from flax import nnx
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import test_step
import tiny

from orthus_jax import cli
from orthus_jax.config import LoraConfig, MeshConfig, TransformerConfig
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib
from orthus_jax.models.cache import Cache
from orthus_jax.models.quantized_training import check, dot
from orthus_jax.models.transformer import Transformer
from orthus_jax.parallel import mesh as mesh_lib

pytest.importorskip("qwix", reason="pip install -e '.[quantized]'")
B, T, D, N, H = 2, 3, 32, 4, 8
KINDS = {"int8": (np.int8, np.int8), "fp8": (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)}


@functools.cache
def arrays(dtype):
  """x [B, T, D], a kernel [D, N, H] and a gradient [B, T, N, H], whose sizes differ from place to place."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((B, T, D)) * 10.0 ** rng.integers(-3, 3, (B, T, 1))
  kernel = rng.standard_normal((D, N, H)) * 10.0 ** rng.integers(-2, 2, (1, N, H))
  x[0, 0], kernel[:, 0, 0] = 0, 0  # what has no size has no scale
  return tuple(jnp.asarray(a, dtype) for a in (x, kernel, 1e-6 * rng.standard_normal((B, T, N, H))))


def plain(x, dtype, axes):
  """An array as its 8-bit values and its scales. The largest is on the edge between two values: divided as the product's."""
  x = jnp.asarray(x, jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / (127.5 if dtype is np.int8 else float(ml_dtypes.finfo(dtype).max))
  scale = jnp.where(scale == 0, 1, scale)
  x, scale = np.asarray(x / scale), np.asarray(scale)
  return np.asarray(np.clip(np.round(x), -128, 127) if dtype is np.int8 else x.astype(dtype), np.float64), scale


def near(found, expected):
  """Equal within what float32, or the rounding of the result to bfloat16, makes of a sum."""
  allowed = 2**-8 if found.dtype == jnp.bfloat16 else 2e-6
  np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=allowed, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_sums_of_8_bit_values(kind, dtype):
  x, kernel, g = arrays(dtype)
  of_x, of_g = KINDS[kind]
  (q_x, s_x), (q_k, s_k) = plain(x, of_x, 2), plain(kernel, of_x, 0)
  y, back = jax.vjp(lambda x, kernel: dot(x, kernel, kind), x, kernel)
  near(y, np.einsum("btd,dnh->btnh", q_x, q_k) * s_x[..., None] * s_k)

  # Straight through: products of the gradient with the values that the forward product had.
  x_grad, kernel_grad = back(g)
  assert (y.dtype, x_grad.dtype, kernel_grad.dtype) == (dtype,) * 3
  g = np.asarray(g, np.float32)
  q_g, s_g = plain(g * s_k, of_g, (2, 3))
  near(x_grad, np.einsum("btnh,dnh->btd", q_g, q_k) * s_g[..., 0])
  if kind == "int8":  # a sum over rows isn't in 8 bits
    near(kernel_grad, np.einsum("btd,btnh->dnh", np.asarray(jnp.asarray(q_x * s_x, dtype), np.float64), g))
  else:
    q_g, s_g = plain(g * s_x[..., None], of_g, (0, 1))
    near(kernel_grad, np.einsum("btd,btnh->dnh", q_x, q_g) * s_g[0])


@pytest.mark.parametrize("kind, error", [("int8", 0.015), ("fp8", 0.08)])
def test_products_and_gradients_are_close_to_those_of_floats(kind, error):
  rng = np.random.default_rng(1)
  x, kernel, g = (jnp.asarray(rng.standard_normal(a.shape), jnp.float32) for a in arrays("float32"))
  found, expected = (jax.vjp(f, x, kernel) for f in (lambda x, k: dot(x, k, kind), lambda x, k: jnp.tensordot(x, k, 1)))
  for a, b in zip((found[0], *found[1](g)), (expected[0], *expected[1](g))):
    assert jnp.linalg.norm(a - b) < error * jnp.linalg.norm(b)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_shows(kind, value):
  """The guard skips such an update; a value clipped to 8 bits would be trained on."""
  x, kernel, g = arrays("float32")
  assert not np.isfinite(dot(x.at[1, 1, 0].set(value), kernel, kind)[1, 1]).any()
  back = jax.vjp(lambda x, kernel: dot(x, kernel, kind), x, kernel)[1]
  assert not any(np.isfinite(part).all() for part in back(g.at[1, 1, 0, 0].set(value)))


# --- in the layers --------------------------------------------------------------------------------------------------


def build(kind, *, lora=LoraConfig(), remat="none", dtype="bfloat16"):
  config = TransformerConfig(
      vocab_size=64, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_dim=4, dtype=dtype, quantization=kind,
      remat=remat,
  )  # fmt: skip
  return Transformer(config, lora=lora, rngs=nnx.Rngs(params=0))


@functools.cache
def products(kind="int8", *, of=lambda params: params, **how):
  """How many products the forward pass and the gradients take a layer: (of 8 bits, of more, equations).

  Args:
    of: chooses the parameters that have gradients.
    how: of `build`.
  """
  graphdef, params = params_lib.split(build(kind, **how))
  position_BT = jnp.broadcast_to(jnp.arange(5), (1, 5))

  def loss(trained, x_BTD):
    model = params_lib.merge(graphdef, {**params, **trained})
    return jnp.sum(model(x_BTD, position_BT=position_BT, segment_ids_BT=jnp.ones((1, 5), int)))

  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(of(params), jnp.ones((1, 5, 16))).jaxpr
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return *count(found := list(test_step.equations(jaxpr)), layers=2), found


def count(found, *, layers):
  """(products of 8 bits, others) of a layer."""
  operands = [(e.invars[1].aval.dtype.itemsize, times) for e, times in found if e.primitive.name == "dot_general"]
  eight = sum(times for size, times in operands if size == 1)
  return eight / layers, (sum(times for _, times in operands) - eight) / layers


@pytest.mark.slow
def test_a_step_quantises_the_layers_products_alone():
  c, without = test_step.trace()
  L = c.model.transformer.layers
  eight, others = count(test_step.trace(model__transformer__quantization="int8")[1], layers=L)
  assert eight == 14  # of seven weights, forward and the gradient of what comes in
  assert others == count(without, layers=L)[1] - 14


@pytest.mark.slow
def test_which_passes_are_in_8_bits():
  attention = products("none")[1] - 21
  assert products("int8")[:2] == (14, 7 + attention)
  assert products("fp8")[:2] == (21, attention)
  # Of frozen weights there are no gradients, and adapters' products aren't quantised.
  lora = LoraConfig(rank=4, targets=("mlp/up",))
  found = products("fp8", of=lambda params: {n: v for n, v in params.items() if "_lora_" in n}, lora=lora)
  assert found[:2] == (14, 6 + attention)


@pytest.mark.parametrize("remat, again, kept", [("dots", 0, {"bfloat16"}), ("full", 6, set())])
def test_remat_keeps_results_not_sums_of_32_bits(remat, again, kept):
  eight, _, found = products(remat=remat)
  stacked = {v.aval for e, _ in found if e.primitive.name == "scan" for v in e.outvars if v.aval.shape[:1] == (2,)}
  assert eight == 14 + again  # all but the last product of a layer are computed again
  assert {str(a.dtype) for a in stacked if a.shape == (2, 1, 5, 24)} == kept


def test_no_layers_weights_are_kept_in_8_bits():
  """Whole on every device, they would take a quarter of a sharded model's float32."""
  found = products()[2]
  stacked = [v.aval for e, _ in found if e.primitive.name == "scan" for v in e.outvars if v.aval.shape[:1] == (2,)]
  assert {a.shape for a in stacked if a.dtype == jnp.int8} == {(2, 1, 5, 16), (2, 1, 5, 24)}  # of x alone


def test_what_generates_does_without():
  module = build("int8")
  cache = Cache.empty(module.config, batch=1, slots=8)
  extend = jax.make_jaxpr(lambda x_BTD: module.extend(x_BTD, cache, start_B=jnp.zeros(1, int)))(jnp.ones((1, 5, 16)))
  assert count(list(test_step.equations(extend.jaxpr)), layers=2)[0] == 0
  assert params_lib.split(module)[1].keys() == params_lib.split(build("none"))[1].keys()  # nor does a checkpoint hold anything


# --- who can't have them --------------------------------------------------------------------------------------------


def device(kind, platform="tpu", **more):
  return SimpleNamespace(device_kind=kind, platform=platform, **more)


@pytest.mark.parametrize("kind, refused, said", [
    (device("TPU v4"), {"int8", "fp8"}, "none"), (device("TPU v5 lite"), {"fp8"}, "int8 or none"),
    (device("TPU v5"), {"fp8"}, "int8"), (device("TPU v6 lite"), {"fp8"}, "int8"), (device("TPU7x"), {"int8"}, "fp8 or none"),
    (device("NVIDIA A100-SXM4-80GB", "gpu", compute_capability="8.0"), {"fp8"}, "8.9 or newer, not 8.0; set it to int8"),
    (device("NVIDIA H100 80GB HBM3", "gpu", compute_capability="9.0"), set(), ""),
    (device("NVIDIA B200", "gpu", compute_capability="10.0"), set(), ""), (device("cpu", "cpu"), set(), ""),
])  # fmt: skip
def test_devices_that_cannot_are_refused(kind, refused, said):
  for quantization in ("none", *KINDS):
    config = tiny.config(model__transformer__quantization=quantization)
    if quantization in refused:
      with pytest.raises(BadRequest, match=f"quantization={quantization}.*{re.escape(said)}"):
        check(config, kind)
    else:
      check(config, kind)


def test_without_the_library_a_run_is_refused_before_it_begins(tmp_path, monkeypatch, capsys):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "qwix" else find(name, *more))
  argv = ["train", "--config=configs/shapes.py:runlocal", f"--workdir={tmp_path / 'run'}"]
  assert cli.main([*argv, "--config.model.transformer.quantization=int8", "--config.run.batch_size=8"]) == 2
  assert "quantization=int8 needs Qwix: pip install 'orthus_jax[quantized]'" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


# --- on a mesh ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_layers_agree_on_a_mesh(kind):
  """But for values on the edge between two of 8 bits, where sums of another order put some of them."""
  graphdef, params = params_lib.split(build(kind, remat="dots", dtype="float32"))
  axes = params_lib.shapes_and_axes(lambda: build(kind))[2]
  x_BTD = jax.random.normal(jax.random.key(0), (4, 8, 16))
  position_BT, segment_ids_BT = jnp.broadcast_to(jnp.arange(8), (4, 8)), jnp.ones((4, 8), int)

  def run(sizes):
    mesh = mesh_lib.make_mesh(MeshConfig(**sizes), devices=jax.devices()[: math.prod(sizes.values())])
    with jax.set_mesh(mesh):
      placed = {n: jax.device_put(v, mesh_lib.sharding(mesh, v.shape, axes[n])) for n, v in params.items()}

      @jax.jit
      @functools.partial(jax.grad, has_aux=True)
      def gradient(params):
        y_BTD = params_lib.merge(graphdef, params)(x_BTD, position_BT=position_BT, segment_ids_BT=segment_ids_BT)
        return jnp.sum(jnp.sin(y_BTD)), y_BTD

      grads, y_BTD = gradient(placed)
    return jax.device_get(grads | {"y": y_BTD})

  whole, split = run(dict(fsdp=1)), run(dict(fsdp=2, context=2, tensor=2))
  for name, a in whole.items():
    assert np.linalg.norm(split[name] - a) < 0.02 * np.linalg.norm(a), name
