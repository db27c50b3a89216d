"""Online softmax at the end of a matrix product: three numbers a row, and no table of logits. The kernels of `logprobs.py`.

    z = hidden @ weight.T / temperature          logprob = z[token] - log sum_v exp(z_v)          H = -sum_v p_v log p_v

A program owns a block of rows and walks along the vocabulary, keeping three numbers a row,

    m = max z,    s = sum exp(z - m),    e = sum exp(z - m) * (z - m)

When a tile raises the maximum to m', the old sums are corrected by a = exp(m - m'):  e' = a * (e + s * (m - m')),  s' = a * s.
At the end  logprob = (z[token] - m) - log s,  which cannot be above 0 (z[token] <= m, s >= 1), and  H = log s - e / s.

Bytes: a tile of the product reads (BLOCK_N + BLOCK_V) * D numbers for BLOCK_N * BLOCK_V results, so tiles are as large as
registers allow; programs that stand side by side walk along the same weights, which then come from the L2 cache. The vocabulary
is cut at fixed places into SPLIT columns (a small batch fills the GPU too), and the parts are merged in a fixed order: a row's
result never depends on the rows beside it.
"""

import triton
import triton.language as tl


@triton.jit
def logits_tile(
    hidden, weight, n, v, N, V, D, stride_hidden, stride_weight, scale, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr
):
    """z[n, v] in float32: one tile of the matrix product, D in steps of BLOCK_D."""
    z = tl.zeros((n.shape[0], v.shape[0]), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        place = hidden + n[:, None].to(tl.int64) * stride_hidden + d[None, :]
        h = tl.load(place, mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        place = weight + v[None, :].to(tl.int64) * stride_weight + d[:, None]
        w = tl.load(place, mask=(v < V)[None, :] & (d < D)[:, None], other=0.0)
        if UPCAST:  # the interpreter cannot multiply bfloat16
            h, w = h.to(tl.float32), w.to(tl.float32)
        z = tl.dot(h, w, z, input_precision="ieee")  # "ieee": float32 products, and not TF32's 10 bits
    return z * scale


@triton.jit
def forward_kernel(
    hidden,
    weight,
    tokens,
    parts,  # (4, splits, N): m, s, e and z[token] of each piece of the vocabulary
    N,
    V,
    D,
    stride_hidden,
    stride_weight,
    scale,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split, splits = tl.program_id(1), tl.num_programs(1)
    token = tl.load(tokens + n, mask=n < N, other=-1)
    m = tl.full((BLOCK_N,), -1e30, tl.float32)  # finite: -inf minus -inf is NaN
    s = tl.zeros((BLOCK_N,), tl.float32)
    e = tl.zeros((BLOCK_N,), tl.float32)
    chosen = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, V), BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        z = logits_tile(hidden, weight, n, v, N, V, D, stride_hidden, stride_weight, scale, BLOCK_D, UPCAST)
        chosen += tl.sum(tl.where(v[None, :] == token[:, None], z, 0.0), 1)
        z = tl.where((v < V)[None, :], z, -1e30)  # so that exp gives 0
        higher = tl.maximum(m, tl.max(z, 1))
        below = z - higher[:, None]
        p = tl.exp(below)
        a = tl.exp(m - higher)
        e = a * (e + s * (m - higher)) + tl.sum(p * below, 1)
        s = a * s + tl.sum(p, 1)
        m = higher
    inside = n < N
    place = parts + tl.cast(split, tl.int64) * N + n
    step = tl.cast(splits, tl.int64) * N
    tl.store(place, m, mask=inside)
    tl.store(place + step, s, mask=inside)
    tl.store(place + 2 * step, e, mask=inside)
    tl.store(place + 3 * step, chosen, mask=inside)


@triton.jit
def merge_kernel(parts, tokens, results, splits, N, V, BLOCK: tl.constexpr):
    """The same correction once more, over the pieces. results (3, N): log-probability, entropy, log sum exp z."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    m = tl.full((BLOCK,), -1e30, tl.float32)
    s = tl.zeros((BLOCK,), tl.float32)
    e = tl.zeros((BLOCK,), tl.float32)
    chosen = tl.zeros((BLOCK,), tl.float32)
    step = tl.cast(splits, tl.int64) * N
    for split in range(splits):
        place = parts + tl.cast(split, tl.int64) * N + n
        m_part = tl.load(place, mask=inside, other=0.0)
        s_part = tl.load(place + step, mask=inside, other=1.0)
        e_part = tl.load(place + 2 * step, mask=inside, other=0.0)
        higher = tl.maximum(m, m_part)
        a, b = tl.exp(m - higher), tl.exp(m_part - higher)
        e = a * (e + s * (m - higher)) + b * (e_part + s_part * (m_part - higher))
        s = a * s + b * s_part
        m = higher
        chosen += tl.load(place + 3 * step, mask=inside, other=0.0)
    token = tl.load(tokens + n, mask=inside, other=0)
    logprob = tl.where((token >= 0) & (token < V), (chosen - m) - tl.log(s), float("nan"))  # loud, not merely wrong
    tl.store(results + n, logprob, mask=inside)
    tl.store(results + tl.cast(N, tl.int64) + n, tl.log(s) - e / s, mask=inside)
    tl.store(results + 2 * tl.cast(N, tl.int64) + n, m + tl.log(s), mask=inside)


@triton.jit
def backward_kernel(
    hidden,
    weight,
    tokens,
    log_sums,
    entropies,
    slopes,  # d loss / d logprob of each row
    entropy_slopes,
    dlogits,
    N,
    V,
    D,
    first_v,
    width,
    stride_hidden,
    stride_weight,
    stride_dlogits,
    scale,
    ENTROPY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dz_v = slope * (1[v = token] - p_v) - entropy_slope * p_v * (log p_v + H), for columns first_v ... first_v + width."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    v = first_v + column
    z = logits_tile(hidden, weight, n, v, N, V, D, stride_hidden, stride_weight, scale, BLOCK_D, UPCAST)
    token = tl.load(tokens + n, mask=n < N, other=-1)
    logp = z - tl.load(log_sums + n, mask=n < N, other=0.0)[:, None]
    p = tl.exp(logp)
    slope = tl.load(slopes + n, mask=n < N, other=0.0)[:, None]
    dz = slope * (tl.where(v[None, :] == token[:, None], 1.0, 0.0) - p)
    if ENTROPY:
        entropy = tl.load(entropies + n, mask=n < N, other=0.0)[:, None]
        dz -= tl.load(entropy_slopes + n, mask=n < N, other=0.0)[:, None] * p * (logp + entropy)
    inside = (n < N)[:, None] & (column < width)[None, :]
    place = dlogits + n[:, None].to(tl.int64) * stride_dlogits + column[None, :]
    tl.store(place, (dz * scale).to(dlogits.dtype.element_ty), mask=inside)
