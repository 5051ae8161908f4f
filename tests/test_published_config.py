"""What a published config.json says of a model is what the model is, or it is refused; and what ours says is read again."""

import csv
import dataclasses
import json
import math
from pathlib import Path
import shutil

from chameleon import reference
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


def test_how_a_model_is_run_is_not_what_it_is(native, orthus, tmp_path):
  run = shutil.copytree(native, tmp_path / "run")
  tree = json.loads((run / "config.json").read_text())
  tree["model"]["transformer"] |= {"quantization": "int8", "attention_backward": "split", "remat": "none"}
  (run / "config.json").write_text(json.dumps(tree))
  convert(f"--from={run}", f"--to={tmp_path / 'out'}")
  assert (tmp_path / "out/config.json").read_bytes() == (orthus / "config.json").read_bytes()


def test_a_theta_that_changed_is_told_in_both_places(copied, tmp_path):
  said = json.loads((copied / "config.json").read_text()) | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
  (copied / "config.json").write_text(json.dumps(said))
  convert(f"--from={copied}", f"--to={tmp_path / 'run'}")
  tree = json.loads((tmp_path / "run/config.json").read_text())
  tree["model"]["transformer"]["rope_theta"] = 5e4
  (tmp_path / "run/config.json").write_text(json.dumps(tree))
  convert(f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'out'}")
  assert huggingface.open_checkpoint(tmp_path / "out").config.model.transformer.rope_theta == 5e4


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
        ("vision_embedding", "projection", True, "no place for vision_embedding.projection"),
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


@pytest.fixture(scope="module")
def said(model, values):
  """What `read_config` says of fields put over a file's own, vq_config's among its: (model, problems, notes)."""
  shapes = {k: v.shape for k, v in values.items()}

  def read(**fields):
    whole, problems, notes = weights.config_json(model), [], []
    del whole["a_field_of_later"]
    vq = whole["vq_config"] | fields.pop("vq_config", {})
    return read_config({**whole, **fields, "vq_config": vq}, shapes, problems, notes)[0], problems, notes

  return read


@pytest.mark.parametrize(
    "fields",
    [
        dict(rope_theta=None, rope_parameters={"rope_theta": 5e4, "rope_type": "default"}),
        dict(rope_theta=None, rope_parameters={"rope_theta": 50000}),
        dict(rope_theta=50000, rope_parameters={"rope_theta": 5e4, "partial_rotary_factor": 1.0}),
        dict(rope_theta=5e4, rope_parameters={"rope_type": "default"}),
        dict(rope_theta=None, rope_scaling={"rope_type": "default", "rope_theta": 5e4}),
        dict(rope_theta=5e4, rope_scaling={"type": "linear", "factor": 1.0}, rope_parameters={}),
    ],
)
def test_theta_is_taken_from_where_it_is(fields, said):
  model, problems, notes = said(**fields)
  assert model.transformer.rope_theta == 5e4 and not problems and not notes


@pytest.mark.parametrize(
    "fields, reason",
    [
        (dict(rope_theta=None, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 5e4}}),
         "rope_parameters.full_attention={'rope_type': 'default', 'rope_theta': 50000.0} isn't supported: all layers have"),
        (dict(rope_parameters={"rope_theta": 5e4}), "rope_parameters.rope_theta=50000.0 and rope_theta=10000.0 contradict"),
        (dict(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}), "rope_parameters.partial_rotary_factor=0.5"),
        (dict(rope_parameters={"rope_theta": 1e4, "mrope_section": [1, 3]}), "rope_parameters.mrope_section=[1, 3]"),
        (dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}), "is a scaling of positions"),
        (dict(rope_parameters=[1]), "rope_parameters=[1] is a scaling of positions"),
        (dict(rope_scaling="linear"), "rope_scaling='linear' is a scaling of positions"),
        (dict(rope_theta=0), "rope_theta=0 must be a number above 0"),
        (dict(rope_theta=float("nan")), "rope_theta=nan must be a number above 0"),
        (dict(rope_theta="x"), "rope_theta='x' must be"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5 isn't supported; it must be 1"),
        (dict(head_dim=16), "head_dim=16 isn't supported; it must be 8"),
        (dict(use_qk_norm=False), "use_qk_norm=False isn't supported; it must be True"),
        (dict(sliding_window=32), "sliding_window=32"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "each must be 'full_attention'"),
        (dict(attention_bias=True), "attention_bias=True isn't supported; it must be False"),
        (dict(mlp_bias=True), "mlp_bias=True"),
        (dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
        (dict(logits_scaling=8.0), "logits_scaling=8.0"),
        (dict(residual_multiplier=0.2), "residual_multiplier=0.2"),
        (dict(attention_multiplier=0.1), "attention_multiplier=0.1"),
        (dict(text_config={"rope_theta": 5e4}), "text_config={'rope_theta': 50000.0}"),
        (dict(quantization_config={"bits": 4}), "quantization_config={'bits': 4}"),
        (dict(tie_word_embeddings="yes"), "tie_word_embeddings='yes' must be of type bool"),
        (dict(swin_norm=1), "swin_norm=1 must be of type bool"),
        (dict(use_alibi=True), "use_alibi=True isn't supported: it isn't known what it does to attention"),
        (dict(position_offset=2), "position_offset=2 isn't supported"),
        (dict(num_hidden_layers=10**12), "num_hidden_layers=1000000000000 must lie in 1..10000"),
        (dict(num_attention_heads=-4), "num_attention_heads=-4 must lie in 1.."),
        (dict(rms_norm_eps=10**400), "rms_norm_eps=inf differs"),
        (dict(orthus_jax={"norm_groups": 0}), "orthus_jax.norm_groups=0 must be at least 1"),
        (dict(vq_config={"double_latent": True}), "vq_config.double_latent=True"),
        (dict(vq_config={"attn_type": "linear"}), "vq_config.attn_type='linear'"),
        (dict(vq_config={"tanh_out": True}), "vq_config.tanh_out=True"),
        (dict(vq_config={"num_res_blocks": 10**9}), "vq_config.num_res_blocks=1000000000 must lie in 1..1000"),
        (dict(vq_config={"channel_multiplier": [0]}), "vq_config.channel_multiplier=(0,)"),
    ],
)  # fmt: skip
def test_what_changes_numbers_is_refused(fields, reason, said):
  _, problems, _ = said(**fields)
  assert len(problems) == 1 and reason in problems[0], problems


def test_what_changes_nothing_is_taken(said):
  plain, problems, notes = said()
  assert not problems and not notes
  for fields in (
      dict(partial_rotary_factor=1.0, head_dim=8, use_qk_norm=True, hidden_act="swish", logits_scaling=1, num_experts=0),
      dict(sliding_window=None, layer_types=["full_attention"] * 3, attn_logit_softcapping=None, rope_scaling={}),
      dict(sliding_window=8, use_sliding_window=False, max_window_layers=3, attention_multiplier=8**-0.5, use_alibi=False),
      dict(sliding_window=64, attention_dropout=0.1, attn_implementation="sdpa", output_attentions=True, pruned_heads={}),
      dict(tie_word_embeddings=True, sep_token_id=7, initializer_range=0.02, model_parallel_size=4, use_cache=False),
      dict(quantization_config=None, text_config=None, mlp_bias=None, position_offset=0, vq_config={"attn_resolutions": []}),
      dict(vq_config={"dropout": 0.1, "attn_resolutions": None, "model_type": "chameleon_vqgan", "initializer_range": 0.02}),
  ):
    assert said(**fields) == (plain, [], []), fields
  _, problems, notes = said(num_experts=8, a_field_of_later=[1], vq_config={"beta": 0.25})
  assert not problems
  assert notes == ["config.json: passed over, as nothing here reads it: num_experts, a_field_of_later, vq_config.beta"]


@pytest.mark.slow
def test_what_transformers_writes_is_taken_whole(said, model):
  transformers = reference("transformers")
  fields = weights.config_json(model)
  fields |= {"rope_theta": 5e4, "vq_config": transformers.ChameleonVQVAEConfig(**fields["vq_config"])}
  written = transformers.ChameleonConfig(**{k: v for k, v in fields.items() if k != "a_field_of_later"})
  found, problems, notes = said(rope_theta=None, **json.loads(written.to_json_string(use_diff=False)))
  assert (problems, notes) == ([], []) and found.transformer.rope_theta == 5e4


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
