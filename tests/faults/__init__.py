"""Faults that are injected into tiny runs: what is expected of each, and what is seen.

`make faults` prints a line for each; the quick ones are in `make test` (tests/test_faults.py).
"""
