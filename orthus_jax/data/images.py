"""Pictures from outside: read, fitted to a resolution, scaled for a model, written."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
import stat
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from orthus_jax.config import PixelsConfig
from orthus_jax.data import picture_metadata
from orthus_jax.errors import BadRequest
from orthus_jax.files import first_line

MAX_PIXELS = 100_000_000

_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN}
WHITE = (255, 255, 255)
# Of strips longer than this many squares only the square that is kept is resampled: the whole might fill the memory.
# Not of others: Pillow picks the order of its two passes by their cost, and where a pass clips the order is seen.
_STRIP = 8
# Pillow's convert() clips these to 8 bits where it should scale.
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_BYTES = (bytes, bytearray, memoryview)


def load_image(source: str | os.PathLike | bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Reads a picture of any kind as RGB, upright, with transparency blended on white.

  Args:
    source: a file's path, or a file's bytes.
    max_pixels: a larger picture is refused before it is decoded.

  Returns:
    uint8 [height, width, 3].

  Raises:
    BadRequest: there is no such file, it can't be decoded, or it is too large or empty; the message names the file.
    OSError: the file system fails in a way that may pass.
  """
  return load_picture(source, max_pixels=max_pixels)[0]


def load_picture(source: str | os.PathLike | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, bool]:
  """As `load_image`; and whether it is a JPEG file of exactly these pixels, and no larger than half of them."""
  name = f"the picture of {len(source)} bytes" if isinstance(source, _BYTES) else f"the picture {os.fspath(source)!r}"
  try:
    if not isinstance(source, _BYTES) and not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would be waited for
      raise BadRequest(f"{name} is no file; check its path")
    return _decode(source, name, max_pixels)
  except (BadRequest, MemoryError):
    raise
  except FileNotFoundError as e:
    raise BadRequest(f"{name} doesn't exist; check its path") from e
  except Exception as e:
    if isinstance(e, OSError) and e.errno in _PASSING:
      raise
    try:
      if (bare := picture_metadata.without(source)) is not None:
        return _decode(bare, name, max_pixels)[0], False
    except (BadRequest, MemoryError):
      raise
    except Exception:
      pass  # it isn't its metadata
    if isinstance(e, UnidentifiedImageError):
      raise BadRequest(f"{name} isn't in a format that can be read; give PNG, JPEG, WebP or the like") from e
    # Decoders fed with broken files raise whatever they stumble over: OSError, SyntaxError, struct.error, IndexError, …
    raise BadRequest(f"{name} can't be read as a picture: {first_line(e)}") from e


def _decode(source: str | os.PathLike | bytes, name: str, max_pixels: int) -> tuple[np.ndarray, bool]:
  with Image.open(io.BytesIO(source) if isinstance(source, _BYTES) else source) as image:
    width, height = image.size
    if width * height > max_pixels:
      raise BadRequest(f"{name} has {width}x{height} pixels, more than the {max_pixels:,} allowed; make it smaller")
    if width < 1 or height < 1:
      raise BadRequest(f"{name} has no pixels ({width}x{height})")
    image.load()
    upright = _upright(image)
    pixels = np.array(_to_rgb(upright))
    plain = image.format == "JPEG" and image.mode == "RGB" and upright is image
    size = (len(source) if isinstance(source, _BYTES) else os.path.getsize(source)) if plain else 0
    return pixels, plain and 2 * size <= pixels.size


def fit(pixels: np.ndarray, resolution: int, config: PixelsConfig) -> np.ndarray:
  """Scales the shortest edge to a resolution and cuts the centre square out, as the published Chameleon processor does.

  Args:
    pixels: uint8 [height, width, 3].
    resolution: edge of the square, in pixels.
    config: the filter.

  Returns:
    uint8 [resolution, resolution, 3]; the argument itself where it has that size already.
  """
  check_pixels(pixels)
  if resolution < 1:
    raise BadRequest(f"a picture can't be fitted to a resolution of {resolution}; give 1 or more")
  height, width = pixels.shape[:2]
  if height == width == resolution:
    return pixels
  image = Image.fromarray(pixels)
  resample = Image.Resampling[config.resample.upper()]
  scaled = [resolution * edge // min(height, width) for edge in (width, height)]
  left, top = [(edge - resolution) // 2 for edge in scaled]
  if max(scaled) <= _STRIP * resolution:
    whole = image.resize(scaled, resample)
    return np.array(whole.crop((left, top, left + resolution, top + resolution)))
  x = [width * at / scaled[0] for at in (left, left + resolution)]
  y = [height * at / scaled[1] for at in (top, top + resolution)]
  box = (x[0], y[0], min(x[1], width), min(y[1], height))
  return np.array(image.resize((resolution, resolution), resample, box=box))


def to_model(pixels: Any, config: PixelsConfig) -> Any:
  """float32 (x · scale − mean) / std of uint8 pixels [..., 3]; numpy in, numpy out, and likewise for jax.

  As published: x · 0.0078 − 1.
  """
  return (pixels.astype("float32") * config.scale - _channels(config.mean)) / _channels(config.std)


def from_model(values: Any, config: PixelsConfig) -> Any:
  """The uint8 pixels of a model's values [..., 3], rounded and clipped: the inverse of `to_model`.

  As published: (x + 1) / 0.0078.
  """
  scaled = values.astype("float32") * _channels(config.std) + _channels(config.mean)
  return (scaled / config.scale).round().clip(0, 255).astype("uint8")


def to_unit(values: Any, config: PixelsConfig) -> Any:
  """A model's values [..., 3] as pixels in [-1, 1], which is what other networks take; neither rounded nor clipped."""
  return (values * _channels(config.std) + _channels(config.mean)) / (127.5 * config.scale) - 1.0


def _channels(values: tuple[float, float, float]) -> Any:
  """One number where the channels are alike, so that the published scaling is plain arithmetic."""
  return values[0] if len(set(values)) == 1 else np.asarray(values, np.float32)


def png_bytes(pixels: np.ndarray, *, level: int = 6) -> bytes:
  """uint8 pixels [height, width, 3] as a PNG file's bytes; the same pixels and level, zlib's, give the same bytes."""
  check_pixels(pixels)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format="PNG", compress_level=level)
  return buffer.getvalue()


def save_png(path: str | os.PathLike, pixels: np.ndarray, *, level: int = 6) -> Path:
  """Writes a PNG file, whole or not at all, into a directory made if absent.

  Args:
    path: where to; an existing file is replaced.
    pixels: uint8 [height, width, 3].
    level: of zlib, 0..9: 1 takes a fifth of the time, and some more bytes.

  Returns:
    The path.
  """
  path = Path(path)
  data = png_bytes(pixels, level=level)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_bytes(data)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return path


def check_pixels(pixels: np.ndarray) -> None:
  """Refuses what is no picture: uint8 [height, width, 3]."""
  if getattr(pixels, "dtype", None) != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
    raise BadRequest(
        f"a picture needs uint8 pixels [height, width, 3], got {getattr(pixels, 'dtype', type(pixels).__name__)}"
        f" {getattr(pixels, 'shape', '')}"
    )


def _upright(image: Image.Image) -> Image.Image:
  """Turned as its metadata say. ImageOps.exif_transpose writes them anew too, which fails where any value in them is broken."""
  orientation = picture_metadata.orientation(image.info.get("exif") or b"")
  if not orientation:
    try:
      orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # nothing in them can be read
      return image
  turn = _TURNS.get(orientation)
  return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode in _SIXTEEN_BIT:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
      raise ValueError("its 32-bit values are beyond 16 bits; convert it to 8 bits a channel")
    return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
  if image.mode == "F":
    raise ValueError("floating-point pixels have no known range; convert it to 8 bits a channel")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
  return image if image.mode == "RGB" else image.convert("RGB")
