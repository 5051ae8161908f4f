"""`orthus launch`: a run submitted to a cluster, or what would be submitted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import difflib
from pathlib import Path
import re
from typing import Any

from orthus_jax.commands import common, sweep as sweep_command
from orthus_jax.config.command_line import read_config
from orthus_jax.config.ranges import Range
from orthus_jax.errors import BadRequest
from orthus_jax.paths import user_path
from orthus_jax.storage.bucket import is_url

_EXAMPLES = """examples:
  orthus launch --on=slurm --topology=h100:8 --nodes=4 --config=configs/NAME.py --workdir=/shared/runs/NAME -- --partition=gpu
  orthus launch --on=jobset --topology=v5e:16x16 --config=configs/orthus_7b.py:post-v5e-256 \\
      --workdir=gs://my-bucket/runs/post --config.data.path=gs://my-bucket/data/mix \\
      --config.data.tokenizer=gs://my-bucket/anole/tokenizer.json --init_from=gs://my-bucket/anole \\
      --image=images.example.com/orthus:1 --dry-run
What follows -- goes to the tool as it is. Runs that were preempted (exit status 75) or lost a host (76) go on by themselves;
others don't. docs/launching.md tells what each kind takes and prints. Exit status: the tool's, or 2 for a bad request.
"""
_TRAIN = r"--?(config($|=|\.)|resume_from=|init_from=|join_timeout=)"  # options of `orthus train`
_SPECIAL = ("image", "env", "volume", "selector", "namespace", "queue", "service_account", "project", "zone", "cluster",
            "setup", "sweep")  # fmt: skip


def _parser() -> common.Parser:
  from orthus_jax.launching import kinds

  parser = common.Parser(
      prog="orthus launch", epilog=_EXAMPLES, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
      usage="orthus launch --on=KIND --topology=CHIP:SHAPE --config=FILE[:ARGUMENT] --workdir=DIR"
      " [--config.some.field=value ...] [OPTIONS] [-- OPTIONS OF THE TOOL]",
      description="Submits a training run:\n" + "\n".join(f"  {name:<18}{kind.what}" for name, kind in kinds.KINDS.items())
      + f"\n  {kinds.JOBSET:<18}jobset-tpu or jobset-gpu, as --topology says",
  )  # fmt: skip
  add, whole = parser.add_argument, common.number
  add("--on", default="", metavar="KIND", help="where: one of those above")
  add("--workdir", type=user_path, default="", metavar="DIR",
      help="of the run: gs://…, s3://…, or a path on a disk that all machines share")  # fmt: skip
  add("--topology", default="", metavar="CHIP:SHAPE", help="as of `orthus plan`: v5e:16x16, v5p:4x4x4, h100:8")
  add("--slices", "--nodes", dest="slices", type=whole(int, Range(1, 4096)), default=1, metavar="N",
      help="slices, or nodes, of that topology; default 1")  # fmt: skip
  add("--name", default="", help="the job's; default its config's")
  add("--restarts", type=whole(int, Range(0, 10_000)), default=100, metavar="N", help="at most; default 100")
  add("--grace", type=whole(int, Range(1, 3600)), default=120, metavar="SECONDS",
      help="to save a checkpoint in, from SIGTERM on; default 120")  # fmt: skip
  add("--dry-run", action="store_true", help="print what would be submitted")
  add = parser.add_argument_group("slurm").add_argument
  add("--sweep", action="store_true", help="an array of a sweep's runs, with the options of `orthus sweep`")
  add = parser.add_argument_group("containers (jobset, xpk, queued-resources)").add_argument
  add("--image", default="", help="that holds orthus_jax (launch/Dockerfile) and the config file")
  add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable; repeatable")
  add("--volume", action="append", default=[], metavar="WHAT:DIR",
      help="a PersistentVolumeClaim or gs://BUCKET, or a host's directory of queued-resources, seen as DIR; repeatable")
  add = parser.add_argument_group("Kubernetes (jobset)").add_argument
  add("--selector", action="append", default=[], metavar="LABEL=VALUE", help="that nodes must have; repeatable")
  add("--namespace", default="")
  add("--queue", default="", help="Kueue's local queue")
  add("--service-account", default="", metavar="NAME", help="the pods'")
  add = parser.add_argument_group("Google Cloud (xpk, queued-resources)").add_argument
  add("--project", default="", metavar="ID")
  add("--zone", default="")
  add("--cluster", default="", metavar="NAME", help="xpk's")
  add("--setup", type=user_path, default="", metavar="FILE",
      help="shell script that each host of queued-resources runs first, as root: it mounts the shared disk")  # fmt: skip
  return parser


def main(argv: Sequence[str]) -> int:
  """Submits a run; returns the tool's exit status."""
  argv, more = _split(argv)
  train = [a for a in argv if re.match(_TRAIN, a)]
  options, rest = _parser().parse_known_args([a for a in argv if a not in train])
  if rest and not options.sweep:
    raise BadRequest(_strange(rest[0]))
  if not options.on:
    raise BadRequest("no --on: say where, such as --on=slurm (`orthus launch --help` lists the kinds)")
  spec = next((a.partition("=")[2] for a in reversed(train) if re.match(r"--?config($|=)", a)), "")
  if not spec:
    raise BadRequest("no --config: give a config file, such as --config=configs/shapes.py")
  if not options.workdir:
    raise BadRequest("no --workdir: say where the run is to live, such as --workdir=/shared/runs/shapes")

  from orthus_jax.launching import inputs, job as job_lib, kinds, slurm
  from orthus_jax.planning import hardware

  topology = hardware.parse(options.topology, options.slices) if options.topology else None
  name, kind = kinds.find(options.on, topology)
  given = {option: getattr(options, option) for option in _SPECIAL}
  kinds.check_options(name, kind, given, in_bucket=is_url(options.workdir))
  if kind.local and (options.slices > 1 or more):
    raise BadRequest(f"--on={name} is this machine alone: leave out {'--nodes' if options.slices > 1 else more[0]}")
  if not kind.local:
    job_lib.check_workdir(options.workdir, sweep=options.sweep)
  job_lib.check_name(options.name or job_lib.name_of(spec))
  job = job_lib.Job(
      name=options.name or job_lib.name_of(spec), config=spec, workdir=options.workdir,
      flags=tuple(a for a in train if not re.match(r"--?config($|=)", a)), topology=topology, restarts=options.restarts,
      grace=options.grace, image=options.image, environment=_pairs("--env", options.env),
      volumes=tuple(_volume(v) for v in options.volume), selectors=_pairs("--selector", options.selector),
      namespace=options.namespace, queue=options.queue, service_account=options.service_account, project=options.project,
      zone=options.zone, cluster=options.cluster, setup=_read(options.setup) if options.setup else "", more=tuple(more),
  )  # fmt: skip
  if options.sweep:
    text = _array([*train, *rest, f"--workdir={job.workdir}"], topology, write=not options.dry_run)
    submission = slurm.array(job, text)
  else:
    config, _ = read_config(train)
    if topology is not None:
      kinds.check_mesh(config, topology)
    inputs.check(config, container="image" in kind.needs)
    submission = kind.submission(job)
  if options.dry_run:
    print(submission.shown(), end="")
    return 0
  return submission.submit()


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """This verb's arguments, and those behind a -- for the tool."""
  argv = list(argv)
  at = argv.index("--") if "--" in argv else len(argv)
  return argv[:at], argv[at + 1 :]


def _strange(argument: str) -> str:
  if not argument.startswith("-"):
    return f"unexpected argument {argument!r}; options read --name=value, and what is the tool's own stands behind --"
  name = argument.partition("=")[0]
  known = sorted(o for action in _parser()._actions for o in action.option_strings)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
  return f"unknown option {name}; the nearest is {near}; what is the tool's own stands behind --"


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
  for text in texts:
    if not re.match(r"[^=\s]+=", text):
      raise BadRequest(f"{option}={text}: write NAME=VALUE")
  return dict(text.split("=", 1) for text in texts)


def _volume(text: str) -> tuple[str, str]:
  what, _, where = text.rpartition(":")
  if not what or not where.startswith("/") or what.startswith("gs:") and not re.fullmatch(r"gs://[^/]+", what):
    raise BadRequest(f"--volume={text}: write CLAIM:/DIR, gs://BUCKET:/DIR or, of queued-resources, /HOSTDIR:/DIR")
  return what, where


def _read(path: str) -> str:
  try:
    return Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as e:
    raise BadRequest(f"--setup={path} can't be read: {getattr(e, 'strerror', None) or 'it is no text'}") from e


def _array(argv: list[str], topology: Any, *, write: bool) -> str:
  """The script of a sweep's array, as `orthus sweep --print=slurm` has it."""
  options, spec, runs = sweep_command.read(argv)

  from orthus_jax.launching import inputs, kinds
  from orthus_jax.sweeping import scripts, state, todo

  for run in runs:
    kinds.check_mesh(run.config, topology)
    inputs.check(run.config, container=False)
  folder = Path(options.workdir)
  left = todo.unfinished(runs, {run.id: state.read(folder, run) for run in runs})
  if not left:
    raise BadRequest(f"nothing is left to launch: all runs of {folder} are finished or under way")
  state.open_folder(folder, spec=spec, runs=runs, write=write)
  return scripts.slurm(folder, spec, left, at_once=options.jobs if options.jobs > 1 else None)
