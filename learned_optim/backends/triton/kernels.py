"""The kernels, in Triton. They see pointers and numbers, and no rule.

Tensors come as tables of addresses, so that one launch serves all of them: a program moves `BLOCK`
coordinates of the tensor that `owners` names. Coordinates run along the first axis of a tile and
hidden units along the second, padded to `PADDED` with weights that are zero.

Written so that Triton's interpreter and its compiler agree: no bfloat16 products, no constant below
float32's smallest normal number, which would turn everything it meets into float64, and no
helpers of `triton.language` that are kernels themselves, which are one or the other for good.
"""

# Triton reads signatures itself: an annotation is `tl.constexpr` or nothing.
# ruff: noqa: ANN001, ANN201
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from learned_optim.backends.triton.functions import (
    activate,
    add_input,
    add_products,
    address,
    clamp,
    column,
    factor,
    is_finite,
    place,
    tanh,
    total,
)


@triton.jit(do_not_specialize=["start"])
def survey(
    grads, tensors, stride, owners, firsts, sizes, sign, partials, start,
    GRAD: tl.constexpr, PARAM: tl.constexpr, MOMENTS: tl.constexpr,
    SUMS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each block: is a gradient not finite, and (`SUMS`) the sums that `default` takes."""
    tensor, count, first = place(owners, firsts, sizes, start, ALIGNED, BLOCK)
    grad_at = address(grads, tensor, GRAD, ALIGNED)
    broken = tl.full((TILE,), 0.0, tl.float32)
    if SUMS:
        param_at = address(tensors, tensor, PARAM, ALIGNED)
        moments_at = address(tensors + stride, tensor, MOMENTS, ALIGNED)
        plain_at = address(tensors + 2 * stride, tensor, GRAD, ALIGNED)
        g2, v1, m2 = broken, broken, broken
        gm, p2, go, o2 = broken, broken, broken, broken
    for piece in tl.static_range(BLOCK // TILE):
        at = first + piece * TILE + tl.arange(0, TILE)
        inside = at < count
        g = sign * tl.load(grad_at + at, mask=inside, other=0.0).to(tl.float32)
        broken = tl.where(is_finite(g), broken, 1.0)
        if SUMS:
            g = clamp(g, 1e14)
            p = tl.load(param_at + at, mask=inside, other=0.0).to(tl.float32)
            p = tl.where(is_finite(p), clamp(p, 1e14), 0.0)
            m = tl.load(moments_at + at, mask=inside, other=0.0)
            v1 += tl.load(moments_at + count + at, mask=inside, other=0.0)
            g2, m2, gm, p2 = g2 + g * g, m2 + m * m, gm + g * m, p2 + p * p
            o = clamp(tl.load(moments_at + 2 * count + at, mask=inside, other=0.0), 1e14)
            g = clamp(sign * tl.load(plain_at + at, mask=inside, other=0.0).to(tl.float32), 1e14)
            go, o2 = go + g * o, o2 + o * o
    out = partials + (tl.program_id(0) + start) * COLUMNS
    tl.store(out, total(broken, 0))
    if SUMS:
        tl.store(out + 1, total(g2, 0))
        tl.store(out + 2, total(v1, 0))
        tl.store(out + 3, total(m2, 0))
        tl.store(out + 4, total(gm, 0))
        tl.store(out + 5, total(p2, 0))
        tl.store(out + 6, total(go, 0))
        tl.store(out + 7, total(o2, 0))


@triton.jit
def add_up(partials, firsts, blocks, rows, COLUMNS: tl.constexpr, PADDED: tl.constexpr,
           TILE: tl.constexpr):  # fmt: skip
    """Each tensor's sum over its blocks, in one order whatever else runs: `(T, COLUMNS)`.

    Of the first column the maximum, which says whether any gradient is broken.
    """
    tensor = tl.program_id(0)
    first, count = tl.load(firsts + tensor), tl.load(blocks + tensor)
    columns = tl.arange(0, PADDED)[None, :]
    found = tl.full((TILE, PADDED), 0.0, tl.float32)
    for start in range(0, count, TILE):
        row = start + tl.arange(0, TILE)[:, None]
        there = (row < count) & (columns < COLUMNS)
        found += tl.load(partials + (first + row) * COLUMNS + columns, mask=there, other=0.0)
    sums = total(found, 0)[None, :]
    sums = tl.where((columns == 0) & (sums > 0), 1.0, sums)
    tl.store(rows + tensor * COLUMNS + columns, sums, mask=columns < COLUMNS)


@triton.jit(do_not_specialize=["start"])
def l2l_update(
    grads, tensors, stride, owners, firsts, sizes, finite, lr, decay, sign,
    columns, matrices, scale, per_p, exp_p, start,
    GRAD: tl.constexpr, PARAM: tl.constexpr, CELL: tl.constexpr,
    LAYERS: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr, LOG_SIGN: tl.constexpr,
    PRODUCTS: tl.constexpr, MASKED: tl.constexpr, TENSOR_LR: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The rule `l2l`: features, one or two LSTM layers, head, the parameter's move."""
    tensor, count, first = place(owners, firsts, sizes, start, ALIGNED, BLOCK)
    at = first + tl.arange(0, BLOCK)
    inside = at < count
    if MASKED:
        inside = at < count * tl.load(finite + tensor).to(tl.int64)
    grad_at = address(grads, tensor, GRAD, ALIGNED)
    grad = sign * tl.load(grad_at + at, mask=inside, other=0.0).to(tl.float32)
    cell_at = address(tensors + stride, tensor, CELL, ALIGNED)
    unit = tl.arange(0, PADDED)
    held = inside[:, None] & (unit < HIDDEN)[None, :]
    tile = at[:, None] + unit[None, :] * count
    COLUMN: tl.constexpr = 4 * PADDED
    ROWS = HIDDEN * count

    i, f, o, g = column(columns, PADDED)
    columns += COLUMN
    if LOG_SIGN:
        log_ratio = tl.log(tl.maximum(tl.abs(grad), 1e-37)) * per_p
        small = log_ratio < -1.0
        x = tl.maximum(log_ratio, -1.0)
        i, f, o, g = add_input(i, f, o, g, x[:, None], columns, PADDED)
        columns += COLUMN
        sign_of = tl.where(grad > 0, 1.0, tl.where(grad < 0, -1.0, 0.0))
        grad = tl.where(small, grad * exp_p, sign_of)
    i, f, o, g = add_input(i, f, o, g, grad[:, None], columns, PADDED)
    columns += COLUMN
    if PRODUCTS:
        h = tl.load(cell_at + tile, mask=held, other=0.0).to(tl.float32)
        i, f, o, g = add_products(i, f, o, g, h, matrices, PADDED)
    else:
        for k in tl.static_range(HIDDEN):
            h = tl.load(cell_at + k * count + at, mask=inside, other=0.0).to(tl.float32)
            i, f, o, g = add_input(i, f, o, g, h[:, None], columns, PADDED)
            columns += COLUMN
    c0 = tl.load(cell_at + ROWS + tile, mask=held, other=0.0).to(tl.float32)
    h0, c0 = activate(i, f, o, g, c0)
    last = h0
    if LAYERS == 2:
        MATRIX: tl.constexpr = 8 * PADDED * PADDED
        i, f, o, g = column(columns, PADDED)
        columns += COLUMN
        zero = tl.full((BLOCK, PADDED), 0.0, tl.float32)
        i, f, o, g = zero + i, zero + f, zero + o, zero + g
        i, f, o, g = add_products(i, f, o, g, h0, matrices + MATRIX, PADDED)
        h = tl.load(cell_at + 2 * ROWS + tile, mask=held, other=0.0).to(tl.float32)
        i, f, o, g = add_products(i, f, o, g, h, matrices + 2 * MATRIX, PADDED)
        c1 = tl.load(cell_at + 3 * ROWS + tile, mask=held, other=0.0).to(tl.float32)
        last, c1 = activate(i, f, o, g, c1)

    head = tl.load(columns + unit)[None, :]
    step = scale * (total(last * head, 1) + tl.load(columns + PADDED))
    good = inside & is_finite(step)
    lr = factor(lr, TENSOR_LR)
    param_at = address(tensors, tensor, PARAM, ALIGNED) + at
    param = tl.load(param_at, mask=good, other=0.0).to(tl.float32)
    param = param * (1 - lr * decay) + lr * step
    held = held & good[:, None]
    # Other threads of the program may still have to read what these overwrite.
    tl.debug_barrier()
    tl.store(param_at, param.to(PARAM), mask=good)
    tl.store(cell_at + tile, h0.to(CELL), mask=held)
    tl.store(cell_at + ROWS + tile, c0.to(CELL), mask=held)
    if LAYERS == 2:
        tl.store(cell_at + 2 * ROWS + tile, last.to(CELL), mask=held)
        tl.store(cell_at + 3 * ROWS + tile, c1.to(CELL), mask=held)


@triton.jit
def signal(signals, row, stride, tensor):
    """What the controller says to the coordinates of a tensor."""
    return tl.load(signals + row * stride + tensor)


@triton.jit
def bend(h, head, unit, ROW: tl.constexpr, PADDED: tl.constexpr):
    """One of the three outputs of `default`'s LSTM, between -1 and 1."""
    weights = tl.load(head + ROW * PADDED + unit)[None, :]
    return tanh(total(h * weights, 1) + tl.load(head + 3 * PADDED + ROW))


@triton.jit(do_not_specialize=["start"])
def default_update(
    grads, tensors, stride, owners, firsts, sizes, finite, lr, decay, sign,
    columns, signals, steps, turn, add, free, bound, dead, start,
    GRAD: tl.constexpr, PARAM: tl.constexpr, MOMENTS: tl.constexpr, CELL: tl.constexpr,
    HIDDEN: tl.constexpr, PADDED: tl.constexpr, UNFINISHED: tl.constexpr,
    MASKED: tl.constexpr, TENSOR_LR: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The rule `default`: moments, the coordinates' LSTM, the bent direction of Adam, deferral.

    `UNFINISHED`: the step goes to `steps`, for the matrix stage, and moves no parameter yet.
    """
    tensor, count, first = place(owners, firsts, sizes, start, ALIGNED, BLOCK)
    at = first + tl.arange(0, BLOCK)
    inside = at < count
    if MASKED:
        inside = at < count * tl.load(finite + tensor).to(tl.int64)
    grad_at = address(grads, tensor, GRAD, ALIGNED)
    param_at = address(tensors, tensor, PARAM, ALIGNED) + at
    m_at = address(tensors + stride, tensor, MOMENTS, ALIGNED) + at
    v_at = m_at + count
    grad = clamp(sign * tl.load(grad_at + at, mask=inside, other=0.0).to(tl.float32), 1e14)
    param = tl.load(param_at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(m_at, mask=inside, other=0.0)
    v = tl.load(v_at, mask=inside, other=0.0)
    clip = signal(signals, 11, stride, tensor)
    m += (1 - signal(signals, 0, stride, tensor)) * (clip * grad - m)
    v += (1 - signal(signals, 1, stride, tensor)) * (grad * grad - v)
    relative_v = v * signal(signals, 4, stride, tensor) + dead
    per_root = tl.rsqrt(relative_v)
    fresh = clamp(grad * signal(signals, 2, stride, tensor) * per_root, bound)
    direction = clamp(m * signal(signals, 3, stride, tensor) * per_root, bound)
    if HIDDEN:
        unit = tl.arange(0, PADDED)
        held = inside[:, None] & (unit < HIDDEN)[None, :]
        tile = at[:, None] + unit[None, :] * count
        cell_at = address(tensors + 2 * stride, tensor, CELL, ALIGNED)
        COLUMN: tl.constexpr = 4 * PADDED
        theta = clamp(param * signal(signals, 5, stride, tensor), bound)
        side = tl.where(direction > 0, 1.0, 0.0) - tl.where(direction < 0, 1.0, 0.0)
        fresh, direction, theta = fresh * side, direction * side, theta * side
        i, f, o, g = column(columns, PADDED)
        say0, say1 = signal(signals, 9, stride, tensor), signal(signals, 10, stride, tensor)
        i, f, o, g = add_input(i, f, o, g, say0, columns + 5 * COLUMN, PADDED)
        i, f, o, g = add_input(i, f, o, g, say1, columns + 6 * COLUMN, PADDED)
        i, f, o, g = add_input(i, f, o, g, fresh[:, None], columns + COLUMN, PADDED)
        i, f, o, g = add_input(i, f, o, g, direction[:, None], columns + 2 * COLUMN, PADDED)
        log_v = tl.log(relative_v) * 0.125
        i, f, o, g = add_input(i, f, o, g, log_v[:, None], columns + 3 * COLUMN, PADDED)
        i, f, o, g = add_input(i, f, o, g, theta[:, None], columns + 4 * COLUMN, PADDED)
        for k in tl.static_range(HIDDEN):
            h = tl.load(cell_at + k * count + at, mask=inside, other=0.0).to(tl.float32)
            i, f, o, g = add_input(i, f, o, g, h[:, None], columns + (7 + k) * COLUMN, PADDED)
        c = tl.load(cell_at + HIDDEN * count + tile, mask=held, other=0.0).to(tl.float32)
        h, c = activate(i, f, o, g, c)
        head = columns + (7 + HIDDEN) * COLUMN
        direction = direction * (1 + turn * bend(h, head, unit, 0, PADDED))
        direction += add * bend(h, head, unit, 1, PADDED) * fresh
        direction += free * bend(h, head, unit, 2, PADDED)
        direction *= side
    step = -signal(signals, 6, stride, tensor) * direction
    good = inside & is_finite(step)
    # Other threads of the program may still have to read what these overwrite.
    tl.debug_barrier()
    if HIDDEN:
        held = held & good[:, None]
        tl.store(cell_at + tile, h.to(CELL), mask=held)
        tl.store(cell_at + HIDDEN * count + tile, c.to(CELL), mask=held)
    tl.store(m_at, m, mask=good)
    tl.store(v_at, v, mask=good)
    if UNFINISHED:
        tl.store(steps + at, step, mask=inside)
    else:
        # Part of it later, with what is owed of the steps before.
        owed_at = m_at + 2 * count
        owed = tl.load(owed_at, mask=good, other=0.0) + step
        share, due = signal(signals, 12, stride, tensor), signal(signals, 13, stride, tensor)
        step += share * (due * owed - step)
        lr = factor(lr, TENSOR_LR)
        tl.store(param_at, (param * (1 - lr * decay) + lr * step).to(PARAM), mask=good)
        tl.store(owed_at, (1 - due) * owed, mask=good)
