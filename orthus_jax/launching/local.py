"""On this machine: launch/local.sh, which starts training again where it was preempted."""

from __future__ import annotations

from orthus_jax.launching.job import Job, Submission, script


def submission(job: Job) -> Submission:
  """The script with the job's arguments."""
  argv = ("bash", script("local.sh"), job.config, job.workdir, *job.flags)
  return Submission(argv, {"RESTARTS": str(job.restarts)}, replaces=True)
