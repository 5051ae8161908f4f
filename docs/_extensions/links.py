"""Links as a code host follows them, made fit for the site.

- To a file outside docs/, `[configs/shapes.py](../configs/shapes.py)`: to where the code is hosted, or, without
  `outside_url`, to the site's own copy of it.
- To a page by its file's name, `[lora.md](lora.md)`: by its title.
"""

from pathlib import Path
import posixpath

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class OutsideLinks(SphinxTransform):
  """Downloads of files outside docs/, which MyST makes of such links, become links to the host."""

  default_priority = 5  # ahead of the collector that copies downloads

  def apply(self, **kwargs) -> None:
    url, docs = self.config.outside_url.rstrip("/"), Path(self.env.srcdir).resolve()
    if not url:
      return
    for link in list(self.document.findall(addnodes.download_reference)):
      file = (docs / self.env.docname).parent.joinpath(link["reftarget"]).resolve()
      if docs not in file.parents:
        path = file.relative_to(docs.parent).as_posix()
        link.replace_self(nodes.reference("", "", *link.children, refuri=f"{url}/{path}", internal=False))


def name_pages(app: Sphinx, document: nodes.document, docname: str) -> None:
  """Replaces a page's file name by its title where a link shows it."""
  for link in document.findall(nodes.reference):
    name = link.astext().removeprefix("docs/").removesuffix(".md")
    if link.get("internal") and link.astext().endswith(".md"):
      pages = (posixpath.normpath(posixpath.join(posixpath.dirname(docname), name)), name)
      title = next((app.env.titles[page] for page in pages if page in app.env.titles), None)
      if title is not None:
        link.children = [nodes.inline("", title.astext())]


def setup(app: Sphinx) -> dict:
  app.add_config_value("outside_url", "", "env")
  app.add_transform(OutsideLinks)
  app.connect("doctree-resolved", name_pages)
  return {"parallel_read_safe": True}
