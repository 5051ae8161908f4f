"""What a command prints, asked of the command itself as the site is built.

    ```{orthus} score mme --help
    ```
"""

import contextlib
import io
import os
import shlex

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from orthus_jax import cli


class Orthus(SphinxDirective):
  """Shows the standard output of `orthus ARGUMENTS`, which must end with status 0."""

  required_arguments = 1
  final_argument_whitespace = True

  def run(self) -> list[nodes.Node]:
    self.env.note_reread()  # the page changes with the code
    out = io.StringIO()
    os.environ["COLUMNS"] = "100"  # argparse's help is as wide as the terminal
    with contextlib.redirect_stdout(out):
      try:
        status = cli.main(shlex.split(self.arguments[0]))
      except SystemExit as e:  # argparse's --help; it would end the build with status 0
        status = e.code
    text = out.getvalue().rstrip()
    if status or not text:
      raise self.error(f"orthus {self.arguments[0]} ended with status {status}, and printed {len(text)} characters")
    return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict:
  app.add_directive("orthus", Orthus)
  return {"parallel_read_safe": True}
