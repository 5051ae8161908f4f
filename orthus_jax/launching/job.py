"""A run that is to be launched, and what is handed to the tool that launches it."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from importlib import resources
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

from orthus_jax.errors import LOST, PREEMPTED, BadRequest
from orthus_jax.planning.hardware import Topology
from orthus_jax.storage.bucket import is_url

RESTART_ON = (PREEMPTED, LOST)  # exit statuses of `orthus train` that ask to be started again
# The machines of a cloud come one by one: images are pulled, nodes are made.
JOIN = "--join_timeout=1800"
LONGEST = 40  # of a name: xpk's bound; Kubernetes makes names of at most 63 letters of it
_OWN_DISK = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # each machine has its own


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of `orthus train`.

  Attributes:
    name: of the job: letters, digits and hyphens.
    config: FILE or FILE:ARGUMENT.
    workdir: an absolute path that all machines see; of a local job any.
    flags: further options of `orthus train`.
    topology: the devices; its slices are nodes, where it is of GPUs. None: whatever a local machine has.
    restarts: how often it is started again, at most.
    grace: seconds from SIGTERM to SIGKILL, in which a checkpoint is saved.
    image: the container image that holds orthus_jax.
    environment: variables for the containers.
    volumes: (what is mounted, where) pairs: a PersistentVolumeClaim's name, gs://BUCKET, or a machine's directory.
    selectors: labels that nodes must have.
    namespace, queue, service_account: of Kubernetes; the queue is Kueue's.
    project, zone, cluster: of Google Cloud.
    setup: text of a shell script that each machine runs first.
    more: options for the tool that it is submitted with.
  """

  name: str
  config: str
  workdir: str
  flags: tuple[str, ...] = ()
  topology: Topology | None = None
  restarts: int = 100
  grace: int = 120
  image: str = ""
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  volumes: tuple[tuple[str, str], ...] = ()
  selectors: Mapping[str, str] = dataclasses.field(default_factory=dict)
  namespace: str = ""
  queue: str = ""
  service_account: str = ""
  project: str = ""
  zone: str = ""
  cluster: str = ""
  setup: str = ""
  more: tuple[str, ...] = ()

  @property
  def devices(self) -> Topology:
    """The topology of a job that must have one."""
    assert self.topology is not None
    return self.topology

  def command(self, *first: str) -> list[str]:
    """The training command; of what `first` and the job's own flags both say, the job's counts."""
    return ["orthus", "train", f"--config={self.config}", f"--workdir={self.workdir}", *first, *self.flags]


@dataclasses.dataclass(frozen=True)
class Submission:
  """A command that submits a job.

  Attributes:
    argv: the command.
    environment: variables that it needs beside this process's.
    manifest: what it reads on standard input: YAML.
    file: (name, text) of a script that `argv` names.
    replaces: this process becomes it, so that it gets the signals that are sent to this one.
  """

  argv: tuple[str, ...]
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  manifest: str = ""
  file: tuple[str, str] | None = None
  replaces: bool = False

  def shown(self) -> str:
    """What would be submitted: a manifest to pipe into the command of its first line, or else shell code to paste."""
    line = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in self.environment.items()), shlex.join(self.argv)])
    if self.manifest:
      return f"# {line}\n{self.manifest}"
    if self.file is None:
      return f"{line}\n"
    name, text = self.file
    return f"cat > {name} <<'END_OF_SCRIPT'\n{text.rstrip()}\nEND_OF_SCRIPT\n{line}\n"

  def submit(self) -> int:
    """Runs the command; returns its exit status.

    Raises:
      BadRequest: if there is no such command.
    """
    tool = self.argv[0]
    if shutil.which(tool) is None:
      raise BadRequest(f"there is no {tool} here: install it, or see with --dry-run what would be submitted")
    environment = os.environ | dict(self.environment)
    if self.replaces:
      sys.stdout.flush()
      os.execvpe(tool, self.argv, environment)
    with tempfile.TemporaryDirectory() as folder:
      argv = list(self.argv)
      if self.file is not None:
        name, text = self.file
        path = Path(folder) / name
        path.write_text(text)
        argv = [a.removesuffix(name) + str(path) if a.endswith(name) else a for a in argv]
      return subprocess.run(argv, env=environment, input=self.manifest or None, text=True).returncode


def script(name: str) -> str:
  """Path of a shell script that comes with the package, which may be installed without a repository."""
  return str(resources.files("orthus_jax.launching") / "scripts" / name)


def name_of(config: str) -> str:
  """A job's name, made of its config's: configs/orthus_7b.py:post-v5e-256 is orthus-7b-post-v5e-256."""
  file, _, argument = config.partition(":")
  plain = re.sub(r"[^a-z0-9]+", "-", f"{Path(file).stem}-{argument}".lower()).strip("-")
  return re.sub(r"^(?![a-z])", "run-", plain)[:LONGEST].rstrip("-")


def check_name(name: str) -> None:
  """Refuses a name that a cluster would.

  Raises:
    BadRequest: saying what one looks like.
  """
  if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > LONGEST:
    raise BadRequest(f"--name={name} must be small letters, digits and hyphens, {LONGEST} at most, a letter first")


def check_workdir(workdir: str, *, sweep: bool = False) -> None:
  """Refuses a workdir that the machines of a cluster don't share.

  Args:
    sweep: it is a sweep's, which can't be in a bucket.

  Raises:
    BadRequest: saying what would do.
  """
  if is_url(workdir) and not sweep:
    return
  if "://" in workdir:
    way = "give gs://…, s3://… or a path"
    if sweep:
      way = "a sweep is kept on a disk: mount the bucket on every machine, and give the path there"
    raise BadRequest(f"--workdir={workdir}: {way}")
  if not os.path.isabs(workdir):
    raise BadRequest(f"--workdir={workdir} is relative, and machines share no current directory: write /…/{workdir}")
  if own := next((p for p in _OWN_DISK if Path(workdir).is_relative_to(p)), ""):
    raise BadRequest(f"--workdir={workdir}: each machine has a {own} of its own: choose a disk that all share")


def check_volumes(job: Job, *, what: str) -> None:
  """Refuses volumes of another kind, and a workdir that lies on nothing that is mounted into the containers.

  Args:
    what: can be mounted, for the message: HOSTDIR, a directory of the machine, or else a claim or a bucket.

  Raises:
    BadRequest: saying what to mount.
  """
  hosts_own = what == "HOSTDIR"
  for volume, where in job.volumes:
    named = re.fullmatch(r"gs://.+|[a-z0-9]([-.a-z0-9]*[a-z0-9])?", volume)
    if not (volume.startswith("/") if hosts_own else named):
      raise BadRequest(f"--volume={volume}:{where}: here it is --volume={what}:DIR")
  if not is_url(job.workdir) and not any(Path(job.workdir).is_relative_to(where) for _, where in job.volumes):
    raise BadRequest(
        f"--workdir={job.workdir} lies on no volume: give --volume={what}:DIR, with a DIR that holds it, or a bucket's URL"
    )


# GPUs of one machine where that is fewer than its switch joins: a tray of a GB200 NVL72 has four.
_PER_MACHINE = {"gb200": 4}


def check_machine(topology: Topology) -> None:
  """Refuses more GPUs a node than a machine has.

  Raises:
    BadRequest: saying how to write it.
  """
  chip, most = topology.chip.name, _PER_MACHINE.get(topology.chip.name, topology.per_slice)
  if topology.per_slice > most:
    nodes = -(-topology.chips // most)
    raise BadRequest(f"a machine has {most} {chip} GPUs, not {topology.per_slice}: --topology={chip}:{most} --nodes={nodes}")
