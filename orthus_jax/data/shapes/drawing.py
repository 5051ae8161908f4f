"""Scenes of shapes as pictures with smooth edges."""

from __future__ import annotations

import functools

import numpy as np

from orthus_jax.data.shapes.world import BACKGROUND, CANVAS, CELL_CENTERS, PLACES, REACH, RESOLUTIONS, RGB, SCALE, SHAPES, Scene
from orthus_jax.errors import BadRequest

_CROSS_ARM = 1.2  # half the width of a large cross's bars


def center_of(place: str, jitter: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
  """The centre (x, y) of a thing, in units of a 32-pixel picture."""
  row, column = divmod(PLACES.index(place), 3)
  return CELL_CENTERS[column] + jitter[0], CELL_CENTERS[row] + jitter[1]


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, reach: float) -> np.ndarray:
  """Distance to a shape's edge, negative inside; exact across straight edges, a bound near corners.

  Args:
    shape: one of SHAPES.
    x: horizontal offsets from the middle of its bounding box, rightwards.
    y: vertical offsets, downwards; broadcasts against x.
    reach: half the width and height of the bounding box.
  """
  if shape == "circle":
    return np.hypot(x, y) - reach
  ax, ay = np.abs(x), np.abs(y)
  if shape == "square":
    return np.maximum(ax, ay) - reach
  if shape == "diamond":
    return (ax + ay - reach) * 0.5**0.5
  if shape == "triangle":
    # Apex (0, -reach), base y = reach from -reach to reach.
    return np.maximum(y - reach, (2 * ax - y - reach) / 5**0.5)
  if shape == "cross":
    arm = reach * _CROSS_ARM / REACH["cross"]
    u, v = np.abs(x + y) * 0.5**0.5, np.abs(x - y) * 0.5**0.5
    return np.maximum(np.minimum(u, v) - arm, np.maximum(u, v) - (reach * 2**0.5 - arm))
  raise BadRequest(f"no shape is called {shape!r}; the shapes are {', '.join(SHAPES)}")


def coverage(shape: str, size: str, x: float, y: float, height: int, width: int, scale: float = 1.0) -> np.ndarray:
  """How much of each pixel a thing covers.

  Args:
    shape: one of SHAPES.
    size: one of SIZES.
    x: its centre, in pixels from the left edge.
    y: its centre, in pixels from the top edge.
    height: rows of the result.
    width: columns of the result.
    scale: pixels per unit, resolution / 32.

  Returns:
    float32 [height, width] within [0, 1].
  """
  columns = np.arange(width, dtype=np.float32) + np.float32(0.5 - x)
  rows = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - y)
  reach = REACH[shape] * SCALE[size] * scale
  return np.clip(0.5 - signed_distance(shape, columns, rows, reach), 0.0, 1.0).astype(np.float32)


@functools.lru_cache(maxsize=8192)
def _stencil(shape: str, size: str, x: float, y: float, side: int, scale: float) -> np.ndarray:
  alpha = coverage(shape, size, x, y, side, side, scale)[..., None]
  alpha.flags.writeable = False
  return alpha


_RGB_ARRAYS = {name: np.asarray(rgb, np.float32) for name, rgb in RGB.items()}


def render(scene: Scene, resolution: int = 32) -> np.ndarray:
  """Draws a scene with smooth edges.

  Args:
    scene: what to draw.
    resolution: side of the picture in pixels, one of RESOLUTIONS.

  Returns:
    uint8 [resolution, resolution, 3].

  Raises:
    BadRequest: for another resolution.
  """
  if resolution not in RESOLUTIONS:
    raise BadRequest(f"shapes are drawn at {', '.join(map(str, RESOLUTIONS))} pixels, not {resolution}; choose one")
  scale = resolution / CANVAS
  side = int(11 * scale)
  picture = np.empty((resolution, resolution, 3), np.float32)
  picture[:] = BACKGROUND
  for thing, jitter in zip(scene.things, scene.jitter):
    x, y = center_of(thing.place, jitter)
    left, top = int((x - 5.25) * scale), int((y - 5.25) * scale)
    left, top = (min(max(v, 0), resolution - side) for v in (left, top))
    alpha = _stencil(thing.shape, thing.size, round(x * scale - left, 3), round(y * scale - top, 3), side, scale)
    patch = picture[top:top + side, left:left + side]
    patch += alpha * (_RGB_ARRAYS[thing.color] - patch)
  return (picture + 0.5).astype(np.uint8)
