"""The documentation site: `sphinx-build -W docs build/site` makes it, and index.md says what is where on it."""

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "orthus_jax"
html_title = "orthus_jax"
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton",
    "commands", "config_fields", "links",
]  # fmt: skip
exclude_patterns = ["_*"]

# Where links lead that leave docs/, as to a config: "https://HOST/OWNER/orthus_jax/blob/main", say. Without it the site
# holds the files themselves.
outside_url = ""

myst_heading_anchors = 4
myst_links_external_new_tab = False
smartquotes_action = "D"  # dashes: quotes are mostly code's
highlight_language = "none"  # of blocks that don't say theirs
toc_object_entries = False
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types of other libraries, whose documentation isn't fetched
suppress_warnings = ["misc.highlighting_failure"]  # blocks leave things out by an ellipsis

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "literal"  # of single backticks in docstrings
maximum_signature_line_length = 80

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navigation_with_keys": False,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}  # light or dark, as the reader's machine has it
html_sidebars = dict.fromkeys(("index", "tutorial", "coming_from", "contributing", "search"), [])
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
copybutton_selector = "div.highlight-bash pre, div.highlight-python pre"


def _without_factories(app, what, name, value, options, signature, returns):
  """A dataclass's signature as Python that can be read: its defaults of lists and mappings are no values."""
  return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app):
  """Called by Sphinx."""
  app.connect("autodoc-process-signature", _without_factories)
