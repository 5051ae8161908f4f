"""What all image heads have in common, and what trainer, engine and planner ask of one.

Axes: B rows, G learnt images, M images a row, P patches, C latent values, D backbone width, K codes, X rows and then their
guides.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from orthus_jax.config import ModelConfig
from orthus_jax.models import products


class Turn(NamedTuple):
  """What rows of a running batch are told when they draw.

  Attributes:
    owner_X: int32, the row that each state belongs to: its own, or that which a guide guides.
    mix_BX: the prediction followed is sum_x mix_BX[b, x] v_x; it adds up to 1 in each row.
    key_B: random keys.
    wanted_B: bool, the rows whose result counts.
    solvers: (name, steps) of each solver that rows may take, fixed at compile time.
    solver_B: int32, which of them each row takes.
    interval_B2: guidance holds at diffusion steps t in [low, high).
    temperature_B: of codes; 0 takes the likeliest. Of features, what noise is multiplied by.
    top_k_B: int32, codes are drawn among the k likeliest; 0 means all.
    kernel: whether solver steps are one kernel, where the head has one; fixed at compile time.
    guided: whether any state is a guide's; likewise.
  """

  owner_X: jax.Array
  mix_BX: jax.Array
  key_B: jax.Array
  wanted_B: jax.Array
  solvers: tuple[tuple[str, int], ...]
  solver_B: jax.Array
  interval_B2: jax.Array
  temperature_B: jax.Array
  top_k_B: jax.Array
  kernel: bool = False
  guided: bool = True


class ImageHead(nnx.Module):
  """A head of one kind; its class says what it needs, so that nobody else asks for the kind.

  Attributes:
    of_codes: whether a patch is a code, of which the LM head gives logits, and not a feature made from a state.
    whole_pictures: whether all patches of a picture are predicted at once, each by its own position's state, some hidden
      from the input; otherwise the state before a patch predicts it.
    has_parameters: whether it has any of its own.
    zero_when_fresh: a parameter that is zero until it is trained; empty where there is none.
  """

  of_codes: ClassVar[bool] = False
  whole_pictures: ClassVar[bool] = False
  has_parameters: ClassVar[bool] = True
  zero_when_fresh: ClassVar[str] = ""

  @abc.abstractmethod
  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    """Makes the parameters."""

  @classmethod
  def products(cls, config: ModelConfig) -> dict[str, float]:
    """Multiplications of a learnt patch in training, forwards.

    Returns:
      "all", and the "inputs" among them whose gradient nobody asks for. Without the LM head's own.
    """
    return {"all": 0.0, "inputs": 0.0}

  @classmethod
  def most_steps(cls, config: ModelConfig) -> tuple[float, str]:
    """How many steps `sampling.steps` may ask for, and what these are a number of."""
    return float("inf"), ""

  @classmethod
  def hidden(cls, key: jax.Array, row_B: jax.Array, *, images: int, patches: int) -> jax.Array | None:
    """Bool [B, M, P]: which patches of learnt pictures are hidden from a step's input; None where none ever is.

    Args:
      key: of the step.
      row_B: each row's place in the global batch.
      images: M.
      patches: P.
    """
    return None

  @classmethod
  def learnt_patches(cls, patches: int) -> float:
    """How many patches of a learnt picture of P have a loss, as expected."""
    return float(patches)


class FeatureHead(ImageHead):
  """A head that makes a feature of the state before it."""

  @abc.abstractmethod
  def loss(self, z_D: jax.Array, feature_C: jax.Array, key: jax.Array) -> jax.Array:
    """Of one position, in fp32; callers vmap."""

  @abc.abstractmethod
  def merged_losses(self, z_BGPD: jax.Array, feature_BGPC: jax.Array, key_BGP: jax.Array) -> jax.Array:
    """`loss` of all positions, [B, G, P], with positions merged into the rows of one matrix; the numbers are the same."""

  @abc.abstractmethod
  def next_feature(self, z_XD: jax.Array, turn: Turn) -> jax.Array:
    """A feature for each row, [B, C], from its state and its guides'."""


def mean_losses(
    head: FeatureHead, z_BGPD: jax.Array, feature_BGPC: jax.Array, key_BGP: jax.Array, *, merge: bool = False
) -> jax.Array:
  """`head.loss` vmapped over image positions: [B, G, P].

  With `merge`, positions are merged into the rows of one matrix instead, for CPUs (TransformerConfig.merge_positions).
  """
  if merge:
    return head.merged_losses(z_BGPD, feature_BGPC, key_BGP)
  with products.rounding(""):  # a rule of its own for gradients would make a kernel's of each position, and add these up
    return jax.vmap(jax.vmap(jax.vmap(head.loss)))(z_BGPD, feature_BGPC, key_BGP)


def mixed(prediction_X: jax.Array, mix_BX: jax.Array) -> jax.Array:
  """The predictions that rows follow, [B, ...] in fp32, of all lanes' [X, ...]."""
  prediction_X = prediction_X.astype(jnp.float32)
  # One lane's NaN, times 0, would be everybody's.
  finite_X = jnp.isfinite(prediction_X).all(axis=tuple(range(1, prediction_X.ndim)))
  spoilt_B = ((mix_BX != 0) & ~finite_X).any(axis=1)
  beside = (1,) * (prediction_X.ndim - 1)
  sound_X = jnp.where(finite_X.reshape(-1, *beside), prediction_X, 0.0)
  sum_B = jnp.tensordot(mix_BX, sound_X, axes=1, precision=jax.lax.Precision.HIGHEST)
  return jnp.where(spoilt_B.reshape(-1, *beside), jnp.nan, sum_B)


def untrained(head: type[ImageHead], params: Any) -> bool:
  """Whether a model's image head is as it was made: one step of training makes its zeros something else."""
  return bool(head.zero_when_fresh) and not np.any(params[f"image_head/{head.zero_when_fresh}"])
