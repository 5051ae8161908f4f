"""How a picture gets into a model: its pixels, the vision tokenizer, the vision embedding."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from orthus_jax.config import ranges
from orthus_jax.config.ranges import Range, Width
from orthus_jax.config.typed import require

_Mean = Annotated[float, Range(-1e6, 1e6)]
_Scale = Annotated[float, Range(1e-6, 1e6)]
_Blocks = Annotated[int, Range(1, 64)]


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
  scale: _Scale = 0.0078
  mean: tuple[_Mean, _Mean, _Mean] = (1.0, 1.0, 1.0)
  std: tuple[_Scale, _Scale, _Scale] = (1.0, 1.0, 1.0)

  def __post_init__(self):
    ranges.check(self, "model.vision_tokenizer.pixels")


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
  resolution: Annotated[int, Range(1, 2**14)] = 512
  base_channels: Annotated[int, Range(1, 2**14)] = 128
  channel_multipliers: tuple[Annotated[int, Range(1, 1024)], ...] = (1, 1, 2, 2, 4)
  res_blocks: _Blocks = 2
  latent_dim: Width = 256
  codes: Annotated[int, Range(1, 2**24)] = 8192
  norm_groups: Width = 32
  decoder: bool = True
  dtype: Literal["float32", "bfloat16"] = "float32"

  def __post_init__(self):
    where = "model.vision_tokenizer"
    ranges.check(self, where)
    levels = len(self.channel_multipliers)
    require(1 <= levels <= 15, f"{where}.channel_multipliers has {levels} levels: give it from 1 to 15")
    factor = 2 ** (levels - 1)
    require(
        self.resolution % factor == 0,
        f"{where}.resolution={self.resolution} must be a multiple of {factor}, as channel_multipliers has {levels} levels",
    )
    for channels in (self.base_channels, *(self.base_channels * m for m in self.channel_multipliers)):
      require(
          channels % self.norm_groups == 0,
          f"{where}: {channels} channels (base_channels x one of 1 and channel_multipliers) must be a multiple of"
          f" norm_groups={self.norm_groups}",
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
  """How an image feature enters the backbone.

  Attributes:
    kind: "soft", Orthus' soft VQ: all codes' rows, by their nearness; "argmin", Chameleon's hard VQ: the nearest code's row;
      "linear", a projection of the feature, which knows no codes (the paper's two ablations).
    temperature: of "soft": tau of softmax(-|v - c|^2 / tau); towards 0 it becomes "argmin".
    fresh_rows: how the image codes' rows of a fresh token embedding start: "random", or "projected": as one random
      projection of the codes, so that similar codes start alike. Rows that a checkpoint brings are left as they are.
    patch_positions: add a learnt row per patch of a picture. For models trained from scratch: with rotary positions alone,
      a patch must first find out where in its picture it stands. Orthus and Chameleon have none.
    projection: of "soft": add a learnt projection of the feature to what the codes' rows give. A low temperature makes words
      of features, which is learnt fast, and loses what lies between the codes; this keeps it. Orthus has none.
    history_noise: the largest standard deviation of noise on features of pictures to be drawn, as they are read in training;
      each picture's is drawn evenly from 0 to this. A model that draws reads its own patches, with their errors.
  """

  kind: Literal["soft", "argmin", "linear"] = "soft"
  temperature: _Scale = 1.0
  fresh_rows: Literal["random", "projected"] = "random"
  patch_positions: bool = False
  projection: bool = False
  history_noise: Annotated[float, Range(0, 1e3)] = 0.0

  def __post_init__(self):
    ranges.check(self, "model.vision_embedding")
    require(
        self.kind == "soft" or self.temperature == 1.0,
        f"model.vision_embedding.temperature is for kind=soft: leave it at 1.0 with kind={self.kind}",
    )
    require(
        self.kind == "soft" or not self.projection,
        f"model.vision_embedding.projection is for kind=soft: leave it out with kind={self.kind}",
    )
    require(
        self.kind != "linear" or self.fresh_rows == "random",
        "model.vision_embedding.fresh_rows=projected is of codes' rows, which kind=linear doesn't read: leave it at random",
    )
