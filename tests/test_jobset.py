"""`orthus launch --on=jobset`: its schema, the devices that it asks for, what starts again, and who is who in its pods."""

import itertools

import jsonschema
from launching import GPU, PODS, SHAPES, TPU, dry
import pytest
import yaml

from orthus_jax.errors import BadRequest
from orthus_jax.parallel import launchers


def manifest(capsys, *argv: str) -> dict:
  return yaml.safe_load(dry(capsys, *argv))


def closed(required: dict, optional: dict | None = None) -> dict:
  """Of an object with no fields but these."""
  return {"type": "object", "properties": required | (optional or {}), "required": [*required], "additionalProperties": False}


def many(of: dict) -> dict:
  return {"type": "array", "items": of}


TEXT, WHOLE, YES = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
FIELD = closed({"fieldRef": closed({"fieldPath": TEXT})})
VARIABLE = {"oneOf": [closed({"name": TEXT, "value": {"type": "string"}}), closed({"name": TEXT, "valueFrom": FIELD})]}
CLAIM, SHARED = closed({"claimName": TEXT}), closed({"medium": {"const": "Memory"}})
BUCKET = closed({"driver": TEXT, "volumeAttributes": TEXTS})
VOLUME = {"oneOf": [closed({"name": TEXT, k: v}) for k, v in
                    {"persistentVolumeClaim": CLAIM, "csi": BUCKET, "emptyDir": SHARED}.items()]}  # fmt: skip
CONTAINER = closed(
    {"name": TEXT, "image": TEXT, "command": many(TEXT), "env": many(VARIABLE),
     "resources": closed({"limits": {"type": "object", "additionalProperties": WHOLE}}),
     "volumeMounts": many(closed({"name": TEXT, "mountPath": TEXT}))},
    {"securityContext": closed({"privileged": YES, "runAsUser": WHOLE})},
)  # fmt: skip
POD = closed(
    {"restartPolicy": {"const": "Never"}, "terminationGracePeriodSeconds": WHOLE, "nodeSelector": TEXTS,
     "tolerations": many(closed({"key": TEXT, "operator": TEXT, "effect": TEXT})), "containers": many(CONTAINER),
     "volumes": many(VOLUME)},
    {"hostNetwork": YES, "dnsPolicy": TEXT, "serviceAccountName": TEXT, "securityContext": closed({"fsGroup": WHOLE})},
)  # fmt: skip
EXITS = closed({"containerName": TEXT, "operator": {"enum": ["In", "NotIn"]}, "values": many(WHOLE)})
CONDITION = closed({"type": TEXT, "status": {"enum": ["True", "False"]}})
RULE = closed(
    {"action": {"enum": ["FailJob", "Count", "Ignore", "FailIndex"]}},
    {"onExitCodes": EXITS, "onPodConditions": many(CONDITION)},
)
JOB = closed({
    "completionMode": {"const": "Indexed"}, "parallelism": WHOLE, "completions": WHOLE, "backoffLimit": WHOLE,
    "podFailurePolicy": closed({"rules": many(RULE)}),
    "template": closed({"spec": POD}, {"metadata": closed({"annotations": TEXTS})}),
})  # fmt: skip
# jobset.x-k8s.io/v1alpha2 and batch/v1, as far as it is used.
JOBSET = closed({
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"}, "kind": {"const": "JobSet"},
    "metadata": closed({"name": TEXT}, {"labels": TEXTS, "annotations": TEXTS}),
    "spec": closed({
        "network": closed({"enableDNSHostnames": YES}),
        "failurePolicy": closed({
            "maxRestarts": WHOLE, "restartStrategy": {"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            "rules": many(closed({
                "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                "onJobFailureReasons": many({"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]}),
            })),
        }),
        "replicatedJobs": many(closed({"name": TEXT, "replicas": WHOLE, "template": closed({"spec": JOB})})),
    }),
})  # fmt: skip
MORE = ("--env=A=b c", "--selector=cloud.google.com/gke-spot=true", "--queue=q", "--service-account=s", "--volume=claim:/data")


@pytest.mark.parametrize("devices", [TPU, GPU])
@pytest.mark.parametrize("more", [(), MORE])
def test_a_jobset_has_the_fields_that_its_schema_has(capsys, devices, more):
  made = manifest(capsys, "--on=jobset", *devices, *PODS, *more)
  jsonschema.validate(made, JOBSET)
  spec = pod(made)
  assert {v["name"] for v in spec["volumes"]} == {m["name"] for m in spec["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize("devices", [TPU, GPU])
def test_a_pod_in_the_hosts_network_mounts_a_bucket_as_its_service_account(capsys, devices):
  spec = pod(manifest(capsys, "--on=jobset", *devices, *PODS, "--volume=gs://bucket:/data"))
  mounted = [v["csi"]["volumeAttributes"] for v in spec["volumes"] if "csi" in v]
  assert "bucket" in [a["bucketName"] for a in mounted]
  assert all(("hostNetworkPodKSA" in a) == spec.get("hostNetwork", False) for a in mounted)


def job_of(made: dict) -> dict:
  (only,) = made["spec"]["replicatedJobs"]
  return only


def pod(made: dict) -> dict:
  return job_of(made)["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("topology, slices, hosts, chips, accelerator", [
    ("v5e:16x16", 1, 64, 4, "tpu-v5-lite-podslice"), ("v6e:2x4", 2, 2, 4, "tpu-v6e-slice"),
    ("v5p:4x4x8", 3, 32, 4, "tpu-v5p-slice"), ("v4:2x2x4", 1, 4, 4, "tpu-v4-podslice"),
    ("v5e:1x1", 1, 1, 1, "tpu-v5-lite-podslice"), ("tpu7x:4x4x4", 1, 16, 4, "tpu7x"),
])  # fmt: skip
def test_a_jobset_asks_for_a_topologys_hosts(capsys, topology, slices, hosts, chips, accelerator):
  argv = ("--on=jobset-tpu", f"--topology={topology}", f"--slices={slices}", SHAPES, *PODS, "--grace=300", "--restarts=7")
  made = manifest(capsys, *argv, f"--config.mesh.data={slices}", "--config.mesh.fsdp=-1", "--config.run.batch_size=768",
                  "--config.model.transformer.width=768")  # fmt: skip
  spec = pod(made)
  assert spec["nodeSelector"] == {
      "cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
  }  # fmt: skip
  assert job_of(made)["replicas"] == slices
  assert job_of(made)["template"]["spec"]["parallelism"] == job_of(made)["template"]["spec"]["completions"] == hosts
  assert spec["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips}}
  assert spec["terminationGracePeriodSeconds"] == 300 and made["spec"]["failurePolicy"]["maxRestarts"] == 7


def becomes_of(made: dict, exit_status: int, *, disrupted: bool = False) -> str:
  """What Kubernetes does once a pod has ended so: the first rule counts, of the Job and then of the JobSet."""
  action = "Count"
  for rule in job_of(made)["template"]["spec"]["podFailurePolicy"]["rules"]:
    codes = rule.get("onExitCodes")
    condition = disrupted and any(c["type"] == "DisruptionTarget" for c in rule.get("onPodConditions", []))
    if condition or (codes and (exit_status in codes["values"]) == (codes["operator"] == "In")):
      action = rule["action"]
      break
  assert job_of(made)["template"]["spec"]["backoffLimit"] == 0
  reason = {"FailJob": "PodFailurePolicy", "Count": "BackoffLimitExceeded"}[action]
  for rule in made["spec"]["failurePolicy"]["rules"]:
    if reason in rule["onJobFailureReasons"]:
      return rule["action"]
  return "RestartJobSet"


@pytest.mark.parametrize("devices", [TPU, GPU])
def test_a_jobset_starts_again_what_was_preempted_and_nothing_else(capsys, devices):
  made = manifest(capsys, "--on=jobset", *devices, *PODS)
  assert {status: becomes_of(made, status) for status in (75, 76, 1, 2, 130, 137, 143)} == {
      75: "RestartJobSet", 76: "RestartJobSet", **{status: "FailJobSet" for status in (1, 2, 130, 137, 143)}
  }  # fmt: skip
  assert becomes_of(made, 137, disrupted=True) == becomes_of(made, 143, disrupted=True) == "RestartJobSet"
  assert made["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"  # two starts would want one workdir


# --- who is who -----------------------------------------------------------------------------------------------------


def expand(value: str, env: dict[str, str]) -> str:
  for name, known in env.items():
    value = value.replace(f"$({name})", known)
  return value


def pods(made: dict) -> list[dict[str, str]]:
  """The variables of each pod, the JobSet's own and those that GKE adds for TPUs, whose conditions are checked."""
  name, job, found = made["metadata"]["name"], job_of(made), []
  spec = job["template"]["spec"]
  count, slices = spec["parallelism"], job["replicas"]
  for slice_id, index in itertools.product(range(slices), range(count)):
    of_pod = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index)}
    env: dict[str, str] = {}
    for variable in pod(made)["containers"][0]["env"]:
      ref = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
      env[variable["name"]] = of_pod[ref] if ref else expand(variable["value"], env)
    hosts = [f"{name}-{job['name']}-{slice_id}-{i}.{name}" for i in range(count)]
    if "google.com/tpu" in pod(made)["containers"][0]["resources"]["limits"]:
      assert spec["completionMode"] == "Indexed" and made["spec"]["network"]["enableDNSHostnames"]
      env |= {"TPU_WORKER_ID": str(index), "TPU_WORKER_HOSTNAMES": ",".join(hosts) if count > 1 else "localhost"}
      if slices > 1:
        first = f"{name}-{job['name']}-0-0.{name}"
        env |= {"MEGASCALE_NUM_SLICES": str(slices), "MEGASCALE_SLICE_ID": str(slice_id),
                "MEGASCALE_COORDINATOR_ADDRESS": f"{first}:8080"}  # fmt: skip
    found.append(env)
  return found


@pytest.mark.parametrize("devices, count, first, port", [
    (TPU, 32, "orthus-7b-post-2xv5p-128-train-0-0.orthus-7b-post-2xv5p-128", 8482),
    (("--topology=v5e:4x4", SHAPES, "--config.run.batch_size=32"), 4, "shapes-train-0-0.shapes", 8482),
    (GPU, 4, "orthus-7b-post-h100-8-train-0-0.orthus-7b-post-h100-8", 8476),
])  # fmt: skip
def test_the_pods_of_a_jobset_find_each_other(capsys, joined, devices, count, first, port):
  made = manifest(capsys, "--on=jobset", *devices, *PODS)
  command = pod(made)["containers"][0]["command"]
  assert [joined(env, command) for env in pods(made)] == [(f"{first}:{port}", count, i, None) for i in range(count)]
  if devices is GPU:
    assert [launchers.find(env).number for env in pods(made)] == [0, 1, 2, 3]


@pytest.mark.parametrize("topology", ["v5e:2x2", "h100:8"])
def test_a_single_pod_is_alone(capsys, joined, topology):
  made = manifest(capsys, "--on=jobset", f"--topology={topology}", SHAPES, "--config.run.batch_size=8", *PODS)
  (env,) = pods(made)
  assert joined(env, pod(made)["containers"][0]["command"]) is None


def test_a_pod_that_gke_told_nothing_doesnt_train_alone(capsys, joined, monkeypatch):
  made = manifest(capsys, "--on=jobset", *TPU, *PODS)
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  with pytest.raises(BadRequest, match="no cluster is found"):
    joined({}, pod(made)["containers"][0]["command"])
