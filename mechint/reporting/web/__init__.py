"""Pages for the browser: one file each, which opens from disk and loads nothing."""

from mechint.reporting.web.page import PAGE, Columns, page
from mechint.reporting.web.run_page import run_page, write_page

__all__ = ["PAGE", "Columns", "page", "run_page", "write_page"]
