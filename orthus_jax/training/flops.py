"""FLOPs of training in closed form, and the peaks that they are held against. Plain arithmetic, no device.

A multiplication and an addition count as two. Counted is what MFU is usually said of: the backbone's matrix products, the
LM head's and attention's. Norms, the vision tokenizer, the soft VQ and the image head are not (`patch` has the latter two),
nor is what is recomputed. "causal" counts half of the attention matrix, "full" the whole of it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from orthus_jax.config import ModelConfig, TransformerConfig
from orthus_jax.models import lora, systems

# The backward pass of a product is two more of its size: the gradient of its input, and of its weight.
Pass = Literal["trained", "passed", "frozen", "absent"]
PASSES: dict[str, int] = {"trained": 3, "passed": 2, "frozen": 1, "absent": 0}

# Dense bf16 FLOP/s of one device as jax names its kind, by the makers' data sheets.
PEAKS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # half of a chip: each of its cores is a device
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA L4": 121e12,
}


def peak(device_kind: str) -> float | None:
  """Published dense bf16 FLOP/s of a device; None where it isn't known, as for CPUs."""
  names = [n for n in PEAKS if device_kind == n or device_kind.startswith(f"{n} ") or device_kind.startswith(f"{n}-")]
  return PEAKS[max(names, key=len)] if names else None


def layer_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
  """(inputs, outputs) of one layer's matrices, by name."""
  c = config
  q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  return {
      "attention/q": (c.width, q), "attention/k": (c.width, kv), "attention/v": (c.width, kv), "attention/out": (q, c.width),
      "mlp/gate": (c.width, c.mlp_width), "mlp/up": (c.width, c.mlp_width), "mlp/down": (c.mlp_width, c.width),
  }  # fmt: skip


def layer_weights(config: TransformerConfig) -> int:
  """Entries of one layer's matrices."""
  return sum(inputs * outputs for inputs, outputs in layer_shapes(config).values())


def adapters(config: ModelConfig) -> dict[str, tuple[int, int]]:
  """Entries of A and of B of one layer's adapters, by the names of their matrices."""
  shapes, rank = layer_shapes(config.transformer), config.lora.rank
  return {n: (rank * shapes[n][0], rank * shapes[n][1]) for n in config.lora.adapted}


def attention(config: TransformerConfig, length: int, *, causal: bool) -> float:
  """FLOPs per token of one layer's two attention products, forwards, in rows of `length` positions."""
  return (2.0 if causal else 4.0) * config.heads * config.head_dim * length


def token(
    config: ModelConfig, length: int, *, causal: bool = True, backbone: Pass = "trained", lm_head: Pass = "trained"
) -> float:
  """FLOPs of a training step per position of a row.

  Args:
    config: the model's.
    length: T, positions of a row.
    causal: count half of the attention matrix.
    backbone: "trained"; "passed": frozen, with something to train below it; "frozen": forwards alone.
    lm_head: likewise, or "absent" from a step without a text loss.

  Returns:
    For the 7B model at 4096 positions, causal: 43.69e9.
  """
  c = config.transformer
  # Attention has no weights: its backward pass is two products for one, or none.
  attention_passes = 1 if backbone == "frozen" else 3
  beside = sum(a + b for a, b in adapters(config).values()) * PASSES["trained"]  # none is frozen
  layer = 2.0 * (layer_weights(c) * PASSES[backbone] + beside) + attention(c, length, causal=causal) * attention_passes
  return c.layers * layer + 2.0 * c.width * c.vocab_size * PASSES[lm_head]


def patch(config: ModelConfig, *, learnt: bool = True) -> float:
  """FLOPs of a training step per image patch: the vision embedding, and the image head where it is learnt."""
  vision, width = config.vision_tokenizer, config.transformer.width
  embedding = 2.0 * {
      "soft": vision.codes * (vision.latent_dim + width) * 3, "argmin": vision.codes * vision.latent_dim,
      "linear": vision.latent_dim * width * 3,
  }[config.vision_embedding.kind]  # fmt: skip
  if config.vision_embedding.projection:
    embedding += 2.0 * vision.latent_dim * width * 3
  return embedding + (2.0 * image_head(config)["all"] * 3 if learnt else 0.0)


def image_head(config: ModelConfig) -> dict[str, float]:
  """Multiplications of a learnt patch by the image head, forwards: "all", and the "inputs" whose gradient nobody asks for."""
  head = systems.image_head(config)
  products = head.products(config)
  lm_head = config.transformer.width * config.transformer.vocab_size if head.of_codes else 0
  return {"all": products["all"] + lm_head, "inputs": products["inputs"]}


def passes(config: ModelConfig, trained: Collection[str]) -> dict[str, Pass]:
  """How backbone and LM head take part, from the names of the parameters that are trained; arguments of `token`."""
  beside = lora.names(trained)  # adapters: gradients pass the weights that they stand beside
  below = bool(beside) or any(n == "token_embedding" or n.startswith("vision_embedding/") for n in trained)
  inside = any(n.startswith("transformer/") for n in set(trained) - beside)
  backbone: Pass = "trained" if inside else "passed" if below else "frozen"
  head: Pass = "trained" if "lm_head" in trained else "passed" if below or inside else "frozen"
  return {"backbone": backbone, "lm_head": head if config.transformer.text_loss_weight else "absent"}
