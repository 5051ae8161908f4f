"""What is left of a sweep as a script for a cluster: a SLURM array, or a job on a TPU for each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import shlex

from orthus_jax.sweeping import todo
from orthus_jax.sweeping.plan import Planned

_SLURM = """#!/usr/bin/env bash
# {count} of a sweep of {spec}, each a task of a SLURM array. Submit it from the directory where `orthus sweep` printed it:
#
#   sbatch --gpus-per-node=8 SCRIPT          (--nodes=N for runs on several; --array=… for some of them)
#
# A run that is preempted, or loses a node, is saved and goes back into the queue (exit status 75, 76), as launch/slurm.sh has
# it. Once all are done, the same `orthus sweep` without --print collects them; it starts what is missing.
#SBATCH --job-name=sweep
#SBATCH --array=0-{last}{at_once}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -uo pipefail

train=() evaluate=()
case ${{SLURM_ARRAY_TASK_ID:?submit this with sbatch}} in
{cases}
  *) echo "there is no run $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
logs={logs}
mkdir -p "$logs" || exit 2

status=0
if [ ${{#train[@]}} -gt 0 ]; then
  srun --kill-on-bad-exit=1 orthus train "${{train[@]}}" 2> >(tee -a "$logs/$name.txt" >&2)
  status=$?
fi
if [ "$status" -eq 0 ] && [ ${{#evaluate[@]}} -gt 0 ]; then
  srun --nodes=1 --ntasks=1 orthus evaluate "${{evaluate[@]}}" 2> >(tee -a "$logs/$name.txt" >&2)
  status=$?
fi
case $status in
  75 | 76)
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt "${{RESTARTS:-100}}" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
    ;;
esac
exit "$status"
"""

_TPU = """#!/usr/bin/env bash
# {count} of a sweep of {spec}, a job on a Cloud TPU each. Start it in the repository:
#
#   TPUS="pod-a pod-b" ZONE=us-east5-a bash SCRIPT
#
# Each TPU takes a run after the other, by launch/tpu_pod.sh. The workdir is on a disk that all hosts share. Once all are done,
# the same `orthus sweep` without --print collects and evaluates them; it starts what is missing.
set -uo pipefail

tpus=(${{TPUS:?name TPUs that exist: TPUS=\\"pod-a pod-b\\"}})

job() {{
  case $1 in
{cases}
  esac
}}

work() {{
  local failed=0
  for ((n = $1; n < {runs}; n += ${{#tpus[@]}})); do
    job "$n" || {{ echo "run $n failed on $TPU" >&2; failed=1; }}
  done
  return $failed
}}

workers=()
for i in "${{!tpus[@]}}"; do
  TPU=${{tpus[$i]}} work "$i" &
  workers+=($!)
done
status=0
for worker in "${{workers[@]}}"; do wait "$worker" || status=1; done
exit $status
"""


def slurm(folder: Path, spec: str, runs: Sequence[Planned], *, at_once: int | None = None) -> str:
  """A script for `sbatch` that does what the runs lack.

  Args:
    folder: the sweep's.
    spec: FILE or FILE:ARGUMENT.
    runs: those that aren't finished, one at least.
    at_once: tasks at most that SLURM runs at the same time.
  """
  cases = []
  for i, run in enumerate(runs):
    parts = "".join(f"    {name}=({shlex.join(argv[1:])})\n" for name, argv in todo.commands(folder, run))
    cases.append(f"  {i})\n    name={shlex.quote(run.id)}\n{parts}    ;;")
  return _SLURM.format(
      count=_count(runs), spec=spec, last=len(runs) - 1, at_once=f"%{at_once}" if at_once else "", cases="\n".join(cases),
      logs=shlex.quote(str(folder / "logs")),
  )  # fmt: skip


def tpu(folder: Path, spec: str, runs: Sequence[Planned]) -> str:
  """A script that trains the runs on TPUs; arguments as of `slurm`."""
  cases = []
  for i, run in enumerate(runs):
    argv = (run.spec, str(folder / "runs" / run.id), *run.overrides)
    cases.append(f"    {i}) launch/tpu_pod.sh {shlex.join(argv)} ;;")
  return _TPU.format(count=_count(runs), spec=spec, runs=len(runs), cases="\n".join(cases))


def _count(runs: Sequence[Planned]) -> str:
  return "One run" if len(runs) == 1 else f"{len(runs)} runs"
