"""What a run's records say of its speed and memory, profiles, and a progress bar."""

from __future__ import annotations

import logging
from pathlib import Path
import resource
import sys
import time
from typing import Any

import jax
import tqdm

from orthus_jax.training.goodput import Ledger

_log = logging.getLogger(__name__)


class Meter:
  """Speed, share of the peak and where the time goes, from one record to the next.

  Args:
    devices: of the whole run.
    flops: per token, by the name of its convention ("causal", "full").
    peak: FLOP/s of one device; None where it isn't known, and then there is no MFU.
    ledger: of this process's time.
  """

  def __init__(self, *, devices: int, flops: dict[str, float], peak: float | None, ledger: Ledger):
    self._devices, self._flops, self._peak, self._ledger = devices, flops, peak, ledger
    self._last = ledger.seconds()
    self._tokens = 0

  def step(self, tokens: int) -> None:
    """One step done, of so many tokens in the whole run."""
    self._tokens += tokens

  def record(self) -> dict[str, float]:
    """Metrics since the last call; goodput, the share of the time that went to steps that last, of the whole run.

    Samples, scores and checkpoints count against goodput, but not against the speed of steps.
    """
    now = self._ledger.seconds()
    spent = {part: now[part] - self._last[part] for part in ("step", "data_wait", "evaluate", "checkpoint")}
    seconds = max(spent["step"] + spent["data_wait"], 1e-9)
    rate = self._tokens / seconds
    values = {
        "tokens_per_second": rate, "tokens_per_second_per_device": rate / self._devices,
        "data_wait": spent["data_wait"] / seconds,
    }  # fmt: skip
    if self._peak:
      per_device = rate / self._devices / self._peak
      values |= {f"mfu_{name}": per_device * flops for name, flops in self._flops.items()}
    whole = max(sum(spent.values()), 1e-9)
    values |= {f"time_{part}": s / whole for part, s in spent.items()}
    values["goodput"] = self._ledger.totals().shares()["step"]
    self._last, self._tokens = now, 0
    return values


def device_memory_bytes() -> int | None:
  """The most memory that any of this process's devices has held; None where devices don't say, as CPUs don't."""
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return max(peaks) if peaks else None


def memory() -> dict[str, float]:
  """High-water marks: `memory_bytes` of the fullest device, or of the process where devices don't say."""
  host, device = peak_memory_bytes(), device_memory_bytes()
  return {"memory_bytes": host} if device is None else {"memory_bytes": device, "host_memory_bytes": host}


class Profiler:
  """Records some steps into a directory that TensorBoard (its profile plugin) and Perfetto read.

  Args:
    folder: gets plugins/profile/TIME/, with a perfetto_trace.json.gz in it.
    steps: (first, last), or nothing.
  """

  def __init__(self, folder: Path, steps: tuple[int, ...], *, enabled: bool = True):
    self._folder = folder
    self._first, self._last = steps if steps and enabled else (0, 0)
    self._on = False

  def before(self, step: int) -> None:
    """Called ahead of each step, counted from 1."""
    if self._first <= step <= self._last and not self._on:  # also where a run goes on among them
      jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
      self._on = True

  def after(self, step: int, result: Any) -> None:
    """Called after each step with what it will have computed."""
    if self._on and step >= self._last:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    if self._on:
      self._on = False
      jax.profiler.stop_trace()


def peak_memory_bytes() -> int:
  """The most memory that this process has held."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


class Progress:
  """A bar with loss, tokens/s and time left; where no terminal watches, a line every `every` seconds."""

  def __init__(self, *, total: int, initial: int = 0, every: float = 20.0, enabled: bool = True):
    tty = sys.stderr.isatty()
    self._bar = tqdm.tqdm(
        total=total, initial=initial, desc="training", unit="step", disable=not enabled, dynamic_ncols=tty,
        mininterval=0.2 if tty else every, maxinterval=1.0 if tty else every,
        bar_format="{desc} {n_fmt}/{total_fmt} |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
    )  # fmt: skip
    self._tokens, self._start = 0, time.monotonic()

  def update(self, *, tokens: int, loss: float | None = None) -> None:
    """One step done."""
    self._tokens += tokens
    if loss is not None:
      rate = self._tokens / max(time.monotonic() - self._start, 1e-9)
      self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
    self._bar.update()

  def say(self, text: str) -> None:
    """A line above the bar."""
    self._bar.write(text, file=sys.stderr)

  def close(self) -> None:
    self._bar.close()
