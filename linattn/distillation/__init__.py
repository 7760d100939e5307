"""Distil students from their teacher.

config.py holds the settings, objectives.py the loss terms, lesson.py the losses of one step and
training.py the loop. distill.py distils one student, and students.py distils those of params.yaml
for all their seeds.
"""
