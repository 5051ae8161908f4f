"""What only a GPU shows: `JAX_PLATFORMS=cuda,cpu pytest tests/test_gpu.py`; skipped where there is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_meshes
import tiny

import orthus_jax as oj
from orthus_jax.models import attention
from orthus_jax.parallel import sharded

pytestmark = pytest.mark.skipif(jax.default_backend() == "cpu" or sharded.platform() != "gpu", reason="needs a GPU")

B, T, N = 2, 512, 4


def _segments(T):
  """Two documents and padding; and one document."""
  return jnp.asarray(np.stack([np.r_[np.full(200, 1), np.full(190, 2), np.zeros(T - 390)], np.full(T, 1)]), jnp.int32)


def _found(backend, dtype, *, T=T, H=128, K=N, shared=False):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
  *qkv, weight = (jax.random.normal(k, s).astype(jnp.bfloat16) for k, s in zip(keys, shapes))
  segments = _segments(T)
  ids = dict(shared_ids_BT=jnp.where(segments == 2, 1, segments)) if shared else {}

  def f(*qkv):
    o = attention.causal_attention(*qkv, segment_ids_BT=segments, backend=backend, **ids)
    return (o.astype(jnp.float32) * weight).sum(), o

  with jax.default_matmul_precision("highest"):
    (_, o), grads = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(*(x.astype(dtype) for x in qkv))
  return [np.asarray(x, np.float32) for x in (o, *grads)]


@pytest.mark.parametrize(
    "changes", [{}, {"T": 500}, {"H": 64}, {"H": 256}, {"H": 48}, {"K": 2}, {"shared": True}], ids=str
)
def test_cudnn_agrees_with_plain_attention(changes):
  for a, b in zip(_found("xla", jnp.float32, **changes), _found("cudnn", jnp.bfloat16, **changes), strict=True):
    assert np.isfinite(b).all()
    assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(a)


@functools.cache
def _metrics(remat):
  """Of three steps in bfloat16."""
  return test_meshes.run(model__transformer__dtype="bfloat16", model__transformer__remat=remat)[0]


@pytest.mark.parametrize("remat", ["dots", "qkv", "attention", "full", "offload"])
def test_what_is_kept_changes_no_step(remat):
  for found, expected in zip(_metrics(remat), _metrics("none"), strict=True):
    for name in ("loss", "grad_norm"):
      assert found[name] == pytest.approx(expected[name], rel=2e-2), name


def test_drawing_in_bfloat16_draws_the_same_twice():
  model = tiny.lively_model(model__transformer__dtype="bfloat16")
  documents = [oj.document("draw a red box"), oj.document("draw a blue box")]
  a, b = (model.generate(documents, respond="image") for _ in range(2))
  for x, y in zip(a, b, strict=True):
    np.testing.assert_array_equal(x.images[-1].pixels, y.images[-1].pixels)
