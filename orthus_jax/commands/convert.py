"""`orthus convert`: published checkpoints in, trained ones out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
from pathlib import Path
import sys
import time

import tqdm

from orthus_jax import files
from orthus_jax.commands import common
from orthus_jax.config.ranges import SEED, Range
from orthus_jax.errors import BadRequest
from orthus_jax.interop import published_head
from orthus_jax.paths import check_writable, user_path
from orthus_jax.storage import bring, send
from orthus_jax.storage.bucket import is_url

_DESCRIPTION = """Turns a Hugging Face directory of Orthus, Anole or Chameleon into a native checkpoint, or a native checkpoint
into a Hugging Face directory, array for array and bit for bit.

A native checkpoint is what `orthus generate` and `orthus evaluate` read, `orthus train` writes, and run.init_from starts
from. A Hugging Face directory holds config.json, safetensors (one file, or several and an index), tokenizer.json and the
image processor's files; the released code and transformers load it.

A plain Chameleon or Anole becomes the start of Orthus' first stage of training: codebook_in is a copy of the VQGAN's
codebook, and the diffusion head is fresh. With --image-head=codes it stays a Chameleon, which draws code by code with its
LM head, as Anole was trained to, and is exported as one. transformers' Chameleon lacks the VQGAN's decoder: without
--decoder, such a model reads pictures but can't draw.

The work is done a piece at a time, in little memory whatever the model's size. What is wrong with the input is all told
at once, and a target appears under its name only when it is complete."""

_EXAMPLES = """examples:
  orthus convert --from=Orthus-7B-instruct --to=runs/orthus-7b
  orthus convert --from=chameleon-7b --decoder=vqgan.safetensors --to=runs/stage1
  orthus convert --from=anole-7b --image-head=codes --to=runs/anole
  orthus convert --from=runs/mine --to=mine-hf --dtype=bfloat16
  orthus train --config=FILE --workdir=DIR "--config.run.init_from=(('','runs/stage1'),)"

No weights come with this project. Those of Orthus derive from Chameleon, whose licence is for non-commercial research;
it binds what you convert, too.
"""


def _parser() -> common.Parser:
  parser = common.Parser(
      prog="orthus convert", description=_DESCRIPTION, epilog=_EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  add = parser.add_argument
  add("--from", dest="source", type=user_path, required=True, metavar="DIR",
      help="a Hugging Face directory; or a run's directory or one of its checkpoints (averaged parameters where it has some)")
  add("--to", dest="target", type=user_path, required=True, metavar="DIR", help="made by the conversion; it must not exist yet")
  add("--format", choices=("native", "huggingface"), help="of --to; default: the other one than that of --from")
  add("--dtype", choices=("keep", "float32", "bfloat16"), default="keep",
      help="of every array; default keep, whatever each is stored in")
  add("--decoder", type=user_path, default="", metavar="FILE",
      help="a safetensors file with the VQGAN's decoder.* and post_quant_conv.*, with or without a prefix")
  add("--image-head", choices=published_head.KINDS,
      help="how a Chameleon or Anole is to draw: diffusion, as an Orthus to be trained, or codes, as it is; default: what its"
      " config.json says that we exported, else diffusion")
  add("--seed", type=common.number(int, SEED), default=0, help="of a fresh diffusion head; default 0")
  add("--shard-size", type=common.number(float, Range(1e-6, 1e6)), default=5.0, metavar="GB",
      help="largest file of a Hugging Face directory; default 5")
  add("--json", action="store_true", help="print what was done as JSON")
  return parser


def main(argv: Sequence[str]) -> int:
  """Converts one checkpoint."""
  options = _parser().parse_args(argv)
  begin = time.monotonic()
  common.initialize()
  from orthus_jax.interop import huggingface
  from orthus_jax.training.checkpoints import conversion, export_huggingface, import_huggingface

  source = Path(bring.local(options.source))
  conversion.check_source(source)  # ahead of what its form refuses
  published = huggingface.is_checkpoint(source)
  form = options.format or ("native" if published else "huggingface")
  if published == (form == "huggingface"):
    its = "a Hugging Face directory" if published else "native"
    raise BadRequest(f"--from={options.source} is {its} already: leave out --format")
  if options.decoder and form == "huggingface":
    raise BadRequest("--decoder is for a conversion from a Hugging Face directory")
  if options.image_head and form == "huggingface":
    raise BadRequest("--image-head is for a conversion from a Hugging Face directory: a native checkpoint says what it is")
  if not is_url(options.target):
    check_writable(Path(options.target).parent, option="--to")
  with files.ended_in_order(), send.sent(options.target) as target, _bar() as progress:
    if form == "native":
      result = import_huggingface.to_native(
          source, target, dtype=options.dtype, decoder=options.decoder, seed=options.seed,
          image_head=options.image_head or "", progress=progress,
      )
    else:
      size = int(options.shard_size * 1e9)
      result = export_huggingface.to_huggingface(source, target, dtype=options.dtype, shard_bytes=size, progress=progress)
  seconds = time.monotonic() - begin
  if options.json:
    print(json.dumps({"to": options.target, "format": form, **dataclasses.asdict(result), "seconds": seconds}, indent=2))
    return 0
  for note in result.notes:
    print(f"note: {note}")
  print(f"written: {options.target} ({result.arrays} arrays, {result.bytes / 1e9:.2f} GB, {seconds:.0f} s)")
  return 0


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
  """A progress bar that is told (bytes done, in all)."""
  with tqdm.tqdm(
      desc="converting", unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True, leave=False,
      disable=not sys.stderr.isatty(),
  ) as bar:  # fmt: skip

    def progress(done: int, in_all: int) -> None:
      bar.total = in_all
      bar.update(done - bar.n)

    yield progress
