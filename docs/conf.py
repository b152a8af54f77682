"""Sphinx's settings for the report as a static site, which `make report` builds in `build/site`."""

project = "Training batch norm and only batch norm"
html_title = project
extensions = ["myst_nb"]
root_doc = "summary"
exclude_patterns = ["**.ipynb_checkpoints"]

nb_execution_mode = "off"                                # the notebooks come with their outputs
nb_render_image_options = {"class": "figure"}
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type"]       # links to files that are no pages

html_theme = "furo"                                      # light and dark, without fonts or scripts from elsewhere
html_static_path = ["static"]
html_css_files = ["report.css"]
html_js_files = ["enlarge.js"]
html_copy_source = html_show_sourcelink = False
html_show_copyright = html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "github-dark"
html_show_search_summary = False                        # it would read pages by script, which files may not
