"""What saving costs while training goes on: the quickstart's own step, with and without a checkpoint every 20 steps, with local
ones, and with one that goes to a bucket.

    python benchmarks/saving.py [--every=20] [--local_every=10] [--local_dir=DIR] [--blocks=8] [--bucket[=URL]]
                                [--config.run.batch_size=16 ...]

Blocks of steps without a save, with one at their beginning, and with local ones take turns, in one process. A block lasts until
its last step is done, and the save goes on beside its steps; so the difference is all that a save costs, not the blocking part
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
    found, place = {"a checkpoint": folder / "disk"}, ""
    stack.enter_context(lock.hold(found["a checkpoint"]))  # as by a run
    if url is not None:
      mirror.EVERY = 0.2  # or the upload would begin in another block
      place = stack.enter_context(bucket_at(url))
      stack.callback(lambda: Bucket(place).remove(Bucket(place).list()))
      found["a checkpoint in a bucket"] = stack.enter_context(mirror.mirrored(place))
      stack.enter_context(lock.hold(found["a checkpoint in a bucket"]))
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
  parser.add_argument("--local_every", type=int, default=10, help="steps between local ones; a divisor of the above")
  parser.add_argument("--local_dir", default="/dev/shm", help="where they go: memory by default")
  parser.add_argument("--blocks", type=int, default=8, help="of each sort")
  parser.add_argument("--bucket", metavar="URL", nargs="?", const="", help="a place for a run in a bucket, which is emptied")
  options, overrides = parser.parse_known_args()

  from orthus_jax.commands import common
  from orthus_jax.config import command_line

  common.keep_memory()
  common.initialize()
  import jax
  import numpy as np

  from orthus_jax.data.pipeline import Pipeline
  from orthus_jax.data.sources import registry as sources
  from orthus_jax.parallel import mesh as mesh_lib
  from orthus_jax.training import step as step_lib
  from orthus_jax.training.checkpoints.local_tier import LocalTier
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
      tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=options.local_dir) as local,
      workdirs(Path(folder), options.bucket) as (places, url), jax.set_mesh(mesh),
  ):  # fmt: skip
    layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    batch = task.batch(0)
    noise = np.random.default_rng(0).standard_normal((*batch.images.shape[:2], vision.patches, vision.latent_dim))
    batch = batch._replace(images=noise.astype(np.float32))
    step = step_lib.jit_step(step_lib.train_step(task, optimizer, config, layout), layout, mesh, batch, config)
    state, _ = step(create(), batch)
    run = dataclasses.replace(config.run, local_checkpoint_every=options.local_every, local_checkpoint_dir=local)
    savers = {sort: Checkpointer(place, config.run) for sort, place in places.items()}
    tier = LocalTier(dataclasses.replace(config, run=run), Path(folder), layout, {})
    due = {sort: (saver.save, saver.wait, options.every) for sort, saver in savers.items()}
    due["local ones"] = tier.save, tier.wait, options.local_every
    for save, wait, _ in (*due.values(), due["local ones"]):
      save(state)  # from here on files and buffers are there
      wait()
      state, _ = step(state, batch)
    seconds: dict[str, list[float]] = {sort: [] for sort in ("nothing", *due)}
    busy: dict[str, list[float]] = {sort: [] for sort in seconds}
    blocking: dict[str, list[float]] = {sort: [] for sort in due}
    uploads = []
    for sort in list(seconds) * options.blocks:
      save, wait, every = due.get(sort, (None, None, 0))
      jax.block_until_ready(state)
      saved, begin, processor = int(state.step), time.perf_counter(), time.process_time()
      for done in range(options.every):
        if save and done % every == 0:
          jax.block_until_ready(state)
          saving = time.perf_counter()
          save(state)
          blocking[sort].append(time.perf_counter() - saving)
        state, _ = step(state, batch)
      jax.block_until_ready(state)
      seconds[sort].append(time.perf_counter() - begin)
      if wait:
        wait()  # not counted: it is over by then
      busy[sort].append(time.process_time() - processor)
      if sort == "a checkpoint in a bucket":
        uploads.append(uploaded(url, saved) - begin)
      print(f"saves {sort:12}: {options.every} steps in {seconds[sort][-1]:.3f} s", flush=True)
    for saver in savers.values():
      saver.close()
    tier.close(None)
  size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  whole, rows = statistics.median(seconds["nothing"]), config.run.batch_size
  print(f"{size:.0f} MB; without a save, {options.every} steps of {rows} rows take {whole:.2f} s")
  for sort, (_, _, every) in due.items():
    longer, busier = (
        statistics.median(b / a - 1 for a, b in zip(found["nothing"], found[sort])) for found in (seconds, busy)
    )
    print(
        f"  with {sort} every {every} steps: {longer:.1%} more time, {busier:.1%} more of the processors';"
        f" the step waits {statistics.median(blocking[sort]):.3f} s (medians of {options.blocks} pairs)"
    )
  if uploads:
    print(f"uploaded {statistics.median(uploads):.1f} s after the save began")
  return 0


if __name__ == "__main__":
  sys.exit(main())
