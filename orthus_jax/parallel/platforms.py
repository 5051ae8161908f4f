"""Which of JAX's platforms this machine can have; asked ahead of importing JAX."""

from __future__ import annotations

from collections.abc import Mapping
import importlib.util
import os
from pathlib import Path

# What tells of a TPU beside its device files: set by Cloud TPU's images, GKE, and whoever forces JAX to look for one.
_TPU_VARIABLES = (
    "TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "TPU_CHIPS_PER_HOST_BOUNDS",
    "TPU_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "CLOUD_TPU_TASK_ID", "JAX_FORCE_TPU_INIT", "MEGASCALE_COORDINATOR_ADDRESS",
)  # fmt: skip


def has_tpu(*, environ: Mapping[str, str], root: Path = Path("/")) -> bool:
  """Whether anything here tells of a TPU: its device files (accel up to v4, vfio from v5e on), or its variables."""
  if any(environ.get(name) for name in _TPU_VARIABLES):
    return True
  return any(root.glob("dev/accel[0-9]*")) or any(root.glob("dev/accel/accel[0-9]*")) or any(root.glob("dev/vfio/[0-9]*"))


def without_tpu(*, environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str:
  """What JAX_PLATFORMS should be where libtpu is installed and no TPU is there; empty where JAX finds out by itself.

  JAX starts every platform that is installed. On a machine without a TPU libtpu takes ten seconds to say so, in half a page
  of errors (jax 0.10.2 with libtpu 0.0.42, jax 0.12.0 with 0.0.50).
  """
  if environ.get("JAX_PLATFORMS") or not _installed("libtpu") or has_tpu(environ=environ, root=root):
    return ""
  if any((root / "dev" / name).exists() for name in ("nvidiactl", "nvidia0", "dxg")):
    return "cuda,cpu" if _installed("jax_cuda13_plugin") or _installed("jax_cuda12_plugin") else "cpu"
  if (root / "dev" / "kfd").exists():
    return ""  # AMD's GPUs: their platform's name differs from version to version
  return "cpu"


def _installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None
