// Tiles of attention on CuTe's atoms: what the statements of an LLM-TL program become, from sm_75 on.
//
// The atoms are CuTe's (mma, ldmatrix, cp.async, Swizzle); which element lies where is written out here rather
// than left to CuTe's layout algebra, which took 15 times as long to compile for the same instructions.
//
// A block has WARPS warps; each owns BM / WARPS consecutive rows of every register tile, so that rows never
// leave their warp. Accumulators lie as mma leaves them: of a 16 x 8 piece a thread has elements 0, 1 in row
// lane / 4 and 2, 3 eight rows below, in columns 2 (lane % 4) and the next.
#pragma once

#include <cuda/std/limits>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/numeric/numeric_types.hpp>
#include <cute/swizzle.hpp>

namespace tile {

using cute::bfloat16_t;
using cute::half_t;
using cute::uint128_t;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr bool kAsync = true;
#else
constexpr bool kAsync = false;
#endif

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kInfinity = cuda::std::numeric_limits<float>::infinity();

// A truth value that is known at compile time where it is passed on.
template <bool B> struct Known {
    __device__ constexpr operator bool() const { return B; }
};

__host__ __device__ constexpr int padded(int n, int to = 16) { return (n + to - 1) / to * to; }

// The same number, of which the compiler knows nothing: what is computed from it in a loop is computed there,
// and not once before it to be kept in registers that the tiles need.
__device__ inline int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// The block's own index, read where it is asked for and not kept.
__device__ inline int block_x() { int i; asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(i)); return i; }
__device__ inline int block_y() { int i; asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(i)); return i; }
__device__ inline int block_z() { int i; asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(i)); return i; }

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int warp() { return threadIdx.x / 32; }

// Division that rounds down for negative numbers too; b > 0.
__device__ constexpr int floor_div(int a, int b) { return a / b - (a % b < 0); }
__device__ constexpr int ceil_div(int a, int b) { return floor_div(a + b - 1, b); }
__device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__device__ constexpr int most(int a, int b) { return a > b ? a : b; }

// --- numbers ---------------------------------------------------------------------------------------------

__device__ inline float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline float log2_(float x) { return __log2f(x); }
// 1 / x, and 0 for 0: a row that has seen no key gives zeros.
__device__ inline float inverse(float x) { return x == 0.f ? 0.f : __fdividef(1.f, x); }
// What may be taken away: a row that has seen no key has maximum -inf, and -inf - -inf stays -inf.
__device__ inline float finite(float x) { return x == -kInfinity ? 0.f : x; }
__device__ inline float tanh_(float x) { return 1.f - __fdividef(2.f, exp2_(x * (2.f * kLog2E)) + 1.f); }
__device__ inline float sigmoid(float x) { return __fdividef(1.f, 1.f + exp2_(-x * kLog2E)); }
template <class T> __device__ inline float rounded(float x) { return float(T(x)); }

// Two neighbours of a row as one operand register.
template <class T> __device__ inline uint32_t packed(float low, float high);
template <> __device__ inline uint32_t packed<half_t>(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<uint32_t&>(both);
}
template <> __device__ inline uint32_t packed<bfloat16_t>(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<uint32_t&>(both);
}

// --- tiles in registers ----------------------------------------------------------------------------------

// M pieces of 16 rows, N of 8 columns; modes as CuTe orders them: (MMA_C, MMA_M, MMA_N).
template <int M_, int N_> struct Accumulator {
    static constexpr int M = M_, N = N_;
    float x[M][N][4];
    __device__ float& operator()(int m, int n, int e) { return x[m][n][e]; }
    __device__ float operator()(int m, int n, int e) const { return x[m][n][e]; }
};

// One number a row; the four threads that share a row hold the same.
template <int M_> struct Rows {
    static constexpr int M = M_;
    float x[M][2];
    __device__ float& operator()(int m, int h) { return x[m][h]; }
    __device__ float operator()(int m, int h) const { return x[m][h]; }
};

// The first operand of a product in registers: (MMA_A, MMA_M, MMA_K), sixteen columns a step.
template <class T, int M_, int K_> struct Operand {
    static constexpr int M = M_;
    uint32_t x[M][K_][4];
    __device__ void fragment(uint32_t (&a)[M][4], int k) const {
        CUTE_UNROLL
        for (int m = 0; m < M; ++m) {
            CUTE_UNROLL
            for (int i = 0; i < 4; ++i) a[m][i] = x[m][k / 16][i];
        }
    }
};

template <int M, int N, class F> __device__ inline void each(Accumulator<M, N> const&, F const& f) {
    CUTE_UNROLL
    for (int m = 0; m < M; ++m) {
        CUTE_UNROLL
        for (int n = 0; n < N; ++n) {
            CUTE_UNROLL
            for (int e = 0; e < 4; ++e) f(m, n, e);
        }
    }
}

template <int M, class F> __device__ inline void each(Rows<M> const&, F const& f) {
    CUTE_UNROLL
    for (int m = 0; m < M; ++m) {
        f(m, 0);
        f(m, 1);
    }
}

// Over this thread's elements of one row: f(n, e).
template <int N, class F> __device__ inline void along_row(int h, F const& f) {
    CUTE_UNROLL
    for (int n = 0; n < N; ++n) {
        f(n, 2 * h);
        f(n, 2 * h + 1);
    }
}

// Where an element of a tile lies in it: from the thread's first row (M pieces of 16 a warp) and column on.
template <int M> __device__ inline int first_row() { return warp() * M * 16 + lane() / 4; }
__device__ inline int first_col() { return lane() % 4 * 2; }
__device__ constexpr int row_of(int m, int h) { return m * 16 + h * 8; }
__device__ constexpr int col_of(int n, int c) { return n * 8 + c; }

// An accumulator becomes the first operand of the next product: no element leaves its thread. Two pieces of
// eight columns make a step of sixteen.
template <class T, int M, int N> __device__ inline Operand<T, M, N / 2> reshape(Accumulator<M, N> const& c) {
    Operand<T, M, N / 2> a;
    CUTE_UNROLL
    for (int m = 0; m < M; ++m) {
        CUTE_UNROLL
        for (int k = 0; k < N / 2; ++k) {
            CUTE_UNROLL
            for (int i = 0; i < 4; ++i) {
                const float* from = c.x[m][2 * k + i / 2] + i % 2 * 2;
                a.x[m][k][i] = packed<T>(from[0], from[1]);
            }
        }
    }
    return a;
}

// --- reductions ------------------------------------------------------------------------------------------

__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// One step of the online softmax; the scores stand for `s` times `factor`. Gives what earlier results shrink by.
// PARTIAL: `l` is the sum over this thread's columns alone, to be finished by quad_sum.
template <bool PARTIAL, int M, int N>
__device__ inline Rows<M> softmax_step(Accumulator<M, N>& s, Rows<M>& m_, Rows<M>& l, float factor) {
    Rows<M> decay;
    const float log2 = factor * kLog2E;
    each(m_, [&](int m, int h) {
        float top = s(m, 0, 2 * h), sum = 0.f;
        along_row<N>(h, [&](int n, int e) { top = fmaxf(top, s(m, n, e)); });
        const float next = fmaxf(m_(m, h), quad_max(top) * factor);
        const float taken = finite(next) * kLog2E;
        decay(m, h) = exp2_(m_(m, h) * kLog2E - taken);
        along_row<N>(h, [&](int n, int e) {
            s(m, n, e) = exp2_(s(m, n, e) * log2 - taken);
            sum += s(m, n, e);
        });
        l(m, h) = l(m, h) * decay(m, h) + (PARTIAL ? sum : quad_sum(sum));
        m_(m, h) = next;
    });
    return decay;
}

template <int M, int N> __device__ inline void rescale(Accumulator<M, N>& o, Rows<M> const& by) {
    each(o, [&](int m, int n, int e) { o(m, n, e) *= by(m, e / 2); });
}
template <int M> __device__ inline void rescale(Rows<M>& o, Rows<M> const& by) {
    each(o, [&](int m, int h) { o(m, h) *= by(m, h); });
}
template <int M, int N> __device__ inline void fill(Accumulator<M, N>& t, float value) {
    each(t, [&](int m, int n, int e) { t(m, n, e) = value; });
}
template <int M> __device__ inline void fill(Rows<M>& t, float value) {
    each(t, [&](int m, int h) { t(m, h) = value; });
}

// --- tiles in shared memory ------------------------------------------------------------------------------

// ROWS x COLS elements in panels of 64 columns, each row of a panel 128 bytes; 16-byte pieces are permuted
// within their row by Swizzle<3, 3, 3>, so that the eight rows of an ldmatrix lie in different banks.
template <class T, int ROWS_, int COLS_> struct Shared {
    using Element = T;
    static constexpr int ROWS = ROWS_, COLS = COLS_;
    static constexpr int elements = ROWS * padded(COLS, 64);
    T* data;

    __device__ static int at(int row, int col) {
        return cute::Swizzle<3, 3, 3>{}((col / 64 * ROWS + row) * 64 + col % 64);
    }
    __device__ T& operator()(int row, int col) const { return data[at(row, col)]; }
    // Of the piece of eight columns from col on, with `row` a multiple of 8 and `col` of 16, both known at
    // compile time; the thread's own part of the address has been settled before.
    __device__ uint128_t& piece(int own, int own_col, int row, int col) const {
        // the thread's part first: what is known at compile time then goes into the instruction
        T* start = data + (own | ((col % 64) ^ own_col));
        return *reinterpret_cast<uint128_t*>(start + (col / 64 * ROWS + row) * 64);
    }
};

// The first operand from shared memory, of this warp's rows.
template <class S, int M_> struct SharedOperand {
    static constexpr int M = M_;
    S tile;
    int own, own_col;
    __device__ explicit SharedOperand(S s) : tile(s) {
        own = (warp() * M * 16 + lane() % 16) * 64;
        own_col = opaque((lane() / 16 * 8) ^ (lane() % 8 * 8));
    }
    __device__ void fragment(uint32_t (&a)[M][4], int k) const {
        CUTE_UNROLL
        for (int m = 0; m < M; ++m)
            cute::SM75_U32x4_LDSM_N::copy(tile.piece(own, own_col, m * 16, k), a[m][0], a[m][1], a[m][2], a[m][3]);
    }
};
template <int M, class T, int R, int C> __device__ inline SharedOperand<Shared<T, R, C>, M> operand(Shared<T, R, C> s) {
    return SharedOperand<Shared<T, R, C>, M>(s);
}

// Between registers and shared memory, element by element; the caller puts a barrier where one is due.
template <class T, int R, int C, int M, int N> __device__ inline void take(Accumulator<M, N>& c, Shared<T, R, C> from) {
    const int row = first_row<M>(), col = first_col();
    each(c, [&](int m, int n, int e) { c(m, n, e) = float(from(row + row_of(m, e / 2), col + col_of(n, e % 2))); });
}
template <class T, int R, int C, int M, int N> __device__ inline void put(Shared<T, R, C> to, Accumulator<M, N> const& c) {
    const int row = first_row<M>(), col = first_col();
    each(c, [&](int m, int n, int e) { to(row + row_of(m, e / 2), col + col_of(n, e % 2)) = T(c(m, n, e)); });
}

// --- products --------------------------------------------------------------------------------------------

template <class T> __device__ inline void mma(float (&c)[4], uint32_t (&a)[4], uint32_t& b0, uint32_t& b1);
template <> __device__ inline void mma<half_t>(float (&c)[4], uint32_t (&a)[4], uint32_t& b0, uint32_t& b1) {
    if constexpr (kAsync) {
        cute::SM80_16x8x16_F32F16F16F32_TN::fma(
            c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2], c[3]);
    } else {
        using Mma = cute::SM75_16x8x8_F32F16F16F32_TN;
        Mma::fma(c[0], c[1], c[2], c[3], a[0], a[1], b0, c[0], c[1], c[2], c[3]);
        Mma::fma(c[0], c[1], c[2], c[3], a[2], a[3], b1, c[0], c[1], c[2], c[3]);
    }
}
template <> __device__ inline void mma<bfloat16_t>(float (&c)[4], uint32_t (&a)[4], uint32_t& b0, uint32_t& b1) {
    cute::SM80_16x8x16_F32BF16BF16F32_TN::fma(
        c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2], c[3]);
}

// c += a b^T: columns [FROM, TO) of a with as many of b from B_FROM on; the rows of b are the columns of c.
template <int FROM, int TO, int B_FROM, int M, int N, class A, class S>
__device__ inline void gemm_nt(Accumulator<M, N>& c, A const& a, S const& b) {
    static_assert(FROM % 16 == 0 && TO % 16 == 0 && B_FROM % 16 == 0, "columns of an operand come in sixteens");
    const int own = (lane() / 16 * 8 + lane() % 8) * 64, own_col = opaque((lane() / 8 % 2 * 8) ^ (lane() % 8 * 8));
    CUTE_UNROLL
    for (int k = FROM; k < TO; k += 16) {
        uint32_t fa[M][4];
        a.fragment(fa, k);
        uint32_t fb[2][4];
        auto bring = [&](uint32_t(&f)[4], int n) {
            cute::SM75_U32x4_LDSM_N::copy(b.piece(own, own_col, n * 16, k - FROM + B_FROM), f[0], f[1], f[2], f[3]);
        };
        bring(fb[0], 0);
        CUTE_UNROLL
        for (int n = 0; n < N / 2; ++n) {
            if (n + 1 < N / 2) bring(fb[(n + 1) % 2], n + 1);
            uint32_t(&f)[4] = fb[n % 2];
            CUTE_UNROLL
            for (int m = 0; m < M; ++m) {
                mma<typename S::Element>(c.x[m][2 * n], fa[m], f[0], f[1]);
                mma<typename S::Element>(c.x[m][2 * n + 1], fa[m], f[2], f[3]);
            }
        }
    }
}

// c += a b; the columns of b, from FROM on, are the columns of c.
template <int FROM, int M, int N, class A, class S>
__device__ inline void gemm_nn(Accumulator<M, N>& c, A const& a, S const& b) {
    static_assert(FROM % 16 == 0 && S::ROWS % 16 == 0, "operands come in sixteens");
    const int own = lane() % 16 * 64, own_col = opaque((lane() / 16 * 8) ^ (lane() % 8 * 8));
    CUTE_UNROLL
    for (int k = 0; k < S::ROWS; k += 16) {
        uint32_t fa[M][4];
        a.fragment(fa, k);
        uint32_t fb[2][4];
        auto bring = [&](uint32_t(&f)[4], int n) {
            cute::SM75_U16x8_LDSM_T::copy(b.piece(own, own_col, k, FROM + n * 16), f[0], f[1], f[2], f[3]);
        };
        bring(fb[0], 0);
        CUTE_UNROLL
        for (int n = 0; n < N / 2; ++n) {
            if (n + 1 < N / 2) bring(fb[(n + 1) % 2], n + 1);
            uint32_t(&f)[4] = fb[n % 2];
            CUTE_UNROLL
            for (int m = 0; m < M; ++m) {
                mma<typename S::Element>(c.x[m][2 * n], fa[m], f[0], f[1]);
                mma<typename S::Element>(c.x[m][2 * n + 1], fa[m], f[2], f[3]);
            }
        }
    }
}

// --- device memory ---------------------------------------------------------------------------------------

// Rows and columns of a matrix in device memory, its last axis contiguous.
template <class T> struct Matrix {
    T* data;
    int stride;  // elements from a row to the next
    int rows, cols;
    __device__ T* row(int r) const { return data + (long long)r * stride; }
};
template <class T> __device__ inline Matrix<T> matrix(T* data, int stride, int rows, int cols) {
    return {data, stride, rows, cols};
}

// Begin to bring the rows from `row` on and the columns from `col` on to shared memory, zeros for what lies
// outside. ALIGNED: rows begin at multiples of 16 bytes and have multiples of 8 elements.
template <bool ALIGNED, int THREADS, class T, int ROWS, int COLS>
__device__ inline void fetch(Shared<T, ROWS, COLS> to, Matrix<const T> from, int row, int col = 0) {
    constexpr int AT_ONCE = THREADS / 8, PASSES = (ROWS + AT_ONCE - 1) / AT_ONCE, PANELS = padded(COLS, 64) / 64;
    const int own = threadIdx.x / 8, piece = threadIdx.x % 8 * 8;
    if constexpr (!ALIGNED) {
        for (int i = threadIdx.x; i < ROWS * padded(COLS); i += THREADS) {
            const int r = i / padded(COLS), c = i % padded(COLS);
            const bool inside = row + r >= 0 && row + r < from.rows && c < COLS && col + c < from.cols;
            to(r, c) = inside ? from.row(row + r)[col + c] : T(0.f);
        }
        return;
    }
    const T* source = from.row(row + own) + col + piece;
    T* target = to.data + (own * 64 | (piece ^ own % 8 * 8));
    uint128_t kept[PASSES][PANELS];
    CUTE_UNROLL
    for (int i = 0; i < PASSES; ++i) {
        const int r = own + i * AT_ONCE;
        const bool here = row + r >= 0 && row + r < from.rows;
        CUTE_UNROLL
        for (int p = 0; p < PANELS; ++p) {
            if ((ROWS % AT_ONCE != 0 && r >= ROWS) || (padded(COLS) % 64 != 0 && p * 64 + piece >= padded(COLS))) break;
            const bool inside = here && (p * 64 + piece < COLS) && col + p * 64 + piece < from.cols;
            auto& s = *reinterpret_cast<const uint128_t*>(source + p * 64);
            if constexpr (kAsync) {
                auto& t = *reinterpret_cast<uint128_t*>(target + (p * ROWS + i * AT_ONCE) * 64);
                cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>::copy(s, t, inside);
            } else {
                kept[i][p] = inside ? s : uint128_t{};
            }
        }
        source += AT_ONCE * from.stride;
    }
    if constexpr (!kAsync) {
        CUTE_UNROLL
        for (int i = 0; i < PASSES; ++i) {
            CUTE_UNROLL
            for (int p = 0; p < PANELS; ++p) {
                if ((ROWS % AT_ONCE != 0 && own + i * AT_ONCE >= ROWS) || p * 64 + piece >= padded(COLS)) break;
                *reinterpret_cast<uint128_t*>(target + (p * ROWS + i * AT_ONCE) * 64) = kept[i][p];
            }
        }
    }
}

// What was begun since the last commit belongs together; all but the last PENDING such groups have arrived
// for the whole block after `arrived`, which is a barrier too.
__device__ inline void commit() { cute::cp_async_fence(); }
template <int PENDING> __device__ inline void arrived() {
    cute::cp_async_wait<PENDING>();
    __syncthreads();
}

// Among the four threads of a row: thread t gets x[t] of each, in their order.
__device__ inline void transpose(uint32_t (&x)[4]) {
    CUTE_UNROLL
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = lane() & bit;
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + bit], bit);
            (upper ? x[i] : x[i + bit]) = got;
        }
    }
}

// A register tile to device memory, rounded; nothing outside the matrix. Four threads of a row trade pieces so
// that each writes sixteen bytes.
template <bool ALIGNED, class T, int M, int N>
__device__ inline void store(Matrix<T> to, Accumulator<M, N> const& c, int row, int col = 0) {
    CUTE_UNROLL
    for (int m = 0; m < M; ++m) {
        CUTE_UNROLL
        for (int h = 0; h < 2; ++h) {
            const int r = row + first_row<M>() + row_of(m, h);
            const bool inside = r >= 0 && r < to.rows;
            T* line = to.row(r) + col;
            if constexpr (ALIGNED && sizeof(T) == 2 && N % 4 == 0) {
                CUTE_UNROLL
                for (int n = 0; n < N; n += 4) {
                    uint32_t x[4];
                    CUTE_UNROLL
                    for (int i = 0; i < 4; ++i) x[i] = packed<T>(c(m, n + i, 2 * h), c(m, n + i, 2 * h + 1));
                    transpose(x);
                    const int at = (n + lane() % 4) * 8;
                    if (inside && col + at < to.cols) *reinterpret_cast<uint4*>(line + at) = {x[0], x[1], x[2], x[3]};
                }
            } else {
                CUTE_UNROLL
                for (int n = 0; n < N; ++n) {
                    CUTE_UNROLL
                    for (int e = 0; e < 2; ++e) {
                        const int at = first_col() + col_of(n, e);
                        if (inside && col + at < to.cols) line[at] = T(c(m, n, 2 * h + e));
                    }
                }
            }
        }
    }
}

// One number a row to a vector in device memory, and from one.
template <class T, int M> __device__ inline void store(Matrix<T> to, Rows<M> const& v, int row) {
    const int first = row + first_row<M>();
    each(v, [&](int m, int h) {
        const int r = first + row_of(m, h);
        if (lane() % 4 == 0 && r >= 0 && r < to.rows) *to.row(r) = T(v(m, h));
    });
}
template <class T, int M> __device__ inline void read(Rows<M>& v, Matrix<T> from, int row, float pad) {
    const int first = row + first_row<M>();
    each(v, [&](int m, int h) {
        const int r = first + row_of(m, h);
        v(m, h) = r >= 0 && r < from.rows ? float(*from.row(r)) : pad;
    });
}
// A tile from device memory to registers, and from shared memory to device memory.
template <class T, int M, int N>
__device__ inline void read(Accumulator<M, N>& c, Matrix<T> from, int row, int col, float pad) {
    const int first = row + first_row<M>(), across = col + first_col();
    each(c, [&](int m, int n, int e) {
        const int r = first + row_of(m, e / 2), at = across + col_of(n, e % 2);
        c(m, n, e) = r >= 0 && r < from.rows && at < from.cols ? float(from.row(r)[at]) : pad;
    });
}
template <int THREADS, class T, int R, int C>
__device__ inline void store(Matrix<T> to, Shared<T, R, C> from, int row, int col) {
    for (int i = threadIdx.x; i < R * C; i += THREADS) {
        const int r = i / C, c = i % C;
        if (row + r >= 0 && row + r < to.rows && col + c < to.cols) to.row(row + r)[col + c] = from(r, c);
    }
}

}  // namespace tile
