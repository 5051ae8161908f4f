#!/usr/bin/env bash
# tensorboardX, which JAX projects take so as to need neither TensorFlow nor PyTorch, imports PyTorch wherever it finds it.
#
# One would guess: `import tensorboardX`, or of one protobuf message of it, costs protobuf and numpy; PyTorch is imported where
#   somebody hands over a tensor or a module's graph.
# What happens: the package's own __init__ leads to record_writer.py and others, which try `import torch` at their top. Every process
#   that logs a scalar then holds all of PyTorch: a second and more of each start, and 190 MB on each host. Marked as absent
#   (sys.modules["torch"] = None while it is imported), it isn't missed: scalars and pictures are written and read as before.
# Why it matters here: whoever compares a JAX model with a published PyTorch one has both in one environment, and each process
#   of a run, and of its tests, paid for it there (`training/loggers/tensorboard.py` bars it now).
# Versions: tensorboardX 2.6.5, torch 2.13.0 (CPU), Python 3.11 or newer. Seen on 2026-12-01.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
EXPECTED=True  # whether torch is among the modules afterwards

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install --quiet tensorboardX==2.6.5 torch==2.13.0 numpy==2.4.6 pillow==12.2.0 || exit 2
cat > "$work/log.py" << 'PYTHON'
import pathlib
import resource
import sys
import time

import numpy as np

if sys.argv[2] == "barred":
  sys.modules["torch"] = None
begin = time.monotonic()
from tensorboardX.proto.event_pb2 import Event

seconds = time.monotonic() - begin
imported = bool(sys.modules.get("torch"))
from tensorboardX import SummaryWriter

folder = pathlib.Path(sys.argv[1])
with SummaryWriter(str(folder)) as writer:
  writer.add_scalar("loss", 0.25, 1)
  writer.add_image("drawn", np.zeros((4, 4, 3), np.uint8), 1, dataformats="HWC")
tags, data = [], next(folder.iterdir()).read_bytes()
while data:
  size = int.from_bytes(data[:8], "little")
  tags += [v.tag for v in Event.FromString(data[12 : 12 + size]).summary.value]
  data = data[16 + size :]
megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(f"{sys.argv[2]}: one message's class takes {seconds:.1f} s, torch imported: {imported}, {megabytes} MB; written: {sorted(tags)}")
sys.exit(0 if tags and str(imported) == sys.argv[3] else 1)
PYTHON
"$work/venv/bin/python" -c "import tensorboardX as t, torch; print('tensorboardX', t.__version__, 'torch', torch.__version__)"
first=0 second=0
"$work/venv/bin/python" "$work/log.py" "$work/a" installed "$EXPECTED" || first=1
"$work/venv/bin/python" "$work/log.py" "$work/b" barred False || second=1
if ((first + second)); then
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
echo "as described: torch is imported where it is installed, and isn't needed"
