"""The judge: reads a picture of the `shapes` world and says what is in it.

Right on every freshly drawn scene of its tests, and steady on what a small generative model draws: a picture's own
background sets the white, colours are told from whole things rather than from pixels, and a shape is the template,
sharp or soft, that covers the same pixels best.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
import dataclasses
import functools

import numpy as np
from scipy import ndimage

from orthus_jax.data.shapes import drawing, world
from orthus_jax.data.shapes.world import COLORS, PLACES, REACH, SCALE, SHAPES, SIZES, Thing
from orthus_jax.errors import BadRequest

_SIDE = 32  # larger pictures are averaged down to this: it holds all there is to tell
_HALF = 7  # half of a patch: the way from a triangle's centroid to its apex, a template's offset and an edge
_OFFSETS = np.arange(-0.75, 0.76, 0.25)
_SOFTNESS = (0.0, 0.6, 1.1)  # standard deviations of blur, in pixels
_THRESHOLD = 0.45  # coverage that counts as inside; two neighbours' edges together stay below it
_LARGEST = 2 * max(REACH.values()) + 2.5  # a wider component is several things that touch
_SMALLEST_AREA = 6
_FAINTEST = 0.7
MIN_SCORE = 0.55  # random blotches mostly score less, pictures with noise of 20 or a tenth of distortion more

_BACKGROUND = np.asarray(world.BACKGROUND, np.float32)
_PALETTE = np.asarray([world.RGB[c] for c in COLORS], np.float32)


@dataclasses.dataclass(frozen=True)
class Detection:
  """One thing found in a picture.

  Attributes:
    shape: one of world.SHAPES.
    color: one of world.COLORS.
    size: one of world.SIZES.
    place: the cell whose middle is nearest, one of world.PLACES.
    box: x0, y0, x1, y1 in pixels of the picture.
    center: x, y in pixels of the picture.
    score: 1 for a perfect likeness, less the less it looks like its shape and colour.
  """

  shape: str
  color: str
  size: str
  place: str
  box: tuple[float, float, float, float]
  center: tuple[float, float]
  score: float

  @property
  def thing(self) -> Thing:
    return Thing(self.shape, self.color, self.size, self.place)


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray, list[tuple[str, str, float, float]]]:
  """Coverages [templates, pixels of a patch] with the centroid near the patch's middle, their squared norms, and
  what each one shows: shape, size, and the offset (x, y) of its bounding box's middle from the patch's."""
  side, middle = 2 * _HALF + 1, _HALF + 0.5
  patches, labels = [], []
  for shape in SHAPES:
    for size in SIZES:
      # A triangle's centroid lies a third of its reach below the middle of its box.
      for dy in _OFFSETS - (REACH[shape] * SCALE[size] / 3 if shape == "triangle" else 0.0):
        for dx in _OFFSETS:
          sharp = drawing.coverage(shape, size, middle + dx, middle + dy, side, side)
          for sigma in _SOFTNESS:
            patches.append((ndimage.gaussian_filter(sharp, sigma) if sigma else sharp).ravel())
            labels.append((shape, size, float(dx), float(dy)))
  bank = np.stack(patches).astype(np.float32)
  return bank, np.einsum("ij,ij->i", bank, bank), labels


def detect(pixels: np.ndarray, *, min_score: float = MIN_SCORE) -> list[Detection]:
  """Finds the things in a picture.

  Args:
    pixels: uint8 [R, R, 3], R a multiple of 32.
    min_score: blotches that look less than this like any thing are dropped.

  Returns:
    Detections, from top left to bottom right.

  Raises:
    BadRequest: for pictures of another form.
  """
  pixels = np.asarray(pixels)
  if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.shape[0] != pixels.shape[1] or pixels.shape[0] % _SIDE:
    raise BadRequest(f"the shapes detector reads square RGB pictures of a multiple of 32 pixels, not {pixels.shape}")
  factor = pixels.shape[0] // _SIDE
  picture = pixels.astype(np.float32)
  if factor > 1:
    picture = picture.reshape(_SIDE, factor, _SIDE, factor, 3).mean((1, 3))
  white = _white(picture)
  palette = np.clip(_PALETTE * (white / _BACKGROUND), 0, 255)
  rays = palette - white
  offset = picture - white
  labels, nearest = _components(offset, rays)
  found = []
  for index in range(1, labels.max() + 1):
    detection = _identify(offset, labels == index, nearest == index, rays, factor)
    if detection is not None and detection.score >= min_score:
      found.append(detection)
  return sorted(found, key=lambda d: PLACES.index(d.place))


def _white(picture: np.ndarray) -> np.ndarray:
  """The background's colour: most of a picture is background, whatever its cast."""
  white = np.median(picture.reshape(-1, 3), axis=0)
  return white if np.abs(white - _BACKGROUND).max() < 60 else _BACKGROUND


def _unmix(offset: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For pixels as mixtures of background and one colour, how much there is of each colour, and the squared misfit.

  Args:
    offset: [..., 3], pixels less background.
    rays: [C, 3], colours less background.

  Returns:
    Amounts within [0, 1] and misfits, both [..., C].
  """
  norms = np.einsum("ij,ij->i", rays, rays)
  along = offset @ rays.T
  amount = np.clip(along / norms, 0.0, 1.0)
  misfit = np.einsum("...i,...i->...", offset, offset)[..., None] - 2 * amount * along + amount**2 * norms
  return amount, misfit


def _components(offset: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the blotches from 1, 0 elsewhere; and for each pixel the number of the nearest blotch."""
  amount, misfit = _unmix(offset, rays)
  best = misfit.argmin(-1)
  coverage = np.take_along_axis(amount, best[..., None], -1)[..., 0]
  labels, count = ndimage.label(coverage > _THRESHOLD, np.ones((3, 3), bool))
  for index, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
    if max(rows.stop - rows.start, columns.stop - columns.start) > _LARGEST:
      # Things that touch: cut along the grid.
      y, x = np.nonzero(labels == index)
      edges = np.convolve(world.CELL_CENTERS, (0.5, 0.5), "valid")
      cells = 3 * np.searchsorted(edges, y + 0.5) + np.searchsorted(edges, x + 0.5)
      labels[y, x] = np.where(cells == cells.min(), index, count + cells)
      count += 9
  if not count:
    return labels, labels
  rows, columns = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
  return labels, labels[rows, columns]


def _identify(offset: np.ndarray, blotch: np.ndarray, region: np.ndarray, rays: np.ndarray,
              factor: int) -> Detection | None:
  if blotch.sum() < _SMALLEST_AREA:
    return None
  # The core tells the colour: edges are mixtures, and towards the background all colours meet.
  inside = offset[blotch]
  strength = np.linalg.norm(inside, axis=-1)
  core = inside[strength >= 0.85 * np.quantile(strength, 0.9)].mean(0)
  norms = np.linalg.norm(rays, axis=-1)
  amounts = np.clip(core @ rays.T / norms**2, 0.6, 1.1)
  distances = np.linalg.norm(core - amounts[:, None] * rays, axis=-1)
  color = int(distances.argmin())
  coverage = np.clip(offset @ rays[color] / norms[color] ** 2, 0.0, 1.0) * region

  y, x = (int(round(float(v))) for v in ndimage.center_of_mass(coverage * blotch))
  padded = np.pad(coverage, _HALF)
  patch = padded[y:y + 2 * _HALF + 1, x:x + 2 * _HALF + 1].ravel()
  bank, squares, labels = _templates()
  along = bank @ patch
  gain = np.clip(along / squares, _FAINTEST, 1.0)  # a pale thing is still a thing
  best = int((gain * (2 * along - gain * squares)).argmax())
  shape, size, dx, dy = labels[best]
  likeness = gain[best] * bank[best]
  overlap = float(np.minimum(likeness, patch).sum() / np.maximum(likeness, patch).sum())

  center_x, center_y = x + 0.5 + dx, y + 0.5 + dy
  reach = REACH[shape] * SCALE[size]
  column, row = (int(np.abs(np.subtract(world.CELL_CENTERS, v)).argmin()) for v in (center_x, center_y))
  box = (center_x - reach, center_y - reach, center_x + reach, center_y + reach)
  left, top, right, bottom = (float(v * factor) for v in box)
  return Detection(
      shape=shape, color=COLORS[color], size=size, place=PLACES[3 * row + column],
      box=(left, top, right, bottom), center=(float(center_x * factor), float(center_y * factor)),
      score=overlap * float(np.exp(-0.5 * (distances[color] / 80.0) ** 2)))


# --- judging --------------------------------------------------------------------------------------------------------


def matches(detections: Iterable[Detection], things: Iterable[Thing]) -> bool:
  """Whether a picture shows exactly these things, in any order: shape, colour, size and place."""
  return collections.Counter(d.thing for d in detections) == collections.Counter(things)
