"""What saving costs while training goes on: the quickstart's own step, with and without a checkpoint every 20 steps.

    python benchmarks/saving.py [--every=20] [--blocks=8] [--bucket[=URL]] [--config.run.batch_size=16 ...]

Blocks of steps with a save at their beginning take turns with blocks without one, in one process. A block lasts until its
last step is done, and the save goes on beside its steps; so the difference is all that a save costs, not the blocking part
alone. With --bucket, blocks whose workdir is in a bucket take turns with these: it is that at a URL, or an S3 server on
loopback, in a process of its own, which takes processor time that a real one doesn't.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import contextlib
import dataclasses
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))


_SERVER = "import buckets, sys; s = buckets.Server(); s.make('mine'); print(s.url, flush=True); sys.stdin.read()"


@contextlib.contextmanager
def bucket_at(url: str) -> Iterator[str]:
  """The URL, or one of a server on loopback."""
  if url:
    yield url
    return
  sys.path.insert(0, str(REPOSITORY / "tests"))
  import buckets

  environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
  command = [sys.executable, "-c", _SERVER]
  with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
    assert server.stdout and server.stdin
    os.environ |= buckets.ENVIRONMENT | {"AWS_ENDPOINT_URL": server.stdout.readline().strip()}
    yield "s3://mine/saving"
    server.stdin.close()


@contextlib.contextmanager
def workdirs(folder: Path, url: str | None) -> Iterator[tuple[dict[str, Path], str]]:
  """Where the blocks of each sort save: on disk, and on disk with uploads to a bucket; and the bucket's URL."""
  from orthus_jax import lock
  from orthus_jax.storage import mirror
  from orthus_jax.storage.bucket import Bucket

  with contextlib.ExitStack() as stack:
    found, place = {"disk": folder / "disk"}, ""
    stack.enter_context(lock.hold(found["disk"]))  # as by a run
    if url is not None:
      mirror.EVERY = 0.2  # or the upload would begin in another block
      place = stack.enter_context(bucket_at(url))
      stack.callback(lambda: Bucket(place).remove(Bucket(place).list()))
      found["bucket"] = stack.enter_context(mirror.mirrored(place))
      stack.enter_context(lock.hold(found["bucket"]))
    yield found, place


def uploaded(url: str, step: int) -> float:
  """Waits until a checkpoint is whole in the bucket; returns the time."""
  from orthus_jax.storage import remote_run
  from orthus_jax.storage.bucket import Bucket

  while step not in remote_run.whole_steps(Bucket(url).list()):
    time.sleep(0.05)
  return time.perf_counter()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
  parser.add_argument("--blocks", type=int, default=8, help="of each sort")
  parser.add_argument("--bucket", metavar="URL", nargs="?", const="", help="a place for a run in a bucket, which is emptied")
  options, overrides = parser.parse_known_args()

  from orthus_jax.commands import common
  from orthus_jax.config import command_line

  common.initialize()
  common.keep_memory()
  import jax
  import numpy as np

  from orthus_jax.data.pipeline import Pipeline
  from orthus_jax.data.sources import registry as sources
  from orthus_jax.parallel import mesh as mesh_lib
  from orthus_jax.training import step as step_lib
  from orthus_jax.training.checkpoints.saver import Checkpointer
  from orthus_jax.training.optimizer import make_optimizer
  from orthus_jax.training.state import plan_run
  from orthus_jax.training.tasks import OrthusTask

  config, _ = command_line.read_config([f"--config={REPOSITORY / 'configs' / 'shapes.py'}", *overrides])
  # The step is the quickstart's; a small split serves as its data, with noise for features.
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, kinds=(), later_kinds=(), cache_features=False))
  task = OrthusTask(config, Pipeline(sources.open_source(config, "validation"), sources.open_tokenizer(config), config))
  mesh, optimizer = mesh_lib.make_mesh(config.mesh), make_optimizer(config.optimizer, config.run)
  vision = config.model.vision_tokenizer
  with (
      tempfile.TemporaryDirectory() as folder, workdirs(Path(folder), options.bucket) as (places, url), jax.set_mesh(mesh),
  ):  # fmt: skip
    layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    batch = task.batch(0)
    noise = np.random.default_rng(0).standard_normal((*batch.images.shape[:2], vision.patches, vision.latent_dim))
    batch = batch._replace(images=noise.astype(np.float32))
    step = step_lib.jit_step(step_lib.train_step(task, optimizer, config, layout), layout, mesh, batch)
    state, _ = step(create(), batch)
    savers = {sort: Checkpointer(place, config.run) for sort, place in places.items()}
    for saver in savers.values():
      saver.save(state)
      saver.wait()
    sorts = ["without", *savers]
    seconds: dict[str, list[float]] = {sort: [] for sort in sorts}
    blocked: dict[str, list[float]] = {sort: [] for sort in savers}
    uploads = []
    for block in range(len(sorts) * options.blocks):
      sort = sorts[block % len(sorts)]
      jax.block_until_ready(state)
      begin = time.perf_counter()
      if sort in savers:
        saved = int(state.step)
        savers[sort].save(state)
        blocked[sort].append(time.perf_counter() - begin)
      for _ in range(options.every):
        state, _ = step(state, batch)
      jax.block_until_ready(state)
      seconds[sort].append(time.perf_counter() - begin)
      if sort in savers:
        savers[sort].wait()  # not counted: it is over by then
      if sort == "bucket":
        uploads.append(uploaded(url, saved) - begin)
      print(f"{sort:8} {options.every} steps in {seconds[sort][-1]:.3f} s", flush=True)
    for saver in savers.values():
      saver.close()
  size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  print(f"{size:.0f} MB a checkpoint, one every {options.every} steps of {config.run.batch_size} rows")
  without = statistics.median(seconds["without"])
  for sort in savers:
    with_, waits = statistics.median(seconds[sort]), statistics.median(blocked[sort])
    more = f"{with_ / without - 1:.1%} more time ({without:.2f} s without, {with_:.2f} s with; the step waits {waits:.3f} s)"
    print(f"{sort}: {more}")
  if uploads:
    print(f"uploaded {statistics.median(uploads):.1f} s after the save began")
  return 0


if __name__ == "__main__":
  sys.exit(main())
