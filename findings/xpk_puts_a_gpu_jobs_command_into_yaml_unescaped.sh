#!/usr/bin/env bash
# xpk takes a command with double quotes for TPUs, and fails on the same one for GPUs.
#
# One would guess: `xpk workload create --command='python -c "print(1)"'` makes a manifest whose container runs that command, whatever
#   the device; the manifest is YAML, and a string in YAML can hold any character.
# What happens: for a TPU's type it does. For a GPU's type the command is pasted between double quotes into the manifest's text,
#   unescaped, so the first quote in it ends the string: xpk ends with a YAML scanner error of its own manifest and status 1, in a dry
#   run as well, which needs neither a cluster nor an account. A command without double quotes goes through.
# Why it matters here: `orthus launch --on=xpk` hands its training command to xpk, and a config field given on the command line may well
#   hold quotes; it refuses those for GPUs in one line (orthus_jax/launching/xpk.py).
# Versions: xpk 1.16.0, Python 3.11 or newer. Seen on 2026-11-29.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet xpk==1.16.0; } || exit 2
export HOME=$folder PATH=$folder/venv/bin:$PATH
echo "xpk $(python -c 'from importlib.metadata import version; print(version("xpk"))')"

expected="plain --tpu-type=v5litepod-256: 0
plain --device-type=h200-141gb-8: 0
quoted --tpu-type=v5litepod-256: 0
quoted --device-type=h200-141gb-8: 1"
found=""
for kind in plain quoted; do
  command="echo 1"
  if [[ $kind == quoted ]]; then command='python -c "print(1)"'; fi
  for device in --tpu-type=v5litepod-256 --device-type=h200-141gb-8; do
    status=0
    xpk workload create --workload=a --cluster=c --project=p --zone=us-east5-a "$device" --docker-image=images.example.com/a \
      --dry-run --skip-validation --command="$command" > "$folder/out" 2>&1 || status=$?
    found+="${found:+$'\n'}$kind $device: $status"
    if [[ $status != 0 ]]; then
      echo "$command on $device:"
      tail -4 "$folder/out"
    fi
  done
done
echo "$found"
[[ $found == "$expected" ]]
