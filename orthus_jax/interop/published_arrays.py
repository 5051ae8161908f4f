"""The arrays of a published checkpoint: which file holds each, under the released names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any

from orthus_jax.interop import json_files, names, safetensors

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.safetensors")
_LISTED = 4  # names that a line holds
DECODER = "model.vqmodel.decoder."


def read_json(file: Path, problems: list[str]) -> dict[str, Any]:
  """The fields of a JSON file.

  Args:
    file: with a byte order mark or without.
    problems: gets a line if there is no such file, or it holds no fields; those returned are none then.
  """
  try:
    values = json_files.load(file)
    if isinstance(values, dict):
      return values
    problems.append(f"{file.name} must hold fields")
  except FileNotFoundError:
    problems.append(f"{file.name} is missing")
  except (OSError, ValueError) as e:
    problems.append(f"{file.name} can't be read as JSON ({str(e).splitlines()[0]})")
  return {}


def find_entries(
    directory: Path, problems: list[str], notes: list[str]
) -> tuple[dict[str, safetensors.Entry], bool]:
  """The arrays of all files, and whether some of them can't be known: then nothing can be called missing.

  As in transformers, a whole model.safetensors goes before an index of others, and an index says which files there are;
  which of them holds an array, the files say themselves.

  Args:
    directory: to look in.
    problems: gets a line for each file and array that isn't there, can't be read or is in question.
    notes: gets a line for each way in which the index and the files differ.
  """
  there = sorted(f.name for f in directory.glob("*.safetensors") if f.is_file())
  files, weight_map = _files(directory, there, problems, notes)
  found: dict[str, safetensors.Entry] = {}
  absent, readable, twice = not files, set(), []
  for name in files:
    if name not in there:
      held = sum(f == name for f in weight_map.values())
      others = [f for f in there if f not in files]
      beside = f"; {_listed(others)} is there, which it doesn't name" if others else ""
      problems.append(f"{name} is missing ({INDEX_FILE} puts {held} arrays there{beside})")
      absent = True
      continue
    try:
      header = safetensors.read_header(directory / name)
    except safetensors.Damaged as e:
      problems.append(str(e))
      absent = True
      continue
    readable.add(name)
    for key, entry in header.items():
      if key in found and weight_map.get(key) not in (name, found[key].file.name):
        problems.append(f"{key} is in {name} and in {found[key].file.name}")
      elif key in found:
        twice.append(key)
      if key not in found or weight_map.get(key) == name:
        found[key] = entry
  moved = []
  for key, name in weight_map.items():
    if key in found and found[key].file.name != name:
      moved.append(key)
    elif key not in found and name in readable and names.canonical(key):
      problems.append(f"{key} isn't in {name}, where {INDEX_FILE} puts it")
  for keys, what in (
      (twice, f"in two files: that of {INDEX_FILE} is read"),
      (moved, f"in another file than {INDEX_FILE} says: read there"),
      ([k for k in found if weight_map and k not in weight_map], f"in no place of {INDEX_FILE}, but in its files: read"),
  ):
    if keys:
      notes.append(f"{_listed(keys)} {'is' if len(keys) == 1 else 'are'} {what}")
  return found, absent


def _files(
    directory: Path, there: list[str], problems: list[str], notes: list[str]
) -> tuple[list[str], dict[str, str]]:
  """Names of the files to read, none of which need be there, and what the index says of them, where it is asked."""
  index = directory / INDEX_FILE
  flaws: list[str] = []
  weight_map = _weight_map(index, flaws) if index.is_file() else {}
  if SINGLE_FILE in there and SINGLE_FILE not in weight_map.values():
    others = [f for f in there if f != SINGLE_FILE]
    if index.is_file() or _shards(others):
      others = [*([INDEX_FILE] if index.is_file() else []), *others]
      notes.append(f"{SINGLE_FILE} is read; passed over: {_listed(others)}")
    return [SINGLE_FILE], {}
  if index.is_file():
    problems += flaws
    return sorted(set(weight_map.values())), weight_map
  if shards := _shards(there):
    notes.append(f"there is no {INDEX_FILE}: {_listed(shards)} are read, which are all")
    return shards, {}
  problem = f"there is neither {INDEX_FILE} nor {SINGLE_FILE}"
  if there:
    problem += f", and {_listed(there)} {'is' if len(there) == 1 else 'are'} not all of a checkpoint's files by their names"
  elif any(directory.glob("pytorch_model*")) or any(directory.glob("*.bin")):
    problem += ": only safetensors are read, as a .bin file may run code; save it as safetensors first"
  problems.append(problem)
  return [], {}


def _weight_map(index: Path, problems: list[str]) -> dict[str, str]:
  before = len(problems)
  weight_map = read_json(index, problems).get("weight_map")
  if len(problems) > before:
    return {}
  if (
      not isinstance(weight_map, dict)
      or not weight_map
      or not all(isinstance(f, str) and f == Path(f).name for f in weight_map.values())
  ):
    problems.append(f"{INDEX_FILE} has no usable weight_map")
    return {}
  return weight_map


def _shards(there: list[str]) -> list[str]:
  """The files of a checkpoint of many, all of which are there; none where that isn't so, or of two such checkpoints."""
  groups: dict[tuple[str, int], dict[int, str]] = {}
  for file in there:
    if match := _SHARD.fullmatch(file):
      groups.setdefault((match[1], int(match[3])), {})[int(match[2])] = file
  whole = [g for (_, n), g in groups.items() if (len(g), min(g), max(g)) == (n, 1, n)]
  return sorted(whole[0].values()) if len(whole) == 1 else []


def _listed(found: list[str]) -> str:
  """Of many names the first."""
  return ", ".join(found[:_LISTED]) + (f", … ({len(found)} in all)" if len(found) > _LISTED else "")


def canonical_entries(found: Mapping[str, safetensors.Entry], problems: list[str]) -> dict[str, safetensors.Entry]:
  """The arrays by the released names, whichever version wrote them."""
  entries: dict[str, safetensors.Entry] = {}
  for key, entry in found.items():
    name = names.canonical(key)
    if name in entries:
      problems.append(f"{key} is there twice, under two names")
    if name:
      entries[name] = entry
  return entries


def decoder_entries(file: Path, problems: list[str]) -> dict[str, safetensors.Entry]:
  """The VQGAN's decoder, by the released names, from a file of its own.

  Args:
    file: a safetensors file; whatever else it holds is left.
    problems: gets a line if it can't be read, or holds no decoder; and for each array that it holds twice.
  """
  try:
    header = safetensors.read_header(file)
  except safetensors.Damaged as e:
    problems.append(f"--decoder: {e}")
    return {}
  taken: dict[str, safetensors.Entry] = {}
  for key, entry in header.items():
    name = names.decoder_key(key)
    if name in taken:  # a running average beside the decoder itself, as trainers keep one
      problems.append(f"--decoder: {key} is there twice, under two names")
    if name:
      taken[name] = entry
  if not any(k.startswith(DECODER) for k in taken):
    problems.append(f"--decoder: {file.name} holds no array called decoder.*")
  return taken
