"""Who is who, as launchers say it in the environment: each one's variables, nested ones, and what is left over of them."""

import os

from hypothesis import given, settings, strategies as st
import pytest

from orthus_jax import cli
from orthus_jax.errors import BadRequest
from orthus_jax.parallel import launchers, processes

ORTE = {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1,10.148.0.1:34911"}
EXAMPLES = settings(max_examples=int(os.environ.get("ORTHUS_EXAMPLES", 100)), deadline=None)


def ompi(count: int, number: int, **more: str) -> dict[str, str]:
  names = {"OMPI_COMM_WORLD_SIZE": count, "OMPI_COMM_WORLD_RANK": number, "OMPI_COMM_WORLD_LOCAL_RANK": number}
  return {n: str(v) for n, v in names.items()} | more


def slurm(count: int, number: int, **more: str) -> dict[str, str]:
  return {
      "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "4", "SLURM_PROCID": str(number),
      "SLURM_LOCALID": str(number), "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": str(count),
  } | more  # fmt: skip


TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node003",
    "MASTER_PORT": "29500",
}  # fmt: skip
ELASTIC = TORCHRUN | {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
PALS = {"PALS_RANKID": "1", "PALS_LOCAL_RANKID": "1", "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_LOCAL_RANK": "1"}
JSRUN = {"JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_LOCAL_RANK": "5", "PMIX_RANK": "5"}


@pytest.fixture
def alone(monkeypatch):
  """An environment without any launcher's variables; returns a function that sets some."""
  for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "PMI", "TPU_W", "RANK", "WORLD_SIZE", "MASTER_"))]:
    monkeypatch.delenv(name)

  def set_all(environment: dict[str, str]) -> dict[str, str]:
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    return environment

  return set_all


@pytest.mark.parametrize(
    "environment, wanted",
    [  # (count, number, devices, coordinator)
        (TORCHRUN, (4, 3, [1], "node003:29500")),
        (ELASTIC, (4, 3, [1], "node003:29501")),  # torchrun's agent has the port itself
        (ELASTIC | {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (4, 3, None, "node003:29501")),
        (TORCHRUN | {"MASTER_ADDR": "fe80::1"}, (4, 3, [1], "[fe80::1]:29500")),
        (ompi(2, 1), (2, 1, [1], None)),
        (ompi(2, 1, **ORTE), (2, 1, [1], "10.96.0.1:62880")),
        (ompi(2, 1, OMPI_COMM_WORLD_LOCAL_SIZE="1"), (2, 1, None, None)),
        (ompi(2, 1, MASTER_ADDR="a", MASTER_PORT="5000"), (2, 1, [1], "a:5000")),
        (ompi(2, 1, CUDA_VISIBLE_DEVICES="7"), (2, 1, None, None)),  # its share alone is visible
        (ompi(1, 0), (1, 0, [0], None)),
        ({"MV2_COMM_WORLD_SIZE": "3", "MV2_COMM_WORLD_RANK": "2"}, (3, 2, None, None)),
        (JSRUN, (6, 5, [5], None)),
        ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "0", "FLUX_TASK_LOCAL_ID": "0"}, (2, 0, [0], None)),
        (PALS, (2, 1, [1], None)),
        ({"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}, (2, 1, None, None)),
        (slurm(4, 2), (4, 2, [2], "node003:61441")),
        (slurm(4, 2, SLURM_STEP_TASKS_PER_NODE="1(x4)"), (4, 2, None, "node003:61441")),
        # One within another: mpirun and torchrun in a step of SLURM, whose own variables are of something else.
        (slurm(4, 0) | ompi(2, 1), (2, 1, [1], None)),
        (slurm(4, 0) | ompi(2, 1, **ORTE), (2, 1, [1], "10.96.0.1:62880")),
        (slurm(4, 0) | ompi(1, 0), (1, 0, [0], None)),
        (slurm(2, 1) | ELASTIC, (4, 3, [1], "node003:29501")),
        (slurm(2, 0) | PALS, (2, 1, [1], None)),
        # srun sets PMI's too, and a batch script what torch reads: SLURM knows where process 0 is.
        (slurm(2, 1) | {"PMI_SIZE": "2", "PMI_RANK": "1"}, (2, 1, [1], "node003:61441")),
        (slurm(4, 2) | {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "x", "MASTER_PORT": "5"}, (4, 2, [2], "node003:61441")),
        # What is left over says nothing.
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "5"}, None),
        (slurm(4, 2) | {"RANK": "0", "WORLD_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "1"}, (4, 2, [2], "node003:61441")),
        ({"PMI_SIZE": "1", "PMI_RANK": "0", "FLUX_JOB_SIZE": "1", "FLUX_TASK_RANK": "0", "PMIX_RANK": "0"}, None),
        ({"RANK": "7"}, None),
        ({}, None),
    ],
)
def test_a_launcher_says_who_is_who(alone, environment, wanted):
  place = launchers.find(alone(environment))
  assert wanted == (place and (place.count, place.number, place.local, place.coordinator))
  assert launchers.in_cluster(environment) == (bool(wanted) and wanted[0] > 1 or "SLURM_JOB_ID" in environment)


def train(capsys, tmp_path, *flags: str) -> str:
  config = cli.__file__.replace("orthus_jax/cli.py", "configs/shapes.py")
  assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and not (tmp_path / "run").exists()
  return said


ALL = "--coordinator, --processes and --process_id"


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "torchrun (WORLD_SIZE=2, RANK=0) says that this is process 0"),
        (ompi(2, 1, PRTE_LAUNCHED="1"), "Open MPI 5 (OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_RANK=1) says"),
        (slurm(4, 0) | ompi(2, 1), "OMPI_COMM_WORLD_RANK=1) says that this is process 1 of 2, but"),
        (PALS, "PALS (PMI_SIZE=2, PALS_RANKID=1)"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "MPICH or Intel MPI (PMI_SIZE=2, PMI_RANK=1)"),
        (JSRUN, "jsrun (JSM_NAMESPACE_SIZE=6, JSM_NAMESPACE_RANK=5)"),
        ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "1"}, "Flux (FLUX_JOB_SIZE=2, FLUX_TASK_RANK=1)"),
        ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"}, "MVAPICH (MV2_COMM_WORLD_SIZE=2"),
        # A count without a number, and a number without a count.
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8: there seem to be several processes, but not which of them this is"),
        ({"PMI_SIZE": "2", "PMI_RANK": "one"}, "PMI_SIZE=2, PMI_RANK=one: there seem to be several"),
        ({"PALS_RANKID": "1"}, "PALS_RANKID=1: there seem to be several"),
        ({"PMIX_RANK": "3"}, "PMIX_RANK=3: there seem to be several"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, RANK=2: the number must lie in 0..1"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "--coordinator=node003:99999 must be HOST:PORT"),
    ],
)
def test_what_is_missing_is_said_in_a_line(alone, capsys, tmp_path, environment, message):
  alone(environment)
  said = train(capsys, tmp_path)
  assert message in said
  assert "the number must" in said or "must be HOST" in said or (ALL in said and "--processes=1 trains alone" in said)


def joined(monkeypatch, **flags) -> tuple | None:
  """What jax is started with; None for a process that is alone."""
  import jax

  got = []
  monkeypatch.setattr(processes, "meet", lambda *a, **k: None)
  monkeypatch.setattr(processes, "_keep_stdout", lambda: None)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a, local_device_ids, **k: got.append((*a, local_device_ids)))
  processes.initialize(**flags)
  return got[0] if got else None


def test_a_coordinator_is_all_that_a_launcher_needs_to_be_told(alone, monkeypatch):
  alone(slurm(4, 0) | ompi(2, 1))
  assert joined(monkeypatch, coordinator="a:1234") == ("a:1234", 2, 1, [1])
  assert joined(monkeypatch, coordinator="a:1234", processes="3", process_id=0) == ("a:1234", 3, 0, None)  # flags go first
  assert joined(monkeypatch, processes="1") is None
  with pytest.raises(BadRequest, match="--coordinator and --process_id missing"):
    joined(monkeypatch, processes="2")


def test_torchrun_is_followed_and_what_is_left_of_it_is_not(alone, monkeypatch):
  alone(ELASTIC)
  assert joined(monkeypatch) == ("node003:29501", 4, 3, [1])
  alone({"WORLD_SIZE": "1", "RANK": "0"})
  assert joined(monkeypatch) is None
  with pytest.raises(BadRequest, match="--processes and --process_id missing"):
    joined(monkeypatch, coordinator="a:1")


def test_one_task_of_a_larger_allocation_is_alone(alone, monkeypatch):
  alone(slurm(1, 0))  # as in the shell that `salloc -n4` gives
  assert joined(monkeypatch) is None and joined(monkeypatch, processes="auto") is None


def test_process_0_is_reached_without_a_proxy(alone, monkeypatch):
  for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
    monkeypatch.delenv(name, raising=False)
  processes._without_proxy("node1:5")
  assert "no_grpc_proxy" not in os.environ
  monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
  monkeypatch.setenv("no_proxy", "example.org")
  processes._without_proxy("[fe80::1]:5")
  assert os.environ["no_grpc_proxy"] == "example.org,fe80::1"  # gRPC reads this one instead of no_proxy
  processes._without_proxy("node1:5")
  assert os.environ["no_grpc_proxy"] == "example.org,fe80::1,node1"


NAMES = [n for row in launchers._LAUNCHERS for n in (row.count, row.number, row.local, row.local_count) if n] + [
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "MASTER_ADDR", "MASTER_PORT", "OMPI_MCA_orte_hnp_uri",
    "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", "CUDA_VISIBLE_DEVICES", "SLURM_STEP_TASKS_PER_NODE",
]  # fmt: skip
VALUES = st.sampled_from(["", "0", "1", "2", "4", "-1", "x", "²", "1.5", "a,b", " 2 ", "99999", "tcp://", "1;tcp://h:1"])


@EXAMPLES
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12))
def test_no_environment_is_misread(environment):
  with pytest.MonkeyPatch.context() as patch:
    for name in NAMES:
      patch.delenv(name, raising=False)
    for name, value in environment.items():
      patch.setenv(name, value)
    launchers.in_cluster(environment)
    try:
      place = launchers.find(environment)
    except BadRequest:
      return
    if place is not None:
      assert 0 <= place.number < place.count and (place.local is None or place.local[0] >= 0)
      assert place.count == 1 or launchers.in_cluster(environment)
    elif not launchers.in_cluster(environment):
      assert joined(patch) is None
