"""Owns the arithmetic that generated Numba kernels are made of: small functions on scalars, rows and tiles.

The compiler copies the source of those that a program needs into the candidate, which stands alone;
so each function may use only numpy, numba and what stands in this module. Tiles are C-contiguous
float32 arrays. Values may be -inf anywhere and NaN nowhere: FLAGS promise the compiler the latter only.
"""

# mypy: ignore-errors
# The types here are Numba's, which annotations cannot say.

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

FLAGS = {"contract", "reassoc", "nsz", "arcp", "nnan"}  # not "ninf": scores that are masked are -inf
NEG_INF = np.float32(-np.inf)
LOG2_E = np.float32(1.4426950408889634)

# --- one vector register ----------------------------------------------------------------------------

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
VECTOR = ir.VectorType(ir.FloatType(), LANES)


class Vector(types.Type):
    """LANES float32 values in one register."""

    def __init__(self):
        super().__init__(name=f"Vector{LANES}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A Vector is the LLVM vector of its lanes."""

    def __init__(self, manager, frontend_type):
        super().__init__(manager, frontend_type, VECTOR)


vector = Vector()


def vector_at(context, builder, kind, row, j):
    """A pointer to row[j : j + LANES], in LLVM."""
    first = builder.gep(context.make_array(kind)(context, builder, row).data, [j])
    return builder.bitcast(first, VECTOR.as_pointer())


@intrinsic
def load_vector(typing, row, j):
    """row[j : j + LANES] in a register; the caller sees to it that they lie inside."""

    def code(context, builder, signature, args):
        value = builder.load(vector_at(context, builder, signature.args[0], args[0], args[1]))
        value.align = 4
        return value

    return vector(row, types.int64), code


@intrinsic
def store_vector(typing, row, j, value):
    """row[j : j + LANES] = value."""

    def code(context, builder, signature, args):
        builder.store(args[2], vector_at(context, builder, signature.args[0], args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.void(row, types.int64, vector), code


@intrinsic
def no_vector(typing):
    """LANES zeros."""

    def code(context, builder, signature, args):
        return ir.Constant(VECTOR, [0.0] * LANES)

    return vector(), code


@intrinsic
def add_product(typing, x, values, total):
    """total + x * values, x a scalar."""

    def code(context, builder, signature, args):
        lane = ir.IntType(32)
        x = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), args[0], lane(0))
        zeros = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        x = builder.shuffle_vector(x, x, zeros)
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        return builder.call(fused, [x, args[1], args[2]])

    return vector(types.float32, vector, vector), code


@intrinsic
def transpose_block(typing, tile, i, j, target):
    """target[j : j + LANES, i : i + LANES] = tile[i : i + LANES, j : j + LANES]^T; rows contiguous.

    Log2(LANES) rounds of shuffles swap the off-diagonal quarters of ever larger blocks: four times
    as fast as storing element by element down a column.
    """

    def code(context, builder, signature, args):
        def row(which, at, column, r):
            array = context.make_array(signature.args[which])(context, builder, args[which])
            stride = builder.extract_value(array.strides, 0)
            down = builder.mul(builder.add(args[at], stride.type(r)), stride)
            offset = builder.add(down, builder.mul(args[column], stride.type(4)))
            start = builder.gep(builder.bitcast(array.data, ir.IntType(8).as_pointer()), [offset])
            return builder.bitcast(start, VECTOR.as_pointer())

        rows = [builder.load(row(0, 1, 2, r), align=4) for r in range(LANES)]
        half = 1
        while half < LANES:
            lanes = range(LANES)
            low = [LANES + lane - half if lane & half else lane for lane in lanes]
            high = [LANES + lane if lane & half else lane + half for lane in lanes]
            kind = ir.VectorType(ir.IntType(32), LANES)
            for r in range(LANES):
                if not r & half:
                    a, b = rows[r], rows[r + half]
                    rows[r] = builder.shuffle_vector(a, b, ir.Constant(kind, low))
                    rows[r + half] = builder.shuffle_vector(a, b, ir.Constant(kind, high))
            half *= 2
        for r, value in enumerate(rows):
            builder.store(value, row(3, 2, 1, r), align=4)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64, target), code


# --- scalars ----------------------------------------------------------------------------------------


@intrinsic
def power_of_two(typing, n):
    """2.0 ** n of a whole float32 in [-127, 128], through the exponent's bits: 0 at -127, inf at 128."""

    def code(context, builder, signature, args):
        whole = ir.IntType(32)
        bits = builder.shl(builder.add(builder.fptosi(args[0], whole), whole(127)), whole(23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), code


@intrinsic
def bits_of(typing, x):
    """The bits of a float32 as an int32."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic
def of_bits(typing, bits):
    """The float32 with these bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), code


@intrinsic
def larger(typing, a, b):
    """max(a, b) as one instruction, which a loop over it can be vectorised with."""

    def code(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args, flags=("nnan",)), *args, flags=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), code


@intrinsic
def smaller(typing, a, b):
    """min(a, b) as one instruction."""

    def code(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args, flags=("nnan",)), *args, flags=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), code


@njit(fastmath=FLAGS, error_model="numpy")
def choose(condition, a, b):
    """a where the condition holds, b elsewhere; both are evaluated."""
    return a if condition else b


@njit(fastmath=FLAGS, error_model="numpy")
def subtract(a, b):
    """a - b, and a where b is -inf: a row that has seen no key has nothing to subtract."""
    return a - choose(b == NEG_INF, np.float32(0.0), b)


@njit(fastmath=FLAGS, error_model="numpy")
def divide(a, b):
    """a / b, and 0 where b is 0."""
    return choose(b == np.float32(0.0), np.float32(0.0), a / choose(b == np.float32(0.0), np.float32(1.0), b))


@njit(fastmath=FLAGS, error_model="numpy")
def exp2(x):
    """2 ** x, relative error under 2e-7; 0 below -126.5, inf from 127.5 on.

    Whole and fractional part apart: 2^n through the exponent's bits, 2^f by a Taylor polynomial on
    [-0.5, 0.5]. Without SVML np.exp2 would be a call per element; this a compiler can vectorise.
    """
    x = larger(smaller(x, np.float32(128.0)), np.float32(-127.0))
    n = np.floor(x + np.float32(0.5))
    f = x - n
    y = np.float32(1.5403530e-4)
    y = y * f + np.float32(1.3333558e-3)
    y = y * f + np.float32(9.6181291e-3)
    y = y * f + np.float32(5.5504109e-2)
    y = y * f + np.float32(2.4022651e-1)
    y = y * f + np.float32(6.9314718e-1)
    return (y * f + np.float32(1.0)) * power_of_two(n)


@njit(fastmath=FLAGS, error_model="numpy")
def exp(x):
    """e ** x; 0 at -inf."""
    return exp2(x * LOG2_E)


@njit(fastmath=FLAGS, error_model="numpy")
def tanh(x):
    """tanh x to a few units in the last place: Eigen's rational approximation (MathFunctionsImpl.h)."""
    x = larger(smaller(x, np.float32(7.90531110763549805)), np.float32(-7.90531110763549805))
    z = x * x
    p = np.float32(-2.76076847742355e-16)
    p = p * z + np.float32(2.00018790482477e-13)
    p = p * z + np.float32(-8.60467152213735e-11)
    p = p * z + np.float32(5.12229709037114e-08)
    p = p * z + np.float32(1.48572235717979e-05)
    p = p * z + np.float32(6.37261928875436e-04)
    p = p * z + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06)
    q = q * z + np.float32(1.18534705686654e-04)
    q = q * z + np.float32(2.26843463243900e-03)
    q = q * z + np.float32(4.89352518554385e-03)
    return x * p / q


@njit(fastmath=FLAGS, error_model="numpy")
def sigmoid(x):
    """1 / (1 + e ** -x)."""
    return np.float32(1.0) / (np.float32(1.0) + exp(-x))


@njit(error_model="numpy")
def round_fp16(x):
    """The float32 that is nearest to x among the float16 values, ties to even."""
    if abs(x) < np.float32(6.103515625e-05):  # below 2^-14 the float16 values are multiples of 2^-24
        return np.float32(np.rint(x * np.float32(16777216.0)) * np.float32(5.9604644775390625e-08))
    bits = np.int64(bits_of(x))
    nearest = of_bits((bits + 4095 + ((bits >> 13) & 1)) & ~8191)
    return nearest if abs(nearest) < np.float32(65536.0) else np.float32(np.copysign(np.inf, x))


@njit(error_model="numpy")
def round_bf16(x):
    """The float32 that is nearest to x among the bfloat16 values, ties to even."""
    bits = np.int64(bits_of(x))
    return of_bits((bits + 32767 + ((bits >> 16) & 1)) & ~65535)


@njit
def clip(x, highest):
    """x within 0 and highest, integers."""
    return min(max(x, 0), highest)


# --- rows and tiles ---------------------------------------------------------------------------------


@njit(fastmath=FLAGS, error_model="numpy")
def multiply_add(a, b, c, depth, accumulate):
    """c (+)= a[:, :depth] @ b[:depth]; rows of b and c contiguous, a in any layout.

    Eight rows by one register of columns stay in registers over the whole depth: on a Zen 4 core
    108 GFLOP/s of a peak near 118, where a loop that keeps c in memory reaches 50.
    """
    rows, columns = c.shape
    if not accumulate:
        c[:] = np.float32(0.0)
    full_rows = rows // 8 * 8
    full_columns = columns // LANES * LANES
    for i in range(0, full_rows, 8):
        a0, a1, a2, a3, a4, a5, a6, a7 = (
            a[i],
            a[i + 1],
            a[i + 2],
            a[i + 3],
            a[i + 4],
            a[i + 5],
            a[i + 6],
            a[i + 7],
        )
        c0, c1, c2, c3, c4, c5, c6, c7 = (
            c[i],
            c[i + 1],
            c[i + 2],
            c[i + 3],
            c[i + 4],
            c[i + 5],
            c[i + 6],
            c[i + 7],
        )
        for j in range(0, full_columns, LANES):
            s0, s1, s2, s3 = load_vector(c0, j), load_vector(c1, j), load_vector(c2, j), load_vector(c3, j)
            s4, s5, s6, s7 = load_vector(c4, j), load_vector(c5, j), load_vector(c6, j), load_vector(c7, j)
            for t in range(depth):
                x = load_vector(b[t], j)
                s0, s1 = add_product(a0[t], x, s0), add_product(a1[t], x, s1)
                s2, s3 = add_product(a2[t], x, s2), add_product(a3[t], x, s3)
                s4, s5 = add_product(a4[t], x, s4), add_product(a5[t], x, s5)
                s6, s7 = add_product(a6[t], x, s6), add_product(a7[t], x, s7)
            store_vector(c0, j, s0)
            store_vector(c1, j, s1)
            store_vector(c2, j, s2)
            store_vector(c3, j, s3)
            store_vector(c4, j, s4)
            store_vector(c5, j, s5)
            store_vector(c6, j, s6)
            store_vector(c7, j, s7)
    for i in range(full_rows, rows):
        a0, c0 = a[i], c[i]
        for j in range(0, full_columns, LANES):
            s0 = load_vector(c0, j)
            for t in range(depth):
                s0 = add_product(a0[t], load_vector(b[t], j), s0)
            store_vector(c0, j, s0)
    if full_columns < columns:
        for i in range(rows):
            a0, c0 = a[i], c[i]
            for t in range(depth):
                x0, b0 = a0[t], b[t]
                for j in range(full_columns, columns):
                    c0[j] += x0 * b0[j]


@njit(fastmath=FLAGS, error_model="numpy")
def softmax_step(scores, live, m, l, alpha):  # noqa: E741
    """One step of the online softmax in place, over the first `live` columns.

    `alpha` becomes what m and l of before are worth now.
    """
    columns = scores.shape[1]
    for r in range(scores.shape[0]):
        row = scores[r]
        highest = m[r, 0]
        for c in range(live):
            highest = larger(highest, row[c])
        shift = choose(highest == NEG_INF, np.float32(0.0), highest)
        decay = exp(m[r, 0] - shift)
        total = np.float32(0.0)
        for c in range(live):
            x = exp(row[c] - shift)
            row[c] = x
            total += x
        for c in range(live, columns):
            row[c] = np.float32(0.0)
        l[r, 0] = l[r, 0] * decay + total
        m[r, 0] = highest
        alpha[r, 0] = decay


@njit(fastmath=FLAGS, error_model="numpy")
def scale_rows(tile, factor):
    """Each row of the tile times its factor; a factor of 1, the usual one after a few tiles, is free."""
    for r in range(tile.shape[0]):
        x, row = factor[r, 0], tile[r]
        if x != np.float32(1.0):
            for c in range(tile.shape[1]):
                row[c] *= x


@njit
def transpose(tile, target):
    """target = tile^T, block by block in registers."""
    rows, columns = tile.shape
    full_rows, full_columns = rows // LANES * LANES, columns // LANES * LANES
    for i in range(0, full_rows, LANES):
        for j in range(0, full_columns, LANES):
            transpose_block(tile, i, j, target)
    for r in range(rows):
        row = tile[r]
        for c in range(full_columns if r < full_rows else 0, columns):
            target[c, r] = row[c]
