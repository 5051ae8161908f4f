"""The backbone: nothing looks ahead, documents of a row don't meet, and every way of computing gives the same."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orthus_jax.config import TransformerConfig
from orthus_jax.errors import BadRequest
from orthus_jax.models import products
from orthus_jax.models.cache import Cache
from orthus_jax.models.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=64, width=16, mlp_width=24, layers=3, heads=4, kv_heads=2, head_dim=4, max_positions=64, dtype="float32",
    remat="none",
)  # fmt: skip
B, T = 2, 10


def build(**changes) -> Transformer:
  return Transformer(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(params=0))


def inputs(seed=0):
  x_BTD = jax.random.normal(jax.random.key(seed), (B, T, CONFIG.width))
  return x_BTD, jnp.broadcast_to(jnp.arange(T), (B, T)), jnp.ones((B, T), int)


@jax.jit
def run(model, x_BTD, position_BT, segment_ids_BT):
  return model(x_BTD, position_BT=position_BT, segment_ids_BT=segment_ids_BT)


@pytest.mark.slow
def test_no_position_sees_a_later_one():
  x, position, segments = inputs()
  model = build()
  gradient_at = jax.jit(jax.grad(lambda x, t: jnp.abs(run(model, x, position, segments)[:, t]).sum()))
  for t in (0, 4, T - 1):
    gradient = gradient_at(x, t)
    reach = np.asarray(jnp.abs(gradient).sum(axis=(0, 2))) > 0
    np.testing.assert_array_equal(reach, np.arange(T) <= t)


def test_packed_documents_do_not_meet():
  x, _, _ = inputs()
  model = build()
  segments = jnp.asarray([[1] * 4 + [2] * 6] * B)
  position = jnp.asarray([[*range(4), *range(6)]] * B)
  packed = run(model, x, position, segments)
  alone = run(model, x[:, 4:], position[:, 4:], segments[:, 4:])
  np.testing.assert_allclose(packed[:, 4:], alone, atol=1e-5)
  gradient = jax.jit(jax.grad(lambda x: run(model, x, position, segments)[:, 4:].sum()))(x)
  assert float(jnp.abs(gradient[:, :4]).max()) == 0


SLOW = [pytest.param({"remat": r}, marks=pytest.mark.slow) for r in ("kv_mlp", "mlp", "qkv", "attention", "offload")]


@jax.jit
def value_and_grad(model):
  x, position, segments = inputs()
  return jax.value_and_grad(lambda m: jnp.square(run(m, x, position, segments)).sum())(model)


@pytest.mark.parametrize(
    "changes", [{"remat": "dots"}, {"remat": "full"}, {"scan_unroll": 3}, {"merge_positions": True}, *SLOW], ids=str
)
def test_ways_of_computing_agree(changes):
  expected, found = value_and_grad(build()), value_and_grad(build(**changes))
  for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def products_by_policy(rounding):
  """How many products a gradient computes under each policy."""
  x, position, segments = inputs()
  found = {}
  for policy in ("none", "dots", "kv_mlp", "mlp", "qkv", "attention", "full", "offload"):
    with products.rounding(rounding):
      jaxpr = jax.make_jaxpr(jax.grad(lambda m: run(m, x, position, segments).sum()))(build(remat=policy))
    text = str(jaxpr)
    found[policy] = text.count("dot_general")
    assert ("pinned_host" in text or "Host" in text) == (policy == "offload")
  return found


def test_remat_policies_keep_what_they_say():
  kept = products_by_policy("")
  # The fewer results are kept, the more products there are.
  order = [kept[p] for p in ("none", "dots", "kv_mlp", "qkv", "mlp", "attention", "full")]
  assert order == sorted(set(order)) and kept["offload"] == kept["qkv"], kept
  # Factors in bfloat16 hide no product from a policy.
  assert products_by_policy("anywhere") == kept


@pytest.mark.parametrize("placement", ["pre", "swin"])
def test_cache_agrees_with_the_whole_row(placement):
  x, position, segments = inputs()
  model = build(norm_placement=placement)
  whole = run(model, x, position, segments)
  # Rows of different lengths so far: 3 and 5 positions, then one at a time; leftovers beyond a length don't matter.
  cache = Cache.empty(model.config, batch=B, slots=T + 4)
  prefix = jnp.asarray([3, 5])
  extend = jax.jit(lambda model, x, cache, start: model.extend(x, cache, start_B=start))
  _, cache = extend(model, x[:, :6], cache, jnp.zeros(B, int))
  for i in range(5):
    at = prefix + i
    step = jnp.take_along_axis(x, at[:, None, None], axis=1)
    hidden, cache = extend(model, step, cache, at)
    np.testing.assert_allclose(hidden[:, 0], jnp.take_along_axis(whole, at[:, None, None], axis=1)[:, 0], atol=1e-5)


def test_norm_placements_differ():
  x, position, segments = inputs()
  difference = run(build(), x, position, segments) - run(build(norm_placement="swin"), x, position, segments)
  assert float(jnp.abs(difference).max()) > 0.1


def test_refuses_heads_that_do_not_group():
  with pytest.raises(BadRequest, match="heads=4 must be a multiple of kv_heads=3"):
    dataclasses.replace(CONFIG, kv_heads=3)
