"""Distil students from their teacher: what one is asked for, what a step shows, the loop, one student, all seeds.

config.py says it, objectives.py are the loss terms, lesson.py a step, training.py the loop, distill.py one student and
students.py those of params.yaml.
"""
