"""clean-fid's rules of pictures: which files of a folder it takes, how it reads them, how it resizes them for the network."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
import PIL.Image

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.benchmarks import arrays, reading
from orthus_jax.files import first_line

EXTENSIONS = ("bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp", "npy", "JPEG", "JPG", "PNG")
MODES = ("clean", "legacy_pytorch", "legacy_tensorflow", "bytes")


def listed(folder: str | Path) -> list[Path]:
  """The files that the tool takes of a folder and what is below it, in its order, which is by path.

  Names that begin with a full stop, and endings such as .Png and .TIF, aren't taken.

  Raises:
    BadRequest: if the folder isn't there, or has none.
  """
  folder = reading.existing(folder, "pictures for FID", folder=True)
  inside = os.path.join(glob.escape(str(folder)), "**", "*.")
  found = sorted({f for ending in EXTENSIONS for f in glob.glob(inside + ending, recursive=True) if os.path.isfile(f)})
  if not found:
    raise BadRequest(f"{folder} has no picture whose name ends in {', '.join(EXTENSIONS)}")
  return [Path(f) for f in found]


def read(file: str | Path) -> np.ndarray:
  """A picture as the tool reads it, [height, width, 3].

  Alpha is dropped, 16-bit gray saturates, the orientation is passed over; an array is taken as it is.

  Raises:
    BadRequest: if it can't be read.
  """
  file = reading.existing(file, "a picture for FID")
  if file.suffix == ".npy":
    pixels_HWC = arrays.load(file, "a picture [height, width, 3]")[""]
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] < 3 or not pixels_HWC.size or pixels_HWC.dtype.kind not in "fiub":
      raise BadRequest(f"{file} is {pixels_HWC.dtype} {list(pixels_HWC.shape)}, and no picture [height, width, 3]")
    return pixels_HWC
  try:
    with PIL.Image.open(file) as image:
      return np.asarray(image.convert("RGB"))
  except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as e:
    raise BadRequest(f"{file} can't be read as a picture: {first_line(e)}") from e


def resized(pixels_HWC: np.ndarray, mode: str = "clean", size: tuple[int, int] = (299, 299)) -> np.ndarray:
  """A picture as the network gets it.

  Args:
    pixels_HWC: from `read`.
    mode: "clean" (bicubic with antialias, each channel as floats, clipped to 0..255 once at the end), "legacy_pytorch"
      (bilinear, no antialias), "legacy_tensorflow" (as it is: that network resizes by itself) or "bytes" (Pillow's bicubic).
    size: width and height.

  Returns:
    float32 [height, width, 3] in 0..255; bytes where the mode has bytes.
  """
  if mode == "legacy_tensorflow":
    return pixels_HWC
  pixels_HWC = pixels_HWC[..., :3]
  if mode == "bytes":
    return np.asarray(PIL.Image.fromarray(pixels_HWC).resize(size, PIL.Image.Resampling.BICUBIC))
  channels_CHW = np.moveaxis(pixels_HWC, 2, 0).astype(np.float32)
  if mode == "clean":
    channels = [np.asarray(PIL.Image.fromarray(c_HW).resize(size, PIL.Image.Resampling.BICUBIC)) for c_HW in channels_CHW]
  elif mode == "legacy_pytorch":
    channels = [_bilinear(_bilinear(c_HW, size[1]).T, size[0]).T for c_HW in channels_CHW]
  else:
    raise BadRequest(f"no resize is called {mode!r}: {', '.join(MODES)}")
  return np.stack(channels, 2).clip(0, 255)


def _bilinear(values_HW: np.ndarray, size: int) -> np.ndarray:
  """Resizes along the first axis, by the two nearest pixels' centres."""
  n = len(values_HW)
  at_S = np.maximum((np.arange(size, dtype=np.float32) + 0.5) * np.float32(n / size) - 0.5, 0)
  low_S = np.minimum(at_S.astype(np.int64), n - 1)
  share_S1 = (at_S - low_S).astype(np.float32)[:, None]
  return values_HW[low_S] * (1 - share_S1) + values_HW[np.minimum(low_S + 1, n - 1)] * share_S1
