"""`orthus generate`: one prompt in, or a file of them; pictures and text out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import sys
import time
from typing import Any

from orthus_jax import lock
from orthus_jax.commands import common, sampling
from orthus_jax.config.ranges import Range
from orthus_jax.config.sampling import with_fields
from orthus_jax.config.typed import is_text
from orthus_jax.data import images as images_lib
from orthus_jax.data.documents import Document, Image, interleaved
from orthus_jax.errors import BadRequest
from orthus_jax.inference import output_files
from orthus_jax.paths import check_writable, user_path

_EXAMPLES = """examples:
  orthus generate runs/shapes --prompt="draw a red circle" --respond=image --out=red.png
  orthus generate runs/shapes --image=red.png --prompt="What colour is it?"
  orthus generate runs/shapes --requests=requests.jsonl --out=answers
a request is a line such as
  {"id": "a", "prompt": "draw a red circle", "respond": "image", "seed": 3, "guidance": 4.0}
  {"prompt": "<image> What colour is it?", "images": ["red.png"]}
"""

_SEEDS = Range(-(2**31), 2**31 - 1)  # a row's is an int32


def parser() -> common.Parser:
  """The options."""
  parser = common.Parser(
      prog="orthus generate",
      description="Draws, answers, edits or tells a story. Pictures of the prompt come before its text, or where it says"
      " <image>.",
      epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  add = parser.add_argument
  add("model", type=user_path, help="a run's directory, one of its checkpoints, or a Hugging Face directory")
  add("--prompt", default="", help="the text: a caption, a question, an instruction, the opening of a story")
  add("--image", type=user_path, action="append", default=[], metavar="FILE",
      help="a picture that the prompt is about; repeatable")
  add("--respond", choices=("auto", "image", "text"), default="auto",
      help="draw one picture, answer in text alone, or let the model decide (default)")
  add("--out", type=user_path, default="", metavar="PATH",
      help="FILE.png for one picture, FILE.md or FILE.html for text with pictures, else a directory of pictures")
  add("--count", type=common.number(int, Range(1, 2**20)), default=1, help="how many responses, each with a seed of its own")
  add("--seed", type=common.number(int, _SEEDS), default=0, help="of the first response; each next one has the next seed")
  add("--max-images", type=common.number(int, Range(0, 2**20)), metavar="N",
      help="pictures at most where the model decides; room is kept for them beside --max-new-tokens of text")  # fmt: skip
  add("--requests", type=user_path, default="", metavar="FILE",
      help="a JSON object a line, \"-\" for standard input, in the place of a prompt; results go to --out=DIR as they"
      " finish, and what is there already isn't done again")  # fmt: skip
  add("--batch-size", type=common.number(int, Range(1, 2**16)), default=32, metavar="N",
      help="how many are answered at once; default 32")
  add("--preview", type=common.number(int, Range(0, 2**20)), default=0, metavar="ROWS",
      help="show each picture on its way, as NAME.preview.png, every so many rows of patches")  # fmt: skip
  add("--json", action="store_true", help="print what was made as JSON")
  sampling.add_options(parser)
  return parser


def main(argv: Sequence[str]) -> int:
  """Generates responses to one prompt."""
  args = parser().parse_args(argv)
  begin = time.monotonic()
  chosen = sampling.given(args)
  if args.requests:
    return _serve(args, chosen)
  if not args.prompt.strip() and not args.image:
    raise BadRequest("nothing to go by: give --prompt, --image or both, or --requests")
  if args.seed + args.count - 1 not in _SEEDS:
    raise BadRequest(f"--seed={args.seed} with --count={args.count} runs beyond seeds of {_SEEDS}")
  out = Path(args.out) if args.out else None
  if out and out.suffix == ".png" and args.count > 1:
    raise BadRequest("--out names one picture, but --count asks for several: give a directory")
  if not is_text(args.prompt):
    raise BadRequest(f"--prompt={args.prompt!r} isn't a text in UTF-8")
  output_files.check(out)
  pictures, text = [images_lib.load_image(file) for file in args.image], args.prompt.strip()
  segments = interleaved(text if "<image>" in text else "<image>" * len(pictures) + text, pictures).segments

  common.initialize()
  from orthus_jax.inference import model as model_lib
  from orthus_jax.inference.requests import Request
  from orthus_jax.inference.responses import Finished, Preview, TextPiece

  model = model_lib.load(args.model)
  how = with_fields(model.config.sampling, chosen)
  model = model.in_int8() if how.weights == "int8" else model
  requests = [
      Request(Document(tuple(segments)), respond=args.respond, seed=seed, sampling=how, max_images=args.max_images)
      for seed in range(args.seed, args.seed + args.count)
  ]
  talks = args.count == 1 and not args.json and sys.stdout.isatty()
  answered: dict[int, Document] = {}
  for event in model.stream(requests, batch_size=args.batch_size, preview_rows=args.preview, strict=True):
    if isinstance(event, Finished):
      answered[event.index] = event.document
    elif isinstance(event, TextPiece) and talks:
      print(event.text, end="", flush=True)
    elif isinstance(event, Preview):
      images_lib.save_png(_preview_file(out, event.index), event.pixels)
  for i in range(args.count if args.preview else 0):
    _preview_file(out, i).unlink(missing_ok=True)
  responses = [answered[i].segments[len(segments):] for i in range(args.count)]

  files = output_files.write(out, segments, responses)
  if args.json:
    told = [output_files.as_json(r, f) for r, f in zip(responses, files)]
    json.dump({"responses": told, "seconds": time.monotonic() - begin}, sys.stdout, indent=2)
    print()
    return 0
  if talks:
    print()
  for response, paths in zip(responses, files):
    names = iter(paths)
    for s in response:
      if isinstance(s, Image):
        print(f"[{next(names, 'picture')}]")
      elif not talks:
        print(s.text)
  if out is not None and out.suffix in (".md", ".html"):
    print(f"written: {out}")
  if not any(responses):
    print("(the model ended without a word)", file=sys.stderr)
  return 0


def _serve(args: argparse.Namespace, chosen: dict[str, Any]) -> int:
  """Answers a file of requests."""
  if args.prompt or args.image or args.count != 1 or args.max_images is not None:
    raise BadRequest("--requests says what is asked: leave --prompt, --image, --count and --max-images out")
  if not args.out or Path(args.out).suffix in (".png", ".md", ".html"):
    raise BadRequest("--requests needs --out=DIR, a directory for results.jsonl and pictures")
  if args.requests != "-" and not Path(args.requests).is_file():
    raise BadRequest(f"--requests={args.requests} is no file")
  check_writable(Path(args.out), option="--out")
  check_writable(Path(args.out) / "results.jsonl", option="--out", file=True)
  common.initialize()
  from orthus_jax.inference import model as model_lib, requests_file

  model = model_lib.load(args.model)
  base = with_fields(model.config.sampling, chosen)
  model = model.in_int8() if base.weights == "int8" else model
  with lock.hold(Path(args.out)):  # of two that write results.jsonl, the first one's would be lost
    counts = requests_file.serve(
        model, args.requests, Path(args.out), base=base, respond=args.respond, seed=args.seed, batch_size=args.batch_size,
        preview_rows=args.preview, quiet=args.json,
    )  # fmt: skip
  if args.json:
    print(json.dumps(counts))
  else:
    before = f" ({counts['before']} of them before)" if counts["before"] else ""
    print(
        f"{counts['finished'] + counts['before']} of {counts['requests']} requests answered{before},"
        f" {counts['failed']} failed: {Path(args.out) / 'results.jsonl'}"
    )
  return 1 if counts["failed"] else 0


def _preview_file(out: Path | None, index: int) -> Path:
  if out is not None and out.suffix:
    return out.with_name(f"{out.stem}-{index}.preview.png" if index else f"{out.stem}.preview.png")
  return (out or Path("generated")) / f"picture-{index:03d}.preview.png"
