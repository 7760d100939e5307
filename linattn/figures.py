"""The name under which notebooks draw: `from linattn import figures`, `from linattn.figures import
strip`.
"""

from linattn.report.figures import *  # noqa: F403 (whatever a notebook draws with)
from linattn.report.numbers import *  # noqa: F403
from linattn.report.picture import *  # noqa: F403
