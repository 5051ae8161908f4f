"""What a benchmark's run costs beside the engine's own drawing of the same pictures: prompts, seeds, folders, PNG files.

    python benchmarks/drawing.py RUN                        # the built-in world's captions as a GenEval set, 4 pictures each
    python benchmarks/drawing.py RUN --data=DIR             # GenEval's own prompts, in its checkout
    python benchmarks/drawing.py RUN --data=DIR --pictures=2212 --rounds=1

RUN is a trained run. Both sides draw in one process, in turns, with the same prompts, seeds and rows, after a first, shorter
time each that isn't counted. A ratio of 0.95 says that a benchmark's run draws 0.95 times as many pictures a second; it is the
median round's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
import statistics
import tempfile
import time

from orthus_jax.commands import common
from orthus_jax.data.sources import registry as sources
from orthus_jax.evaluation import shapes_geneval
from orthus_jax.evaluation.runs import execute, prompts, registry
from orthus_jax.inference import model as model_lib
from orthus_jax.inference.requests import Request
from orthus_jax.inference.responses import Finished


def main() -> None:
  """Draws both ways and prints the ratio."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run")
  parser.add_argument("--data", type=Path, metavar="DIR", help="with evaluation_metadata.jsonl; default: the built-in world's")
  parser.add_argument("--pictures", type=int, default=512)
  parser.add_argument("--rows", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  common.initialize()
  model = model_lib.load(options.run)
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    data = options.data or shapes_geneval.export(sources.open_world(model.config), folder / "data")
    task = registry.task("geneval", data, prompts.template("orthus" if options.data else "bare"), samples=4, images=None)
    sampling = dataclasses.replace(model.config.sampling, max_new_tokens=execute.longest(task, model.config.sampling))
    items = task.items[: options.pictures]

    def engine(number: int) -> int:
      asked = (Request(i.prompt(), respond=task.respond, seed=i.seed(0), sampling=sampling) for i in items[:number])
      return sum(isinstance(event, Finished) for event in model.stream(asked, batch_size=options.rows))

    def benchmark(number: int) -> int:
      with tempfile.TemporaryDirectory(dir=folder) as out:
        return execute.run(
            model, task, Path(out), sampling=model.config.sampling, seed=0, protocol={}, batch_size=options.rows,
            limit=number,
        ).answered  # fmt: skip

    sides, seconds = {"the engine": engine, "a benchmark's run": benchmark}, {}
    for draw in sides.values():  # which compiles
      draw(2 * options.rows)
    for turn in range(options.rounds):
      for name, draw in list(sides.items())[:: -1 if turn % 2 else 1]:
        begin = time.perf_counter()
        assert draw(len(items)) == len(items)
        seconds.setdefault(name, []).append(time.perf_counter() - begin)
        print(f"{name}: {len(items) / seconds[name][-1]:.2f} pictures/s", flush=True)
  rounds = [a / b for a, b in zip(*(seconds[name] for name in sides))]
  print(f"of the engine's own rate, {options.rows} rows, {len(items)} pictures: {statistics.median(rounds):.3f} "
        f"({min(rounds):.3f} to {max(rounds):.3f}; aim 0.95)")  # fmt: skip


if __name__ == "__main__":
  main()
