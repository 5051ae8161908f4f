"""How `orthus runs watch` shows runs: one on a page, several a row each."""

from __future__ import annotations

from collections.abc import Sequence
import math
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orthus_jax.progress import duration
from orthus_jax.training.goodput import PARTS
from orthus_jax.training.snapshot import Snapshot

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVES = ("loss", "text_loss", "image_loss")
_SPARKS = 40  # letters of a curve
_SHOWN = 3  # parts of the time, in a row


def sparkline(values: Sequence[float], width: int = _SPARKS) -> str:
  """A curve in one line of text: means of `width` equal stretches, their logarithms where all are above 0."""
  if not values:
    return ""
  width = min(width, len(values))
  bounds = [len(values) * i // width for i in range(width + 1)]
  means = [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:])]
  means = [math.log(m) for m in means] if min(means) > 0 else means
  low, high = min(means), max(means)
  scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
  return "".join(_BLOCKS[round((m - low) * scale)] for m in means)


def page(s: Snapshot) -> RenderableType:
  """One run."""
  colour = "green" if s.running or s.finished else "yellow"
  starts = f", start {s.spent.starts}" if s.spent.starts > 1 else ""
  silent = "" if s.finished or s.age is None or s.age < 60 else f", last sign of life {duration(s.age)} ago"
  head = Text.assemble((str(s.run), "bold"), "  ", (s.state, colour), starts, silent)
  grid = Table.grid(padding=(0, 2))
  grid.add_column(style="dim", no_wrap=True)
  grid.add_column(overflow="fold")

  def row(name: str, *parts: str | tuple[str, str]) -> None:
    grid.add_row(name, Text.assemble(*parts))

  for name in _CURVES:
    if name in s.metrics:
      value = (f"{_number(s, name, '.4g'):<9} ", "" if math.isfinite(s.metrics[name]) else "bold red")
      row(name, value, (sparkline(s.series.get(name, [])), "cyan"))
  if speed := _speed(s):
    row("speed", speed)
  if s.spent.starts:
    row("time", s.spent.told())
  if s.saved:
    row("checkpoint", f"step {s.saved[0]:,}, {duration(s.saved[1])} ago")
  if s.samples:
    row("samples", str(s.samples))
  if s.hosts:
    row("hosts", _hosts(s))
  for i, line in enumerate(s.remarks):
    row("" if i else "remarks", (line, "yellow" if "WARNING" in line or "ERROR" in line else ""))
  return Group(head, _progress(s), grid)


def table(snapshots: Sequence[Snapshot], place: Path) -> RenderableType:
  """Several runs, named from the directory that they lie in."""
  out = Table(box=None, pad_edge=False, padding=(0, 2))
  for name in ("run", "state"):
    out.add_column(name, overflow="fold")
  for name in ("step", "left", "loss", "tokens/s"):
    out.add_column(name, justify="right", no_wrap=True)
  out.add_column("time", overflow="fold")
  for s in snapshots:
    shares = sorted(((v, p) for p, v in s.spent.shares().items() if v >= 0.005), reverse=True)[:_SHOWN]
    out.add_row(
        Text(str(s.run.relative_to(place))), Text(s.state), f"{s.step:,}/{s.steps:,}" if s.steps else f"{s.step:,}",
        "" if s.left is None else duration(s.left), _number(s, "loss", ".4g"), _number(s, "tokens_per_second", ",.0f"),
        ", ".join(f"{PARTS[p]} {v:.0%}" for v, p in shares),
    )  # fmt: skip
  return out


def _progress(s: Snapshot) -> RenderableType:
  if not s.steps:
    return Text(f"step {s.step:,}")
  line = Table.grid(padding=(0, 2))
  left = "" if s.left is None else f"{duration(s.left)} left"
  done = f"step {s.step:,} of {s.steps:,}"
  line.add_row(done, ProgressBar(total=s.steps, completed=min(s.step, s.steps), width=_SPARKS), f"{s.step / s.steps:.0%}", left)
  return line


def _speed(s: Snapshot) -> str:
  said = {
      "tokens_per_second": "{:,.0f} tokens/s", "mfu_causal": "MFU {:.1%}", "data_wait": "{:.0%} waiting for data",
      "skipped": "{:.0f} updates skipped",
  }  # fmt: skip
  # What is nothing needn't be told.
  return ", ".join(text.format(s.metrics[n]) for n, text in said.items() if math.isfinite(s.metrics.get(n) or math.nan))


def _hosts(s: Snapshot) -> str:
  names = list(dict.fromkeys(s.hosts))
  shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if names[6:] else "")
  number = s.metrics.get("straggler", -1)
  slow = int(number) if math.isfinite(number) else -1
  held = f"; process {slow} on {s.hosts[slow]} holds the others up" if 0 <= slow < len(s.hosts) else ""
  return (f"{len(s.hosts)} processes on {shown}" if s.hosts[1:] else shown) + held


def _number(s: Snapshot, name: str, form: str) -> str:
  value = s.metrics.get(name)
  return "" if value is None else format(value, form) if math.isfinite(value) else "not finite"
