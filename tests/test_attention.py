"""Attention: every backend, on every mesh, gives what plain attention on one device gives, segments and all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orthus_jax.config import MeshConfig
from orthus_jax.errors import BadRequest
from orthus_jax.models import attention, attention_kernels, products
from orthus_jax.parallel import mesh as mesh_lib, sharded

B, T, N, K, H = 2, 256, 4, 2, 128
# Two documents and padding in one row, one of them in another row, of lengths that no tile divides.
SEGMENTS = np.stack([np.r_[np.full(100, 1), np.full(90, 2), np.zeros(66)], np.full(T, 1)]).astype(np.int32)
MESHES = [dict(fsdp=2, tensor=2, context=2), dict(fsdp=1, context=2), dict(data=2, tensor=2)]


def inputs(size=H):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = ((B, T, N, size), (B, T, K, size), (B, T, K, size), (B, T, N, size))
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes)]


def value_and_grads(backend, mesh=None, size=H, **options):
  """Attention's result, and gradients of a weighted sum of it."""
  *qkv, weight = inputs(size)

  def f(q, k, v):
    o = attention.causal_attention(q, k, v, segment_ids_BT=jnp.asarray(SEGMENTS), backend=backend, block=128, **options)
    return (o * weight).sum(), o

  grad = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))
  if mesh is None:
    (_, o), grads = grad(*qkv)
  else:
    config = MeshConfig(**{"fsdp": 1, **mesh})
    size = np.prod([config.data, config.fsdp, config.tensor, config.context])
    devices = jax.devices()[:size]
    if len(devices) < size:
      pytest.skip(f"needs {size} devices")
    with jax.set_mesh(mesh_lib.make_mesh(config, devices=devices)):
      (_, o), grads = grad(*qkv)
  return [np.asarray(x) for x in (o, *grads)]


@functools.cache
def plain():
  return value_and_grads("xla")


def test_plain_attention_by_hand():
  q, k, v, _ = (np.asarray(x) for x in inputs())
  for b, t, n in ((0, 0, 0), (0, 120, 3), (1, 255, 2)):
    seen = [s for s in range(t + 1) if SEGMENTS[b, s] == SEGMENTS[b, t]]
    logits = k[b, seen, n // 2] @ q[b, t, n] / np.sqrt(H)
    w = np.exp(logits - logits.max())
    np.testing.assert_allclose(plain()[0][b, t, n], w / w.sum() @ v[b, seen, n // 2], atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_plain_attention_on_meshes(mesh):
  for a, b in zip(plain(), value_and_grads("xla", mesh), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("ahead", (False, True))
def test_attention_of_rounded_factors_is_nearly_that(ahead):
  """Its own gradients, too; grouped queries, segments, and positions that see ahead."""
  last_BT = jnp.asarray(np.arange(T)[None].repeat(B, 0) // 8 * 8 + 7) if ahead else None
  exact = value_and_grads("xla", last_BT=last_BT)
  with products.rounding("anywhere"):
    for a, b in zip(exact, value_and_grads("xla", last_BT=last_BT), strict=True):
      np.testing.assert_array_equal(a, b)
  with products.rounding("cpu"):
    for a, b in zip(exact, value_and_grads("xla", last_BT=last_BT), strict=True):
      assert 0 < np.linalg.norm(a - b) < 0.01 * np.linalg.norm(a)


def test_rotations_that_are_looked_up_are_those_worked_out():
  position_BT = jnp.asarray(np.r_[np.arange(100), np.arange(90), np.zeros(66)].astype(np.int32)[None].repeat(B, 0))
  q_BTNH = inputs()[0]
  rotate = attention.looked_up(position_BT, H, theta=1e4, positions=100)
  np.testing.assert_allclose(rotate(q_BTNH), attention.rope(q_BTNH, position_BT, theta=1e4), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh, fused", [(None, False), *((m, True) for m in (None, *MESHES))], ids=str)
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="a kernel for TPUs, interpreted on CPUs")
def test_splash_agrees(mesh, fused):
  for a, b in zip(plain(), value_and_grads("splash", mesh, fused=fused), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


SIZES = [(64, True, None), *(pytest.param(*p, marks=pytest.mark.slow) for p in (
    (40, False, None), (80, True, MESHES[0]), (192, True, None)
))]  # fmt: skip


@pytest.mark.parametrize("size, fused, mesh", SIZES)
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="a kernel for TPUs, interpreted on CPUs")
def test_splash_takes_heads_of_any_size(size, fused, mesh):
  found = value_and_grads("splash", mesh, size=size, fused=fused)
  for a, b in zip(value_and_grads("xla", size=size), found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_cudnn_is_told_of_segments(monkeypatch):
  # There is no such GPU here: what would be asked of cuDNN is asked of XLA.
  original = jax.nn.dot_product_attention

  def replaced(*args, implementation, **kwargs):
    assert implementation == "cudnn"
    return original(*args, implementation="xla", **kwargs)

  monkeypatch.setattr(jax.nn, "dot_product_attention", replaced)
  monkeypatch.setattr(attention_kernels, "choose", lambda *_, **__: "cudnn")
  for mesh in (None, MESHES[0]):
    for a, b in zip(plain(), value_and_grads("cudnn", mesh), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)


FACTS = dict(platform="tpu", length=4096, context=1, head_dim=128, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "splash"), ({"context": 4}, "splash"), ({"length": 4000}, "xla"), ({"head_dim": 64}, "splash"),
        ({"length": 1024, "context": 16}, "xla"), ({"platform": "gpu"}, "cudnn"), ({"platform": "cpu"}, "xla"),
        ({"platform": "gpu", "dtype": jnp.float32}, "xla"), ({"platform": "gpu", "length": 1025}, "xla"),
        ({"platform": "gpu", "head_dim": 256}, "cudnn"), ({"platform": "gpu", "head_dim": 256, "capability": (9, 0)}, "cudnn"),
        ({"platform": "gpu", "head_dim": 192, "capability": (10, 0)}, "xla"),
        ({"platform": "gpu", "head_dim": 136, "capability": (8, 0)}, "xla"), ({"platform": "gpu", "head_dim": 264}, "xla"),
        ({"platform": "gpu", "head_dim": 128, "capability": (12, 0)}, "cudnn"),
        ({"platform": "gpu", "capability": (7, 5)}, "xla"), ({"head_dim": 20, "length": 128}, "splash"),
    ],
)  # fmt: skip
def test_auto_takes_the_platforms_kernel_if_it_can(changes, expected):
  assert attention_kernels.choose("auto", **{**FACTS, **changes}) == expected


@pytest.mark.parametrize(
    "backend, changes, message",
    [
        ("splash", {"platform": "gpu"}, "kernel for TPUs"), ("splash", {"length": 4000}, "multiple of 128 positions"),
        ("splash", {"length": 1024, "context": 16}, "a multiple of 2048 positions, not 1024; set it to auto"),
        ("cudnn", {}, "this program is for tpu"),
        ("cudnn", {"platform": "gpu", "dtype": jnp.float32}, "not in float32"), ("flash", {}, "choose one of auto"),
        ("cudnn", {"platform": "gpu", "head_dim": 256, "capability": (8, 9)}, "at most 128 values .* capability 8.9, not 256"),
        ("cudnn", {"platform": "gpu", "head_dim": 100}, "a multiple of 8 and at most 256 values, not 100"),
        ("cudnn", {"platform": "gpu", "capability": (7, 5)}, "8.0 .Ampere. or newer, not 7.5"),
    ],
)  # fmt: skip
def test_what_a_backend_cannot_do_is_refused(backend, changes, message):
  with pytest.raises(BadRequest, match=message):
    attention_kernels.choose(backend, **{**FACTS, **changes})


def test_the_platform_is_the_meshs():
  assert sharded.platform() == jax.default_backend()
  device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
  mesh = jax.sharding.AbstractMesh((2,), ("fsdp",), (jax.sharding.AxisType.Explicit,), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert sharded.platform() == "tpu"
