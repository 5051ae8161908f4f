"""`orthus train`: a config file in, a trained model and a report out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import json
import logging
from pathlib import Path
import sys
import time
import traceback

from orthus_jax import errors
from orthus_jax.commands import common
from orthus_jax.config import RunConfig
from orthus_jax.config.command_line import read_config
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.parallel import processes
from orthus_jax.paths import check_writable
from orthus_jax.storage import mirror
from orthus_jax.storage.bucket import is_url
from orthus_jax.storage.parts import Parts

_log = logging.getLogger("orthus_jax.train")

_HELP = """usage: orthus train --config=FILE[:ARGUMENT] --workdir=DIR [--config.some.field=value ...] [--json] [--debug]

Trains what the config file describes. Where a run starts: its workdir's newest complete checkpoint > --resume_from >
--init_from (or run.init_from) > scratch. A workdir of another config, tokenizer or data is refused, unless it differs only in
where they lie, where and how fast the same numbers are computed (mesh, remat, accumulation, …), in what is logged and kept, and
in run.steps where the learning rates of the steps done stay the same. To go on otherwise: --workdir=NEW --resume_from=RUN.

  --config=configs/shapes.py         the config file; what follows a colon is passed to its get_config
  --config.run.steps=200             overrides a field
  --workdir=runs/shapes              gets config, metrics, checkpoints and report; gs://… or s3://… too (docs/storage.md)
  --resume_from=runs/other           goes on from another run's whole state, or one of its checkpoints (run.resume_from)
  --init_from=runs/other             starts with another run's parameters, or a published checkpoint's (run.init_from)
  --json                             prints the report's figures as JSON
  --debug                            shows tracebacks

Several processes train one model when each is started with the same command. SLURM, torchrun, GKE and Cloud TPU pods are
recognised. Open MPI, MPICH, Intel MPI, MVAPICH, PALS, Flux and jsrun say how many processes there are and which this is, and
need --coordinator (or MASTER_ADDR and MASTER_PORT) beside, but for Open MPI 4. Elsewhere, say who is who:

  --coordinator=HOST:PORT            where process 0 listens
  --processes=4 --process_id=0       how many there are, and which this is; --processes=auto asks the cluster, 1 is alone
  --join_timeout=300                 seconds to wait for the others

On SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU or Ctrl-C the step under way ends and a checkpoint is saved; a second SIGTERM or
Ctrl-C stops at once. A workdir is one command's at a time. Exit status: 0 done, 1 stopped by what the message says, 2 a request
that can't be served, 75 preempted (start the same command again), 76 a step hung or another process was lost, 130 interrupted.
"""


def main(argv: Sequence[str]) -> int:
  """Trains, and writes the report if the config asks for one."""
  if "--help" in argv or "-h" in argv or not argv:
    print(_HELP)
    return 0
  begin = time.monotonic()
  config, options = read_config(argv)
  if not options["workdir"]:
    raise BadRequest("no --workdir: say where the run is to live, such as --workdir=runs/shapes")
  place = options["workdir"]
  if not is_url(place):
    check_writable(Path(place), option="--workdir")
  common.check_data_place(config)
  common.keep_memory()
  processes.initialize(**options["joining"])
  common.initialize(verbose=True)

  from orthus_jax import training_run
  from orthus_jax.training import hosts, preemption, step_ahead, watchdog

  if not hosts.primary():
    logging.getLogger("orthus_jax").setLevel(logging.WARNING)
  try:
    with preemption.Signals() as signals, _workdir(place, config.run) as (workdir, parts):
      figures = training_run.run(config, workdir, begin=begin, signals=signals, parts=parts, ahead=True)
  except BaseException as e:
    as_ever = "--debug" in sys.argv or isinstance(e, KeyboardInterrupt)
    if step_ahead.under_way() and not as_ever:  # said now, not when all is compiled
      _print(e)
      watchdog.leave(_status(e) if isinstance(e, (BadRequest, Stopped)) else 1, stacks=False)
    if hosts.several():
      # The others may be waiting for this process, and jax would have it wait for them: none of that from here on.
      _print(e)
      if isinstance(e, Stopped) and e.status == errors.PREEMPTED:  # the first that leaves may have SLURM kill the others,
        with contextlib.suppress(Exception):  # of which process 0 may still close its loggers
          hosts.wait("stopped", patience=30)
      watchdog.leave(_status(e), stacks=not isinstance(e, (BadRequest, Stopped, KeyboardInterrupt)))
    raise
  if options["json"] and hosts.primary():
    json.dump(figures, sys.stdout, indent=2)
    print()
  return 0


@contextlib.contextmanager
def _workdir(place: str, run: RunConfig) -> Iterator[tuple[Path, Parts | None]]:
  """A block with the run's directory on disk, which that of a URL is kept like; and what takes parts of checkpoints."""
  if not is_url(place):
    yield Path(place), None
    return

  def kept(steps: list[int]) -> set[int]:
    if run.keep_best:  # which are best is known of those on disk alone
      return set(steps)
    return set(steps[-run.keep_checkpoints :]) | {s for s in steps if run.keep_every and s % run.keep_every == 0}

  from orthus_jax.training import bucket_of_several, hosts
  from orthus_jax.training.checkpoints import manifest

  if hosts.several():
    with bucket_of_several.joined(place, kept=kept) as both:
      yield both
  else:
    with mirror.mirrored(place, kept=kept, damage=manifest.damage) as workdir:
      yield workdir, None


def _print(error: BaseException) -> None:
  if isinstance(error, (BadRequest, Stopped)):
    errors.print_error(error)
  else:
    traceback.print_exception(error)


def _status(error: BaseException) -> int:
  """Of a process that isn't alone: what neither request nor stop explains is most often another process that died."""
  return 2 if isinstance(error, BadRequest) else getattr(error, "status", errors.LOST)
