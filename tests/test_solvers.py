"""Solvers as tables. With data from N(m, s^2) the best prediction and the solved equation are known in closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

from orthus_jax.config import DiffusionConfig
from orthus_jax.diffusion import process, solvers
from orthus_jax.errors import BadRequest

RELEASED = DiffusionConfig()
PAPER = DiffusionConfig(target="noise", schedule="linear", zero_terminal_snr=False)
BOTH = pytest.mark.parametrize("config", [RELEASED, PAPER], ids=["released", "paper"])
M, S = 0.7, 0.5
NOISE_C = np.asarray([-1.5, -0.3, 0.4, 2.0], np.float32)


@functools.cache  # so that one program serves all tables
def best(config):
  """The prediction of least squared error, for x0 ~ N(M, S^2)."""
  abar_T = jnp.asarray(process.alphas_cumprod(config))

  def predict(x_C, t):
    a, s = jnp.sqrt(abar_T[t])[..., None], jnp.sqrt(1 - abar_T[t])[..., None]
    off_C = (x_C - a * M) / (a**2 * S**2 + s**2)
    x0_C, eps_C = M + a * S**2 * off_C, s * off_C
    return eps_C if config.target == "noise" else a * eps_C - s * x0_C

  return predict


def exact(config, x_C, t=None):
  """Where the probability-flow ODE leads from x_C at the last step: to step t, or to the data."""
  abar = process.alphas_cumprod(config).astype(np.float64)
  start, end = abar[-1], 1.0 if t is None else abar[t]
  z_C = (x_C - np.sqrt(start) * M) / np.sqrt(start * S**2 + 1 - start)
  return np.sqrt(end) * M + np.sqrt(end * S**2 + 1 - end) * z_C


def solve(table, x_C, predict, noise_SC=None):
  """Follows a table to its end. Without noise_SC, solvers that must not use noise get some all the same."""
  if noise_SC is None:
    table = solvers.pad(table, 1000)
    noise_SC = jax.random.normal(jax.random.key(0), (1000, *x_C.shape))
  return _solve(table, x_C, predict, noise_SC)


@jax.jit(static_argnames="predict")
def _solve(table, x_C, predict, noise_SC):
  def step(carry, scanned):
    x_C, previous_C = carry
    row, noise_C = scanned
    return solvers.step(x_C, predict(x_C, row.t), previous_C, noise_C, row), None

  return jax.lax.scan(step, (x_C, jnp.zeros_like(x_C)), (table, noise_SC))[0][0]


def error(config, solver, steps, *, t=None):
  """Greatest distance from the exact solution, at the end or on reaching step t."""
  table = solvers.table(config, solver=solver, steps=steps)
  if t is not None:
    table = solvers.Table(*(c[: table.t.tolist().index(t)] for c in table))
  return np.abs(solve(table, NOISE_C, best(config)) - exact(config, NOISE_C, t)).max()


def odd(x_C, t):
  """A prediction that is nothing like a good one."""
  return jnp.sin(3 * x_C + t[..., None] / 100)


@BOTH
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_is_ddim_step(config, steps):
  abar_T = process.alphas_cumprod(config)
  t_S = process.timesteps(config, steps)
  x_C = NOISE_C
  for abar, abar_next, t in zip(abar_T[t_S], np.append(abar_T[t_S[1:]], np.float32(1)), t_S):
    x_C = plain.ddim_step(x_C, odd(x_C, t), abar=abar, abar_next=abar_next, kind=config.target)
  table = solvers.table(config, solver="ddim", steps=steps)
  np.testing.assert_allclose(solve(table, NOISE_C, odd), x_C, rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_more_steps_come_nearer_to_the_exact_solution(config, solver):
  errors = np.asarray([error(config, solver, steps) for steps in (5, 20, 100, 1000)])
  assert (errors[1:] < errors[:-1] / 2).all() and errors[-1] < 0.006, errors


@BOTH
def test_dpm_is_nearer_than_ddim(config):
  assert error(config, "dpm", 20) < 0.7 * error(config, "ddim", 20)


@BOTH
def test_dpm_is_of_second_order_and_ddim_of_first(config):
  # On the way: at the end, the error of the last step, from steps apart to sigma = 0, outweighs all others.
  for solver, low, high in (("ddim", 0.8, 1.2), ("dpm", 1.7, 2.3)):
    errors = [error(config, solver, steps, t=199) for steps in (10, 20, 40)]
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert (orders > low).all() and (orders < high).all(), (solver, orders)


def test_dpm_starts_from_the_log_snr_of_diffusers():
  abar = np.append(process.alphas_cumprod(RELEASED)[[999, 799, 599]].astype(np.float64), 1.0)
  abar[0] = 2.0**-24
  table = solvers.table(RELEASED, solver="dpm", steps=5)
  first, second = np.diff(np.log(np.sqrt(abar[:3] / (1 - abar[:3]))))
  b = np.sqrt(abar[2]) * -np.expm1(-second)  # arXiv 2211.01095, algorithm 2, at its second step
  np.testing.assert_allclose(table.x0[1], b * (1 + 0.5 * second / first), rtol=1e-5)
  np.testing.assert_allclose(table.previous[1], b * (-0.5 * second / first), rtol=1e-5)
  np.testing.assert_allclose(table.x[1], np.sqrt((1 - abar[2]) / (1 - abar[1])), rtol=1e-5)
  ddim = solvers.table(RELEASED, solver="ddim", steps=5)
  for name in ("x", "x0", "previous"):  # both ends are of first order
    assert [getattr(table, name)[i] for i in (0, -1)] == [getattr(ddim, name)[i] for i in (0, -1)]


@BOTH
def test_ddpm_draws_from_the_posterior(config):
  # By Bayes: what x' is given x0, times what x is given x'.
  table = solvers.table(config, solver="ddpm", steps=8)
  abar = process.alphas_cumprod(config)[table.t].astype(np.float64)
  kept, before = abar[:-1] / abar[1:], abar[1:]
  precision = 1 / (1 - before) + kept / (1 - kept)
  np.testing.assert_allclose(table.x[:-1], np.sqrt(kept) / (1 - kept) / precision, rtol=1e-5)
  np.testing.assert_allclose(table.x0[:-1], np.sqrt(before) / (1 - before) / precision, rtol=1e-5)
  np.testing.assert_allclose(table.noise[:-1], np.sqrt(1 / precision), rtol=1e-5)


@BOTH
def test_ddpm_samples_are_distributed_as_the_data(config):
  x_XC = jax.random.normal(jax.random.key(1), (4000, 1))
  samples = np.asarray(solve(solvers.table(config, solver="ddpm", steps=1000), x_XC, best(config)))
  assert abs(samples.mean() - M) < 4 * S / np.sqrt(4000)
  assert 0.95 * S < samples.std() < 1.05 * S


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_noise_and_velocity_agree(solver):
  velocity = dataclasses.replace(PAPER, target="velocity")
  noise_C, velocity_C = (
      solve(solvers.table(c, solver=solver, steps=15), NOISE_C, best(c)) for c in (PAPER, velocity)
  )
  np.testing.assert_allclose(noise_C, velocity_C, atol=1e-5)


def test_rows_of_a_batch_follow_tables_of_their_own():
  tables = [solvers.table(RELEASED, solver=s, steps=n) for s, n in (("ddim", 10), ("dpm", 4), ("ddpm", 7))]
  noise_SBC = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)
  x_BC = noise_SBC[::-1][0]
  stacked = jax.tree.map(lambda *c: np.stack(c, axis=1), *(solvers.pad(t, 10) for t in tables))
  together_BC = solve(stacked, x_BC, best(RELEASED), noise_SBC)
  for i, table in enumerate(tables):
    alone_C = solve(table, x_BC[i], best(RELEASED), noise_SBC[: len(table.t), i])
    np.testing.assert_allclose(together_BC[i], alone_C, atol=1e-5)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_padding_changes_nothing(solver):
  table = solvers.table(RELEASED, solver=solver, steps=5)
  padded = solvers.pad(table, 8)
  for before, after in zip(table, padded):
    assert after.shape == (8,) and after.dtype == before.dtype
    np.testing.assert_array_equal(after[:5], before)
  prediction_C, previous_C, noise_C = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
  for i in range(5, 8):
    row = solvers.Table(*(c[i] for c in padded))
    np.testing.assert_array_equal(solvers.step(NOISE_C, prediction_C, previous_C, noise_C, row)[0], NOISE_C)
    assert row[:3] == tuple(c[4] for c in table[:3])
  with pytest.raises(BadRequest, match="5 steps can't be padded to 4"):
    solvers.pad(table, 4)


LONG = dataclasses.replace(RELEASED, timesteps=3000)  # several abar lie below the least that dpm tells apart
LONGER = dataclasses.replace(RELEASED, timesteps=50_000)  # several are 0
WHOLE = [(c, n) for c in (RELEASED, PAPER) for n in (1, 2, 1000)] + [(LONG, 3000), (LONGER, 50_000)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("config, steps", WHOLE)
def test_tables_are_finite_and_end_at_the_data(config, solver, steps):
  table = solvers.table(config, solver=solver, steps=steps)
  assert table.t.dtype == np.int32 and table.t.shape == (steps,)
  for c in table[1:]:
    assert c.dtype == np.float32 and c.shape == (steps,) and np.isfinite(c).all()
  assert (table.x[-1], table.x0[-1], table.previous[-1], table.noise[-1]) == (0, 1, 0, 0)
  assert table.previous[0] == 0  # there is none yet
  if solver != "ddpm":
    assert not table.noise.any()
  elif config is not LONGER:  # where the least are numbers of a few bits, some of them equal
    assert (table.noise[:-1] > 0).all()


def test_bad_requests_are_refused():
  with pytest.raises(BadRequest, match="unknown solver 'euler': choose one of ddim, dpm, ddpm"):
    solvers.table(RELEASED, solver="euler", steps=10)
  for steps in (-1, 0, 1001):
    with pytest.raises(BadRequest, match=f"can't take {steps} steps: choose from 1 to 1000"):
      solvers.table(RELEASED, solver="dpm", steps=steps)
