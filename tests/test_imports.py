"""Imports run one way (docs/architecture.md)."""

import ast
from pathlib import Path
import subprocess
import sys

import orthus_jax

ROOT = Path(orthus_jax.__file__).parent
LEVEL = {
    "typed_config": 0, "model_config": 1, "config": 2, "diffusion": 3, "parallel": 3, "models": 4, "data": 4, "interop": 5,
    "training": 6, "inference": 7, "evaluation": 8, "planning": 8, "serving": 9, "commands": 9, "cli": 10, "__init__": 11,
}  # fmt: skip


def _imports(path: Path):
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [f"{node.module}.{a.name}" for a in node.names]
    elif isinstance(node, ast.Import):
      names = [a.name for a in node.names]
    for name in names:
      parts = name.split(".")
      if parts[0] == "orthus_jax" and len(parts) > 1:
        yield parts[1]


def test_imports_run_one_way():
  wrong = []
  for path in ROOT.rglob("*.py"):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for imported in _imports(path):
      if imported in LEVEL and imported != room and LEVEL[imported] >= LEVEL[room]:
        wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
  assert not wrong


def test_no_other_framework_is_imported_anywhere():
  wrong = []
  for path in ROOT.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
      names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
      wrong += [f"{path.name}: {n}" for n in names if n.split(".")[0] in ("torch", "transformers", "tensorflow")]
  assert not wrong


def test_data_runs_without_jax_or_tensorflow():
  code = (
      "import sys; import orthus_jax; from orthus_jax.data import images, sequence, packing; from orthus_jax.data.sources import folder;"
      "from orthus_jax.interop import processor;"
      "from orthus_jax.data.shapes import world, builder;"
      "assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules), sys.modules.keys() & {'jax', 'tensorflow', 'torch'}"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
