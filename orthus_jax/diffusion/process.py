"""The forward process, the target and the solvers, as plain functions on arrays.

abar is the cumulative product of 1 - beta. Shapes: a step array t [...] indexes abar; x has one more axis, C.
Source: the paper, section 3, and its released code (DDPM; zero terminal SNR after Lin et al., arXiv 2305.08891).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import DiffusionConfig
from orthus_jax.errors import BadRequest


def alphas_cumprod(config: DiffusionConfig) -> np.ndarray:
  """abar, float32 [timesteps]; computed in float64.

  Raises:
    BadRequest: if it comes to 0, pure noise, in which no picture can be told from a noise that was predicted.
  """
  c = config
  if c.schedule == "scaled_linear":
    betas = np.linspace(c.beta_start**0.5, c.beta_end**0.5, c.timesteps, dtype=np.float64) ** 2
  else:
    betas = np.linspace(c.beta_start, c.beta_end, c.timesteps, dtype=np.float64)
  root = np.sqrt(np.cumprod(1.0 - betas))
  if c.zero_terminal_snr:
    # Shift the last value to 0, then scale so that the first stays as it was.
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
  abar = (root**2).astype(np.float32)
  if c.target == "noise" and not abar[-1] > 0:
    raise BadRequest(
        "model.diffusion.target=noise can't start from pure noise, which these timesteps and betas come to: lower"
        " model.diffusion.beta_end"
    )
  return abar


def timesteps(config: DiffusionConfig, steps: int) -> np.ndarray:
  """The solver's steps from noise to picture, "trailing" spacing: 100 steps of 1000 are 999, 989, …, 9."""
  spaced = np.round(np.arange(config.timesteps, 0, -config.timesteps / steps)).astype(np.int32) - 1
  return spaced[:steps]


def add_noise(x0: jax.Array, eps: jax.Array, abar: jax.Array) -> jax.Array:
  """x_t = sqrt(abar) x0 + sqrt(1 - abar) eps; `abar` [...] broadcasts over the last axis."""
  abar = abar[..., None]
  return jnp.sqrt(abar) * x0 + jnp.sqrt(1.0 - abar) * eps


def target(x0: jax.Array, eps: jax.Array, abar: jax.Array, *, kind: str) -> jax.Array:
  """What the head is to predict: the noise, or the velocity sqrt(abar) eps - sqrt(1 - abar) x0."""
  if kind == "noise":
    return eps
  abar = abar[..., None]
  return jnp.sqrt(abar) * eps - jnp.sqrt(1.0 - abar) * x0
