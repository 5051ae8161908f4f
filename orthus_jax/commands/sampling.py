"""The options that say how documents are generated, for every verb that generates."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from orthus_jax.commands import common
from orthus_jax.config import SamplingConfig, ranges
from orthus_jax.config.sampling import with_fields

FIELDS = tuple(f.name for f in dataclasses.fields(SamplingConfig))


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds a group of options, one a field of SamplingConfig; those that aren't given are None."""

  def number(field: str):
    return common.number(*ranges.of(SamplingConfig, field))

  add = parser.add_argument_group("how (default: as the model's config says)").add_argument
  add("--steps", type=number("steps"), help="solver steps a patch; with a masked head, passes over a picture")
  add("--solver", choices=("ddim", "dpm", "ddpm"), help="ddim; dpm, for fewer steps; or ddpm, random and for many steps")
  add("--late-steps", type=number("late_steps"), metavar="N", help="solver steps of each picture's later patches")
  add("--late-from", type=number("late_from"), metavar="SHARE", help="of a picture's patches that come before the later ones")
  add("--guidance", type=number("guidance"), help="how closely a picture follows the text; 1 turns guidance off")
  add("--image-guidance", type=number("image_guidance"), help="in editing: how closely the result keeps to the picture")
  add("--guidance-interval", type=common.number(float, ranges.Range(0, 1)), nargs=2, metavar=("LOW", "HIGH"),
      help="part of diffusion time in which guidance holds: 0 is the picture, 1 pure noise")  # fmt: skip
  add("--image-temperature", type=number("image_temperature"),
      help="what the noise is multiplied by that pictures are made of; of codes, their temperature (0 takes the likeliest);"
      " with a masked head, of the noise on its confidence")
  add("--image-top-k", type=number("image_top_k"), help="codes among the k likeliest; 0 means all")
  add("--unconditional-prompt", metavar="TEXT", help="what guidance compares the prompt with")
  add("--temperature", type=number("temperature"), help="of text; 0 is greedy")
  add("--top-k", type=number("top_k"), help="text among the k likeliest tokens; 0 means all")
  add("--top-p", type=number("top_p"), help="and within this mass of probability")
  add("--repetition-penalty", type=number("repetition_penalty"),
      help="how much less likely text becomes that was said; 1 turns it off")  # fmt: skip
  add("--weights", choices=("stored", "int8"), help="int8: those that are read at every position in 8 bits")
  add("--cache", choices=("compute", "int8"), help="int8: keys and values in 8 bits")
  add("--solver-loop", choices=("scan", "kernel"), help="kernel: solver steps as one TPU kernel, which keeps its weights")
  add("--max-new-tokens", type=number("max_new_tokens"), help="longest response, counting each patch as one")
  add("--plan", action=argparse.BooleanOptionalAction,
      help="with --respond=image: the model says in words what the picture is to show, then draws it")  # fmt: skip


def given(args: argparse.Namespace) -> dict[str, Any]:
  """The fields that the command line gives.

  Raises:
    BadRequest: if they can't work together.
  """
  fields = {f: getattr(args, f) for f in FIELDS if getattr(args, f, None) is not None}
  with_fields(SamplingConfig(), fields)
  return fields
