"""What JobSets of TPUs and of GPUs have in common (jobset.x-k8s.io/v1alpha2, https://jobset.sigs.k8s.io).

A pod that exits with 75 or 76, or whose node is taken away, has the JobSet start all pods again, `restarts` times at most; any
other failure ends it. Pods of the former start are gone before new ones come, so that no two hold the workdir.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from orthus_jax.launching.job import RESTART_ON, Job, Submission, check_volumes

CONTAINER = "train"


def submission(job: Job, *, replicas: int, pods: int, spec: dict[str, Any], annotations: dict[str, str]) -> Submission:
  """Hands a JobSet to kubectl.

  Args:
    replicas: how many Jobs: the slices.
    pods: of one Job: the hosts of a slice.
    spec: of a pod, as `pod` makes it.
    annotations: of the JobSet.
  """
  metadata: dict[str, Any] = {"name": job.name}
  if job.queue:
    metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.queue}
  if annotations:
    metadata["annotations"] = annotations
  mounted = any(what.startswith("gs://") for what, _ in job.volumes)
  pod_metadata = {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}} if mounted else {}
  one = {
      "completionMode": "Indexed", "parallelism": pods, "completions": pods,
      "backoffLimit": 0,  # one failed pod fails its Job, and the JobSet decides
      "podFailurePolicy": {"rules": [
          # Evicted, preempted, or its node is lost: counted, so that the Job fails by its backoffLimit.
          {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
          {"action": "FailJob",
           "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": list(RESTART_ON)}},
      ]},
      "template": {**pod_metadata, "spec": spec},
  }  # fmt: skip
  failure = {
      "maxRestarts": job.restarts,
      "restartStrategy": "BlockingRecreate",
      "rules": [{"name": "notToBeRestarted", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
  }
  manifest = {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": metadata,
      "spec": {
          "network": {"enableDNSHostnames": True},
          "failurePolicy": failure,
          "replicatedJobs": [{"name": CONTAINER, "replicas": replicas, "template": {"spec": one}}],
      },
  }
  namespace = (f"--namespace={job.namespace}",) if job.namespace else ()
  argv = ("kubectl", "create", *namespace, *job.more, "-f", "-")
  return Submission(argv, manifest=yaml.safe_dump(manifest, sort_keys=False, width=10_000))


def pod(
    job: Job, command: list[str], *, resource: str, count: int, container: dict[str, Any],
    more: dict[str, Any], volumes: Sequence[dict] = (), selectors: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
  """The spec of a pod with all of its node's accelerators.

  Args:
    command: that it runs.
    resource, count: which accelerators, and how many.
    container: what else its container has; its `env` follows the job's, its `volumeMounts` too.
    more: what else the pod has.
    volumes, selectors: added to the job's.

  Raises:
    BadRequest: if the workdir lies on no volume.
  """
  check_volumes(job, what="CLAIM:DIR or --volume=gs://BUCKET")
  env = [{"name": k, "value": v} for k, v in job.environment.items()]
  mounts = [{"name": f"volume-{i}", "mountPath": where} for i, (_, where) in enumerate(job.volumes)]
  main = {
      "name": CONTAINER,
      "image": job.image,
      # Run without a shell, it gets SIGTERM itself. $(NAME) would be replaced.
      "command": [a.replace("$(", "$$(") for a in command],
      **container,
      "env": env + container.get("env", []),
      "resources": {"limits": {resource: count}},
      "volumeMounts": mounts + container.get("volumeMounts", []),
  }
  service_account = {"serviceAccountName": job.service_account} if job.service_account else {}
  return {
      "restartPolicy": "Never",
      "terminationGracePeriodSeconds": job.grace,
      **service_account,
      **more,
      "nodeSelector": {**(selectors or {}), **job.selectors},
      "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
      "containers": [main],
      "volumes": [
          _volume(i, what, host_network="hostNetwork" in more) for i, (what, _) in enumerate(job.volumes)
      ] + list(volumes),
  }


def _volume(number: int, what: str, *, host_network: bool) -> dict[str, Any]:
  if not what.startswith("gs://"):
    return {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": what}}
  attributes = {"bucketName": what.removeprefix("gs://"), "mountOptions": "implicit-dirs"}
  if host_network:  # GKE's driver (1.17.2 and later) lets a pod there act as its service account where this is said
    attributes["hostNetworkPodKSA"] = "true"
  return {"name": f"volume-{number}", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
