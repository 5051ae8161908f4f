"""What each stage of the small recipe gained, as a page: the end of launch/recipe_shapes.sh.

    python benchmarks/recipe_page.py runs/recipe       # writes index.html and recipe.json there
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

from orthus_jax.commands import common
from orthus_jax.errors import BAD_REQUEST, BadRequest, print_error


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("recipe", type=Path, help="the directory that launch/recipe_shapes.sh made")
  folder = parser.parse_args().recipe
  common.initialize()
  from orthus_jax.evaluation import recipe

  try:
    record = recipe.write(folder)
  except BadRequest as e:
    print_error(e)
    return BAD_REQUEST
  for name, scores in record["through_head"].items():
    figures = ", ".join(f"{score.removeprefix('psnr_')} {value:.2f} dB" for score, value in scores.items())
    print(f"{name}: {figures}")
  print(f"written: {folder / 'index.html'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
