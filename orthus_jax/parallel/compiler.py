"""What a training step asks of its platform's compiler, beyond what it does by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import re

from jax.sharding import Mesh

from orthus_jax.errors import BadRequest

# A TPU sums gradients by all-reduces where a mesh axis covers several dimensions of its torus, and unless it is told so waits
# for each. These spread them, and the gathers of weights, over the products and elementwise loops beside them
# (docs/planning.md has what that gives). Sums are joined into one only where they are small, as what is joined isn't spread.
# The names are those of `LIBTPU_INIT_ARGS`, and hold above what stands there.
_TPU = {
    "xla_enable_async_all_reduce": "true",
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": str(1 << 20),
}


def options(mesh: Mesh, asked: Sequence[tuple[str, str]] = ()) -> dict[str, str | bool] | None:
  """Options for `jax.jit(compiler_options=)`.

  Args:
    mesh: what the program is for; it is its devices' platform that counts, not this machine's.
    asked: (option, value) pairs that go above ours (run.compiler_options).
  """
  platform = mesh.devices.flat[0].platform
  ours = _TPU if platform == "tpu" and mesh.size > 1 else {}
  switches = {"true": True, "false": False}  # which is how a CPU's compiler wants them
  return {k: switches.get(v.lower(), v) for k, v in {**ours, **dict(asked)}.items()} or None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
  """Has a compiler's refusal of an option be a bad request.

  Raises:
    BadRequest: naming the option.
  """
  try:
    yield
  except Exception as e:  # jaxlib raises its own class, and differs from version to version
    found = re.search(r"(?:No such compile option: '|While setting option |Failed to parse '.*' into flag )(\w+)", str(e))
    if found is None:
      raise
    raise BadRequest(f"run.compiler_options: the compiler takes no {found.group(1)!r} of this value: leave it out") from e
