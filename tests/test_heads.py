"""The diffusion head and its process."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tiny

from orthus_jax.config import DiffusionConfig, ModelConfig, TransformerConfig, VisionTokenizerConfig
from orthus_jax.diffusion import process, solvers
from orthus_jax.errors import BadRequest
from orthus_jax.models.heads.base import Turn, mean_losses, mixed
from orthus_jax.models.heads.diffusion import DiffusionHead
from orthus_jax.models.orthus import describe

SMALL = DiffusionConfig(width=16, blocks=2, latent_scale=0.5, draws=3)
PAPER = DiffusionConfig(width=16, blocks=2, target="noise", schedule="linear", zero_terminal_snr=False)


def head(config=SMALL):
  model = ModelConfig(
      transformer=TransformerConfig(width=8, dtype="float32"), vision_tokenizer=VisionTokenizerConfig(latent_dim=4),
      diffusion=config,
  )  # fmt: skip
  return DiffusionHead(model, rngs=nnx.Rngs(params=0))


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
    x = plain.ddim_step(x, v, abar=abar[now], abar_next=following, kind=config.target)
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
  predicted = jax.jit(lambda x_C, t, z_D: h(x_C, t, z_D))
  expected = 0.0
  for q in range(3):
    abar = process.alphas_cumprod(SMALL)[int(t[q])]
    x0 = 0.5 * x[1, 2, 3]
    noised = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps[q]
    v = np.sqrt(abar) * eps[q] - np.sqrt(1 - abar) * x0
    expected += float(jnp.mean((predicted(noised, t[q], z[1, 2, 3]) - v) ** 2)) / 3
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

  def drawn(z, *weights):
    return plain.draw(h, z[None], weights, noise[None], steps=5)

  alone = drawn(z[:1], 1.0)
  np.testing.assert_allclose(drawn(z, 1.0, 0.0), alone, atol=1e-5)
  assert float(jnp.abs(drawn(z, 3.0, -2.0) - alone).max()) > 1e-3


def test_without_noise_a_key_has_no_say():
  h, keys = head(), jax.random.split(jax.random.key(1), 3)
  z_XD = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (8,)), (3, 8))
  h.output.kernel[...] = 0.3 * jax.random.normal(jax.random.key(5), (16, 4))
  turn = Turn(
      jnp.arange(3), jnp.eye(3), keys, jnp.ones(3, bool), (("ddpm", 4),), jnp.zeros(3, int), jnp.asarray([[0.0, 1e9]] * 3),
      temperature_B=jnp.asarray([0.0, 0.0, 1.0]), top_k_B=jnp.zeros(3, int), guided=False,
  )  # fmt: skip
  a, b, other = jax.jit(lambda h, z: h.next_feature(z, turn))(h, z_XD)
  np.testing.assert_allclose(a, b, atol=1e-6)
  assert jnp.isfinite(a).all() and float(jnp.abs(a - other).max()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("guided", [True, False])
def test_a_batch_is_drawn_as_one_by_one(guided, kernel):
  # The plain way: the whole head at every step, each row by itself, with its own solver, interval of guidance and temperature.
  h, C = head(), 4
  h.output.kernel[...] = 0.3 * jax.random.normal(jax.random.key(5), (16, C))
  for n, block in enumerate(h.blocks):
    block.modulation.kernel[...] = 0.5 * jax.random.normal(jax.random.key(6 + n), block.modulation.kernel.shape)
  chosen = (("ddim", 3), ("dpm", 5), ("ddpm", 4))
  solver_B, interval_B2 = [1, 0, 2], [[0.0, 1000.0], [0.0, 500.0], [300.0, 1000.0]]
  temperature_B = [1.0, 0.0, 0.6]
  owner_X = [0, 1, 2, 1, 0] if guided else [0, 1, 2]
  weight_X = [2.0, 3.0, 1.0, -2.0, -1.0] if guided else [1.0] * 3
  z_XD = jax.random.normal(jax.random.key(0), (len(owner_X), 8))
  key_B = jax.random.split(jax.random.key(1), 3)
  mix_BX = np.where(np.arange(3)[:, None] == np.asarray(owner_X), weight_X, 0.0).astype(np.float32)

  @jax.jit
  def drawn(wanted_B, z_XD=z_XD):
    return h.sample(
        z_XD, h.initial_noise(key_B), owner_X=jnp.asarray(owner_X), mix_BX=jnp.asarray(mix_BX), key_B=key_B, solvers=chosen,
        solver_B=jnp.asarray(solver_B), interval_B2=jnp.asarray(interval_B2), wanted_B=wanted_B,
        temperature_B=jnp.asarray(temperature_B), kernel=kernel,
    )  # fmt: skip

  predicted = jax.jit(lambda x_C, t, z_D: h(x_C, t, z_D))
  features_BC = drawn(jnp.asarray([True] * 3))
  for b in range(3):
    table = solvers.table(SMALL, solver=chosen[solver_B[b]][0], steps=chosen[solver_B[b]][1])
    x_C, previous_C = temperature_B[b] * jax.random.normal(key_B[b], (C,)), jnp.zeros(C)
    for s in range(len(table.t)):
      row = jax.tree.map(lambda column: jnp.asarray(column[s]), table)
      v_C = predicted(x_C, row.t, z_XD[b])
      if interval_B2[b][0] <= table.t[s] < interval_B2[b][1]:
        v_C = sum(weight_X[x] * predicted(x_C, row.t, z_XD[x]) for x in range(len(owner_X)) if owner_X[x] == b)
      noise_C = temperature_B[b] * jax.random.normal(jax.random.fold_in(key_B[b], s + 1), (C,))
      x_C, previous_C = solvers.step(x_C, v_C, previous_C, noise_C, row)
    np.testing.assert_allclose(features_BC[b], x_C / SMALL.latent_scale, atol=2e-4)
  # Where rows of fewer steps alone are wanted, no more are taken, and they come out the same.
  np.testing.assert_allclose(drawn(jnp.asarray([False, True, False]))[1], features_BC[1], atol=1e-5)
  # One row's NaN is its own.
  spoilt_BC = drawn(jnp.asarray([True] * 3), z_XD.at[1].set(jnp.nan))
  assert np.isnan(spoilt_BC[1]).all()
  np.testing.assert_allclose(spoilt_BC[jnp.asarray([0, 2])], features_BC[jnp.asarray([0, 2])], atol=1e-5)


def test_settings_that_exclude_each_other():
  with pytest.raises(BadRequest, match="zero_terminal_snr=False"):
    dataclasses.replace(SMALL, target="noise")
  with pytest.raises(BadRequest, match="lower model.diffusion.beta_end"):
    describe(dataclasses.replace(tiny.config().model, diffusion=dataclasses.replace(PAPER, beta_end=0.3)))


def test_a_lane_that_is_spoilt_spoils_its_own_row_alone():
  prediction_XC = np.asarray([[1.0, 2.0], [np.nan, 1.0], [3.0, 4.0], [np.inf, 0.0]])
  mix_BX = np.asarray([[2.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.5]])
  nan = [np.nan] * 2
  np.testing.assert_array_equal(mixed(jnp.asarray(prediction_XC), jnp.asarray(mix_BX)), [[-1, 0], nan, [3, 4], nan])
