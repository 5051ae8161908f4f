"""Our model's config and the config.json of published checkpoints, one from the other.

The published file describes the backbone and the VQGAN; the released code hard-wires the rest. What has no field there
(the diffusion head, the temperature, how documents are sampled) is written under one key of ours, which the released code
and transformers keep and ignore, and read from there; where a file lacks it, the released code's values stand.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from orthus_jax.config import (
  BadRequest,
  DiffusionConfig,
  ImageHeadConfig,
  ModelConfig,
  SamplingConfig,
  TransformerConfig,
  VisionEmbeddingConfig,
  VisionTokenizerConfig,
  from_dict,
  to_dict,
)  # fmt: skip
from orthus_jax.config.image_head import OF_CODES
from orthus_jax.interop import published_fields, published_head, published_positions

OURS = "orthus_jax"
_MODEL_TYPES = ("chameleon", "orthus", "anole")
_GROUPS = 32  # of each GroupNorm, and the QK-norm's epsilon: hard-wired in the published code
_QK_NORM_EPS = 1e-5

_TRANSFORMER = {
    "vocab_size": "vocab_size", "width": "hidden_size", "mlp_width": "intermediate_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}  # fmt: skip
_VISION = {
    "resolution": "resolution", "base_channels": "base_channels", "channel_multipliers": "channel_multiplier",
    "res_blocks": "num_res_blocks", "latent_dim": "embed_dim", "codes": "num_embeddings",
}  # fmt: skip
_PARTS = ("vision_embedding", "image_head", "diffusion", "sampling")  # of our key, each a section of ours
# Parts that are counted one by one.
_MOST = {"num_hidden_layers": 10_000, "vq_config.num_res_blocks": 1000, "vq_config.channel_multiplier": 1000}
# Read as well, but not by these tables.
_ALSO = {"rope_theta", "rope_scaling", "rope_parameters", "swin_norm", "tie_word_embeddings", OURS}


def _typed(problems: list[str], said: Mapping[str, Any], key: str, default: Any, where: str = "") -> Any:
  """A field of the default's type; the default where the file is silent or, with a problem noted, wrong."""
  value = said.get(key)
  if value is None:
    return default
  if isinstance(default, tuple):
    if isinstance(value, list) and value and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
      return tuple(value)
    problems.append(f"config.json: {where}{key}={value!r} must be a list of whole numbers")
    return default
  if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
    value = float(value) if abs(value) < 1e300 else math.inf
  if not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool):
    problems.append(f"config.json: {where}{key}={value!r} must be of type {type(default).__name__}")
    return default
  return value


def _part(problems: list[str], said: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
  value = said.get(key) or {}
  if not isinstance(value, Mapping):
    problems.append(f"config.json: {where}{key} must hold fields")
    return {}
  return value


def read_config(
    said: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], problems: list[str], notes: list[str] | None = None,
    *, image_head: str = "",
) -> tuple[ModelConfig, SamplingConfig]:  # fmt: skip
  """What a config.json says, `pixels`, `param_dtype` and `image_token_start` apart, which other files say.

  Args:
    said: the file's fields.
    shapes: of the arrays, by published key: they tell the size of a diffusion head that the file doesn't describe, and
      whether there is a decoder.
    problems: gets a line for each field that can't be met; its default stands in then.
    notes: gets a line with the fields that were passed over.
    image_head: the kind that the model is to have, where it isn't the file's.
  """
  before = len(problems)
  kind = said.get("model_type", "chameleon")
  if kind not in _MODEL_TYPES:
    problems.append(f"config.json: model_type={kind!r} is none of {', '.join(_MODEL_TYPES)}")
  t, v = TransformerConfig(), VisionTokenizerConfig()
  backbone = {ours: _typed(problems, said, theirs, getattr(t, ours)) for ours, theirs in _TRANSFORMER.items()}
  if said.get("num_key_value_heads") is None:
    backbone["kv_heads"] = min(t.kv_heads, backbone["heads"])
  swin, _ = (_typed(problems, said, key, False) for key in ("swin_norm", "tie_word_embeddings"))
  computed = said.get("dtype") or said.get("torch_dtype")
  vq = _part(problems, said, "vq_config")
  vision = {ours: _typed(problems, vq, theirs, getattr(v, ours), "vq_config.") for ours, theirs in _VISION.items()}
  published_fields.check(
      said, {theirs: backbone[ours] for ours, theirs in _TRANSFORMER.items()} | dict.fromkeys(_ALSO),
      {theirs: vision[ours] for ours, theirs in _VISION.items()} | {"latent_channels": None}, problems,
      [] if notes is None else notes,
  )  # fmt: skip
  numbers = {**{_TRANSFORMER[k]: v for k, v in backbone.items()}, **{f"vq_config.{_VISION[k]}": v for k, v in vision.items()}}
  for key, value in numbers.items():
    largest = _MOST.get(key, 1 << 31)
    if key != "rms_norm_eps" and not all(0 < v <= largest for v in (value if isinstance(value, tuple) else (value,))):
      problems.append(f"config.json: {key}={value!r} must lie in 1..{largest}")
  if vq.get("latent_channels") not in (None, vision["latent_dim"]):
    problems.append("config.json: vq_config.latent_channels must equal vq_config.embed_dim")
  if backbone["norm_eps"] != _QK_NORM_EPS:
    problems.append(f"config.json: rms_norm_eps={backbone['norm_eps']} differs from the QK-norm's {_QK_NORM_EPS}")
  if backbone["heads"] > 0 and backbone["width"] % backbone["heads"]:
    problems.append(
        f"config.json: hidden_size={backbone['width']} isn't a multiple of num_attention_heads={backbone['heads']}"
    )
  theta = published_positions.rope_theta(said, t.rope_theta, problems)
  ours = _part(problems, said, OURS)
  groups = _typed(problems, ours, "norm_groups", _GROUPS, f"{OURS}.")
  if groups < 1:
    problems.append(f"config.json: {OURS}.norm_groups={groups} must be at least 1")
  parts = published_head.read({part: _part(problems, ours, part, f"{OURS}.") for part in _PARTS}, shapes, image_head, problems)
  attention = _typed(problems, ours, "image_attention", t.image_attention, f"{OURS}.")
  model = ModelConfig()
  if len(problems) > before:
    return model, SamplingConfig()
  try:
    model = ModelConfig(
        transformer=TransformerConfig(
            **backbone, head_dim=backbone["width"] // backbone["heads"], rope_theta=theta,
            norm_placement="swin" if swin else "pre", dtype="float32" if computed == "float32" else "bfloat16",
            image_attention=attention,
        ),
        vision_tokenizer=VisionTokenizerConfig(
            **vision, norm_groups=groups,
            decoder=any(key.startswith("model.vqmodel.decoder.") for key in shapes),
        ),
        vision_embedding=from_dict(VisionEmbeddingConfig, parts["vision_embedding"], where="vision_embedding"),
        image_head=from_dict(ImageHeadConfig, parts["image_head"], where="image_head"),
        diffusion=from_dict(DiffusionConfig, {**_head_size(shapes), **parts["diffusion"]}, where="diffusion"),
    )  # fmt: skip
    return model, from_dict(SamplingConfig, parts["sampling"], where="sampling")
  except (BadRequest, AttributeError, TypeError) as e:
    problems.append(f"config.json: {e}")
    return model, SamplingConfig()


def _head_size(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
  """Width and blocks of the diffusion head that a checkpoint holds; nothing where it holds none."""
  size = {}
  if len(shapes.get("mlp_head.input_proj.weight", ())) == 2:
    size["width"] = shapes["mlp_head.input_proj.weight"][0]
  blocks = [int(m[1]) for key in shapes if (m := re.match(r"mlp_head\.res_blocks\.(\d+)\.", key))]
  if blocks:
    size["blocks"] = max(blocks) + 1
  return size


def write_config(model: ModelConfig, sampling: SamplingConfig, *, dtype: str) -> dict[str, Any]:
  """The fields of a config.json that say what this model is, tokens apart.

  Args:
    model: to be described.
    sampling: how its documents are generated.
    dtype: of the language model's arrays.

  Raises:
    BadRequest: if the published format can't say it.
  """
  t, v = model.transformer, model.vision_tokenizer
  if t.head_dim * t.heads != t.width:
    raise BadRequest(
        f"a published config.json can't describe head_dim={t.head_dim} x heads={t.heads} other than width={t.width}"
    )
  if t.norm_eps != _QK_NORM_EPS:
    raise BadRequest(f"a published config.json can't describe norm_eps={t.norm_eps}: the QK-norm's is {_QK_NORM_EPS}")
  for field in ("patch_positions", "projection"):
    if getattr(model.vision_embedding, field):
      raise BadRequest(f"a published checkpoint has no place for vision_embedding.{field}; such a model can't be exported")
  if model.vision_embedding.kind == "linear":
    raise BadRequest("a published checkpoint has no place for vision_embedding.kind=linear; such a model can't be exported")
  vq = {theirs: getattr(v, ours) for ours, theirs in _VISION.items()}
  return {
      "architectures": [published_head.architecture(model.image_head.kind)], "model_type": "chameleon",
      **{theirs: getattr(t, ours) for ours, theirs in _TRANSFORMER.items()},
      "rope_theta": t.rope_theta, "rope_scaling": None, "swin_norm": t.norm_placement == "swin", "hidden_act": "silu",
      "attention_bias": False, "mlp_bias": False, "model_parallel_size": 1, "tie_word_embeddings": False,
      "torch_dtype": dtype,
      "vq_config": {
          **vq, "channel_multiplier": list(v.channel_multipliers), "latent_channels": v.latent_dim, "double_latent": False,
          "in_channels": 3, "out_channels": 3, "attn_resolutions": None, "attn_type": "vanilla", "dropout": 0.0,
      },
      OURS: {
          "norm_groups": v.norm_groups, "image_attention": t.image_attention,
          **{part: to_dict(getattr(model, part)) for part in _PARTS if part != "sampling"}, "sampling": to_dict(sampling),
      },
  }  # fmt: skip


def hard_wired(model: ModelConfig) -> list[str]:
  """What of this model the released code, which has no field for it, runs otherwise: one line each."""
  embedding = VisionEmbeddingConfig(kind=published_head.embedding(model.image_head.kind))
  wired: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
      "diffusion": (model.diffusion, DiffusionConfig(), ("draws", "loss_weight", "loss_chunk")),
      "vision_embedding": (model.vision_embedding, embedding, ("fresh_rows", "history_noise")),
  }
  lines = []
  for part, (have, want, training) in wired.items():
    for f in dataclasses.fields(have):
      a, b = getattr(have, f.name), getattr(want, f.name)
      if a != b and f.name not in training:
        lines.append(f"{part}.{f.name}={a} where the released code has {b}")
  if model.vision_tokenizer.norm_groups != _GROUPS:
    lines.append(f"vision_tokenizer.norm_groups={model.vision_tokenizer.norm_groups} where the released code has {_GROUPS}")
  by_name = model.image_head.kind in OF_CODES  # transformers' Chameleon finds the codes by their tokens' names
  if model.image_token_start != ModelConfig().image_token_start and not by_name:
    lines.append(f"image_token_start={model.image_token_start} where the released code has {ModelConfig().image_token_start}")
  return lines
