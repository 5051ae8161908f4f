"""Parameters by name, and the keys that they are drawn from."""

from flax import nnx
import jax
import pytest

from orthus_jax.models import params as params_lib


def test_structures_are_equal_where_what_they_describe_is():
  def structure(size):
    return params_lib.split(nnx.Linear(2, size, rngs=nnx.Rngs(0)))[0]

  one, again, other = structure(3), structure(3), structure(4)
  assert one == again and hash(one) == hash(again) and one is not again
  assert one != other and one != one.graphdef


@pytest.mark.parametrize("seed", [3, jax.random.key(4)], ids=["number", "key"])
def test_keys_are_those_of_nnx(seed):
  found, expected = params_lib.Keys(seed), nnx.Rngs(params=seed)
  for _ in range(3):
    assert jax.random.key_data(found.params()).tolist() == jax.random.key_data(expected.params()).tolist()
