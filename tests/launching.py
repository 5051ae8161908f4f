"""What tests of `orthus launch` share: the command, stand-ins for its tools, and processes that are told who they are."""

import os
from pathlib import Path
import shutil
import sys

import pytest

from orthus_jax import cli

ROOT = Path(__file__).parent.parent
SHAPES = f"--config={ROOT / 'configs/shapes.py'}"
ORTHUS_7B = f"--config={ROOT / 'configs/orthus_7b.py'}"
PODS = ("--image=images.example.com/orthus:1", "--volume=gs://bucket:/shared")
CLOUD = ("--project=p", "--zone=us-east5-a")
INPUTS = ("--config.data.path=gs://bucket/data", "--config.data.tokenizer=gs://bucket/tokenizer.json")
TPU = ("--topology=v5p:4x4x4", "--slices=2", f"{ORTHUS_7B}:post-2xv5p-128", *INPUTS)
GPU = (
    "--topology=h100:8", "--nodes=4", f"{ORTHUS_7B}:post-h100-8", "--config.mesh.fsdp=32", "--config.run.batch_size=32",
    *INPUTS,
)  # fmt: skip


def launch(capsys, *argv: str, workdir: str = "/shared/run") -> str:
  """What the command prints where all is well."""
  status = cli.main(["launch", f"--workdir={workdir}", *argv])
  told = capsys.readouterr()
  assert status == 0, told.err
  return told.out


def dry(capsys, *argv: str, workdir: str = "/shared/run") -> str:
  """What it would submit; what follows a -- stays behind it."""
  return launch(capsys, "--dry-run", *argv, workdir=workdir)


def stand_in(folder: Path, name: str, body: str = "") -> None:
  """A command that writes down its arguments, a line each, then does what `body` says."""
  file = folder / name
  file.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > {folder}/{name}.arguments\n{body}\n')
  file.chmod(0o755)


def checker(name: str) -> str:
  """A linter that comes with the tests' extra."""
  found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  if found is None:
    assert "ORTHUS_REQUIRE_PARITY" not in os.environ, f"{name} is missing"
    pytest.skip(f"{name} isn't installed")
  return found
