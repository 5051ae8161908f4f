"""Parameters by name, and the keys that they are drawn from."""

from flax import nnx
import jax
import pytest

from orthus_jax.models import params as params_lib


@pytest.mark.parametrize("seed", [3, jax.random.key(4)], ids=["number", "key"])
def test_keys_are_those_of_nnx(seed):
  found, expected = params_lib.Keys(seed), nnx.Rngs(params=seed)
  for _ in range(3):
    assert jax.random.key_data(found.params()).tolist() == jax.random.key_data(expected.params()).tolist()
