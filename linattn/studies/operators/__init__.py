"""Compare every operator at the protocol's budget: `make study STUDY=operators`.

- `settings.py` reads the students, `student.py` makes one of them, a stage each.
- `rows.py` puts their rows beside those of params.yaml's students, `report.py` shows them.
- A student whose numbers stop being finite is a row that says so, and the others go on.
"""
