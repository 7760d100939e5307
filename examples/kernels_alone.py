"""The three kernels on plain tensors: against their definitions, with gradients, and timed.

    python examples/kernels_alone.py

linattn_kernels needs torch alone. Tensors are (batch, tokens, heads, head_dim), text tokens first.
On a GPU the same calls run in Triton, elsewhere in PyTorch; the first column says which, and why.
Relative errors are those of float32 against the definition in float64. It prints

    linear: torch (the tensors are on the CPU), output errs by 1e-07, gradients by 1e-06
    window: ...
    mediator: ...
    states of two halves, merged: output differs by 8e-08
    linear: softmax takes 32.8 times its time at 4112 tokens
    ... the same for window and mediator; these times are a machine's own
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer

import linattn_kernels
from linattn_kernels import linear_attention, reference

HEADS, HEAD_DIM, TEXT, RADIUS, MEDIATORS = 4, 32, 16, 4, 64
COMPARED, TIMED = 16, 64  # tokens a side of the picture; definitions are quadratic
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main():
    torch.manual_seed(0)

    q, k, v = tensors(COMPARED)
    for name in ("linear", "window", "mediator"):
        fast = output_and_gradients(linattn_kernels, name, COMPARED, q, k, v)
        exact = output_and_gradients(reference, name, COMPARED, q.double(), k.double(), v.double())
        errors = [error(ours, theirs) for ours, theirs in zip(fast, exact, strict=True)]
        path, reason = linattn_kernels.backend(q, name)
        print(f"{name}: {path} ({reason}), ", end="")
        print(f"output errs by {errors[0]:.0e}, gradients by {max(errors[1:]):.0e}")

    # Linear attention keeps one state of all keys, so parts of a sequence can be summed apart.
    middle = k.shape[1] // 2
    _, first = linear_attention(q[:, :0], k[:, :middle], v[:, :middle], return_state=True)
    merged = linear_attention(q, k[:, middle:], v[:, middle:], state=first)
    difference = error(merged, linear_attention(q, k, v))
    print(f"states of two halves, merged: output differs by {difference:.0e}")

    q, k, v = tensors(TIMED)
    heads_first = [tensor.transpose(1, 2).contiguous() for tensor in (q, k, v)]
    softmax = seconds(lambda: scaled_dot_product_attention(*heads_first))
    for name in ("linear", "window", "mediator"):
        ratio = softmax / seconds(lambda name=name: attend(linattn_kernels, name, TIMED, q, k, v))
        print(f"{name}: softmax takes {ratio:.1f} times its time at {q.shape[1]} tokens")


def attend(module, name, side, q, k, v):
    """Call a kernel of linattn_kernels, or its definition in linattn_kernels.reference."""
    if name == "linear":
        return module.linear_attention(q, k, v)
    if name == "mediator":  # mediators are queries taken at even steps here
        return module.mediator_attention(q, k, v, q[:, :: q.shape[1] // MEDIATORS])
    return module.window_attention(q, k, v, height=side, width=side, radius=RADIUS, text=TEXT)


def output_and_gradients(module, name, side, *qkv):
    qkv = [tensor.detach().requires_grad_() for tensor in qkv]
    out = attend(module, name, side, *qkv)
    return out, *torch.autograd.grad(out.square().sum(), qkv)


def tensors(side):
    return torch.randn(3, 1, TEXT + side * side, HEADS, HEAD_DIM, device=DEVICE)


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def seconds(function):
    timer = Timer("function()", globals={"function": function})  # one thread, and waits for a GPU
    return timer.blocked_autorange(min_run_time=0.3).median


if __name__ == "__main__":
    main()
