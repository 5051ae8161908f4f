"""Cloud TPU's queued resources: TPU VMs that come when there are some, and whose start-up script trains in a container.

The script goes on at each start of a machine, and after exit statuses 75 and 76. Spot machines that were taken away don't come
back: delete the queued resource, and launch again to go on.
"""

from __future__ import annotations

from importlib import resources
import shlex

import jinja2

from orthus_jax.launching import tpus
from orthus_jax.launching.job import JOIN, RESTART_ON, Job, Submission, check_volumes


def submission(job: Job) -> Submission:
  """gcloud's command, with the start-up script of all hosts.

  Raises:
    BadRequest: on a shape that Google Cloud doesn't offer, or a workdir that isn't mounted.
  """
  topology = job.devices
  tpus.check(topology)
  check_volumes(job, what="HOSTDIR")
  several = tpus.hosts(topology) * topology.slices > 1
  name = f"{job.name}.sh"
  # An accelerator type stands for one shape of several where the chips lie in three dimensions.
  what = (
      (f"--accelerator-type={tpus.accelerator_type(topology)}",)
      if len(topology.shape) == 2
      else (f"--type={topology.chip.name}", f"--topology={tpus.shape(topology)}")
  )
  nodes = (
      (f"--node-id={job.name}",)
      if topology.slices == 1
      else (f"--node-count={topology.slices}", f"--node-prefix={job.name}")
  )
  argv = (
      "gcloud", "compute", "tpus", "queued-resources", "create", job.name, *nodes, f"--project={job.project}",
      f"--zone={job.zone}", *what, f"--runtime-version={tpus.runtime(topology)}", *job.more,
      f"--metadata-from-file=startup-script={name}",
  )  # fmt: skip
  return Submission(argv, file=(name, _script(job, joining=("--processes=auto", JOIN) if several else ())))


def _script(job: Job, *, joining: tuple[str, ...]) -> str:
  text = (resources.files("orthus_jax.launching") / "scripts" / "tpu_vm.sh.j2").read_text()
  template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False).from_string(text)
  return template.render(
      name=job.name, setup=job.setup.rstrip(), image=shlex.quote(job.image), command=shlex.join(job.command(*joining)),
      grace=job.grace, restarts=job.restarts,
      volumes=[shlex.quote(f"{what}:{where}") for what, where in job.volumes],
      environment=[shlex.quote(f"{k}={v}") for k, v in job.environment.items()],
      restart_on=" | ".join(map(str, RESTART_ON)),
  )  # fmt: skip
