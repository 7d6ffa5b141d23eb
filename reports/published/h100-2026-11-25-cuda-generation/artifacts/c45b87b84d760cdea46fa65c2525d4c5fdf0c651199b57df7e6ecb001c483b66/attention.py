import warnings
from ctypes import c_int64

from harness.build.cuda import Source

SOURCE = Source(__file__)  # kernel.cu beside this file

LOG2E = 1.4426950408889634
SMS = 132
BLOCK_N = 128

# dim: (consumer warpgroups, stages)
CONFIG = {128: (2, 3), 64: (3, 4)}

_fast = {}
_plans = {}


def _plan(bh, tiles, ratio):
    """How to deal the query tiles to the CTAs.

    Tiles held..tiles-1 of a head are paired long with short into units of equal work;
    the `held` shortest tiles of every head go to the CTAs without a unit in the last wave.
    """
    key = (bh, tiles, ratio)
    found = _plans.get(key)
    if found is not None:
        return found
    overhead = 1.0
    best = None
    for held in range(0, tiles // 2 + 1):
        left = tiles - held
        if left <= 0:
            break
        pairs = (left + 1) // 2
        units = bh * pairs
        waves = -(-units // SMS)
        rest = waves * SMS - units
        if held and rest == 0:
            continue
        unit = (tiles + held + 1) * ratio + 2 * overhead
        cost = waves * unit
        if held:
            per = -(-(bh * held) // rest)
            tail = (waves - 1) * unit + per * ((held + 1) * 0.5 * ratio + overhead)
            cost = max(cost, tail)
        if best is None or cost < best[0]:
            best = (cost, held, pairs, units, rest)
    _plans[key] = best[1:]
    return best[1:]


def _aligned(t):
    if t.data_ptr() % 16:
        return False
    return all(t.shape[i] == 1 or t.stride(i) % 8 == 0 for i in range(3))


def _fast_kernel(dim, neg):
    key = (dim, neg)
    if key not in _fast:
        nwg, stages = CONFIG[dim]
        try:
            _fast[key] = SOURCE.kernel(f"attn_fwd<{dim}, {nwg}, {stages}, {'true' if neg else 'false'}>")
        except Exception as error:
            warnings.warn(f"WGMMA kernel unavailable, using the slow one: {error}")
            _fast[key] = None
    return _fast[key]


def attention(q, k, v, out, *, scale: float) -> None:
    batch, seq_q, heads, dim = q.shape
    seq_k = k.shape[1]
    group = heads // k.shape[2]
    scale = float(scale)

    strides = []
    for t in (q, k, v, out):
        strides += [c_int64(t.stride(0)), c_int64(t.stride(1)), c_int64(t.stride(2))]

    if dim in CONFIG and all(_aligned(t) for t in (q, k, v, out)):
        neg = scale < 0
        kernel = _fast_kernel(dim, neg)
        if kernel is not None:
            nwg, stages = CONFIG[dim]
            block_m = 64 * nwg
            tiles = -(-seq_q // block_m)
            bh = batch * heads
            held, pairs, units, rest = _plan(bh, tiles, block_m / BLOCK_N)
            shared = block_m * dim * 2 + 2 * stages * BLOCK_N * dim * 2 + 1024 + 256
            sl2 = abs(scale) * LOG2E
            if sl2 < 1e-30:
                sl2 = 1e-30
            kernel[SMS, 128 * (nwg + 1), shared](
                q, k, v, out, *strides,
                heads, group, bh, seq_q, seq_k, sl2,
                tiles, held, pairs, units, rest)
            return

    kernel = SOURCE.kernel(f"attn_simple<{dim}>")
    kernel[(-(-seq_q // 4), heads, batch), 128, 0](
        q, k, v, out, *strides, group, seq_q, seq_k, scale * LOG2E)
