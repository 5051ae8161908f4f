"""How our parameters are called, and laid out, in the published PyTorch checkpoints.

Torch linears are [out, in], convolutions OIHW; ours are [in, out] (heads apart) and HWIO, with layers stacked.
Every layout is an order of axes: the same bytes, read in another order, so that nothing here copies.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math
import re
from typing import Literal, NamedTuple

import numpy as np

Layout = Literal["same", "linear", "conv"]

# (our name, theirs, how it is laid out); {} stands for the number of a layer or block.
_RULES: tuple[tuple[str, str, Layout], ...] = (
    (r"token_embedding", "model.embed_tokens.weight", "same"),
    (r"lm_head", "lm_head.weight", "linear"),
    (r"transformer/norm/scale", "model.norm.weight", "same"),
    (r"transformer/layers/attention/(q|k|v)", r"model.layers.{}.self_attn.\1_proj.weight", "linear"),
    (r"transformer/layers/attention/out", "model.layers.{}.self_attn.o_proj.weight", "linear"),
    (r"transformer/layers/attention/(q|k)_norm/scale", r"model.layers.{}.self_attn.\1_norm.weight", "same"),
    (r"transformer/layers/attention/(q|k)_norm/bias", r"model.layers.{}.self_attn.\1_norm.bias", "same"),
    (r"transformer/layers/mlp/(gate|up|down)", r"model.layers.{}.mlp.\1_proj.weight", "linear"),
    (r"transformer/layers/attention_norm/scale", "model.layers.{}.input_layernorm.weight", "same"),
    (r"transformer/layers/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight", "same"),
    (r"vision_embedding/codebook", "model.codebook_in.weight", "same"),
    (r"vision_tokenizer/codebook", "model.vqmodel.quantize.embedding.weight", "same"),
    (r"image_head/time_in/(\w+)", r"mlp_head.time_embed.mlp.0.\1", "linear"),
    (r"image_head/time_out/(\w+)", r"mlp_head.time_embed.mlp.2.\1", "linear"),
    (r"image_head/condition/(\w+)", r"mlp_head.cond_embed.\1", "linear"),
    (r"image_head/input/(\w+)", r"mlp_head.input_proj.\1", "linear"),
    (r"image_head/blocks/(\d+)/norm_(\w+)", r"mlp_head.res_blocks.\1.in_ln.\2", "same"),
    (r"image_head/blocks/(\d+)/up/(\w+)", r"mlp_head.res_blocks.\1.mlp.0.\2", "linear"),
    (r"image_head/blocks/(\d+)/down/(\w+)", r"mlp_head.res_blocks.\1.mlp.2.\2", "linear"),
    (r"image_head/blocks/(\d+)/modulation/(\w+)", r"mlp_head.res_blocks.\1.adaLN_modulation.1.\2", "linear"),
    (r"image_head/final_modulation/(\w+)", r"mlp_head.final_layer.adaLN_modulation.1.\1", "linear"),
    (r"image_head/output/(\w+)", r"mlp_head.final_layer.linear.\1", "linear"),
)


@functools.cache
def published_name(name: str) -> tuple[str, Layout]:
  """The published key of one of our parameters ({} where a layer's number goes), and its layout.

  Raises:
    KeyError: if it has none.
  """
  for pattern, theirs, layout in _RULES:
    match = re.fullmatch(pattern, name)
    if match:
      key = match.expand(theirs.replace("{}", "@")).replace("@", "{}")
      return re.sub(r"\.(kernel|scale)$", ".weight", key), layout
  if name.startswith("vision_tokenizer/"):
    key = name.removeprefix("vision_tokenizer/")
    key = re.sub(r"(encoder/down/\d+)/resample", r"\1/downsample/conv", key)
    key = re.sub(r"(decoder/up/\d+)/resample", r"\1/upsample/conv", key)
    key = re.sub(r"/(kernel|scale)$", "/weight", key)
    return "model.vqmodel." + key.replace("/", "."), "conv" if name.endswith("/kernel") else "same"
  raise KeyError(name)


def torch_order(name: str, rank: int) -> tuple[int, ...]:
  """The order in which a published array keeps our axes, outermost first.

  Args:
    name: of our parameter.
    rank: how many axes one layer of it has.
  """
  layout = published_name(name)[1]
  if layout == "conv":
    return (3, 2, 0, 1)
  if layout == "linear":
    # All of our linears have one input axis, but for attention's output, which reads heads and their values.
    inputs = 2 if name.endswith("attention/out") else 1
    return (*range(inputs, rank), *range(inputs)) if rank > 1 else (0,)
  return tuple(range(rank))


def torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The published shape of one layer of our parameter, whose own is `shape`."""
  ordered = tuple(shape[a] for a in torch_order(name, len(shape)))
  if published_name(name)[1] == "linear" and len(shape) > 1:
    inputs = 2 if name.endswith("attention/out") else 1
    return (math.prod(ordered[:-inputs]), math.prod(ordered[-inputs:]))
  return ordered


class Place(NamedTuple):
  """Where a published key belongs.

  Attributes:
    name: of our parameter.
    layer: which of its stacked layers; None where it has none.
    shape: the published one.
  """

  name: str
  layer: int | None
  shape: tuple[int, ...]


def table(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
  """Every published key of a model whose parameters have these shapes."""
  found = {}
  for name, shape in shapes.items():
    key = published_name(name)[0]
    if "{}" in key:
      found |= {key.format(i): Place(name, i, torch_shape(name, shape[1:])) for i in range(shape[0])}
    else:
      found[key] = Place(name, None, torch_shape(name, shape))
  return found


# What other writers of these checkpoints put before the same names: a bare Chameleon (no "model."), versions that keep
# the language model apart from its vision part, compiled or wrapped modules.
_PREFIXES: tuple[tuple[str, str], ...] = (
    (r"(?:module|_orig_mod)\.", ""),
    (r"model\.language_model\.", "model."),
    (r"language_model\.(?:model\.)?lm_head\.", "lm_head."),
    (r"language_model\.(?:model\.)?", "model."),
    (r"(?:vqmodel|vqvae)\.", "model.vqmodel."),
    (r"model\.vqvae\.", "model.vqmodel."),
    (r"model\.lm_head\.", "lm_head."),
    (r"model\.mlp_head\.", "mlp_head."),
    (r"(?=(?:embed_tokens|layers|norm|codebook_in)\.)", "model."),
)
# Not parameters: tables that are computed, and what only training of the VQGAN needed.
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|model\.vqmodel\.(?:loss|ema|discriminator)\..*")


def canonical(key: str) -> str:
  """The published name of a key that another version may have written otherwise; "" for what is no parameter."""
  for pattern, prefix in _PREFIXES:
    key = re.sub(f"^{pattern}", prefix, key)
  return "" if _IGNORED.fullmatch(key) else key


def decoder_key(key: str) -> str:
  """The published name of a key of a file that holds a VQGAN, with or without a prefix; "" if not of its decoder."""
  match = re.search(r"(?:^|\.)((?:decoder|post_quant_conv)\..*)", key)
  return f"model.vqmodel.{match[1]}" if match else ""


def from_torch(value: np.ndarray, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
  """A torch array in our layout; `shape` is ours, without the axis of stacked layers."""
  if layout == "linear" and value.ndim == 2:
    value = value.T
  elif layout == "conv":
    value = value.transpose(2, 3, 1, 0)
  return value.reshape(shape)
