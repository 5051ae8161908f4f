"""The options that say how documents are generated, for every verb that generates."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from orthus_jax.config import SamplingConfig

FIELDS = tuple(f.name for f in dataclasses.fields(SamplingConfig))


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds a group of options, one a field of SamplingConfig; those that aren't given are None."""
  add = parser.add_argument_group("how (default: as the model's config says)").add_argument
  add("--steps", type=int, help="solver steps a patch")
  add("--solver", choices=("ddim", "dpm", "ddpm"), help="ddim; dpm, for fewer steps; or ddpm, random and for many steps")
  add("--late-steps", type=int, metavar="N", help="solver steps of each picture's later patches")
  add("--late-from", type=float, metavar="SHARE", help="of a picture's patches that come before the later ones")
  add("--guidance", type=float, help="how closely a picture follows the text; 1 turns guidance off")
  add("--image-guidance", type=float, help="in editing: how closely the result keeps to the picture")
  add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
      help="part of diffusion time in which guidance holds: 0 is the picture, 1 pure noise")  # fmt: skip
  add("--unconditional-prompt", metavar="TEXT", help="what guidance compares the prompt with")
  add("--temperature", type=float, help="of text; 0 is greedy")
  add("--top-k", type=int, help="text among the k likeliest tokens; 0 means all")
  add("--top-p", type=float, help="and within this mass of probability")
  add("--repetition-penalty", type=float, help="how much less likely text becomes that was said; 1 turns it off")
  add("--weights", choices=("stored", "int8"), help="int8: those that are read at every position in 8 bits")
  add("--cache", choices=("compute", "int8"), help="int8: keys and values in 8 bits")
  add("--max-new-tokens", type=int, help="longest response, counting each patch as one")


def given(args: argparse.Namespace) -> dict[str, Any]:
  """The fields that the command line gives."""
  return {f: getattr(args, f) for f in FIELDS if getattr(args, f, None) is not None}
