"""A plan as text."""

from __future__ import annotations

import io
import math

from rich.console import Console
from rich.table import Table

from orthus_jax.config import Config
from orthus_jax.planning.hardware import GIB
from orthus_jax.planning.report import Plan, advice


def text(plan: Plan, *, config: Config | None = None, against: Plan | None = None, width: int = 110) -> str:
  """A plan as a page of text."""
  page = io.StringIO()
  out = Console(file=page, width=width, highlight=False, no_color=True, force_terminal=False)
  mesh = " x ".join(f"{a} {n}" for a, n in plan.mesh.items() if n > 1) or "one device"
  devices = math.prod(plan.mesh.values())
  size = f"{plan.chips} chips" + (f", {devices} devices" if devices != plan.chips else "")
  out.print(f"{plan.title}  on {plan.topology}, {size}".strip())
  out.print(
    f"mesh {mesh}; {plan.rows} rows of {plan.length} positions a step, {plan.rows * plan.length / 1e6:.2f}M; remat {plan.remat}"
  )

  rows = _table("memory of one device", ("", "GiB", "share"))
  capacity = plan.memory["capacity"]
  shown = [(f"  {n.removeprefix('state_')}", v) for n, v in plan.memory.items() if n.startswith("state_")]
  shown = [("state and batch", plan.memory["arguments"]), *shown, ("temporaries", plan.memory["temporaries"])]
  shown += [("outputs", plan.memory["outputs"])]
  shown += [("program", plan.memory["code"])] if plan.memory["code"] else []
  shown += [("on the host", plan.memory["host"])] if plan.memory["host"] else []
  for name, value in shown:
    rows.add_row(name, f"{value / GIB:.2f}", f"{value / capacity:.0%}" if capacity else "")
  verdict = {True: "fits", False: "DOES NOT FIT", None: ""}[plan.fits]
  free = (
    f"{1 - plan.memory['peak'] / capacity:+.0%} free".replace("+", "") if capacity and plan.fits is not None else ""
  )
  rows.add_row(
    "peak",
    f"{plan.memory['peak'] / GIB:.2f}",
    f"{plan.memory['peak'] / capacity:.0%}" if capacity else "",
    end_section=True,
  )
  out.print(rows)
  if capacity and plan.fits is not None:
    out.print(f"{verdict}: {capacity / GIB:.2f} GiB a device, {free}")
  if plan.fits is False and config is not None:
    out.print(advice(config, plan))

  f = plan.flops
  out.print()
  out.print(f"FLOPs of one device and step: {f['total'] / 1e12:.2f} T (matrix products {f['products'] / 1e12:.2f},"
            f" attention kernels {f['attention'] / 1e12:.2f}); closed form {f['closed_form'] / 1e12:.2f}, a ratio of"
            f" {f['total'] / f['closed_form']:.3f}; counted by MFU {f['model'] / 1e12:.2f}")  # fmt: skip
  out.print(
    f"memory traffic {plan.bytes['memory'] / 1e9:.1f} GB"
    + (f", to and from the host {plan.bytes['host'] / 1e9:.1f} GB" if plan.bytes["host"] else "")
  )
  if plan.traffic:
    rows = _table("collectives of one device and step", ("kind", "axes", "count", "GB", "ms at published rates"))
    for t in plan.traffic[:8]:
      took = f"{1e3 * (t['link_seconds'] + t['network_seconds']):.1f}"
      rows.add_row(t["kind"], "+".join(t["axes"]) or "-", str(t["count"]), f"{t['bytes'] / 1e9:.3f}",
                   took + (" (between slices)" if t["network_seconds"] else ""))  # fmt: skip
    if len(plan.traffic) > 8:
      rest = plan.traffic[8:]
      rows.add_row("others", "", str(sum(t["count"] for t in rest)), f"{sum(t['bytes'] for t in rest) / 1e9:.3f}",
                   f"{1e3 * sum(t['link_seconds'] + t['network_seconds'] for t in rest):.1f}")  # fmt: skip
    out.print(rows)
  if plan.times:
    t = plan.times
    rows = _table("step", ("", "ms", "tokens/s/chip", "MFU causal", "MFU full"))
    for name in ("compute", "memory", "network", "host"):
      if t[name]:
        rows.add_row(f"{name} alone", f"{1e3 * t[name]:.0f}", "", "", "")
    for name, label in (("bound", f"bound ({t['limit']})"), ("calibrated", "calibrated")):
      rows.add_row(
        label,
        f"{1e3 * t[name]:.0f}",
        f"{plan.tokens_per_chip[name]:,.0f}",
        f"{plan.mfu[name]:.1%}",
        f"{plan.mfu[name + '_full']:.1%}",
      )
    out.print(rows)
  if against is not None:
    out.print(_against(plan, against))
  for note in plan.notes:
    out.print(f"note: {note}")
  out.print(f"planned in {sum(plan.seconds.values()):.0f} s")
  return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _table(title: str, columns: tuple[str, ...]) -> Table:
  table = Table(
    title=title, title_justify="left", title_style="", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=""
  )
  for k, c in enumerate(columns):
    table.add_column(c, justify="left" if k == 0 or c == "axes" else "right", no_wrap=True)
  return table


def _against(plan: Plan, other: Plan) -> Table:
  rows = _table(f"against {other.title} on {other.topology}", ("", "this", "that", "ratio"))

  def row(name: str, mine: float, theirs: float, form: str = "{:.2f}") -> None:
    rows.add_row(name, form.format(mine), form.format(theirs), f"{mine / theirs:.3f}" if theirs else "")

  row("peak memory, GiB", plan.memory["peak"] / GIB, other.memory["peak"] / GIB)
  row("TFLOP a device", plan.flops["total"] / 1e12, other.flops["total"] / 1e12)
  row("memory traffic, GB", plan.bytes["memory"] / 1e9, other.bytes["memory"] / 1e9)
  row("collectives, GB", sum(t["bytes"] for t in plan.traffic) / 1e9, sum(t["bytes"] for t in other.traffic) / 1e9)
  if plan.times and other.times:
    row("bound, ms", 1e3 * plan.times["bound"], 1e3 * other.times["bound"], "{:.0f}")
    row("calibrated, ms", 1e3 * plan.times["calibrated"], 1e3 * other.times["calibrated"], "{:.0f}")
    row("tokens/s/chip", plan.tokens_per_chip["calibrated"], other.tokens_per_chip["calibrated"], "{:.0f}")
    row("MFU causal, %", 100 * plan.mfu["calibrated"], 100 * other.mfu["calibrated"], "{:.1f}")
  return rows
