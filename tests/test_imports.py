"""Imports run one way, between rooms and between files (docs/architecture.md)."""

import ast
import graphlib
from pathlib import Path
import subprocess
import sys

import orthus_jax

ROOT = Path(orthus_jax.__file__).parent
LEVEL = {
    "errors": 0, "paths": 1, "files": 2, "lock": 3, "storage": 3, "lock_record": 2, "output": 2, "progress": 2, "sweep": 2,
    "config": 3, "diffusion": 4, "parallel": 4, "models": 5, "data": 5, "interop": 6, "training": 7, "inference": 8,
    "evaluation": 9, "planning": 9, "serving": 10, "launching": 10, "scores": 10, "sweeping": 10, "tokenizer_run": 10,
    "training_run": 11, "commands": 12, "cli": 13, "__init__": 14,
}  # fmt: skip
APART = {("models", "data"), ("data", "models"), ("evaluation", "planning"), ("planning", "evaluation")}


def _name(path: Path) -> str:
  parts = path.relative_to(ROOT.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for path in ROOT.rglob("*.py")}


def _imports(path: Path, files: dict[str, Path]) -> set[str]:
  """The package's modules that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path} imports by a relative name"
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        found.add(full if full in files else node.module)
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return found & set(files)


def _circle(files: dict[str, Path]) -> list[str]:
  graph = {name: _imports(path, files) - {name} for name, path in files.items()}
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as e:
    return e.args[1]
  return []


def test_rooms_import_one_way():
  wrong = []
  for name, path in FILES.items():
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for imported in _imports(path, FILES) - {"orthus_jax"}:
      other = imported.split(".")[1]
      if other != room and (LEVEL[other] >= LEVEL[room] or (room, other) in APART):
        wrong.append(f"{name} imports {imported}")
  assert not wrong


def test_no_files_import_each_other_in_a_circle():
  assert _circle(FILES) == []


def test_a_circle_is_found(tmp_path):
  package = tmp_path / "orthus_jax"
  package.mkdir()
  for a, b in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
    (package / f"{a}.py").write_text(f"def later():\n  from orthus_jax import {b}\n")
  assert set(_circle({f"orthus_jax.{p.stem}": p for p in package.glob("*.py")})) == {f"orthus_jax.{n}" for n in "abc"}


def test_files_are_read_in_one_sitting():
  lines = sorted(len(path.read_text().splitlines()) for path in FILES.values() if path.stat().st_size)
  assert lines[-1] <= 350 and lines[len(lines) // 2] <= 130


def test_no_other_framework_is_imported_anywhere():
  wrong = []
  for path in FILES.values():
    for node in ast.walk(ast.parse(path.read_text())):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
      names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
      wrong += [f"{path.name}: {n}" for n in names if n.split(".")[0] in ("torch", "transformers", "tensorflow")]
  assert not wrong


def test_data_runs_without_jax_or_tensorflow():
  code = (
      "import sys; import orthus_jax; from orthus_jax.data import images, sequence, packing;"
      "from orthus_jax.data.sources import jsonl;"
      "from orthus_jax.interop import processor;"
      "from orthus_jax.data.shapes import world, builder;"
      "assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules), sys.modules.keys() & {'jax', 'tensorflow', 'torch'}"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
