"""`orthus evaluate --benchmark=NAME`: a published benchmark, in its own layout."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
import tempfile
from typing import Any

from orthus_jax import files, paths
from orthus_jax.commands import common, sampling
from orthus_jax.commands.score import table
from orthus_jax.config.ranges import Range
from orthus_jax.config.sampling import with_fields
from orthus_jax.errors import BadRequest
from orthus_jax.progress import bar
from orthus_jax.storage import bring

# As in evaluation/runs/registry.py, without its imports.
NAMES = ("geneval", "dpg_bench", "wise", "mme", "pope", "vqav2", "gqa", "mmmu")
JUDGED = ("geneval", "dpg_bench", "wise")  # as scoring.ELSEWHERE: a judge, or another tool, says what their pictures are worth
OF_SHAPES = ("split", "quick", "captions_per_tag", "questions", "captions", "edits", "stories", "world_seed")
_OWN = ("images", "judge", "template", "limit", "batch_size")


def add_options(parser: argparse.ArgumentParser) -> None:
  """The options that published benchmarks alone have."""
  lengths = "Answers are of 16 tokens at most, MMMU's of 64, if --max-new-tokens doesn't say otherwise."
  add = parser.add_argument_group("published benchmarks", lengths).add_argument
  add("--images", type=paths.user_path, metavar="DIR", help="pictures that are asked about, if not beside the data")
  add("--judge", metavar="MODULE:FUNCTION", help="of geneval: finds what is in a picture; of --data=shapes, its own")
  add("--template", metavar="NAME", help="how prompts are worded: orthus (default), chameleon, showo, llava, bare")
  add("--limit", type=common.number(int, Range(1, 2**31 - 1)), metavar="N", help="the first N pictures or questions alone")
  add("--batch-size", type=common.number(int, Range(1, 2**16)), metavar="N", help="rows at once; default 64")


def check(options: argparse.Namespace) -> None:
  """Refuses options that the benchmark hasn't got.

  Raises:
    BadRequest: naming the first.
  """
  shapes = options.benchmark == "shapes"
  for name in _OWN if shapes else OF_SHAPES:
    given = getattr(options, name)
    if given is not None and given is not False:  # 0 is given
      other = "published benchmarks" if shapes else "--benchmark=shapes"
      raise BadRequest(f"--{name.replace('_', '-')} is for {other}: leave it out")
  if shapes and options.world_seed is not None:
    if options.data:
      raise BadRequest("--world-seed makes its documents, and --data names some that are there: leave one out")
    if options.split == "train":
      raise BadRequest("--world-seed makes a held-out split: --split=test or validation, not train")
  if options.judge and options.benchmark != "geneval":
    raise BadRequest(f"--judge is for --benchmark=geneval, and {options.benchmark} has none: leave it out")
  if not shapes and not options.data:
    raise BadRequest(f"--benchmark={options.benchmark} needs --data=DIR, where its own data lies (docs/benchmarks.md)")
  if not shapes and not options.out:
    raise BadRequest(f"--benchmark={options.benchmark} needs --out=DIR, for answers in the benchmark's own layout")


def main(options: argparse.Namespace) -> int:
  """Runs a benchmark."""
  given = sampling.given(options)
  out = Path(options.out)
  paths.check_writable(out / "score.json", option="--out", file=True)
  common.initialize()

  from orthus_jax.data.sources import registry as sources
  from orthus_jax.evaluation import shapes_geneval
  from orthus_jax.evaluation.benchmarks import geneval
  from orthus_jax.evaluation.runs import execute, page, prompts, registry, scoring
  from orthus_jax.evaluation.runs.task import JOURNAL
  from orthus_jax.inference import model as model_lib
  from orthus_jax.training.checkpoints import workdir as checkpoint
  from orthus_jax.training.state import digest

  data, own_world = Path(bring.local(options.data)), options.benchmark == "geneval" and options.data == "shapes"
  model, captions = None, ""
  name = options.template or ("bare" if own_world else "orthus")
  template = prompts.template(name)
  judge = options.judge or (shapes_geneval.JUDGE if own_world else None)
  if judge:  # or it would be found out when all is drawn
    geneval.load_judge(judge)
  if own_world:  # its captions are told as GenEval's, beside the pictures
    model = model_lib.load(options.run)
    captions = shapes_geneval.captions(sources.open_world(model.config))
  images = Path(bring.local(options.images)) if options.images else None
  with tempfile.TemporaryDirectory() as spare:  # OUT gets them once it is known to be free
    data = shapes_geneval.write(captions, Path(spare)) if own_world else data
    task = registry.task(options.benchmark, data, template, samples=options.samples, images=images)
    asked_of = execute.digest(task.sources)
  if own_world:
    task.sources = [out / data.name]
  model = model or model_lib.load(options.run)
  how = with_fields(model.config.sampling, given)
  length = given.get("max_new_tokens", execute.longest(task, how))
  protocol: dict[str, Any] = {
      "benchmark": options.benchmark, "model": digest(model.params), "data": asked_of,
      "template": {"name": name, **dataclasses.asdict(template)}, "samples": task.samples,
      "sampling": dataclasses.asdict(how), "max_new_tokens": length,
      "seeds": f"crc32 of {options.seed}/ITEM", "versions": checkpoint.versions(), "limit": options.limit,
      **task.protocol,
  }  # fmt: skip
  outcome = execute.run(
      model, task, out, sampling=how, seed=options.seed, protocol=protocol, batch_size=options.batch_size or 64,
      limit=options.limit, max_new_tokens=length, begin=(lambda: shapes_geneval.write(captions, out)) if own_world else None,
      progress=bar("drawing" if task.respond == "image" else "answering"),
  )  # fmt: skip
  asked = len(task.items[: options.limit])
  try:
    with files.writing(out):
      scored = scoring.score(options.benchmark, task, out, outcome.files, judge=judge)
  except BadRequest as e:
    raise BadRequest(f"all answers are kept in {outcome.files}, and can't be scored: {e}") from e
  kept = out / JOURNAL if isinstance(scored, str) else outcome.files  # the tool's own files may lack some
  record: dict[str, Any] = {"files": str(kept), "answered": outcome.answered, "unasked": len(outcome.failed)}
  record |= {"beyond_limit": outcome.beyond, **task.protocol}
  if isinstance(scored, str):
    record["unscored"] = scored
  else:
    score, found = scored
    record["score"] = score.to_json()
    title = f"{options.benchmark}: {Path(options.run).name}"
    with files.writing(out):
      page.write(out, title=title, score=score, found=found, protocol=outcome.protocol, published=not own_world)
  if options.json:
    print(json.dumps(record, indent=2))
    return 0
  if not isinstance(scored, str):
    print(table(scored[0]))
    print(f"written: {out / 'score.json'}, judged.jsonl and index.html")
  else:
    print(f"not scored: {scored}")
  print(f"{outcome.answered:,} of {asked:,} answered: {kept}")
  if outcome.beyond:
    what = "in these files alone" if isinstance(scored, str) else "scored too"
    print(f"an earlier command answered {outcome.beyond:,} more, beyond --limit={options.limit}, which are {what}")
  return 0
