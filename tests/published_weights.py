"""Small checkpoints laid out as the published ones, weights and all."""

import dataclasses
import json
from pathlib import Path
import zlib

import ml_dtypes
import numpy as np
import published

from orthus_jax.config import DiffusionConfig, ModelConfig
from orthus_jax.interop import names, safetensors
from orthus_jax.models.orthus import describe

BF16 = np.dtype(ml_dtypes.bfloat16)


def model_config(*, swin: bool = False) -> ModelConfig:
  """A model with the published layout: three layers, grouped key-value heads where the norm is on the output."""
  model = published.model_config(latent_dim=16, channel_multipliers=(1, 1, 2, 2, 4), res_blocks=1)
  transformer = dataclasses.replace(
      model.transformer, layers=3, heads=4, kv_heads=2 if swin else 4, head_dim=8, mlp_width=48, max_positions=64,
      norm_placement="swin" if swin else "pre",
  )  # fmt: skip
  return dataclasses.replace(model, transformer=transformer, diffusion=DiffusionConfig(width=24, blocks=2))


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
  """A published array: the language model in bfloat16, the rest in float32."""
  value = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32) / 4
  whole = key.startswith(("model.vqmodel", "model.codebook_in", "mlp_head"))
  return value if whole else value.astype(BF16)


def arrays(model: ModelConfig) -> dict[str, np.ndarray]:
  """All arrays of an Orthus, by published key."""
  return {k: draw(k, p.shape) for k, p in names.table(describe(model)[1]).items()}


def plain(values: dict[str, np.ndarray], *, decoder: bool) -> dict[str, np.ndarray]:
  """Those that a Chameleon or Anole has."""
  ours = ("mlp_head.", "model.codebook_in") if decoder else ("mlp_head.", "model.codebook_in", "model.vqmodel.decoder.")
  return {k: v for k, v in values.items() if not k.startswith(ours)}


def config_json(model: ModelConfig) -> dict:
  """What the published config.json says of it."""
  t, v = model.transformer, model.vision_tokenizer
  return {
      "architectures": ["OrthusForConditionalGeneration"], "model_type": "chameleon", "vocab_size": t.vocab_size,
      "hidden_size": t.width, "intermediate_size": t.mlp_width, "num_hidden_layers": t.layers,
      "num_attention_heads": t.heads, "num_key_value_heads": t.kv_heads, "max_position_embeddings": t.max_positions,
      "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "rope_scaling": None, "swin_norm": t.norm_placement == "swin",
      "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "a_field_of_later": [1, 2],
      "vocabulary_map": published.tokenizer().get_vocab(with_added_tokens=True),
      "vq_config": {
          "base_channels": v.base_channels, "channel_multiplier": list(v.channel_multipliers), "embed_dim": v.latent_dim,
          "latent_channels": v.latent_dim, "num_embeddings": v.codes, "num_res_blocks": v.res_blocks,
          "resolution": v.resolution, "attn_resolutions": None, "attn_type": "vanilla", "double_latent": False,
      },
  }  # fmt: skip


def write_safetensors(file: Path, values: dict[str, np.ndarray]) -> None:
  with safetensors.Writer(file, [(k, v.dtype, v.shape) for k, v in values.items()]) as writer:
    for key, value in values.items():
      writer.write(key, value)


def write(directory: Path, values: dict[str, np.ndarray], model: ModelConfig, *, shards: int = 3, **fields) -> Path:
  """A whole directory; `fields` replace those of config.json."""
  published.write(directory)
  (directory / "config.json").write_text(json.dumps(config_json(model) | fields, indent=1))
  (directory / "LICENSE").write_text("theirs\n")
  if shards == 1:
    write_safetensors(directory / "model.safetensors", values)
    return directory
  weight_map = {}
  for i, keys in enumerate(np.array_split(list(values), shards), 1):
    file = f"model-{i:05d}-of-{shards:05d}.safetensors"
    write_safetensors(directory / file, {k: values[k] for k in keys})
    weight_map |= dict.fromkeys(map(str, keys), file)
  size = sum(v.nbytes for v in values.values())
  index = {"metadata": {"total_size": size}, "weight_map": weight_map}
  (directory / "model.safetensors.index.json").write_text(json.dumps(index))
  return directory


def read(directory: Path) -> dict[str, np.ndarray]:
  """All arrays of a directory."""
  found = {}
  for file in sorted(directory.glob("*.safetensors")):
    found |= {k: e.read() for k, e in safetensors.read_header(file).items()}
  return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
  """Names, dtypes, shapes and bits."""
  assert a.keys() == b.keys(), a.keys() ^ b.keys()
  return all(
      np.dtype(a[k].dtype) == np.dtype(b[k].dtype) and a[k].shape == b[k].shape
      and np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes()
      for k in a
  )  # fmt: skip
