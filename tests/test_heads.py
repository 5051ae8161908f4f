"""The diffusion head and its process."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orthus_jax.config import BadRequest, DiffusionConfig
from orthus_jax.diffusion import process
from orthus_jax.models.heads.diffusion import DiffusionHead, mean_losses

SMALL = DiffusionConfig(width=16, blocks=2, latent_scale=0.5, draws=3)
PAPER = DiffusionConfig(width=16, blocks=2, target="noise", schedule="linear", zero_terminal_snr=False)


def head(config=SMALL):
  return DiffusionHead(config, latent_dim=4, width=8, dtype="float32", rngs=nnx.Rngs(params=0))


@pytest.mark.parametrize("config", [SMALL, PAPER])
def test_a_perfect_prediction_leads_back_to_the_feature(config):
  # Solve with the true target in the place of the network's: DDIM must end at x0, whatever the steps.
  abar = process.alphas_cumprod(config)
  x0, eps = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
  t = process.timesteps(config, 20)
  x = process.add_noise(x0, eps, abar[t[0]])
  for i, now in enumerate(t):
    following = abar[t[i + 1]] if i + 1 < len(t) else np.float32(1)
    v = process.target(x0, eps, abar[now], kind=config.target)
    x = process.ddim_step(x, v, abar=abar[now], abar_next=following, kind=config.target)
  np.testing.assert_allclose(x, x0, atol=1e-4)


def test_timesteps_are_trailing():
  assert process.timesteps(SMALL, 100)[:3].tolist() == [999, 989, 979]
  for steps in (1, 3, 7, 25, 999, 1000):
    t = process.timesteps(SMALL, steps)
    assert len(t) == steps and t[0] == 999 and t[-1] >= 0 and (np.diff(t) < 0).all()


def test_loss_is_vmapped_over_positions_and_draws():
  h = head()
  # The last linear starts at zero: give it something to say.
  h.output.kernel[...] = 0.1 * jax.random.normal(jax.random.key(5), (16, 4))
  z, x = jax.random.normal(jax.random.key(0), (2, 3, 5, 8)), jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
  keys = jax.random.split(jax.random.key(2), (2, 3, 5))
  losses = jax.jit(mean_losses)(h, z, x, keys)
  assert losses.shape == (2, 3, 5)
  merged = jax.jit(lambda *a: mean_losses(*a, merge=True))(h, z, x, keys)
  np.testing.assert_allclose(merged, losses, rtol=1e-5)
  t_key, eps_key = jax.random.split(keys[1, 2, 3])
  t, eps = jax.random.randint(t_key, (3,), 0, 1000), jax.random.normal(eps_key, (3, 4))
  expected = 0.0
  for q in range(3):
    abar = process.alphas_cumprod(SMALL)[int(t[q])]
    x0 = 0.5 * x[1, 2, 3]
    noised = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps[q]
    v = np.sqrt(abar) * eps[q] - np.sqrt(1 - abar) * x0
    expected += float(jnp.mean((h(noised, t[q], z[1, 2, 3]) - v) ** 2)) / 3
  assert float(losses[1, 2, 3]) == pytest.approx(expected, rel=1e-4)


def test_a_fresh_head_predicts_nothing():
  v = head()(jnp.ones((2, 4)), jnp.asarray([3, 999]), jnp.ones((2, 8)))
  np.testing.assert_array_equal(v, np.zeros((2, 4)))


def test_guidance_follows_its_weights():
  h = head()
  h.output.kernel[...] = 0.1 * jax.random.normal(jax.random.key(5), (16, 4))
  for block in h.blocks:
    block.modulation.kernel[...] = 0.5 * jax.random.normal(jax.random.key(6), block.modulation.kernel.shape)
  z, noise = jax.random.normal(jax.random.key(0), (2, 8)), jax.random.normal(jax.random.key(1), (4,))
  sample = jax.jit(lambda z, w: h.sample(z, w, noise, steps=5))
  alone = sample(z[:1], jnp.ones(1))
  np.testing.assert_allclose(sample(z, jnp.asarray([1.0, 0.0])), alone, atol=1e-5)
  assert float(jnp.abs(sample(z, jnp.asarray([3.0, -2.0])) - alone).max()) > 1e-3


def test_settings_that_exclude_each_other():
  with pytest.raises(BadRequest, match="zero_terminal_snr=False"):
    dataclasses.replace(SMALL, target="noise")
