"""What saving costs while training goes on: the quickstart's own step, with and without a checkpoint every 20 steps.

    python benchmarks/saving.py [--every=20] [--blocks=8] [--config.run.batch_size=16 ...]

Blocks of steps with a save at their beginning take turns with blocks without one, in one process. A block lasts until its
last step is done, and the save goes on beside its steps; so the difference is all that a save costs, not the blocking part
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
  with tempfile.TemporaryDirectory() as folder, lock.hold(Path(folder)), jax.set_mesh(mesh):  # held, as by a run
    layout, create = plan_run(config, task.init, optimizer=optimizer, mesh=mesh)
    batch = task.batch(0)
    noise = np.random.default_rng(0).standard_normal((*batch.images.shape[:2], vision.patches, vision.latent_dim))
    batch = batch._replace(images=noise.astype(np.float32))
    step = step_lib.jit_step(step_lib.train_step(task, optimizer, config, layout), layout, mesh, batch)
    state, _ = step(create(), batch)
    saver = Checkpointer(Path(folder), config.run)
    saver.save(state)
    saver.wait()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    blocking = []
    for block in range(2 * options.blocks):
      saves = bool(block % 2)
      jax.block_until_ready(state)
      begin = time.perf_counter()
      if saves:
        saver.save(state)
        blocking.append(time.perf_counter() - begin)
      for _ in range(options.every):
        state, _ = step(state, batch)
      jax.block_until_ready(state)
      seconds[saves].append(time.perf_counter() - begin)
      saver.wait()  # not counted: it is over by then
      print(f"{'with' if saves else 'without':8} a save: {options.every} steps in {seconds[saves][-1]:.3f} s", flush=True)
    saver.close()
  size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  without, with_ = (statistics.median(seconds[s]) for s in (False, True))
  print(
      f"{size:.0f} MB a checkpoint, one every {options.every} steps of {config.run.batch_size} rows: {with_ / without - 1:.1%}"
      f" more time ({without:.2f} s without, {with_:.2f} s with; the step waits {statistics.median(blocking):.3f} s)"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
