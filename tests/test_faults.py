"""Every quick fault holds; `make faults` runs the slow ones too."""

import pytest
from faults.suite import QUICK


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_a_fault_holds(fault, tmp_path):
    seen = fault.seen(tmp_path)
    assert fault.holds(seen), f"{fault.name}: expected {fault.expected}, seen {seen}"
