"""`run.evaluate`: benchmarks scored every so many steps, as metrics."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import logging
from pathlib import Path
import shutil
from typing import Any

from orthus_jax import files
from orthus_jax.config import Config
from orthus_jax.data.sources import registry as sources
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest
from orthus_jax.evaluation import shapes, shapes_geneval
from orthus_jax.evaluation.benchmarks.published import PUBLISHED
from orthus_jax.evaluation.runs import execute, prompts, registry, scoring
from orthus_jax.inference.model import Model
from orthus_jax.inference.requests import check_drawing
from orthus_jax.models.params import Params
from orthus_jax.training.metric_writer import MetricWriter

_log = logging.getLogger("orthus_jax.train")
Hook = Callable[[int, Any, Params, MetricWriter], None]
OWN_WORLD = ("shapes", "geneval")


def check(config: Config) -> None:
  """Refuses what can't be evaluated, before any work is done.

  Raises:
    BadRequest: naming it.
  """
  seen: set[str] = set()
  for name, _ in config.run.evaluate:
    benchmark, _, data = name.partition(":")
    if benchmark in seen:
      raise BadRequest(f"run.evaluate has {benchmark!r} twice, whose scores would have one name: leave one out")
    seen.add(benchmark)
    if config.task != "orthus":
      raise BadRequest("run.evaluate is for task=orthus: a vision tokenizer's report has its scores")
    if not data and benchmark not in OWN_WORLD:
      own = " or ".join(OWN_WORLD)
      raise BadRequest(f"run.evaluate: {name!r} must be {own} (the built-in world's), or NAME:DIR with its data")
    if data:
      if benchmark not in registry.ASKED:
        raise BadRequest(f"run.evaluate: {benchmark!r} isn't scored here without a judge: {', '.join(registry.ASKED)}")
      try:
        registry.task(benchmark, Path(data), prompts.template("orthus"))
      except BadRequest as e:
        raise BadRequest(f"run.evaluate, {name!r}: {e}") from e
    if benchmark in OWN_WORLD:
      check_drawing(config.sampling, config.model)


def samples(config: Config, show: Hook) -> list[tuple[int, Hook]]:
  """What the run calls for samples, if it asks for any."""

  def on_samples(step: int, graphdef: Any, params: Params, writer: MetricWriter) -> None:
    if step < config.run.steps:  # the report has the last step's
      try:
        show(step, graphdef, params, writer)
      except OSError as e:  # a full disk is no reason to lose the run
        _log.warning("step %d: no samples: %s", step, files.first_line(e))

  return [(config.run.sample_every, on_samples)] if config.run.sample_every else []


def hook(name: str, config: Config, tokenizer: TextTokenizer, workdir: Path) -> Hook:
  """What scores the model of a step, and writes its figures as metrics `evaluate/BENCHMARK/FIGURE`.

  Args:
    name: as in `run.evaluate`.
    config: of the run.
    tokenizer: of its texts.
    workdir: gets evaluations/BENCHMARK-STEP, but for `shapes`, which leaves nothing but figures.
  """
  benchmark, _, data = name.partition(":")

  def score(step: int, graphdef: Any, params: Params, writer: MetricWriter) -> None:
    model = Model.create(config, params, tokenizer)
    try:
      figures = (
          shapes.evaluate(model, sources.open_world(config), limits=shapes.Limits.quick()).scores
          if benchmark == "shapes"
          else _run(model, benchmark, data, workdir / "evaluations" / f"{benchmark}-{step:06d}", step)
      )
    except (BadRequest, OSError) as e:  # a full disk, or data that was moved, is no reason to lose the run
      _log.warning("step %d: %s isn't scored: %s", step, benchmark, files.first_line(e))
      return
    writer.evaluation(step, {f"evaluate/{benchmark}/{n}": v for n, v in figures.items()})
    main = "geneval_overall" if benchmark == "shapes" else PUBLISHED[benchmark][0]
    _log.info("step %d: %s %s", step, benchmark, f"{main} {figures[main]:.4g}" if main in figures else "is scored")

  return score


def _run(model: Model, benchmark: str, data: str, out: Path, step: int) -> dict[str, float]:
  config, template = model.config, "orthus" if data else "bare"
  if out.exists():  # of a run that stopped, and came to this step again with other weights, perhaps
    shutil.rmtree(out)
  if not data:
    data = str(shapes_geneval.export(sources.open_world(config), out))
  samples = None if benchmark in registry.ASKED else 1
  task = registry.task(benchmark, Path(data), prompts.template(template), samples=samples)
  protocol = {"benchmark": benchmark, "step": step, "template": template, "sampling": dataclasses.asdict(config.sampling)}
  protocol |= task.protocol
  outcome = execute.run(model, task, out, sampling=config.sampling, seed=0, protocol=protocol)
  scored = scoring.score(benchmark, task, out, outcome.files, judge=shapes_geneval.JUDGE if benchmark == "geneval" else None)
  if isinstance(scored, str):
    raise BadRequest(scored)
  return scored[0].scores
