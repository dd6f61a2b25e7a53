"""How the documentation is built: ``nox -s docs``."""

import streamvae

project = "streamvae"
author = "the streamvae authors"
project_copyright = author
version = release = streamvae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
html_theme = "alabaster"
html_theme_options = {"description": "Latents in, exact frames out", "page_width": "1000px"}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
