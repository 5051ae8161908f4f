"""Small arrays kept as one: what goes in comes out, on any mesh, and a reader needs nothing but the checkpoint."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import orbax.checkpoint as ocp
import pytest

from orthus_jax.training.checkpoints import orbax_items, small_arrays, zarr_arrays

_SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
_DTYPES = st.sampled_from(["float32", "bfloat16", "int32", "bool"])


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.dictionaries(st.text("ab/", min_size=1, max_size=4), st.tuples(_SHAPES, _DTYPES), max_size=6))
def test_what_goes_in_comes_out(described):
  rng = np.random.default_rng(0)
  values = {n: rng.integers(0, 2, shape).astype(dtype) for n, (shape, dtype) in described.items()}
  plan = small_arrays.plan(values)
  packed = small_arrays.pack({n: jnp.asarray(v) for n, v in values.items()}, plan)
  assert len(packed) == len({v.dtype for v in values.values()})
  found = {}
  for name, parts in plan.items():
    found |= small_arrays.unpack(np.asarray(packed[name]), parts)
  assert found.keys() == values.keys()
  assert all(found[n].dtype == v.dtype and np.array_equal(found[n], v) for n, v in values.items())


def _save(folder, tree):
  with orbax_items.quiet(), ocp.Checkpointer(orbax_items.handler()) as writer:
    writer.save(folder, args=orbax_items.save_args(tree))
  return folder


def test_large_arrays_stay_alone_and_all_readers_see_all(tmp_path, monkeypatch):
  monkeypatch.setattr(small_arrays, "SMALL", 64)
  tree = {"small": jnp.arange(16.0), "large": jnp.arange(17.0), "deep": [{"er": jnp.int32(3)}]}
  folder = _save(tmp_path / "item", tree)
  with orbax_items.quiet(), ocp.StandardCheckpointer() as reader:
    assert set(reader.metadata(folder).item_metadata.tree) == {"large", "packed.float32", "packed.int32"}
    monkeypatch.setattr(small_arrays, "SMALL", 0)  # a reader has no rule of its own
    found = orbax_items.read(reader, folder)
  handles = {n: h.read().result() for n, h in zarr_arrays.open_arrays(folder).items()}
  assert found.keys() == handles.keys() == {"small", "large", "deep/0/er"}
  for one in (found, handles):
    assert np.array_equal(one["small"], tree["small"]) and np.array_equal(one["large"], tree["large"])
    assert one["deep/0/er"] == 3 and one["deep/0/er"].shape == ()


def test_sharded_ones_come_back_onto_another_mesh(tmp_path):
  devices = np.array(jax.devices()[:8])
  before = NamedSharding(Mesh(devices, ("x",)), PartitionSpec("x"))
  after = NamedSharding(Mesh(devices[:4].reshape(2, 2), ("x", "y")), PartitionSpec(None, "y"))
  values = {"a": np.arange(16.0).reshape(8, 2), "b": np.arange(8.0).reshape(8, 1)}
  folder = _save(tmp_path / "item", {n: jax.device_put(v, before) for n, v in values.items()})
  whole = NamedSharding(after.mesh, PartitionSpec())
  target = {n: jax.ShapeDtypeStruct(v.shape, jnp.float32, sharding=after if n == "a" else whole) for n, v in values.items()}
  with orbax_items.quiet(), ocp.StandardCheckpointer() as reader:
    found = orbax_items.read_like(reader, folder, target)
  assert found["a"].sharding == after and found["b"].sharding == whole
  assert all(np.array_equal(found[n], v) for n, v in values.items())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"a": (3,)}, "an array 'b' that is unknown"), ({"a": (3,), "b": (2,), "c": (1,)}, "lacks the array 'c'"),
        ({"a": (3,), "b": (3,)}, "b is float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, target, said):
  folder = _save(tmp_path / "item", {"a": jnp.ones(3), "b": jnp.ones(2)})
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = {n: jax.ShapeDtypeStruct(s, jnp.float32, sharding=here) for n, s in target.items()}
  with orbax_items.quiet(), ocp.StandardCheckpointer() as reader, pytest.raises(ValueError, match=said):
    orbax_items.read_like(reader, folder, like)


def test_a_packed_array_of_another_length_is_refused():
  with pytest.raises(ValueError, match="its parts take 3"):
    small_arrays.unpack(np.zeros(4), [["a", [2]], ["b", []]])
