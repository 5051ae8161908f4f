"""FLOPs of a training step in closed form: what MFU counts, and what the compiled program should do.

A multiplication and an addition count as two. MFU's numerator is the backbone's and the LM head's matrix products and
attention, forwards once and backwards twice, and nothing that is computed again. The program does more: the vision
tokenizer, the soft VQ, the image head, what rematerialisation repeats, and the scores of attention
once more. What an optimizer multiplies (Muon) is in neither.
"""

from __future__ import annotations

from collections.abc import Collection
import dataclasses
import math

from orthus_jax.config import Config, ModelConfig, VisionTokenizerConfig
from orthus_jax.models import systems
from orthus_jax.planning.instruction_flops import causal_share
from orthus_jax.training import flops


@dataclasses.dataclass(frozen=True)
class Closed:
  """FLOPs of a global step, by part.

  Attributes:
    model: what MFU counts: of parts that are frozen, only what is done for them.
    model_full: likewise, with the whole of the attention matrix.
    program: what the compiled program should do, all devices together, by part.
  """

  model: float
  model_full: float
  program: dict[str, float]


def closed(config: Config, trained: Collection[str], *, kernel: bool = True, images: bool = True) -> Closed:
  """Closed forms of a config's step.

  Args:
    config: the experiment.
    trained: names of the parameters that are trained.
    kernel: whether attention is a block-sparse kernel (TPUs), or plain products over the whole matrix.
    images: whether there are any (the published text models have none).
  """
  c, T = config.model.transformer, config.data.sequence_length
  tokens = config.run.batch_size * T
  passes = flops.passes(config.model, trained)
  backbone, head = (flops.PASSES[passes[part]] for part in ("backbone", "lm_head"))
  inside = passes["backbone"] != "frozen"
  matrix = 2.0 * c.heads * c.head_dim * T  # one product over the whole attention matrix, per token

  again, attention_again = recomputed(config.model, kernel) if inside else (0, 0)
  beside = sum(a + b for a, b in flops.adapters(config.model).values()) * flops.PASSES["trained"]
  block = min(c.attention_block, T)
  share = causal_share(T, block, block) if kernel else 1.0
  behind = 4 if not kernel else 5 if c.attention_backward == "fused" else 7
  products = (2 + behind * inside + attention_again) * matrix * share
  program = {
    "layers": tokens * c.layers * 2.0 * (flops.layer_weights(c) * backbone + beside + again),
    "attention": tokens * c.layers * products,
    "LM head": tokens * 2.0 * c.width * c.vocab_size * head,
  }
  if images:
    program |= _images(config, trained, inside)
  causal, full = (tokens * flops.token(config.model, T, causal=causal, **passes) for causal in (True, False))
  return Closed(causal, full, program)


def recomputed(config: ModelConfig, kernel: bool) -> tuple[int, int]:
  """(entries of a layer's matrices whose products the backward pass repeats, products of attention that it repeats).

  Nobody asks for a layer's last product again. Attention's results are kept by all policies but "full"; a kernel's with what
  its gradient needs of the scores, plain attention's without, so that these are computed again. Of an adapter, x A is asked
  for again even where its matrix' product is kept, for the gradient of B.
  """
  c = config.transformer
  qkv, out, mlp = ("attention/q", "attention/k", "attention/v"), ("attention/out",), ("mlp/gate", "mlp/up")
  names = {
      "none": (), "dots": (), "kv_mlp": ("attention/q", *out), "mlp": (*qkv, *out), "qkv": (*out, *mlp),
      "offload": (*out, *mlp), "attention": (*qkv, *out, *mlp), "full": (*qkv, *out, *mlp),
  }[c.remat]  # fmt: skip
  again = sum(math.prod(shape) for n, shape in flops.layer_shapes(c).items() if n in names)
  if names:
    again += sum(a + b * (n in names) for n, (a, b) in flops.adapters(config).items())
  if kernel:
    return again, 2 * (c.remat == "full")
  return again, {"none": 0, "full": 2}.get(c.remat, 1)


def _images(config: Config, trained: Collection[str], inside: bool) -> dict[str, float]:
  c, vision = config.model.transformer, config.model.vision_tokenizer
  rows, P, C = config.run.batch_size, vision.patches, vision.latent_dim
  given = rows * config.data.images_per_row * P
  learnt = rows * config.data.learnt_images_per_row * P
  own = any(n.startswith("vision_embedding/") for n in trained)
  embeds = own or "token_embedding" in trained
  program = {"vision embedding": given * 2.0 * {
      "soft": vision.codes * (C * (1 + own) + c.width * (1 + 2 * embeds)), "argmin": vision.codes * C,
      "linear": C * c.width * (1 + own),  # the encoder is frozen: nobody asks for the features' gradients
  }[config.model.vision_embedding.kind]}  # fmt: skip
  if config.model.vision_embedding.projection:
    program["vision embedding"] += given * 2.0 * C * c.width * (1 + own)
  if config.model.image_loss_weight:
    head, of_codes = flops.image_head(config.model), systems.image_head(config.model).of_codes
    forwards = head["all"]
    trains = "lm_head" in trained if of_codes else any(n.startswith("image_head/") for n in trained)
    backwards = (forwards - head["inputs"]) * (inside or trains) + forwards * trains
    # With more chunks than one, each is computed again for its gradient; cross-entropy's chunks have theirs at once.
    chunk = 0 if of_codes else config.model.diffusion.loss_chunk
    chunks = chunk and config.data.learnt_images_per_row * P > chunk
    again = forwards * bool(chunks and (inside or trains) and not c.merge_positions)
    program["image head"] = learnt * 2.0 * (forwards + backwards + again)
  if not (config.data.cache_features or config.data.source == "prepared"):
    program["vision tokenizer"] = rows * config.data.images_per_row * encoder_flops(vision)
  return program


def encoder_flops(c: VisionTokenizerConfig) -> float:
  """FLOPs of encoding one picture."""
  widths = [c.base_channels * m for m in c.channel_multipliers]
  side, total, inputs = c.resolution, 0.0, c.base_channels
  total += 2 * 9 * 3 * c.base_channels * side**2
  for level, width in enumerate(widths):
    for _ in range(c.res_blocks):
      total += 2 * side**2 * (9 * inputs * width + 9 * width * width + (inputs * width if inputs != width else 0))
      inputs = width
    if level < len(widths) - 1:
      side //= 2
      total += 2 * side**2 * 9 * width * width
  N = side**2
  total += 2 * (2 * N * 2 * 9 * inputs * inputs) + 2 * N * 4 * inputs * inputs + 4 * N * N * inputs
  total += 2 * N * 9 * inputs * c.latent_dim + 2 * N * c.latent_dim**2
  return total
