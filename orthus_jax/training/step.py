"""One training step: pure, jitted, its state donated (on a CPU, a large one alone)."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from orthus_jax.config import Config
from orthus_jax.models import params as params_lib, products, quantized_training
from orthus_jax.models.orthus import compute_dtype
from orthus_jax.models.params import Params
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.training.optimizer import global_norm, update
from orthus_jax.training.state import Layout, TrainState

_COPIED_BYTES = 64 << 20  # of a state: some four of it are alive on a CPU, as the loop is two steps ahead


class LossTask(Protocol):
  """What a step needs to know of a task."""

  def counts(self, batch: Any) -> Any:
    """What the sums of a global batch are divided by."""

  def loss(
      self, model: Any, batch: Any, key: jax.Array, *, total: Any, row_B: jax.Array, step: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A (micro)batch's share of the global loss after `step` updates, and metrics that add up likewise."""


def train_step(
    task: LossTask, optimizer: optax.GradientTransformation, config: Config, layout: Layout
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """The step function, not yet jitted: (state, batch) → (state, metrics).

  Raises:
    BadRequest: if the layout's mesh can't split the model or the batch, or can't quantise as asked.
  """
  n, mesh = config.optimizer.accumulation, layout.shardings.step.mesh
  decay = config.optimizer.ema_decay
  mesh_lib.check(mesh, config)
  quantized_training.check(config, mesh.devices.flat[0])
  rounding = products.kind(config, mesh)

  def like_params(values: Params) -> Params:
    """Constrains values by a parameter's name to the parameter's sharding."""
    if mesh.size == 1:
      return values
    return {k: jax.lax.with_sharding_constraint(v, layout.shardings.params[k]) for k, v in values.items()}

  def cast(params: Params) -> Params:
    """Parameters in the dtype that they are computed in, so that it is this that devices send each other."""
    return like_params({k: v.astype(compute_dtype(config.model, k) or v.dtype) for k, v in params.items()})

  @products.rounding(rounding)
  def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
    total = task.counts(batch)
    row_B = jnp.arange(jax.tree.leaves(batch)[0].shape[0])

    frozen, trained = cast(state.frozen), cast(state.trained)

    def loss(trained, batch, row_B):
      model = params_lib.merge(layout.graphdef, {**frozen, **trained})
      return task.loss(model, batch, key, total=total, row_B=row_B, step=state.step)

    gradient = jax.grad(loss, has_aux=True)
    if n == 1:
      grads, metrics = gradient(trained, batch, row_B)
      grads = like_params(grads)
    else:
      # Rows are dealt out in turn, so that each microbatch has rows on every device.
      micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), (batch, row_B))
      shapes = jax.eval_shape(gradient, trained, *jax.tree.map(lambda x: x[0], micro))
      # Added up in fp32, each device holding the sum of its own share of the parameters.
      grads, metrics = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)

      def add(carry, scanned):
        grads, metrics = jax.tree.map(jnp.add, carry, gradient(trained, *scanned))
        return (like_params(grads), metrics), None

      (grads, metrics), _ = jax.lax.scan(add, (like_params(grads), metrics), micro)

    trained, moments = update(
        optimizer, grads, state.moments, state.trained, key=key, rounding=config.optimizer.rounding
    )
    # The average forgets its start faster than its decay says, so that short runs can use it.
    weight = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    ema = {k: weight * v + (1.0 - weight) * trained[k] for k, v in state.ema.items()}
    norm = global_norm(grads)
    # An update of numbers that aren't finite would spoil the parameters for good: the state stays as it was.
    fine = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    scheduled = moments
    trained, moments, ema = jax.tree.map(
        lambda new, old: jnp.where(fine, new, old), (trained, moments, ema), (state.trained, state.moments, state.ema)
    )
    # The learning rate is one of the step, and goes on.
    moments = jax.tree.map(lambda new, old: new if _schedules(new) else old, scheduled, moments, is_leaf=_schedules)
    state = dataclasses.replace(state, step=state.step + 1, trained=trained, moments=moments, ema=ema)
    return state, {**metrics, "grad_norm": norm, "skipped": 1.0 - fine}

  return step


def _schedules(moments: Any) -> bool:
  return isinstance(moments, optax.ScaleByScheduleState)


def jit_step(step: Callable, layout: Layout, mesh: Mesh, batch: Any, config: Config) -> Any:
  """Jits a step for a mesh: the state stays where it lies and is donated, rows are split over data and fsdp.

  On a CPU a small state isn't donated: XLA copies there what it is given for good before it writes over it, as new values don't
  wait for the last product that reads the old ones. Without, it copies what is passed on as it is, the smaller part.

  Args:
    step: from `train_step`.
    layout: of its state.
    mesh: that the state lies on.
    batch: shapes of the global batch.
    config: that the step was made with; its run.compiler_options go above those of `parallel.compiler`.
  """
  rounding = products.kind(config, mesh)
  options = compiler.options(mesh, config.run.compiler_options, bfloat16_factors=bool(rounding))
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  small = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layout.shapes)) <= _COPIED_BYTES
  return jax.jit(
      step, in_shardings=(layout.shardings, batch_shardings(mesh, batch)), out_shardings=(layout.shardings, None),
      donate_argnums=() if on_cpu and small else 0, compiler_options=options,
  )  # fmt: skip


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
  """Rows over `data` and `fsdp`; positions reach all of `context` whole, and are split once they are embedded."""
  return jax.tree.map(
      lambda x: mesh_lib.sharding(mesh, x.shape, ("batch", *(None,) * (len(x.shape) - 1))), batch
  )
