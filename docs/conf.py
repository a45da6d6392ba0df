"""The site: Sphinx, MyST-NB, furo. ``make docs`` builds it, strictly and without a network but for
the first fetch of MathJax.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STATIC = ROOT / "build" / "docs" / "static"  # what is fetched or made at build time
HANDOUT = ROOT / "build" / "docs" / "handout.pdf"
SLIDES = ROOT / "build" / "docs" / "slides"
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

from sphinx.errors import ConfigError  # noqa: E402

import fwl_ref  # noqa: E402
from tools import handout, lectures, npm  # noqa: E402

try:
    npm.ensure(npm.MATHJAX, STATIC / "mathjax")
    npm.ensure(npm.REVEAL, SLIDES / "packages" / "reveal")
    npm.ensure(npm.MATHJAX_ALONE, SLIDES / "packages" / "mathjax")
    handout.build(HANDOUT)
    lectures.build(SLIDES)
except (RuntimeError, ValueError) as error:  # they say what to do; a traceback would hide it
    raise ConfigError(str(error)) from error

project = "fwl_ref"
author = "the fwl_ref authors"
copyright = author
release = version = fwl_ref.__version__

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "links", "api", "ways"]
exclude_patterns = ["conf.py", "_ext/**", "handout/**", "lectures/slides/**"]
nitpicky = True

# The notebooks are shown as they are committed, with their outputs. Sphinx wants its sources in one
# folder, so they are copied into it.
nb_execution_mode = "off"
NOTEBOOKS = HERE / "notebooks"
shutil.rmtree(NOTEBOOKS, ignore_errors=True)
NOTEBOOKS.mkdir()
FILES = ROOT / "build" / "docs" / "files"  # copied to the top of the site: the notebooks to download
shutil.rmtree(FILES, ignore_errors=True)
(FILES / "notebooks").mkdir(parents=True)
for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
    shutil.copy2(notebook, NOTEBOOKS)
    shutil.copy2(notebook, FILES / "notebooks")

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}, "chtml": {"scale": 0.9}}

html_theme = "furo"
html_title = f"fwl_ref {release}"
html_static_path = ["_static", str(STATIC)]
html_extra_path = [str(HANDOUT), str(SLIDES / "site"), str(FILES)]
html_css_files = ["site.css"]
html_js_files = ["fit.js"]
html_search_scorer = str(HERE / "_static" / "scorer.js")
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
highlight_language = "none"  # a block without a language is a picture or a table
pygments_style, pygments_dark_style = "friendly", "monokai"
