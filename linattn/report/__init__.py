"""The report turns plain result files into calm pages that open offline.

- `read` finds files by the names in params.yaml and never lists a folder: a removed student leaves
  the report, and a missing or broken result is a failed row.
- With one teacher everything stands on the first page. With several teachers the first page has one
  table over all of them, and each teacher has a page of its own.
- A row that was not run on this machine is the committed run's. A row that was run is compared
  with the committed one (`agreement`).
- Sentences follow from the numbers (`findings`): which student is closest, which one a control
  beats, how much distillation helped. No sentence is written for a hoped-for result.
- Pages are self-contained: every picture is a data URI with an alt text, style is inline, without
  script or address.
- The same data gives the same bytes.

Result files lie in reports/local/results for this machine's run and in reports/results for the
published one. A *measure* is {"value", "low", "high", "n"}; low and high bound the 95 % interval,
or are absent. Keys that do not apply are absent or null.

`teacher-<role>.json` and `<student>.json`:
    student, teacher (the role), operator, options, control (bool), seeds [..], profile
    folder        the teacher's name
    captions      the prompts, one for each picture, where the teacher reads captions
    quality       {shape, colour, error, psnr, ssim, mse, cosine, kid_teacher, kid_world,
                   fid_teacher, eye_distance, eye_kid, eye_fid, cross_shape, cross_colour,
                   cross_eye_distance}: measures. shape and colour are shares in [0, 1]; error is
                   the relative squared error of the prediction, mean over the noise levels; eye_*
                   is in ImageNet features, eye_fid from 2,048 pictures on; cross_* is at twice the
                   side. With captions also {two_shapes, two_colours, relation}, over the pictures
                   of two things; shape, colour and confusion are then over the pictures of one
                   thing. What the judge marks is absent for a teacher of other pictures
    undistilled   the same names, for the student converted and not trained (absent for the teacher)
    by_noise      {noise [..], error [measure ..], undistilled [measure ..]}
    tally         of a student: {teacher [level][picture], seeds {seed: {error [level][picture],
                   marks {mark: "0110.."}}}}: both squares of each picture, of which error is the
                   quotient, in nine digits (a float32's), and which pictures are right. Absent in
                   older runs; nothing of it is shown, rows are compared by it
    confusion     counts: a row for each prompted shape, a column for each shape the judge saw
    cost          {macs, macs_counted, core_macs, density, added, trained}: one forward of one
                   picture; draw_macs of a whole draw, guidance included
    fewer         of the teacher: [{steps, quality {psnr, ssim, eye_distance}, cost {draw_macs}}],
                   against its own full draw from the same noise
    training      {steps, layerwise_steps, batch, trained, curve {step [..], loss [..], stage [..]}}
`<name>.run.json`, in runs/ beside results/:
    facts         project.facts()
    seconds       {distill, evaluate, draw}; memory (bytes)
    backend       {layer: the path its attention takes: why}
    error         the failure in one line, when the stage failed
`chance-<role>.json`:
    quality       {shape, colour ..} of guessing
`benchmark-<role>.run.json`:
    facts, baseline; rows of costs.time_operators; operators {row's name: operator}; steps, rows of
    amdahl.time_steps
`anatomy-<role>.json`:
    noise, layers, teacher {measure: [layer][noise]}, units {measure: words}; order and query of the
    maps; layer_names where the layers' grids differ; text, a sentence on how captions are read
`plan-<role>.json`:
    n, seed, noise, until, layerwise_steps; layers and layer_names as an anatomy has them;
    candidates {label: {operator, options}}; costs {label: [layer]}, shares of softmax's in all
    layers; stages {untrained, layerwise: {losses {label: [layer][range of the noise]}, plans
    [{budget, cost, error, loss, choice [layer][range], parts}], choices [{rule, candidate, budget,
    cost, error, layers}]}}. `plan-<role>.run.json` has facts and seconds

Pictures (project.pictures; of the committed run the first few of each row, as the PNG sheets of
sheet.py in reports/pictures): safetensors with `pictures` (N, 3, side, side) uint8 or in [0, 1],
`labels`, and for a student also `undistilled`; the same row is the same noise and class or caption
in every file of one teacher. In pictures("anatomy-<role>"): `picture` (3, side, side) and
`map.<name>` (height, width) for the teacher and every operator.
"""

from linattn.report.circumstances import all_sizes, counts, machine, sizes
from linattn.report.columns import COLUMNS, OVERVIEW, Column
from linattn.report.data import Data, Report
from linattn.report.notebook import executed
from linattn.report.pages import index_html, student_html, teacher_html, write
from linattn.report.pictures import column_names
from linattn.report.reading import read
from linattn.report.release import committed
from linattn.report.sentences import findings
from linattn.report.tables import Cell, Group, Row, Table, table

__all__ = [
    "COLUMNS",
    "OVERVIEW",
    "Cell",
    "Column",
    "Data",
    "Group",
    "Report",
    "Row",
    "Table",
    "all_sizes",
    "column_names",
    "committed",
    "counts",
    "executed",
    "findings",
    "index_html",
    "machine",
    "read",
    "sizes",
    "student_html",
    "table",
    "teacher_html",
    "write",
]
