"""Passes of compression, one a file; `compress.recipes` has the table of all of them."""
