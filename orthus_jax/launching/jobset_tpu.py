"""TPU slices on GKE: a JobSet with a Job a slice and a pod a host.

Who is who: for an Indexed Job of several pods that ask for google.com/tpu and have a subdomain, GKE sets TPU_WORKER_ID and
TPU_WORKER_HOSTNAMES, and for a JobSet of several such Jobs MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID and
MEGASCALE_COORDINATOR_ADDRESS (https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice).
"""

from __future__ import annotations

from orthus_jax.errors import BadRequest
from orthus_jax.launching import jobset, tpus
from orthus_jax.launching.job import JOIN, Job, Submission
from orthus_jax.planning.hardware import Topology


def submission(job: Job) -> Submission:
  """The JobSet.

  Raises:
    BadRequest: on a shape that GKE doesn't have.
  """
  topology = job.devices
  check(topology)
  hosts = tpus.hosts(topology)
  # Found by all of them or by none: without it a pod that GKE told nothing would train alone.
  joining = ("--processes=auto", JOIN) if hosts * topology.slices > 1 else ()
  selectors = {
      "cloud.google.com/gke-tpu-accelerator": tpus.gke_accelerator(topology),
      "cloud.google.com/gke-tpu-topology": tpus.shape(topology),
  }
  spec = jobset.pod(
      job, job.command(*joining), resource="google.com/tpu", count=tpus.chips_per_host(topology),
      container={"securityContext": {"privileged": True, "runAsUser": 0}},  # the devices are root's
      more={"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}, selectors=selectors,
  )  # fmt: skip
  # A Job's pods on one node pool, which is one slice.
  annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  return jobset.submission(job, replicas=topology.slices, pods=hosts, spec=spec, annotations=annotations)


def check(topology: Topology) -> None:
  """Refuses what GKE doesn't offer.

  Raises:
    BadRequest: saying what it does.
  """
  tpus.check(topology)
  if topology.slices > 1 and tpus.hosts(topology) == 1:
    raise BadRequest(f"{topology}: GKE joins slices of several hosts alone: take one larger slice, or larger ones")
