"""Typed configs of the image head: how the next patch, or the next picture, is drawn."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from orthus_jax.config import ranges
from orthus_jax.config.ranges import Chunk, Range, Weight, Width
from orthus_jax.config.sampling import SamplingConfig
from orthus_jax.config.typed import require
from orthus_jax.errors import BadRequest

OF_CODES = ("codes", "masked")  # kinds whose patches are codes, which the LM head predicts
# Fields of SamplingConfig that a kind reads, beyond those of text and guidance.
SAMPLING_FIELDS: dict[str, tuple[str, ...]] = {
    "diffusion": ("steps", "solver", "late_steps", "late_from", "guidance_interval", "image_temperature", "solver_loop"),
    "regression": (), "codes": ("image_temperature", "image_top_k"), "masked": ("steps", "image_temperature"),
}  # fmt: skip
_OF_REGRESSION = ("width", "blocks", "latent_scale", "loss_weight", "loss_chunk")


@dataclasses.dataclass(frozen=True)
class ImageHeadConfig:
  """Which head draws pictures.

  Attributes:
    kind: "diffusion", Orthus': a feature by diffusion, given the state before it; "regression": a feature as the state's
      own prediction of it (the paper's ablation); "codes", Chameleon's: a code by the LM head, one after the other;
      "masked", Show-o's: all of a picture's codes at once by the LM head, over and over, the surest of them kept.
    loss_weight: lambda in cross-entropy + lambda * codes' cross-entropy, for codes and masked (`diffusion.loss_weight` is
      that of the others); 0 leaves pictures out of the step.
  """

  kind: Literal["diffusion", "regression", "codes", "masked"] = "diffusion"
  loss_weight: Weight = 1.0

  def __post_init__(self):
    ranges.check(self, "model.image_head")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """The diffusion head and its process. A regression head has of it width, blocks, latent_scale and the loss's two.

  Attributes:
    width: of the head's MLP.
    blocks: residual blocks of the head.
    target: what the head predicts: "velocity" (released code) or "noise" (paper, Eq. 3).
    schedule: betas "scaled_linear" (linear in their square root; released code) or "linear" (paper).
    beta_start, beta_end: first and last beta.
    timesteps: of the forward process.
    zero_terminal_snr: rescale so that the last step is pure noise; needs the velocity target.
    latent_scale: features are multiplied by this before diffusion and divided by it after.
    draws: independent (t, eps) per patch and training step.
    loss_weight: lambda in cross-entropy + lambda * the head's loss; 0 leaves the image head out of the step.
    loss_chunk: patches of a row that the head works on at a time in training, each with all its draws; 0 means all.
      With `merge_positions`, all are.
  """

  width: Width = 1536
  blocks: Annotated[int, Range(1, 256)] = 3
  target: Literal["velocity", "noise"] = "velocity"
  schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
  beta_start: Annotated[float, Range(1e-6, 1, below=True)] = 0.00085
  beta_end: Annotated[float, Range(1e-6, 1, below=True)] = 0.012
  timesteps: Annotated[int, Range(2, 100_000)] = 1000
  zero_terminal_snr: bool = True
  latent_scale: Annotated[float, Range(1e-6, 1e6)] = 0.1
  draws: Annotated[int, Range(1, 4096)] = 8
  loss_weight: Weight = 100.0
  loss_chunk: Chunk = 512

  def __post_init__(self):
    where = "model.diffusion"
    ranges.check(self, where)
    require(
        not (self.zero_terminal_snr and self.target == "noise"),
        f"{where}.target=noise can't start from pure noise: set {where}.zero_terminal_snr=False",
    )
    require(
        self.beta_start < self.beta_end,
        f"{where}.beta_start={self.beta_start} must be below {where}.beta_end={self.beta_end}",
    )


def check_fields(head: ImageHeadConfig, diffusion: DiffusionConfig) -> None:
  """Refuses settings of one kind of head beside another kind, which would ignore them.

  Raises:
    BadRequest: naming the first of them.
  """
  require(
      head.kind in OF_CODES or head.loss_weight == ImageHeadConfig().loss_weight,
      f"model.image_head.loss_weight is of codes and masked: with model.image_head.kind={head.kind}, set"
      " model.diffusion.loss_weight",
  )
  used = {"diffusion": tuple(f.name for f in dataclasses.fields(diffusion)), "regression": _OF_REGRESSION}
  for field in dataclasses.fields(diffusion):
    value = getattr(diffusion, field.name)
    require(
        field.name in used.get(head.kind, ()) or value == field.default,
        f"model.diffusion.{field.name}={value} is nothing that model.image_head.kind={head.kind} has: leave it at"
        f" {field.default}",
    )


def check_sampling(kind: str, sampling: SamplingConfig) -> None:
  """Refuses settings of sampling that a kind of head would ignore.

  Raises:
    BadRequest: naming the first of them.
  """
  others = {f for fields in SAMPLING_FIELDS.values() for f in fields} - set(SAMPLING_FIELDS[kind])
  for field in dataclasses.fields(sampling):
    value = getattr(sampling, field.name)
    if field.name in others and value != field.default:
      *first, last = (k for k, fields in SAMPLING_FIELDS.items() if field.name in fields)
      having = " and ".join([", ".join(first), last] if first else [last])
      raise BadRequest(
          f"sampling.{field.name}={value} is for image_head.kind={having}, and this model's is {kind}: leave it at"
          f" {field.default}"
      )
