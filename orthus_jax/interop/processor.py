"""The published checkpoints' tokenizer and image processor, as the files beside the weights describe them.

What a file says is what is done, or it is refused: a model that is shown pictures scaled otherwise than those it was
trained on answers worse, and nothing tells why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers

from orthus_jax.config import ModelConfig, PixelsConfig, from_dict
from orthus_jax.data import documents, images
from orthus_jax.data.documents import Document
from orthus_jax.data.sequence import layout
from orthus_jax.data.text_tokenizer import FILE_NAME, TextTokenizer, TokenNames
from orthus_jax.errors import BadRequest
from orthus_jax.interop import json_files

IMAGE_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
TOKENIZER_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"

# Pillow's numbers for its filters, which the files use.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# What the published image processor does where its file is silent.
_CHAMELEON = {
    "do_resize": True, "size": {"shortest_edge": 512}, "resample": 1, "do_center_crop": True,
    "crop_size": {"height": 512, "width": 512}, "do_rescale": True, "rescale_factor": 0.0078, "do_normalize": True,
    "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0], "do_convert_rgb": True,
}  # fmt: skip
_SHIFTS = ("offset", "rescale_offset")  # by which other processors move values once they are scaled
# Our names of special tokens, and theirs.
_TOKENS = {
    "bos": "bos_token", "pad": "pad_token", "eos": "eos_token", "sep": "sep_token", "image": "image_token",
    "begin_of_image": "boi_token", "end_of_image": "eoi_token",
}  # fmt: skip


class Inputs(NamedTuple):
  """A batch of prompts. Axes: B prompts, T positions, I pictures of all prompts in order, R pixels a side.

  Attributes:
    tokens_BT: int32 ids, padded.
    mask_BT: bool, False at padding.
    position_BT: int32, counting real tokens from 0; 0 at padding.
    values_IRRC: float32, what the vision tokenizer reads.
  """

  tokens_BT: np.ndarray
  mask_BT: np.ndarray
  position_BT: np.ndarray
  values_IRRC: np.ndarray


@dataclasses.dataclass(frozen=True)
class Processor:
  """From text and pictures to what a published model reads.

  Attributes:
    tokenizer: the checkpoint's.
    config: the model's, with the checkpoint's image processing in `vision_tokenizer.pixels`.
    padding_side: where a batch's shorter prompts are padded.
  """

  tokenizer: TextTokenizer
  config: ModelConfig
  padding_side: Literal["left", "right"] = "left"

  @classmethod
  def load(cls, directory: str | os.PathLike, config: ModelConfig) -> Processor:
    """Reads tokenizer.json, tokenizer_config.json, preprocessor_config.json and processor_config.json.

    Args:
      directory: a published checkpoint's.
      config: the model's; its image processing is replaced by the files'.

    Raises:
      BadRequest: a needed file is missing, one contradicts another or the model, or one asks for what can't be done.
    """
    directory = Path(directory)
    tokenizer = read_tokenizer(directory)
    pixels = read_pixels(directory, resolution=config.vision_tokenizer.resolution)
    vision = dataclasses.replace(config.vision_tokenizer, pixels=pixels)
    codes = range(config.image_token_start, config.image_token_start + vision.codes)
    if tokenizer.image_codes != codes:
      raise BadRequest(
          f"{directory / FILE_NAME} has image codes {tokenizer.image_codes} where the model has {codes};"
          " give the tokenizer that belongs to the model"
      )
    if tokenizer.vocab_size > config.transformer.vocab_size:
      raise BadRequest(
          f"{directory / FILE_NAME} has ids up to {tokenizer.vocab_size - 1}, the model {config.transformer.vocab_size}"
          " in all; give the tokenizer that belongs to the model"
      )
    patches = _read(directory / PROCESSOR_FILE).get("image_seq_length", vision.patches)
    if patches != vision.patches:
      raise BadRequest(
          f"{directory / PROCESSOR_FILE} has image_seq_length={patches!r}, but a picture of {vision.resolution} pixels"
          f" a side is {vision.patches} patches"
      )
    side = _read(directory / TOKENIZER_FILE).get("padding_side", "left")
    if side not in ("left", "right"):
      raise BadRequest(f"{directory / TOKENIZER_FILE} has padding_side={side!r}: it must be left or right")
    return cls(tokenizer, dataclasses.replace(config, vision_tokenizer=vision), side)

  def document(self, prompt: str, pictures: Iterable[np.ndarray] = ()) -> Document:
    """A published prompt, with `<image>` wherever a picture belongs, as a Document; see `documents.interleaved`."""
    return documents.interleaved(prompt, pictures, image=self.tokenizer.names.image)

  def inputs(self, prompts: Sequence[Document], *, respond: bool = True) -> Inputs:
    """Ids, mask, positions and picture values of a batch of prompts.

    Args:
      prompts: at least one.
      respond: close each with a separator, so that a response can follow.

    Raises:
      BadRequest: there is no prompt, or one is empty.
    """
    if not prompts:
      raise BadRequest("a batch needs at least one prompt")
    vision = self.config.vision_tokenizer
    rows = [layout(d, self.tokenizer, patches=vision.patches, respond=respond) for d in prompts]
    tokens_BT = np.full((len(rows), max(map(len, rows))), self.tokenizer.pad, np.int32)
    mask_BT = np.zeros(tokens_BT.shape, bool)
    for b, row in enumerate(rows):
      at = slice(-len(row), None) if self.padding_side == "left" else slice(len(row))
      tokens_BT[b, at], mask_BT[b, at] = row.tokens_T, True
    position_BT = np.where(mask_BT, np.cumsum(mask_BT, axis=1) - 1, 0).astype(np.int32)
    R = vision.resolution
    pictures = [images.fit(i.pixels, R, vision.pixels) for row in rows for i in row.images]
    pixels_IRRC = np.stack(pictures) if pictures else np.zeros((0, R, R, 3), np.uint8)
    return Inputs(tokens_BT, mask_BT, position_BT, images.to_model(pixels_IRRC, vision.pixels))


def read_tokenizer(directory: str | os.PathLike) -> TextTokenizer:
  """The tokenizer of a published checkpoint, its special tokens called as the checkpoint's files say.

  Raises:
    BadRequest: there is none, a special token is missing, or its files ask for another prompt than `<s>` and the text.
  """
  directory = Path(directory)
  said = _read(directory / TOKENIZER_FILE)
  extra = (said.get("extra_special_tokens"), said.get("model_specific_special_tokens"))
  places = [said, *(e for e in extra if isinstance(e, Mapping)), _read(directory / SPECIAL_TOKENS_FILE)]
  places.append({"image_token": _read(directory / PROCESSOR_FILE).get("image_token")})
  names = {}
  for field, key in _TOKENS.items():
    token = next((p[key] for p in places if p.get(key) is not None), None)
    token = token.get("content") if isinstance(token, Mapping) else token
    if token is not None:
      if not isinstance(token, str):
        raise BadRequest(f"{directory / TOKENIZER_FILE} has {key}={token!r}: expected a token's name")
      names[field] = token
  tokenizer = TextTokenizer.load(directory, names=TokenNames(**names))
  if said.get("add_bos_token") is False or said.get("add_eos_token"):
    raise BadRequest(
        f"{directory / TOKENIZER_FILE} asks for prompts without {tokenizer.names.bos} or with {tokenizer.names.eos} at"
        " their end; published Orthus and Chameleon prompts open with the one and lack the other"
    )
  _check_prompt(directory / FILE_NAME, tokenizer, bos_added="add_bos_token" in said)
  return tokenizer


def _check_prompt(file: Path, tokenizer: TextTokenizer, *, bos_added: bool) -> None:
  """Refuses a tokenizer.json that would lay prompts out otherwise than `data.sequence.layout` does."""
  spec = json_files.load(file)
  for token in spec["added_tokens"]:
    strips = [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]
    if strips and token["content"] in tokenizer.names.required().values():
      raise BadRequest(f"{file} has {token['content']} with {strips[0]}, which changes the text beside it: unset it")
  if spec.get("post_processor") and not bos_added:
    around = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8-sig")).encode("a").ids
    expected = [tokenizer.bos, *tokenizer.encode("a")]
    if around != expected:
      raise BadRequest(f"{file} encodes 'a' as {around} where a prompt has {expected}: its post_processor differs")


def read_pixels(directory: str | os.PathLike, *, resolution: int) -> PixelsConfig:
  """The image processing of a published checkpoint.

  Args:
    directory: holds preprocessor_config.json, or processor_config.json with an `image_processor` within.
    resolution: of the model's pictures, which the files must agree with.

  Raises:
    BadRequest: there is no such file, two contradict each other, or one asks for what can't be done.
  """
  directory = Path(directory)
  found = {}
  for file, values in (
      (directory / PROCESSOR_FILE, _read(directory / PROCESSOR_FILE).get("image_processor")),
      (directory / IMAGE_FILE, _read(directory / IMAGE_FILE)),
  ):
    if values:
      found[file] = _pixels(values, file, resolution=resolution)
  if not found:
    raise BadRequest(f"there is no {IMAGE_FILE} in {directory}; copy it from where the checkpoint was published")
  if len(set(found.values())) > 1:
    raise BadRequest(f"{IMAGE_FILE} and {PROCESSOR_FILE} in {directory} differ about pictures; remove the wrong one")
  return next(iter(found.values()))


def _pixels(said: Mapping[str, Any], file: Path, *, resolution: int) -> PixelsConfig:
  """A file's image processing, or a refusal that names what it asks for."""

  def refuse(key: str, why: str) -> BadRequest:
    return BadRequest(f"{file} has {key}={said.get(key)!r}, but {why}")

  if not isinstance(said, Mapping):
    raise BadRequest(f"{file} must hold fields of an image processor, got a {type(said).__name__}")
  kind = str(said.get("image_processor_type", "ChameleonImageProcessor"))
  if kind.startswith("ChameleonImageProcessor"):
    said = {**_CHAMELEON, **{k: v for k, v in said.items() if v is not None}}
  elif missing := [k for k in _CHAMELEON if said.get(k) is None]:
    raise BadRequest(f"{file} is of a {kind}, whose {missing[0]} isn't known here: write it into the file")
  for key, value in said.items():
    if key in _CHAMELEON and key.startswith("do_") and value not in (True, False):
      raise refuse(key, "it must be true or false")
    if (key.startswith("do_") and key not in _CHAMELEON or key in _SHIFTS) and value:
      raise refuse(key, "that can't be done here")
  for key in ("do_resize", "do_center_crop"):
    if not said[key]:
      raise refuse(key, "the model needs square pictures of one size")
  size, crop = said["size"], said["crop_size"]
  edge = size.get("shortest_edge") if isinstance(size, Mapping) and len(size) == 1 else size
  if edge != resolution:
    raise refuse("size", f"only a shortest_edge of the model's {resolution} pixels can be done here")
  if crop not in (resolution, {"height": resolution, "width": resolution}):
    raise refuse("crop_size", f"the model's pictures have {resolution} pixels a side")
  if type(said["resample"]) is not int or said["resample"] not in range(len(_FILTERS)):
    raise refuse("resample", f"it must be one of 0..{len(_FILTERS) - 1} ({', '.join(_FILTERS)})")
  values = {"resample": _FILTERS[said["resample"]], "scale": said["rescale_factor"] if said["do_rescale"] else 1.0}
  for key, field, unset in (("image_mean", "mean", 0.0), ("image_std", "std", 1.0)):
    value = said[key] if said["do_normalize"] else unset
    values[field] = value if isinstance(value, Sequence) else [value] * 3
  return from_dict(PixelsConfig, values, where=str(file))


def _read(file: Path) -> dict[str, Any]:
  """A JSON file's fields; none where there is no such file."""
  try:
    values = json_files.load(file)
  except FileNotFoundError:
    return {}
  except (ValueError, OSError) as e:
    raise BadRequest(f"{file} can't be read as JSON: {str(e).splitlines()[0]}") from e
  if not isinstance(values, dict):
    raise BadRequest(f"{file} must hold fields, got a {type(values).__name__}")
  return values
