"""Rows of a table by their numbers, with a gradient whose sums are float32 where it matters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def rows(table_VD: jax.Array, ids: jax.Array) -> jax.Array:
  """Rows [..., T, D] of a table [V, D], by ids [..., T].

  A sum in bfloat16 stands still at 256 times what is added to it, and a row of a batch has hundreds of its commonest token.
  So each row's are added up in float32 first; what is left to the table's own dtype is the sum of so many rows. (Adding all
  up in float32 would have devices exchange the table's gradient in float32, too.)
  """
  if table_VD.dtype == jnp.float32:
    return jnp.take(table_VD, ids, axis=0)
  return _rows(table_VD.shape[0], table_VD, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(count: int, table_VD: jax.Array, ids: jax.Array) -> jax.Array:
  return jnp.take(table_VD, ids, axis=0)


def _forward(count: int, table_VD: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _rows(count, table_VD, ids), ids


def _backward(count: int, ids: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
  T, D = gradient.shape[-2:]
  summed_BTD, first_BT = jax.vmap(functools.partial(_by_first, count))(ids.reshape(-1, T), gradient.reshape(-1, T, D))
  at_BT = jnp.where(first_BT, ids.reshape(-1, T), count)  # of what is in the sum of its first, nowhere
  empty_VD = jnp.zeros((count, D), gradient.dtype)
  return empty_VD.at[at_BT].add(summed_BTD.astype(gradient.dtype), mode="drop"), None


def _by_first(count: int, ids_T: jax.Array, gradient_TD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Where an id first stands in a row, the sum of all of that id, in float32 [T, D]; and where that is."""
  place_T = jnp.arange(len(ids_T))
  first_T = jnp.full(count, len(ids_T)).at[ids_T].min(place_T)[ids_T]
  return jnp.zeros(gradient_TD.shape, jnp.float32).at[first_T].add(gradient_TD.astype(jnp.float32)), first_T == place_T


_rows.defvjp(_forward, _backward)
