"""Whitened features: other coordinates, the same pictures."""

from flax import nnx
import numpy as np
import pytest
import tiny

from orthus_jax.data import images
from orthus_jax.models import params as params_lib
from orthus_jax.models.vision_tokenizer import VisionTokenizer
from orthus_jax.training import whitening

CONFIG = tiny.config().model.vision_tokenizer


@pytest.mark.parametrize("power", (0.0, 0.5, 1.0))
def test_features_are_whitened_and_pictures_stay(power):
  model = VisionTokenizer(CONFIG, rngs=nnx.Rngs(params=0))
  graphdef, params = params_lib.split(model)
  pixels = np.random.default_rng(0).integers(0, 256, (64, CONFIG.resolution, CONFIG.resolution, 3), np.uint8)
  values = images.to_model(pixels, CONFIG.pixels)
  before = np.asarray(model.encode(values))
  flat = before.reshape(-1, CONFIG.latent_dim)
  new = params_lib.merge(graphdef, whitening.whiten(params, flat, power=power))
  after = np.asarray(new.encode(values))
  np.testing.assert_allclose(new.decode(after), model.decode(before), atol=2e-5)
  old = np.linalg.eigvalsh(np.cov(flat.T))
  spectrum = np.linalg.eigvalsh(np.cov(after.reshape(-1, CONFIG.latent_dim).T))
  np.testing.assert_allclose(spectrum / spectrum[-1], (old / old[-1]) ** (1 - power), rtol=2e-2, atol=1e-4)
  assert spectrum.mean() == pytest.approx(old.mean(), rel=1e-2)
  assert np.abs(after.mean(axis=(0, 1))).max() < 1e-3 * after.std()


def test_codes_are_fitted_to_the_features():
  rng = np.random.default_rng(0)
  centres = np.asarray([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
  features = np.repeat(centres, 50, axis=0) + 0.1 * rng.standard_normal((150, 2))
  codes = whitening._fit_codes(np.asarray([[1.0, 1.0], [4.0, 0.5], [0.5, 4.0], [90.0, 90.0]]), features)
  np.testing.assert_allclose(codes[:3], centres, atol=0.1)
  assert codes[3].tolist() == [90.0, 90.0]  # nearest to none
