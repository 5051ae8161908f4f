#!/usr/bin/env bash
# Orbax, each process saving to a disk of its own: one whose disk is slower writes before its directory is there, and fails.
#
# One would guess: with `MultiprocessingOptions(primary_host=None)`, which has each process see to its own directory (machines
#   without a shared disk), an asynchronous save waits until this process's directories are made.
# What happens: directories are made in the background (`create_directories_asynchronously`, on by default), and "they are made" is
#   one signal for all processes. The first process to have made its own sets it for everybody. Where another's disk takes
#   longer, its arrays are written first, which makes the directory; then making it fails ("File exists"), and so does its
#   save. The others wait for it until `timeout_secs` is over (600 by default). With create_directories_asynchronously=False all
#   is saved.
# How it is tried: two processes on this machine; in the second, making a directory takes four seconds longer.
# Why it matters here: so do several machines save that have a bucket alone in common (`training/checkpoints/saver.py`); without
#   the delay it befell one of the first seven runs.
# Versions: orbax-checkpoint 0.12.8, jax and jaxlib 0.10.2, numpy 2.4.6, tensorstore 0.1.86, Python 3.11 or newer. Seen on 2026-11-29.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
FAILS=True  # with directories made in the background

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 tensorstore==0.1.86 || exit 2
cat > "$work/save.py" << 'PYTHON'
import logging
import os
import sys
import time

import jax

number, port, folder, background = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "background"
jax.distributed.initialize(f"localhost:{port}", 2, number)
logging.disable(logging.WARNING)

import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

make = os.mkdir


def slowly(path, *more, **named):
  time.sleep(4)
  make(path, *more, **named)


mesh = Mesh(np.array(jax.devices()), ("x",))
value = np.arange(8.0, dtype=np.float32)
array = jax.make_array_from_callback((8,), NamedSharding(mesh, PartitionSpec("x")), lambda index: value[index])
each = ocp.options.MultiprocessingOptions(primary_host=None)
handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=each)
options = ocp.AsyncOptions(timeout_secs=40, create_directories_asynchronously=background)
saver = ocp.AsyncCheckpointer(handler, async_options=options, multiprocessing_options=each)
own = f"{folder}/disk-{number}"
os.makedirs(own)
if number == 1:
  os.mkdir = slowly
try:
  saver.save(f"{own}/checkpoint", args=ocp.args.PyTreeSave({"a": array}))
  saver.wait_until_finished()
  told = "saved" if os.path.exists(f"{own}/checkpoint/a/{number}") else "saved nothing"
except Exception as e:
  told = f"failed: {type(e).__name__}: {str(e).splitlines()[0].replace(folder, 'DIR')[:150]}"
print(f"process {number}: {told}", flush=True)
os._exit(0)
PYTHON
port() { python3 -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])'; }
save() { # HOW: what the two processes say
  local p
  p=$(port)
  export JAX_PLATFORMS=cpu
  "$work/venv/bin/python" "$work/save.py" 1 "$p" "$work/$1" "$1" > "$work/second" 2> "$work/second.err" &
  "$work/venv/bin/python" "$work/save.py" 0 "$p" "$work/$1" "$1" 2> "$work/first.err" || true
  wait
  cat "$work/second"
}
"$work/venv/bin/pip" list 2> /dev/null | grep -E "^(orbax-checkpoint|jax|jaxlib|tensorstore) "
echo "directories made in the background:"
save background | grep -v '^.Gloo' | tee "$work/said-background"
echo "directories made ahead:"
save ahead | grep -v '^.Gloo' | tee "$work/said-ahead"
grep -q "^process 0: saved$" "$work/said-ahead" && grep -q "^process 1: saved$" "$work/said-ahead" \
  || { cat "$work"/*.err >&2; exit 2; }
failed=False
if grep -q "^process 1: failed" "$work/said-background"; then failed=True; fi
if [ "$failed" = "$FAILS" ]; then
  echo "as described: the slower process's save fails where directories are made in the background: $failed"
else
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
