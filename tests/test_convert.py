"""Published checkpoints in and out: bit for bit, in little memory, all problems told at once, nothing left half-written."""

import numpy as np
import pytest

import orthus_jax as oj
from orthus_jax import cli
from orthus_jax.interop import huggingface
from orthus_jax.training import checkpoint

import published_weights as weights


@pytest.fixture(scope="module")
def model():
  return weights.model_config()


@pytest.fixture(scope="module")
def values(model):
  return weights.arrays(model)


@pytest.fixture(scope="module")
def orthus(model, values, tmp_path_factory):
  return weights.write(tmp_path_factory.mktemp("published") / "orthus", values, model)


def convert(*argv) -> None:
  assert cli.main(["convert", *map(str, argv)]) == 0


@pytest.fixture(scope="module")
def native(orthus, tmp_path_factory):
  folder = tmp_path_factory.mktemp("native") / "orthus"
  convert(f"--from={orthus}", f"--to={folder}")
  return folder


def test_in_and_out_again_is_bit_identical(orthus, native, values, tmp_path):
  convert(f"--from={native}", f"--to={tmp_path / 'out'}", "--shard-size=0.0005")
  assert weights.same(weights.read(tmp_path / "out"), values)
  assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
  for file in orthus.iterdir():
    if "safetensors" not in file.name:
      assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
  convert(f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'again'}")
  assert weights.same(checkpoint.load_params(tmp_path / "again"), checkpoint.load_params(native))
