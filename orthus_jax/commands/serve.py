"""`orthus serve`: an OpenAI-compatible server on the running batch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import os
from pathlib import Path
import time

from orthus_jax import paths
from orthus_jax.commands import common, sampling
from orthus_jax.config.ranges import Range
from orthus_jax.config.sampling import with_fields
from orthus_jax.errors import BadRequest
from orthus_jax.progress import bar

_EXAMPLES = """examples:
  orthus serve runs/shapes                                       http://127.0.0.1:8000/v1
  orthus serve runs/orthus-7b --rows=32 --steps=50 --solver=dpm
  ORTHUS_API_KEY=… orthus serve runs/shapes --host=0.0.0.0       asks every client for that key
"""
_HERE = ("127.0.0.1", "localhost", "::1")
_log = logging.getLogger("orthus_jax.serve")


def parser() -> common.Parser:
  """The options."""
  parser = common.Parser(
      prog="orthus serve", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
      description="Serves a model over HTTP, as OpenAI's API has it (docs/serving.md). Needs pip install 'orthus_jax[serve]'.",
  )  # fmt: skip
  count = common.number(int, Range(1, 2**16))
  seconds = common.number(float, Range(0, 1e6))
  parser.add_argument("run", type=paths.user_path, metavar="MODEL", help="a run's directory, or a Hugging Face directory")
  parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine alone")
  parser.add_argument("--port", type=common.number(int, Range(0, 65535)), default=8000, help="default 8000; 0: a free one")
  parser.add_argument("--name", help="the model's, as clients give it; default its directory's")
  add = parser.add_argument_group("who may ask").add_argument
  add("--api-key", metavar="KEY", help="that clients must send; in ORTHUS_API_KEY no list of processes shows it")
  add("--open", action="store_true", help="anybody, on a --host that others reach")
  add = parser.add_argument_group("how much").add_argument
  add("--rows", type=count, default=16, help="requests answered at once; default 16")
  add("--guides", type=common.number(int, Range(0, 2**16)), help="lanes for guidance; default as many as rows")
  add("--slots", type=common.number(int, Range(0, 2**30)), default=0, help="positions of a request; default all there are")
  add("--positions", type=count, default=16, help="made between two looks for new requests; default 16")
  add("--queue", type=count, default=64, help="requests that may wait; default 64")
  add("--seconds", type=seconds, default=600.0, help="that an answer may take; default 600")
  add("--max-body", type=common.number(int, Range(1, 4096)), default=32, metavar="MIB", help="of a request; default 32")
  add("--preview-rows", type=count, default=1, help="rows of patches between previews; default 1")
  add("--grace", type=seconds, default=30.0, help="that answers may take once the server is to stop; default 30")
  parser.add_argument("--no-compile", action="store_true", help="start at once, and compile when requests come")
  sampling.add_options(parser)
  return parser


def main(argv: Sequence[str]) -> int:
  """Serves until it is told to stop."""
  options = parser().parse_args(argv)
  given = sampling.given(options)
  key = options.api_key or os.environ.get("ORTHUS_API_KEY", "")
  if options.host not in _HERE and not key and not options.open:
    raise BadRequest(f"--host={options.host} lets others in: set ORTHUS_API_KEY (or --api-key), or say --open")
  try:
    from orthus_jax.serving import run
    from orthus_jax.serving.app import Server, Settings
  except ModuleNotFoundError as e:
    raise BadRequest(f"orthus serve needs {e.name}: pip install 'orthus_jax[serve]'") from e
  listening = run.listen(options.host, options.port)
  common.initialize(verbose=True)

  import dataclasses

  from orthus_jax.inference import model as model_lib
  from orthus_jax.inference.live import Engine, Limits

  begin = time.monotonic()
  model = model_lib.load(options.run)
  how = with_fields(model.config.sampling, given)
  model = model.in_int8() if how.weights == "int8" else model
  model = dataclasses.replace(model, config=dataclasses.replace(model.config, sampling=how))
  limits = Limits(
      rows=options.rows, guides=options.rows if options.guides is None else options.guides, slots=options.slots,
      positions=options.positions, queue=options.queue, preview_rows=options.preview_rows,
  )  # fmt: skip
  engine = Engine(model, limits)
  _log.info("loaded %s in %.1f s", options.run, time.monotonic() - begin)
  name = options.name or Path(options.run).resolve().name
  settings = Settings(name=name, api_key=key, max_body=options.max_body << 20, seconds=options.seconds)
  server = Server(engine, settings)
  return run.serve(server, listening, compile=None if options.no_compile else bar("compiling"), grace=options.grace)
