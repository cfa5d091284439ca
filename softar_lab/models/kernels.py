"""The arithmetic of one slot of one row, compiled by numba, for batches, prompts and single steps.

Every slot is computed by itself, in an order of operations that this file fixes: fused
multiply-adds over ascending indices, sums over 16 lanes, and an exponential and an error function
of our own. So a slot's hidden state depends on its row alone. It does not depend on how many rows
or slots are computed together, on the number of threads, or on the processor (any with fused
multiply-add, which all have had since 2013).

Do not call these functions directly: see `compiled_decoder.py` and `by_row.py`.

Letters: R rows, N slots computed together, d the body's width, H heads of queries, G heads of keys
and values, w a head's width, C the cache's capacity. Numbers are float32; products may be float64.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 32  # how many slots are computed together: a matrix is read once for all of them
LANES = 16  # the number of partial sums in a reduction; a power of 2
GELU, GELU_TANH, SWIGLU = range(3)
SHOWN, MIXTURE, OUTPUT = range(3)  # what is fed back where a token stays soft
L2, DOT, COSINE = range(3)  # how `screen` compares
GROUP = 64  # rows of a table that `screen` takes together

_f = np.float32
_0, _1, _2, _HALF = _f(0), _f(1), _f(2), _f(0.5)
_INFINITE, _LEAST_NORMAL = _f(np.inf), _f(2.0**-126)
_SHORT = _f(1e-15)  # the squares of a shorter row lose digits
# Attention weights below e^-60 of the largest are raised to that: denormal numbers would be slow.
_FAINTEST = _f(-60)
_LEAST = _f(-87)  # e^-87 is about the smallest number that is not denormal
_LOG2E, _LN2_HIGH, _LN2_LOW = (
    _f(1.4426950408889634),
    _f(0.693145751953125),
    _f(1.42860682030941723212e-6),
)
_SHIFT, _SHIFT_BITS = _f(12582912), np.int32(0x4B400000)  # 1.5 * 2^23; adding it rounds to integers
# (e^r - 1 - r) / r² on |r| <= ln 2 / 2, interpolated at Chebyshev nodes; e^r is accurate to 1.1e-8.
_EXP = tuple(
    map(
        _f,
        (
            0.5,
            0.16666573286056519,
            0.04166654869914055,
            0.008363774046301842,
            0.0013926926767453551,
        ),
    )
)
# -ln(erfc t) / t on 0 … 4.2, interpolated at Chebyshev nodes; erfc is accurate to 5e-8. Beyond 4.2,
# erfc is below 3e-9.
_ERFC = tuple(
    map(
        _f,
        (1.128379225730896, 0.6366187930107117, 0.10278049111366272, -0.01914590410888195, -0.00021584842761512846,
         0.0017814767779782414, -0.0007471973658539355, 0.00017906696302816272, -2.675806899787858e-05,
         2.3178210994956316e-06, -8.901002246375356e-08),
    )
)  # fmt: skip
_ERFC_END, _ROOT_HALF = _f(4.2), _f(0.5**0.5)
_TANH_SCALE, _TANH_CUBE = _f(2 * (2 / np.pi) ** 0.5), _f(0.044715)


@intrinsic
def _fma(typing_context, a, b, c):
    """a * b + c, rounded once."""
    return a(a, a, a), lambda _, builder, __, args: builder.fma(*args)


@intrinsic
def _bits(typing_context, x):
    """The bits of a float32 as an int32."""
    return types.int32(types.float32), lambda _, builder, __, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@intrinsic
def _float(typing_context, x):
    """The float32 with these bits."""
    return types.float32(types.int32), lambda _, builder, __, args: builder.bitcast(
        args[0], ir.FloatType()
    )


@njit(inline="always")
def _exp(x):
    """e^x for -87 < x < 88, accurate to 1.5 units in the last place."""
    # x = whole · ln 2 + r; e^r by a polynomial; 2^whole by adding to the exponent's bits
    shifted = _fma(x, _LOG2E, _SHIFT)
    whole = shifted - _SHIFT
    r = _fma(-whole, _LN2_LOW, _fma(-whole, _LN2_HIGH, x))
    p = _fma(_fma(_fma(_fma(_EXP[4], r, _EXP[3]), r, _EXP[2]), r, _EXP[1]), r, _EXP[0])
    p = _fma(_fma(p, r, _1), r, _1)
    return _float(np.int32(_bits(p) + ((_bits(shifted) - _SHIFT_BITS) << np.int32(23))))


@njit(inline="always")
def _gelu(x):
    """x Φ(x) = x erfc(-x/√2) / 2."""
    t = min(abs(x) * _ROOT_HALF, _ERFC_END)
    q = _ERFC[10]
    q = _fma(
        _fma(_fma(_fma(_fma(q, t, _ERFC[9]), t, _ERFC[8]), t, _ERFC[7]), t, _ERFC[6]), t, _ERFC[5]
    )
    q = _fma(
        _fma(_fma(_fma(_fma(q, t, _ERFC[4]), t, _ERFC[3]), t, _ERFC[2]), t, _ERFC[1]), t, _ERFC[0]
    )
    tail = _exp(-t * q)
    return x * _HALF * (tail if x < _0 else _2 - tail)


@njit(inline="always")
def _silu(x):
    """x / (1 + e^-x)."""
    return x / (_1 + _exp(min(max(-x, _FAINTEST), -_FAINTEST)))


@njit(error_model="numpy")
def _sum(x):
    """The sum of x (n,), where n is a multiple of LANES. Overwrites x.

    The upper half is added to the lower half again and again, until one number is left.
    """
    n = x.size
    while n > LANES:
        half = -(-n // (2 * LANES)) * LANES
        low, high = x[:half], x[half:n]
        for i in range(high.size):
            low[i] += high[i]
        n = half
    half = LANES // 2
    while half:
        for i in range(half):
            x[i] += x[i + half]
        half //= 2
    return x[0]


@njit(error_model="numpy", fastmath={"nnan", "nsz"})
def _largest(x):
    """The largest of x (n,). The order of the comparisons does not matter, so fastmath is safe."""
    found = x[0]
    for i in range(x.size):
        found = max(found, x[i])
    return found


@njit(inline="always")
def _padded(n):
    """n, rounded up to a multiple of LANES."""
    return -(-n // LANES) * LANES


@njit(error_model="numpy")
def _multiply(x, matrix, out):
    """x (N, k) @ matrix (k, c) -> out (N, c), each number by a chain of fused multiply-adds over k.

    Four rows and four steps of k are unrolled. The order of each number's chain stays the same.
    """
    count, k = x.shape
    whole = k - k % 4
    i = 0
    while i < count:
        four = i + 4 <= count  # four rows share each number read from the matrix
        o0 = out[i]
        o0[:] = 0
        if four:
            o1, o2, o3 = out[i + 1], out[i + 2], out[i + 3]
            o1[:] = 0
            o2[:] = 0
            o3[:] = 0
            for j in range(0, whole, 4):
                w0, w1, w2, w3 = matrix[j], matrix[j + 1], matrix[j + 2], matrix[j + 3]
                a0, a1, a2, a3 = x[i, j], x[i, j + 1], x[i, j + 2], x[i, j + 3]
                b0, b1, b2, b3 = x[i + 1, j], x[i + 1, j + 1], x[i + 1, j + 2], x[i + 1, j + 3]
                c0, c1, c2, c3 = x[i + 2, j], x[i + 2, j + 1], x[i + 2, j + 2], x[i + 2, j + 3]
                d0, d1, d2, d3 = x[i + 3, j], x[i + 3, j + 1], x[i + 3, j + 2], x[i + 3, j + 3]
                for c in range(o0.size):
                    m0, m1, m2, m3 = w0[c], w1[c], w2[c], w3[c]
                    o0[c] = _fma(a3, m3, _fma(a2, m2, _fma(a1, m1, _fma(a0, m0, o0[c]))))
                    o1[c] = _fma(b3, m3, _fma(b2, m2, _fma(b1, m1, _fma(b0, m0, o1[c]))))
                    o2[c] = _fma(c3, m3, _fma(c2, m2, _fma(c1, m1, _fma(c0, m0, o2[c]))))
                    o3[c] = _fma(d3, m3, _fma(d2, m2, _fma(d1, m1, _fma(d0, m0, o3[c]))))
            for j in range(whole, k):
                w0 = matrix[j]
                a0, b0, c0, d0 = x[i, j], x[i + 1, j], x[i + 2, j], x[i + 3, j]
                for c in range(o0.size):
                    o0[c] = _fma(a0, w0[c], o0[c])
                    o1[c] = _fma(b0, w0[c], o1[c])
                    o2[c] = _fma(c0, w0[c], o2[c])
                    o3[c] = _fma(d0, w0[c], o3[c])
        else:
            for j in range(0, whole, 4):
                w0, w1, w2, w3 = matrix[j], matrix[j + 1], matrix[j + 2], matrix[j + 3]
                a0, a1, a2, a3 = x[i, j], x[i, j + 1], x[i, j + 2], x[i, j + 3]
                for c in range(o0.size):
                    o0[c] = _fma(
                        a3, w3[c], _fma(a2, w2[c], _fma(a1, w1[c], _fma(a0, w0[c], o0[c])))
                    )
            for j in range(whole, k):
                w0, a0 = matrix[j], x[i, j]
                for c in range(o0.size):
                    o0[c] = _fma(a0, w0[c], o0[c])
        i += 4 if four else 1


@njit(error_model="numpy")
def _normalise(x, rms, eps, spare, out):
    """Layer norm of x (d,), or root mean square norm if `rms`, without weights, -> out (d,).

    `spare` is scratch memory for d + LANES numbers.
    """
    d, mean = x.size, _0
    spare = spare[: _padded(d)]
    if not rms:
        spare[d:] = _0
        for i in range(d):
            spare[i] = x[i]
        mean = _sum(spare) / _f(d)
    spare[d:] = _0
    for i in range(d):
        out[i] = x[i] - mean
        spare[i] = out[i] * out[i]
    scale = _1 / np.sqrt(_sum(spare) / _f(d) + eps)
    for i in range(d):
        out[i] *= scale


@njit(error_model="numpy")
def _score(query, keys, begin, scores):
    """scores[s] = query (w,) · keys (w, C)[:, begin + s]."""
    width, n = query.size, scores.size
    whole = width - width % 8
    scores[:] = _0
    for j in range(0, whole, 8):
        q0, q1, q2, q3 = query[j], query[j + 1], query[j + 2], query[j + 3]
        q4, q5, q6, q7 = query[j + 4], query[j + 5], query[j + 6], query[j + 7]
        k0, k1, k2, k3 = (
            keys[j, begin:],
            keys[j + 1, begin:],
            keys[j + 2, begin:],
            keys[j + 3, begin:],
        )
        k4, k5, k6, k7 = (
            keys[j + 4, begin:],
            keys[j + 5, begin:],
            keys[j + 6, begin:],
            keys[j + 7, begin:],
        )
        for s in range(n):
            low = _fma(q3, k3[s], _fma(q2, k2[s], _fma(q1, k1[s], _fma(q0, k0[s], scores[s]))))
            scores[s] = _fma(q7, k7[s], _fma(q6, k6[s], _fma(q5, k5[s], _fma(q4, k4[s], low))))
    for j in range(whole, width):
        q0, k0 = query[j], keys[j, begin:]
        for s in range(n):
            scores[s] = _fma(q0, k0[s], scores[s])


@njit(error_model="numpy")
def _weigh(scores, spare):
    """Replace scores (n,) by weights relative to the largest, in place, and return their sum.

    `spare` is scratch memory for n + LANES numbers.
    """
    n = scores.size
    largest, spare = _largest(scores), spare[: _padded(n)]
    spare[n:] = _0
    for s in range(n):
        weight = _exp(max(scores[s] - largest, _FAINTEST))
        scores[s] = weight
        spare[s] = weight
    return _sum(spare)


@njit(error_model="numpy")
def _blend(weights, values, out):
    """out (w,) += weights[s] values (n, w)[s]."""
    n, width = weights.size, out.size
    whole = n - n % 4
    for s in range(0, whole, 4):
        p0, p1, p2, p3 = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        v0, v1, v2, v3 = values[s], values[s + 1], values[s + 2], values[s + 3]
        for j in range(width):
            out[j] = _fma(p3, v3[j], _fma(p2, v2[j], _fma(p1, v1[j], _fma(p0, v0[j], out[j]))))
    for s in range(whole, n):
        p0, v0 = weights[s], values[s]
        for j in range(width):
            out[j] = _fma(p0, v0[j], out[j])


@njit(error_model="numpy")
def _attend(flat, rows, slots, window, heads, keys, values, beginning, scores, spare, mixed):
    """Attention of N slots, head by head: flat (N, (H + 2G) w) -> mixed (N, H w).

    Args:
        flat: queries, keys and values of the slots, side by side; only the queries are read here.
        rows: the row of each slot (N,).
        slots: the position of each slot (N,).
        window: how many slots a slot sees at most, itself included.
        heads: H.
        keys: the keys in the cache (R, G, w, C).
        values: the values in the cache (R, G, C, w).
        beginning: where the first slots are read, as in the `cache` of `_run`, for one layer.
        scores: scratch memory for one number per slot of the cache.
        spare: scratch memory for LANES more numbers than that.
        mixed: the result.
    """
    groups, width = keys.shape[1], keys.shape[2]
    shared, offset, first_keys, first_values, origin = beginning
    for head in range(heads):
        group = head * groups // heads
        for i in range(rows.size):
            # this slot sees slots begin … end-1; those before `seam` lie in the beginning
            end = slots[i] + 1
            begin = max(0, end - window)
            seam = max(begin, min(end, shared))
            query = flat[i, head * width : (head + 1) * width]
            own_keys, own_values = keys[rows[i], group], values[rows[i], group]
            other_keys, other_values = (
                first_keys[origin[rows[i]], group],
                first_values[origin[rows[i]], group],
            )
            # scores -> weights -> weighted mean of the values
            weights = scores[: end - begin]
            _score(query, other_keys, begin, weights[: seam - begin])
            _score(query, own_keys, seam - offset, weights[seam - begin :])
            total = _weigh(weights, spare)
            out = mixed[i, head * width : (head + 1) * width]
            out[:] = _0
            _blend(weights[: seam - begin], other_values[begin:seam], out)
            _blend(weights[seam - begin :], own_values[seam - offset : end - offset], out)
            for j in range(width):
                out[j] /= total


@njit(error_model="numpy")
def _activate(inner, kind, out):
    """The activation of the MLP: inner (N, n), or (N, 2n) for SWIGLU, -> out (N, n)."""
    width = out.shape[1]
    for i in range(len(out)):
        x, y = inner[i], out[i]
        if kind == GELU:
            for j in range(width):
                y[j] = _gelu(x[j])
        elif kind == GELU_TANH:
            for j in range(width):
                u = _TANH_SCALE * _fma(_TANH_CUBE * x[j] * x[j], x[j], x[j])
                y[j] = x[j] / (_1 + _exp(min(max(-u, _FAINTEST), -_FAINTEST)))
        else:
            for j in range(width):
                y[j] = _silu(x[j]) * x[j + width]


@njit(error_model="numpy")
def _add(x, bias):
    """x (N, n) += bias (n,)."""
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += bias[j]


@njit(error_model="numpy")
def _turn(x, cosine, sine, spare):
    """Rotary positions: rotate the pairs (j, j + w/2) of each head of x (n w,), in place.

    `cosine` and `sine`, which carries the sign, are (w,). `spare` is scratch memory for w numbers.
    """
    width = cosine.size
    half = width // 2
    for begin in range(0, x.size, width):
        head = x[begin : begin + width]
        for j in range(half):
            spare[j] = head[j + half]
            spare[j + half] = head[j]
        for j in range(width):
            head[j] = _fma(spare[j], sine[j], head[j] * cosine[j])


@njit(error_model="numpy")
def _run(x, rows, slots, shape, eps, layers, ends, tables, cache, out):
    """N slots through all blocks: x (N, d) -> out (N, d). Overwrites x, writes to the cache.

    Args:
        x: the embedded slots (N, d).
        rows: the row of each slot (N,).
        slots: the position of each slot (N,).
        shape: (heads, window, rms, kind of activation).
        eps: of the norms.
        layers: matrices and biases, stacked over the layers.
        ends: weight and bias of the last norm (2, d).
        tables: positions (slots, d), and cosines and sines (2, slots, w); empty where unused.
        cache: (keys, values, shared, offset, first_keys, first_values, origin). Keys (layers, R, G,
            w, C) and values (layers, R, G, C, w) hold the slots from `offset` on; those of the new
            slots are written there. Slots before `shared` are read from first_keys (layers, O, G,
            w, D) and first_values, where row r finds its slots in row origin[r]; `origin` is (R,).
        out: the hidden states (N, d).
    """
    heads, window, rms, kind = shape
    qkv, qkv_bias, attention_out, attention_bias, up, up_bias, down, down_bias = layers
    positions, rotation = tables
    keys, values, shared, offset, first_keys, first_values, origin = cache
    (count, d), (depth, _, groups, width, capacity) = x.shape, keys.shape
    turned = (heads + groups) * width
    normed, mixed = np.empty((count, d), np.float32), np.empty((count, heads * width), np.float32)
    flat = np.empty((count, qkv.shape[2]), np.float32)
    inner = np.empty((count, up.shape[2]), np.float32)
    active = np.empty((count, down.shape[1]), np.float32)
    most = offset + capacity
    scores, spare = np.empty(most, np.float32), np.empty(max(most, d) + LANES, np.float32)
    # 1) learned or sinusoidal positions
    if positions.size:
        for i in range(count):
            x[i] += positions[slots[i]]
    for layer in range(depth):
        # 2) queries, keys and values; rotate them, and write keys and values to the cache
        for i in range(count):
            _normalise(x[i], rms, eps, spare, normed[i])
        _multiply(normed, qkv[layer], flat)
        _add(flat, qkv_bias[layer])
        for i in range(count):
            row, slot = rows[i], slots[i]
            if rotation.size:
                _turn(flat[i, :turned], rotation[0, slot], rotation[1, slot], spare)
            for group in range(groups):
                key, value = (heads + group) * width, (heads + groups + group) * width
                for j in range(width):
                    keys[layer, row, group, j, slot - offset] = flat[i, key + j]
                    values[layer, row, group, slot - offset, j] = flat[i, value + j]
        # 3) attention
        beginning = (shared, offset, first_keys[layer], first_values[layer], origin)
        _attend(
            flat,
            rows,
            slots,
            window,
            heads,
            keys[layer],
            values[layer],
            beginning,
            scores,
            spare,
            mixed,
        )
        _multiply(mixed, attention_out[layer], normed)
        _add(normed, attention_bias[layer])
        _add_to(x, normed)
        # 4) MLP
        for i in range(count):
            _normalise(x[i], rms, eps, spare, normed[i])
        _multiply(normed, up[layer], inner)
        _add(inner, up_bias[layer])
        _activate(inner, kind, active)
        _multiply(active, down[layer], normed)
        _add(normed, down_bias[layer])
        _add_to(x, normed)
    # 5) the last norm, with its weight and bias
    for i in range(count):
        _normalise(x[i], rms, eps, spare, out[i])
        for j in range(d):
            out[i, j] = _fma(out[i, j], ends[0, j], ends[1, j])


@njit(error_model="numpy")
def _add_to(x, y):
    """x += y, both (N, n)."""
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += y[i, j]


@njit(nogil=True, cache=True, error_model="numpy")
def read(begin_row, end_row, stream, slot, shape, eps, layers, ends, tables, cache, out):
    """Rows begin_row … end_row-1 read n slots each: stream (R, n, d) -> out (R, n, d).

    The first of them stands at position `slot`. The other arguments are those of `_run`.
    """
    n, d = stream.shape[1:]
    total = (end_row - begin_row) * n
    for first in range(0, total, BLOCK):
        count = min(BLOCK, total - first)
        x, found = np.empty((count, d), np.float32), np.empty((count, d), np.float32)
        rows, slots = np.empty(count, np.int64), np.empty(count, np.int64)
        for i in range(count):
            row, step = begin_row + (first + i) // n, (first + i) % n
            rows[i], slots[i] = row, slot + step
            x[i] = stream[row, step]
        _run(x, rows, slots, shape, eps, layers, ends, tables, cache, found)
        for i in range(count):
            out[rows[i], slots[i] - slot] = found[i]


@njit(nogil=True, cache=True, error_model="numpy")
def multiply(x, matrix, out):
    """x (N, k) @ matrix (k, c) -> out (N, c), all float32 or all float64."""
    _multiply(x, matrix, out)


@njit(error_model="numpy")
def _softmax(logits, spare, log_probs, probs):
    """logits (n,) -> log_probs and probs (n,). `spare`: scratch memory for n + LANES numbers."""
    n, largest = logits.size, _largest(logits)
    spare = spare[: _padded(n)]
    spare[n:] = _0
    for i in range(n):
        log_probs[i] = logits[i] - largest
        probs[i] = _exp(max(log_probs[i], _LEAST))
        spare[i] = probs[i]
    total = _sum(spare)
    log_total = _f(np.log(np.float64(total)))
    for i in range(n):
        log_probs[i] -= log_total
        probs[i] /= total


@njit(nogil=True, cache=True, error_model="numpy")
def softmax(logits, log_probs, probs):
    """logits (N, n) -> log_probs and probs (N, n)."""
    spare = np.empty(logits.shape[1] + LANES, np.float32)
    for i in range(len(logits)):
        _softmax(logits[i], spare, log_probs[i], probs[i])


@njit(error_model="numpy")
def _pick(probs, temperature, uniform, cumulative):
    """The most probable symbol at temperature 0, else a draw from probs ** (1 / temperature).

    `uniform` decides the draw; `cumulative` is scratch memory (n,). The same as `collapse.pick`.
    """
    n, best = probs.size, 0
    for i in range(1, n):
        if probs[i] > probs[best]:
            best = i
    if temperature == 0:
        return best
    total = 0.0
    for i in range(n):
        weight = np.float64(probs[i])
        if temperature != 1:
            weight = np.exp((np.log(weight) - np.log(np.float64(probs[best]))) / temperature)
        total += weight
        cumulative[i] = total
    wanted = uniform * total
    for i in range(n):
        if cumulative[i] > wanted:
            return i
    return n - 1


@njit(nogil=True, cache=True, error_model="numpy")
def write(
    begin_row, end_row, hidden, slot, shape, eps, layers, ends, tables, cache,
    head, matrix, bias, input_map, table, uniform, forced, hard, feedback, temperatures, token_ids, states, inputs,
):  # fmt: skip
    """Rows begin_row … end_row-1 write S symbols each: predict, choose, feed back.

    The vector of the last step is computed, but not fed back. `shape` to `cache`: see `_run`.

    Args:
        hidden: the hidden state of each row's last slot, before the first symbol (R, d).
        slot: the position of the next slot.
        head: the objective's map from a hidden state to its output (d, o).
        matrix, bias: the map from an output to the logits, (o, V) and (V,).
        input_map: from a token to the body's input (m, d).
        table: the embedding table (V, m).
        uniform: numbers in [0, 1) that decide the draws (S, R), float64.
        forced: a symbol that must be chosen, or -1 (S, R).
        hard: whether the table row of the chosen symbol is fed back (S, R).
        feedback: what is fed back otherwise: SHOWN (that row, too), MIXTURE (probs @ table) or
            OUTPUT (the objective's output).
        temperatures: (of hard tokens, of soft tokens).
        token_ids: filled with the chosen symbols (S, R).
        states: filled with the hidden state behind each prediction (S, R, d).
        inputs: filled with the vectors to feed back (S, R, m).
    """
    steps, count = len(token_ids), end_row - begin_row
    d, (vocab, m) = len(head), table.shape
    x, found = np.empty((count, d), np.float32), hidden[begin_row:end_row].copy()
    output, logits = (
        np.empty((count, head.shape[1]), np.float32),
        np.empty((count, vocab), np.float32),
    )
    log_probs, probs = np.empty((count, vocab), np.float32), np.empty((count, vocab), np.float32)
    spare, cumulative = np.empty(vocab + LANES, np.float32), np.empty(vocab, np.float64)
    vectors = np.empty((count, m), np.float32)
    rows, slots = np.arange(begin_row, end_row), np.empty(count, np.int64)
    for step in range(steps):
        # 1) predict
        _multiply(found, head, output)
        _multiply(output, matrix, logits)
        _add(logits, bias)
        for i in range(count):
            _softmax(logits[i], spare, log_probs[i], probs[i])
        # 2) the soft tokens
        if feedback == MIXTURE:
            _multiply(probs, table, vectors)
        elif feedback == OUTPUT:
            vectors[:] = output
        # 3) choose a symbol per row; a hard token replaces the soft one
        for i in range(count):
            row = begin_row + i
            states[step, row] = found[i]
            chosen = forced[step, row]
            if chosen < 0:
                warmth = temperatures[0] if hard[step, row] else temperatures[1]
                chosen = _pick(probs[i], warmth, uniform[step, row], cumulative)
            token_ids[step, row] = chosen
            if hard[step, row] or feedback == SHOWN:
                vectors[i] = table[chosen]
            inputs[step, row] = vectors[i]
        # 4) feed back
        if step + 1 < steps:
            _multiply(vectors, input_map, x)
            slots[:] = slot + step
            _run(x, rows, slots, shape, eps, layers, ends, tables, cache, found)


@njit(nogil=True, cache=True, error_model="numpy")
def draft(
    begin_row, end_row, hidden, slot, shape, eps, layers, ends, tables, cache,
    head, matrix, bias, input_map, table, uniform, forced, temperature, most, above, proposals, recurrent,
    token_ids, states, passes,
):  # fmt: skip
    """As `write` with every token hard, but several symbols per pass where heads propose them.

    In a pass a row reads its newest symbol and the proposed ones behind it. What the network then
    predicts, and the same draws, decide each symbol; the first that differs from its proposal ends
    the pass. So the symbols are those of `write`, to the bit. Each row goes at its own pace.

    Arguments are those of `write`, without `hard`, `feedback` and `inputs`, and:

    Args:
        temperature: of the draws.
        most: how many slots a pass reads at most.
        above: proposals end where the product of their largest probabilities falls below it.
        proposals: from a hidden state to the logits of the J = most - 1 symbols after the newest,
            side by side (d, J V), and a bias (J V,).
        recurrent: a head that proposes symbol after symbol, (enter (d, r), step (r, r), rows (V, r),
            leave (r, V), bias (V,)). Where `step` is empty, `proposals` are used.
        passes: filled with 1 where a symbol needed a pass of its own, 0 where it shared one (S, R).
    """
    steps, (vocab, m), d = len(token_ids), table.shape, len(head)
    far_map, far_bias = proposals
    enter, onward, newest, leave, leave_bias = recurrent
    width = len(onward)
    z, other = np.empty((1, width), np.float32), np.empty((1, width), np.float32)
    guessed = np.empty((1, vocab), np.float32)
    x, found = np.empty((most, d), np.float32), np.empty((most, d), np.float32)
    vectors, output = np.empty((most, m), np.float32), np.empty((most, head.shape[1]), np.float32)
    logits, probs = np.empty((most, vocab), np.float32), np.empty(vocab, np.float32)
    log_probs, spare = np.empty(vocab, np.float32), np.empty(vocab + LANES, np.float32)
    cumulative, guesses = np.empty(vocab, np.float64), np.empty(most, np.int64)
    far = np.empty((1, far_map.shape[1]), np.float32)
    rows, slots, last = (
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty((1, d), np.float32),
    )
    for row in range(begin_row, end_row):
        # 1) the first symbol
        last[0] = hidden[row]
        _multiply(last, head, output[:1])
        _multiply(output[:1], matrix, logits[:1])
        _add(logits[:1], bias)
        _softmax(logits[0], spare, log_probs, probs)
        chosen = forced[0, row]
        if chosen < 0:
            chosen = _pick(probs, temperature, uniform[0, row], cumulative)
        step, passes[0, row], token_ids[0, row] = 0, 1, chosen
        states[0, row] = last[0]
        while step + 1 < steps:
            # 2) propose what follows the newest symbol
            guesses[0], count, sure = token_ids[step, row], 1, 1.0
            room = min(most, steps - 1 - step)
            if room > 1:
                if width:
                    _multiply(last, enter, z)
                else:
                    _multiply(last, far_map, far)
                    _add(far, far_bias)
                wanted = 1
                while count < room:
                    if width:
                        _multiply(z, onward, other)
                        for j in range(width):
                            z[0, j] = np.tanh(other[0, j] + newest[guesses[count - 1], j])
                        _multiply(z, leave, guessed)
                        _add(guessed, leave_bias)
                        _softmax(guessed[0], spare, log_probs, probs)
                    else:
                        begin = (count - 1) * vocab
                        _softmax(far[0, begin : begin + vocab], spare, log_probs, probs)
                    sure *= np.float64(_largest(probs))
                    if sure >= above:
                        wanted = count + 1
                    elif count >= wanted and (wanted == 1 or count % 4 == 0):
                        break  # four slots share each number read, so a begun four is filled up
                    guess = forced[step + count, row]
                    if guess < 0:
                        guess = _pick(probs, temperature, uniform[step + count, row], cumulative)
                    guesses[count] = guess
                    count += 1
            # 3) read them in one pass
            for i in range(count):
                vectors[i] = table[guesses[i]]
                rows[i], slots[i] = row, slot + step + i
            _multiply(vectors[:count], input_map, x[:count])
            _run(
                x[:count], rows[:count], slots[:count], shape, eps, layers, ends, tables, cache,
                found[:count],
            )  # fmt: skip
            _multiply(found[:count], head, output[:count])
            _multiply(output[:count], matrix, logits[:count])
            _add(logits[:count], bias)
            # 4) decide each symbol as ever; the first that was not proposed ends the pass
            for i in range(count):
                step += 1
                _softmax(logits[i], spare, log_probs, probs)
                chosen = forced[step, row]
                if chosen < 0:
                    chosen = _pick(probs, temperature, uniform[step, row], cumulative)
                token_ids[step, row], passes[step, row] = chosen, i == 0
                states[step, row] = found[i]
                if i + 1 == count or chosen != guesses[i + 1]:
                    last[0] = found[i]
                    break


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _apart(x, y):
    """|x - y|² of two vectors (k,), summed in any order."""
    total = _0
    for j in range(x.size):
        difference = x[j] - y[j]
        total += difference * difference
    return total


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _dot(x, y):
    """x · y of two vectors (k,), summed in any order."""
    total = _0
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _length(x):
    """The length of a vector (k,), rounded once."""
    total = 0.0
    for j in range(x.size):
        number = np.float64(x[j])
        total += number * number
    return _f(np.sqrt(total))


@njit(inline="always")
def _slack(score, length, norm, kind, error, lost):
    """How far the exact score of a row may lie from the computed one."""
    if kind == L2:
        return _fma(error, score, lost)
    slack = _fma(error * length, norm, lost)
    return slack / norm if kind == COSINE else slack


@njit(error_model="numpy")
def _scores(x, rows, norms, kind, scores):
    """Fill `scores` (n,) with those of the rows (n, k): the less, the closer.

    They are |x - row|², -x·row or -x·row / |row|. Returns the least one, or infinity where one
    of them is no number.
    """
    least, total = _INFINITE, _0
    for v in range(len(rows)):
        score = _apart(x, rows[v]) if kind == L2 else -_dot(x, rows[v])
        score = score / norms[v] if kind == COSINE else score
        scores[v] = score
        least = min(least, score)
        total += score
    return least if abs(total) < _INFINITE else _INFINITE


@njit(nogil=True, cache=True, error_model="numpy")
def screen(x, rows, kind, error, lows, highs, ids):
    """Which rows of a table may be the closest to vectors, for certain.

    Groups that cannot hold the closest row, as the bounds say, are left out.

    Args:
        x: the vectors (N, k).
        rows: the table (V, k).
        kind: L2, DOT or COSINE.
        error: bounds the rounding of a sum of k products, relative to the product of lengths.
        lows: a bound that no score in a group of GROUP rows is below (N, groups): what is known
            before, -inf for nothing, and after it what is known then.
        highs: a bound that the least score of all rows is not above (N,), likewise; inf for nothing.
        ids: filled with the closest row, or -1 where more than one may be it (N,).
    """
    n = len(x)
    firsts, seconds = np.full(n, _INFINITE), np.full(n, _INFINITE)  # the two least lower bounds
    norms, scores = np.ones(GROUP, np.float32), np.empty(GROUP, np.float32)
    lengths = np.ones(n, np.float32)
    if kind != L2:
        for i in range(n):
            lengths[i] = _length(x[i])
    lost = _f(x.shape[1]) * _LEAST_NORMAL  # what may be lost below the normal numbers
    ids[:] = 0
    for group in range(lows.shape[1]):
        begin = group * GROUP
        some = rows[begin : begin + GROUP]
        shortest = longest = _0  # not measured
        for i in range(n):
            if lows[i, group] > highs[i]:
                continue
            if kind != L2 and longest == _0:
                for v in range(len(some)):
                    # of a shorter one no more is known than that it is short
                    norms[v] = max(np.sqrt(_dot(some[v], some[v])), _SHORT)
                shortest, longest = norms[: len(some)].min(), norms[: len(some)].max()
            # 1) all rows at once: is the least score too high?
            least = _scores(x[i], some, norms, kind, scores)
            extreme = shortest if kind == COSINE else longest
            low = least - _slack(least, lengths[i], extreme, kind, error, lost)
            if low > highs[i] and least < _INFINITE and (kind != COSINE or shortest > _SHORT):
                lows[i, group] = low
                continue
            # 2) each row's bounds; infinite where nothing is known
            first, second, least = firsts[i], seconds[i], _INFINITE
            for v in range(len(some)):
                slack = _slack(scores[v], lengths[i], norms[v], kind, error, lost)
                low, high = scores[v] - slack, scores[v] + slack
                if not (high < _INFINITE and (kind != COSINE or norms[v] > _SHORT)):
                    low, high = -_INFINITE, _INFINITE
                highs[i] = min(highs[i], high)
                least = min(least, low)
                if low < first:
                    first, second, ids[i] = low, first, begin + v
                elif low < second:
                    second = low
            firsts[i], seconds[i], lows[i, group] = first, second, least
    for i in range(n):
        if seconds[i] <= highs[i]:
            ids[i] = -1


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _product(x, row, scale, centre):
    """x · (scale·row - centre) of vectors (k,), summed in any order."""
    total = _0
    for j in range(x.size):
        total += x[j] * (scale * row[j] - centre[j])
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def least_of_groups(begin, end, x, rows, scale, centre, plus, least):
    """The least score in each group of GROUP rows; a score is x · (scale·row - centre) + plus.

    Args:
        begin, end: which groups.
        x: the vectors (N, k).
        rows: the rows (n, k).
        scale, plus: numbers of each row (n,).
        centre: the same for all rows (k,).
        least: filled (N, groups).
    """
    for group in range(begin, end):
        first = group * GROUP
        for i in range(len(x)):
            low = _INFINITE
            for v in range(first, min(first + GROUP, len(rows))):
                low = min(low, _product(x[i], rows[v], scale[v], centre) + plus[v])
            least[i, group] = low


@njit(nogil=True, cache=True, error_model="numpy")
def rows_below(x, rows, scale, centre, plus, groups, ceilings, places):
    """Which rows of some groups have a score that is not above the ceiling of their group.

    A score that is no number is not above anything.

    Args:
        x: one vector (k,).
        rows, scale, centre, plus: as for `least_of_groups`.
        groups, ceilings: the groups and their ceilings (g,).
        places: filled with the rows' numbers; room for g·GROUP.

    Returns:
        How many there are.
    """
    count = 0
    for at in range(len(groups)):
        first = groups[at] * GROUP
        for v in range(first, min(first + GROUP, len(rows))):
            score = _product(x, rows[v], scale[v], centre) + plus[v]
            if not score > ceilings[at]:
                places[count] = v
                count += 1
    return count
