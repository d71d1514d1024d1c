"""A page of a folder: one HTML file that needs nothing else, made from the folder's files alone."""
