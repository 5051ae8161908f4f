#!/usr/bin/env bash
# libtpu 0.0.42 takes an option for every TPU that libtpu 0.0.50 says may compute wrong results on all but one.
#
# One would guess: a compiler option that is taken without a word, and does what it says (gathers are spread over the products that
#   follow, in programs that MaxText and AXLearn published for v5p and v6e), is one that the chip supports.
# What happens: libtpu 0.0.42.1 compiles xla_tpu_enable_async_collective_fusion_fuse_all_gather for v5e and v6e alike. libtpu
#   0.0.50.1 refuses it for v6e: it is for v5e alone, and elsewhere may give wrong results, hangs or silent data corruption. A
#   program that trained on the older one, rightly or not, no longer compiles on the newer one, and nothing told before.
# Why it matters here: `parallel/compiler.py` asked every TPU for it; it asks v5e alone now, and has v5p's and v6e's sparse cores do
#   the gathers. Figures of training with it on v5p and v6e are to be read with that in mind.
# Versions: jax and jaxlib 0.10.2, libtpu 0.0.42.1 and 0.0.50.1, numpy 2.4.6, Python 3.11 or newer. Seen on 2026-11-27.
#
# Exit status: 0 if it is as described, 1 if that has changed, 2 if it couldn't be tried. No TPU is needed: nothing is run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/compile.py" <<'PYTHON'
from importlib.metadata import version

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

OPTIONS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}
for chip in ("v5e", "v6e"):
  devices = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2x1").devices
  rows = NamedSharding(Mesh(np.array(devices), ("x",)), PartitionSpec("x"))
  square = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=rows)
  try:
    jax.jit(jnp.matmul, out_shardings=rows).lower(square, square).compile(compiler_options=OPTIONS)
    print("libtpu", version("libtpu"), chip, "takes it")
  except jax.errors.JaxRuntimeError as e:
    print("libtpu", version("libtpu"), chip, "refuses it:", str(e).splitlines()[0])
PYTHON
python3 -m venv "$folder/venv" || exit 2
for libtpu in 0.0.42.1 0.0.50.1; do
  "$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 "libtpu==$libtpu" numpy==2.4.6 || exit 2
  JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 "$folder/venv/bin/python" "$folder/compile.py" 2> "$folder/errors" | tee -a "$folder/said" ||
    { cat "$folder/errors"; exit 2; }
done
if [[ $(grep -c "takes it" "$folder/said") == 3 && $(grep -c "libtpu 0.0.50.1 v6e refuses it:.*v5e" "$folder/said") == 1 ]]; then
  echo "as described: refused by the newer one off v5e alone"
else
  echo "CHANGED: it isn't as described any more"
  exit 1
fi
