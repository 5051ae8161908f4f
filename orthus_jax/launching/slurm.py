"""GPU or CPU nodes under SLURM: sbatch with launch/slurm.sh, which puts a preempted job back into the queue.

There is no heterogeneous job: training reads what `orthus prepare` has finished, and each process makes its own rows, so that
one part would wait for the other. Prepare in a job ahead, and pass --dependency.
"""

from __future__ import annotations

from orthus_jax.errors import BadRequest
from orthus_jax.launching.job import Job, Submission, check_machine, script


def submission(job: Job) -> Submission:
  """The job's command; sbatch keeps a copy of the script, so that nodes needn't see this machine's."""
  argv = ("sbatch", *_options(job), script("slurm.sh"), job.config, job.workdir, *job.flags)
  return Submission(argv, {"RESTARTS": str(job.restarts)})


def array(job: Job, text: str) -> Submission:
  """The array of a sweep's runs, as `sweeping/scripts.py` writes it."""
  name = f"{job.name}.sh"
  return Submission(("sbatch", *_options(job), name), {"RESTARTS": str(job.restarts)}, file=(name, text))


def _options(job: Job) -> tuple[str, ...]:
  topology = job.devices
  if topology.chip.platform == "cpu" and topology.per_slice > 1:
    raise BadRequest(f"a process has one CPU device: write --topology=cpu:1 --nodes={topology.chips}")
  check_machine(topology)
  gpus = (f"--gpus-per-node={topology.per_slice}",) if topology.chip.platform == "gpu" else ()
  # sbatch reads RESTARTS from its environment, which a job gets unless --export says otherwise.
  return (
      f"--job-name={job.name}", f"--nodes={topology.slices}", *gpus, f"--signal=TERM@{job.grace}", *job.more
  )  # fmt: skip
