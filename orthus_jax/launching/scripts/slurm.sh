#!/usr/bin/env bash
# Trains on GPU nodes under SLURM: one process a node, each with all of its node's GPUs.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh configs/NAME.py WORKDIR [--config.field=value ...]
#
# WORKDIR and the data lie on a disk that all nodes share, or in a bucket (gs://, s3://). Two minutes before the time limit, and
# when SLURM preempts the job, a checkpoint is saved, and the job goes back into the queue (exit status 75), as it does when a node is lost (76), at most
# RESTARTS times (100). Submit it again with the same arguments to go on from the newest checkpoint. A node that doesn't come
# is named after --join_timeout seconds (300).
#SBATCH --job-name=orthus
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -uo pipefail

if [ $# -lt 2 ]; then
  echo "usage: sbatch --nodes=N --gpus-per-node=G $0 CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
case $workdir in
  *://*) log=/dev/null ;; # in a bucket, which training writes a log.txt of its own to
  *)
    mkdir -p "$workdir" || exit 2
    log=$workdir/log.txt
    ;;
esac

srun --kill-on-bad-exit=1 orthus train --config="$config" --workdir="$workdir" "$@" 2> >(tee -a "$log" >&2)
status=$?
case $status in
  75 | 76)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-100}" ]; then
      echo "exit status $status, back into the queue" | tee -a "$log" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$status"
