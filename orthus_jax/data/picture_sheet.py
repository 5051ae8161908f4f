"""Pictures side by side on a sheet, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from orthus_jax.data.images import WHITE, check_pixels
from orthus_jax.errors import BadRequest


def grid(
    images: Sequence[np.ndarray],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    tile: int = 96,
    font_size: int = 13,
    max_lines: int = 8,
) -> np.ndarray:
  """A contact sheet on white, row by row.

  Args:
    images: uint8 [height, width, 3] each; sizes may differ.
    columns: tiles in a row.
    captions: a text for each tile, wrapped beneath it.
    tile: pictures with a shorter edge than this are enlarged by a whole factor (nearest neighbour) until they reach it.
    font_size: of the captions, in pixels.
    max_lines: longer captions end in "…".

  Returns:
    uint8 [height, width, 3].

  Raises:
    BadRequest: there are no images, no columns, or not as many captions as images.
  """
  if not len(images):
    raise BadRequest("a sheet needs at least one picture")
  if columns < 1:
    raise BadRequest(f"a sheet can't have {columns} columns; give 1 or more")
  if captions is not None and len(captions) != len(images):
    raise BadRequest(f"a sheet of {len(images)} pictures needs as many captions, got {len(captions)}")
  tiles = [_enlarge(image, tile) for image in images]
  columns = min(columns, len(tiles))
  gap, line = 8, round(font_size * 1.35)
  font = ImageFont.load_default(font_size)
  cell = max(t.shape[1] for t in tiles)
  texts = [_wrap(caption, font, cell, max_lines) for caption in captions] if captions is not None else [[]] * len(tiles)

  rows = [range(i, min(i + columns, len(tiles))) for i in range(0, len(tiles), columns)]
  picture_heights = [max(tiles[i].shape[0] for i in row) for row in rows]
  text_heights = [max(len(texts[i]) for i in row) * line for row in rows]
  row_heights = [p + t + (4 if t else 0) for p, t in zip(picture_heights, text_heights, strict=True)]
  size = (columns * (cell + gap) + gap, sum(row_heights) + gap * (len(rows) + 1))
  sheet = Image.new("RGB", size, WHITE)
  draw = ImageDraw.Draw(sheet)
  y = gap
  for row, picture_height, row_height in zip(rows, picture_heights, row_heights, strict=True):
    for column, i in enumerate(row):
      x = gap + column * (cell + gap)
      # Centred above the caption, standing on the row's common base line.
      at = (x + (cell - tiles[i].shape[1]) // 2, y + picture_height - tiles[i].shape[0])
      sheet.paste(Image.fromarray(tiles[i]), at)
      for k, words in enumerate(texts[i]):
        draw.text((x, y + picture_height + 4 + k * line), words, fill=(0, 0, 0), font=font)
    y += row_height + gap
  return np.array(sheet)


def _enlarge(pixels: np.ndarray, least: int) -> np.ndarray:
  check_pixels(pixels)
  factor = -(-least // min(pixels.shape[:2]))
  return pixels.repeat(factor, 0).repeat(factor, 1) if factor > 1 else pixels


def _wrap(text: str, font: Any, width: int, max_lines: int) -> list[str]:
  """Breaks a text into lines no wider than `width`, at spaces where possible."""
  lines = []
  for paragraph in text.splitlines():
    line = ""
    for word in paragraph.split():
      if line and font.getlength(f"{line} {word}") <= width:
        line = f"{line} {word}"
        continue
      if line:
        lines.append(line)
      while len(word) > 1 and font.getlength(word) > width:
        n = next((n for n in range(len(word) - 1, 1, -1) if font.getlength(word[:n]) <= width), 1)
        lines.append(word[:n])
        word = word[n:]
      line = word
    lines.append(line)
  if len(lines) > max_lines:
    lines = [*lines[: max_lines - 1], lines[max_lines - 1][:-1] + "…"]
  return lines
