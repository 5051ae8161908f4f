"""Where libtpu is installed and no TPU is there, JAX isn't made to look for one."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from orthus_jax.parallel import platforms


def _machine(root: Path, *devices: str) -> Path:
  for name in devices:
    (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "dev" / name).touch()
  return root


@pytest.fixture
def installed(monkeypatch):
  """What is installed, beside which nothing is."""
  names = {"libtpu"}
  monkeypatch.setattr(platforms, "_installed", names.__contains__)
  return names


def test_without_a_tpu_the_other_platforms_remain(tmp_path, installed):
  assert platforms.without_tpu(environ={}, root=_machine(tmp_path / "cpu")) == "cpu"
  gpu = _machine(tmp_path / "gpu", "nvidia0", "nvidiactl", "vfio/vfio")
  assert platforms.without_tpu(environ={}, root=gpu) == "cpu"
  installed.add("jax_cuda13_plugin")
  assert platforms.without_tpu(environ={}, root=gpu) == "cuda,cpu"
  assert platforms.without_tpu(environ={}, root=_machine(tmp_path / "amd", "kfd")) == ""


@pytest.mark.parametrize("device", ["accel0", "accel/accel3", "vfio/0"])
def test_a_tpus_device_files_leave_the_choice_to_jax(tmp_path, installed, device):
  assert platforms.without_tpu(environ={}, root=_machine(tmp_path, device)) == ""


@pytest.mark.parametrize("variable", ["TPU_NAME", "TPU_WORKER_HOSTNAMES", "JAX_FORCE_TPU_INIT", "JAX_PLATFORMS"])
def test_variables_leave_the_choice_to_jax(tmp_path, installed, variable):
  assert platforms.without_tpu(environ={variable: "x"}, root=tmp_path) == ""
  assert platforms.without_tpu(environ={variable: ""}, root=tmp_path) == "cpu"


def test_without_libtpu_the_choice_is_jaxs(tmp_path, installed):
  installed.clear()
  assert platforms.without_tpu(environ={}, root=tmp_path) == ""


@pytest.mark.skipif(platforms.has_tpu(environ={}), reason="this machine has a TPU")
def test_a_command_says_nothing_of_libtpu(tmp_path):
  # `sampling` compiles nothing: an unknown run is refused as soon as JAX is up, in a line of ours alone.
  kept = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY")}
  code = "import sys; from orthus_jax import cli; s = cli.main(['runs', sys.argv[1]]); import jax; jax.devices(); sys.exit(s)"
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], env=kept, capture_output=True, text=True, timeout=120, check=False
  )
  assert "libtpu" not in done.stderr and "TPU" not in done.stderr, done.stderr
