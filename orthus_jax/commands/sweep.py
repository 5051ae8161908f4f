"""`orthus sweep`: many runs of one config file, and a page that compares them."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import re
import shlex
from typing import Any

from orthus_jax import files, lock, sweep
from orthus_jax.commands import benchmark, common, evaluate as evaluate_command
from orthus_jax.config.ranges import SEED, Range
from orthus_jax.errors import PREEMPTED, BadRequest, Stopped, print_error
from orthus_jax.paths import check_writable, user_path

_EXAMPLES = """examples:
  orthus sweep --config=configs/shapes.py --workdir=sweeps/rates --grid run.seed=0,1,2 --grid optimizer.learning_rate=2e-3,4e-3
  orthus sweep --config=configs/study.py --workdir=sweeps/study --dry-run       a file with a get_sweep says its runs itself
  orthus sweep --config=configs/shapes.py --workdir=sweeps/lr --draws=20 --draw "optimizer.learning_rate=loguniform(1e-4,1e-2)"
The same command goes on with what is missing, and starts again what died. Exit status: 0 all finished, 1 some failed, 2 a
request that can't be served, 75 stopped and saved (start the same command again), 130 interrupted. docs/sweep.md tells more.
"""
_DRAWS = {"uniform": sweep.uniform, "loguniform": sweep.loguniform, "integer": sweep.integer, "choice": sweep.choice}


def _parser() -> common.Parser:
  parser = common.Parser(
      prog="orthus sweep", epilog=_EXAMPLES, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
      usage="orthus sweep --config=FILE[:ARGUMENT] --workdir=DIR [--config.some.field=value ...] [OPTIONS]",
      description="Trains many runs, one after the other or some at once, and writes table.csv, table.json and index.html.",
  )  # fmt: skip
  add, whole = parser.add_argument, common.number
  add("--workdir", type=user_path, default="", metavar="DIR", help="gets a directory for each run, the tables and the page")
  add("--grid", action="append", default=[], metavar="FIELD=V1,V2",
      help="all these values of a field, with all of others' grids and of the file's own runs; repeatable")  # fmt: skip
  add("--draw", action="append", default=[], metavar="FIELD=HOW",
      help="random values: uniform(LOW,HIGH), loguniform(LOW,HIGH), integer(LOW,HIGH) or choice(A,B,…); repeatable")
  add("--draws", type=whole(int, Range(1, 10_000)), metavar="N", help="how many random runs")
  add("--draws-seed", type=whole(int, SEED), metavar="SEED", help="of the random values; default 0")
  add("--jobs", type=whole(int, Range(1, 1024)), default=1, metavar="N", help="runs at once, which share CPU cores or GPUs out")
  add("--evaluate", nargs="?", const="", metavar="OPTIONS",
      help='score each run by `orthus evaluate` too, with options such as --evaluate="--samples=2"')  # fmt: skip
  add("--pictures", type=whole(int, Range(0, 256)), default=8, metavar="N",
      help="pictures that each group draws from the same prompts and seeds; default 8, 0 for none")  # fmt: skip
  add("--prompts", type=user_path, metavar="FILE", help="what they draw, as `orthus generate --requests` reads it")
  mode = parser.add_mutually_exclusive_group()
  mode.add_argument("--dry-run", action="store_true", help="list the runs, what has become of each, and how long is left")
  mode.add_argument("--collect", action="store_true", help="write the tables and the page of what there is; start nothing")
  mode.add_argument("--print", choices=("slurm", "tpu"), help="print what is left as a script for a cluster")
  add("--out", type=user_path, metavar="FILE", help="of --print, in the place of standard output")
  add("--json", action="store_true", help="print what --dry-run lists, or what table.json holds, as JSON")
  return parser


def main(argv: Sequence[str]) -> int:
  """Runs a sweep, or tells what it would run."""
  options, spec, runs = read(argv)
  if options.out and not options.print:
    raise BadRequest("--out is of --print: leave it out; the tables and the page are in --workdir")
  if options.print and options.json:
    raise BadRequest("--print prints a script: leave --json out, or take --dry-run")
  folder = Path(options.workdir)

  from orthus_jax.sweeping import conduct, machine, pictures, scripts, state, todo
  from orthus_jax.sweeping.running import Signals

  prompts = pictures.read_requests(Path(options.prompts)) if options.prompts else ""
  shares = machine.shares(options.jobs)
  strangers = state.open_folder(folder, spec=spec, runs=runs, write=False)
  now = conduct.states(folder, runs)
  if strangers:
    print_error(f"left alone: {len(strangers)} runs in {folder / 'runs'} that aren't of this sweep, such as {strangers[0]}")
  if options.dry_run:
    left = todo.estimate(folder, runs, now)
    _list(runs, now, left, todo.in_all(left, options.jobs), spec, options)
    return 0
  if options.print:
    unfinished = todo.unfinished(runs, now)
    state.open_folder(folder, spec=spec, runs=runs, write=True)  # where the cluster's jobs leave their runs
    return _print(getattr(scripts, options.print), folder.absolute(), spec, unfinished, options)
  if options.collect:
    if not (folder / state.MARK).is_file():
      raise BadRequest(f"--workdir={folder} holds no sweep yet: there is nothing to collect")
    failed = {name: s.error for name, s in now.items() if s.what == "failed"}
    told = conduct.collect(folder, spec, runs, now)
    return _tell(told, folder, failed, options.json, again="the same command without --collect")
  for config in {r.config.data: r.config for r in runs}.values():
    common.check_data_place(config)
  with lock.hold(folder):
    state.open_folder(folder, spec=spec, runs=runs, write=True)
    conduct.make_data([r for r in runs if now[r.id].what != "finished"])
    with Signals() as signals:
      failed = conduct.carry_out(
          folder, runs, shares, signals, quiet=options.json, count=options.pictures, prompts=prompts
      )  # fmt: skip
      told = conduct.collect(folder, spec, runs, conduct.states(folder, runs))
    if signals.count:
      done = sum(r["state"] == "finished" for r in told["runs"])
      raise Stopped(f"stopped with {done} of {len(runs)} runs finished; the same command goes on", status=signals.status)
    return _tell(told, folder, failed, options.json)


def read(argv: Sequence[str]) -> tuple[argparse.Namespace, str, list]:
  """The options, the config file, and the runs with their configs checked.

  Raises:
    BadRequest: for what is missing or wrong among them.
  """
  config_flags = [a for a in argv if re.match(r"--?config($|=|\.)", a)]
  options = _parser().parse_args([a for a in argv if a not in config_flags])
  spec = next((a.partition("=")[2] for a in reversed(config_flags) if re.match(r"--?config($|=)", a)), "")
  if not spec:
    raise BadRequest("no --config: give a config file, such as --config=configs/shapes.py")
  if not options.workdir:
    raise BadRequest("no --workdir: say where the runs are to live, such as --workdir=sweeps/rates")
  more = _more(options)
  check_writable(Path(options.workdir), option="--workdir")
  common.initialize(devices=False)

  from orthus_jax.sweeping import plan

  common_flags = [a for a in config_flags if re.match(r"--?config\.", a)]
  runs = plan.plan(spec, common=common_flags, more=more, evaluate=options.evaluate)
  for run in runs:
    _check_evaluation(run.evaluate)
  return options, spec, runs


# --- what the command line says -------------------------------------------------------------------------------------


def _more(options: argparse.Namespace) -> list[sweep.Run]:
  """The runs of --grid and --draw."""
  grid: dict[str, list[str]] = {}
  for text in options.grid:
    field, values = _field("--grid", text)
    if field in grid:
      raise BadRequest(f"--grid says twice what {field} is: give all its values in one")
    if not values.strip():
      raise BadRequest(f"an empty grid: {field} has no values")
    grid[field] = _split(values)
  drawn: dict[str, sweep.Draw] = {}
  for text in options.draw:
    field, how = _drawn(*_field("--draw", text))
    if field in drawn:
      raise BadRequest(f"--draw says twice how {field} is drawn: leave one out")
    drawn[field] = how
  if bool(drawn) != (options.draws is not None):
    raise BadRequest("--draw and --draws go together: which fields are drawn, and how many runs")
  if options.draws_seed is not None and not drawn:
    raise BadRequest("--draws-seed is of --draw: leave it out, or say which fields are drawn")
  parts = [sweep.grid(grid)] if grid else []
  if drawn:
    parts.append(sweep.draws(options.draws_seed or 0, options.draws, drawn))
  return sweep.product(*parts) if parts else []


def _field(option: str, text: str) -> tuple[str, str]:
  field, equals, values = text.partition("=")
  if not equals or not field.strip():
    raise BadRequest(f"{option} {text}: write FIELD={'V1,V2' if option == '--grid' else 'uniform(LOW,HIGH)'}")
  return field.strip().removeprefix("--").removeprefix("config."), values


def _split(values: str) -> list[str]:
  """At commas that no bracket and no quote is around."""
  parts, depth, quote = [""], 0, ""
  for c in values:
    if quote:
      quote = "" if c == quote else quote
    elif c in "'\"":
      quote = c
    elif c == "," and not depth:
      parts.append("")
      continue
    else:
      depth += (c in "([{") - (c in ")]}")
    parts[-1] += c
  return [p.strip() for p in parts]


def _drawn(field: str, text: str) -> tuple[str, sweep.Draw]:
  found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
  if not found or found[1] not in _DRAWS:
    raise BadRequest(f"--draw {field}={text}: write uniform(LOW,HIGH), loguniform(LOW,HIGH), integer(LOW,HIGH) or choice(A,B)")
  try:
    arguments = ast.literal_eval(f"({found[2]},)") if found[2].strip() else ()
    return field, _DRAWS[found[1]](*arguments)
  except (ValueError, SyntaxError, TypeError) as e:
    raise BadRequest(f"--draw {field}={text}: {found[1]} takes two numbers, choice any values (texts in quotes)") from e


def _check_evaluation(given: str | None) -> None:
  if given is None:
    return
  try:
    options = evaluate_command.parser().parse_args(["RUN", *shlex.split(given)])
  except (BadRequest, ValueError) as e:
    raise BadRequest(f"--evaluate={given!r}: {e}") from e
  if options.out or options.json:
    raise BadRequest(f"--evaluate={given!r}: leave --out and --json out; the sweep has a place for it")
  options.out = "its place"
  try:
    benchmark.check(options)
  except BadRequest as e:
    raise BadRequest(f"--evaluate={given!r}: {e}") from e
  if options.benchmark in benchmark.JUDGED and not (options.judge or options.data == "shapes"):
    raise BadRequest(f"--evaluate={given!r}: {options.benchmark}'s pictures are judged elsewhere, so runs would have no scores")


# --- what it prints -------------------------------------------------------------------------------------------------


def _list(
    runs: Sequence, now: Mapping[str, Any], left: Mapping[str, float | None], seconds: float | None, spec: str,
    options: argparse.Namespace,
) -> None:  # fmt: skip
  from orthus_jax.progress import duration

  if options.json:
    found = [
        {"id": r.id, "group": r.group, "config": r.spec, "fields": r.fields, "state": now[r.id].what, "step": now[r.id].step,
         "steps": r.config.run.steps, "error": now[r.id].error, "seconds_left": left.get(r.id, 0.0)}
        for r in runs
    ]  # fmt: skip
    print(json.dumps({"runs": found, "seconds_left": seconds, "jobs": options.jobs}, indent=2))
    return
  for r in runs:
    s, steps = now[r.id], r.config.run.steps
    what = f"{s.what}, {s.step} of {steps}" if s.step and s.what != "finished" else s.what
    own = left.get(r.id, 0.0)
    time = "" if r.id not in left else "unknown" if own is None else f"about {duration(own)}"
    print(f"{what:<22} {time:<18} {r.id}" + (f"  ({s.error})" if s.error else ""))
    if r.spec != spec or r.fields:
      print(" " * 42 + "  ".join([r.spec, *(f"{f}={v}" for f, v in r.fields.items())]))
  counts = {what: sum(s.what == what for s in now.values()) for what in dict.fromkeys(s.what for s in now.values())}
  told = "unknown until one has run" if seconds is None else f"about {duration(seconds)} with --jobs={options.jobs}"
  listed = ", ".join(f"{n} {what}" for what, n in counts.items())
  print(f"{len(runs)} runs: {listed}" + (f"; time left: {told}" if left else ""))


def _print(script, folder: Path, spec: str, left: Sequence, options: argparse.Namespace) -> int:
  if not left:
    raise BadRequest(f"nothing is left to print: all runs of {folder} are finished or under way; --collect writes the tables")
  more = {"at_once": options.jobs if options.jobs > 1 else None} if options.print == "slurm" else {}
  text = script(folder, spec, left, **more)
  if not options.out:
    print(text, end="")
    return 0
  out = Path(options.out)
  check_writable(out, option="--out", file=True)
  out.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(out, text)
  return 0


def _tell(
    told: Mapping[str, Any], folder: Path, failed: Mapping[str, str], as_json: bool, again: str = "the same command"
) -> int:
  """The summary, and the exit status."""
  states = [r["state"] for r in told["runs"]]
  if as_json:
    print(json.dumps(told, indent=2))
  else:
    print(f"{states.count('finished')} of {len(states)} runs finished: {folder / 'index.html'}, table.csv and table.json")
  for name, error in failed.items():
    print_error(f"{name} failed: {error}")
  if failed:
    logs = f"their logs are in {folder / 'logs'}"
    print_error(f"{len(failed)} of {len(states)} runs failed; {logs}; {again} starts them again")
    return 1
  if running := states.count("running"):
    print_error(f"{running} runs are under way elsewhere; start the same command again when they are done")
    return PREEMPTED
  return 0
