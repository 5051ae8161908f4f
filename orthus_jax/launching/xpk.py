"""GKE by xpk (https://github.com/AI-Hypercomputer/xpk), which makes a JobSet of its own.

It starts again by itself on exit statuses 42 and from 127 on, whatever it is told beside: those of a command that isn't there,
and of processes that a signal ended.
"""

from __future__ import annotations

import shlex

from orthus_jax.errors import BadRequest
from orthus_jax.launching import jobset_tpu, tpus
from orthus_jax.launching.job import JOIN, RESTART_ON, Job, Submission

_GPUS = {"h100": "h100-80gb-8", "h200": "h200-141gb-8"}
# What xpk sets in the pods of several GPU nodes.
_WHO = ' --coordinator=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT --processes=$NNODES --process_id=$NODE_RANK'


def submission(job: Job) -> Submission:
  """The command.

  Raises:
    BadRequest: on devices that xpk has no name for, or a command that it would garble.
  """
  topology = job.devices
  if topology.chip.platform == "tpu":
    jobset_tpu.check(topology)
    several = tpus.hosts(topology) * topology.slices > 1
    # A shape is in the count of the flat ones alone.
    kind = tpus.accelerator_type(topology) if len(topology.shape) == 2 else f"{topology.chip.name}-{tpus.shape(topology)}"
    which: tuple[str, ...] = (f"--tpu-type={kind}", f"--num-slices={topology.slices}")
    if topology.chip.name == "tpu7x":  # some releases run two containers a machine there: two processes, of half its chips
      which += ("--no-use-parallel-containers",)
    who = " --processes=auto" if several else ""
  else:
    if topology.chip.name not in _GPUS or topology.per_slice != 8:
      known = ", ".join(f"{name}:8" for name in _GPUS)
      raise BadRequest(f"xpk has no {topology.chip.name}:{topology.per_slice}, but {known}: choose --on=jobset-gpu")
    several = topology.slices > 1
    which = (f"--device-type={_GPUS[topology.chip.name]}", f"--num-nodes={topology.slices}")
    who = _WHO if several else ""
  words = job.command(*((JOIN,) if several else ()))
  # xpk sends SIGTERM to the shell that it runs this in. With exec that process is training, as newer shells see to anyway.
  command = f"exec {shlex.join(words)}{who}"
  if topology.chip.platform == "gpu" and set('"\\') & set(command):
    word = next(w for w in words if set("'\"\\") & set(w))
    raise BadRequest(f"xpk garbles quotes in the command of GPU nodes: write {word} into the config file")
  env = tuple(f"--env={k}={v}" for k, v in job.environment.items())
  return Submission((
      "xpk", "workload", "create", f"--workload={job.name}", f"--cluster={job.cluster}", f"--project={job.project}",
      f"--zone={job.zone}", *which, f"--docker-image={job.image}", f"--max-restarts={job.restarts}",
      f"--restart-on-exit-codes={','.join(map(str, RESTART_ON))}", f"--termination-grace-period-seconds={job.grace}", *env,
      *job.more, f"--command={command}",
  ))  # fmt: skip
