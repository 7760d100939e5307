"""Make a row of the leaderboard from an operator's file that lies anywhere: `make row`.

    make row OPERATOR=bands.py TEACHER=class OPTIONS='rows=2'

- Everything that was typed is checked first, then the operator (`linattn.testing`). A wrong one is
  refused with what differs, and nothing is written.
- A right one is distilled and evaluated by the code that makes the students of params.yaml, with
  the same samples, settings and seeds. What lacks for that is made first by the pipeline's stages.
- The row lies in reports/local/rows/<role>/<name>/, and appears there when it is whole. Its draft
  lies in scratch, where an interrupted run goes on.
- The same file with the same options and settings is not computed again; an edited one is.
"""
