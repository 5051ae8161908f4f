"""One training step: pure, jitted, its state donated."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from orthus_jax.config import Config
from orthus_jax.models import params as params_lib
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training.state import Layout, TrainState


class LossTask(Protocol):
  """What a step needs to know of a task."""

  def counts(self, batch: Any) -> Any:
    """What the sums of a global batch are divided by."""

  def loss(
      self, model: Any, batch: Any, key: jax.Array, *, total: Any, row_B: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A (micro)batch's share of the global loss, and metrics that add up likewise."""


def train_step(
    task: LossTask, optimizer: optax.GradientTransformation, config: Config, layout: Layout
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """The step function, not yet jitted: (state, batch) → (state, metrics)."""
  n = config.optimizer.accumulation
  decay = config.optimizer.ema_decay

  def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
    total = task.counts(batch)
    row_B = jnp.arange(jax.tree.leaves(batch)[0].shape[0])

    def loss(trained, batch, row_B):
      model = params_lib.merge(layout.graphdef, {**state.frozen, **trained})
      return task.loss(model, batch, key, total=total, row_B=row_B)

    gradient = jax.grad(loss, has_aux=True)
    if n == 1:
      grads, metrics = gradient(state.trained, batch, row_B)
    else:
      # Rows are dealt out in turn, so that each microbatch has rows on every device.
      micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), (batch, row_B))
      zeros = jax.eval_shape(gradient, state.trained, *jax.tree.map(lambda x: x[0], micro))
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), zeros)

      def add(carry, scanned):
        return jax.tree.map(jnp.add, carry, gradient(state.trained, *scanned)), None

      (grads, metrics), _ = jax.lax.scan(add, zeros, micro)

    updates, moments = optimizer.update(grads, state.moments, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    # The average forgets its start faster than its decay says, so that short runs can use it.
    weight = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    ema = {k: weight * v + (1.0 - weight) * trained[k] for k, v in state.ema.items()}
    metrics = {**metrics, "grad_norm": optax.global_norm(grads)}
    return dataclasses.replace(state, step=state.step + 1, trained=trained, moments=moments, ema=ema), metrics

  return step


def jit_step(step: Callable, layout: Layout, mesh: Mesh, batch: Any) -> Callable:
  """Jits a step for a mesh: the state stays where it lies and is donated, rows are split over data and fsdp."""
  return jax.jit(
      step, in_shardings=(layout.shardings, batch_shardings(mesh, batch)), out_shardings=(layout.shardings, None),
      donate_argnums=0,
  )  # fmt: skip


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
  """Rows over `data` and `fsdp`; everything else whole, as XLA splits positions itself where it helps."""
  return jax.tree.map(
      lambda x: mesh_lib.sharding(mesh, x.shape, ("batch", *(None,) * (len(x.shape) - 1))), batch
  )
