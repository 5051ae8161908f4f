"""Published checkpoints in and out: bit for bit, in little memory, onto the devices that want them."""

import dataclasses
import json
import math
from pathlib import Path
import shutil
import subprocess
import sys

from chameleon import reference
from converting import convert, in_memory
import jax
import jax.numpy as jnp
import numpy as np
import published_weights as weights
import pytest
import tiny

import orthus_jax as oj
from orthus_jax import cli
from orthus_jax.config import Config, MeshConfig, RunConfig
from orthus_jax.interop import huggingface, safetensors
from orthus_jax.models.orthus import compute_dtype, describe
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import initial_state
from orthus_jax.training.checkpoints import small_arrays, workdir as checkpoint, zarr_arrays
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import TrainState, plan_state
from orthus_jax.training.tasks import TokenizerTask


def test_in_and_out_again_is_bit_identical(orthus, native, values, tmp_path):
  convert(f"--from={native}", f"--to={tmp_path / 'out'}", "--shard-size=0.0005")
  assert weights.same(weights.read(tmp_path / "out"), values)
  assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
  for file in orthus.iterdir():
    if "safetensors" not in file.name:
      assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
  convert(f"--from={tmp_path / 'out'}", f"--to={tmp_path / 'again'}")
  assert weights.same(checkpoint.load_params(tmp_path / "again"), checkpoint.load_params(native))


def test_arrays_are_those_of_the_rules(native, model, values):
  assert weights.same(checkpoint.load_params(native), in_memory(model, values))
  config = checkpoint.load_config(native)
  assert config.model.transformer.param_dtype == "bfloat16" and config.model.diffusion.blocks == 2
  essence = dataclasses.replace(config.model.transformer, param_dtype="float32")
  assert dataclasses.replace(config.model, transformer=essence) == model


def test_chunks_split_within_a_layer_and_hold_the_published_bytes(orthus, values, tmp_path, monkeypatch):
  monkeypatch.setattr(zarr_arrays, "PIECE", 1000)
  convert(f"--from={orthus}", f"--to={tmp_path / 'split'}")
  folder = tmp_path / "split/checkpoints/0/params"
  q = values["model.layers.1.self_attn.q_proj.weight"]  # [4 heads x 8, 32]: 512 bytes a head
  assert (folder / "transformer/layers/attention/q/c.1.0.2.0").read_bytes() == q[16:24].tobytes()
  assert not (folder / "transformer/layers/attention/q/c.1.1.0.0").exists()
  assert len(list((folder / "transformer/layers/mlp/down").glob("c.*"))) > 3
  convert(f"--from={tmp_path / 'split'}", f"--to={tmp_path / 'out'}")
  assert weights.same(weights.read(tmp_path / "out"), values)


def test_dtypes(orthus, native, model, values, tmp_path):
  convert(f"--from={orthus}", f"--to={tmp_path / 'whole'}", "--dtype=float32")
  wide = {k: v.astype(np.float32) for k, v in values.items()}
  assert weights.same(checkpoint.load_params(tmp_path / "whole"), in_memory(model, wide))
  assert checkpoint.load_config(tmp_path / "whole").model.transformer.param_dtype == "float32"
  convert(f"--from={native}", f"--to={tmp_path / 'half'}", "--dtype=bfloat16")
  assert weights.same(weights.read(tmp_path / "half"), {k: v.astype(weights.BF16) for k, v in values.items()})
  convert(f"--from={tmp_path / 'whole'}", f"--to={tmp_path / 'out'}", "--format=huggingface")
  assert weights.same(weights.read(tmp_path / "out"), wide)
  assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
  assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"  # transformers casts to it


def test_layers_of_different_dtypes_are_stacked_in_the_widest(model, values, tmp_path, capsys):
  key = "model.layers.1.mlp.up_proj.weight"
  mixed = values | {key: values[key].astype(np.float32)}
  convert(f"--from={weights.write(tmp_path / 'mixed', mixed, model)}", f"--to={tmp_path / 'native'}")
  assert "layers of transformer/layers/mlp/up differ in dtype" in capsys.readouterr().out
  wide = mixed | {k: v.astype(np.float32) for k, v in values.items() if ".mlp.up_proj." in k}
  assert weights.same(checkpoint.load_params(tmp_path / "native"), in_memory(model, wide))


def test_loading_puts_each_array_where_the_mesh_wants_it(orthus, native, model, values):
  mesh = mesh_lib.make_mesh(MeshConfig(fsdp=4, tensor=2))
  # Float32 ones, held as they are used.
  expected = {n: v.astype(jnp.dtype(compute_dtype(model, n) or v.dtype)) for n, v in in_memory(model, values).items()}
  axes = describe(model)[2]
  for path in (orthus, native):
    loaded = oj.load(path, mesh=mesh)
    assert weights.same(loaded.params, expected)
    for name, value in loaded.params.items():
      assert value.sharding == mesh_lib.sharding(mesh, value.shape, axes[name]), name
    up = loaded.params["transformer/layers/mlp/up"]
    assert up.addressable_shards[0].data.shape == (3, 8, 24)
    assert loaded.tokenizer.digest() == oj.load(path).tokenizer.digest()


def test_a_part_is_read_without_the_rest(orthus, model, values, monkeypatch):
  found = huggingface.open_checkpoint(orthus)
  looked = []
  view = safetensors.Entry.view
  monkeypatch.setattr(safetensors.Entry, "view", lambda self: looked.append(self.shape) or view(self))
  part = found.part("transformer/layers/mlp/up", (slice(1, 2), slice(0, 8), slice(24, 48)))
  np.testing.assert_array_equal(part, in_memory(model, values)["transformer/layers/mlp/up"][1:2, :8, 24:])
  assert looked == [(48, 32)]  # one layer's alone


def test_training_starts_from_either(orthus, native, model, values):
  for path in (orthus, native):
    base = checkpoint.load_config(native)
    config = dataclasses.replace(base, run=RunConfig(init_from=(("", str(path)),)))
    initial_state.check_sources(config)
    mesh = mesh_lib.make_mesh(config.mesh)
    layout, _ = plan_state(
        lambda: oj_module(config), select=lambda shapes: frozenset(shapes), ema=False, mesh=mesh,
        optimizer=make_optimizer(config.optimizer, config.run),
    )  # fmt: skip
    found = initial_state.initial_values(config, layout)
    assert weights.same(found, in_memory(model, values))
    assert all(v.sharding == layout.shardings.params[n] for n, v in found.items())


def test_a_vision_tokenizer_starts_from_a_whole_model_of_which_nothing_else_is_read(orthus, native, model, values, monkeypatch):
  read, part = [], huggingface.Checkpoint.part
  monkeypatch.setattr(huggingface.Checkpoint, "part", lambda self, name, index: read.append(name) or part(self, name, index))
  prefix = "vision_tokenizer/"
  expected = {n.removeprefix(prefix): v for n, v in in_memory(model, values).items() if n.startswith(prefix)}
  base = checkpoint.load_config(native)
  for path in (orthus, native):
    loss = dataclasses.replace(base.tokenizer_loss, revive_every=0)
    run = RunConfig(init_from=(("", str(path)),))
    config = dataclasses.replace(base, task="vision_tokenizer", tokenizer_loss=loss, run=run)
    initial_state.check_sources(config)
    layout, _ = plan_state(
        TokenizerTask(config, tiny.TinySource(4)).init, select=lambda shapes: frozenset(shapes), ema=False,
        mesh=mesh_lib.make_mesh(config.mesh), optimizer=make_optimizer(config.optimizer, config.run),
    )  # fmt: skip
    found = initial_state.initial_values(config, layout)
    assert weights.same(found, expected)
    assert all(v.sharding == layout.shardings.params[n] for n, v in found.items())
    assert weights.same(initial_state.initial_tokenizer(config, layout.shapes.params), expected)
  assert read and all(n.startswith(prefix) for n in read)


def oj_module(config: Config):
  from flax import nnx

  from orthus_jax.models.orthus import Orthus

  return Orthus(config.model, rngs=nnx.Rngs(params=0))


def test_a_run_that_orbax_wrote_goes_out(native, model, values, tmp_path):
  # As training saves it: Orbax' own layout, and a running average that takes the parameters' place.
  import orbax.checkpoint as ocp

  run = tmp_path / "run"
  shutil.copytree(native, run, ignore=shutil.ignore_patterns("checkpoints", "huggingface"))
  ours = {n: np.asarray(v, np.float32) for n, v in in_memory(model, values).items()}
  average = {n: v + 1 for n, v in ours.items() if n.startswith("transformer/")}
  with ocp.StandardCheckpointer() as writer:
    writer.save(run / "checkpoints/7/params", {n: jax.numpy.asarray(v) for n, v in ours.items()})
    writer.save(run / "checkpoints/7/average", average)
  convert(f"--from={run}", f"--to={tmp_path / 'out'}")
  expected = {
      k: v.astype(np.float32) + (k.startswith(("model.layers", "model.norm"))) for k, v in values.items()
  }
  assert weights.same(weights.read(tmp_path / "out"), {k: v.astype(np.float32) for k, v in expected.items()})
  # All files of its own making say what the model is.
  again = huggingface.open_checkpoint(tmp_path / "out")
  config = checkpoint.load_config(run)
  transformer = dataclasses.replace(config.model.transformer, dtype="float32", param_dtype="float32")
  assert again.config.model == dataclasses.replace(config.model, transformer=transformer)
  assert again.config.sampling == config.sampling
  vocabulary = json.loads((tmp_path / "out/config.json").read_text())["vocabulary_map"]
  assert vocabulary["<image>"] == again.tokenizer.image and vocabulary["IMGIMGAZ"] == 4


def test_large_arrays_of_a_run_are_saved_in_pieces(tmp_path, monkeypatch):
  # As the trainer saves them: a chunk holds no more than a layer, which is all that a conversion then holds.
  monkeypatch.setattr(zarr_arrays, "PIECE", 1000)
  monkeypatch.setattr(small_arrays, "SMALL", 1000)
  layers = {"transformer/layers/mlp/up": jax.numpy.ones((4, 64, 16)), "lm_head": jax.numpy.ones((64, 16))}
  state = TrainState(step=jax.numpy.int32(3), trained=layers, frozen={}, moments={"m": layers}, ema={})
  saver = Checkpointer(tmp_path, RunConfig())
  saver.save(state)
  saver.close()
  stored = zarr_arrays.open_arrays(tmp_path / "checkpoints/3/params")
  chunks = {n: zarr_arrays.read_chunk(h) for n, h in stored.items()}
  assert chunks["transformer/layers/mlp/up"][0] == 1
  assert all(math.prod(c) * 4 <= 1000 for c in chunks.values())
  assert weights.same(checkpoint.load_params(tmp_path), layers)


def test_what_training_saved_goes_out_like_what_was_converted(native, values, tmp_path):
  # Training keeps small arrays as one, in another layout than a conversion's.
  run = shutil.copytree(native, tmp_path / "run")
  shutil.rmtree(run / "checkpoints")
  params = {n: jax.numpy.asarray(v) for n, v in checkpoint.load_params(native).items()}
  saver = Checkpointer(run, RunConfig())
  saver.save(TrainState(step=jax.numpy.int32(1), trained=params, frozen={}, moments={}, ema={}))
  saver.close()
  convert(f"--from={run}", f"--to={tmp_path / 'out'}")
  assert weights.same(weights.read(tmp_path / "out"), values)


def test_help_is_enough(capsys):
  with pytest.raises(SystemExit):
    cli.main(["convert", "--help"])
  said = capsys.readouterr().out
  for word in ("--from", "--to", "--dtype", "--decoder", "--seed", "init_from", "non-commercial"):
    assert word in said


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_transformers_loads_what_goes_out(kept, native, values, tmp_path):
  transformers = reference("transformers")
  run = shutil.copytree(native, tmp_path / "run", ignore=None if kept else shutil.ignore_patterns("huggingface"))
  convert(f"--from={run}", f"--to={tmp_path / 'out'}", "--shard-size=0.0005")
  loaded, report = transformers.ChameleonForConditionalGeneration.from_pretrained(
      tmp_path / "out", output_loading_info=True, dtype="float32"
  )
  # It has no diffusion head, soft VQ or decoder, and names them; nothing of its own is missing.
  assert not report["missing_keys"] and not report["mismatched_keys"]
  extra = ("mlp_head.", "model.codebook_in.", "model.vqmodel.decoder.")
  assert all(k.startswith(extra) for k in report["unexpected_keys"])
  for key, value in loaded.state_dict().items():
    np.testing.assert_array_equal(value.numpy(), values[key].astype(np.float32), err_msg=key)
  # What it saves itself is read again.
  loaded.save_pretrained(tmp_path / "saved")
  for file in (tmp_path / "out").iterdir():
    if "safetensors" not in file.name and file.name != "config.json":
      shutil.copy(file, tmp_path / "saved")
  again = huggingface.open_checkpoint(tmp_path / "saved")
  np.testing.assert_array_equal(
      again.load()["lm_head"].astype(np.float32), values["lm_head.weight"].T.astype(np.float32)
  )
  theirs = checkpoint.load_config(native).model.transformer
  assert dataclasses.replace(again.config.model.transformer, dtype=theirs.dtype, param_dtype=theirs.param_dtype) == theirs


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
  # One layer of the published size, 1.7 GB in all: a conversion holds less than half of it, JAX and all.
  script = Path(__file__).parent.parent / "benchmarks/convert.py"
  argv = [sys.executable, str(script), f"--scratch={tmp_path}", "--layers=1", "--repeat=1", "--memory", "--json"]
  figures = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
  assert figures["identical"]
  for part in ("import", "export"):
    assert figures[part]["peak_bytes"] < 0.5 * figures["bytes"], part
