"""LoRA: adapters beside frozen weights, in a model, a run and a checkpoint."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from orthus_jax.config import BadRequest, LoraConfig
from orthus_jax.models import lora, params as params_lib, quantized
from orthus_jax.models.orthus import describe
from orthus_jax.models.transformer import Layer

LORA = dict(model__lora__rank=4, model__lora__alpha=2.0)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params):
  net = params_lib.merge(graphdef, params)
  rng = np.random.default_rng(1)
  states = net(
      jnp.asarray(rng.integers(20, 300, (2, 12))), features_BJC=jnp.asarray(rng.standard_normal((2, 4, 4)), jnp.float32),
      slot_BT=jnp.where(jnp.arange(12) < 4, jnp.arange(12), -1)[None].repeat(2, 0),
      position_BT=jnp.arange(12)[None].repeat(2, 0), segment_ids_BT=jnp.ones((2, 12), int),
  )  # fmt: skip
  return net.logits(states)


def outputs(model, **params) -> np.ndarray:
  """Logits of rows of a picture and tokens, where parameters may be replaced by others."""
  return np.asarray(_logits(model.graphdef, {**model.params, **params}))


def plainly_merged(params, config: LoraConfig):
  """Parameters of the model without adapters, by numpy, a layer and a weight at a time."""
  merged = {n: np.array(v, np.float64) for n, v in params.items() if "_lora_" not in n}
  for name in (n for n in merged if f"{n}_lora_a" in params):
    for layer, w in enumerate(merged[name]):
      a = np.asarray(params[f"{name}_lora_a"][layer], np.float64).reshape(-1, config.rank)
      b = np.asarray(params[f"{name}_lora_b"][layer], np.float64).reshape(config.rank, -1)
      w += (config.alpha / config.rank * (a @ b)).reshape(w.shape)
  return {n: jnp.asarray(v, jnp.float32) for n, v in merged.items()}


@pytest.mark.parametrize("targets", [("attention/.*", "mlp/.*"), ("attention/(q|out)", "mlp/down")])
@pytest.mark.parametrize("flat", [False, True])
def test_adapters_compute_what_merged_weights_do(targets, flat):
  model = tiny.lively_model(**LORA, model__lora__targets=targets, model__transformer__merge_positions=flat)
  config = dataclasses.replace(model.config.model, lora=LoraConfig())
  graphdef, shapes, _ = describe(config)
  own = lora.names(model.params)
  assert len(own) == 2 * (7 if len(targets[0]) == len("attention/.*") else 3)
  assert set(model.params) - own == set(shapes)
  merged = dataclasses.replace(model, graphdef=graphdef, params=plainly_merged(model.params, model.config.model.lora))
  bare = dataclasses.replace(merged, params={n: model.params[n] for n in shapes})
  np.testing.assert_allclose(outputs(model), outputs(merged), atol=1e-5)
  assert np.abs(outputs(bare) - outputs(merged)).max() > 1e-2


def test_fresh_adapters_change_nothing_and_leave_the_rest_as_it_starts():
  c = tiny.config(**LORA).model
  without, with_them = (
      params_lib.split(Layer(c.transformer, lora=kind, rngs=nnx.Rngs(params=3)))[1] for kind in (LoraConfig(), c.lora)
  )
  own = lora.names(with_them)
  assert len(own) == 14 and set(with_them) - own == set(without)
  for name, value in without.items():
    np.testing.assert_array_equal(value, with_them[name])
  for name in own:
    assert with_them[name].dtype == jnp.float32
    assert np.any(with_them[name]) == name.endswith("_lora_a"), name
  assert 0.9 * 32**-0.5 < np.abs(with_them["attention/q_lora_a"]).max() <= 32**-0.5
  _, shapes, axes = describe(c)
  assert shapes["transformer/layers/attention/q_lora_a"] == (2, 32, 4)
  assert shapes["transformer/layers/attention/out_lora_a"] == (2, 4, 8, 4)
  assert axes["transformer/layers/attention/q_lora_a"] == ("layers", "embed", None)
  assert axes["transformer/layers/attention/q_lora_b"] == ("layers", None, "heads", "head_dim")
  assert axes["transformer/layers/mlp/down_lora_b"] == ("layers", None, "embed")


@pytest.mark.parametrize("kept", ["int8", "bfloat16"])
def test_adapters_beside_weights_of_fewer_bits(kept):
  model = tiny.lively_model(**LORA)
  exact = outputs(model)

  def fewer(name, value):
    if name in lora.names(model.params):
      return value
    return quantized.quantize(name, value) if kept == "int8" else value.astype(jnp.bfloat16)

  params = {n: fewer(n, v) for n, v in model.params.items()}
  coarse = outputs(model, **params)
  without = {n: jnp.zeros_like(v) if n.endswith("_lora_b") else v for n, v in params.items()}
  error = np.abs(coarse - exact).mean()
  assert error < 0.1 * np.abs(outputs(model, **without) - exact).mean()


@pytest.mark.parametrize("changes, message", [
    (dict(rank=4, targets=["attention/.*", "mlp"]), "'mlp' matches none of attention/q"),
    (dict(rank=4, targets=["("]), "'(' is no regular expression"),
    (dict(rank=4, targets=[]), "model.lora.targets is empty"),
    (dict(rank=-1), "model.lora.rank=-1 must be at least 0"),
])  # fmt: skip
def test_adapters_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(BadRequest) as refused:
    tiny.config(**{f"model__lora__{k}": v for k, v in changes.items()})
  assert message in str(refused.value)
