"""Settings of Sphinx for the pages of the suite; tools/site/build.py runs it."""

from docutils import nodes
from latex2mathml.converter import convert

project = "softAR Lab"
extensions = ["myst_nb"]
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_js_files = ["rivers.js"]
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_show_search_summary = False  # it fetches pages, which a browser refuses on a disk
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator, node: nodes.math_block) -> None:
    translator.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app) -> dict:
    """Formulas are MathML, which browsers draw without a script or a font of ours."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
