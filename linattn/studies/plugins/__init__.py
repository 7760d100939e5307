"""Small plug-ins for the small Stable Diffusion, trained here: do they work where self-attention was replaced?

- `plugin.py` is what all of them answer; `control`, `lora`, `adapter` and `recolour` are siblings, a file each.
- All are trained on the softmax teacher and never on a student. They are stored as diffusers' own loaders read them.
- `study.py` trains and measures them (`make study STUDY=plugins`), `report.py` tells the report.
"""
