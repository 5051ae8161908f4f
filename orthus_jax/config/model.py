"""Typed configs of a model and its parts; `experiment.py` has the whole experiment's and is what the rest imports.

Defaults are the published 7B model's, as its released code runs it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Literal

from orthus_jax.config import ranges
from orthus_jax.config.image_head import OF_CODES, DiffusionConfig, ImageHeadConfig, check_fields
from orthus_jax.config.ranges import Chunk, Layers, Range, Weight, Width
from orthus_jax.config.typed import require
from orthus_jax.config.vision import VisionEmbeddingConfig, VisionTokenizerConfig
from orthus_jax.errors import BadRequest


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The backbone (Chameleon): a causal pre-norm transformer with rotary positions and QK-norm.

  Attributes:
    vocab_size: V, rows of the token embedding and of the LM head.
    width: D.
    mlp_width: F, of the SwiGLU MLP.
    layers: L.
    heads: N query heads.
    kv_heads: K key and value heads; divides `heads`.
    head_dim: H.
    max_positions: the longest sequence.
    rope_theta: base of the rotary frequencies.
    norm_eps: epsilon of the RMS norms and of the QK-norm.
    embedding_std: standard deviation of a fresh token embedding.
    norm_placement: "pre" (7B) or "swin" (34B: the norm on the sub-layer's output, x + norm(f(x))).
    dtype: what activations are computed in.
    matmul_precision: of products with weights of the layers and, with `merge_positions`, of the heads, in a training step
      that computes in float32. "bfloat16" rounds their factors to it and sums in float32, "auto" does so for one process on a
      CPU that has instructions for it, which multiplies several times as fast so (and to other numbers than one without);
      "default" leaves it to the platform. Gradients' factors are rounded too, and Muon's, and on one CPU device attention's.
    param_dtype: what its parameters, the token embedding and the LM head are kept in. A step casts what is kept in
      float32 to `dtype` once, before it is gathered from the devices that share it.
    quantization: of the layers' products with weights in a training step, by Qwix: "none", "int8" or "fp8". Weights stay as
      they are kept, and whatever isn't a step computes without it (docs/quantised_training.md).
    remat: what of each layer is kept for the backward pass, the rest being computed again: "none" (recomputes nothing),
      "dots" (keeps products with weights, and attention), "kv_mlp" (keeps keys, values, attention and the MLP's two
      inner products), "mlp" (keeps the latter, and attention), "qkv" (keeps queries, keys, values and attention),
      "attention" (keeps it alone), "full" (keeps the layer's input alone), or "offload" (as "qkv", but these and the
      layer's input wait in the host's memory).
    scan_unroll: how many layers one step of the scan over layers holds.
    merge_positions: flatten rows and positions for matrix products. A CPU multiplies matrices 1.4 times as fast as
      stacks of them; but it mixes the axes that a mesh may split, so it is for meshes without a context axis.
    attention: the backend; each honours segment ids. "splash" is a TPU's kernel, "cudnn" an NVIDIA GPU's, "xla" runs
      anywhere; "auto" takes the kernel of the platform that the program is for, where it can do the model's shapes.
    attention_block: positions per tile of a TPU's kernel, at most.
    attention_backward: a TPU's kernel for gradients: "fused" (one, which computes the scores once; it leaves the queries'
      gradient as a sum of parts, one per tile of keys, in the compute dtype) or "split" (two, which compute them twice).
    image_attention: within a picture, "causal" or "full": each patch sees the whole of its picture, and what stands before
      it, as Show-o has it.
    text_loss_weight: of the text's cross-entropy, beside the pictures' loss with its own weight; 0 leaves it out of the step.
    loss_chunk: positions of a row whose logits exist at a time in training; 0 means all. With `merge_positions`, all do.
  """

  vocab_size: Annotated[int, Range(1, 2**24)] = 65536
  width: Width = 4096
  mlp_width: Width = 11008
  layers: Layers = 32
  heads: Width = 32
  kv_heads: Width = 32
  head_dim: Annotated[int, Range(2, 2**16)] = 128
  max_positions: Annotated[int, Range(1, 2**24)] = 4096
  rope_theta: Annotated[float, Range(1, 1e12)] = 10000.0
  norm_eps: Annotated[float, Range(1e-12, 1, note="norms of zeros divide by it")] = 1e-5
  embedding_std: Annotated[float, Range(0, 1e3, above=True)] = 0.02
  norm_placement: Literal["pre", "swin"] = "pre"
  dtype: Literal["float32", "bfloat16"] = "bfloat16"
  matmul_precision: Literal["default", "bfloat16", "auto"] = "default"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  quantization: Literal["none", "int8", "fp8"] = "none"
  remat: Literal["none", "dots", "kv_mlp", "mlp", "qkv", "attention", "full", "offload"] = "full"
  scan_unroll: Layers = 1
  merge_positions: bool = False
  attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
  attention_block: Annotated[int, Range(128, 2**16)] = 512
  attention_backward: Literal["fused", "split"] = "fused"
  image_attention: Literal["causal", "full"] = "causal"
  text_loss_weight: Weight = 1.0
  loss_chunk: Chunk = 512

  def __post_init__(self):
    where = "model.transformer"
    ranges.check(self, where)
    require(self.heads % self.kv_heads == 0, f"{where}.heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
    require(self.head_dim % 2 == 0, f"{where}.head_dim={self.head_dim} must be even, for rotary positions")
    require(
        self.scan_unroll <= self.layers, f"{where}.scan_unroll={self.scan_unroll} must be at most layers={self.layers}"
    )
    require(
        self.attention_block % 128 == 0, f"{where}.attention_block={self.attention_block} must be a multiple of 128"
    )


LAYER_WEIGHTS = (
    "attention/q", "attention/k", "attention/v", "attention/out", "mlp/gate", "mlp/up", "mlp/down",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters beside weights of the layers (LoRA, arXiv 2106.09685): x W + alpha / rank (x A) B.

  Attributes:
    rank: of A and B; 0: no adapters. With them, what `optimizer.trainable` leaves at its default is the adapters alone.
    alpha: the adapters' share is alpha / rank of their product.
    targets: regular expressions over the names of a layer's weights (attention/q, k, v, out; mlp/gate, up, down), each of
      which matches a whole name.
  """

  rank: Annotated[int, Range(0, 2**12, note="0 means no adapters")] = 0
  alpha: Annotated[float, Range(0, 1e6, above=True)] = 16.0
  targets: tuple[str, ...] = ("attention/.*", "mlp/.*")

  def __post_init__(self):
    where = "model.lora"
    ranges.check(self, where)
    for target in self.targets:
      try:
        found = any(re.fullmatch(target, name) for name in LAYER_WEIGHTS)
      except re.error as e:
        raise BadRequest(f"{where}.targets: {ranges.shown(target)} is no regular expression: {e}") from e
      require(found, f"{where}.targets: {ranges.shown(target)} matches none of {', '.join(LAYER_WEIGHTS)}")
    require(bool(self.targets), f"{where}.targets is empty: set {where}.rank=0 for no adapters")

  @property
  def adapted(self) -> tuple[str, ...]:
    """Names of a layer's weights that have adapters."""
    return tuple(n for n in LAYER_WEIGHTS if self.rank and any(re.fullmatch(t, n) for t in self.targets))

  @property
  def scale(self) -> float:
    """What an adapter's product is multiplied by."""
    return self.alpha / max(self.rank, 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A model: one backbone, a vision tokenizer, a vision embedding and an image head.

  Attributes:
    diffusion: of the heads that draw features, image_head.kind=diffusion or regression.
    image_token_start: the first row of the token embedding that stands for an image code; `vision_tokenizer.codes`
      rows follow from there.
  """

  transformer: TransformerConfig = TransformerConfig()
  vision_tokenizer: VisionTokenizerConfig = VisionTokenizerConfig()
  vision_embedding: VisionEmbeddingConfig = VisionEmbeddingConfig()
  image_head: ImageHeadConfig = ImageHeadConfig()
  diffusion: DiffusionConfig = DiffusionConfig()
  lora: LoraConfig = LoraConfig()
  image_token_start: Annotated[int, Range(0, 2**24)] = 4

  def __post_init__(self):
    ranges.check(self, "model")
    end = self.image_token_start + self.vision_tokenizer.codes
    require(
        end <= self.transformer.vocab_size,
        f"model.transformer.vocab_size={self.transformer.vocab_size} has no room for image codes"
        f" {self.image_token_start}..{end - 1} (model.image_token_start, model.vision_tokenizer.codes)",
    )
    self._check_system()

  def _check_system(self) -> None:
    """Refuses parts that make no sense together."""
    kind, attention = self.image_head.kind, self.transformer.image_attention
    check_fields(self.image_head, self.diffusion)
    if kind in OF_CODES:
      require(
          self.vision_embedding.kind == "argmin",
          f"model.image_head.kind={kind} draws codes, and model.vision_embedding.kind={self.vision_embedding.kind} reads"
          " features that no code has: set it to argmin",
      )
      require(
          not self.vision_embedding.history_noise,
          f"model.vision_embedding.history_noise is of features that are drawn, and model.image_head.kind={kind} draws codes:"
          " leave it at 0",
      )
    require(
        kind != "masked" or attention == "full",
        "model.image_head.kind=masked predicts all patches of a picture at once, from all that are known: set"
        f" model.transformer.image_attention=full, not {attention}",
    )
    require(
        kind == "masked" or attention == "causal",
        f"model.image_head.kind={kind} predicts a patch from those before it, and with"
        f" model.transformer.image_attention={attention} it would see the patch itself: set it to causal",
    )

  @property
  def image_loss_weight(self) -> float:
    """Of the pictures' loss; 0 leaves the image head out of the step."""
    return self.image_head.loss_weight if self.image_head.kind in OF_CODES else self.diffusion.loss_weight
