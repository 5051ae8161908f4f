"""Who is who among a run's processes, as the command that started them says in their environment."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re

from orthus_jax.errors import BadRequest


@dataclasses.dataclass(frozen=True)
class _Launcher:
  """Names of environment variables; `local` and `local_count` are of one machine's processes."""

  name: str
  count: str
  number: str
  local: str
  local_count: str = ""

  def seen(self, environment: Mapping[str, str]) -> str:
    """Those that are set, as a message shows them."""
    return ", ".join(f"{n}={environment[n]}" for n in (self.count, self.number) if n in environment)


_ORTE = "OMPI_MCA_orte_hnp_uri"  # of Open MPI up to 4
_OPEN_MPI = _Launcher("Open MPI", *(f"OMPI_COMM_WORLD_{n}" for n in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")))
_SLURM = _Launcher("SLURM", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
_TORCHRUN = _Launcher("torchrun", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Where one starts another, the inner one stands first: mpirun runs within a SLURM allocation, and inherits its variables;
# jsrun, Flux and PALS set PMI's beside their own.
_LAUNCHERS = (
    _OPEN_MPI,
    _Launcher("MVAPICH", *(f"MV2_COMM_WORLD_{n}" for n in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("jsrun", *(f"JSM_NAMESPACE_{n}" for n in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID"),
    _Launcher("PALS", "PMI_SIZE", "PALS_RANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_SIZE"),
    _Launcher("MPICH or Intel MPI", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Launcher("PMIx", "PMIX_SIZE", "PMIX_RANK", "PMIX_LOCAL_RANK"),
    _SLURM,
    _TORCHRUN,  # what torchrun itself sets goes first; what a batch script exports under these names is another matter
)


@dataclasses.dataclass(frozen=True)
class Place:
  """This process's place in a run."""

  count: int  # of processes
  number: int  # of this one
  local: list[int] | None  # the devices that are its share of its machine; None for all of them
  coordinator: str | None  # HOST:PORT of process 0; None where the launcher doesn't say
  seen: str  # the launcher and its variables, for a message


def in_cluster(environment: Mapping[str, str]) -> bool:
  """Whether the environment speaks of several processes, or of a TPU pod's several machines."""
  pod = (_number(environment, "MEGASCALE_NUM_SLICES") or 1) > 1 or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
  return pod or any(_several(launcher, environment) for launcher in _LAUNCHERS)

def find(environment: Mapping[str, str]) -> Place | None:
  """This process's place as its launcher says; None where none says that there are several.

  Raises:
    BadRequest: where the variables contradict each other.
  """
  for launcher in (*((_TORCHRUN,) if "TORCHELASTIC_RUN_ID" in environment else ()), *_LAUNCHERS):
    place = _place(launcher, environment)
    # mpirun of a single process means it, as does a step of SLURM, of which jax reads the allocation's size; the others'
    # variables are left over in containers and interactive shells.
    if place and (place.count > 1 or launcher in (_OPEN_MPI, _SLURM)):
      slurm = None if place.coordinator else _place(_SLURM, environment)
      return slurm if slurm and (slurm.count, slurm.number) == (place.count, place.number) else place
  return None


def hints(environment: Mapping[str, str]) -> str:
  """The variables that speak of several processes without saying which this is."""
  return "; ".join(launcher.seen(environment) for launcher in _LAUNCHERS if _several(launcher, environment))


def _several(launcher: _Launcher, environment: Mapping[str, str]) -> bool:
  count, number = _number(environment, launcher.count), _number(environment, launcher.number)
  # A number without a count, as PMIx has it, tells by being above 0; RANK alone is too common a name for that.
  return (count or 0) > 1 or (count is None and (number or 0) > 0 and launcher is not _TORCHRUN)


def _number(environment: Mapping[str, str], name: str) -> int | None:
  value = environment.get(name, "").strip()
  return int(value) if value.isdecimal() else None


def _local(launcher: _Launcher, environment: Mapping[str, str]) -> list[int] | None:
  """One device each, as jax has it, but for a process that has its machine, or the devices that it sees, to itself."""
  local, alone = _number(environment, launcher.local), _number(environment, launcher.local_count) == 1
  if launcher is _SLURM:
    alone = bool(re.match(r"1($|[(,])", environment.get("SLURM_STEP_TASKS_PER_NODE", "")))
  visible = environment.get("CUDA_VISIBLE_DEVICES")
  return None if local is None or alone or (visible and len(visible.split(",")) <= local) else [local]


def _place(launcher: _Launcher, environment: Mapping[str, str]) -> Place | None:
  count, number = _number(environment, launcher.count), _number(environment, launcher.number)
  if count is None or number is None:
    return None
  seen = launcher.seen(environment)
  if not 0 <= number < count:
    raise BadRequest(f"{seen}: the number must lie in 0..{count - 1}")
  try:
    coordinator = _coordinator(launcher, environment)
  except (RuntimeError, ValueError) as e:  # jax reads variables of a form of their own
    raise BadRequest(f"{launcher.name} ({seen}): where process 0 is can't be read ({e}): give --coordinator=HOST:PORT") from e
  five = launcher is _OPEN_MPI and _ORTE not in environment
  return Place(count, number, _local(launcher, environment), coordinator, f"{launcher.name}{' 5' if five else ''} ({seen})")


def _coordinator(launcher: _Launcher, environment: Mapping[str, str]) -> str | None:
  from jax._src import clusters  # jax has no public name for them; they read os.environ

  ask = {_OPEN_MPI: clusters.OmpiCluster, _SLURM: clusters.SlurmCluster}.get(launcher)
  if launcher is _OPEN_MPI and _ORTE not in environment:
    ask = None  # Open MPI 5 doesn't say: jax 0.10 finds no cluster there, jax 0.12 asks mpi4py and raises without it
  if ask is not None and ask.is_env_present():
    return ask.get_coordinator_address(None, environment.get("JAX_COORDINATOR_PORT"))
  if not environment.get("MASTER_ADDR") or not _number(environment, "MASTER_PORT"):
    return None
  host, theirs = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
  # torchrun's own agent listens on that port.
  taken = launcher is _TORCHRUN and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
  ours = theirs + (1 if theirs < 65535 else -1) if taken else theirs
  return f"[{host}]:{ours}" if ":" in host else f"{host}:{ours}"
