"""The VQGAN, its training, and the weights that are shipped."""

from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from orthus_jax import files
from orthus_jax.config import VisionEmbeddingConfig, VisionTokenizerConfig
from orthus_jax.config.command_line import load_config
from orthus_jax.data import images as images_lib
from orthus_jax.data.shapes import records
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import reconstruction
from orthus_jax.models import params as params_lib
from orthus_jax.models.vision_embedding import SoftVQ
from orthus_jax.models.vision_tokenizer import GroupNorm, VisionTokenizer
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import loop
from orthus_jax.training.checkpoints import workdir as checkpoint
from orthus_jax.training.state import TrainState
from orthus_jax.training.tasks import TokenizerTask

ROOT = Path(__file__).parent.parent


def test_group_norm_is_group_norm():
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 12)) * 3 + 1
  y = np.asarray(GroupNorm(12, groups=3)(x)).reshape(2, 16, 3, 4)
  np.testing.assert_allclose(y.mean(axis=(1, 3)), 0, atol=1e-5)
  np.testing.assert_allclose(y.std(axis=(1, 3)), 1, atol=1e-4)


def test_soft_vq_becomes_hard_as_the_temperature_falls():
  codebook_rows = jax.random.normal(jax.random.key(1), (8, 5))
  features = jax.random.normal(jax.random.key(2), (2, 3, 4))

  def embed(temperature):
    c = VisionEmbeddingConfig(temperature=temperature)
    e = SoftVQ(c, codes=8, latent_dim=4, patches=3, width=5, std=1.0, rngs=nnx.Rngs(params=0))
    distances = np.square(np.asarray(features)[:, :, None] - np.asarray(e.codebook[...])).sum(-1)
    return np.asarray(e(features, codebook_rows, patch_BP=np.arange(3)[None])), distances

  hard, distances = embed(1e-4)
  np.testing.assert_allclose(hard, np.asarray(codebook_rows)[distances.argmin(-1)], atol=1e-5)
  soft, _ = embed(2.0)
  weights = np.exp(-distances / 2.0)
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(soft, weights @ np.asarray(codebook_rows), atol=1e-5)


def test_sizes_that_cannot_be():
  with pytest.raises(BadRequest, match="resolution=30 must be a multiple of 16"):
    VisionTokenizerConfig(resolution=30)
  with pytest.raises(BadRequest, match="must be a multiple of norm_groups"):
    VisionTokenizerConfig(base_channels=48)


def test_ssim_and_psnr_agree_with_scikit_image():
  metrics = pytest.importorskip("skimage.metrics")
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
  b = np.clip(a + rng.normal(0, 25, a.shape), 0, 255).astype(np.uint8)
  assert reconstruction.psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b))
  expected = metrics.structural_similarity(
      a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
  )
  assert reconstruction.ssim(a, b) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_training_reconstructs_and_keeps_codes_alive(tmp_path, monkeypatch):
  make_mesh = mesh_lib.make_mesh  # of one device: eight take as much work again for each other
  monkeypatch.setattr(mesh_lib, "make_mesh", lambda config: make_mesh(config, devices=jax.devices()[:1]))
  config = tiny.config(
      task="vision_tokenizer", run__steps=120, run__batch_size=16, optimizer__trainable=[".*"],
      optimizer__learning_rate=3e-3, tokenizer_loss={"revive_every": 20, "commitment": 0.02, "noise": 0.1},
  )  # fmt: skip
  source = tiny.TinySource(60)
  checkpoint.open_workdir(tmp_path, config)
  result = loop.train(config, tmp_path, TokenizerTask(config, source))
  pictures = [i.pixels for n in range(60) for i in source[n].images]
  both = jax.jit(lambda p, x: params_lib.merge(result.graphdef, p).quantise(params_lib.merge(result.graphdef, p).encode(x)))
  codes = both(result.params, np.stack(pictures).astype(np.float32) * 0.0078 - 1)
  used = len(np.unique(codes)) / 16
  untrained = VisionTokenizer(config.model.vision_tokenizer, rngs=nnx.Rngs(params=0))
  before = len(np.unique(untrained.quantise(untrained.encode(jnp.asarray(np.stack(pictures[:8])) * 0.0078 - 1))))
  assert used >= 0.75 and used > before / 16
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert len(rows) == 120


def test_codes_that_are_frozen_stay():
  config = tiny.config(task="vision_tokenizer", tokenizer_loss={"revive_every": 1}, run__steps=100)
  task = TokenizerTask(config, tiny.TinySource(8))
  state = TrainState(step=jnp.int32(1), trained={"decoder": jnp.ones(1)}, frozen={}, moments={}, ema={})
  assert task.after_step(1, state, None, np.zeros(1)) is state


@pytest.mark.slow
def test_codes_that_nobody_used_become_features_on_a_mesh(tmp_path):
  source = tiny.TinySource(60)

  def train(name, every):
    config = tiny.config(
        task="vision_tokenizer", run__steps=3, run__batch_size=16, mesh__fsdp=8, optimizer__trainable=[".*"],
        optimizer__learning_rate=1e-12, tokenizer_loss={"revive_every": every, "commitment": 0.02, "noise": 0.1},
    )  # fmt: skip
    checkpoint.open_workdir(tmp_path / name, config)
    result = loop.train(config, tmp_path / name, TokenizerTask(config, source))
    return result, np.asarray(result.params["codebook"])

  result, kept_KC = train("kept", 0)
  _, codes_KC = train("revived", 100)  # after the first step alone: a second time, others would be unused
  pictures = np.stack([i.pixels for n in range(60) for i in source[n].images])
  features_NC = np.asarray(
      jax.jit(lambda p, x: params_lib.merge(result.graphdef, p).encode(x))(
          result.params, images_lib.to_model(pictures, tiny.config().model.vision_tokenizer.pixels)
      )
  ).reshape(-1, kept_KC.shape[1])
  square_NK = np.square(features_NC[:, None] - kept_KC).sum(-1)
  unused = ~np.isin(np.arange(len(kept_KC)), square_NK.argmin(1))
  changed = (np.abs(codes_KC - kept_KC) > 1e-6).any(1)
  assert unused.any()
  np.testing.assert_array_equal(changed, unused)
  assert np.abs(features_NC[:, None] - codes_KC[changed]).max(-1).min(0).max() < 1e-5


@pytest.mark.slow
def test_shipped_weights_reconstruct_unseen_scenes():
  config = load_config(f"{ROOT}/configs/shapes_tokenizer.py").model.vision_tokenizer
  assert config == load_config(f"{ROOT}/configs/shapes.py").model.vision_tokenizer
  graphdef, _, _ = params_lib.shapes_and_axes(lambda: VisionTokenizer(config, rngs=nnx.Rngs(params=0)))
  params = checkpoint.load_params("asset:shapes_vqgan")
  assert (files.ASSETS / "shapes_vqgan.npz").stat().st_size <= 4e6
  pictures = [records.make_document("caption_to_image", "test", i).images[0].pixels for i in range(128)]
  scores, _ = reconstruction.evaluate(graphdef, params, pictures)
  assert scores["psnr_unquantised"] >= 30
  assert scores["ssim_unquantised"] >= 0.95
  # The scale that diffusion works at is the features' own.
  scale = load_config(f"{ROOT}/configs/shapes.py").model.diffusion.latent_scale
  assert 0.7 < scale * scores["feature_std"] < 1.4
