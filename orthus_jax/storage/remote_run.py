"""A run's directory as it lies in a bucket: its layout on disk, and what tells a checkpoint that is whole.

A bucket has no renaming that would make a checkpoint appear at once. One that is on its way, in or out, has a marker beside it
(`checkpoints/STEP.unfinished`), set first and removed last, and its manifest is uploaded after all else of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
import re
from typing import TypeVar

_FOLDER = "checkpoints"
MANIFEST = "manifest.json"
_MARK = ".unfinished"
LOCK = "lock"
_CHUNK = re.compile(r"\d+(\.\d+)*")

E = TypeVar("E")


def is_run(names: Collection[str]) -> bool:
  """Whether objects are a run's: its config is the first thing that it has."""
  return "config.json" in names and any(n.startswith(f"{_FOLDER}/") for n in names)


def folders(names: Iterable[str]) -> list[str]:
  """Where runs lie among objects: "" for one that all of them are, or folders of one or two parts."""
  found = sorted(n.removesuffix("config.json").rstrip("/") for n in names if n.split("/")[-1] == "config.json")
  return [""] if "" in found else [f for f in found if f.count("/") < 2]


def mark(step: int) -> str:
  """The name of the marker of a checkpoint on its way."""
  return f"{_FOLDER}/{step}{_MARK}"


def unfinished(names: Iterable[str]) -> list[int]:
  """Steps whose upload or removal was cut off."""
  marks = (n.removeprefix(f"{_FOLDER}/").removesuffix(_MARK) for n in names if n.endswith(_MARK))
  return sorted(int(m) for m in marks if m.isdigit())


def whole_steps(names: Collection[str]) -> list[int]:
  """Steps whose checkpoints are whole, in order.

  Converted checkpoints, and those of earlier versions, have no manifest. Where some of a run's have one, the others count as
  cut off: they may have been copied by other means.
  """
  steps = {step for n in names if (step := step_of(n)) is not None} - set(unfinished(names))
  sealed = {step for step in steps if f"{_FOLDER}/{step}/{MANIFEST}" in names}
  return sorted(sealed or steps)


def step_of(name: str) -> int | None:
  """Which checkpoint an object belongs to."""
  parts = name.split("/")
  return int(parts[1]) if len(parts) > 2 and parts[0] == _FOLDER and parts[1].isdigit() else None


def is_data(name: str) -> bool:
  """Whether an object of a checkpoint holds values of arrays, of which a process that reads a part needs a part."""
  parts = name.split("/")
  return bool(_CHUNK.fullmatch(parts[-1])) or any(p == "d" or p.startswith("ocdbt.process_") for p in parts[:-1])


def of_step(objects: Mapping[str, E], step: int) -> dict[str, E]:
  """The objects of one checkpoint."""
  return {n: e for n, e in objects.items() if step_of(n) == step}


def beside_checkpoints(objects: Mapping[str, E]) -> dict[str, E]:
  """What a run has beside its checkpoints and its lock."""
  return {n: e for n, e in objects.items() if n.split("/")[0] not in (_FOLDER, LOCK)}
