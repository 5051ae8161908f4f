"""Pictures in and out of JSON: data URLs and base64, decoded with care."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from orthus_jax.config import ModelConfig, VisionTokenizerConfig
from orthus_jax.data import images as images_lib
from orthus_jax.errors import BadRequest
from orthus_jax.serving.errors import ApiError

MAX_PIXELS = 25_000_000  # of a picture, before it is decoded


def check_count(count: int, config: ModelConfig, param: str) -> None:
  """Refuses more pictures than the model has room for, before any of them is decoded.

  Raises:
    ApiError: 400.
  """
  most = max(config.transformer.max_positions // (config.vision_tokenizer.patches + 2), 1)
  if count > most:
    raise ApiError(400, f"there are {count} pictures, and the model has room for {most}: send fewer", param=param)


def of_bytes(data: bytes, param: str, vision: VisionTokenizerConfig) -> np.ndarray:
  """uint8 [R, R, 3] of a picture file's bytes, fitted to the model's resolution at once: the whole may be large.

  Raises:
    ApiError: 400, if it can't be decoded or has too many pixels.
  """
  try:
    return images_lib.fit(images_lib.load_image(data, max_pixels=MAX_PIXELS), vision.resolution, vision.pixels)
  except BadRequest as e:
    raise ApiError(400, str(e), param=param) from e


def of_url(url: Any, param: str, vision: VisionTokenizerConfig) -> np.ndarray:
  """As `of_bytes`, of a data URL; nothing is fetched.

  Raises:
    ApiError: 400, if it is another URL, or no picture.
  """
  if not isinstance(url, str) or not url.startswith("data:"):
    raise ApiError(400, "a picture must come as a data URL (data:image/png;base64,…): no address is fetched", param=param)
  head, comma, data = url.partition(",")
  if not comma or not head.endswith(";base64"):
    raise ApiError(400, "the data URL must be in base64: data:image/png;base64,…", param=param)
  try:
    decoded = base64.b64decode(data, validate=True)
  except ValueError as e:
    raise ApiError(400, f"the data URL's base64 is broken: {e}", param=param) from e
  return of_bytes(decoded, param, vision)


def to_base64(pixels: np.ndarray) -> str:
  """A PNG file in base64."""
  return base64.b64encode(images_lib.png_bytes(pixels)).decode()


def part(pixels: np.ndarray) -> dict[str, Any]:
  """A picture as a part of a message."""
  return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{to_base64(pixels)}"}}
