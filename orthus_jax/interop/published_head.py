"""The image heads that a published checkpoint can have: Orthus' own, or a Chameleon's, which draws codes by its LM head.

A Chameleon's or Anole's files don't say what it is wanted for. Without a word it is read as the start of an Orthus; our own
key in config.json, or whoever asks for it, makes it the Chameleon that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from orthus_jax.config.image_head import SAMPLING_FIELDS
from orthus_jax.errors import BadRequest

# A kind's class in the published code, and what its vision embedding is, where nothing says so.
_ARCHITECTURES = {"diffusion": "OrthusForConditionalGeneration", "codes": "ChameleonForConditionalGeneration"}
_EMBEDDINGS: dict[str, Literal["soft", "argmin"]] = {"diffusion": "soft", "codes": "argmin"}
# How the code that a Chameleon was released with draws, beyond our defaults.
_SAMPLING = {"codes": {"guidance": 3.0, "image_guidance": 1.2}}
KINDS = tuple(_ARCHITECTURES)
_OF_ORTHUS = ("mlp_head.", "model.codebook_in.")

Parts = Mapping[str, Mapping[str, Any]]


def architecture(kind: str) -> str:
  """The class of a kind of image head in the published code.

  Raises:
    BadRequest: if no published code has one.
  """
  if kind not in _ARCHITECTURES:
    raise BadRequest(f"a published checkpoint has no place for model.image_head.kind={kind}; such a model can't be exported")
  return _ARCHITECTURES[kind]


def embedding(kind: str) -> Literal["soft", "argmin"]:
  """The kind of vision embedding that the published code has beside a kind of image head."""
  return _EMBEDDINGS[kind]


def check_asked(image_head: str) -> None:
  """Refuses to read a checkpoint as what it can't be; empty is whatever it is.

  Raises:
    BadRequest: naming what it can be.
  """
  if image_head and image_head not in KINDS:
    raise BadRequest(f"image_head={image_head!r}: a published checkpoint is read with one of {', '.join(KINDS)}")


def read(parts: Parts, keys: Iterable[str], asked: str, problems: list[str]) -> Parts:
  """Sections of our config as they hold for the kind of image head that the model is to have.

  Args:
    parts: as the file has them: image_head, vision_embedding, diffusion, sampling.
    keys: the published keys of the arrays.
    asked: a kind; empty for the file's own, which is Orthus' where it is silent.
    problems: gets a line if there is no such kind, or the arrays are of another.
  """
  own = parts["image_head"].get("kind", "diffusion")
  kind = asked or own
  orthus = min((k for k in keys if k.startswith(_OF_ORTHUS)), default="")
  if kind not in KINDS:
    problems.append(f"config.json: orthus_jax.image_head.kind={kind!r} is none of {', '.join(KINDS)}")
  elif kind == "codes" and orthus:
    problems.append(f"it holds an Orthus ({orthus}), which draws no codes: image_head=codes is for a Chameleon or Anole")
  if kind == own or kind not in KINDS:
    return parts
  others = {f for fields in SAMPLING_FIELDS.values() for f in fields} - set(SAMPLING_FIELDS[kind])
  others.add("image_temperature")  # which means something else to each kind
  kept = {k: v for k, v in parts["vision_embedding"].items() if k not in ("temperature", "history_noise")}
  sampling = {k: v for k, v in parts["sampling"].items() if k not in others}
  return {
      "image_head": {"kind": kind}, "vision_embedding": kept | {"kind": embedding(kind)}, "diffusion": {},
      "sampling": sampling or _SAMPLING.get(kind, {}),
  }  # fmt: skip
