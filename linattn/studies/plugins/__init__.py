"""Train small plug-ins, and test whether they work where self-attention was replaced.

- `plugin.py` holds the interface; `control`, `lora`, `adapter` and `recolour` implement it, a file
  each.
- All are trained on the softmax teacher and never on a student. They are stored as diffusers' own
  loaders read them.
- `make.py` trains them, `study.py` measures them (`make study STUDY=plugins`), `report.py` writes
  their sections.
"""
