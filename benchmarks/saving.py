"""What saving costs while training goes on: the quickstart's own step, with and without a checkpoint every 20 steps, and
with local ones.

    python benchmarks/saving.py [--every=20] [--local_every=10] [--local_dir=DIR] [--blocks=8] [--config.run.batch_size=16 ...]

Blocks of steps without a save, with one at their beginning, and with local ones take turns, in one process. A block lasts until
its last step is done, and the save goes on beside its steps; so the difference is all that a save costs, not the blocking part
alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
import statistics
import sys
import tempfile
import time

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
  parser.add_argument("--local_every", type=int, default=10, help="steps between local ones; a divisor of the above")
  parser.add_argument("--local_dir", default="/dev/shm", help="where they go: memory by default")
  parser.add_argument("--blocks", type=int, default=8, help="of each sort")
  options, overrides = parser.parse_known_args()

  from orthus_jax import lock
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
  temporary = tempfile.TemporaryDirectory
  with temporary() as folder, temporary(dir=options.local_dir) as local, lock.hold(Path(folder)), jax.set_mesh(mesh):
    layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    batch = task.batch(0)
    noise = np.random.default_rng(0).standard_normal((*batch.images.shape[:2], vision.patches, vision.latent_dim))
    batch = batch._replace(images=noise.astype(np.float32))
    step = step_lib.jit_step(step_lib.train_step(task, optimizer, config, layout), layout, mesh, batch)
    state, _ = step(create(), batch)
    run = dataclasses.replace(config.run, local_checkpoint_every=options.local_every, local_checkpoint_dir=local)
    saver, tier = Checkpointer(Path(folder), run), LocalTier(dataclasses.replace(config, run=run), Path(folder), layout, {})
    for save, wait in ((saver.save, saver.wait), (tier.save, tier.wait), (tier.save, tier.wait)):
      save(state)  # from here on files and buffers are there
      wait()
      state, _ = step(state, batch)
    due = {"a checkpoint": (saver.save, options.every), "local ones": (tier.save, options.local_every)}
    seconds: dict[str, list[float]] = {sort: [] for sort in ("nothing", *due)}
    busy: dict[str, list[float]] = {sort: [] for sort in seconds}
    blocking: dict[str, list[float]] = {sort: [] for sort in due}
    for sort in list(seconds) * options.blocks:
      jax.block_until_ready(state)
      begin, processor = time.perf_counter(), time.process_time()
      for done in range(options.every):
        if sort in due and done % due[sort][1] == 0:
          jax.block_until_ready(state)
          saving = time.perf_counter()
          due[sort][0](state)
          blocking[sort].append(time.perf_counter() - saving)
        state, _ = step(state, batch)
      jax.block_until_ready(state)
      seconds[sort].append(time.perf_counter() - begin)
      saver.wait()  # not counted: it is over by then
      tier.wait()
      busy[sort].append(time.process_time() - processor)
      print(f"saves {sort:12}: {options.every} steps in {seconds[sort][-1]:.3f} s", flush=True)
    saver.close()
    tier.close(None)
  size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  whole, rows = statistics.median(seconds["nothing"]), config.run.batch_size
  print(f"{size:.0f} MB; without a save, {options.every} steps of {rows} rows take {whole:.2f} s")
  for sort, (_, every) in due.items():
    longer, busier = (
        statistics.median(b / a - 1 for a, b in zip(found["nothing"], found[sort])) for found in (seconds, busy)
    )
    print(
        f"  with {sort} every {every} steps: {longer:.1%} more time, {busier:.1%} more of the processors';"
        f" the step waits {statistics.median(blocking[sort]):.3f} s (medians of {options.blocks} pairs)"
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
