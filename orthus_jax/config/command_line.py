"""A config file and its overrides from a command line, as ml_collections' config_flags reads them."""

from __future__ import annotations

from collections.abc import Sequence
import difflib
import importlib.machinery
import importlib.util
from pathlib import Path
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from orthus_jax.config import Config, from_dict, to_dict
from orthus_jax.errors import BadRequest
from orthus_jax.paths import user_path

_PROCESS_FLAGS = ("--coordinator", "--processes", "--process_id", "--join_timeout")


def load_config(spec: str) -> Config:
  """The config of FILE or FILE:ARGUMENT, whose get_config returns an ml_collections ConfigDict.

  Raises:
    BadRequest: on a missing or broken file, an unknown field or a wrong type.
  """
  file, colon, argument = spec.partition(":")
  values = call(spec, "get_config", *([argument] if colon else []))
  if not isinstance(values, ConfigDict):
    raise BadRequest(f"get_config of {file} must return an ml_collections.ConfigDict, not {type(values).__name__}")
  return from_dict(Config, values.to_dict())


def call(spec: str, function: str, *arguments: Any, missing: Any = None) -> Any:
  """What a function of a config file returns; `missing`, if that is given, where the file has none of that name.

  Raises:
    BadRequest: on a missing or broken file, and for whatever the function raises.
  """
  file = spec.partition(":")[0]
  path = Path(user_path(file))
  if not path.is_file():
    raise BadRequest(f"there is no config file {file!r}; configs/ has some")
  module_spec = importlib.util.spec_from_file_location(f"orthus_config_{path.stem}", path)
  if module_spec is None or not isinstance(module_spec.loader, importlib.machinery.SourceFileLoader):
    raise BadRequest(f"{file!r} is no Python file")
  module = importlib.util.module_from_spec(module_spec)
  try:
    # The file's source, always: kept bytecode is known by the second and the size, and a digit that changes leaves both.
    source = module_spec.loader.get_data(str(path))
    exec(module_spec.loader.source_to_code(source, str(path)), module.__dict__)
    if missing is not None and not hasattr(module, function):
      return missing
    return getattr(module, function)(*arguments)
  except BadRequest:
    raise
  except Exception as e:  # whatever a user's file may raise
    raise BadRequest(f"the config file {file} fails: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}") from e


def read_config(argv: Sequence[str], default: Config | None = None) -> tuple[Config, dict[str, Any]]:
  """Reads --config with its overrides, and the other flags.

  `default` is what they override where there is no --config. They are ml_collections' own (config_flags), over every field,
  whether or not the file sets it.

  Raises:
    BadRequest: on a missing or broken file, an unknown field or flag, or a wrong type.
  """
  given = [a.partition("=")[2] if "=" in a else None for a in argv if re.match(r"--?config($|=)", a)]
  if (not given and default is None) or (given and not given[-1]):
    raise BadRequest("no --config: give a config file, such as --config=configs/shapes.py")
  argv = [_long_form(a) for a in argv if not re.match(r"--?config($|=)", a)]
  base = load_config(given[-1]) if given and given[-1] else default
  fields = ConfigDict(_tuples(to_dict(base)), convert_dict=True)
  names = ["--config", "--workdir", "--json", "--debug", "--resume_from", "--init_from", *_PROCESS_FLAGS]
  names += _flag_names(fields, "--config")
  tuples = {name for name in names if isinstance(_field(fields, name), tuple)}
  sections = {name: node for name in names if isinstance(node := _field(fields, name), ConfigDict)}
  for a in argv:
    name = re.sub("^-+", "--", a.partition("=")[0])
    if not a.startswith("-"):
      raise BadRequest(f"unexpected argument {a!r}; options read --name=value")
    if name not in names:
      near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
      raise BadRequest(f"unknown {'field' if '.' in name else 'option'} {name}; the nearest is {near}")
    if "=" not in a and name != "--json":
      raise BadRequest(f"{a} lacks a value: write {a}=VALUE")
    if name in sections and name != "--config":  # the library would set all of a section's other fields back
      raise BadRequest(f"{name} is a section: override its fields, such as {name}.{next(iter(sections[name]))}=VALUE")
    if name in tuples and a.partition("=")[2].lstrip().startswith("{"):
      raise BadRequest(f"{a}: expected a list")  # a set or mapping would become one in silence

  # Of a field given twice the last counts; the library would join two lists.
  argv = list({re.sub("^-+", "--", a.partition("=")[0]): a for a in argv}.values())
  # Nothing is an empty list; the library would make it a list of one empty text.
  argv = [f"{a}()" if re.sub("^-+", "--", a[:-1]) in tuples and a.endswith("=") else a for a in argv]
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
  workdir = user_path(values.workdir) if values.workdir else values.workdir
  options = {"workdir": workdir, "json": values.json, "joining": joining | {"timeout": values.join_timeout}}
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
