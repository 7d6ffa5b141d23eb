#include <cuda_fp16.h>

#ifndef WGMMA
#define WGMMA 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int BM = 128;

#define ARGUMENTS                                                                     \
    const half* gq, const half* gk, const half* gv, half* go,                         \
    long long q_b, long long q_r, long long q_h,                                      \
    long long k_b, long long k_r, long long k_h,                                      \
    long long v_b, long long v_r, long long v_h,                                      \
    long long o_b, long long o_r, long long o_h,                                      \
    int batch, int heads, int group, int seq_q, int seq_k, float scale

__device__ __forceinline__ int imax(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ int imin(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ float neg_inf() { return __int_as_float((int)0xff800000u); }

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack(float a, float b) {
    half2 h = __floats2half2_rn(a, b);
    return *reinterpret_cast<u32*>(&h);
}

// Key tiles that every row of query tile t sees completely, and those that some row sees.
template <int BN>
__device__ __forceinline__ void loop_bounds(int t, int seq_q, int seq_k, int& full, int& tiles) {
    const int diff = seq_k - seq_q;
    full = imax(t * BM + diff + 1, 0) / BN;
    tiles = (imax(imin((t + 1) * BM, seq_q) + diff, 0) + BN - 1) / BN;
}

// One tile of ROWS rows from global to shared by 128 threads. Panels of 64 columns, rows of
// 128 bytes whose 16-byte pieces are permuted by the row modulo 8. Rows past the end are zero.
template <int ROWS, int D, bool ALIGNED>
__device__ __forceinline__ void load_tile(u32 tile, const half* src, long long stride,
                                          int first, int end, int tid) {
    const int r0 = tid >> 3, ch = tid & 7;
    const u32 dst = tile + r0 * 128 + ((ch ^ (r0 & 7)) << 4);
    src += ch * 8;
    const half* p = src + (long long)(first + r0) * stride;
    if constexpr (ALIGNED) {
#pragma unroll
        for (int i = 0; i < ROWS / 16; ++i) {
            const bool inside = first + r0 + i * 16 < end;
            const half* g = inside ? p : src;
            const int bytes = inside ? 16 : 0;
#pragma unroll
            for (int c = 0; c < D / 64; ++c) {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
                             :: "r"(dst + i * 2048 + c * ROWS * 128), "l"(g + c * 64), "r"(bytes)
                             : "memory");
            }
            p += 16 * stride;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS / 16; ++i) {
            const bool inside = first + r0 + i * 16 < end;
#pragma unroll 1
            for (int c = 0; c < D / 64; ++c) {
                u32 w[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    u32 lo = 0, hi = 0;
                    if (inside) {
                        lo = __half_as_ushort(p[c * 64 + 2 * e]);
                        hi = __half_as_ushort(p[c * 64 + 2 * e + 1]);
                    }
                    w[e] = lo | (hi << 16);
                }
                asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n"
                             :: "r"(dst + i * 2048 + c * ROWS * 128),
                                "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                             : "memory");
            }
            p += 16 * stride;
        }
    }
}

template <int N>
__device__ __forceinline__ void scale_scores(float (&S)[N][4], float c) {
#pragma unroll
    for (int p = 0; p < N; ++p)
#pragma unroll
        for (int e = 0; e < 4; ++e) S[p][e] *= c;
}

// limit: the last visible column of the thread's first row, counted from the thread's first column
template <int N>
__device__ __forceinline__ void apply_mask(float (&S)[N][4], int limit) {
#pragma unroll
    for (int p = 0; p < N; ++p)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (p * 8 + (e & 1) > limit + (e >> 1) * 8) S[p][e] = neg_inf();
        }
}

// One step of the online softmax in base 2; m holds the scaled maximum, l the thread's own sum.
template <int N>
__device__ __forceinline__ void online_softmax(float (&S)[N][4], float (&m)[2], float (&l)[2],
                                               float (&alpha)[2], float c) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float a = S[0][2 * r], b = S[0][2 * r + 1];
#pragma unroll
        for (int p = 1; p < N; ++p) {
            a = fmaxf(a, S[p][2 * r]);
            b = fmaxf(b, S[p][2 * r + 1]);
        }
        a = fmaxf(a, b);
        a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 1));
        a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 2));
        const float next = fmaxf(m[r], a * c);
        const float sub = next == neg_inf() ? 0.0f : next;
        alpha[r] = ex2(m[r] - sub);
        m[r] = next;
        float s0 = 0.0f, s1 = 0.0f;
#pragma unroll
        for (int p = 0; p < N; ++p) {
            S[p][2 * r] = ex2(fmaf(S[p][2 * r], c, -sub));
            S[p][2 * r + 1] = ex2(fmaf(S[p][2 * r + 1], c, -sub));
            s0 += S[p][2 * r];
            s1 += S[p][2 * r + 1];
        }
        l[r] = l[r] * alpha[r] + (s0 + s1);
    }
}

template <int N>
__device__ __forceinline__ void rescale(float (&O)[N][4], const float (&alpha)[2]) {
#pragma unroll
    for (int p = 0; p < N; ++p)
#pragma unroll
        for (int e = 0; e < 4; ++e) O[p][e] *= alpha[e >> 1];
}

// Normalise 16 rows of a warp and write those that exist. row: the thread's first row.
template <int N, bool ALIGNED>
__device__ __forceinline__ void store_rows(float (&O)[N][4], float (&l)[2], half* out,
                                           long long stride, int row, int seq_q, int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float s = l[r];
        s += __shfl_xor_sync(0xffffffffu, s, 1);
        s += __shfl_xor_sync(0xffffffffu, s, 2);
        const float inv = s > 0.0f ? 1.0f / s : 0.0f;
        const int at = row + 8 * r;
        if (at < seq_q) {
            half* o = out + (long long)at * stride + 2 * (lane & 3);
#pragma unroll
            for (int p = 0; p < N; ++p) {
                const float x = O[p][2 * r] * inv, y = O[p][2 * r + 1] * inv;
                if constexpr (ALIGNED) {
                    *reinterpret_cast<half2*>(o + p * 8) = __floats2half2_rn(x, y);
                } else {
                    o[p * 8] = __float2half_rn(x);
                    o[p * 8 + 1] = __float2half_rn(y);
                }
            }
        }
    }
}

#if WGMMA

constexpr int BN = 128;
constexpr int STAGES = 3;

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" :: "r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" :: "r"(bar) : "memory");
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred P1;\n"
        "LAB_WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n"
        "@P1 bra DONE;\n"
        "bra LAB_WAIT;\n"
        "DONE:\n"
        "}\n"
        :: "r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// The tile's copies of this thread count as arrived once they are complete.
template <bool ALIGNED>
__device__ __forceinline__ void signal_full(u32 bar) {
    if constexpr (ALIGNED) {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" :: "r"(bar) : "memory");
    } else {
        fence_proxy_async();
        mbar_arrive(bar);
    }
}

struct Ring {
    int s;
    u32 ph;
    __device__ __forceinline__ void next() {
        if (++s == STAGES) {
            s = 0;
            ph ^= 1u;
        }
    }
};

__device__ __forceinline__ u64 make_desc(u32 address, u32 leading, u32 stride) {
    return (u64)((address & 0x3ffffu) >> 4) | ((u64)(leading >> 4) << 16) |
           ((u64)(stride >> 4) << 32) | (1ull << 62);  // 128-byte swizzle
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" :: "n"(N) : "memory");
}

template <int N>
__device__ __forceinline__ void pin(float (&A)[N][4]) {
#pragma unroll
    for (int p = 0; p < N; ++p)
#pragma unroll
        for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(A[p][e]) :: "memory");
}
template <int N>
__device__ __forceinline__ void pin(u32 (&A)[N][4]) {
#pragma unroll
    for (int p = 0; p < N; ++p)
#pragma unroll
        for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(A[p][e]) :: "memory");
}

#define F4(A, i) "+f"(A[i][0]), "+f"(A[i][1]), "+f"(A[i][2]), "+f"(A[i][3])
#define F16(A, i) F4(A, i), F4(A, i + 1), F4(A, i + 2), F4(A, i + 3)

#define ACC32                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, "         \
    "%8, %9, %10, %11, %12, %13, %14, %15, "   \
    "%16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define ACC64                                  \
    ACC32 ", "                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, " \
    "%56, %57, %58, %59, %60, %61, %62, %63"

// D (64 x 128) = A B^T, both in shared memory, rows of the head dimension
__device__ __forceinline__ void wgmma_ss(float (&d)[16][4], u64 a, u64 b, int accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" ACC64 "}, %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : F16(d, 0), F16(d, 4), F16(d, 8), F16(d, 12)
        : "l"(a), "l"(b), "r"(accumulate));
}

// D (64 x 128) += A B, A in registers, B in shared memory as rows of keys
__device__ __forceinline__ void wgmma_rs(float (&d)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" ACC64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : F16(d, 0), F16(d, 4), F16(d, 8), F16(d, 12)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

// the same, 64 x 64
__device__ __forceinline__ void wgmma_rs(float (&d)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{" ACC32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : F16(d, 0), F16(d, 4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

template <int D>
__device__ __forceinline__ void product_qk(float (&S)[16][4], u64 dq, u64 dk) {
#pragma unroll
    for (int ks = 0; ks < D / 16; ++ks) {
        wgmma_ss(S, dq + (u64)((ks / 4) * (BM * 128 / 16) + (ks % 4) * 2),
                 dk + (u64)((ks / 4) * (BN * 128 / 16) + (ks % 4) * 2), ks != 0);
    }
}

template <int N>
__device__ __forceinline__ void product_pv(float (&O)[N][4], const u32 (&P)[8][4], u64 dv) {
#pragma unroll
    for (int ks = 0; ks < BN / 16; ++ks) wgmma_rs(O, P[ks], dv + (u64)(ks * (16 * 128 / 16)));
}

__device__ __forceinline__ void to_operand(u32 (&P)[8][4], const float (&S)[16][4]) {
#pragma unroll
    for (int ks = 0; ks < 8; ++ks) {
        P[ks][0] = pack(S[2 * ks][0], S[2 * ks][1]);
        P[ks][1] = pack(S[2 * ks][2], S[2 * ks][3]);
        P[ks][2] = pack(S[2 * ks + 1][0], S[2 * ks + 1][1]);
        P[ks][3] = pack(S[2 * ks + 1][2], S[2 * ks + 1][3]);
    }
}

// barriers, 8 bytes each
__device__ __forceinline__ u32 bar_q_full(u32 bars) { return bars; }
__device__ __forceinline__ u32 bar_q_empty(u32 bars) { return bars + 8; }
__device__ __forceinline__ u32 bar_k_full(u32 bars, int s) { return bars + 16 + 8 * s; }
__device__ __forceinline__ u32 bar_k_empty(u32 bars, int s) { return bars + 16 + 8 * (STAGES + s); }
__device__ __forceinline__ u32 bar_v_full(u32 bars, int s) { return bars + 16 + 8 * (2 * STAGES + s); }
__device__ __forceinline__ u32 bar_v_empty(u32 bars, int s) { return bars + 16 + 8 * (3 * STAGES + s); }

// Rounds from <= j < to: S = Q K_j^T and O += P V_{j-1} in flight together, then the softmax of S.
template <int D, bool MASKED, bool POS>
__device__ __forceinline__ void rounds(int from, int to, int tiles,
                                       float (&S)[16][4], float (&O)[D / 8][4], u32 (&P)[8][4],
                                       float (&m)[2], float (&l)[2], Ring& rk, Ring& rv,
                                       u64 dq, u64 dk, u64 dv, u32 bars, int cw, int lane,
                                       int limit, float c, float before) {
    constexpr u32 STEP = BN * D * 2 / 16;
#pragma unroll 1
    for (int j = from; j < to; ++j) {
        float alpha[2];
        mbar_wait(bar_k_full(bars, rk.s), rk.ph);
        mbar_wait(bar_v_full(bars, rv.s), rv.ph);
        fence_proxy_async();
        // the two warpgroups issue their products in turn
        asm volatile("bar.sync %0, 256;\n" :: "r"(1 + cw) : "memory");

        pin(S);
        pin(O);
        pin(P);
        wgmma_fence();
        product_qk<D>(S, dq, dk + (u64)(rk.s * STEP));
        wgmma_commit();
        wgmma_fence();
        product_pv(O, P, dv + (u64)(rv.s * STEP));
        wgmma_commit();
        asm volatile("bar.arrive %0, 256;\n" :: "r"(2 - cw) : "memory");

        wgmma_wait<1>();
        pin(S);
        if (lane == 0) {
            mbar_arrive(bar_k_empty(bars, rk.s));
            if (j == tiles - 1) mbar_arrive(bar_q_empty(bars));
        }
        if constexpr (!POS) scale_scores(S, before);
        if constexpr (MASKED) apply_mask(S, limit - j * BN);
        online_softmax(S, m, l, alpha, c);
        pin(S);

        wgmma_wait<0>();
        pin(O);
        pin(P);
        if (lane == 0) mbar_arrive(bar_v_empty(bars, rv.s));
        rescale(O, alpha);
        to_operand(P, S);
        rk.next();
        rv.next();
    }
}

template <int D, bool POS, bool ALIGNED>
__global__ void __launch_bounds__(384, 1) attention_wgmma(ARGUMENTS) {
    constexpr u32 Q_BYTES = BM * D * 2;
    constexpr u32 KV_BYTES = BN * D * 2;
    extern __shared__ __align__(1024) unsigned char smem[];
    const u32 base = ((u32)__cvta_generic_to_shared(smem) + 1023u) & ~1023u;
    const u32 sQ = base;
    const u32 sK = sQ + Q_BYTES;
    const u32 sV = sK + STAGES * KV_BYTES;
    const u32 bars = sV + STAGES * KV_BYTES;

    if (threadIdx.x == 0) {
        mbar_init(bar_q_full(bars), 128);
        mbar_init(bar_q_empty(bars), 8);
        for (int s = 0; s < STAGES; ++s) {
            mbar_init(bar_k_full(bars, s), 128);
            mbar_init(bar_k_empty(bars, s), 8);
            mbar_init(bar_v_full(bars, s), 128);
            mbar_init(bar_v_empty(bars, s), 8);
        }
        fence_proxy_async();
    }
    __syncthreads();

    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);
    const int T = (seq_q + BM - 1) / BM;
    const int pairs = (T + 1) / 2;
    const int items = pairs * heads * batch;
    Ring rk = {0, 0u}, rv = {0, 0u};
    u32 q_phase = 0;

    if (wg == 0) {
        // the copying warpgroup
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;\n");
        const int tid = threadIdx.x;
#pragma unroll 1
        for (int n = 0;; ++n) {
            const int item = (int)blockIdx.x + (n >> 1) * (int)gridDim.x;
            if (item >= items) break;
            const int pair = item % pairs;
            if ((n & 1) && 2 * pair == T - 1) continue;
            const int t = (n & 1) ? pair : T - 1 - pair;
            int full, tiles;
            loop_bounds<BN>(t, seq_q, seq_k, full, tiles);
            if (tiles == 0) continue;
            const int bh = item / pairs;
            const int h = bh % heads, b = bh / heads;
            const half* Kh = gk + b * k_b + (h / group) * k_h;
            const half* Vh = gv + b * v_b + (h / group) * v_h;

            mbar_wait(bar_q_empty(bars), q_phase ^ 1u);
            load_tile<BM, D, ALIGNED>(sQ, gq + b * q_b + h * q_h, q_r, t * BM, seq_q, tid);
            signal_full<ALIGNED>(bar_q_full(bars));
            q_phase ^= 1u;
#pragma unroll 1
            for (int j = 0; j <= tiles; ++j) {
                if (j < tiles) {
                    mbar_wait(bar_k_empty(bars, rk.s), rk.ph ^ 1u);
                    load_tile<BN, D, ALIGNED>(sK + rk.s * KV_BYTES, Kh, k_r, j * BN, seq_k, tid);
                    signal_full<ALIGNED>(bar_k_full(bars, rk.s));
                    rk.next();
                }
                if (j > 0) {
                    mbar_wait(bar_v_empty(bars, rv.s), rv.ph ^ 1u);
                    load_tile<BN, D, ALIGNED>(sV + rv.s * KV_BYTES, Vh, v_r, (j - 1) * BN, seq_k, tid);
                    signal_full<ALIGNED>(bar_v_full(bars, rv.s));
                    rv.next();
                }
            }
        }
        asm volatile("cp.async.wait_all;\n" ::: "memory");
    } else {
        // the computing warpgroups, 64 query rows each
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;\n");
        constexpr u32 STEP = KV_BYTES / 16;
        const int cw = wg - 1;
        const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
        const int row_in_tile = cw * 64 + warp * 16 + (lane >> 2);
        const float before = scale * 1.4426950408889634f;
        const float c = POS ? before : 1.0f;
        const u64 dq = make_desc(sQ + cw * 64 * 128, 16, 1024);
        const u64 dk = make_desc(sK, 16, 1024);
        const u64 dv = make_desc(sV, BN * 128, 1024);

        float S[16][4], O[D / 8][4], m[2], l[2];
        u32 P[8][4];
#pragma unroll
        for (int p = 0; p < 16; ++p)
#pragma unroll
            for (int e = 0; e < 4; ++e) S[p][e] = 0.0f;

        // warpgroup 0 issues first
        if (cw == 1) asm volatile("bar.arrive %0, 256;\n" :: "r"(1) : "memory");

#pragma unroll 1
        for (int n = 0;; ++n) {
            const int item = (int)blockIdx.x + (n >> 1) * (int)gridDim.x;
            if (item >= items) break;
            const int pair = item % pairs;
            if ((n & 1) && 2 * pair == T - 1) continue;
            const int t = (n & 1) ? pair : T - 1 - pair;
            int full, tiles;
            loop_bounds<BN>(t, seq_q, seq_k, full, tiles);
            const int bh = item / pairs;
            const int h = bh % heads, b = bh / heads;
            const int row = t * BM + row_in_tile;
            const int limit = row + seq_k - seq_q - 2 * (lane & 3);

#pragma unroll
            for (int p = 0; p < D / 8; ++p)
#pragma unroll
                for (int e = 0; e < 4; ++e) O[p][e] = 0.0f;
            m[0] = m[1] = neg_inf();
            l[0] = l[1] = 0.0f;

            if (tiles > 0) {
                // first key tile: scores and softmax
                float alpha[2];
                mbar_wait(bar_q_full(bars), q_phase);
                q_phase ^= 1u;
                mbar_wait(bar_k_full(bars, rk.s), rk.ph);
                fence_proxy_async();
                pin(S);
                wgmma_fence();
                product_qk<D>(S, dq, dk + (u64)(rk.s * STEP));
                wgmma_commit();
                wgmma_wait<0>();
                pin(S);
                if (lane == 0) {
                    mbar_arrive(bar_k_empty(bars, rk.s));
                    if (tiles == 1) mbar_arrive(bar_q_empty(bars));
                }
                rk.next();
                if constexpr (!POS) scale_scores(S, before);
                if (full == 0) apply_mask(S, limit);
                online_softmax(S, m, l, alpha, c);
                to_operand(P, S);

                // fully visible key tiles, then those on the diagonal
                rounds<D, false, POS>(1, full, tiles, S, O, P, m, l, rk, rv, dq, dk, dv, bars,
                                      cw, lane, limit, c, before);
                rounds<D, true, POS>(imax(full, 1), tiles, tiles, S, O, P, m, l, rk, rv, dq, dk, dv,
                                     bars, cw, lane, limit, c, before);

                // the last product
                mbar_wait(bar_v_full(bars, rv.s), rv.ph);
                fence_proxy_async();
                pin(O);
                pin(P);
                wgmma_fence();
                product_pv(O, P, dv + (u64)(rv.s * STEP));
                wgmma_commit();
                wgmma_wait<0>();
                pin(O);
                pin(P);
                if (lane == 0) mbar_arrive(bar_v_empty(bars, rv.s));
                rv.next();
            }
            store_rows<D / 8, ALIGNED>(O, l, go + b * o_b + h * o_h, o_r, row, seq_q, lane);
        }
        // take the last arrival of warpgroup 1
        if (cw == 0) asm volatile("bar.sync %0, 256;\n" :: "r"(1) : "memory");
    }
}

#else  // mma.sync

__device__ __forceinline__ u32 piece(u32 tile, int rows, int r, int c) {
    return tile + (u32)(((c >> 6) * rows + r) * 128) + (u32)((((c >> 3) & 7) ^ (r & 7)) << 4);
}

__device__ __forceinline__ void ldsm(u32 (&d)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void ldsm_t(u32 (&d)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void copies_done() {
    asm volatile("cp.async.wait_all;\n" ::: "memory");
    __syncthreads();
}

template <int D, bool POS, bool ALIGNED>
__global__ void __launch_bounds__(128) attention_mma(ARGUMENTS) {
    constexpr int BN = D == 64 ? 128 : 64;
    extern __shared__ __align__(1024) unsigned char smem[];
    const u32 sQ = ((u32)__cvta_generic_to_shared(smem) + 127u) & ~127u;
    const u32 sK = sQ + BM * D * 2;
    const u32 sV = sK + BN * D * 2;

    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const int t = (int)gridDim.x - 1 - (int)blockIdx.x;
    const int h = blockIdx.y, b = blockIdx.z;
    int full, tiles;
    loop_bounds<BN>(t, seq_q, seq_k, full, tiles);
    const half* Kh = gk + b * k_b + (h / group) * k_h;
    const half* Vh = gv + b * v_b + (h / group) * v_h;
    const float before = scale * 1.4426950408889634f;
    const float c = POS ? before : 1.0f;
    const int row = t * BM + warp * 32 + (lane >> 2);
    const int limit = row + seq_k - seq_q - 2 * (lane & 3);

    float O[2][D / 8][4], m[2][2], l[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int p = 0; p < D / 8; ++p)
#pragma unroll
            for (int e = 0; e < 4; ++e) O[i][p][e] = 0.0f;
        m[i][0] = m[i][1] = neg_inf();
        l[i][0] = l[i][1] = 0.0f;
    }

    if (tiles > 0) {
        load_tile<BM, D, ALIGNED>(sQ, gq + b * q_b + h * q_h, q_r, t * BM, seq_q, tid);
        load_tile<BN, D, ALIGNED>(sK, Kh, k_r, 0, seq_k, tid);
    }

#pragma unroll 1
    for (int j = 0; j < tiles; ++j) {
        copies_done();
        load_tile<BN, D, ALIGNED>(sV, Vh, v_r, j * BN, seq_k, tid);

        float S[2][BN / 8][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int p = 0; p < BN / 8; ++p)
#pragma unroll
                for (int e = 0; e < 4; ++e) S[i][p][e] = 0.0f;
#pragma unroll
        for (int ks = 0; ks < D / 16; ++ks) {
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                ldsm(a[i], piece(sQ, BM, warp * 32 + i * 16 + lane % 16, ks * 16 + 8 * (lane / 16)));
#pragma unroll
            for (int n = 0; n < BN / 16; ++n) {
                u32 w[4];
                ldsm(w, piece(sK, BN, n * 16 + lane / 16 * 8 + lane % 8, ks * 16 + 8 * (lane / 8 % 2)));
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    mma(S[i][2 * n], a[i], w[0], w[1]);
                    mma(S[i][2 * n + 1], a[i], w[2], w[3]);
                }
            }
        }

#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float alpha[2];
            if constexpr (!POS) scale_scores(S[i], before);
            if (j >= full) apply_mask(S[i], limit + i * 16 - j * BN);
            online_softmax(S[i], m[i], l[i], alpha, c);
            rescale(O[i], alpha);
        }

        copies_done();
        if (j + 1 < tiles) load_tile<BN, D, ALIGNED>(sK, Kh, k_r, (j + 1) * BN, seq_k, tid);
#pragma unroll
        for (int ks = 0; ks < BN / 16; ++ks) {
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                a[i][0] = pack(S[i][2 * ks][0], S[i][2 * ks][1]);
                a[i][1] = pack(S[i][2 * ks][2], S[i][2 * ks][3]);
                a[i][2] = pack(S[i][2 * ks + 1][0], S[i][2 * ks + 1][1]);
                a[i][3] = pack(S[i][2 * ks + 1][2], S[i][2 * ks + 1][3]);
            }
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 w[4];
                ldsm_t(w, piece(sV, BN, ks * 16 + lane % 16, n * 16 + 8 * (lane / 16)));
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    mma(O[i][2 * n], a[i], w[0], w[1]);
                    mma(O[i][2 * n + 1], a[i], w[2], w[3]);
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; ++i)
        store_rows<D / 8, ALIGNED>(O[i], l[i], go + b * o_b + h * o_h, o_r, row + i * 16, seq_q, lane);
}

#endif
