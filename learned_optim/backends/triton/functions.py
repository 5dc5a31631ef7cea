"""What the kernels are made of: functions on tiles, in Triton."""

# Triton reads signatures itself: an annotation is `tl.constexpr` or nothing.
# ruff: noqa: ANN001, ANN201
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl
from triton.language.standard import _sum_combine

# Neighbours that a thread loads at once where addresses allow it. More would make Triton deal out
# the units of a coordinate over threads that then have to exchange them.
VECTOR = tl.constexpr(2)
LARGEST = tl.constexpr(3.4028234663852886e38)  # finite float32
# Exponents of the activations stop here: three such factors multiplied are still finite, and
# what is cut off an activation is below 1e-12.
STEEPEST = tl.constexpr(40.0)
MINUS_TWO_LOG2_E = tl.constexpr(-2.8853900817779268)


@triton.jit
def total(x, AXIS: tl.constexpr):
    """`tl.sum`, which is a kernel itself."""
    return tl.reduce(x, AXIS, _sum_combine)


@triton.jit
def address(table, tensor, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Entry `tensor` of a table of addresses, as a pointer to `KIND`."""
    value = tl.load(table + tensor).to(tl.pointer_type(KIND))
    if ALIGNED:
        # Of the pointer, as up to triton 3.3 a constexpr has no attributes of what it holds.
        BITS: tl.constexpr = value.dtype.element_ty.primitive_bitwidth
        value = tl.multiple_of(value, VECTOR * (BITS // 8))
    return value


@triton.jit
def place(owners, firsts, sizes, start, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """This program's tensor, that one's size, and the first of the coordinates to move."""
    block = tl.program_id(0) + start
    tensor = tl.load(owners + block)
    count = tl.load(sizes + tensor)
    if ALIGNED:
        count = tl.multiple_of(count, VECTOR)
    return tensor, count, (block - tl.load(firsts + tensor)) * BLOCK


@triton.jit
def power(x):
    """`2^x`, cut off where a few of them multiplied would overflow; NaN stays."""
    return tl.exp2(tl.minimum(x, STEEPEST, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def quotient(a, b):
    """`a / b` for b > 0, where a division would take a dozen instructions."""
    root = tl.rsqrt(b)
    return a * root * root


@triton.jit
def tanh(x):
    """Good to 5e-7, absolutely."""
    e = power(MINUS_TWO_LOG2_E * x)
    return quotient(1 - e, 1 + e)


@triton.jit
def clamp(x, bound):
    """To `[-bound, bound]`; NaN stays."""
    return tl.maximum(
        tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL),
        -bound,
        propagate_nan=tl.PropagateNan.ALL,
    )


@triton.jit
def column(weights, PADDED: tl.constexpr):
    """A number for each unit of each gate, `(1, PADDED)` in the order i, f, o, g."""
    unit = tl.arange(0, PADDED)
    return (
        tl.load(weights + unit)[None, :],
        tl.load(weights + PADDED + unit)[None, :],
        tl.load(weights + 2 * PADDED + unit)[None, :],
        tl.load(weights + 3 * PADDED + unit)[None, :],
    )


@triton.jit
def add_input(i, f, o, g, x, weights, PADDED: tl.constexpr):
    """The gates before their activations, plus one input's share; `x` is `(BLOCK,)` or a number."""
    wi, wf, wo, wg = column(weights, PADDED)
    return i + x * wi, f + x * wf, o + x * wo, g + x * wg


@triton.jit
def product(start, high, low, weights, PADDED: tl.constexpr):
    """`start + h @ W` on tensor cores, to some 22 bits; `h` and `W` as sums of two halves.

    One product of halves would do for a step, but not for a thousand: see DESIGN.md.
    """
    k = tl.arange(0, PADDED)
    tile = weights + k[:, None] * PADDED + k[None, :]
    w_high = tl.load(tile)
    found = tl.dot(high, w_high, start)
    found = tl.dot(low, w_high, found)
    return tl.dot(high, tl.load(tile + 4 * PADDED * PADDED), found)


@triton.jit
def add_products(i, f, o, g, h, weights, PADDED: tl.constexpr):
    """The gates plus the share of a whole vector of units, `h (BLOCK, PADDED)`."""
    high = h.to(tl.float16)
    low = (h - high.to(tl.float32)).to(tl.float16)
    GATE: tl.constexpr = PADDED * PADDED
    return (
        product(i, high, low, weights, PADDED),
        product(f, high, low, weights + GATE, PADDED),
        product(o, high, low, weights + 2 * GATE, PADDED),
        product(g, high, low, weights + 3 * GATE, PADDED),
    )


@triton.jit
def activate(i, f, o, g, c):
    """An LSTM's new h and c: seven powers and roots where there would be ten.

    Of the sums before their activations it takes the multiples that `pack` put into the weights:
    `-log2(e)` times those of i, f and o, and `-2 log2(e)` times that of g.
    """
    a, b = 1 + power(i), 1 + power(f)
    e = power(g)
    d = a * (1 + e)
    c = quotient(c * d + (1 - e) * b, b * d)
    e = power(MINUS_TWO_LOG2_E * c)
    return quotient(1 - e, (1 + e) * (1 + power(o))), c


@triton.jit
def is_finite(x):
    """Neither infinite nor NaN."""
    return tl.abs(x) <= LARGEST


@triton.jit
def factor(lr, TENSOR_LR: tl.constexpr):
    """`lr`, which is a number or lies on the device."""
    if TENSOR_LR:
        lr = tl.load(lr)
    return lr
