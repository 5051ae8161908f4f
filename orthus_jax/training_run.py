"""A whole run: data, training, samples on the way, and the report at its end."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import json
import logging
from pathlib import Path
import time
from typing import Any

import numpy as np

from orthus_jax import files, lock, tokenizer_run
from orthus_jax.config import Config, idle
from orthus_jax.data import images as images_lib, picture_sheet, tokenizer_difference
from orthus_jax.data.documents import Document, Image, Source, Text
from orthus_jax.data.pipeline import Pipeline
from orthus_jax.data.prepared.pipeline import PreparedPipeline
from orthus_jax.data.sequence import is_planned
from orthus_jax.data.sources import registry as sources
from orthus_jax.data.text_tokenizer import TextTokenizer
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.evaluation import while_training
from orthus_jax.inference.model import Model
from orthus_jax.inference.requests import Request, Respond, check_drawing, prepare
from orthus_jax.models import quantized_training
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.progress import bar
from orthus_jax.storage.bucket import is_url
from orthus_jax.storage.parts import Parts
from orthus_jax.training import hosts, initial_state, loop, step_ahead, tasks
from orthus_jax.training.checkpoints import local_tier, workdir as checkpoint
from orthus_jax.training.goodput import Ledger
from orthus_jax.training.loggers import registry as loggers
from orthus_jax.training.metric_writer import MetricWriter
from orthus_jax.training.metrics import peak_memory_bytes
from orthus_jax.training.preemption import Signals
from orthus_jax.training.remarks import Remarks

_log = logging.getLogger("orthus_jax.train")
_SAMPLES = 8  # pictures in the grid that training shows on the way


def run(
    config: Config, workdir: Path, *, begin: float, signals: Signals | None = None, parts: Parts | None = None,
    ahead: bool = False,
) -> dict[str, Any]:  # fmt: skip
  """Trains in `workdir` and writes the report; returns what report.json holds.

  Args:
    config: the experiment.
    workdir: made if absent; one that holds another config's run is refused.
    begin: time.monotonic() when the command started.
    signals: which may ask to stop early.
    parts: takes this process's part of each checkpoint, where the processes have a disk each; see `Checkpointer`.
    ahead: the step may be compiled in a thread while documents are read; there, what jax was told for one thread alone (under
      `jax.default_matmul_precision`, say) isn't known.
  """
  # What can be refused is refused before anything is written.
  with hosts.together():
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check(mesh, config)
    quantized_training.check(config, mesh.devices.flat[0])
    if config.task == "orthus" and (config.run.report or config.run.sample_every):
      check_drawing(config.sampling, config.model)  # or it would be found out when all is trained
    while_training.check(config)
    loggers.check(config.run.loggers)
    tokenizer = _open_tokenizer(config, workdir) if config.task == "orthus" else None
    checkpoint.check_workdir(workdir, config)
    if tokenizer is not None:
      checkpoint.check_tokenizer(workdir, tokenizer)
    initial_state.check_sources(config, workdir, tokenizer)
    local_tier.directory(config, workdir)
  ledger, said = Ledger(begin), Remarks()
  _tell_of_settings(config)
  with contextlib.ExitStack() as held:
    with hosts.together():
      if hosts.primary():
        held.enter_context(lock.hold(workdir))
    end = "failed"
    if signals:
      signals.leaving = lambda: ledger.close("stopped")
    try:
      figures = _run(config, workdir, tokenizer, ledger, said, begin=begin, signals=signals, parts=parts, ahead=ahead)
      end = "finished"
    except BaseException as e:
      if isinstance(e, (BadRequest, Stopped, KeyboardInterrupt)):
        end = "stopped"
      elif hosts.several():  # most often another process that died; unless it repeats
        e.status, note = ledger.when_lost()  # type: ignore[attr-defined]
        if note:
          e.add_note(note)
      said.ended(e)
      raise
    finally:
      ledger.close(end)
      said.close()
    return figures


def _tell_of_settings(config: Config) -> None:
  for sentence in idle.settings(config) if hosts.primary() else ():
    _log.warning("%s", sentence)
  if (warmup := config.optimizer.warmup_steps) > config.run.steps and hosts.primary():
    _log.info("warming up for all of run.steps=%d, as optimizer.warmup_steps=%d is more", config.run.steps, warmup)


def _run(
    config: Config, workdir: Path, tokenizer: TextTokenizer | None, ledger: Ledger, said: Remarks, *, begin: float,
    signals: Signals | None, parts: Parts | None, ahead: bool,
) -> dict[str, Any]:  # fmt: skip
  """`run`, with the workdir to itself."""
  source = hosts.first_alone(lambda: sources.open_source(config, config.data.split))
  early = step_ahead.start(config, len(source), workdir) if ahead and tokenizer is not None else None
  with hosts.together():
    task = _orthus_task(config, source, tokenizer) if tokenizer is not None else tasks.TokenizerTask(config, source)
    checkpoint.check_data(workdir, task.contents())
  with hosts.together():
    if hosts.primary():
      checkpoint.open_workdir(workdir, config, tokenizer)
    elif parts and tokenizer is not None and not (workdir / tokenizer_difference.FILE_NAME).is_file():
      tokenizer.save(workdir)  # on its own disk: what a checkpoint says of its tokenizer is the same on all
  names = hosts.names()
  if hosts.primary():
    ledger.keep(workdir, newest=max(checkpoint.steps(workdir), default=-1), hosts=names)
    said.keep(workdir)
  count, step = hosts.gather(np.array(ledger.in_vain))[0]
  ledger.in_vain = int(count), int(step)
  if isinstance(task, tasks.OrthusTask):
    figures = _orthus(config, workdir, task, source, signals, ledger, begin=begin, parts=parts, early=early)
  else:
    figures = tokenizer_run.run(config, workdir, task, signals, ledger, parts)
  hosts.wait("done")  # none leaves while process 0 still writes: jax would take it for lost
  if not hosts.primary():
    return {}
  figures["seconds"]["total"] = time.monotonic() - begin
  figures["peak_memory_bytes"] = peak_memory_bytes()
  spent = ledger.totals()
  figures["goodput"] = dataclasses.asdict(spent)
  with files.after_training(workdir / "report.json"):
    files.write_text(workdir / "report.json", json.dumps(figures, indent=2) + "\n")
  _log.info("the time went to: %s", spent.told())
  _log.info("done in %.0f s; figures in %s", figures["seconds"]["total"], workdir / "report.json")
  return figures


def _open_tokenizer(config: Config, workdir: Path) -> TextTokenizer:
  """The config's text tokenizer; of a run that has begun, its own where the config's isn't there any more."""
  named = config.data.tokenizer
  if named and not is_url(named) and not Path(named).exists() and (workdir / "tokenizer.json").is_file():
    _log.info("data.tokenizer=%s isn't there: going on with the workdir's own", named)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(workdir)))
  return sources.open_tokenizer(config)


def _orthus_task(config: Config, source: Source, tokenizer: TextTokenizer) -> tasks.OrthusTask:
  """Reads and lays out the documents."""
  pipeline: Pipeline | PreparedPipeline
  if config.data.source == "prepared":
    pipeline = PreparedPipeline(tokenizer, config, keep_plans=hosts.primary())
  else:
    pipeline = Pipeline(source, tokenizer, config, progress=bar("reading") if hosts.primary() else None)
  if pipeline.too_long:
    _log.warning(
        "%d documents don't fit a row of %d positions, %d images and %d learnt ones, and are left out: %s%s",
        len(pipeline.too_long), config.data.sequence_length, config.data.images_per_row,
        config.data.learnt_images_per_row, ", ".join(pipeline.too_long[:3]), " …" if len(pipeline.too_long) > 3 else "",
    )  # fmt: skip
  if pipeline.bad:
    _log.warning("%d of %d documents are bad, and are left out", pipeline.bad, len(source))
  if undrawn := getattr(pipeline, "undrawn", 0):
    _log.warning(
        "%d of %d documents are in no row: the weights of their kinds in data.kinds are too far below the largest", undrawn,
        len(pipeline),
    )  # fmt: skip
  if pipeline.idle:
    _log.warning(
        "%d of %d documents have nothing to learn, and are shown for nothing: %s%s",
        len(pipeline.idle), len(pipeline), ", ".join(pipeline.idle[:3]), " …" if len(pipeline.idle) > 3 else "",
    )  # fmt: skip
  pictures = len(pipeline.table.pixels)
  _log.info("%d documents%s", len(pipeline), f", {pictures} pictures" if pictures else "")
  return tasks.OrthusTask(config, pipeline)


def _orthus(
    config: Config, workdir: Path, task: tasks.OrthusTask, source: Source, signals: Signals | None, ledger: Ledger, *,
    begin: float, parts: Parts | None, early: step_ahead.StepAhead | None,
) -> dict[str, Any]:  # fmt: skip
  tokenizer = task.pipeline.tokenizer
  held_out = sources.open_source(config, "validation") if config.data.source == "shapes" else source

  def fits(prompt: Document, respond: Respond) -> bool:
    try:
      prepare(Request(prompt, respond=respond), config=config.model, tokenizer=tokenizer, sampling=config.sampling)
    except BadRequest:  # training leaves long documents out, too
      return False
    return True

  shown = sample_prompts(held_out, fits) if config.run.sample_every or config.run.report else {"image": [], "text": []}

  def on_samples(step: int, graphdef: Any, params: Any, writer: MetricWriter) -> None:
    show(Model.create(config, params, tokenizer), shown, workdir / "samples", step, writer)

  hooks = while_training.samples(config, on_samples)
  hooks += [(every, while_training.hook(name, config, tokenizer, workdir)) for name, every in config.run.evaluate]
  result = loop.train(config, workdir, task, hooks=hooks, signals=signals, ledger=ledger, parts=parts, ahead=early)
  figures: dict[str, Any] = {
      "params_digest": result.params_digest, "parameters": result.parameters,
      "versions": checkpoint.versions(),
      "seconds": dict(result.seconds),
      "trained_steps": result.steps,
  }
  figures["seconds"]["data"] = max(0.0, time.monotonic() - begin - sum(result.seconds.values()))
  if config.run.report and hosts.primary():
    ledger.enter("evaluate")
    _report(config, workdir, Model.create(config, result.params, tokenizer), figures, shown)
  return figures


def _report(
    config: Config, workdir: Path, model: Model, figures: dict[str, Any], shown: dict[Respond, list[Document]]
) -> None:
  """Adds scores to `figures` and writes report.html."""
  from orthus_jax.evaluation import report, shapes, shapes_table

  began, result, samples = time.monotonic(), None, []
  if config.data.source == "shapes":
    test = sources.open_source(config, "test")
    result = shapes.evaluate(model, test, limits=shapes.Limits.quick(), progress=bar("scoring"))
    seconds = figures["seconds"]
    figures |= result.to_json()
    figures["seconds"] = seconds
    print(shapes_table.table(result))
  else:
    asked = {r: [d.prompt() for d in documents] for r, documents in shown.items() if documents}
    if model.no_pictures:
      asked.pop("image", None)
    if requests := [Request(p, respond=r) for r, prompts in asked.items() for p in prompts]:
      holds = model.capacity(requests, batch_size=_SAMPLES)  # one for both, so that programs are compiled once
      for respond, prompts in asked.items():
        samples += model.generate(prompts, respond=respond, batch_size=_SAMPLES, holds=holds)
  figures["seconds"]["evaluation"] = time.monotonic() - began
  figures["peak_memory_bytes"] = peak_memory_bytes()
  with files.after_training(workdir / "report.html"):
    report.write_report(workdir, config=config, result=result, figures=figures, samples=samples)
  _log.info("report in %s", workdir / "report.html")


def sample_prompts(
    source: Source, fits: Callable[[Document, Respond], bool] = lambda prompt, respond: True
) -> dict[Respond, list[Document]]:
  """The first documents of a source that ask for a picture, and those that ask for words; of prompts that the model takes."""
  found: dict[Respond, list[Document]] = {"image": [], "text": []}
  for i in range(min(len(source), 400)):
    d = source[i]
    if d is None or not d.prompt().segments or not d.response().segments:
      continue
    drawn = isinstance(d.response().segments[0], Image) or is_planned(d.response())
    kind: Respond = "image" if drawn else "text"
    if kind == "text" and not d.prompt().images:
      continue  # a story
    if len(found[kind]) < _SAMPLES and fits(d.prompt(), kind):
      found[kind].append(d)
  return found


def show(model: Model, documents: dict[Respond, list[Document]], folder: Path, step: int, writer: MetricWriter) -> None:
  """Writes a grid of drawn pictures and a list of answers, on disk and to TensorBoard."""
  folder.mkdir(exist_ok=True)
  short = dataclasses.replace(model.config.sampling, max_new_tokens=48)
  asked = [Request(d.prompt(), respond="text", sampling=short) for d in documents["text"]]
  if not model.no_pictures:
    asked += [Request(d.prompt(), respond="image") for d in documents["image"]]
  if not asked:
    return
  holds = model.capacity(asked, batch_size=_SAMPLES)  # one for both, so that programs are compiled once
  if documents["image"] and not model.no_pictures:
    drawn = model.generate([d.prompt() for d in documents["image"]], respond="image", batch_size=_SAMPLES, holds=holds)
    pictures = [d.images[-1].pixels for d in drawn]
    captions = [" ".join(t.text for t in d.prompt().texts) for d in documents["image"]]
    grid = picture_sheet.grid(pictures, 4, captions)
    images_lib.save_png(folder / f"{step:06d}.png", grid)
    writer.image(step, "drawn", grid)
  if documents["text"]:
    answers = model.generate(
        [d.prompt() for d in documents["text"]], respond="text", sampling=short, batch_size=_SAMPLES, holds=holds,
    )  # fmt: skip
    rows = []
    for d, a in zip(documents["text"], answers):
      question = " ".join(t.text for t in d.prompt().texts)
      said = " ".join(s.text for s in a.segments[len(d.prompt().segments):] if isinstance(s, Text))
      expected = next(s.text for s in d.response().segments if isinstance(s, Text))
      rows.append(f"{question} → {said or '(nothing)'}   (right: {expected})")
    (folder / f"{step:06d}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    writer.text(step, "answers", "\n\n".join(rows))
