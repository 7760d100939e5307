"""The kernels as a package of their own: without Triton, without linattn, and beside another that is called kernels."""

import os
import subprocess
import sys

from linattn import project


def python(code, *paths):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_it_works_without_triton_and_without_linattn():
    code = """
import sys
sys.modules["triton"] = None  # as where it is not installed
sys.modules["linattn"] = None
import torch, linattn_kernels as kernels
q = torch.randn(2, 12, 3, 8, requires_grad=True)
out = kernels.linear_attention(q, q, q)
out = out + kernels.window_attention(q, q, q, height=3, width=4, radius=2)
out = out + kernels.mediator_attention(q, q, q, q[:, ::4])
out.sum().backward()
assert q.grad.isfinite().all()
try:
    kernels.linear_attention(q, q, q, backend="triton")
except RuntimeError as error:
    assert "Triton is not installed" in str(error), error
    print(kernels.backend(q).path)
"""
    assert python(code, project.ROOT / "kernels") == ["torch"]


def test_another_package_called_kernels_is_still_found_from_the_root(tmp_path):
    """Hugging Face's is; this folder is no package, so that one that is wins wherever it stands in the path."""
    theirs = tmp_path / "kernels"
    theirs.mkdir()
    (theirs / "__init__.py").write_text("def get_kernel(name):\n    return name\n")
    code = "from kernels import get_kernel; import linattn_kernels; print(get_kernel('theirs'))"
    assert python(code, project.ROOT / "kernels", tmp_path) == ["theirs"]
