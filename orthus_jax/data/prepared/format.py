"""What prepared data is on disk: what it was made with, and records of documents and pictures, written and read."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import PIL.Image

from orthus_jax.config import Config, to_dict
from orthus_jax.data.images import fit
from orthus_jax.data.sequence import Sequence, Tokenizer
from orthus_jax.errors import BadRequest

Images = Literal["pixels", "jpeg", "features"]
BF16 = np.dtype(ml_dtypes.bfloat16)
MAX_VARIANTS = 3


def facts(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
  """What training must agree on with the data it reads."""
  vision = config.model.vision_tokenizer
  return picture_facts(config) | {
      "tokenizer": tokenizer.digest(), "patches": vision.patches, "latent_dim": vision.latent_dim,
      "unconditional_prompt": config.sampling.unconditional_prompt,
  }  # fmt: skip


def picture_facts(config: Config) -> dict[str, Any]:
  """Of `facts`, what pixels depend on."""
  vision = config.model.vision_tokenizer
  return {"format": 1, "resolution": vision.resolution, "pixels": to_dict(vision.pixels)}


def check(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
  """That a folder can be read as it is wanted. Pictures may have another resolution: they are fitted when they are read.

  Args:
    folder: where it lies.
    there: its facts.
    wanted: what they should be.

  Raises:
    BadRequest: naming what differs.
  """
  fitted = () if there.get("images") == "features" else ("resolution", "patches", "latent_dim")
  for name, value in wanted.items():
    if there.get(name) != value and not (name in fitted and isinstance(there.get(name), int)):
      raise BadRequest(f"{folder} was prepared with another {name} ({there.get(name)}, not {value}): prepare it anew")


def read_facts(folder: Path) -> dict[str, Any]:
  """What prepared.json says.

  Raises:
    BadRequest: if the folder isn't complete.
  """
  try:
    return json.loads((folder / "prepared.json").read_text(encoding="utf-8-sig"))
  except (OSError, ValueError) as e:
    raise BadRequest(f"{folder} holds no complete prepared data: make it with `orthus prepare --out={folder}`") from e


def to_record(name: str, laid: tuple[Sequence, ...], pictures: list[list[int]]) -> bytes:
  """int32 numbers, each variant's one after the other, then the document's name."""
  parts: list[Any] = [[len(laid)]]
  for s, numbers in zip(laid, pictures):
    parts += [[len(s), len(numbers)], s.tokens_T, s.learnt_length_T, s.starts_I, s.learn_I, numbers]
  body = np.concatenate([np.asarray(p, np.int32) for p in parts])
  return np.int32(len(body)).tobytes() + body.tobytes() + name.encode(errors="backslashreplace")


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """One sequence of a document, and the numbers of its pictures."""

  name: str
  sequence: Sequence
  pictures: np.ndarray


def from_record(record: bytes, variant: int, *, patches: int) -> Stored:
  """Reads one variant of a document, whose pictures have so many positions each."""
  length = int(np.frombuffer(record, np.int32, 1)[0])
  body = np.frombuffer(record, np.int32, length, offset=4)
  at = 1
  for _ in range(variant):
    at += 2 + 2 * int(body[at]) + 3 * int(body[at + 1])
  n, m = int(body[at]), int(body[at + 1])
  tokens_T, learnt_T, starts_I, learn_I, pictures_I = np.split(
      body[at + 2 : at + 2 + 2 * n + 3 * m], np.cumsum([n, n, m, m])
  )
  image_T = np.full(n, -1, np.int32)
  for i, start in enumerate(starts_I):
    image_T[start + 1 : start + 1 + patches] = i
  sequence = Sequence(tokens_T, learnt_T, image_T, starts_I, learn_I.astype(bool), ())
  return Stored(record[4 + 4 * length :].decode(), sequence, pictures_I)


def read_picture(record: bytes, config: Config, there: dict[str, Any]) -> np.ndarray:
  """uint8 [R, R, 3] pixels, of the model's resolution whatever the folder's; or bfloat16 [P, C] features.

  Args:
    record: as written.
    config: the experiment.
    there: the folder's facts.

  Raises:
    ValueError, OSError, SyntaxError: it is no such picture.
  """
  vision = config.model.vision_tokenizer
  if there["images"] == "features":
    return np.frombuffer(record, BF16).reshape(vision.patches, vision.latent_dim)
  shape = (there["resolution"], there["resolution"], 3)
  if there["images"] == "jpeg":
    pixels = np.asarray(PIL.Image.open(io.BytesIO(record), formats=("JPEG",)))
    if pixels.shape != shape:
      raise ValueError(f"it is {pixels.shape}, not {shape}")
  else:
    pixels = np.frombuffer(record, np.uint8).reshape(shape)
  return fit(pixels, vision.resolution, vision.pixels)
