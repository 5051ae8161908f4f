"""From what a config file and a command line say of a sweep to its runs: each one's config, checked, and its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import re
from typing import Any

from orthus_jax import sweep
from orthus_jax.config import Config, to_dict
from orthus_jax.config.command_line import call, load_config, read_config
from orthus_jax.errors import BadRequest
from orthus_jax.sweep import Run
from orthus_jax.training.checkpoints.agreement import differences

SEED = "run.seed"
_LONGEST = 120  # of a name; file systems take 255 bytes
_LONGEST_VALUE = 32


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run that is to be.

  Attributes:
    id: its directory's name, made of what it says and nothing else: other runs come and go without changing it.
    group: the same without the seed; runs that differ in it alone share it.
    spec: FILE or FILE:ARGUMENT.
    overrides: flags of `orthus train` beside --config.
    fields: dotted field → value, of what the run itself says.
    config: all of it.
    evaluate: options of `orthus evaluate`; None where there is to be none.
  """

  id: str
  group: str
  spec: str
  overrides: tuple[str, ...]
  fields: dict[str, Any]
  config: Config
  evaluate: str | None = None

  @property
  def flags(self) -> list[str]:
    """For `orthus train`."""
    return [f"--config={self.spec}", *self.overrides]


def plan(
    spec: str, *, common: Sequence[str] = (), more: Sequence[Run] = (), evaluate: str | None = None
) -> list[Planned]:
  """The runs of a sweep, with every config built and checked.

  Args:
    spec: FILE or FILE:ARGUMENT, whose get_sweep, if it has one, returns a list of `sweep.Run`.
    common: flags that override fields of all runs.
    more: runs that those of the file are multiplied by.
    evaluate: options of `orthus evaluate`, in the place of the runs' own.

  Raises:
    BadRequest: if the file fails or says nothing of a sweep, a config is refused, or two runs are the same.
  """
  file, colon, argument = spec.partition(":")
  load = (argument,) if colon else ()
  told = call(spec, "get_sweep", *load, missing=_NONE)
  if told is _NONE and not more:
    raise BadRequest(f"{file} has no get_sweep: write one (docs/sweep.md), or say what to vary: --grid run.seed=0,1,2")
  runs = list(more) if told is _NONE else sweep.product(told, more) if more else sweep.chain(told)
  if not runs:
    raise BadRequest(f"get_sweep of {file} returns no runs")
  bases: dict[str, Config] = {}
  planned = []
  for run in runs:
    own = spec if run.argument is None else f"{file}:{run.argument}"
    try:
      if own not in bases:
        bases[own] = load_config(own)
      planned.append(_planned(run, own, bases[own], common, run.evaluate if evaluate is None else evaluate))
    except BadRequest as e:
      said = ", ".join(filter(None, [run.name or run.argument, *(f"{f}={v}" for f, v in run.overrides.items())]))
      raise BadRequest(f"the run {said if len(said) <= 80 else f'{said[:80]}…'}: {e}" if said else str(e)) from e
  _refuse_twins(planned)
  return planned


_NONE = object()


def _planned(run: Run, spec: str, base: Config, common: Sequence[str], evaluate: str | None) -> Planned:
  own = [f"--config.{field}={_text(field, value)}" for field, value in run.overrides.items()]
  for_all = {found[1] for flag in common if (found := re.match(r"--?config\.([^=\s]+)", flag))}
  if both := sorted(for_all & set(run.overrides)):
    raise BadRequest(f"--config.{both[0]} is given for all runs, and the sweep varies it: leave one of them out")
  config, _ = read_config([*common, *own], base)
  tree = to_dict(config)
  fields = {field: _at(tree, field) for field in run.overrides}
  first = run.name or run.argument or ""
  said = {f: v for f, v in fields.items() if f == SEED or f not in (run.named or ())}
  group = _name(first, {f: v for f, v in said.items() if f != SEED})
  return Planned(_name(first, said), group, spec, (*common, *own), fields, config, evaluate)


def _text(field: str, value: Any) -> str:
  """A value as a flag gives it."""
  if isinstance(value, Mapping) or hasattr(value, "items"):
    raise BadRequest(f"{field} is a section: a sweep overrides its fields, such as {field}.{next(iter(value), 'NAME')}")
  if hasattr(value, "item"):  # of numpy
    value = value.item()
  return value if isinstance(value, str) else repr(tuple(value) if isinstance(value, list) else value)


def _at(tree: Any, field: str) -> Any:
  for part in field.split("."):
    tree = tree[part]
  return tree


# --- names ----------------------------------------------------------------------------------------------------------


def _name(first: str, fields: Mapping[str, Any]) -> str:
  """What a run says, fit for a directory's name: "chameleon,optimizer.learning_rate=0.003,seed=1"."""
  last = sorted(fields, key=lambda f: (f == SEED, f))
  text = ",".join(filter(None, [_fit(first), *(f"{short(f)}={_fit(_shown(fields[f]), _LONGEST_VALUE)}" for f in last)]))
  return _fit(text, _LONGEST).lstrip(".-") or "base"


def short(field: str) -> str:
  """A field without its first section, where that leaves no two alike."""
  return field.removeprefix("model.").removeprefix("run.")


def _shown(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _fit(text: str, longest: int = _LONGEST) -> str:
  """The text, where it can be a file's name as it is; else what can be kept of it, and a digest."""
  kept = re.sub(r"[^A-Za-z0-9._+=,-]+", "-", text)
  if kept == text and len(text) <= longest:
    return text
  digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
  return f"{kept[:longest - 7].strip('-')}-{digest}".lstrip("-")


def _of_seed(config: Config) -> Config:
  """A config with whatever runs of its own seed it begins with told apart by nothing else: each seed may have its own."""
  run, own = config.run, f"seed={config.run.seed}"

  def plain(place: str) -> str:
    return "/".join("seed" if own in part.split(",") else part for part in place.split("/"))

  begins = tuple((prefix, plain(place)) for prefix, place in run.init_from)
  return dataclasses.replace(config, run=dataclasses.replace(run, init_from=begins, resume_from=plain(run.resume_from)))


def _refuse_twins(planned: Sequence[Planned]) -> None:
  by_name: dict[str, Planned] = {}
  by_config: dict[str, Planned] = {}
  by_group: dict[str, Planned] = {}
  for run in planned:
    text = json.dumps(to_dict(run.config))
    if text in by_config:
      other = by_config[text].id
      which = f"both {run.id}" if other == run.id else f"{other} and {run.id}"
      raise BadRequest(f"two runs are the same, {which}: leave one out")
    if run.id.casefold() in by_name:  # some file systems know no capitals
      raise BadRequest(f"two runs that differ would both be called {run.id}: give them names of their own")
    by_config[text] = by_name[run.id.casefold()] = run
    first = by_group.setdefault(run.group, run)
    if differing := [d for d in differences(_of_seed(first.config), _of_seed(run.config)) if d.field != SEED]:
      raise BadRequest(f"{first.id} and {run.id} differ in more than their seed ({differing[0]}): give them names of their own")
