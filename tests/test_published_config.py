"""What a published config.json says of a model is what the model is, or it is refused; and what ours says is read again."""

import csv
import dataclasses
import json
import math
from pathlib import Path
import shutil

from converting import convert, refused
import published_weights as weights
import pytest

import orthus_jax as oj
from orthus_jax.config import Config, ModelConfig, from_dict
from orthus_jax.interop import huggingface, names
from orthus_jax.interop.published_config import read_config, write_config
from orthus_jax.models.orthus import describe

DECODER = "model.vqmodel.decoder.conv_in.weight"


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
