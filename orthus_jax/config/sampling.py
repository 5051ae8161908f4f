"""How documents are generated."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any, Literal

from orthus_jax.config import ranges
from orthus_jax.config.ranges import Count, Range, Share
from orthus_jax.config.typed import from_dict, is_text, require, to_dict

_Scale = Annotated[float, Range(0, 1e4, note="1 turns guidance off")]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How documents are generated.

  Attributes:
    steps: solver steps per patch; with image_head.kind=masked, passes over a picture.
    guidance: scale s of v_u + s (v_c - v_u), of features' predictions or codes' logits; 1 turns it off.
    image_guidance: in editing, the scale of the picture's part (v_img - v_0); `guidance` is then the text's.
    unconditional_prompt: what the unconditional row is told in the place of the prompt.
    temperature: of text; 0 is greedy.
    top_k: text is sampled among the k likeliest; 0 means all.
    top_p: and within this mass of probability.
    max_new_tokens: longest response, counting each patch as one; a picture that is asked for finds room besides.
    plan: where a picture is asked for (respond=image), the model says in words what it is to show before it draws it, as
      models do that learnt from documents with a text between the prompt and the picture.
    solver: of the diffusion: "ddim", "dpm" (DPM-Solver++ 2M, for fewer steps) or "ddpm" (ancestral, random).
    late_steps: solver steps of each picture's later patches; 0 means as many as the first ones.
    late_from: the share of a picture's patches that comes before the later ones.
    guidance_interval: (low, high), the part of diffusion time in which guidance holds: 0 is the picture, 1 pure noise.
    image_temperature: what the noise that features are made of is multiplied by (image_head.kind=diffusion; 0 leaves none: a
      seed changes nothing any more); of codes (codes; 0 takes the likeliest), or of the noise on confidences (masked).
    image_top_k: codes are sampled among the k likeliest (image_head.kind=codes); 0 means all.
    repetition_penalty: how much less likely text becomes that the response holds already; 1 turns it off.
    weights: "stored", or "int8" for those that are read at every position; one choice for all that is generated together.
    cache: keys and values in the "compute" dtype, or "int8"; likewise.
    solver_loop: the diffusion head's steps as a "scan", or as one "kernel" (TPU) in whose memory its weights stay; likewise.
  """

  steps: Count = 100
  guidance: _Scale = 5.0
  image_guidance: _Scale = 1.5
  unconditional_prompt: str = "Generate an image."
  temperature: Annotated[float, Range(1e-4, 1e4, also=(0,), note="0 is greedy")] = 0.0
  top_k: Annotated[int, Range(0, ranges.MAX_INT, note="0 means all")] = 0
  top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
  max_new_tokens: Count = 2048
  plan: bool = False
  solver: Literal["ddim", "dpm", "ddpm"] = "ddim"
  late_steps: Annotated[int, Range(0, ranges.MAX_INT, note="0 means sampling.steps")] = 0
  late_from: Share = 0.5
  guidance_interval: tuple[Share, Share] = (0.0, 1.0)
  image_temperature: Annotated[float, Range(1e-4, 1e4, also=(0,), note="0 leaves no noise")] = 1.0
  image_top_k: Annotated[int, Range(0, ranges.MAX_INT, note="0 means all")] = 0
  repetition_penalty: Annotated[float, Range(1e-4, 1e4, note="1 turns it off")] = 1.0
  weights: Literal["stored", "int8"] = "stored"
  cache: Literal["compute", "int8"] = "compute"
  solver_loop: Literal["scan", "kernel"] = "scan"

  def __post_init__(self):
    ranges.check(self, "sampling")
    require(is_text(self.unconditional_prompt), "sampling.unconditional_prompt isn't a text (a lone surrogate)")
    require(self.unconditional_prompt.strip(), "sampling.unconditional_prompt is empty: guidance compares with what it says")
    low, high = self.guidance_interval
    require(low <= high, f"sampling.guidance_interval={self.guidance_interval} must be (low, high)")


def with_fields(base: SamplingConfig, fields: Mapping[str, Any], *, where: str = "sampling") -> SamplingConfig:
  """A config with other fields, each checked.

  Raises:
    BadRequest: on an unknown field or a value out of range.
  """
  return from_dict(SamplingConfig, {**to_dict(base), **fields}, where=where)
