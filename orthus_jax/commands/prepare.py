"""`orthus prepare`: lays data out on disk for training, whatever layout it comes in."""

from __future__ import annotations

import argparse
import collections
from collections.abc import Sequence
import functools
import itertools
from pathlib import Path
from typing import get_args

from orthus_jax import lock
from orthus_jax.commands import common
from orthus_jax.config import Config
from orthus_jax.config.ranges import Range
from orthus_jax.data.prepared.format import Images
from orthus_jax.data.processes import cores
from orthus_jax.data.sources import registry as sources
from orthus_jax.errors import BadRequest
from orthus_jax.paths import check_writable, user_path
from orthus_jax.progress import bar
from orthus_jax.storage import bring
from orthus_jax.storage.bucket import is_url

_EXAMPLES = """examples:
  orthus prepare --look pictures                        what layout it is, what is in it, what would be skipped
  orthus prepare --source=imagefolder pictures --out=prepared --tokenizer=TOKENIZER --images=jpeg
  orthus prepare --source=llava llava.json --pictures=images --out=prepared --tokenizer=TOKENIZER \\
                 --config=configs/orthus_7b.py:post-h100-8
  orthus prepare --source=llava --help                  how its files lie
  orthus prepare --config=configs/shapes.py             makes the built-in world

Training reads it by --config.data.source=prepared --config.data.path=DIR, or several with shares by data.mixture.
A command that was stopped goes on where it was, to the same bytes. Any field of the config is set by
--config.some.field=value.

sources:
"""
# Options that are fields of `data` by another way of writing.
_FIELDS = ("source", "text", "pictures", "annotations", "split", "pairs", "learn", "max_bad_share", "tokenizer",
           "images_per_document")  # fmt: skip
# Of all options, those that only laying out has a use for, and those that looking has none for.
_LAYS_OUT = ("images", "contamination", "processes")
_NOT_LOOKED_BY = ("out", *_LAYS_OUT, "images_per_document")


def _parser() -> common.Parser:
  listed = "".join(f"  {name:<16} {layout.usage.splitlines()[0]}\n" for name, layout in sources.LAYOUTS.items())
  parser = common.Parser(
      prog="orthus prepare", epilog=_EXAMPLES + listed, allow_abbrev=False,
      usage="orthus prepare [--source=NAME PATH ...] [--config=FILE] [--out=DIR] [options]",
      description="Reads data in any of the layouts below, and lays it out in DIR for training, which then reads it piece"
      " by piece, however large.",
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("paths", nargs="*", type=user_path, metavar="PATH", help="where the data lies")
  parser.add_argument("--source", metavar="NAME", help="its layout")
  parser.add_argument("--look", action="store_true", help="say what lies at PATH, and write nothing")
  parser.add_argument("--out", type=user_path, metavar="DIR", help="where it is laid out; gs://… or s3://… too")
  parser.add_argument("--config", metavar="FILE[:ARGUMENT]",
                      help="the experiment it is for; default the 7B model's, with --tokenizer")  # fmt: skip
  parser.add_argument("--tokenizer", type=user_path, metavar="FILE", help="a tokenizer.json, or the directory of one")
  parser.add_argument("--images", choices=get_args(Images),
                      help="pixels, the default: as they are (786 kB a picture at 512 x 512); jpeg: about a tenth of it;"
                      " features: computed by the vision tokenizer of run.init_from, in bfloat16 (512 KiB)")  # fmt: skip
  parser.add_argument("--text", metavar="NAME,…", help="columns or fields that hold the text, in order of preference")
  parser.add_argument("--pictures", type=user_path, metavar="DIR", help="the folder that paths of pictures start from")
  parser.add_argument("--annotations", metavar="FILE", help="the file that holds the rows, within PATH")
  parser.add_argument("--split", metavar="NAME", help="of the data; default train, where it has one")
  parser.add_argument("--pairs", choices=("both", "to_image", "to_text"),
                      help="what a picture and its caption become; default both")  # fmt: skip
  parser.add_argument("--learn", choices=("layout", "text", "images", "everything"),
                      help="what is to be learnt; default as the layout has it")  # fmt: skip
  parser.add_argument("--images-per-document", dest="images_per_document", metavar="N",
                      help="cuts stories and interleaved documents into ones of so many pictures")  # fmt: skip
  parser.add_argument("--max-bad-share", dest="max_bad_share", metavar="SHARE", help="of rows that may be bad; default 0.01")
  parser.add_argument("--contamination", metavar="FILE,…",
                      help="prompts of benchmarks: the texts that hold them are counted and named")  # fmt: skip
  parser.add_argument("--processes", type=common.number(int, Range(1, 4096)), metavar="N", help="default one a core")
  return parser


def main(argv: Sequence[str]) -> int:
  """Looks at data, makes it, or lays it out."""
  given = [a.partition("=")[2] for a in argv if a.startswith("--source=")] + [
      value for option, value in itertools.pairwise(argv) if option == "--source"
  ]
  named = next(iter(given), "").partition(":")[0]
  if named in sources.LAYOUTS and ("--help" in argv or "-h" in argv):
    layout = sources.LAYOUTS[named]
    takes = sorted(layout.takes - {"argument"})
    print(f"{layout.usage.rstrip()}\n\n  options of it: {', '.join(f'--{t}' for t in takes) or 'none'}")
    return 0
  parser = _parser()
  if not argv:
    parser.print_help()
    return 0
  options, rest = parser.parse_known_args(argv)
  if strange := next((a for a in rest if not a.startswith("--config.")), None):
    parser.error(f"unknown option {strange}; `orthus prepare --help` lists them")
  if options.look:
    return _look(options, rest)
  config = _config(options, rest)
  if not options.out and (unused := _first_given(options, _LAYS_OUT)):
    raise BadRequest(f"{unused} needs --out=DIR: say where the documents are to be laid out")
  options.images = options.images or "pixels"
  if options.out:
    if is_url(options.out):
      from orthus_jax.data.prepared import in_bucket

      in_bucket.check(options.out)
    else:
      check_writable(Path(options.out), option="--out")
    if config.data.source not in ("jsonl", "shapes"):  # these read what their own file names
      _check_apart(options.out, options.paths or [config.data.path])
  common.check_data_place(config)
  common.initialize(verbose=True, devices=options.images == "features")
  return _lay_out(config, options) if options.out else _count(config, options.paths)


def _first_given(options: argparse.Namespace, names: Sequence[str]) -> str:
  """The first of some options that is on the command line; empty where none is."""
  return next((f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None), "")


def _check_apart(out: str, paths: Sequence[str]) -> None:
  """Refuses a place within the data, which would be read as data the next time: it holds pictures and JSON lines too."""
  for path in paths:
    within = out.startswith(f"{path.rstrip('/')}/") if is_url(out) else Path(path).resolve() in Path(out).resolve().parents
    if path and within:
      raise BadRequest(f"--out={out} lies in {path}, where it would be read as data later: choose a place beside it")


def _config(options: argparse.Namespace, rest: Sequence[str]) -> Config:
  """The config that the options ask for."""
  from orthus_jax.config.command_line import read_config

  given = _given(options)
  if options.paths:
    if not options.source and not options.config:
      raise BadRequest(f"say which layout {options.paths[0]} has: --source=NAME, or have it looked at by --look")
  if not options.config and not options.tokenizer:
    raise BadRequest("say which model the data is for: --config=FILE, or --tokenizer=FILE for the 7B model")
  own = [f"--config={options.config}"] if options.config else []
  config, _ = read_config([*own, *(f"--config.data.{k}={v}" for k, v in given.items()), *rest], default=Config())
  if options.paths and config.data.source in ("shapes", "prepared"):
    raise BadRequest(f"{options.paths[0]} is given, and data.source={config.data.source}: say its layout by --source=NAME")
  return config


def _given(options: argparse.Namespace) -> dict[str, str]:
  """What options and the first path say of fields of `data`."""
  given = {name: value for name in _FIELDS if (value := getattr(options, name)) is not None}
  if "text" in given:
    given["text"] = repr(_names(options))
  return given | ({"path": options.paths[0]} if options.paths else {})


def _names(options: argparse.Namespace) -> tuple[str, ...]:
  """The columns or fields of --text."""
  return tuple(t.strip() for t in (options.text or "").split(",") if t.strip())


def _look(options: argparse.Namespace, rest: Sequence[str]) -> int:
  from orthus_jax.config.command_line import read_config
  from orthus_jax.data import look

  if unused := _first_given(options, _NOT_LOOKED_BY):
    raise BadRequest(f"--look writes nothing: leave {unused} out, or --look")
  own = [f"--config={options.config}"] if options.config else []
  config, _ = read_config([*own, *(f"--config.data.{k}={v}" for k, v in _given(options).items()), *rest], default=Config())
  data = config.data
  if len(options.paths) > 1 or not data.path:
    raise BadRequest("--look takes one path: orthus prepare --look PATH")
  common.initialize(devices=False)
  source = options.source or data.source
  name = source.partition(":")[0] if options.source or source.partition(":")[0] in sources.LAYOUTS else ""
  # What is said of the layout, the command that is shown says by options.
  told = {f"--config.data.{name}" for name in (*_FIELDS, "path") if name not in ("tokenizer", "images_per_document")}
  model = [*own, *(a for a in rest if a.partition("=")[0] not in told)]
  if options.tokenizer or not any(a.startswith(("--config=", "--config.data.tokenizer=")) for a in model):
    model.append(f"--tokenizer={options.tokenizer or 'FILE'}")
  found = look.look(
      Path(bring.local(data.path)), name, sources.options(data), learn=data.learn, max_bad_share=data.max_bad_share, model=model
  )
  print(look.describe(found))
  return 0


def _count(config: Config, paths: Sequence[str]) -> int:
  splits = ("train", "validation", "test") if config.data.source == "shapes" else (config.data.split,)
  for split in splits:
    source = sources.open_source(config, split, paths)
    documents = (source[i] for i in range(len(source)))
    kinds = collections.Counter(d.kind if d is not None else "bad" for d in documents)
    print(f"{split}: {len(source)} documents (" + ", ".join(f"{n} {k}" for k, n in sorted(kinds.items())) + ")")
    if set(kinds) == {"bad"}:
      raise BadRequest(f"{split} holds no good document")
  return 0


def _lay_out(config: Config, options: argparse.Namespace) -> int:
  from orthus_jax.data.contamination import Prompts
  from orthus_jax.data.prepared import in_bucket, writer as prepared
  from orthus_jax.training import feature_encoder

  if config.data.source == "prepared":
    raise BadRequest("data.source=prepared is laid out already: set it to the layout of what it was made of")
  named = [Path(user_path(p.strip())) for p in (options.contamination or "").split(",") if p.strip()]
  if options.contamination and not named:
    raise BadRequest("--contamination names no file of prompts")
  prompts = Prompts.read(named) if named else None
  tokenizer = sources.open_tokenizer(config)
  encode, digest = feature_encoder.encoder_of(config) if options.images == "features" else (None, "")
  source = sources.open_source(config, config.data.split, options.paths)
  out = options.out.rstrip("/")
  prepare = functools.partial(
      prepared.prepare, source, tokenizer, config, images=options.images, encode=encode, encoded_by=digest, prompts=prompts,
      processes=options.processes or cores(), progress=bar("preparing", "pictures"),
  )  # fmt: skip
  if is_url(out):
    with in_bucket.laid_out(out) as place:
      made = prepare(place.folder, called=out, completed=place.part, sizes=place.size)
  else:
    with lock.hold(Path(out)):
      made = prepare(Path(out))
  rejected, unreadable = made["rejected"]["records"], made["unreadable"]["stretches"]
  print(
      f"{out}: {made['documents']} documents, {made['pictures']} pictures as {options.images}"
      + (f"; {rejected} rejected (rejected.jsonl)" if rejected else "")
      + (f"; {unreadable} stretches of its files can't be read (rejected.jsonl)" if unreadable else "")
      + f"; some of them: {out}/samples.html"
  )
  if held := made["contamination"]:
    most = ", ".join(f"{name} (in {n})" for name, n in list(held.items())[:3])
    print(f"{len(held)} prompts of benchmarks are in its documents: {most}{', …' if len(held) > 3 else ''}")
  return 0
