"""A page of a folder: one HTML file that needs nothing else, made from the folder's files alone."""

from iit.report.html.page import save_page, write_page

__all__ = ["save_page", "write_page"]
