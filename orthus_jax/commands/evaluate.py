"""`orthus evaluate`: scores of a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path

from orthus_jax import files, paths
from orthus_jax.commands import benchmark, common, sampling
from orthus_jax.config.ranges import SEED, Range
from orthus_jax.config.sampling import with_fields
from orthus_jax.errors import BadRequest
from orthus_jax.progress import bar
from orthus_jax.storage.bucket import is_url

_EXAMPLES = """examples:
  orthus evaluate runs/shapes                      all of the test split, four pictures a caption
  orthus evaluate runs/shapes --quick              what the report of a run measures
  orthus evaluate runs/shapes --stories=0 --steps=50 --guidance=2 --out=runs/guidance-2
  orthus evaluate runs/post --benchmark=geneval --data=geneval/prompts --out=runs/geneval
"""


def parser() -> common.Parser:
  """The options."""
  parser = common.Parser(
      prog="orthus evaluate", epilog=_EXAMPLES,
      description="Scores a trained model; prints a table, writes evaluation.json and worst.html.",
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("run", type=paths.user_path, metavar="RUN", help="a run's directory, or one of its checkpoints")
  parser.add_argument("--benchmark", choices=("shapes", *benchmark.NAMES), default="shapes", metavar="NAME",
                      help=f"shapes, the built-in world (default), or {', '.join(benchmark.NAMES)}")  # fmt: skip
  parser.add_argument("--split", choices=("train", "validation", "test"), help="of shapes; default test")
  parser.add_argument("--quick", action="store_true", help="about a third of the split, one picture a caption")
  some = common.number(int, Range(0, 2**31 - 1))
  limits = parser.add_argument_group("how much of shapes (default: the whole split)")
  limits.add_argument("--captions-per-tag", type=some, metavar="N", help="captions of each GenEval tag to draw")
  limits.add_argument("--samples", type=common.number(int, Range(1, 2**20)), metavar="N",
                      help="pictures a caption or prompt; default 4, or the benchmark's own number")  # fmt: skip
  limits.add_argument("--questions", type=some, metavar="N", help="pictures to ask all their questions about")
  limits.add_argument("--captions", type=some, metavar="N", help="pictures to describe")
  limits.add_argument("--edits", type=some, metavar="N", help="pictures to edit")
  limits.add_argument("--stories", type=some, metavar="N", help="stories to tell")
  limits.add_argument("--world-seed", type=common.number(int, SEED), metavar="N",
                      help="judge a split made with this seed instead, as large: other scenes and words")  # fmt: skip
  benchmark.add_options(parser)
  sampling.add_options(parser)
  parser.add_argument("--seed", type=common.number(int, SEED), default=0, help="of all draws; default 0")
  parser.add_argument("--data", type=paths.user_path, metavar="DIR",
                      help="where the data lies; of shapes by default as in training")  # fmt: skip
  parser.add_argument("--out", type=paths.user_path, metavar="DIR", help="default RUN/evaluations/BENCHMARK-SPLIT, and -seedN")
  parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
  return parser


def main(argv: Sequence[str]) -> int:
  """Evaluates, and writes what came out."""
  options = parser().parse_args(argv)
  benchmark.check(options)
  if options.benchmark != "shapes":
    return benchmark.main(options)
  options.split = options.split or "test"
  given = sampling.given(options)
  if options.out:
    _check(Path(options.out))
  common.initialize()

  from orthus_jax.data.sources import registry as sources
  from orthus_jax.evaluation import report, shapes, shapes_table
  from orthus_jax.inference import model as model_lib
  from orthus_jax.training.checkpoints import workdir as checkpoint

  chosen = {
      "caption_images": options.captions_per_tag, "samples": options.samples, "questions": options.questions,
      "captions": options.captions, "edits": options.edits, "stories": options.stories,
  }  # fmt: skip
  limits = dataclasses.replace(
      shapes.Limits.quick() if options.quick else shapes.Limits(), **{k: v for k, v in chosen.items() if v is not None}
  )
  if is_url(options.run) and not options.out:
    raise BadRequest("a model in a bucket needs --out=DIR, where the scores are written")
  run, step = checkpoint.find(options.run)
  of_seed = "" if options.world_seed is None else f" of seed {options.world_seed}"
  name = f"{options.benchmark}-{options.split}" + of_seed.replace(" of seed ", "-seed")
  if Path(options.run).absolute() != run:
    name += f"-{step}"  # one checkpoint of several
  out = Path(options.out) if options.out else run / "evaluations" / name
  _check(out)
  model = model_lib.load(options.run)
  how = with_fields(model.config.sampling, given)
  documents = sources.open_world(model.config, options.split, options.data, seed=options.world_seed)
  result = shapes.evaluate(
      model, documents, limits=limits, sampling=how, seed=options.seed, progress=bar("evaluating")
  )
  record = {
      "benchmark": options.benchmark, "split": options.split, "world_seed": options.world_seed, "step": step,
      "seed": options.seed,
      "limits": dataclasses.asdict(limits), "sampling": dataclasses.asdict(how), **result.to_json(),
      "versions": checkpoint.versions(),
  }  # fmt: skip
  text = json.dumps(record, indent=2) + "\n"
  with files.writing(out, "run it again"):
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(out / "evaluation.json", text)
    report.write_worst(
        out / "worst.html", result=result, title=f"{run.name}: worst cases",
        subtitle=f"{options.benchmark}, {options.split} split{of_seed}, step {step}",
    )  # fmt: skip
  if options.json:
    print(text, end="")
  else:
    print(shapes_table.table(result))
    print(f"written: {out / 'evaluation.json'} and worst.html")
  return 0


def _check(folder: Path) -> None:
  """Ahead of the work, so that a bad place is told at once."""
  paths.check_writable(folder, option="--out")
  for name in ("evaluation.json", "worst.html"):
    paths.check_writable(folder / name, option="--out", file=True)
