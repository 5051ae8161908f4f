"""What runs there are below a directory, and how far they got."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from pathlib import Path
from typing import Any

from orthus_jax import files
from orthus_jax.errors import BadRequest
from orthus_jax.storage import bring
from orthus_jax.training import goodput
from orthus_jax.training.checkpoints import manifest, workdir as checkpoint
from orthus_jax.training.metric_writer import read_metrics

_SHOWN = ("single_object", "open_accuracy", "yes_no_accuracy", "geneval_overall", "psnr")


def find(place: Path) -> Iterator[Path]:
  """The run that a directory is, or those that lie in it, up to two levels down."""
  if (place / "config.json").is_file():
    yield place
    return
  for pattern in ("*/config.json", "*/*/config.json"):
    yield from (file.parent for file in sorted(place.glob(pattern)))


def checkpoints(run: Path) -> list[Path]:
  """The folders of a run's checkpoints, in the order of their steps."""
  return [run / "checkpoints" / str(step) for step in checkpoint.steps(run)]


def damage(folder: Path, *, read: bool = True) -> str | None:
  """As `manifest.damage`; that a later version wrote it counts as one here."""
  try:
    return manifest.damage(folder, read=read)
  except BadRequest as e:
    return str(e).removeprefix(f"{folder} ")


def about(run: Path) -> dict[str, Any]:
  """What there is to say of a run without reading its checkpoints through."""

  config, report, metrics = files.read_json(run / "config.json"), files.read_json(run / "report.json"), read_metrics(run)
  wanted = config.get("run", {}).get("steps")
  done = max([int(p.name) for p in checkpoints(run)] + [m["step"] for m in metrics], default=0)
  if not config:
    state = "its config.json is damaged"
  elif report and not 0 < done < (wanted or 0):  # a run that goes on to more steps keeps its report meanwhile
    state = f"finished, {wanted} steps"
  else:
    loss = next((m["loss"] for m in reversed(metrics) if m.get("loss") is not None), None)
    state = f"at step {done} of {wanted}" + (f", loss {loss:.4g}" if loss is not None else "")
  scores = {n: v for n, v in report.get("scores", {}).items() if isinstance(v, (int, float))}
  return {
      "run": str(run), "state": state, "step": done, "steps": wanted,
      "checkpoints": [{"step": int(p.name), "damage": damage(p, read=False)} for p in checkpoints(run)],
      "unfinished": sorted(p.name for p in (run / "checkpoints").glob("*.orbax-checkpoint-tmp*")),
      "set_aside": sorted(f"damaged/{p.name}" for p in (run / "damaged").glob("*")),
      "scores": {n: scores[n] for n in _SHOWN if n in scores} or dict(list(scores.items())[:3]),
      "params_digest": report.get("params_digest"),
      "goodput": dataclasses.asdict(goodput.totals(goodput.read(run))),
  }  # fmt: skip


def about_remote(url: str) -> list[dict[str, Any]]:
  """As `about`, of each run below a URL, whose checkpoints aren't looked into."""
  told = []
  for run, folder, whole, unfinished in bring.overview(url):
    known = about(folder)
    done = max([known["step"], *whole])
    state = known["state"].replace(f"at step {known['step']} ", f"at step {done} ", 1)
    told.append(known | {
        "run": run, "state": state, "step": done, "checkpoints": [{"step": s, "damage": None} for s in whole],
        "unfinished": [f"{s}.unfinished" for s in unfinished], "set_aside": [],
    })  # fmt: skip
  return told
