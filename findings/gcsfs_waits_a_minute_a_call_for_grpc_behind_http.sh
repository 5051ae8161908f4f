#!/usr/bin/env bash
# gcsfs asks Google's storage control service by gRPC what kind a bucket is, and where only HTTP gets through, each call waits.
#
# One would guess: gcsfs speaks the JSON API over HTTP, as STORAGE_EMULATOR_HOST with an http:// address says it should, and what it
#   has learnt of a bucket once, it keeps.
# What happens: since its support for zonal and hierarchical buckets is on by default, reads and writes look the bucket's layout up
#   through a gRPC client at the same host and port. An HTTP server (an emulator; a proxy that passes no gRPC) can't answer. The
#   look-up is retried for 60 seconds, then there is a warning, the call goes on as before and succeeds. What wasn't found out isn't
#   kept, so the next call waits as long. GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false, set before the import, restores the old way.
# Why it matters here: runs at gs:// are tested against an emulator, and clusters without a way out but an HTTP proxy are common;
#   `orthus_jax/storage/bucket.py` sets the variable where an emulator is named.
# Versions: gcsfs 2026.10.1, fsspec 2026.9.0, google-cloud-storage-control 1.17.0, gcp-storage-emulator 2026.7.19, Python 3.11 or
#   newer. Seen on 2026-11-29. Takes about three minutes.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" &&
  "$folder/venv/bin/pip" install --quiet gcsfs==2026.10.1 fsspec==2026.9.0 google-cloud-storage-control==1.17.0 \
    gcp-storage-emulator==2026.7.19; } || exit 2
cat > "$folder/read_twice.py" <<'PYTHON'
from importlib.metadata import version
import os
import time

from gcp_storage_emulator.server import create_server

server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="mine")
server.start()
port = next(v for v in vars(server._api).values() if hasattr(v, "server_port")).server_port
os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
import fsspec

files = fsspec.filesystem("gs", token="anon")
print("gcsfs", version("gcsfs"), type(files).__name__)
seconds = []
for n in (1, 2):
  begin = time.monotonic()
  files.pipe_file("mine/a", b"text")
  seconds.append(time.monotonic() - begin)
  print(f"write {n}: {seconds[-1]:.0f} s, then there: {files.exists('mine/a')}")
server.stop()
with open("seconds", "w") as f:
  f.write(" ".join(map(str, seconds)))
PYTHON
cd "$folder"
run() { "$folder/venv/bin/python" read_twice.py 2> log || { tail -5 log >&2; exit 2; }; }
run
grep -m1 -o "Could not determine bucket type for bucket name mine" log || true
as_installed=$(cat seconds)
GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false run
"$folder/venv/bin/python" - "$as_installed" "$(cat seconds)" <<'PYTHON'
import sys

slow, fast = ([float(x) for x in text.split()] for text in sys.argv[1:])
EXPECTED = [True, True, False, False]  # waits at each call; with the support off, at none
found = [s > 30 for s in (*slow, *fast)]
print("waits:", found)
sys.exit(0 if found == EXPECTED else 1)
PYTHON
