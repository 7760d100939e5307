"""The passages of README.md and docs/ that are written from results, settings and code.

`readme.py` has the list of them; each is the text between two marks of a page.
"""
