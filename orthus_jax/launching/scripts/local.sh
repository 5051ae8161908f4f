#!/usr/bin/env bash
# Trains on this machine: all its GPUs or TPU chips, or its CPU.
#
#   launch/local.sh configs/shapes.py runs/shapes [--config.run.steps=4000 ...]
#
# Starts training again, from the newest checkpoint, when it was preempted (exit status 75), or when a step hung (76), at
# most RESTARTS times (100). Ctrl-C, a terminal that is lost, or a SIGTERM, SIGUSR1 or SIGUSR2 to this script saves a
# checkpoint and ends it; start it again with the same arguments to go on. With nohup it outlives its terminal.
set -uo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [--config.field=value ...]" >&2
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

child="" asked=""
# Passed on as what hastens nothing where it comes beside the signal itself, as all of a terminal's processes get that.
trap 'asked=1; [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null' TERM HUP USR1 USR2
trap 'asked=1' INT # the terminal tells the child itself

for ((n = 0; ; n++)); do
  orthus train --config="$config" --workdir="$workdir" "$@" 2> >(
    trap '' TERM HUP USR1 USR2 # the last lines are told when all else is ending
    exec tee -a "$log" >&2
  ) &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends the first wait before the child's own end
    wait "$child"
    status=$?
  done
  case $status in
    75 | 76) ;;
    *) exit "$status" ;;
  esac
  if [ -n "$asked" ] || [ "$n" -ge "${RESTARTS:-100}" ]; then exit "$status"; fi
  echo "$0: exit status $status, starting again" | tee -a "$log" >&2
done
