"""How a picture gets into a model: its pixels, the vision tokenizer, the vision embedding."""

from __future__ import annotations

import dataclasses
from typing import Literal

from orthus_jax.config.typed import require


@dataclasses.dataclass(frozen=True)
class PixelsConfig:
  """How a picture becomes values for the vision tokenizer, (byte * scale - mean) / std, and back.

  Defaults are the published processor's.

  Attributes:
    resample: the filter that scales the shortest edge to the resolution, before the centre square is cut out.
    scale: of a byte; the published one isn't 1 / 127.5, so that white is 0.989 and not 1.
    mean, std: of red, green and blue.
  """

  resample: Literal["lanczos", "nearest", "bilinear", "bicubic", "box", "hamming"] = "lanczos"
  scale: float = 0.0078
  mean: tuple[float, float, float] = (1.0, 1.0, 1.0)
  std: tuple[float, float, float] = (1.0, 1.0, 1.0)

  def __post_init__(self):
    require(self.scale > 0 and min(self.std) > 0, f"pixels.scale={self.scale} and std={self.std} must be above 0")


@dataclasses.dataclass(frozen=True)
class VisionTokenizerConfig:
  """The VQGAN.

  Attributes:
    pixels: how pictures become its input.
    resolution: pixels per side.
    base_channels: channels at full resolution, before `channel_multipliers`.
    channel_multipliers: one per level; each level but the last halves the resolution.
    res_blocks: residual blocks per encoder level; a decoder level has one more.
    latent_dim: C, values per patch.
    codes: rows of the codebook.
    norm_groups: groups of each GroupNorm.
    decoder: whether there is one; `transformers`' Chameleon has none, and a model without one can't draw.
    dtype: what it is computed in.
  """

  pixels: PixelsConfig = PixelsConfig()
  resolution: int = 512
  base_channels: int = 128
  channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  res_blocks: int = 2
  latent_dim: int = 256
  codes: int = 8192
  norm_groups: int = 32
  decoder: bool = True
  dtype: Literal["float32", "bfloat16"] = "float32"

  def __post_init__(self):
    factor = 2 ** (len(self.channel_multipliers) - 1)
    require(len(self.channel_multipliers) >= 1, "channel_multipliers needs at least one level")
    require(
        self.resolution % factor == 0 and self.resolution >= factor,
        f"resolution={self.resolution} must be a multiple of {factor}, as there are {len(self.channel_multipliers)} levels",
    )
    for m in self.channel_multipliers:
      require(
          self.base_channels * m % self.norm_groups == 0,
          f"base_channels={self.base_channels} x {m} must be a multiple of norm_groups={self.norm_groups}",
      )

  @property
  def side(self) -> int:
    """Patches per side."""
    return self.resolution // 2 ** (len(self.channel_multipliers) - 1)

  @property
  def patches(self) -> int:
    """P, patches per image."""
    return self.side**2


@dataclasses.dataclass(frozen=True)
class VisionEmbeddingConfig:
  """How an image feature enters the backbone: the soft VQ of Orthus.

  Attributes:
    temperature: tau of softmax(-|v - c|^2 / tau); towards 0 it becomes Chameleon's hard VQ.
    fresh_rows: how the image codes' rows of a fresh token embedding start: "random", or "projected": as one random
      projection of the codes, so that similar codes start alike. Rows that a checkpoint brings are left as they are.
    patch_positions: add a learnt row per patch of a picture. For models trained from scratch: with rotary positions alone,
      a patch must first find out where in its picture it stands. Orthus and Chameleon have none.
  """

  temperature: float = 1.0
  fresh_rows: Literal["random", "projected"] = "random"
  patch_positions: bool = False

  def __post_init__(self):
    require(self.temperature > 0, f"vision_embedding.temperature={self.temperature} must be above 0")
