"""GPU nodes under Kubernetes: a JobSet of one Job, a pod a node. Networks for RDMA differ by cluster, and are left to it."""

from __future__ import annotations

from orthus_jax.launching import jobset
from orthus_jax.launching.job import JOIN, Job, Submission, check_machine

_PORT = "8476"
_GROUP = 1000  # of launch/Dockerfile's user, who writes to the volumes
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def submission(job: Job) -> Submission:
  """The JobSet. Its variables are torchrun's, which `parallel/launchers.py` reads: all say where process 0 is."""
  topology = job.devices
  check_machine(topology)
  env = [
      {"name": "WORLD_SIZE", "value": str(topology.slices)},
      {"name": "RANK", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}},
      {"name": "MASTER_ADDR", "value": f"{job.name}-{jobset.CONTAINER}-0-0.{job.name}"},
      {"name": "MASTER_PORT", "value": _PORT},
  ]
  shared = {"name": "shared-memory", "mountPath": "/dev/shm"}  # NCCL's; a pod's own has 64 MB
  spec = jobset.pod(
      job, job.command(*((JOIN,) if topology.slices > 1 else ())), resource="nvidia.com/gpu", count=topology.per_slice,
      container={"env": env, "volumeMounts": [shared]},
      more={"securityContext": {"fsGroup": _GROUP}}, volumes=[{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
  )  # fmt: skip
  return jobset.submission(job, replicas=1, pods=topology.slices, spec=spec, annotations={})
