"""Small line charts as inline SVG, for pages that must stand alone."""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26


def ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten, about `most` of them."""
  if not high > low:
    return [low]
  rough = (high - low) / most
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
  """A short label: 1200 → 1.2k, 0.002 → 0.002, 0.00002 → 2e-5."""
  if value == 0:
    return "0"
  size = abs(value)
  if size >= 1e6:
    return f"{value / 1e6:.4g}M"
  if size >= 1e3:
    return f"{value / 1e3:.4g}k"
  if size >= 1e-3:
    return f"{value:.4g}"
  mantissa, exponent = f"{value:.1e}".split("e")
  return f"{float(mantissa):g}e{int(exponent)}"


def smooth(values: Sequence[float], width: float) -> np.ndarray:
  """A running mean with Gaussian weights of a standard deviation of `width` values; it doesn't lag behind."""
  reach = max(int(3 * width), 1)
  weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width, 1e-9)) ** 2)
  padded = np.pad(np.asarray(values, np.float64), reach)
  inside = np.pad(np.ones(len(values)), reach)
  # Only what there is counts near the ends.
  return np.convolve(padded, weights, "valid") / np.convolve(inside, weights, "valid")


def line_chart(xs: Sequence[float], ys: Sequence[float], *, label: str, smoothed: bool = True) -> str:
  """One curve with axes; where it is noisy, a smoothed line over the faint raw one.

  Colours come from the page's CSS classes `axis`, `raw` and `line`.

  Args:
    xs: increasing, as many as ys.
    ys: values; those that aren't finite are left out.
    label: said to readers who can't see the chart.
    smoothed: draw the smoothed line too.

  Returns:
    An <svg> element; a note in words where there are fewer than two values.
  """
  points = [(float(x), float(y)) for x, y in zip(xs, ys) if y is not None and math.isfinite(y)]
  if len(points) < 2:
    return '<p class="quiet">too few values for a curve</p>'
  x, y = np.asarray(points).T
  low, high = _range(y)
  left, right = float(x[0]), float(x[-1])

  def at(px: float, py: float) -> tuple[float, float]:
    u = _LEFT + (px - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
    v = _HEIGHT - _BOTTOM - (py - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
    return u, min(max(v, _TOP), _HEIGHT - _BOTTOM)

  def path(values: np.ndarray, css: str) -> str:
    places = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at(*p) for p in zip(x, values)))
    return f'<polyline class="{css}" points="{places}"/>'

  parts = []
  for tick in ticks(low, high, 4):
    _, v = at(left, tick)
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{v:.1f}" y2="{v:.1f}"/>'
                 f'<text x="{_LEFT - 6}" y="{v + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
  for tick in ticks(left, right, 5):
    u, _ = at(tick, low)
    # A label at either end leans inwards, so that it isn't cut.
    parts.append(f'<text x="{u:.1f}" y="{_HEIGHT - 8}" text-anchor="{"end" if u > _WIDTH - 24 else "middle"}">'
                 f'{number(tick)}</text>')
  parts.append(path(y, "raw" if smoothed else "line"))
  if smoothed:
    parts.append(path(smooth(y, len(y) / 50), "line"))
  return (f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
          f'{"".join(parts)}</svg>')


def _range(y: np.ndarray) -> tuple[float, float]:
  """The axis' ends: all values but the steepest start, from zero where zero is near, rounded to a tick."""
  low, high = float(y.min()), float(np.quantile(y, 0.98) if len(y) > 20 else y.max())
  if high <= low:
    high = low + max(abs(low), 1.0) * 0.1
  if 0 <= low < 0.4 * high:
    low = 0.0
  marks = ticks(low, high, 4)
  step = marks[1] - marks[0] if len(marks) > 1 else high - low
  return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
