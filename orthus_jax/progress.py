"""A progress bar."""

from __future__ import annotations

from collections.abc import Callable
import sys

import tqdm


def bar(what: str) -> Callable[[int, int], None]:
  """A progress callback (done, in all) that draws a bar."""
  state: dict[str, tqdm.tqdm] = {}

  def update(done: int, total: int) -> None:
    if "bar" not in state or state["bar"].total != total:
      tty = sys.stderr.isatty()
      state["bar"] = tqdm.tqdm(
          total=total, desc=what, leave=False, mininterval=0.2 if tty else 20, maxinterval=1 if tty else 60,
          bar_format="{desc} {n_fmt}/{total_fmt} |{bar:24}| {elapsed} gone, {remaining} left",
      )  # fmt: skip
    state["bar"].update(done - state["bar"].n)
    if done >= total:
      state.pop("bar").close()

  return update
