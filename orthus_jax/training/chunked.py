"""The two losses a few positions at a time, so that neither [B, T, V] logits nor all draws' activations ever exist.

Each device works on its own rows and positions, under `parallel.sharded.per_device`, and adds up what it finds over its
chunks before anything is sent: a parameter is gathered once and its gradient reduced once, however many chunks there are.
Axes: B rows, T positions, D width, V vocabulary, S positions a chunk, N chunks, G learnt images, P patches, J = G * P.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from orthus_jax.config import ModelConfig
from orthus_jax.errors import BadRequest
from orthus_jax.models import params as params_lib
from orthus_jax.models.heads.base import FeatureHead, mean_losses
from orthus_jax.models.orthus import describe
from orthus_jax.parallel import sharded


def _chunks(x_BT: jax.Array, chunk: int) -> jax.Array:
  """[B, T, ...] as [N, B, S, ...], filled up with zeros."""
  B, T = x_BT.shape[:2]
  N = max(math.ceil(T / chunk), 1)
  S = math.ceil(T / N)
  if N * S > T:
    x_BT = jnp.pad(x_BT, ((0, 0), (0, N * S - T), *((0, 0),) * (x_BT.ndim - 2)))
  return jnp.moveaxis(x_BT.reshape(B, N, S, *x_BT.shape[2:]), 1, 0)


def _rows(x_NBS: jax.Array, T: int) -> jax.Array:
  """`_chunks` undone."""
  x_BNS = jnp.moveaxis(x_NBS, 0, 1)
  return x_BNS.reshape(x_BNS.shape[0], -1, *x_BNS.shape[3:])[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden_BTD, head_DV, targets_BT, weight_BT, chunk):
  return _on_devices(_sums, hidden_BTD, head_DV, targets_BT, weight_BT, chunk, [(), ()])


def cross_entropy(
    hidden_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weight_BT: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy, `chunk` positions of each device's rows at a time.

  The gradient is computed together with the value, while a chunk's logits are there: the head's product with the states
  is done once, where recomputing it would do it twice. The head's gradient is added up in fp32.

  Args:
    hidden_BTD: states.
    head_DV: the LM head, split over width and vocabulary; cast to the states' dtype.
    targets_BT: the tokens to predict.
    weight_BT: what each counts.
    chunk: positions of a row.

  Returns:
    (the weighted sum of negative log-likelihoods, the number of targets with weight that are the likeliest token).
  """
  for size, axis in (*zip(targets_BT.shape, ("batch", "positions")), (head_DV.shape[1], "vocab")):
    if size % sharded.ways(axis):
      raise BadRequest(f"{axis} of {size} can't be split in {sharded.ways(axis)} by the mesh: make it a multiple of that")
  return _cross_entropy(hidden_BTD, head_DV, targets_BT, weight_BT, chunk)


def _on_devices(f: Callable, hidden_BTD, head_DV, targets_BT, weight_BT, chunk: int, out_axes: list) -> Any:
  def own(hidden_BTD, head_DV, targets_BT, weight_BT):
    whole_DV = sharded.gather_all(head_DV.astype(hidden_BTD.dtype), head_shape, ("embed", None))
    return f(hidden_BTD, whole_DV, targets_BT, weight_BT, chunk)

  head_shape = head_DV.shape
  row = ("batch", "positions")
  return sharded.per_device(own, ((*row, None), ("embed", "vocab"), row, row), out_axes)(
      hidden_BTD, head_DV, targets_BT, weight_BT
  )


def _chunk_stats(hidden_BSD, head_DV, targets_BS, weight_BS):
  """A chunk's weighted nll and hits, and what its gradient needs; the head holds this device's share of the vocabulary."""
  logits_BSV = jnp.matmul(hidden_BSD, head_DV, preferred_element_type=jnp.float32)
  first = sharded.index("vocab") * head_DV.shape[1]
  is_target_BSV = jnp.arange(head_DV.shape[1]) + first == targets_BS[..., None]
  target_BS = sharded.add_up(jnp.sum(jnp.where(is_target_BSV, logits_BSV, 0.0), axis=-1), "vocab")
  largest_BS = sharded.largest(jnp.max(logits_BSV, axis=-1), "vocab")
  exp_BSV = jnp.exp(logits_BSV - largest_BS[..., None])
  sum_BS = sharded.add_up(jnp.sum(exp_BSV, axis=-1), "vocab")
  nll_BS = jnp.log(sum_BS) + largest_BS - target_BS
  right_BS = (target_BS >= largest_BS) & (weight_BS > 0)
  return jnp.sum(weight_BS * nll_BS), jnp.sum(right_BS, dtype=jnp.float32), (exp_BSV, sum_BS, is_target_BSV)


def _sums(hidden_BTD, head_DV, targets_BT, weight_BT, chunk):
  def body(carry, scanned):
    hidden_BSD, targets_BS, weight_BS = scanned
    nll, right, _ = _chunk_stats(hidden_BSD, head_DV, targets_BS, weight_BS)
    return (carry[0] + nll, carry[1] + right), None

  scanned = tuple(_chunks(x, chunk) for x in (hidden_BTD, targets_BT, weight_BT))
  (nll, right), _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), scanned)
  return sharded.add_up(nll, "batch", "positions"), sharded.add_up(right, "batch", "positions")


def _sums_and_gradients(hidden_BTD, head_DV, targets_BT, weight_BT, chunk):
  def body(carry, scanned):
    hidden_BSD, targets_BS, weight_BS = scanned
    nll, right, (exp_BSV, sum_BS, is_target_BSV) = _chunk_stats(hidden_BSD, head_DV, targets_BS, weight_BS)
    gradient_BSV = (exp_BSV / sum_BS[..., None] - is_target_BSV) * weight_BS[..., None]
    gradient_BSV = gradient_BSV.astype(hidden_BSD.dtype)
    to_hidden_BSD = jnp.einsum("BSV,DV->BSD", gradient_BSV, head_DV, preferred_element_type=jnp.float32)
    to_hidden_BSD = sharded.add_up(to_hidden_BSD, "vocab").astype(hidden_BSD.dtype)
    to_head_DV = jnp.einsum("BSD,BSV->DV", hidden_BSD, gradient_BSV, preferred_element_type=jnp.float32)
    return (carry[0] + nll, carry[1] + right, carry[2] + to_head_DV), to_hidden_BSD

  scanned = tuple(_chunks(x, chunk) for x in (hidden_BTD, targets_BT, weight_BT))
  zeros = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(head_DV.shape, jnp.float32))
  (nll, right, to_head_DV), to_hidden_NBSD = jax.lax.scan(body, zeros, scanned)
  nll, right = (sharded.add_up(x, "batch", "positions") for x in (nll, right))
  to_head_DV = sharded.add_up_pieces(
      to_head_DV.astype(head_DV.dtype), ("embed", None), over=("batch", "positions")
  )
  return nll, right, _rows(to_hidden_NBSD, hidden_BTD.shape[1]), to_head_DV


def _forward(hidden_BTD, head_DV, targets_BT, weight_BT, chunk):
  outs = [(), (), ("batch", "positions", None), ("embed", "vocab")]
  nll, right, to_hidden_BTD, to_head_DV = _on_devices(
      _sums_and_gradients, hidden_BTD, head_DV, targets_BT, weight_BT, chunk, outs
  )
  return (nll, right), (to_hidden_BTD, to_head_DV.astype(head_DV.dtype))


def _backward(chunk, residuals, cotangents):
  to_hidden_BTD, to_head_DV = residuals
  scale = cotangents[0]
  return (scale * to_hidden_BTD).astype(to_hidden_BTD.dtype), (scale * to_head_DV).astype(to_head_DV.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def head_losses(
    head: FeatureHead, z_BGPD: jax.Array, feature_BGPC: jax.Array, key_BGP: jax.Array, *, config: ModelConfig
) -> jax.Array:
  """`mean_losses`, `config.diffusion.loss_chunk` patches of each device's rows at a time: [B, G, P].

  The head is small and its draws are many: every device takes the whole head and a share of the patches, also over the
  mesh axis that splits the backbone's heads. What a chunk computes on its way is computed again in the backward pass.
  """
  B, G, P = key_BGP.shape
  graphdef, values = params_lib.split(head)
  names = sorted(values)
  all_axes = describe(config)[2]
  axes = [all_axes[f"image_head/{n}"] for n in names]

  def own(z_BJD, feature_BJC, key_BJ, *pieces):
    # In fp32, so that what the chunks add to a parameter's gradient is added up in fp32.
    whole = {n: sharded.gather_all(v, values[n].shape, a).astype(jnp.float32) for n, v, a in zip(names, pieces, axes)}
    J = key_BJ.shape[1]
    chunk = config.diffusion.loss_chunk or J

    def losses(z_BSD, feature_BSC, data_BS):
      merged = params_lib.merge(graphdef, whole)
      key_BS = jax.random.wrap_key_data(data_BS, impl=impl)
      return mean_losses(merged, z_BSD[None], feature_BSC[None], key_BS[None])[0]

    scanned = [_chunks(x, chunk) for x in (z_BJD, feature_BJC, jax.random.key_data(key_BJ))]
    if len(scanned[0]) == 1:
      return losses(*(x[0] for x in scanned))
    _, loss_NBS = jax.lax.scan(lambda _, x: (None, jax.checkpoint(losses, prevent_cse=False)(*x)), None, scanned)
    return _rows(loss_NBS, J)

  impl = jax.random.key_impl(key_BGP)
  patch = ("batch", "patches")
  loss_BJ = sharded.per_device(own, ((*patch, None), (*patch, None), patch, *axes), patch)(
      z_BGPD.reshape(B, G * P, -1), feature_BGPC.reshape(B, G * P, -1), key_BGP.reshape(B, G * P),
      *(values[n] for n in names),
  )  # fmt: skip
  return loss_BJ.reshape(B, G, P)
