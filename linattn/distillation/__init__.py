"""Distil students from their teacher.

settings.py holds every training setting and config.py adds the student. objectives.py has the loss
terms, lesson.py the losses of one step and training.py the loop. distill.py distils one student.
"""
