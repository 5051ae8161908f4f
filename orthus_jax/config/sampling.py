"""How documents are generated."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from orthus_jax.config.typed import from_dict, require, to_dict


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How documents are generated.

  Attributes:
    steps: solver steps per patch.
    guidance: scale s of v_u + s (v_c - v_u); 1 turns it off.
    image_guidance: in editing, the scale of the picture's part (v_img - v_0); `guidance` is then the text's.
    unconditional_prompt: what the unconditional row is told in the place of the prompt.
    temperature: of text; 0 is greedy.
    top_k: text is sampled among the k likeliest; 0 means all.
    top_p: and within this mass of probability.
    max_new_tokens: longest response, counting each patch as one.
    solver: of the diffusion: "ddim", "dpm" (DPM-Solver++ 2M, for fewer steps) or "ddpm" (ancestral, random).
    late_steps: solver steps of each picture's later patches; 0 means as many as the first ones.
    late_from: the share of a picture's patches that comes before the later ones.
    guidance_interval: (low, high), the part of diffusion time in which guidance holds: 0 is the picture, 1 pure noise.
    repetition_penalty: how much less likely text becomes that the response holds already; 1 turns it off.
    weights: "stored", or "int8" for those that are read at every position; one choice for all that is generated together.
    cache: keys and values in the "compute" dtype, or "int8"; likewise.
  """

  steps: int = 100
  guidance: float = 5.0
  image_guidance: float = 1.5
  unconditional_prompt: str = "Generate an image."
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  max_new_tokens: int = 2048
  solver: Literal["ddim", "dpm", "ddpm"] = "ddim"
  late_steps: int = 0
  late_from: float = 0.5
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  repetition_penalty: float = 1.0
  weights: Literal["stored", "int8"] = "stored"
  cache: Literal["compute", "int8"] = "compute"

  def __post_init__(self):
    require(self.steps >= 1, f"sampling.steps={self.steps} must be at least 1")
    require(self.late_steps >= 0, f"late_steps={self.late_steps} must not be negative; 0 means sampling.steps")
    require(0 <= self.late_from <= 1, f"late_from={self.late_from} must lie in 0..1")
    low, high = self.guidance_interval
    require(0 <= low <= high <= 1, f"guidance_interval={self.guidance_interval} must be (low, high) in 0..1")
    require(self.repetition_penalty > 0, f"repetition_penalty={self.repetition_penalty} must be positive; 1 turns it off")
    require(self.guidance >= 0 and self.image_guidance >= 0, "guidance must not be negative; 1 turns it off")
    require(self.temperature >= 0, f"temperature={self.temperature} must not be negative; 0 is greedy")
    require(self.top_k >= 0, f"top_k={self.top_k} must not be negative; 0 means all")
    require(0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]")
    require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1")


def with_fields(base: SamplingConfig, fields: Mapping[str, Any], *, where: str = "sampling") -> SamplingConfig:
  """A config with other fields, each checked.

  Raises:
    BadRequest: on an unknown field or a value out of range.
  """
  return from_dict(SamplingConfig, {**to_dict(base), **fields}, where=where)
