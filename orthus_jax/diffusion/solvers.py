"""Solvers as tables of coefficients: one compiled loop serves them all, and rows of a batch can follow different ones.

With alpha = sqrt(abar) and sigma = sqrt(1 - abar) at a step's t, and primes for where it leads, every step is
  x0 = from_x x + from_prediction prediction
  x' = x x + x0 x0 + previous (the step before's x0) + noise (normal, of the image temperature's size),
each coefficient named after what it multiplies. Shapes: tables are [S], from noise to picture; samples are [..., C].
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from orthus_jax.config import DiffusionConfig
from orthus_jax.diffusion import process
from orthus_jax.errors import BadRequest

SOLVERS = ("ddim", "dpm", "ddpm")

_LEAST_ABAR = 2.0**-24  # stands for a terminal abar of 0 where a logarithm is taken, as in diffusers


class Table(NamedTuple):
  """A solver's coefficients, all [S]; `step` takes one row of it.

  Attributes:
    t: int32, the step that the head is asked about.
    from_x, from_prediction: float32, how x0 follows from x and the head's prediction.
    x, x0, previous, noise: float32, how the next x follows from x, x0, the step before's x0, and fresh noise.
  """

  t: np.ndarray | jax.Array
  from_x: np.ndarray | jax.Array
  from_prediction: np.ndarray | jax.Array
  x: np.ndarray | jax.Array
  x0: np.ndarray | jax.Array
  previous: np.ndarray | jax.Array
  noise: np.ndarray | jax.Array


def table(config: DiffusionConfig, *, solver: str, steps: int) -> Table:
  """A solver's table, [steps], on `process.timesteps`; worked out in float64.

  Args:
    config: gives abar and what the head predicts.
    solver: "ddim": eta 0 (Song et al., arXiv 2010.02502, Eq. 12). "dpm": DPM-Solver++ 2M (Lu et al., arXiv 2211.01095,
      algorithm 2), of second order but for the first step and the last; the error of the last remains in the result.
      "ddpm": draws from q(x' | x, x0) (Ho et al., arXiv 2006.11239, Eq. 7, between strided steps), so it needs noise,
      and many steps: few make samples too alike.
    steps: of the solver.

  Raises:
    BadRequest: there is no such solver, or it can't take so many steps.
  """
  if solver not in SOLVERS:
    raise BadRequest(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
  if not 1 <= steps <= config.timesteps:
    raise BadRequest(f"a solver can't take {steps} steps: choose from 1 to {config.timesteps} (diffusion.timesteps)")
  t = process.timesteps(config, steps)
  abar = process.alphas_cumprod(config)[t].astype(np.float64)
  abar_next = np.append(abar[1:], 1.0)
  alpha, sigma = np.sqrt(abar), np.sqrt(1.0 - abar)
  alpha_next, sigma_next = np.sqrt(abar_next), np.sqrt(1.0 - abar_next)
  if config.target == "noise":
    from_x, from_prediction = 1.0 / alpha, -sigma / alpha
  else:
    from_x, from_prediction = alpha, -sigma
  previous, noise = np.zeros(steps), np.zeros(steps)
  if solver == "ddpm":
    # In long schedules more than one abar is 0: pure noise, of which nothing is kept.
    kept = np.divide(abar, abar_next, out=np.zeros(steps), where=abar_next > 0)
    x = np.sqrt(kept) * (1.0 - abar_next) / (1.0 - abar)
    x0 = alpha_next * (1.0 - kept) / (1.0 - abar)
    noise = np.sqrt((1.0 - abar_next) / (1.0 - abar) * (1.0 - kept))
  else:
    # alpha' x0 + sigma' eps with eps = (x - alpha x0) / sigma. It is DPM-Solver++'s first order too, without its
    # logarithms: x0's coefficient is alpha' (1 - exp(-h)).
    x = sigma_next / sigma
    x0 = alpha_next - alpha * x
    if solver == "dpm":
      ahead = _extrapolation(abar)
      previous = -ahead * x0
      x0 = (1.0 + ahead) * x0
  coefficients = (from_x, from_prediction, x, x0, previous, noise)
  return Table(t, *(np.asarray(c, np.float32) for c in coefficients))


def _extrapolation(abar: np.ndarray) -> np.ndarray:
  """DPM-Solver++ 2M's 1 / (2r) at each step, [S]: the share of x0's last change by which x0 is carried on.

  r is the rise h of lambda = log(alpha / sigma) in the step before, over that in this step. The first step has none
  before it, and the last, to sigma = 0, an infinite h: 0 there makes both of first order.
  """
  abar = np.maximum(abar, _LEAST_ABAR)
  h = np.diff(0.5 * np.log(abar / (1.0 - abar)))
  ahead = np.zeros(len(abar))
  # In schedules much longer than the published one, more than one abar is below the least: nothing to divide by there.
  np.divide(h[1:], 2.0 * h[:-1], out=ahead[1:-1], where=h[:-1] > 0)
  return ahead


def pad(table: Table, steps: int) -> Table:
  """A table of [steps] whose added last steps leave x as it is, so that tables of different length can be stacked.

  Raises:
    BadRequest: the table is longer than that.
  """
  added = steps - len(table.t)
  if added < 0:
    raise BadRequest(f"a table of {len(table.t)} steps can't be padded to {steps}")
  identity = Table(table.t[-1], table.from_x[-1], table.from_prediction[-1], x=1.0, x0=0.0, previous=0.0, noise=0.0)
  return Table(*(np.pad(c, (0, added), constant_values=last) for c, last in zip(table, identity)))


def step(
    x_C: jax.Array, prediction_C: jax.Array, previous_C: jax.Array, noise_C: jax.Array, row: Table
) -> tuple[jax.Array, jax.Array]:
  """One step: (the next x, x0), both [..., C].

  Args:
    x_C: [..., C], as are the others.
    prediction_C: the head's, for x_C at row.t.
    previous_C: the x0 that the step before gave; at the first step anything finite, such as zeros.
    noise_C: normal; anything finite where row.noise is 0.
    row: one step's coefficients as arrays of shape [...], which here get the axis C: scalars for one solver, [B] for
      x_BC of which each row has its own.
  """
  row = Table(*(c[..., None] for c in row))
  x0_C = row.from_x * x_C + row.from_prediction * prediction_C
  return row.x * x_C + row.x0 * x0_C + row.previous * previous_C + row.noise * noise_C, x0_C
