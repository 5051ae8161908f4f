"""Published checkpoints in and out: bit for bit, in little memory, all problems told at once, nothing left half-written."""

import csv
import dataclasses
import errno
import json
import math
from pathlib import Path
import shutil
import subprocess
import sys

from chameleon import reference
import jax
import numpy as np
import plain
import published_weights as weights
import pytest

import orthus_jax as oj
from orthus_jax import cli, files
from orthus_jax.config import Config, MeshConfig, ModelConfig, RunConfig, from_dict
from orthus_jax.errors import BadRequest
from orthus_jax.inference import scheduler
from orthus_jax.interop import huggingface, names, safetensors
from orthus_jax.interop.published_config import read_config, write_config
from orthus_jax.models.orthus import describe
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.training import initial_state
from orthus_jax.training.checkpoints import small_arrays, workdir as checkpoint, zarr_arrays
from orthus_jax.training.checkpoints.saver import Checkpointer
from orthus_jax.training.optimizer import make_optimizer
from orthus_jax.training.state import TrainState, plan_state

DECODER, HEAD = "model.vqmodel.decoder.conv_in.weight", "mlp_head.input_proj.weight"


@pytest.fixture(scope="module")
def model():
  return weights.model_config()


@pytest.fixture(scope="module")
def values(model):
  return weights.arrays(model)


@pytest.fixture(scope="module")
def orthus(model, values, tmp_path_factory):
  return weights.write(tmp_path_factory.mktemp("published") / "orthus", values, model)


@pytest.fixture(scope="module")
def native(orthus, tmp_path_factory):
  folder = tmp_path_factory.mktemp("native") / "orthus"
  convert(f"--from={orthus}", f"--to={folder}")
  return folder


@pytest.fixture
def copied(orthus, tmp_path):
  """A directory to damage."""
  return shutil.copytree(orthus, tmp_path / "copied")


def convert(*argv) -> None:
  assert cli.main(["convert", *map(str, argv)]) == 0


def refused(capsys, *argv) -> str:
  """The one line that a bad request ends in; nothing new may be left beside --to."""
  target = next(Path(a.removeprefix("--to=")) for a in map(str, argv) if a.startswith("--to="))
  before = sorted(target.parent.iterdir()) if target.parent.is_dir() else []
  assert cli.main(["convert", *map(str, argv)]) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith("orthus: ") and captured.err.count("\n") == 1, captured.err
  assert (sorted(target.parent.iterdir()) if target.parent.is_dir() else []) == before
  return captured.err


def in_memory(model: ModelConfig, values) -> dict[str, np.ndarray]:
  """What `plain.import_params`, which other tests hold against the released code, makes of the arrays."""
  return plain.import_params(values, describe(model)[1])


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


def test_layers_of_different_dtypes_are_stacked_in_the_widest(model, values, tmp_path, capsys):
  key = "model.layers.1.mlp.up_proj.weight"
  mixed = values | {key: values[key].astype(np.float32)}
  convert(f"--from={weights.write(tmp_path / 'mixed', mixed, model)}", f"--to={tmp_path / 'native'}")
  assert "layers of transformer/layers/mlp/up differ in dtype" in capsys.readouterr().out
  wide = mixed | {k: v.astype(np.float32) for k, v in values.items() if ".mlp.up_proj." in k}
  assert weights.same(checkpoint.load_params(tmp_path / "native"), in_memory(model, wide))


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: k.removeprefix("model."),
        lambda k: k.replace("model.", "model.language_model.", 1) if k.startswith(("model.layers", "model.embed")) else k,
        lambda k: f"module.{k}",
        lambda k: k.replace("model.", "language_model.model.", 1) if k.startswith("model.layers") else k,
    ],
)  # fmt: skip
def test_keys_of_other_versions(rename, model, values, tmp_path):
  folder = weights.write(tmp_path / "renamed", {rename(k): v for k, v in values.items()}, model, shards=1)
  assert weights.same(huggingface.open_checkpoint(folder).load(), in_memory(model, values))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [True, False])
def test_a_plain_chameleon_is_the_start_of_the_first_stage(decoder, model, values, tmp_path, capsys):
  plain = weights.plain(values, decoder=decoder)
  folder = weights.write(tmp_path / "chameleon", plain, model, architectures=["ChameleonForConditionalGeneration"])
  convert(f"--from={folder}", f"--to={tmp_path / 'a'}", "--seed=1")
  said = capsys.readouterr().out
  assert "diffusion head fresh" in said and ("no VQGAN decoder" in said) is not decoder
  params = checkpoint.load_params(tmp_path / "a")
  np.testing.assert_array_equal(params["vision_embedding/codebook"], params["vision_tokenizer/codebook"])
  assert any(n.startswith("vision_tokenizer/decoder/") for n in params) is decoder
  assert not params["image_head/output/kernel"].any() and params["image_head/input/kernel"].any()
  assert weights.same(params, huggingface.open_checkpoint(folder, seed=1).load())
  assert not weights.same(params, huggingface.open_checkpoint(folder, seed=2).load())
  convert(f"--from={tmp_path / 'a'}", f"--to={tmp_path / 'out'}")
  out = weights.read(tmp_path / "out")
  assert weights.same({k: out[k] for k in plain}, plain)
  assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["OrthusForConditionalGeneration"]


@pytest.mark.parametrize("prefix", ["", "model.vqmodel.", "vqmodel."])
def test_a_decoder_from_another_file(prefix, model, values, tmp_path, capsys):
  plain = {k: v for k, v in values.items() if not k.startswith(("model.vqmodel.decoder.", "model.vqmodel.post_quant"))}
  folder = weights.write(tmp_path / "chameleon", plain, model)
  vqgan = {k.removeprefix("model.vqmodel."): v for k, v in values.items() if k.startswith("model.vqmodel.")}
  weights.write_safetensors(tmp_path / "vqgan.safetensors", {prefix + k: v for k, v in vqgan.items()})
  found = huggingface.open_checkpoint(folder, decoder=tmp_path / "vqgan.safetensors")
  assert weights.same(found.load(), in_memory(model, values)) and not found.notes
  assert not huggingface.open_checkpoint(folder).config.model.vision_tokenizer.decoder
  weights.write_safetensors(tmp_path / "none.safetensors", {"encoder.x": np.zeros(1, np.float32)})
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}", f"--decoder={tmp_path / 'none.safetensors'}")
  assert "none.safetensors holds no array called decoder.*" in error


def test_models_that_cannot_draw_refuse_to(model, values, tmp_path, monkeypatch):
  ran = []

  def run(_, requests):
    ran.extend("image" if r.max_images else "text" for r in requests)
    nothing = np.zeros(0, np.int32)
    yield scheduler.Progress(0, nothing, nothing, done=True)

  monkeypatch.setattr(scheduler.Scheduler, "run", run)
  monkeypatch.setattr(scheduler.Scheduler, "__init__", lambda *_, **__: None)
  folder = weights.write(tmp_path / "chameleon", weights.plain(values, decoder=False), model)
  blind = oj.load(folder)
  with pytest.raises(BadRequest, match="no VQGAN decoder, so it can't draw"):
    oj.generate(blind, oj.document("a red house"), respond="image")
  oj.generate(blind, oj.document("a red house"), respond="auto")
  assert ran == ["text"]
  convert(f"--from={folder}", f"--to={tmp_path / 'native'}")
  with pytest.raises(BadRequest, match="no VQGAN decoder, so it can't draw"):
    oj.generate(oj.load(tmp_path / "native"), oj.document("a red house"), respond="image")
  anole = oj.load(weights.write(tmp_path / "anole", weights.plain(values, decoder=True), model))
  with pytest.raises(BadRequest, match="image head is untrained and would draw noise"):
    oj.generate(anole, oj.document("a red house"), respond="image")
  oj.generate(oj.load(weights.write(tmp_path / "orthus", values, model)), oj.document("a house"), respond="image")
  assert ran == ["text", "image"]


def test_loading_puts_each_array_where_the_mesh_wants_it(orthus, native, model, values):
  mesh = mesh_lib.make_mesh(MeshConfig(fsdp=4, tensor=2))
  expected = in_memory(model, values)
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


def test_what_changed_is_told_by_the_files(native, tmp_path, capsys):
  run = shutil.copytree(native, tmp_path / "run")
  tree = json.loads((run / "config.json").read_text())
  tree["model"]["diffusion"]["target"], tree["model"]["diffusion"]["zero_terminal_snr"] = "noise", False
  tree["model"]["vision_tokenizer"]["pixels"]["resample"] = "bicubic"
  tree["sampling"]["guidance"] = 3.0
  (run / "config.json").write_text(json.dumps(tree))
  convert(f"--from={run}", f"--to={tmp_path / 'out'}")
  assert "diffusion.target=noise where the released code has velocity" in capsys.readouterr().out
  again = huggingface.open_checkpoint(tmp_path / "out").config
  assert again.model == from_dict(Config, tree).model and again.sampling.guidance == 3.0
  assert json.loads((tmp_path / "out/config.json").read_text())["a_field_of_later"] == [1, 2]


def test_both_places_of_the_rotary_base(model, values):
  shapes = {k: v.shape for k, v in values.items()}
  for fields in ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": None}):
    problems = []
    assert read_config(weights.config_json(model) | fields, shapes, problems)[0].transformer.rope_theta == 5e5
    assert not problems


@pytest.mark.parametrize(
    "part, field, value, message",
    [
        ("vision_embedding", "patch_positions", True, "no place for vision_embedding.patch_positions"),
        ("transformer", "norm_eps", 1e-6, "can't describe norm_eps=1e-06"),
    ],
)
def test_a_model_that_the_published_format_cannot_describe(part, field, value, message, native, tmp_path, capsys):
  run = shutil.copytree(native, tmp_path / "run")
  tree = json.loads((run / "config.json").read_text())
  tree["model"][part][field] = value
  (run / "config.json").write_text(json.dumps(tree))
  assert message in refused(capsys, f"--from={run}", f"--to={tmp_path / 'x'}")
  assert not (tmp_path / "x").exists()


def test_a_silent_file_means_the_published_defaults(values):
  read, _ = read_config({"model_type": "chameleon"}, {DECODER: (1,)}, [])
  assert read == dataclasses.replace(ModelConfig())


def test_34b_by_its_shapes_alone():
  # Chameleon 34B: the norm on the output, 64 heads of 128 in 8 groups.
  said = {
      "model_type": "chameleon", "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48,
      "num_attention_heads": 64, "num_key_value_heads": 8, "swin_norm": True, "vq_config": {}, "rope_theta": 10000.0,
  }  # fmt: skip
  problems = []
  model, _ = read_config(said, {DECODER: (1,)}, problems)
  assert not problems and model.transformer.norm_placement == "swin" and model.transformer.head_dim == 128
  shapes = describe(model)[1]
  table = names.table(shapes)
  layer = {k.removeprefix("model.layers.47."): p.shape for k, p in table.items() if k.startswith("model.layers.47.")}
  assert layer == {
      "self_attn.q_proj.weight": (8192, 8192), "self_attn.k_proj.weight": (1024, 8192),
      "self_attn.v_proj.weight": (1024, 8192), "self_attn.o_proj.weight": (8192, 8192),
      "self_attn.q_norm.weight": (64, 128), "self_attn.q_norm.bias": (64, 128), "self_attn.k_norm.weight": (8, 128),
      "self_attn.k_norm.bias": (8, 128), "mlp.gate_proj.weight": (22016, 8192), "mlp.up_proj.weight": (22016, 8192),
      "mlp.down_proj.weight": (8192, 22016), "input_layernorm.weight": (8192,), "post_attention_layernorm.weight": (8192,),
  }  # fmt: skip
  assert len([k for k in table if k.startswith("model.layers.")]) == 48 * len(layer)
  # Every name goes there and back, and no number is lost.
  assert {p.name for p in table.values()} == set(shapes)
  assert sum(math.prod(p.shape) for p in table.values()) == sum(math.prod(s) for s in shapes.values())
  written = write_config(model, oj.SamplingConfig(), dtype="bfloat16")
  assert read_config(written, {k: p.shape for k, p in table.items()}, [])[0] == model
  assert {k: written[k] for k in said if k != "vq_config"} == {k: said[k] for k in said if k != "vq_config"}


def test_published_shapes_of_the_7b_model():
  with (Path(__file__).parent / "golden/orthus_state_dict_keys.tsv").open() as file:
    published = {r["key"]: tuple(map(int, r["shape(torch)"].split("x"))) for r in csv.DictReader(file, delimiter="\t")}
  assert {k: p.shape for k, p in names.table(describe(ModelConfig())[1]).items()} == published


def test_a_swin_model_goes_in_and_out(tmp_path):
  model = weights.model_config(swin=True)
  values = weights.arrays(model)
  folder = weights.write(tmp_path / "published", values, model)
  convert(f"--from={folder}", f"--to={tmp_path / 'native'}")
  assert checkpoint.load_config(tmp_path / "native").model.transformer.norm_placement == "swin"
  convert(f"--from={tmp_path / 'native'}", f"--to={tmp_path / 'out'}")
  assert weights.same(weights.read(tmp_path / "out"), values)


def test_every_bad_array_is_named_at_once(model, values, tmp_path, capsys):
  bad = dict(values)
  del bad["model.layers.2.mlp.up_proj.weight"], bad["lm_head.weight"]
  bad["model.layers.3.mlp.up_proj.weight"] = values["model.layers.2.mlp.up_proj.weight"]
  bad["model.norm.weight"] = values["model.norm.weight"][:-1]
  folder = weights.write(tmp_path / "bad", bad, model)
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}")
  assert "(4 problems)" in error
  assert "model.layers.2.mlp.up_proj.weight 48x32 is missing" in error and "lm_head.weight 512x32 is missing" in error
  assert "model.layers.3.mlp.up_proj.weight 48x32 is unknown" in error
  assert "model.norm.weight is 31 where 32 is expected" in error
  with pytest.raises(BadRequest, match=r"4 problems"):
    oj.load(folder)


def test_of_hundreds_of_problems_the_first_are_told(model, values, tmp_path, capsys):
  folder = weights.write(tmp_path / "bad", values, model, num_hidden_layers=20)
  error = refused(capsys, f"--from={folder}", f"--to={tmp_path / 'x'}")
  assert "(221 problems)" in error and error.count(" is missing") == 20 and "… and 201 more" in error


def test_files_that_are_not_what_the_index_says(copied, tmp_path, capsys):
  index = json.loads((copied / "model.safetensors.index.json").read_text())
  first, second, third = (copied / f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
  held = sum(f == first.name for f in index["weight_map"].values())
  first.unlink()
  second.write_bytes(second.read_bytes()[:-10])
  index["weight_map"]["model.absent.weight"] = third.name
  (copied / "model.safetensors.index.json").write_text(json.dumps(index))
  error = refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  assert f"{first.name} is missing (model.safetensors.index.json puts {held} arrays there)" in error
  assert f"{second.name} is cut off: it holds" in error
  assert f"model.absent.weight isn't in {third.name}, where model.safetensors.index.json puts it" in error
  assert "(3 problems)" in error  # arrays of files that can't be read aren't called missing


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": 48}, "where"),
        ({"hidden_size": "32"}, "hidden_size='32' must be of type int"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' isn't supported"),
        ({"model_type": "llama"}, "model_type='llama' is none of chameleon"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "which this model doesn't have"),
        ({"vocab_size": 100}, "has ids up to"),
        ({"rms_norm_eps": 1e-6}, "differs from the QK-norm's"),
        ({"num_attention_heads": 5}, "isn't a multiple of num_attention_heads=5"),
        ({"vq_config": {"attn_resolutions": [8]}}, "vq_config.attn_resolutions=[8] isn't supported"),
    ],
)
def test_configs_that_cannot_be_met(fields, message, copied, tmp_path, capsys):
  said = json.loads((copied / "config.json").read_text())
  fields = {k: said[k] | v if k == "vq_config" else v for k, v in fields.items()}
  (copied / "config.json").write_text(json.dumps(said | fields))
  assert message in refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")


def test_other_files_that_are_missing_or_damaged(copied, tmp_path, capsys):
  (copied / "config.json").unlink()
  (copied / "tokenizer.json").unlink()
  error = refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  assert "config.json is missing" in error and "there is no tokenizer" in error
  (copied / "model-00001-of-00003.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{not js}")
  assert "has a damaged header" in refused(capsys, f"--from={copied}", f"--to={tmp_path / 'x'}")
  empty = tmp_path / "empty"
  empty.mkdir()
  assert "holds no checkpoint" in refused(capsys, f"--from={empty}", f"--to={tmp_path / 'x'}")
  (empty / "config.json").write_text('{"model_type": "chameleon"}')
  (empty / "pytorch_model.bin").write_bytes(b"")
  assert "only safetensors are read" in refused(capsys, f"--from={empty}", f"--to={tmp_path / 'x'}")


def test_a_native_checkpoint_that_disagrees_with_its_config(native, tmp_path, capsys):
  run = shutil.copytree(native, tmp_path / "run")
  tree = json.loads((run / "config.json").read_text())
  tree["model"]["transformer"]["mlp_width"] = 40
  (run / "config.json").write_text(json.dumps(tree))
  error = refused(capsys, f"--from={run}", f"--to={tmp_path / 'x'}")
  assert "(3 problems)" in error and "transformer/layers/mlp/down is (3, 48, 32) where (3, 40, 32) is expected" in error
  (run / "checkpoints/0/params/_METADATA").unlink()
  assert "can't be read as a checkpoint" in refused(capsys, f"--from={run}", f"--to={tmp_path / 'x'}")


def test_requests_that_make_no_sense(orthus, native, tmp_path, capsys):
  (tmp_path / "there").mkdir()
  (tmp_path / "there/file").write_text("")
  assert "exists already" in refused(capsys, f"--from={orthus}", f"--to={tmp_path / 'there'}")
  assert "is no directory" in refused(capsys, f"--from={tmp_path / 'no'}", f"--to={tmp_path / 'x'}")
  assert "lies within" in refused(capsys, f"--from={orthus}", f"--to={orthus / 'x'}")
  assert "is native already" in refused(capsys, f"--from={native}", f"--to={tmp_path / 'x'}", "--format=native")
  assert "a Hugging Face directory already" in refused(
      capsys, f"--from={orthus}", f"--to={tmp_path / 'x'}", "--format=huggingface"
  )
  assert "--decoder is for" in refused(capsys, f"--from={native}", f"--to={tmp_path / 'x'}", "--decoder=a")


@pytest.mark.parametrize("form", ["native", "huggingface"])
def test_a_disk_that_fills_up_leaves_nothing(form, orthus, native, tmp_path, capsys, monkeypatch):
  source, target = (orthus, tmp_path / "x") if form == "native" else (native, tmp_path / "x")
  copy, copies = files.copy_range, []

  def full(*args):
    copies.append(args)
    if len(copies) == 50:
      assert any(tmp_path.iterdir())  # something is there by now, under another name
      raise OSError(errno.ENOSPC, "No space left on device")
    copy(*args)

  monkeypatch.setattr(zarr_arrays, "copy_range", full)
  monkeypatch.setattr(safetensors, "copy_range", full)
  assert "the disk is full" in refused(capsys, f"--from={source}", f"--to={target}")
  assert len(copies) == 50
  assert "are free there" in refused_for_want_of_space(capsys, monkeypatch, source, target)


def refused_for_want_of_space(capsys, monkeypatch, source, target) -> str:
  monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
  return refused(capsys, f"--from={source}", f"--to={target}")


@pytest.mark.parametrize("form", ["native", "huggingface"])
def test_a_write_that_fails_in_earnest(form, orthus, native, tmp_path):
  # The system refuses files beyond a size: tensorstore's writes and our own end in the same line.
  source = orthus if form == "native" else native
  code = (
      "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
      "from orthus_jax import cli; from orthus_jax.training.checkpoints import export_huggingface, import_huggingface;"
      "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); sys.exit(cli.main(sys.argv[1:]))"
  )
  argv = ["convert", f"--from={source}", f"--to={tmp_path / 'x'}", "--dtype=float32"]
  done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
  assert "couldn't be written, and nothing is left of it" in done.stderr
  assert not list(tmp_path.iterdir())


def test_help_is_enough(capsys):
  with pytest.raises(SystemExit):
    cli.main(["convert", "--help"])
  said = capsys.readouterr().out
  for word in ("--from", "--to", "--dtype", "--decoder", "--seed", "init_from", "non-commercial"):
    assert word in said


def test_files_are_those_of_the_safetensors_library(orthus, values, tmp_path):
  library = pytest.importorskip("safetensors")
  for file in orthus.glob("*.safetensors"):
    for key, read in library.deserialize(file.read_bytes()):
      assert tuple(read["shape"]) == values[key].shape and bytes(read["data"]) == values[key].tobytes()
      assert read["dtype"] == ("BF16" if values[key].dtype == weights.BF16 else "F32")
  some = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3, np.float16)}
  pytest.importorskip("safetensors.numpy").save_file(some, tmp_path / "theirs.safetensors")
  assert weights.same({k: e.read() for k, e in safetensors.read_header(tmp_path / "theirs.safetensors").items()}, some)


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
  argv = [sys.executable, str(script), f"--scratch={tmp_path}", "--layers=1", "--repeat=1", "--json"]
  figures = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
  assert figures["identical"]
  for part in ("import", "export"):
    assert figures[part]["peak_bytes"] < 0.5 * figures["bytes"], part
