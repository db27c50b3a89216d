"""Sphinx's settings. `python docs/build.py` stages the pages and calls Sphinx; nothing is executed, nothing is fetched."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

# jsonschema would compile a grammar for three seconds, of a format that no notebook has
sys.modules.setdefault("rfc3987_syntax", None)

import minirl  # noqa: E402

project = "minirl"
author = "the authors of minirl"
copyright = "the authors of minirl. Code MIT, text CC BY 4.0"
version = release = minirl.__version__

extensions = ["myst_nb", "sphinx.ext.mathjax", "rendering"]
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"  # what is stored is what is shown
nb_render_markdown_format = "myst"  # tables of symbols hold formulas
nb_merge_streams = True
suppress_warnings = ["ref.python", "mystnb.unknown_mime_type"]

root_doc = "index"
exclude_patterns = []
language = "en"
python_maximum_signature_line_length = 60
toc_object_entries_show_parents = "hide"
add_module_names = False
smartquotes = False
highlight_language = "none"

html_theme = "furo"
html_title = "minirl"
templates_path = [str(DOCS / "_templates")]
html_static_path = [str(DOCS / "_static")]
html_css_files = ["minirl.css"]
html_js_files = ["minirl.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_permalinks_icon = "#"
mathjax_path = "mathjax/tex-svg-full.js"  # copied there by build.py
mathjax_options = {"defer": "defer"}
mathjax3_config = {
    "options": {"enableMenu": False},
    "svg": {"fontCache": "global"},
}

FONTS = {
    "font-stack": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif",
    "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace",
}


def link_colours(colour: str) -> dict[str, str]:
    names = (
        "brand-primary",
        "brand-content",
        "brand-visited",
        "link",
        "link--hover",
        "link--visited",
        "link--visited--hover",
    )
    return {f"color-{name}": colour for name in names}


html_theme_options = {
    "footer_icons": [],
    "light_css_variables": FONTS | link_colours("#00598c") | {"color-foreground-muted": "#52565f"},
    "dark_css_variables": link_colours("#7cc4f5") | {"color-foreground-muted": "#a9adb8"},
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
