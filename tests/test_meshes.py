"""A step gives the same losses and parameters on every mesh, packed and accumulated."""

import functools

import jax
import numpy as np
import pytest
import tiny

from orthus_jax.data.pipeline import Pipeline
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib
from orthus_jax.models.heads.base import mean_losses
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import plan_run
from orthus_jax.training.step import batch_shardings, jit_step, train_step
from orthus_jax.training.tasks import OrthusTask

TK = tiny.tokenizer()
MESHES = {
    "fsdp 8": dict(fsdp=8),
    "fsdp 4 x tensor 2": dict(fsdp=4, tensor=2),
    "fsdp 2 x context 2 x tensor 2": dict(fsdp=2, context=2, tensor=2),
    "data 2 x fsdp 4": dict(data=2, fsdp=4),
}


@functools.cache
def batches():
  """Three packed batches; features stand for pictures, which keeps the vision tokenizer out of the compiled step."""
  config = tiny.config(data__cache_features=True)
  pipeline = Pipeline(tiny.TinySource(), TK, config)
  vision = config.model.vision_tokenizer
  shape = (len(pipeline.table.pixels), vision.patches, vision.latent_dim)
  pipeline.table.features_IPC = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  found = [pipeline.batch(i) for i in range(3)]
  assert max(b.segment_ids_BT.max() for b in found) > 1  # several documents a row
  return found


def config(**changes):
  # With an epsilon beside which rounding is small: without, AdamW turns a gradient that should be 0 into a whole step.
  changes = {"optimizer__eps": 1e-3, "optimizer__clip_norm": 1.0, "model__transformer__loss_chunk": 24,
             "model__diffusion__loss_chunk": 20, **changes}  # fmt: skip
  return tiny.config(**changes)


def build(mesh_sizes=None, **changes):
  """(jitted step, state, mesh, layout) for the first batch."""
  sizes = mesh_sizes or dict(fsdp=1)
  c = config(**{f"mesh__{k}": v for k, v in sizes.items()}, **changes)
  task = OrthusTask(c, None)
  mesh = mesh_lib.make_mesh(c.mesh, devices=jax.devices()[: np.prod(list(sizes.values()))])
  optimizer = make_optimizer(c.optimizer, c.run)
  with jax.set_mesh(mesh):
    layout, create = plan_run(c, task.init, optimizer=optimizer, mesh=mesh)
    step = jit_step(train_step(task, optimizer, c, layout), layout, mesh, batches()[0], c)
    # The vision tokenizer isn't read: zeros, which compile in a third of the time.
    return step, create(frozenset(n for n in layout.shapes.params if n.startswith("vision_tokenizer/"))), mesh, layout


def run(mesh_sizes=None, **changes):
  """Metrics of three steps, the parameters after them, and the state."""
  step, state, mesh, _ = build(mesh_sizes, **changes)
  metrics = []
  with jax.set_mesh(mesh):
    for batch in batches():
      state, m = step(state, jax.device_put(batch, batch_shardings(mesh, batch)))
      metrics.append({k: float(v) for k, v in m.items()})
  return metrics, {k: np.asarray(v, np.float32) for k, v in state.params.items()}, state


def apart(a, b):
  """The largest relative difference of a metric, and of a parameter against its array's largest value."""
  metric = max(abs(y[k] - x[k]) / max(abs(x[k]), 1e-6) for x, y in zip(a[0], b[0], strict=True) for k in x)
  return metric, max(np.abs(a[1][k] - b[1][k]).max() / max(np.abs(a[1][k]).max(), 1e-6) for k in a[1])


@functools.cache
def one_device():
  return run()


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", MESHES)
def test_meshes_agree_with_one_device(name, accumulation):
  if accumulation == 2 and name not in ("fsdp 4 x tensor 2", "fsdp 2 x context 2 x tensor 2"):
    pytest.skip("8 rows in two microbatches need at most 4 devices along fsdp")
  found = run(MESHES[name], optimizer__accumulation=accumulation)
  assert max(apart(one_device(), found)) < 1e-5
  up = found[2].trained["transformer/layers/mlp/up"]
  ways = up.size // up.addressable_shards[0].data.size
  assert ways == MESHES[name]["fsdp"] * MESHES[name].get("tensor", 1)  # it really is split


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression", "chameleon", "showo"])
def test_every_system_agrees_with_one_device(name):
  whole, found = (run(mesh, **tiny.SYSTEMS[name]) for mesh in (None, MESHES["fsdp 2 x context 2 x tensor 2"]))
  assert max(apart(whole, found)) < 1e-5


@pytest.mark.slow
def test_chunks_agree_with_whole_rows():
  whole = run(model__transformer__loss_chunk=0, model__diffusion__loss_chunk=0)
  assert max(apart(one_device(), whole)) < 1e-5


@pytest.mark.slow
def test_merged_rows_of_the_image_head_stay_split():
  c = config(mesh__fsdp=8, model__transformer__merge_positions=True)
  v, D, B, G = c.model.vision_tokenizer, c.model.transformer.width, 8, 2
  mesh = mesh_lib.make_mesh(c.mesh, devices=jax.devices()[:8])
  layout, _ = plan_run(c, OrthusTask(c, None).init, optimizer=make_optimizer(c.optimizer, c.run), mesh=mesh)
  rng = np.random.default_rng(0)
  head = {n: x for n, x in layout.shapes.params.items() if n.startswith("image_head/")}
  params = {n: 0.2 * rng.standard_normal(x.shape).astype(np.float32) for n, x in head.items()}
  places = {n: layout.shardings.params[n] for n in params}
  inputs = (
      rng.standard_normal((B, G, v.patches, D)).astype(np.float32),
      rng.standard_normal((B, G, v.patches, v.latent_dim)).astype(np.float32),
      jax.random.split(jax.random.key(0), (B, G, v.patches)),
  )

  def gradient(merge):
    def loss(params, *inputs):
      rest = {n: np.zeros(x.shape, x.dtype) for n, x in layout.shapes.params.items() if n not in params}
      head = params_lib.merge(layout.graphdef, {**rest, **params}).image_head
      return mean_losses(head, *inputs, merge=merge).mean()

    return jax.grad(loss)

  with jax.set_mesh(mesh):
    put = (places, *batch_shardings(mesh, inputs))
    f = jax.jit(gradient(True), in_shardings=put, out_shardings=places).lower(params, *inputs).compile()
    found = f(*jax.device_put((params, *inputs), put))
  rows = B * G * v.patches * c.model.diffusion.draws
  assert f"[{rows // 8}," in f.as_text() and f"[{rows}," not in f.as_text()
  for n, expected in jax.jit(gradient(False))(params, *inputs).items():
    np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=n)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(tensor=2, heads=6, kv_heads=3), "kv_heads=3 can't be split in 2: make it a multiple, or mesh.tensor"),
        (dict(tensor=2, vocab_size=401), "vocab_size=401"), (dict(tensor=2, mlp_width=65), "mlp_width=65"),
        (dict(tensor=8), "heads=4"), (dict(fsdp=8, width=36), "width=36"),
        (dict(context=4, sequence_length=66), "data.sequence_length=66 can't be split in 4"),
        (dict(fsdp=8, batch_size=12), "run.batch_size=12"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_divide_is_refused(changes, message):
  sizes = {k: changes.pop(k) for k in ("fsdp", "tensor", "context") if k in changes}
  where = {"sequence_length": "data__", "batch_size": "run__"}
  c = tiny.config(
      **{f"mesh__{k}": v for k, v in {"fsdp": 1, **sizes}.items()},
      **{f"{where.get(k, 'model__transformer__')}{k}": v for k, v in changes.items()},
  )
  mesh = mesh_lib.make_mesh(c.mesh, devices=jax.devices()[: np.prod(list(sizes.values()))])
  with pytest.raises(BadRequest, match=message):
    mesh_lib.check(mesh, c)


class Chip:
  """As much of a TPU as a mesh asks for."""

  platform, device_kind, process_index, num_cores = "tpu", "TPU v5", 0, 1

  def __init__(self, n: int, slices: int):
    self.id, self.slice_index = n, n // (8 // slices)
    self.coords, self.core_on_chip = ((n % (8 // slices)) % 2, (n % (8 // slices)) // 2, 0), 0


def test_data_alone_runs_between_slices():
  chips = [Chip(n, 2) for n in range(8)]
  mesh = mesh_lib.make_mesh(tiny.config(mesh__data=2, mesh__fsdp=-1, mesh__tensor=2).mesh, devices=chips)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
  for part in (0, 1):
    assert {d.slice_index for d in mesh.devices[part].flat} == {part}
  with pytest.raises(BadRequest, match="mesh.data=1 must be a multiple of the 2 slices"):
    mesh_lib.make_mesh(tiny.config(mesh__fsdp=-1).mesh, devices=chips)
