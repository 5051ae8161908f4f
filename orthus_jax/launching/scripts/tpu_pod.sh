#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice that has this repository installed: the same command on each of its hosts.
#
#   TPU=my-pod ZONE=us-east5-a launch/tpu_pod.sh configs/NAME.py /SHARED/runs/NAME [--config.field=value ...]
#
# WORKDIR lies in a bucket (gs://BUCKET/PATH), or on a disk that all hosts share (Filestore). The hosts find each other
# through the TPU's metadata. Each starts training again, from the newest checkpoint, when it was preempted (exit status 75,
# as at a maintenance event) or when a host was lost (76), at most RESTARTS times (100). Start the script again to go on after
# the machines themselves were taken away and made anew.
set -euo pipefail

if [ $# -lt 2 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  echo "usage: TPU=NAME ZONE=ZONE $0 CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
rest=""
if [ $# -gt 0 ]; then printf -v rest ' %q' "$@"; fi
train="orthus train --config=$(printf %q "$config") --workdir=$(printf %q "$workdir") --processes=auto${rest}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  for n in \$(seq 0 ${RESTARTS:-100}); do
    $train; status=\$?
    case \$status in 75 | 76) ;; *) exit \$status ;; esac
  done
  exit \$status"
