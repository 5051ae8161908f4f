"""`orthus train`: a config file in, a trained model and a report out."""

from __future__ import annotations

from collections.abc import Sequence
import difflib
import importlib.util
import json
import logging
from pathlib import Path
import re
import sys
import time
import traceback
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from orthus_jax import errors
from orthus_jax.commands import common
from orthus_jax.config import Config, from_dict, to_dict
from orthus_jax.errors import BadRequest, Stopped
from orthus_jax.parallel import processes

_log = logging.getLogger("orthus_jax.train")

_HELP = """usage: orthus train --config=FILE[:ARGUMENT] --workdir=DIR [--config.some.field=value ...] [--json] [--debug]

Trains what the config file describes. Where a run starts: its workdir's newest complete checkpoint > --resume_from >
--init_from (or run.init_from) > scratch. A workdir of another config is refused, unless it differs only in where and how
fast the same numbers are computed (mesh, remat, accumulation, …) and in what is logged and kept.

  --config=configs/shapes.py         the config file; what follows a colon is passed to its get_config
  --config.run.steps=200             overrides a field
  --workdir=runs/shapes              gets config, metrics, checkpoints and report
  --resume_from=runs/other           goes on from another run's whole state, or one of its checkpoints (run.resume_from)
  --init_from=runs/other             starts with another run's parameters, or a published checkpoint's (run.init_from)
  --json                             prints the report's figures as JSON
  --debug                            shows tracebacks

Several processes train one model when each is started with the same command. SLURM, Open MPI, GKE and Cloud TPU pods are
recognised; elsewhere, say who is who:

  --coordinator=HOST:PORT            where process 0 listens
  --processes=4 --process_id=0       how many there are, and which this is; --processes=auto asks the cluster, 1 is alone
  --join_timeout=300                 seconds to wait for the others

On SIGTERM or Ctrl-C the step under way ends and a checkpoint is saved; a second signal stops at once. Exit status: 0 done,
1 stopped by what the message says, 2 a request that can't be served, 75 preempted (start the same command again), 76 a step
hung or another process was lost, 130 interrupted.
"""

_PROCESS_FLAGS = ("--coordinator", "--processes", "--process_id", "--join_timeout")


def load_config(spec: str) -> Config:
  """The config of FILE or FILE:ARGUMENT, whose get_config returns an ml_collections ConfigDict.

  Raises:
    BadRequest: on a missing or broken file, an unknown field or a wrong type.
  """
  file, colon, argument = spec.partition(":")
  path = Path(file)
  if not path.is_file():
    raise BadRequest(f"there is no config file {file!r}; configs/ has some")
  module_spec = importlib.util.spec_from_file_location(f"orthus_config_{path.stem}", path)
  if module_spec is None:
    raise BadRequest(f"{file!r} is no Python file")
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    values = module.get_config(argument) if colon else module.get_config()
  except BadRequest:
    raise
  except Exception as e:  # whatever a user's file may raise
    raise BadRequest(f"the config file {file} fails: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}") from e
  if not isinstance(values, ConfigDict):
    raise BadRequest(f"get_config of {file} must return an ml_collections.ConfigDict, not {type(values).__name__}")
  return from_dict(Config, values.to_dict())


def read_config(argv: Sequence[str]) -> tuple[Config, dict[str, Any]]:
  """Reads --config with its overrides, and the other flags.

  Overrides are ml_collections' own (config_flags), over every field, whether or not the file sets it.

  Raises:
    BadRequest: on a missing or broken file, an unknown field or flag, or a wrong type.
  """
  given = [a.partition("=")[2] if "=" in a else None for a in argv if re.match(r"--?config($|=)", a)]
  if not given or not given[-1]:
    raise BadRequest("no --config: give a config file, such as --config=configs/shapes.py")
  argv = [_long_form(a) for a in argv if not re.match(r"--?config($|=)", a)]
  fields = ConfigDict(_tuples(to_dict(load_config(given[-1]))), convert_dict=True)
  names = ["--config", "--workdir", "--json", "--debug", "--resume_from", "--init_from", *_PROCESS_FLAGS, *_flag_names(fields, "--config")]
  tuples = {name for name in names if isinstance(_field(fields, name), tuple)}
  for a in argv:
    name = re.sub("^-+", "--", a.partition("=")[0])
    if not a.startswith("-"):
      raise BadRequest(f"unexpected argument {a!r}; options read --name=value")
    if name not in names:
      near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
      raise BadRequest(f"unknown {'field' if '.' in name else 'option'} {name}; the nearest is {near}")
    if "=" not in a and name != "--json":
      raise BadRequest(f"{a} lacks a value: write {a}=VALUE")
    if name in tuples and a.partition("=")[2].lstrip().startswith("{"):
      raise BadRequest(f"{a}: expected a list")  # a set or mapping would become one in silence

  # Of a field given twice the last counts; the library would join two lists.
  argv = list({re.sub("^-+", "--", a.partition("=")[0]): a for a in argv}.values())
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict("config", fields, flag_values=values, sys_argv=["orthus", *argv])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("json", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_string("processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    flags.DEFINE_float("join_timeout", None, "", flag_values=values)
    values(["orthus", *argv])
    config = from_dict(Config, values.config.to_dict())
  except BadRequest:
    raise
  except Exception as e:  # the library raises many kinds for values that it can't parse
    raise BadRequest(f"bad options: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e
  joining = {"coordinator": values.coordinator, "processes": values.processes, "process_id": values.process_id}
  options = {"workdir": values.workdir, "json": values.json, "joining": joining | {"timeout": values.join_timeout}}
  return config, options


def _long_form(argument: str) -> str:
  """--resume_from and --init_from as the fields that they stand for."""
  name, equals, value = argument.partition("=")
  if equals and name.lstrip("-") == "resume_from":
    return f"--config.run.resume_from={value}"
  if equals and name.lstrip("-") == "init_from":
    return f"--config.run.init_from={(('', value),)!r}"
  return argument


def _tuples(value: Any) -> Any:
  """Lists as tuples, which config_flags can override."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _field(fields: ConfigDict, flag: str) -> Any:
  """What a flag's field holds; None for a flag that is no field's."""
  node: Any = fields
  for part in flag.removeprefix("--config").split(".")[1:]:
    node = node[part]
  return None if flag.partition(".")[0] != "--config" else node


def _flag_names(node: ConfigDict, where: str) -> list[str]:
  """Every field's flag, nested ones dotted."""
  return [
      name for k, v in node.items()
      for name in (f"{where}.{k}", *(_flag_names(v, f"{where}.{k}") if isinstance(v, ConfigDict) else ()))
  ]  # fmt: skip


def main(argv: Sequence[str]) -> int:
  """Trains, and writes the report if the config asks for one."""
  if "--help" in argv or "-h" in argv or not argv:
    print(_HELP)
    return 0
  begin = time.monotonic()
  config, options = read_config(argv)
  if not options["workdir"]:
    raise BadRequest("no --workdir: say where the run is to live, such as --workdir=runs/shapes")
  workdir = Path(options["workdir"])
  processes.start(**options["joining"])
  common.start(verbose=True)
  common.keep_memory()

  from orthus_jax import training_run
  from orthus_jax.training import hosts, preemption, watchdog

  if not hosts.primary():
    logging.getLogger("orthus_jax").setLevel(logging.WARNING)
  try:
    with preemption.Signals() as signals:
      figures = training_run.run(config, workdir, begin=begin, signals=signals)
  except BaseException as e:
    if hosts.several():
      # The others may be waiting for this process, and jax would have it wait for them: none of that from here on.
      _print(e)
      watchdog.leave(_status(e), stacks=not isinstance(e, (BadRequest, Stopped, KeyboardInterrupt)))
    raise
  if options["json"] and hosts.primary():
    json.dump(figures, sys.stdout, indent=2)
    print()
  return 0


def _print(error: BaseException) -> None:
  if isinstance(error, (BadRequest, Stopped)):
    errors.print_error(error)
  else:
    traceback.print_exception(error)


def _status(error: BaseException) -> int:
  """Of a process that isn't alone: what no request or stop explains is most often another process that died."""
  return 2 if isinstance(error, BadRequest) else getattr(error, "status", errors.LOST)
