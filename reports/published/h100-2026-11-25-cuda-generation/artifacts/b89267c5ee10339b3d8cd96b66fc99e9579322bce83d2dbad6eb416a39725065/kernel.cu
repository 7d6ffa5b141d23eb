#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Tiles: BM x 128 queries, BN x 128 keys and values. Element (r, c) of a tile of
// R rows lies at byte (c / 64) * R * 128 + r * 128 + (((c % 64) / 8) ^ (r % 8)) * 16 + (c % 8) * 2,
// which is the 128-byte swizzle of wgmma (tiles are aligned to 1024 bytes).
#define BM 128
#define BN 128
#define TILE_BYTES 32768
#define HALF_BYTES 16384  // one 64-column half of a tile of 128 rows
#define NEG_INF __int_as_float(0xff800000)

// ---------------------------------------------------------------- barriers

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(bar) : "memory");
}

__device__ __forceinline__ bool mbar_try(u32 bar, u32 parity) {
    u32 ok;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(ok)
        : "r"(bar), "r"(parity)
        : "memory");
    return ok != 0;
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    while (!mbar_try(bar, parity)) {
    }
}

__device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// ---------------------------------------------------------------- copies

__device__ __forceinline__ void cp_async16(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_arrive(u32 bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void cp_async_wait_all() {
    asm volatile("cp.async.wait_all;\n" ::: "memory");
}

__device__ __forceinline__ void st_shared(u32 dst, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(dst), "r"(x) : "memory");
}

__device__ __forceinline__ void st_shared4(u32 dst, u32 x, u32 y, u32 z, u32 w) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(dst), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}

__device__ __forceinline__ uint4 ld_shared4(u32 src) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(src)
                 : "memory");
    return x;
}

// COUNT rows, eight apart, of one 16-byte column piece; `base` points at row 0 of that piece.
template <int COUNT, bool ALIGNED>
__device__ __forceinline__ void load_rows(u32 dst, const half* base, i64 stride, int row, int rows) {
    if constexpr (ALIGNED) {
        const half* src = base + (i64)row * stride;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const bool inside = row + 8 * i < rows;
            cp_async16(dst + i * 1024, inside ? src : base, inside ? 16 : 0);
            src += 8 * stride;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < COUNT; ++i) {
            u32 w[4] = {0u, 0u, 0u, 0u};
            if (row + 8 * i < rows) {
                const unsigned short* src =
                    reinterpret_cast<const unsigned short*>(base + (i64)(row + 8 * i) * stride);
#pragma unroll
                for (int x = 0; x < 4; ++x) {
                    w[x] = (u32)src[2 * x] | ((u32)src[2 * x + 1] << 16);
                }
            }
            st_shared4(dst + i * 1024, w[0], w[1], w[2], w[3]);
        }
    }
}

// ---------------------------------------------------------------- wgmma

#define ACC64                                            \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "                  \
    "%8, %9, %10, %11, %12, %13, %14, %15, "             \
    "%16, %17, %18, %19, %20, %21, %22, %23, "           \
    "%24, %25, %26, %27, %28, %29, %30, %31, "           \
    "%32, %33, %34, %35, %36, %37, %38, %39, "           \
    "%40, %41, %42, %43, %44, %45, %46, %47, "           \
    "%48, %49, %50, %51, %52, %53, %54, %55, "           \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

#define OUT4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define OUT16(d, i) OUT4(d, i), OUT4(d, (i) + 4), OUT4(d, (i) + 8), OUT4(d, (i) + 12)
#define OUT64(d) OUT16(d, 0), OUT16(d, 16), OUT16(d, 32), OUT16(d, 48)

// D (64 x 128) = or += A (64 x 16, shared, K-major) * B (16 x 128, shared, K-major)
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 a, u64 b, int accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC64
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : OUT64(d)
        : "l"(a), "l"(b), "r"(accumulate));
}

// D (64 x 128) += A (64 x 16, registers) * B (16 x 128, shared, N-major)
__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : OUT64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1));
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}

// Keeps the compiler from moving uses of these registers across this point.
__device__ __forceinline__ void pin(float (&d)[64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ __forceinline__ void pin(u32 (&d)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// Shared-memory descriptor, 128-byte swizzle; offsets in bytes.
__device__ __forceinline__ u64 make_desc(u32 addr, u32 leading, u32 stride) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)((leading & 0x3FFFFu) >> 4) << 16) |
           ((u64)((stride & 0x3FFFFu) >> 4) << 32) | ((u64)1 << 62);
}

__device__ __forceinline__ void gemm_qk(float (&S)[64], u64 dq, u64 dk) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const u64 step = (u64)((k / 4) * (HALF_BYTES >> 4) + (k % 4) * 2);
        wgmma_ss(S, dq + step, dk + step, k != 0);
    }
}

__device__ __forceinline__ void gemm_pv(float (&O)[64], u32 (&P)[32], u64 dv) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        wgmma_rs(O, P[4 * k], P[4 * k + 1], P[4 * k + 2], P[4 * k + 3], dv + (u64)(k * (2048 >> 4)));
    }
}

// ---------------------------------------------------------------- softmax

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// r0, r1: last visible column of the thread's two rows, counted from the thread's first column
__device__ __forceinline__ void apply_mask(float (&S)[64], int r0, int r1) {
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            if (8 * n + e > r0) S[4 * n + e] = NEG_INF;
            if (8 * n + e > r1) S[4 * n + 2 + e] = NEG_INF;
        }
    }
}

// One step of the online softmax in base 2. GUARD: rows without a visible key are possible.
template <bool GUARD>
__device__ __forceinline__ void softmax(float (&S)[64], float& m0, float& m1, float& l0, float& l1,
                                        float c, float& a0, float& a1) {
    float x0 = m0, y0 = m0, x1 = m1, y1 = m1;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        x0 = fmaxf(x0, S[4 * n]);
        y0 = fmaxf(y0, S[4 * n + 1]);
        x1 = fmaxf(x1, S[4 * n + 2]);
        y1 = fmaxf(y1, S[4 * n + 3]);
    }
    x0 = fmaxf(x0, y0);
    x1 = fmaxf(x1, y1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));

    float ms0 = __fmul_rn(x0, c), ms1 = __fmul_rn(x1, c);
    if constexpr (GUARD) {
        ms0 = x0 == NEG_INF ? 0.0f : ms0;
        ms1 = x1 == NEG_INF ? 0.0f : ms1;
    }
    // the same rounded m * c as in the step before: no error enters through the rescaling
    a0 = ex2(__fsub_rn(__fmul_rn(m0, c), ms0));
    a1 = ex2(__fsub_rn(__fmul_rn(m1, c), ms1));
    m0 = x0;
    m1 = x1;

    float s0 = 0.0f, t0 = 0.0f, s1 = 0.0f, t1 = 0.0f;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        S[4 * n] = ex2(fmaf(S[4 * n], c, -ms0));
        S[4 * n + 1] = ex2(fmaf(S[4 * n + 1], c, -ms0));
        S[4 * n + 2] = ex2(fmaf(S[4 * n + 2], c, -ms1));
        S[4 * n + 3] = ex2(fmaf(S[4 * n + 3], c, -ms1));
        s0 += S[4 * n];
        t0 += S[4 * n + 1];
        s1 += S[4 * n + 2];
        t1 += S[4 * n + 3];
    }
    l0 = fmaf(l0, a0, s0 + t0);
    l1 = fmaf(l1, a1, s1 + t1);
}

__device__ __forceinline__ u32 pack(float x, float y) {
    half2 h = __floats2half2_rn(x, y);
    return *reinterpret_cast<u32*>(&h);
}

__device__ __forceinline__ void pack_p(u32 (&P)[32], const float (&S)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) P[i] = pack(S[2 * i], S[2 * i + 1]);
}

// ---------------------------------------------------------------- one round

struct Ring {
    u32 full_k, full_v, empty_k, empty_v;  // two barriers of 8 bytes each
};

// S = Q K_j^T is issued together with O += P V_(j-1); the softmax of S runs behind the latter.
template <bool MASK, bool POSITIVE>
__device__ __forceinline__ void round_step(float (&S)[64], float (&O)[64], u32 (&P)[32], float& m0,
                                           float& m1, float& l0, float& l1, float c, float sign,
                                           int j, bool signal, int cw, int lane, int lim0, int lim1,
                                           u64 dq, u64 dk, u64 dv, const Ring& ring) {
    const int s = j & 1;
    const int ps = s ^ 1;
    mbar_wait(ring.full_k + 8 * s, (j >> 1) & 1);
    mbar_wait(ring.full_v + 8 * ps, ((j - 1) >> 1) & 1);
    fence_async();
    bar_sync(1 + cw, 256);  // this warpgroup's turn

    pin(S);
    pin(O);
    pin(P);
    wgmma_fence();
    gemm_qk(S, dq, dk + (u64)(s * (TILE_BYTES >> 4)));
    wgmma_commit();
    gemm_pv(O, P, dv + (u64)(ps * (TILE_BYTES >> 4)));
    wgmma_commit();
    if (signal) bar_arrive(2 - cw, 256);  // the other's turn

    wgmma_wait<1>();
    pin(S);
    if (lane == 0) mbar_arrive(ring.empty_k + 8 * s);

    if constexpr (!POSITIVE) {
#pragma unroll
        for (int i = 0; i < 64; ++i) S[i] *= sign;
    }
    if constexpr (MASK) {
        const int col = j * BN + 2 * (lane & 3);
        apply_mask(S, lim0 - col, lim1 - col);
    }
    float a0, a1;
    softmax<MASK>(S, m0, m1, l0, l1, c, a0, a1);

    wgmma_wait<0>();
    pin(O);
    pin(P);
    if (lane == 0) mbar_arrive(ring.empty_v + 8 * ps);
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        O[4 * n] *= a0;
        O[4 * n + 1] *= a0;
        O[4 * n + 2] *= a1;
        O[4 * n + 3] *= a1;
    }
    pack_p(P, S);
}

// ---------------------------------------------------------------- kernel

// ALIGNED: pointers and strides are multiples of 16 bytes. POSITIVE: scale > 0.
template <bool ALIGNED, bool POSITIVE>
__global__ void __launch_bounds__(384, 1)
    causal_gqa(const half* q, const half* k, const half* v, half* o, 
               i64 q_b, i64 q_s, i64 q_h, i64 k_b, i64 k_s, i64 k_h,
               i64 v_b, i64 v_s, i64 v_h, i64 o_b, i64 o_s, i64 o_h,
               int seq_q, int seq_k, int group, float scale) {
    extern __shared__ unsigned char shared_raw[];
    const u32 raw = (u32)__cvta_generic_to_shared(shared_raw);
    const u32 sQ = (raw + 1023u) & ~1023u;
    const u32 sK = sQ + TILE_BYTES;
    const u32 sV = sK + 2 * TILE_BYTES;
    const u32 bars = sV + 2 * TILE_BYTES;
    Ring ring;
    ring.full_k = bars;
    ring.full_v = bars + 16;
    ring.empty_k = bars + 32;
    ring.empty_v = bars + 48;

    const int tid = threadIdx.x;
    const int wg = __shfl_sync(0xffffffffu, tid / 128, 0);
    const int wtid = tid % 128;

    const int t = (int)gridDim.x - 1 - (int)blockIdx.x;
    const int h = blockIdx.y;
    const int b = blockIdx.z;
    const int g = h / group;

    const int shift = seq_k - seq_q;
    const int reach = max(0, min(seq_q, (t + 1) * BM) + shift);
    const int tiles = (reach + BN - 1) / BN;
    const int full = max(0, t * BM + shift + 1) / BN;

    if (tid == 0) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            mbar_init(ring.full_k + 8 * s, 128);
            mbar_init(ring.full_v + 8 * s, 128);
            mbar_init(ring.empty_k + 8 * s, 8);
            mbar_init(ring.empty_v + 8 * s, 8);
        }
        fence_async();
    }
    __syncthreads();

    // a thread's place in a copy: 16-byte piece `piece` of rows place, place + 8, ...
    const int piece = wtid & 15;
    const int place = wtid >> 4;
    const u32 spot = (u32)((piece >> 3) * HALF_BYTES + place * 128 + (((piece & 7) ^ place) << 4));

    if (wg == 0) {
        // ------------------------------------------------ producer: K and V
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;\n");
        const half* kp = k + (i64)b * k_b + (i64)g * k_h + piece * 8;
        const half* vp = v + (i64)b * v_b + (i64)g * v_h + piece * 8;
#pragma unroll 1
        for (int j = 0; j < tiles; ++j) {
            const int s = j & 1;
            const u32 parity = ((j >> 1) & 1) ^ 1;
            mbar_wait(ring.empty_k + 8 * s, parity);
            load_rows<16, ALIGNED>(sK + s * TILE_BYTES + spot, kp, k_s, j * BN + place, seq_k);
            if constexpr (ALIGNED) {
                cp_async_arrive(ring.full_k + 8 * s);
            } else {
                fence_async();
                mbar_arrive(ring.full_k + 8 * s);
            }
            mbar_wait(ring.empty_v + 8 * s, parity);
            load_rows<16, ALIGNED>(sV + s * TILE_BYTES + spot, vp, v_s, j * BN + place, seq_k);
            if constexpr (ALIGNED) {
                cp_async_arrive(ring.full_v + 8 * s);
            } else {
                fence_async();
                mbar_arrive(ring.full_v + 8 * s);
            }
        }
        if constexpr (ALIGNED) cp_async_wait_all();
    } else {
        // ------------------------------------------------ consumers: 64 rows each
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;\n");
        const int cw = wg - 1;
        const int warp = wtid / 32;
        const int lane = wtid % 32;
        const u32 sQw = sQ + cw * 8192;
        const int row_wg = t * BM + cw * 64;
        const int row0 = row_wg + warp * 16 + lane / 4;

        float O[64];
#pragma unroll
        for (int i = 0; i < 64; ++i) O[i] = 0.0f;
        float m0 = NEG_INF, m1 = NEG_INF, l0 = 0.0f, l1 = 0.0f;

        if (tiles > 0) {
            const half* qp = q + (i64)b * q_b + (i64)h * q_h + piece * 8;
            load_rows<8, ALIGNED>(sQw + spot, qp, q_s, row_wg + place, seq_q);
            if constexpr (ALIGNED) cp_async_wait_all();
            fence_async();
            bar_sync(3 + cw, 128);

            float c, sign;
            if constexpr (POSITIVE) {
                c = scale * 1.4426950408889634f;
                sign = 1.0f;
            } else {
                c = scale == 0.0f ? 1.0f : fabsf(scale) * 1.4426950408889634f;
                sign = scale == 0.0f ? 0.0f : -1.0f;
            }
            const int lim0 = min(row0 + shift, seq_k - 1);
            const int lim1 = min(row0 + 8 + shift, seq_k - 1);

            const u64 dq = make_desc(sQw, 16, 1024);
            const u64 dk = make_desc(sK, 16, 1024);
            const u64 dv = make_desc(sV, HALF_BYTES, 1024);

            float S[64];
            u32 P[32];
#pragma unroll
            for (int i = 0; i < 64; ++i) S[i] = 0.0f;

            // the other warpgroup lets the first one begin
            if (cw == 1 && tiles > 1) bar_arrive(1, 256);

            // tile 0: scores and softmax
            mbar_wait(ring.full_k, 0);
            fence_async();
            pin(S);
            wgmma_fence();
            gemm_qk(S, dq, dk);
            wgmma_commit();
            wgmma_wait<0>();
            pin(S);
            if (lane == 0) mbar_arrive(ring.empty_k);
            if constexpr (!POSITIVE) {
#pragma unroll
                for (int i = 0; i < 64; ++i) S[i] *= sign;
            }
            if (full == 0) {
                const int col = 2 * (lane & 3);
                apply_mask(S, lim0 - col, lim1 - col);
            }
            {
                float a0, a1;
                softmax<true>(S, m0, m1, l0, l1, c, a0, a1);
            }
            pack_p(P, S);

            // 1. tiles visible to every row
            int j = 1;
#pragma unroll 1
            for (; j < full; ++j) {
                round_step<false, POSITIVE>(S, O, P, m0, m1, l0, l1, c, sign, j,
                                            cw == 0 || j + 1 < tiles, cw, lane, lim0, lim1, dq, dk,
                                            dv, ring);
            }
            // 2. tiles that cross the diagonal
#pragma unroll 1
            for (; j < tiles; ++j) {
                round_step<true, POSITIVE>(S, O, P, m0, m1, l0, l1, c, sign, j,
                                           cw == 0 || j + 1 < tiles, cw, lane, lim0, lim1, dq, dk,
                                           dv, ring);
            }

            // the last P V
            const int ls = (tiles - 1) & 1;
            mbar_wait(ring.full_v + 8 * ls, ((tiles - 1) >> 1) & 1);
            fence_async();
            pin(O);
            pin(P);
            wgmma_fence();
            gemm_pv(O, P, dv + (u64)(ls * (TILE_BYTES >> 4)));
            wgmma_commit();
            wgmma_wait<0>();
            pin(O);
            pin(P);
        }

        // normalise once; l = 0 gives 0
        l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
        l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
        l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
        l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
        const float i0 = l0 == 0.0f ? 0.0f : 1.0f / l0;
        const float i1 = l1 == 0.0f ? 0.0f : 1.0f / l1;

        half* op = o + (i64)b * o_b + (i64)h * o_h;
        if constexpr (ALIGNED) {
            // through this warpgroup's part of Q's buffer, for whole rows of 16-byte stores
            bar_sync(3 + cw, 128);
            const int lr = lane / 4;  // row % 8 of both rows
            const u32 line0 = sQw + (u32)((warp * 16 + lr) * 128 + (lane & 3) * 4);
#pragma unroll
            for (int n = 0; n < 16; ++n) {
                const u32 at = line0 + (u32)((n / 8) * HALF_BYTES + (((n & 7) ^ lr) << 4));
                st_shared(at, pack(O[4 * n] * i0, O[4 * n + 1] * i0));
                st_shared(at + 1024, pack(O[4 * n + 2] * i1, O[4 * n + 3] * i1));
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int r = i * 2 + lane / 16;
                const int ch = lane & 15;
                const u32 at = sQw + (u32)((ch >> 3) * HALF_BYTES + (warp * 16 + r) * 128 +
                                           (((ch & 7) ^ (r & 7)) << 4));
                const uint4 x = ld_shared4(at);
                const int row = row_wg + warp * 16 + r;
                if (row < seq_q) {
                    *reinterpret_cast<uint4*>(op + (i64)row * o_s + ch * 8) = x;
                }
            }
        } else {
            half* p0 = op + (i64)row0 * o_s + 2 * (lane & 3);
            half* p1 = op + (i64)(row0 + 8) * o_s + 2 * (lane & 3);
            if (row0 < seq_q) {
#pragma unroll
                for (int n = 0; n < 16; ++n) {
                    p0[8 * n] = __float2half_rn(O[4 * n] * i0);
                    p0[8 * n + 1] = __float2half_rn(O[4 * n + 1] * i0);
                }
            }
            if (row0 + 8 < seq_q) {
#pragma unroll
                for (int n = 0; n < 16; ++n) {
                    p1[8 * n] = __float2half_rn(O[4 * n + 2] * i1);
                    p1[8 * n + 1] = __float2half_rn(O[4 * n + 3] * i1);
                }
            }
        }
    }
}
