"""`orthus plan`: what a config's training step takes on devices that aren't here."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import json
from pathlib import Path
import re
import sys
from typing import Any

from orthus_jax.commands import common
from orthus_jax.config.command_line import read_config
from orthus_jax.config.ranges import Range, shown
from orthus_jax.errors import BadRequest
from orthus_jax.paths import user_path

_HELP = """usage: orthus plan --config=FILE[:ARGUMENT] --topology=CHIP:SHAPE [--slices=N] [--config.some.field=value ...]
                   [--search [--limit=N] | --generate=ROWS | --against=FILE] [--whole] [--json] [--debug]
       orthus plan --calibration [--whole] [--json]

Compiles the config's real training step for a topology and says what it takes: memory, FLOPs, bytes, collectives, and
time. No accelerator is needed; for TPUs, libtpu is (pip install 'orthus_jax[tpu]'). A TPU's compiler is stopped when the
program is optimised, scheduled and laid out in memory, which is all that a plan is made from.

  --config=configs/orthus_7b.py:post-v5e-256    the config file, as for `orthus train`
  --config.run.batch_size=512                   overrides a field
  --topology=v5e:16x16                          chips along each dimension: v4, v5p, tpu7x (three), v5e, v6e (two), a100, h100,
                                                h200, b200, gb200 and cpu (one). A v5p-128 has 64 chips: v5p:4x4x4. A tpu7x
                                                chip is two devices
  --slices=2                                    of that shape, joined by the data-centre network
  --search                                      tries meshes, what is computed again, and batch sizes; prints the best that
                                                fits as overrides to paste; for TPUs
  --limit=12                                    programs that --search compiles at most
  --generate=64                                 plans generation instead: a picture for each of so many prompts at once
  --whole                                       has a TPU's compiler go on to machine code, minutes longer: shows the program's
                                                own size, and what goes wrong only there, as a kernel that needs too much
                                                on-chip memory
  --against=FILE                                a report of --json to compare with; not with --json itself
  --json                                        prints the report as JSON
  --calibration                                 instead plans the published runs that the calibrated time is fitted to

Exit status: 0 if the plan fits (or no TPU says whether), 3 if it doesn't, 2 for a bad request, 1 where what the compiler
wrote can't be read.
"""
_OWN = ("topology", "slices", "search", "limit", "generate", "against", "calibration", "whole")
# What each way of planning would leave unused.
_USELESS = {
  "calibration": ("topology", "slices", "search", "limit", "generate", "against"),
  "search": ("generate", "against"),
  "generate": ("against",),
}
_DOES_NOT_FIT = 3


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
  """This verb's own options, and the rest, which `read_config` knows."""
  own, rest = {}, []
  for a in argv:
    found = re.fullmatch(r"--?(\w+)(?:=(.*))?", a, re.DOTALL)
    if not found or found.group(1) not in _OWN:
      rest.append(a)
      continue
    name, value = found.groups()
    if name in ("search", "calibration", "whole"):
      if value is not None:
        raise BadRequest(f"--{name} takes no value")
      value = ""
    if value is None:
      raise BadRequest(f"--{name} lacks a value: write --{name}=VALUE")
    own[name] = value
  return own, rest


def _check(own: dict[str, str]) -> None:
  """Refuses options that would do nothing beside others."""
  for way, useless in _USELESS.items():
    if way in own and (other := next((name for name in useless if name in own), "")):
      raise BadRequest(f"--{way} has no use for --{other}: leave one of them out")
  if "limit" in own and "search" not in own:
    raise BadRequest("--limit is of --search: leave it out, or add --search")


def _number(own: dict[str, str], name: str, default: int, *, most: int = 2**20) -> int:
  value = own.get(name, str(default))
  if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) not in Range(1, most):
    told = value if re.fullmatch(r"[+-]?[0-9.]{1,40}", value) else shown(value)
    raise BadRequest(f"--{name}={told} must be a whole number of {Range(1, most)}")
  return int(value)


def _prepare(chips: int) -> None:
  """Settings of a machine without accelerators, ahead of jax's start."""
  common.initialize(devices=False)  # the settings that follow decide which
  import jax

  jax.config.update("jax_platforms", "cpu")
  # A program compiled for a described device can't be read back from the cache.
  jax.config.update("jax_enable_compilation_cache", False)
  if chips:
    try:
      jax.config.update("jax_num_cpu_devices", chips)
    except RuntimeError:
      pass  # jax has started already; `hardware.devices` says so if there are too few


def _make(kind: str, config: Any, topology: Any, **kwargs: Any) -> Any:
  """One plan in a fresh process: of a training step ("report") or of generation ("generator")."""
  _prepare(0 if topology.chip.platform == "tpu" else topology.devices)
  from orthus_jax.planning import generator, report

  return {"report": report, "generator": generator}[kind].make(config, topology, **kwargs)


def main(argv: Sequence[str]) -> int:
  """Prints a plan."""
  if "--help" in argv or "-h" in argv or not argv:
    print(_HELP)
    return 0
  own, rest = _split(argv)
  _check(own)
  stop_at = "code" if "whole" in own else "schedule"
  from orthus_jax.planning import child_process, hardware

  if "calibration" in own:
    if strange := [a for a in rest if a != "--json"]:
      raise BadRequest(f"--calibration plans published runs alone: leave out {strange[0]}")
    from orthus_jax.planning import calibration

    planned = functools.partial(child_process.run, _make, "report", stop_at=stop_at)
    return calibration.show(make=planned, as_json="--json" in rest)

  config, options = read_config(rest)
  if options["workdir"]:
    raise BadRequest("a plan writes nothing: leave out --workdir")
  if options["json"] and "against" in own:
    raise BadRequest("--against compares on the page, whose place --json takes: leave one of them out")
  if "topology" not in own:
    raise BadRequest("no --topology: say for which devices, such as --topology=v5e:16x16")
  topology = hardware.parse(own["topology"], _number(own, "slices", 1, most=4096))
  other = _read(own["against"]) if "against" in own else None
  from orthus_jax.planning import generator, report, report_text, search

  title = next(a for a in reversed(rest) if a.startswith(("--config=", "-config="))).partition("=")[2]
  against = report.read(other) if other is not None else None
  # A TPU's compiler is left behind at its schedule, in a process that ends; other platforms' compilers are done by then.
  run = child_process.run if topology.chip.platform == "tpu" else lambda f, *args, **kwargs: f(*args, **kwargs)
  common_to_all = {"title": title, "stop_at": stop_at}
  if "generate" in own:
    rows = _number(own, "generate", 1)
    drawn = run(_make, "generator", config, topology, rows=rows, **common_to_all)
    print(
      json.dumps(drawn.to_json(), indent=2) if options["json"] else generator.text(drawn),
      end="\n" if options["json"] else "",
    )
    return _DOES_NOT_FIT if drawn.fits is False else 0

  def make(config: Any) -> report.Plan:
    return run(_make, "report", config, topology, **common_to_all)

  if "search" in own:
    tried = search.search(config, topology, limit=_number(own, "limit", 12), make=make, progress=_say)
    return search.show(tried, as_json=options["json"])
  plan = make(config)
  if options["json"]:
    json.dump(plan.to_json(), sys.stdout, indent=2)
    print()
  else:
    print(report_text.text(plan, config=config, against=against), end="")
  return _DOES_NOT_FIT if plan.fits is False else 0


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _read(path: str) -> dict:
  try:
    return json.loads(Path(user_path(path)).read_text(encoding="utf-8-sig"))
  except OSError as e:
    raise BadRequest(f"--against={path} can't be read: {e.strerror}") from e
  except ValueError as e:
    raise BadRequest(f"--against={path} is no JSON: {e}") from e
