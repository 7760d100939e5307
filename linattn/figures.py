"""The figures under the name that notebooks import: `from linattn import figures`."""

from linattn.report.figures import *  # noqa: F403 (whatever a notebook draws with)
from linattn.report.numbers import *  # noqa: F403
from linattn.report.picture import *  # noqa: F403
