"""Links from a page to a file outside docs/: to where the code is hosted, or, without `outside_url`, to the site's own copy.

A page says `[configs/shapes.py](../configs/shapes.py)`, which a code host follows as it is.
"""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class OutsideLinks(SphinxTransform):
  """Downloads of files outside docs/, which MyST makes of such links, become links to the host."""

  default_priority = 5  # ahead of the collector that copies downloads

  def apply(self, **kwargs) -> None:
    url, docs = self.config.outside_url.rstrip("/"), Path(self.env.srcdir)
    if not url:
      return
    for link in list(self.document.findall(addnodes.download_reference)):
      file = (docs / self.env.docname).parent / link["reftarget"]
      file = file.resolve()
      if docs.resolve() not in file.parents:
        path = file.relative_to(docs.resolve().parent).as_posix()
        link.replace_self(nodes.reference("", "", *link.children, refuri=f"{url}/{path}", internal=False))


def setup(app: Sphinx) -> dict:
  app.add_config_value("outside_url", "", "env")
  app.add_transform(OutsideLinks)
  return {"parallel_read_safe": True}
