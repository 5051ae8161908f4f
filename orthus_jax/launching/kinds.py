"""The kinds of launcher: the one table of their names, and what each asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import difflib
from typing import Any

from orthus_jax.config import Config
from orthus_jax.errors import BadRequest
from orthus_jax.launching import jobset_gpu, jobset_tpu, local, queued_resources, slurm, xpk
from orthus_jax.launching.job import Job, Submission
from orthus_jax.parallel import mesh as mesh_lib
from orthus_jax.planning.hardware import Topology


@dataclasses.dataclass(frozen=True)
class Kind:
  """One way to launch.

  Attributes:
    what: in a line.
    submission: makes what is handed to its tool.
    platforms: of the devices that it knows.
    needs, takes: options that it must have, or can.
    local: it runs here, in any workdir, on whatever devices there are.
  """

  what: str
  submission: Callable[[Job], Submission]
  platforms: tuple[str, ...]
  needs: tuple[str, ...] = ()
  takes: tuple[str, ...] = ()
  local: bool = False


_KUBERNETES = ("env", "volume", "selector", "namespace", "queue", "service_account")
KINDS = {
    "local": Kind("this machine", local.submission, ("tpu", "gpu", "cpu"), local=True),
    "slurm": Kind("nodes under SLURM, by sbatch", slurm.submission, ("gpu", "cpu"), takes=("sweep",)),
    "jobset-tpu": Kind("TPU slices on GKE, by kubectl", jobset_tpu.submission, ("tpu",), ("image",), _KUBERNETES),
    "jobset-gpu": Kind("GPU nodes under Kubernetes, by kubectl", jobset_gpu.submission, ("gpu",), ("image",), _KUBERNETES),
    "xpk": Kind("GKE, by xpk", xpk.submission, ("tpu", "gpu"), ("image", "cluster", "project", "zone"), ("env",)),
    "queued-resources": Kind(
        "Cloud TPU VMs, by gcloud", queued_resources.submission, ("tpu",), ("image", "project", "zone", "setup"),
        ("env", "volume"),
    ),
}  # fmt: skip
JOBSET = "jobset"  # of either sort, as the topology says
_OPTIONS = {
    "image": "the container image that holds orthus_jax (launch/Dockerfile makes one), --image=HOST/PATH:TAG",
    "project": "the Google Cloud project, --project=ID",
    "zone": "where the machines are, --zone=us-east5-a",
    "cluster": "the GKE cluster, --cluster=NAME",
    "setup": "a script that mounts the disk of --workdir on each host, --setup=FILE (or --workdir=gs://…)",
}


def find(name: str, topology: Topology | None) -> tuple[str, Kind]:
  """A kind by its name; `jobset` is of what the topology is of.

  Raises:
    BadRequest: on an unknown name, with the nearest, or devices that it doesn't know.
  """
  if name == JOBSET:
    name = "jobset-tpu" if topology is not None and topology.chip.platform == "tpu" else "jobset-gpu"
  if name not in KINDS:
    near = difflib.get_close_matches(name, [*KINDS, JOBSET], n=1, cutoff=0.0)[0]
    raise BadRequest(f"unknown --on={name}: the nearest is {near} ({', '.join([*KINDS, JOBSET])})")
  kind = KINDS[name]
  if topology is None and not kind.local:
    example = "v5e:16x16" if "tpu" in kind.platforms else "h100:8"
    raise BadRequest(f"no --topology: say which devices {name} is to ask for, such as --topology={example}")
  if topology is not None and topology.chip.platform not in kind.platforms:
    others = [n for n, k in KINDS.items() if topology.chip.platform in k.platforms]
    raise BadRequest(f"--on={name} has no {topology.chip.name}: choose --on={' or '.join(others)}")
  return name, kind


def check_options(name: str, kind: Kind, given: Mapping[str, Any], *, in_bucket: bool = False) -> None:
  """Refuses options that a kind lacks or doesn't take.

  Args:
    given: what the command line says of the options that some kinds have.
    in_bucket: the workdir is there, so that no disk need be mounted.

  Raises:
    BadRequest: naming the option.
  """
  for option in kind.needs:
    if not given[option] and not (option == "setup" and in_bucket):
      raise BadRequest(f"--on={name} lacks {_OPTIONS[option]}")
  for option, value in given.items():
    if value and option not in (*kind.needs, *kind.takes):
      raise BadRequest(f"--{option.replace('_', '-')} is not for --on={name}: leave it out")


def check_mesh(config: Config, topology: Topology) -> None:
  """Refuses a config whose mesh, model or batch a topology can't hold.

  Raises:
    BadRequest: naming what to change.
  """
  from jax.sharding import AbstractMesh

  slices = topology.slices if topology.chip.platform == "tpu" else 1
  try:
    sizes = mesh_lib.sizes(config.mesh, devices=topology.devices, slices=slices)
    mesh_lib.check(AbstractMesh(tuple(sizes.values()), mesh_lib.AXES), config)
  except BadRequest as e:
    raise BadRequest(f"{topology}: {e}") from e
