"""A progress bar, and times for people."""

from __future__ import annotations

from collections.abc import Callable
import sys
import time

import tqdm


def bar(what: str, unit: str = "") -> Callable[..., None]:
  """A progress callback that draws a bar.

  Args:
    what: is being done.
    unit: what a third argument of the callback counts, if it gets one: its rate is shown.

  Returns:
    A function of (done, in all), and of how many units are done.
  """
  state: dict[str, tqdm.tqdm] = {}
  counts: list[tuple[float, int]] = []  # time and units at the first call, and now

  def update(done: int, total: int, units: int = 0) -> None:
    if "bar" not in state or state["bar"].total != total:
      tty = sys.stderr.isatty()
      state["bar"] = tqdm.tqdm(
          total=total, desc=what, leave=False, mininterval=0.2 if tty else 20, maxinterval=1 if tty else 60,
          bar_format="{desc} {n_fmt}/{total_fmt} |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
      )  # fmt: skip
    if unit:
      counts[1:] = [(time.monotonic(), units)]
      (begun, first), (now, latest) = counts[0], counts[-1]
      if now > begun:
        state["bar"].set_postfix_str(f"{(latest - first) / (now - begun):,.0f} {unit}/s", refresh=False)
    state["bar"].update(done - state["bar"].n)
    if done >= total:
      state.pop("bar").close()
      counts.clear()

  return update


def duration(seconds: float) -> str:
  """For people: 12.3 s, 5 min 2 s, 1 h 20 min."""
  if seconds < 100:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
