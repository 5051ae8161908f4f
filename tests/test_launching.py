"""`orthus launch`: what each kind submits and runs, and what is refused. JobSets have a file of their own."""

import os
from pathlib import Path
import shlex
import subprocess
import sys

from launching import CLOUD, GPU, INPUTS, ORTHUS_7B, PODS, ROOT, SHAPES, TPU, checker, dry, launch, stand_in
import pytest
import yaml

from orthus_jax import cli
from orthus_jax.errors import BadRequest
from orthus_jax.launching import job as job_lib, kinds, tpus
from orthus_jax.planning import hardware


def test_what_xpk_runs_finds_who_it_is(capsys, joined, tools):
  stand_in(tools, "orthus", f"echo $$ > {tools}/own")
  command = shlex.split(dry(capsys, "--on=xpk", *GPU, PODS[0], *CLOUD, "--cluster=c"))[-1]
  env = {"NNODES": "4", "NODE_RANK": "3", "JAX_COORDINATOR_ADDRESS": "a-slice-job-0-0.a", "JAX_COORDINATOR_PORT": "6002"}
  # As xpk 1.16 has it in its pods: a shell's background process, which it sends SIGTERM to, with exports ahead on request.
  run = f"(export A=1 && {command.removeprefix('--command=')}) & echo $! > {tools}/known; wait $!"
  subprocess.run(["bash", "-c", run], env=os.environ | env, check=True)
  assert (tools / "own").read_text() == (tools / "known").read_text()
  told = (tools / "orthus.arguments").read_text().splitlines()
  assert joined({}, ["orthus", *told]) == ("a-slice-job-0-0.a:6002", 4, 3, None)


def test_xpk_gets_its_names_for_the_devices(capsys):
  tpu = shlex.split(dry(capsys, "--on=xpk", *TPU, PODS[0], *CLOUD, "--cluster=c", "--env=A=b c", "--", "--priority=high"))
  assert tpu[:3] == ["xpk", "workload", "create"] and {
      "--tpu-type=v5p-4x4x4", "--num-slices=2", "--cluster=c", "--project=p", "--zone=us-east5-a", "--max-restarts=100",
      "--restart-on-exit-codes=75,76", "--termination-grace-period-seconds=120", "--env=A=b c", "--priority=high",
      "--docker-image=images.example.com/orthus:1",
  } <= set(tpu)  # fmt: skip
  more = ("--config.run.batch_size=32", PODS[0], *CLOUD, "--cluster=c")
  flat = dry(capsys, "--on=xpk", "--topology=v5e:4x4", SHAPES, *more)
  assert "--tpu-type=v5litepod-16" in flat and "--processes=auto" in flat and "parallel-containers" not in flat
  newer = dry(capsys, "--on=xpk", "--topology=tpu7x:2x2x1", SHAPES, *more)
  assert "--tpu-type=tpu7x-2x2x1" in newer and "--no-use-parallel-containers" in newer
  gpu = dry(capsys, "--on=xpk", *GPU, PODS[0], *CLOUD, "--cluster=c")
  assert "--device-type=h100-80gb-8" in gpu and "--num-nodes=4" in gpu


def test_slurm_gets_nodes_and_the_script(capsys, tools):
  stand_in(tools, "sbatch", f'echo "$RESTARTS" > {tools}/restarts; exit 3')
  argv = ("--on=slurm", *GPU, "--restarts=5", "--grace=60", "--config.data.path=/d a", "--", "--partition=gpu")
  shown = shlex.split(dry(capsys, *argv))
  assert cli.main(["launch", "--workdir=/shared/run", *argv]) == 3  # the tool's own
  told = (tools / "sbatch.arguments").read_text().splitlines()
  assert shown == ["RESTARTS=5", "sbatch", *told] and (tools / "restarts").read_text() == "5\n"
  at = told.index(job_lib.script("slurm.sh"))
  assert told[:at] == [
      "--job-name=orthus-7b-post-h100-8", "--nodes=4", "--gpus-per-node=8", "--signal=TERM@60", "--partition=gpu"
  ]  # fmt: skip
  assert told[at + 1 : at + 3] == [f"{ORTHUS_7B.removeprefix('--config=')}:post-h100-8", "/shared/run"]
  assert told[-1] == "--config.data.path=/d a"


def test_kubectl_reads_the_manifest(capsys, tools):
  stand_in(tools, "kubectl", f"cat > {tools}/manifest")
  argv = ("--on=jobset", *GPU, *PODS, "--namespace=n")
  launch(capsys, *argv)
  assert (tools / "kubectl.arguments").read_text().splitlines() == ["create", "--namespace=n", "-f", "-"]
  assert yaml.safe_load((tools / "manifest").read_text()) == yaml.safe_load(dry(capsys, *argv))


SETUP = "# mounts it\nmkdir -p /shared\n"


@pytest.fixture
def queued(tmp_path) -> tuple[str, ...]:
  (tmp_path / "setup.sh").write_text(SETUP)
  return ("--on=queued-resources", *TPU, PODS[0], "--volume=/shared:/shared", *CLOUD, f"--setup={tmp_path / 'setup.sh'}")


def test_gcloud_gets_slices_and_the_start_up_script(capsys, tools, queued):
  stand_in(tools, "gcloud", f'file="${{@: -1}}"; cp "${{file##*=}}" {tools}/startup')
  shown = dry(capsys, *queued)
  launch(capsys, *queued, "--", "--spot")
  told = (tools / "gcloud.arguments").read_text().splitlines()
  assert told[:5] == ["compute", "tpus", "queued-resources", "create", "orthus-7b-post-2xv5p-128"]
  assert {
      "--node-count=2", "--node-prefix=orthus-7b-post-2xv5p-128", "--type=v5p", "--topology=4x4x4", "--project=p",
      "--zone=us-east5-a", "--runtime-version=v2-alpha-tpuv5", "--spot",
  } <= set(told)  # fmt: skip
  assert (tools / "startup").read_text().rstrip() in shown and SETUP in shown


@pytest.mark.parametrize("statuses, wanted, times", [("75 76 0", 0, 3), ("2", 2, 1), ("76 1", 1, 2), ("75 75 75", 75, 2)])
def test_a_start_up_script_starts_again_what_was_preempted(capsys, tools, queued, statuses, wanted, times):
  shown = dry(capsys, *queued, "--restarts=1" if times == 2 and wanted == 75 else "--restarts=9", "--env=A=b c")
  script = shown.split("END_OF_SCRIPT'\n")[1].split("END_OF_SCRIPT")[0].replace("mkdir -p /shared", f"touch {tools}/mounted")
  status = f'echo x >> {tools}/n; n=$(wc -l < {tools}/n); set -- {statuses}; exit "${{!n}}"'
  stand_in(tools, "docker", f'[ "$1" = run ] || exit 0\n{status}')
  assert subprocess.run(["bash", "-c", script], capture_output=True).returncode == wanted
  assert len((tools / "n").read_text().splitlines()) == times and (tools / "mounted").exists()
  told = (tools / "docker.arguments").read_text().splitlines()
  at = told.index("orthus")
  assert told[at - 1] == "images.example.com/orthus:1" and told[at : at + 2] == ["orthus", "train"]
  assert {"--env=A=b c", "--volume=/shared:/shared", "--stop-timeout=120", "--net=host"} <= set(told[:at])
  assert {"--workdir=/shared/run", "--processes=auto"} <= set(told[at:])


def test_this_machine_runs_the_script_in_the_place_of_the_command(tools, tmp_path):
  stand_in(tools, "orthus", f"echo $PPID >> {tools}/parents; [ $(wc -l < {tools}/parents) -gt 1 ] || exit 75; exit 4")
  argv = ["launch", "--on=local", SHAPES, f"--workdir={tmp_path / 'run'}", "--config.run.steps=3"]
  process = subprocess.Popen([sys.executable, "-m", "orthus_jax.cli", *argv], stderr=subprocess.PIPE, text=True)
  _, said = process.communicate(timeout=100)
  assert process.returncode == 4 and "starting again" in said
  assert (tools / "parents").read_text() == f"{process.pid}\n" * 2  # what is sent to the command reaches the script
  told = (tools / "orthus.arguments").read_text().splitlines()
  assert told == ["train", SHAPES, f"--workdir={tmp_path / 'run'}", "--config.run.steps=3"]


def test_a_sweep_is_an_array(capsys, tools, tmp_path, monkeypatch):
  monkeypatch.setattr(job_lib, "_OWN_DISK", ())
  stand_in(tools, "sbatch", f'cp "${{@: -1}}" {tools}/array')
  argv = ("--on=slurm", "--topology=h100:1", SHAPES, "--sweep", "--grid", "run.seed=0,1", "--jobs=2")
  folder = tmp_path / "sweep"
  shown = dry(capsys, *argv, workdir=str(folder))
  assert "#SBATCH --array=0-1%2" in shown and "--gpus-per-node=1" in shown and not folder.exists()
  assert launch(capsys, *argv, workdir=str(folder)) == "" and folder.is_dir()
  assert (tools / "array").read_text().rstrip() in shown
  assert cli.main(["launch", f"--workdir={folder}", *argv, "--config.mesh.fsdp=3"]) == 2
  assert "the mesh data=1 x fsdp=3" in capsys.readouterr().err


# --- what is refused ------------------------------------------------------------------------------------------------

JOBSET_TPU = ("--on=jobset", "--topology=v5e:16x16", f"{ORTHUS_7B}:post-v5e-256", *INPUTS, *PODS)
SLURM = ("--on=slurm", "--topology=h100:1", SHAPES)
XPK = ("--on=xpk", *GPU, PODS[0])


@pytest.mark.parametrize("argv, message", [
    (("--on=slrum", SHAPES, "--topology=h100:1"), "unknown --on=slrum: the nearest is slurm"),
    ((SHAPES,), "no --on: say where"),
    (("--on=slurm", SHAPES), "no --topology: say which devices slurm is to ask for, such as --topology=h100:8"),
    (("--on=slurm", "--topology=h100:1"), "no --config"),
    (("--on=slurm", "--topology=v5e:4x4", SHAPES), "--on=slurm has no v5e: choose --on=local or jobset-tpu or xpk or"),
    (("--on=jobset", "--topology=cpu:1", SHAPES, *PODS), "--on=jobset-gpu has no cpu"),
    ((*JOBSET_TPU, "--topology=v5e:8x8"), "v5e:8x8: the mesh data=1 x fsdp=256 x tensor=1 x context=1 doesn't fit 64 devices"),
    ((*JOBSET_TPU, "--slices=2", "--config.mesh.fsdp=512"), "mesh.data=1 must be a multiple of the 2 slices"),
    ((*JOBSET_TPU, "--config.run.batch_size=100"), "run.batch_size=100 can't be split over data x fsdp = 256"),
    ((*JOBSET_TPU, "--topology=v5e:3x5", "--config.mesh.fsdp=-1", "--config.run.batch_size=15",
      "--config.model.transformer.width=1500"), "v5e comes in 1x1, 2x2"),
    ((*JOBSET_TPU, "--topology=v5p:8x8x4", "--config.mesh.fsdp=-1"), "multiples of four, the smallest first, as 4x4x8"),
    (("--on=jobset", "--topology=v5e:2x2", "--slices=2", SHAPES, "--config.run.batch_size=8", "--config.mesh.data=2", *PODS),
     "joins slices of several"),
    (JOBSET_TPU[:-2], "--on=jobset-tpu lacks the container image"),
    (JOBSET_TPU[:-1], "--workdir=/shared/run lies on no volume"),
    ((*JOBSET_TPU[:-1], "--volume=claim:/other"), "--workdir=/shared/run lies on no volume"),
    ((*JOBSET_TPU, "--volume=claim"), "--volume=claim: write CLAIM:/DIR"),
    ((*JOBSET_TPU, "--volume=gs://b/folder:/shared"), "write CLAIM:/DIR"),
    ((*JOBSET_TPU[:-1], "--volume=/mnt/x:/shared"), "--volume=/mnt/x:/shared: here it is --volume=CLAIM:DIR or"),
    ((*SLURM, "--topology=gb200:64", "--config.run.batch_size=64"), "4 gb200 GPUs, not 64: --topology=gb200:4 --nodes=16"),
    ((*JOBSET_TPU, "--env=A"), "--env=A: write NAME=VALUE"),
    ((*JOBSET_TPU, "--name=My_Run"), "--name=My_Run must be small letters"),
    ((*JOBSET_TPU, "--name=" + "a" * 41), "40 at most"),
    ((*JOBSET_TPU, "--zone=z"), "--zone is not for --on=jobset-tpu"),
    ((*SLURM, "--image=i"), "--image is not for --on=slurm"),
    ((*SLURM, "--workdir=runs/x"), "--workdir=runs/x is relative"),
    ((*SLURM, "--workdir=/tmp/x"), "each machine has a /tmp of its own"),
    ((*SLURM, "--workdir=http://b/x"), "--workdir=http://b/x: give gs://…, s3://… or a path"),
    ((*SLURM, "--workdir=gs://b/x", "--sweep", "--grid", "run.seed=0,1"), "a sweep is kept on a disk: mount the bucket"),
    ((*SLURM, "--restart=3"), "unknown option --restart; the nearest is --restarts"),
    ((*SLURM, "--partition=gpu"), "what is the tool's own stands behind --"),
    ((*SLURM, "--config.run.stesp=3"), "unknown field --config.run.stesp; the nearest is --config.run.steps"),
    ((*SLURM, "--topology=cpu:4", "--config.run.batch_size=8"), "write --topology=cpu:1 --nodes=4"),
    (XPK, "--on=xpk lacks the GKE cluster, --cluster=NAME"),
    ((*XPK, "--cluster=c"), "--on=xpk lacks the Google Cloud project, --project=ID"),
    ((*XPK, "--cluster=c", "--project=p"), "--on=xpk lacks where the machines are, --zone=us-east5-a"),
    ((*XPK, "--cluster=c", *CLOUD, "--init_from=gs://b/it's"), "xpk garbles quotes"),
    ((*XPK, "--cluster=c", *CLOUD, "--topology=a100:8"), "xpk has no a100:8, but h100:8, h200:8: choose --on=jobset-gpu"),
    (("--on=queued-resources", *TPU, PODS[0], *CLOUD), "lacks a script that mounts the disk of --workdir on each host"),
    (("--on=queued-resources", *TPU, PODS[0], *CLOUD, "--setup=/no/file"), "--setup=/no/file can't be read"),
    ((*JOBSET_TPU, "--config.data.tokenizer="), "the built-in tokenizer, as data.tokenizer names none, has 512 image codes"),
    ((*JOBSET_TPU, "--config.data.path=data/x"), "data.path=data/x is relative, and a container has no current directory"),
    ((*JOBSET_TPU, "--init_from=runs/anole"), "run.init_from=runs/anole is relative"),
    (("--on=local", SHAPES, "--nodes=2", "--topology=h100:1"), "--on=local is this machine alone: leave out --nodes"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(capsys, argv, message):
  assert cli.main(["launch", "--workdir=/shared/run", *argv, "--dry-run"]) == 2
  told = capsys.readouterr()
  assert message in told.err and told.err.count("\n") == 1 and told.out == ""


@pytest.mark.parametrize("argv", [
    SLURM, JOBSET_TPU[:-1], (*XPK, "--cluster=c", *CLOUD), ("--on=queued-resources", *TPU, PODS[0], *CLOUD),
])  # fmt: skip
def test_a_bucket_needs_no_disk(capsys, argv):
  assert cli.main(["launch", "--workdir=gs://b/x", *argv, "--dry-run"]) == 0
  shown = capsys.readouterr().out
  assert "gs://b/x" in shown and "gcsfuse" not in shown


@pytest.mark.parametrize("argv, tool", [(SLURM, "sbatch"), (JOBSET_TPU, "kubectl"), ((*XPK, "--cluster=c", *CLOUD), "xpk")])
def test_a_missing_tool_is_named(capsys, monkeypatch, argv, tool):
  monkeypatch.setenv("PATH", "/nowhere")
  assert cli.main(["launch", "--workdir=/shared/run", *argv]) == 2
  assert f"there is no {tool} here" in capsys.readouterr().err


def test_a_volume_is_of_its_kind(capsys, queued):
  argv = [a.replace("/shared:", "gs://b:") for a in queued]
  assert cli.main(["launch", "--workdir=/shared/run", *argv, "--dry-run"]) == 2
  assert "--volume=gs://b:/shared: here it is --volume=HOSTDIR:DIR" in capsys.readouterr().err
  assert "claimName: gs-data" in dry(capsys, *JOBSET_TPU[:-1], "--volume=gs-data:/shared")


def test_a_setup_that_fails_ends_the_start_up_script(capsys, tools, tmp_path, queued):
  (tmp_path / "setup.sh").write_text("set -e\nfalse\ntrue\n")
  script = dry(capsys, *queued).split("END_OF_SCRIPT'\n")[1].split("END_OF_SCRIPT")[0]
  stand_in(tools, "docker", "exit 0")
  assert subprocess.run(["bash", "-c", script], capture_output=True).returncode == 1
  assert not (tools / "docker.arguments").exists()  # nothing is trained on a disk that isn't mounted


def test_every_kind_and_chip_has_a_name():
  for chip in hardware.CHIPS.values():
    if chip.platform == "tpu":
      topology = hardware.Topology(chip, (4,) * chip.torus)
      assert tpus.accelerator_type(topology) and tpus.gke_accelerator(topology)
      if chip.name == "tpu7x":
        with pytest.raises(BadRequest, match="choose --on=jobset or --on=xpk"):
          tpus.runtime(topology)
      else:
        assert tpus.runtime(topology)
  names = {c: job_lib.name_of(c) for c in ("configs/orthus_7b.py:post-v5e-256", "7b.py", "a/B_c.py:x,y" + "z" * 60)}
  assert list(names.values()) == ["orthus-7b-post-v5e-256", "run-7b", "b-c-x-y" + "z" * 33]
  for name in names.values():
    job_lib.check_name(name)
  assert kinds.find("jobset", hardware.parse("v5e:4x4"))[0] == "jobset-tpu"


# --- scripts --------------------------------------------------------------------------------------------------------


def test_the_scripts_in_launch_are_those_that_the_package_brings():
  packaged = {p.name for p in Path(job_lib.script("")).glob("*.sh")}
  links = {p.name: p.resolve() for p in (ROOT / "launch").glob("*.sh") if p.is_symlink()}
  assert packaged == set(links) and all(str(p) == job_lib.script(n) for n, p in links.items())


def test_shell_scripts_are_clean(capsys, queued):
  shellcheck = checker("shellcheck")
  started = dry(capsys, *queued, "--env=A=b").split("END_OF_SCRIPT'\n")[1].split("END_OF_SCRIPT")[0]
  done = subprocess.run([shellcheck, "-"], input=started, capture_output=True, text=True)
  assert not done.returncode, done.stdout
  subprocess.run(["bash", "-n"], input=started, text=True, check=True)
  files = [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci/run"]
  done = subprocess.run([shellcheck, "--severity=warning", *files], capture_output=True, text=True)
  assert not done.returncode, done.stdout
