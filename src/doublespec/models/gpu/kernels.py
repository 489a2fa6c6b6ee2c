"""The kernels of a decoder's forward on a GPU, in Triton.

No row's bits depend on what is computed beside it, nor on how many rows or keys there are:

    product     a row is a column of the matrix units' second operand; its sum runs over the inputs
                in an order that `SPLIT` alone decides
    attention   keys come in chunks of `CHUNK`, counted from the text's first token; a chunk that a
                row does not see adds nothing to it, to the bit

Sums are in float32, as is what layers add to (`hidden`); what products read is in the precision of
the weights. With `EARLY` a kernel is launched before the one before it has ended, and waits for it
then (programmatic dependent launch). A row with slot -1 is padding: it sees nothing, and nothing of
it is kept.
"""

import os

import triton
import triton.language as tl

# Triton's interpreter, in which tests run on a CPU, knows no assembly.
IS_COMPILED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
TILE: tl.constexpr = tl.constexpr(64)  # rows and columns of a tile of weights, by 2 bytes each
# How weights lie: by themselves, or in pairs of numbers in 8 bits.
SINGLE: tl.constexpr = tl.constexpr(0)
FP8: tl.constexpr = tl.constexpr(1)
INT8: tl.constexpr = tl.constexpr(2)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _begin(EARLY: tl.constexpr):
    """Lets the next kernel begin, and waits for what the one before has written."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _place(row, column, width):
    """Where a number of a weight of so many columns lies: in tiles of TILE rows and columns, row of
    tiles by row of tiles."""
    of_row = (row // TILE).to(tl.int64) * TILE * width + (row % TILE) * TILE
    return of_row + column // TILE * (TILE * TILE) + column % TILE


# Two pairs of numbers in 8 bits become their low bytes and their high ones, in bfloat16. The bits
# of fp8 (e4m3) stand for 2^-120 of what they are there.
_WIDEN_FP8: tl.constexpr = tl.constexpr(
    """
    {
    .reg .b32 a, b, c, factor;
    mov.b32 factor, 0x7B807B80;
    shl.b32 a, $2, 4;
    and.b32 a, a, 0x07F007F0;
    shl.b32 b, $2, 8;
    lop3.b32 a, b, 0x80008000, a, 0xEA;
    mul.rn.bf16x2 $0, a, factor;
    shr.b32 c, $2, 4;
    and.b32 c, c, 0x07F007F0;
    lop3.b32 c, $2, 0x80008000, c, 0xEA;
    mul.rn.bf16x2 $1, c, factor;
    }
    """
)
# A whole number plus 128 becomes the lowest byte of 2^23 in float32; without these it is itself,
# and its upper half is bfloat16.
_WIDEN_INT8: tl.constexpr = tl.constexpr(
    """
    {
    .reg .b32 bytes, one, a, b, c, d;
    xor.b32 bytes, $2, 0x80808080;
    mov.b32 one, 0x4B000000;
    prmt.b32 a, bytes, one, 0x7440;
    prmt.b32 b, bytes, one, 0x7441;
    prmt.b32 c, bytes, one, 0x7442;
    prmt.b32 d, bytes, one, 0x7443;
    sub.rn.f32 a, a, 0f4B000080;
    sub.rn.f32 b, b, 0f4B000080;
    sub.rn.f32 c, c, 0f4B000080;
    sub.rn.f32 d, d, 0f4B000080;
    prmt.b32 $0, a, c, 0x7632;
    prmt.b32 $1, b, d, 0x7632;
    }
    """
)


@triton.jit
def _widened(pairs, PAIRED: tl.constexpr):
    """Two blocks of bfloat16 of one of pairs of numbers in 8 bits: those in the low bytes, and
    those in the high ones."""
    if IS_COMPILED:
        low, high = tl.inline_asm_elementwise(
            _WIDEN_INT8 if PAIRED == INT8 else _WIDEN_FP8,
            "=r,=r,r",
            [pairs],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    elif PAIRED == INT8:
        low = (pairs & 0xFF).to(tl.int8).to(tl.float32).to(tl.bfloat16)
        high = (pairs >> 8).to(tl.int8).to(tl.float32).to(tl.bfloat16)
    else:
        low = (pairs & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.bfloat16)
        high = ((pairs >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.bfloat16)
    return low, high


@triton.jit
def _add_product(
    sums,
    own,
    of_rows,
    k,
    stop,
    inside,
    EVEN: tl.constexpr,
    PAIRED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Adds the products of one block of inputs. Weights are zero where there are none."""
    if PAIRED != SINGLE:
        low, high = _widened(tl.load(own + k // 2 * TILE), PAIRED)
        states = tl.load(of_rows + k, mask=inside, other=0.0)
        sums = tl.dot(low.to(states.dtype), states, sums)
        states = tl.load(of_rows + k + BLOCK_K // 2, mask=inside, other=0.0)
        sums = tl.dot(high.to(states.dtype), states, sums)
    else:
        weight = tl.load(own + k * TILE)
        known = inside
        if not EVEN:
            known = inside & (k + tl.arange(0, BLOCK_K) < stop)[:, None]
        states = tl.load(of_rows + k, mask=known, other=0.0)
        sums = tl.dot(weight.to(states.dtype), states, sums)
    return sums


@triton.jit(do_not_specialize=["R"])
def product(
    x,  # (R, K)
    w,  # (N, K) in tiles, or (N, K / 2) of pairs
    scale,  # (N,), of weights in 8 bits
    bias,  # (N,)
    out,  # (parts, R, N) float32
    N,
    K,
    width,  # of a row of w, in its elements
    PART,  # inputs of each sum
    R,
    split_stride,
    EVEN: tl.constexpr,  # whether these come in whole blocks
    PAIRED: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out[s, r, n]: the part of x[r] . w[n] over the s-th part of the inputs."""
    ns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    rs = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    WIDE: tl.constexpr = 1 if PAIRED == SINGLE else 2  # inputs in each element of a weight
    WIDTH: tl.constexpr = BLOCK_K // WIDE
    ks = tl.arange(0, WIDTH)
    begin = part * PART
    inside = (rs < R)[None, :]
    if EARLY:
        tl.extra.cuda.gdc_wait()
    own = w + _place(ns[:, None], begin // WIDE + ks[None, :], width)
    of_rows = x + rs[None, :] * K + begin + ks[:, None]
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for k in tl.range(0, PART, BLOCK_K, num_stages=STAGES):
        sums = _add_product(sums, own, of_rows, k, PART, inside, EVEN, PAIRED, BLOCK_K)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    known = ns < N
    if SCALED:
        sums = sums * tl.load(scale + ns, mask=known, other=0.0)[:, None]
    if BIASED:
        if part == 0:
            sums = sums + tl.load(bias + ns, mask=known, other=0.0).to(tl.float32)[:, None]
    to = out + part * split_stride + rs[None, :] * N + ns[:, None]
    tl.store(to, sums, mask=known[:, None] & inside)


@triton.jit(do_not_specialize=["R"])
def gated_product(
    x,  # (R, K)
    w,  # (2 N, K) in tiles, or (2 N, K / 2) of pairs: gate, then up
    scale,
    bias,
    out,  # (R, N)
    N,
    K,
    width,
    R,
    EVEN: tl.constexpr,
    PAIRED: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """silu(gate) x up (arXiv 2002.05202, eq. 5) of the two products; N is a multiple of TILE."""
    ns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rs = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    WIDTH: tl.constexpr = BLOCK_K // (1 if PAIRED == SINGLE else 2)
    ks = tl.arange(0, WIDTH)
    inside = (rs < R)[None, :]
    if EARLY:
        tl.extra.cuda.gdc_wait()
    of_gate = w + _place(ns[:, None], ks[None, :], width)
    of_up = of_gate + tl.cast(N, tl.int64) * width
    of_rows = x + rs[None, :] * K + ks[:, None]
    gate = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        gate = _add_product(gate, of_gate, of_rows, k, K, inside, EVEN, PAIRED, BLOCK_K)
        up = _add_product(up, of_up, of_rows, k, K, inside, EVEN, PAIRED, BLOCK_K)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    known = ns < N
    if SCALED:
        gate = gate * tl.load(scale + ns, mask=known, other=0.0)[:, None]
        up = up * tl.load(scale + N + ns, mask=known, other=0.0)[:, None]
    if BIASED:
        gate = gate + tl.load(bias + ns, mask=known, other=0.0).to(tl.float32)[:, None]
        up = up + tl.load(bias + N + ns, mask=known, other=0.0).to(tl.float32)[:, None]
    mixed = gate / (1.0 + tl.exp2(gate * -LOG2_E)) * up
    to = out + rs[None, :] * N + ns[:, None]
    tl.store(to, mixed.to(out.dtype.element_ty), mask=known[:, None] & inside)


@triton.jit
def gated(
    parts,  # (SPLIT, R, 2 N) float32
    out,  # (R, N)
    N,
    split_stride,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """silu(gate) x up of products that came in parts."""
    row = tl.program_id(0)
    ns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ns < N
    _begin(EARLY)
    gate = tl.zeros((BLOCK,), tl.float32)
    up = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        own = parts + part * split_stride + row * 2 * N
        gate += tl.load(own + ns, mask=inside, other=0.0)
        up += tl.load(own + N + ns, mask=inside, other=0.0)
    mixed = gate / (1.0 + tl.exp2(gate * -LOG2_E)) * up
    tl.store(out + row * N + ns, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normed(states, weight, out, row, ds, inside, D, eps):
    """Root mean square norm (arXiv 1910.07467, eq. 4)."""
    length = tl.rsqrt(tl.sum(states * states, axis=0) / D + eps)
    factor = tl.load(weight + ds, mask=inside, other=0.0).to(tl.float32)
    normed = states * length * factor
    tl.store(out + row * D + ds, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def embed(
    ids,  # (R,) int32
    table,  # (V, D), in tiles where the vocabulary's product is with it
    weight,  # (D,) of the first norm
    hidden,  # (R, D) float32
    out,  # (R, D)
    D,
    width,
    eps,
    TILED: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The embeddings of tokens, and their norm."""
    row = tl.program_id(0)
    ds = tl.arange(0, BLOCK)
    inside = ds < D
    _begin(EARLY)
    token = tl.load(ids + row).to(tl.int64)
    places = _place(token, ds, width) if TILED else token * D + ds
    states = tl.load(table + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(hidden + row * D + ds, states, mask=inside)
    _normed(states, weight, out, row, ds, inside, D, eps)


@triton.jit
def add_norm(
    parts,  # (SPLIT, R, D) float32
    weight,  # (D,)
    hidden,  # (R, D) float32
    out,  # (R, D)
    D,
    split_stride,
    eps,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Adds a product to the hidden states, and norms them for the next one."""
    row = tl.program_id(0)
    ds = tl.arange(0, BLOCK)
    inside = ds < D
    _begin(EARLY)
    states = tl.load(hidden + row * D + ds, mask=inside, other=0.0)
    for part in tl.static_range(SPLIT):
        states += tl.load(parts + part * split_stride + row * D + ds, mask=inside, other=0.0)
    tl.store(hidden + row * D + ds, states, mask=inside)
    _normed(states, weight, out, row, ds, inside, D, eps)


@triton.jit
def turn(
    parts,  # (SPLIT, R, (HEADS + 2 KV_HEADS) x DIM) float32
    query_norm,  # (DIM,)
    key_norm,
    cosines,  # (positions, DIM / 2) float32
    sines,
    positions,  # (R,) int32
    slots,  # (R,) int32
    query,  # (R, HEADS, DIM)
    keys,  # (KV_HEADS, capacity, DIM)
    values,
    capacity,
    split_stride,
    eps,
    SPLIT: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,  # of a head, and no less than a power of two
    NORMED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Rotary embeddings (arXiv 2104.09864, eq. 34) of queries and keys, after their norms where a
    model has them; keys and values go to the cache."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    ds = tl.arange(0, HALF)
    inside = ds < DIM // 2
    _begin(EARLY)
    slot = tl.load(slots + row)
    position = tl.minimum(tl.load(positions + row), capacity - 1)  # behind a text's end, any
    low = tl.zeros((HALF,), tl.float32)
    high = tl.zeros((HALF,), tl.float32)
    for part in tl.static_range(SPLIT):
        own = parts + part * split_stride + (row * (HEADS + 2 * KV_HEADS) + head) * DIM
        low += tl.load(own + ds, mask=inside, other=0.0)
        high += tl.load(own + DIM // 2 + ds, mask=inside, other=0.0)
    if head < HEADS + KV_HEADS:
        if NORMED:
            length = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / DIM + eps)
            norm = key_norm
            if head < HEADS:
                norm = query_norm
            low = low * length * tl.load(norm + ds, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(norm + DIM // 2 + ds, mask=inside, other=0.0).to(tl.float32)
            high = high * length * up
        cos = tl.load(cosines + position * (DIM // 2) + ds, mask=inside, other=0.0)
        sin = tl.load(sines + position * (DIM // 2) + ds, mask=inside, other=0.0)
        turned = low * cos - high * sin
        high = high * cos + low * sin
        low = turned
    if head < HEADS:
        to = query + (row * HEADS + head) * DIM
        tl.store(to + ds, low.to(query.dtype.element_ty), mask=inside)
        tl.store(to + DIM // 2 + ds, high.to(query.dtype.element_ty), mask=inside)
    elif (slot >= 0) & (slot < capacity):
        at = slot.to(tl.int64) * DIM
        if head < HEADS + KV_HEADS:
            to = keys + (head - HEADS).to(tl.int64) * capacity * DIM + at
        else:
            to = values + (head - HEADS - KV_HEADS).to(tl.int64) * capacity * DIM + at
        tl.store(to + ds, low.to(keys.dtype.element_ty), mask=inside)
        tl.store(to + DIM // 2 + ds, high.to(keys.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["R", "chunks"])
def attend(
    query,  # (R, HEADS, DIM)
    keys,  # (KV_HEADS, capacity, DIM)
    values,
    slots,  # (R,) int32
    reach,  # (R,) int32
    firsts,  # (R,) int32
    mixed,  # (R, HEADS, chunks, DIM) float32
    peaks,  # (R, HEADS, chunks, 2) float32: the largest score, and the sum of weights
    R,
    capacity,
    factor,  # of scores, for powers of two
    chunks,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # a power of two no less than HEADS / KV_HEADS
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two no less than DIM
    CHUNK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Attention of rows over one chunk of the keys: the queries that share them, of several rows,
    at once. A row sees the slots before its `reach`, and those from its `first` to its own."""
    chunk = tl.program_id(0)
    kv_head = tl.program_id(1)
    ROWS: tl.constexpr = BLOCK_Q // GROUP
    SHARING: tl.constexpr = HEADS // KV_HEADS
    queries = tl.arange(0, BLOCK_Q)
    row = tl.program_id(2) * ROWS + queries // GROUP
    member = queries % GROUP
    head = kv_head * SHARING + member
    ds = tl.arange(0, WIDTH)
    _begin(EARLY)
    slot = tl.load(slots + row, mask=row < R, other=-1)
    if chunk * CHUNK > tl.max(slot, axis=0):
        return
    until = tl.load(reach + row, mask=row < R, other=0)
    first = tl.load(firsts + row, mask=row < R, other=0)
    known = (row < R) & (member < SHARING)
    of_query = query + (row * HEADS + head)[:, None] * DIM + ds[None, :]
    q = tl.load(of_query, mask=known[:, None] & (ds < DIM)[None, :], other=0.0)
    own_keys = keys + kv_head.to(tl.int64) * capacity * DIM
    own_values = values + kv_head.to(tl.int64) * capacity * DIM
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    sums = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
    for begin in tl.range(0, CHUNK, BLOCK_KEYS, num_stages=STAGES):
        at = chunk * CHUNK + begin + tl.arange(0, BLOCK_KEYS)
        places = at[:, None] * DIM + ds[None, :]
        if DIM == WIDTH:
            k = tl.load(own_keys + places)
            v = tl.load(own_values + places)
        else:
            k = tl.load(own_keys + places, mask=(ds < DIM)[None, :], other=0.0)
            v = tl.load(own_values + places, mask=(ds < DIM)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * factor
        seen = at[None, :] < until[:, None]
        seen |= (at[None, :] >= first[:, None]) & (at[None, :] <= slot[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - level[:, None])
        fall = tl.exp2(peak - level)
        total = total * fall + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(v.dtype), v, sums * fall[:, None])
        peak = higher
    place = (row * HEADS + head) * chunks + chunk
    tl.store(peaks + place * 2, peak, mask=known)
    tl.store(peaks + place * 2 + 1, total, mask=known)
    to = mixed + place.to(tl.int64)[:, None] * DIM + ds[None, :]
    tl.store(to, sums, mask=known[:, None] & (ds < DIM)[None, :])


@triton.jit(do_not_specialize=["chunks"])
def combine(
    mixed,  # as above
    peaks,
    slots,
    reach,
    out,  # (R, HEADS, DIM)
    chunks,
    CHUNK: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,  # chunks at a time
    EARLY: tl.constexpr,
):
    """What a row attends to over all chunks that it sees."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    ds = tl.arange(0, WIDTH)
    some = tl.arange(0, BLOCK)
    _begin(EARLY)
    slot = tl.load(slots + row)
    stop = tl.where(slot < 0, 0, slot // CHUNK + 1)
    own = (row * HEADS + head) * chunks
    peak = float("-inf")
    total = 0.0
    sums = tl.zeros((WIDTH,), tl.float32)
    begin = 0
    while begin < stop:
        at = begin + some
        inside = at < stop
        highest = tl.load(peaks + (own + at) * 2, mask=inside, other=float("-inf"))
        amount = tl.load(peaks + (own + at) * 2 + 1, mask=inside, other=0.0)
        places = (own + at).to(tl.int64)[:, None] * DIM + ds[None, :]
        part = tl.load(mixed + places, mask=inside[:, None] & (ds < DIM)[None, :], other=0.0)
        higher = tl.maximum(peak, tl.max(highest, axis=0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp2(highest - level)
        fall = tl.exp2(peak - level)
        total = total * fall + tl.sum(amount * share, axis=0)
        sums = sums * fall + tl.sum(part * share[:, None], axis=0)
        peak = higher
        begin += BLOCK
    result = sums / tl.where(total == 0.0, 1.0, total)
    to = out + (row * HEADS + head) * DIM
    tl.store(to + ds, result.to(out.dtype.element_ty), mask=ds < DIM)


@triton.jit
def follow(
    logits,  # (V,) float32 of the only row
    table,  # (rows of numbers, stride) int32: ids, positions, slots, reach, firsts
    stride,
    chosen,  # (2, most): the tokens, as float32, and how far the second choice lay behind
    most,
    count,  # (1,) int32: how many there are
    size,
    BLOCK: tl.constexpr,
):
    """Takes the likeliest token, the lowest of several, and makes it the next row."""
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    second = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    begin = 0
    while begin < size:
        ids = begin + lanes
        value = tl.load(logits + ids, mask=ids < size, other=float("-inf"))
        is_more = value > best
        second = tl.maximum(second, tl.where(is_more, best, value))
        place = tl.where(is_more, ids, place)
        best = tl.where(is_more, value, best)
        begin += BLOCK
    top = tl.max(best, axis=0)
    token = tl.min(tl.where(best == top, place, 2147483647), axis=0)
    token = tl.where(token < size, token, 0)  # if no number is the largest
    others = tl.where((best == top) & (place == token), float("-inf"), best)
    left = tl.max(tl.maximum(others, second), axis=0)
    number = tl.load(count)
    tl.store(chosen + number, token.to(tl.float32))
    tl.store(chosen + most + number, top - left)
    tl.store(count, number + 1)
    tl.store(table, token)
    for row in tl.static_range(1, 5):
        tl.store(table + row * stride, tl.load(table + row * stride) + 1)
