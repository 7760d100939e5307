"""What Sphinx learns for this site: docstrings, notebooks, and pages without scripts."""
