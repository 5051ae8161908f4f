"""What a model's config says about pictures is what training, generation and scoring do."""

import dataclasses
import json

from flax import nnx
import jax
import numpy as np
import pytest
import tiny

from orthus_jax.data import images
from orthus_jax.data.documents import Document, Image, Text
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import reconstruction
from orthus_jax.inference.model import Model
from orthus_jax.inference.requests import Request
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import Orthus
from orthus_jax.training import losses, tasks

CONFIG = tiny.config(
    model__vision_tokenizer__resolution=16, model__vision_tokenizer__channel_multipliers=[1, 1, 1],
    model__vision_tokenizer__pixels=dict(resample="box", scale=1 / 255, mean=[0.5, 0.4, 0.3], std=[0.5, 0.25, 0.2]),
)  # fmt: skip
VISION = CONFIG.model.vision_tokenizer
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 41, 3), dtype=np.uint8)
FITTED = images.fit(PICTURE, 16, VISION.pixels)


@pytest.fixture(scope="module")
def model() -> Model:
  _, shapes, _ = params_lib.shapes_and_axes(lambda: Orthus(CONFIG.model, rngs=nnx.Rngs(params=0)))
  rng = np.random.default_rng(3)
  params = {n: rng.standard_normal(s.shape).astype(np.float32) * max(s.size, 1) ** -0.25 for n, s in shapes.items()}
  return Model.create(CONFIG, params, tiny.tokenizer())


@pytest.fixture(scope="module")
def features(model) -> np.ndarray:
  values = images.to_model(FITTED, VISION.pixels)
  tokenizer = params_lib.merge(model.graphdef, model.params).vision_tokenizer
  return np.asarray(jax.jit(lambda t, x: t.encode(x))(tokenizer, values[None])[0])


def test_pictures_are_fitted_as_the_config_says(model, tmp_path):
  images.save_png(tmp_path / "a.png", PICTURE)
  (tmp_path / "metadata.jsonl").write_text(json.dumps({"image": "a.png", "text": "red"}))
  folder = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, path=str(tmp_path)))
  np.testing.assert_array_equal(sources.open_source(folder, "train")[0].images[0].pixels, FITTED)
  d = Document((Image(PICTURE), Text("red", learn=True)), id="one")
  for fitted in (
      Pipeline([d], tiny.tokenizer(), CONFIG).table.pixels[0],
      tasks.TokenizerTask(CONFIG, [d]).batch(0)[0],
      model.prepare(Request(d, respond="text")).main.pictures[0].pixels,
  ):
    np.testing.assert_array_equal(fitted, FITTED)


@pytest.mark.slow
def test_pixels_are_scaled_as_the_config_says(model, features):
  np.testing.assert_allclose(model.encode([FITTED])[0], features, atol=1e-5)
  net = params_lib.merge(model.graphdef, model.params)
  learnt = jax.jit(losses.features)(net, FITTED[None, None])
  np.testing.assert_allclose(learnt[0, 0], features, atol=1e-5)
  decoded = jax.jit(lambda t, z: t.decode(z))(net.vision_tokenizer, features[None])
  expected = images.from_model(np.asarray(decoded), VISION.pixels)
  assert np.abs(model.decode([features]).astype(int) - expected).max() <= 1 and expected.std() > 2
  graphdef, params = params_lib.split(net.vision_tokenizer)
  scores, rows = reconstruction.evaluate(graphdef, params, [FITTED])
  assert scores["feature_std"] == pytest.approx(features.std(), rel=1e-3)
  assert np.abs(rows[1].astype(int) - expected[0]).max() <= 1


def test_impossible_settings_are_refused():
  for pixels, reason in (
      (dict(scale=0.0), "scale=0.0 must be at least"),
      (dict(std=[1.0, 0.0, 1.0]), "std.*must be at least"),
      (dict(resample="sinc"), "choose one of lanczos"),
  ):
    with pytest.raises(BadRequest, match=reason):
      tiny.config(model__vision_tokenizer__pixels=pixels)
