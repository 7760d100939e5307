"""Studies beside the pipeline, run by `make study`: plug-ins with replaced attention, and sizes
nobody trained at.
"""
