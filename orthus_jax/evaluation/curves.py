"""Small line charts as inline SVG, for pages that must stand alone."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import html
import math

import numpy as np

_WIDTH, _HEIGHT = 360, 190
_TOO_FEW = '<p class="quiet">too few values for a curve</p>'
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26


def ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten, about `most` of them."""
  if not high > low:
    return [low]
  rough = (high - low) / most
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  digits = 12 - min(math.floor(math.log10(step)), 0)  # behind the point: a range of 1e-14 has ticks too
  return [round(i * step, digits) for i in range(first, last + 1)]


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
  mantissa, exponent = f"{value:.2e}".split("e")
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
  points = _finite(xs, ys)
  if len(points) < 2:
    return _TOO_FEW
  x, y = np.asarray(points).T
  lines = [(x, y, "raw" if smoothed else "line")]
  if smoothed:
    lines.append((x, smooth(y, len(y) / 50), "line"))
  return _chart(lines, *_range(y), label)


@dataclasses.dataclass(frozen=True)
class Series:
  """One thing of several in a chart.

  Attributes:
    css: class of its lines, which gives the colour.
    runs: (xs, ys) of each; they may end at different places.
  """

  css: str
  runs: Sequence[tuple[Sequence[float], Sequence[float]]]


def series_chart(series: Sequence[Series], *, label: str, smoothed: bool = True) -> str:
  """Several things with axes: each one's mean over its runs, the runs themselves faint behind it.

  The mean is drawn as far as all its runs go.

  Args:
    series: those with fewer than two values are left out.
    label: said to readers who can't see the chart.
    smoothed: smooth all lines.

  Returns:
    An <svg> element; a note in words where there is nothing to draw.
  """
  faint, strong, every = [], [], []
  for one in series:
    runs = []
    for xs, ys in one.runs:
      if len(points := _finite(xs, ys)) > 1:
        x, y = np.asarray(points).T
        every.append(y)
        runs.append((x, smooth(y, len(y) / 50) if smoothed else y))
    if not runs:
      continue
    if len(runs) > 1:
      faint += [(x, y, f"raw {one.css}") for x, y in runs]
    x = functools.reduce(np.intersect1d, (x for x, _ in runs))
    if len(x) > 1:
      strong.append((x, np.mean([np.interp(x, *run) for run in runs], axis=0), f"line {one.css}"))
  if not every:
    return _TOO_FEW
  ranges = [_range(y) for y in every]
  return _chart([*faint, *strong], min(low for low, _ in ranges), max(high for _, high in ranges), label)


_Line = tuple[np.ndarray, np.ndarray, str]  # xs, ys, CSS classes


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
  return [(float(x), float(y)) for x, y in zip(xs, ys) if y is not None and math.isfinite(y)]


def _chart(lines: Sequence[_Line], low: float, high: float, label: str) -> str:
  left, right = float(min(x[0] for x, _, _ in lines)), float(max(x[-1] for x, _, _ in lines))

  def at(px: float, py: float) -> tuple[float, float]:
    u = _LEFT + (px - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
    v = _HEIGHT - _BOTTOM - (py - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
    return u, min(max(v, _TOP), _HEIGHT - _BOTTOM)

  def path(line: _Line) -> str:
    places = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at(*p) for p in zip(line[0], line[1])))
    return f'<polyline class="{line[2]}" points="{places}"/>'

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
  parts += map(path, lines)
  return (f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">'
          f'{"".join(parts)}</svg>')


def _range(y: np.ndarray) -> tuple[float, float]:
  """The axis' ends: all values but the steepest start, from zero where zero is near, rounded to a tick."""
  low, high = float(y.min()), float(np.quantile(y, 0.98) if len(y) > 20 else y.max())
  if high <= low:
    high = low + (abs(low) if abs(low) > 1e-300 else 1.0) * 0.1  # a tenth of less than that may be nothing
  if 0 <= low < 0.4 * high:
    low = 0.0
  marks = ticks(low, high, 4)
  step = marks[1] - marks[0] if len(marks) > 1 else high - low
  return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
