"""The arrays of a published checkpoint: which file holds each, under the released names."""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from orthus_jax.interop import names, safetensors

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DECODER = "model.vqmodel.decoder."


def read_json(file: Path, problems: list[str]) -> dict[str, Any]:
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(values, dict):
      return values
    problems.append(f"{file.name} must hold fields")
  except FileNotFoundError:
    problems.append(f"{file.name} is missing")
  except (OSError, ValueError) as e:
    problems.append(f"{file.name} can't be read as JSON ({str(e).splitlines()[0]})")
  return {}


def find_entries(directory: Path, problems: list[str]) -> tuple[dict[str, safetensors.Entry], bool]:
  """The arrays of all files, and whether some of them can't be known: then nothing can be called missing."""
  index = directory / INDEX_FILE
  weight_map: dict[str, str] = {}
  if index.is_file():
    weight_map = read_json(index, problems).get("weight_map") or {}
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) and f == Path(f).name for f in weight_map.values()):
      problems.append(f"{INDEX_FILE} has no usable weight_map")
      return {}, True
    files = sorted(set(weight_map.values()))
  else:
    files = [SINGLE_FILE] if (directory / SINGLE_FILE).is_file() else []
    if not files:
      other = any(directory.glob("pytorch_model*")) or any(directory.glob("*.bin"))
      problems.append(
          f"there is neither {INDEX_FILE} nor {SINGLE_FILE}"
          + (": only safetensors are read, as a .bin file may run code; save it as safetensors first" if other else "")
      )
  found: dict[str, safetensors.Entry] = {}
  absent = not files
  for name in files:
    held = sum(f == name for f in weight_map.values())
    if not (directory / name).is_file():
      problems.append(f"{name} is missing ({INDEX_FILE} puts {held} arrays there)")
      absent = True
      continue
    try:
      header = safetensors.read_header(directory / name)
    except safetensors.Damaged as e:
      problems.append(str(e))
      absent = True
      continue
    problems += [f"{k} is in {name} and in {found[k].file.name}" for k in header if k in found]
    promised = [k for k, f in weight_map.items() if f == name]
    problems += [f"{k} isn't in {name}, where {INDEX_FILE} puts it" for k in promised if k not in header]
    found |= header
  return found, absent


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
  try:
    header = safetensors.read_header(file)
  except safetensors.Damaged as e:
    problems.append(f"--decoder: {e}")
    return {}
  taken = {names.decoder_key(k): e for k, e in header.items() if names.decoder_key(k)}
  if not any(k.startswith(DECODER) for k in taken):
    problems.append(f"--decoder: {file.name} holds no array called decoder.*")
  return taken
