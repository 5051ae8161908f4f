#!/usr/bin/env bash
# Trains on this machine: all its GPUs or TPU chips, or its CPU.
#
#   launch/local.sh configs/shapes.py runs/shapes [--config.run.steps=4000 ...]
#
# Start it again with the same arguments to go on from the newest checkpoint.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
mkdir -p "$workdir"
exec orthus train --config="$config" --workdir="$workdir" "$@" 2> >(tee -a "$workdir/log.txt" >&2)
