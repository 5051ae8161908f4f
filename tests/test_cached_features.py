"""The loss is the same whether features are computed at every step, once ahead, or when data is prepared."""

import functools

import jax
import numpy as np
import pytest
import tiny

from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.prepared import writer
from orthus_jax.data.prepared.pipeline import PreparedPipeline
from orthus_jax.models import params as params_lib
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import feature_encoder
from orthus_jax.training.tasks import OrthusTask

TK = tiny.tokenizer()
small = functools.partial(tiny.config, model__transformer__layers=1, model__diffusion__blocks=1, run__batch_size=2)


@functools.cache
def model():
  """Structure, and parameters drawn at random: building it op by op takes long."""
  graphdef, shapes, _ = params_lib.shapes_and_axes(OrthusTask(small(), None).init)
  rng = np.random.default_rng(0)
  return graphdef, {n: rng.normal(0, 0.1, s.shape).astype(s.dtype) for n, s in shapes.items()}


def losses(pipeline, config) -> np.ndarray:
  """[steps, (loss, text, images)] of a few batches."""
  task, out = OrthusTask(config, pipeline), []
  row_B = np.arange(config.run.batch_size)
  graphdef, params = model()

  @jax.jit
  def run(params, batch):
    whole = params_lib.merge(graphdef, params)
    return task.loss(whole, batch, jax.random.key(0), total=task.counts(batch), row_B=row_B)

  for step in range(3):
    loss, metrics = run(params, pipeline.batch(step))
    out.append([loss, metrics["text_loss"], metrics["image_loss"]])
  return np.asarray(out)


def encode(pixels: np.ndarray) -> np.ndarray:
  graphdef, params = model()
  return np.asarray(feature_encoder.encoder(graphdef, params)(params, pixels))


@pytest.fixture(scope="module")
def every_step() -> np.ndarray:
  config = small(data__caption_dropout=0.3)
  return losses(Pipeline(tiny.TinySource(), TK, config), config)


def test_computed_once_ahead(every_step):
  config = small(data__caption_dropout=0.3, data__cache_features=True)
  pipeline = Pipeline(tiny.TinySource(), TK, config)
  graphdef, params = model()
  vision = config.model.vision_tokenizer
  mesh = mesh_lib.make_mesh(small(mesh__fsdp=1).mesh, devices=jax.devices()[:1])
  feature_encoder.encode_table(pipeline.table, graphdef, params, mesh, shape=(vision.patches, vision.latent_dim))
  np.testing.assert_allclose(losses(pipeline, config), every_step, rtol=1e-4)
  assert len(set(every_step[:, 0].tolist())) == 3


@pytest.mark.slow
def test_computed_when_data_is_prepared(tmp_path):
  options = {"features": dict(encode=encode, encoded_by="here"), "pixels": {}}
  found = {}
  for images, more in options.items():
    writer.prepare(tiny.TinySource(), TK, small(), tmp_path / images, images=images, **more)
    config = small(data__caption_dropout=0.3, data__source="prepared", data__path=str(tmp_path / images))
    found[images] = losses(PreparedPipeline(TK, config), config)
  np.testing.assert_allclose(found["features"], found["pixels"], rtol=2e-3)  # they are kept in bfloat16
