"""The Triton kernel. Triton is imported here, so this module is imported only when the kernel is used."""

import triton
import triton.language as tl


@triton.jit
def _pair(first, second):
    """Returns two normal numbers from two random words, by the Box-Muller transform; 31 bits of each word make a uniform number."""
    first, second = first.to(tl.int32, bitcast=True), second.to(tl.int32, bitcast=True)
    near = tl.where(first < 0, -first - 1, first).to(tl.float32) * 4.6566127342e-10
    angle = tl.where(second < 0, -second - 1, second).to(tl.float32) * 4.6566127342e-10 * 6.283185307179586
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(near, 1.0e-7)))
    # The angle is in [0, 2 pi], so the reduction of libdevice, made for any number, would cost more than all the rest. Less the nearest
    # quarter turn in three parts, of which the first two lose nothing, it is in [-pi/4, pi/4], with the polynomials of Cephes there.
    quarter = (angle * 0.6366197723675814 + 0.5).to(tl.int32)
    turns = quarter.to(tl.float32)
    r = angle - turns * 1.5703125 - turns * 4.837512969970703e-4 - turns * 7.549789948768648e-8
    z = r * r
    sine = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cosine = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    odd = (quarter & 1) == 1
    sine, cosine = tl.where(odd, cosine, sine), tl.where(odd, sine, cosine)
    sine = tl.where((quarter & 2) == 2, -sine, sine)
    cosine = tl.where(((quarter + 1) & 2) == 2, -cosine, cosine)
    return radius * cosine, radius * sine


@triton.jit
def _normal(seed_low, seed_high, step, chain, stream, row, first, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Returns the normal numbers of a tile; one counter gives those of a quad."""
    zero = tl.zeros((ROWS, QUADS), tl.uint32)
    seed = (seed_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | seed_low.to(tl.uint32, bitcast=True).to(tl.uint64)
    quad = zero + (first + tl.arange(0, QUADS)).to(tl.uint32)[None, :]
    id = zero + (chain.to(tl.uint32, bitcast=True) + row.to(tl.uint32))[:, None]
    a, b, c, d = tl.philox(seed, quad, zero + step.to(tl.uint32, bitcast=True), id, zero + stream.to(tl.uint32, bitcast=True))
    first_pair, second_pair = _pair(a, b), _pair(c, d)
    even, odd = tl.interleave(first_pair[0], second_pair[0]), tl.interleave(first_pair[1], second_pair[1])
    return tl.interleave(even, odd)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step", "chain", "stream"])
def langevin(
    x_ptr,
    momentum_ptr,
    gradient_ptr,
    out_ptr,
    out_momentum_ptr,
    drift,
    scale,
    keep,
    move,
    low,
    high,
    seed_low,
    seed_high,
    step,
    chain,
    stream,
    rows,
    size,
    GRADIENT: tl.constexpr,
    MOMENTUM: tl.constexpr,
    READ: tl.constexpr,
    NOISE: tl.constexpr,
    BOX: tl.constexpr,
    ROWS: tl.constexpr,
    QUADS: tl.constexpr,
):
    """Takes a step of `ROWS` chains and `QUADS` times four coordinates of each.

    One counter gives four numbers, so a tile is made of quads and unfolded to coordinates. Words of the counter come as int32, whatever
    their size, so that no value of them compiles another kernel.
    """
    tiles = tl.cdiv(size, 4 * QUADS)
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = (program % tiles).to(tl.int64) * QUADS
    column = 4 * first + tl.arange(0, 4 * QUADS)
    place = row[:, None] * size + column[None, :]
    inside = (row < rows)[:, None] & (column < size)[None, :]

    force = tl.zeros((ROWS, 4 * QUADS), tl.float32)
    if GRADIENT:
        force = drift * tl.load(gradient_ptr + place, inside, 0.0).to(tl.float32)

    noise = tl.zeros((ROWS, 4 * QUADS), tl.float32)
    if NOISE:
        noise = scale * _normal(seed_low, seed_high, step, chain, stream, row, first, ROWS, QUADS)

    if MOMENTUM:
        momentum = tl.load(momentum_ptr + place, inside, 0.0).to(tl.float32) - force
        x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32) + move * momentum
        momentum = keep * momentum + noise
        x += move * momentum
        tl.store(out_momentum_ptr + place, momentum.to(out_momentum_ptr.dtype.element_ty), inside)
    elif READ:
        x = keep * tl.load(x_ptr + place, inside, 0.0).to(tl.float32) - force + noise
    else:
        x = noise - force
    if BOX:
        x = tl.where(x < low, low, tl.where(x > high, high, x))  # NaN stays NaN
    tl.store(out_ptr + place, x.to(out_ptr.dtype.element_ty), inside)
