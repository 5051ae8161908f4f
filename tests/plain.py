"""Plain ways of doing what the product does in a batch, to compare with."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.interop import names
from orthus_jax.models.heads.diffusion import DiffusionHead


def split_prediction(x_t: jax.Array, prediction: jax.Array, abar: jax.Array, *, kind: str) -> tuple[jax.Array, jax.Array]:
  """(x0, eps) as the head's prediction implies them; `abar` is a scalar."""
  a, s = jnp.sqrt(abar), jnp.sqrt(1.0 - abar)
  if kind == "noise":
    return (x_t - s * prediction) / a, prediction
  return a * x_t - s * prediction, a * prediction + s * x_t


def ddim_step(x_t: jax.Array, prediction: jax.Array, *, abar: jax.Array, abar_next: jax.Array, kind: str) -> jax.Array:
  """One deterministic DDIM step (eta 0, no clipping) from abar to abar_next; the last goes to 1."""
  x0, eps = split_prediction(x_t, prediction, abar, kind=kind)
  return jnp.sqrt(abar_next) * x0 + jnp.sqrt(1.0 - abar_next) * eps


def draw(head: DiffusionHead, z_NRD, weights: Sequence[float], noise_NC, *, steps: int) -> jax.Array:
  """Features [N, C] by DDIM as the engine calls the head: of each position the row's own state, then its guides'.

  Args:
    head: the head.
    z_NRD: R states a position.
    weights: of each of them in the prediction followed.
    noise_NC: what each position starts from.
    steps: of the solver.
  """
  N, R = z_NRD.shape[:2]
  owner_X = np.concatenate([np.arange(N), np.repeat(np.arange(N), R - 1)])
  weight_X = np.concatenate([np.full(N, weights[0]), np.tile(np.asarray(weights[1:]), N)])
  mix_NX = np.where(np.arange(N)[:, None] == owner_X, weight_X, 0.0).astype(np.float32)
  z_XD = jnp.concatenate([z_NRD[:, 0], z_NRD[:, 1:].reshape(N * (R - 1), z_NRD.shape[-1])])

  @jax.jit
  def run(z_XD, noise_NC):
    return head.sample(
        z_XD, noise_NC, owner_X=owner_X, mix_BX=mix_NX, key_B=jax.random.split(jax.random.key(0), N),
        solvers=(("ddim", steps),), solver_B=jnp.zeros(N, int), interval_B2=jnp.asarray([[0.0, 1e9]] * N),
        wanted_B=jnp.ones(N, bool),
    )  # fmt: skip

  return run(z_XD, jnp.asarray(noise_NC))


def import_params(published: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """All our parameters from published ones held in memory.

  Args:
    published: by published key.
    shapes: ours, by our name.
  """
  params = {}
  for name, shape in shapes.items():
    key, layout = names.published_name(name)
    if "{}" in key:
      parts = [names.from_torch(published[key.format(i)], shape[1:], layout) for i in range(shape[0])]
      params[name] = np.stack(parts)
    else:
      params[name] = names.from_torch(published[key], shape, layout)
  return params
