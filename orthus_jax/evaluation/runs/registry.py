"""The benchmarks that a model can be run on, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthus_jax.errors import BadRequest
from orthus_jax.evaluation.runs import asking, drawing, mmmu
from orthus_jax.evaluation.runs.prompts import Template
from orthus_jax.evaluation.runs.task import Task

DRAWN: dict[str, Callable[..., Task]] = {
    "geneval": drawing.GenEval, "dpg_bench": drawing.DpgBench, "wise": drawing.Wise,
}  # fmt: skip
ASKED: dict[str, Callable[..., Task]] = {
    "mme": asking.Mme, "pope": asking.Pope, "vqav2": asking.Vqav2, "gqa": asking.Gqa, "mmmu": mmmu.Mmmu,
}  # fmt: skip
NAMES = (*DRAWN, *ASKED)


def task(name: str, data: Path, template: Template, *, samples: int | None = None, images: Path | None = None) -> Task:
  """A benchmark's task.

  Args:
    name: of the benchmark.
    data: where its own data lies.
    template: how its words are put.
    samples: pictures a prompt; the benchmark's own number by default.
    images: where pictures that are asked about lie, if not beside the data.

  Raises:
    BadRequest: if there is no such benchmark, or its data isn't there.
  """
  if not data.exists():
    raise BadRequest(f"{data} doesn't exist: --data names where the benchmark's own data lies")
  if images is not None and not images.is_dir():
    raise BadRequest(f"--images={images} is no folder: it names where the pictures lie that are asked about")
  if name in DRAWN:
    if images is not None:
      raise BadRequest(f"--images is for benchmarks that ask about pictures, and {name} asks for them")
    more: dict[str, Any] = {} if samples is None else {"samples": samples}
    return DRAWN[name](data, template, **more)
  if name not in ASKED:
    raise BadRequest(f"no benchmark is called {name!r}: {', '.join(NAMES)}")
  if samples is not None:
    raise BadRequest(f"--samples is for benchmarks that ask for pictures, and {name} asks about them")
  return ASKED[name](data, template, images)
