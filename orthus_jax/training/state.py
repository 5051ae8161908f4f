"""What a run carries from step to step, created already sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
import functools
import hashlib
import logging
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from orthus_jax.config import Config
from orthus_jax.models import params as params_lib
from orthus_jax.models.orthus import compute_dtype
from orthus_jax.models.params import Params
from orthus_jax.parallel import compiler, mesh as mesh_lib
from orthus_jax.training.optimizer import trainable_names

_log = logging.getLogger(__name__)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "trained", "frozen", "moments", "ema"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a checkpoint holds; no random numbers, as they are folded from the seed and the step.

  Attributes:
    step: int32, updates done.
    trained: parameters that gradients are taken of.
    frozen: the others.
    moments: the optimizer's state, over `trained` alone.
    ema: running average of `trained`; empty where it is off.
  """

  step: jax.Array
  trained: Params
  frozen: Params
  moments: Any
  ema: Params

  @property
  def params(self) -> Params:
    return {**self.frozen, **self.trained}

  @property
  def averaged(self) -> Params:
    """The parameters to use after training: the running average where there is one."""
    return {**self.frozen, **self.trained, **self.ema}


@dataclasses.dataclass(frozen=True)
class Layout:
  """A model's structure, and how its training state lies on a mesh."""

  graphdef: Any
  shapes: TrainState
  shardings: TrainState
  names: frozenset[str]


def plan_state(
    init: Callable[[], nnx.Module],
    *,
    select: Callable[[Params], frozenset[str]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: bool,
    frozen_dtype: Callable[[str], str | None] = lambda name: None,
) -> tuple[Layout, Callable[..., TrainState]]:
  """Shapes first, then a jitted function that creates every array where it belongs.

  It takes the names of parameters that are overwritten anyway (`brought`), which are zeros: drawing them would be compiled for
  nothing, and that was most of the start of a run that brings its vision tokenizer.

  Args:
    init: builds the module.
    select: from named parameters to the names that are trained.
    optimizer: whose moments the state holds.
    mesh: to lie on.
    ema: keep a running average, of bfloat16 parameters in float32.
    frozen_dtype: what a frozen parameter is kept in, by name; None leaves it as it is.
  """
  graphdef, shapes, axes = params_lib.shapes_and_axes(init)
  names = select(shapes)

  def laid_out(params: Params) -> TrainState:
    trained = {n: v for n, v in params.items() if n in names}
    frozen = {n: v.astype(frozen_dtype(n) or v.dtype) for n, v in params.items() if n not in names}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trained=trained,
        frozen=frozen,
        moments=optimizer.init(trained),
        ema={n: v.astype(jnp.promote_types(v.dtype, jnp.float32)) for n, v in trained.items()} if ema else {},
    )

  def create(brought: frozenset[str] = frozenset()) -> TrainState:
    _, params = params_lib.split(init())
    return laid_out({n: jnp.zeros_like(v) if n in brought else v for n, v in params.items()})

  abstract = jax.eval_shape(laid_out, shapes)  # and not `create`, or `init` were traced again
  by_name = {n: mesh_lib.sharding(mesh, shapes[n].shape, axes[n]) for n in shapes}
  whole = NamedSharding(mesh, PartitionSpec())

  def place(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    # A moment lies as its parameter does: its path ends in the parameter's name.
    name = next((k.key for k in reversed(path) if isinstance(k, jax.tree_util.DictKey)), None)
    return by_name[name] if name in by_name and shapes[name].shape == leaf.shape else whole

  shardings = jax.tree_util.tree_map_with_path(place, abstract)
  options = compiler.options_of_one_call(mesh)
  created = jax.jit(create, static_argnames="brought", out_shardings=shardings, compiler_options=options)
  return Layout(graphdef, abstract, shardings, names), created


def plan_run(
    config: Config, init: Callable[[], nnx.Module], *, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[Layout, Callable[..., TrainState]]:
  """`plan_state` as a config wants it.

  Raises:
    BadRequest: if `optimizer.trainable` is no pattern or matches nothing.
  """
  c = config.optimizer

  def select(shapes: dict[str, jax.ShapeDtypeStruct]) -> frozenset[str]:
    names = trainable_names(c, shapes)
    if config.task == "orthus" and (unreached := sum(n.startswith("vision_tokenizer/") for n in names)):
      _log.warning(
          "optimizer.trainable matches %d parameters of the vision tokenizer, which no loss reaches here: weight decay alone"
          " moves them; leave them out", unreached,
      )  # fmt: skip
    return names

  return plan_state(
      init, select=select, optimizer=optimizer, mesh=mesh, ema=c.ema_decay > 0,
      frozen_dtype=lambda name: compute_dtype(config.model, name) if c.frozen_dtype == "compute" else None,
  )  # fmt: skip


def replace_params(state: TrainState, values: dict[str, np.ndarray], shardings: TrainState) -> TrainState:
  """Overwrites parameters (and their average) by name, keeping dtypes and places.

  Each gets a copy of its own, as a step donates its whole state and no buffer can be donated twice.
  """

  def own(value: np.ndarray | jax.Array, dtype: jnp.dtype, where: NamedSharding) -> jax.Array:
    placed = jax.device_put(value.astype(dtype), where)
    return jnp.copy(placed) if isinstance(value, jax.Array) else placed

  def put(old: Params, where: Params) -> Params:
    return {n: own(values[n], v.dtype, where[n]) if n in values else v for n, v in old.items()}

  return dataclasses.replace(
      state,
      trained=put(state.trained, shardings.trained),
      frozen=put(state.frozen, shardings.frozen),
      ema=put(state.ema, shardings.ema),
  )


def digest(params: Params) -> str:
  """SHA-256 over names and bytes of all parameters, in the order of their names."""
  return digest_pieces((n, [jax.device_get(params[n])]) for n in sorted(params))


def digest_pieces(params: Iterable[tuple[str, Iterable[np.ndarray]]]) -> str:
  """`digest` of parameters, ordered by name, each of which comes in slices along its first axis."""
  h = hashlib.sha256()
  for name, pieces in params:
    h.update(name.encode())
    for piece in pieces:
      h.update(np.ascontiguousarray(piece).tobytes())
  return h.hexdigest()
