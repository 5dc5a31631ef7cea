"""The documentation: Sphinx, Markdown by MyST, formulas as MathML, nothing fetched by a reader.

`make docs` builds it into build/docs with warnings as errors and checks every link and picture.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import pages
from latex2mathml.converter import convert

import learned_optim

project = "learned_optim"
author = "the authors of learned_optim"
release = version = learned_optim.__version__
html_title = f"{project} {release}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#b3263a", "color-brand-content": "#9c1f31"},
    "dark_css_variables": {"color-brand-primary": "#f08a97", "color-brand-content": "#f08a97"},
}
pygments_style, pygments_dark_style = "friendly", "github-dark"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
# Parts of other pages.
exclude_patterns = [f"made/{name}.md" for name in pages.PARTS]
html_math_renderer = "mathml"

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]


def _inline(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas that browsers draw themselves, and the pages made from the result files."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("builder-inited", lambda _: pages.write())
