#include <cuda_fp16.h>

#ifndef USE_WGMMA
#define USE_WGMMA 1
#endif

using u32 = unsigned int;
using u64 = unsigned long long;

constexpr int BM = 128;
constexpr int THREADS = 256;

template <int D>
struct Tile {
    static constexpr int BN = (D == 64) ? 128 : 64;
};

// ---------------------------------------------------------------- primitives

__device__ __forceinline__ float neg_inf() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack_half2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ __forceinline__ void cp_async16(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(dst), "l"(src), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ void st_shared_v4(u32 dst, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "r"(dst), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ void st_shared(u32 dst, u32 a) {
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(dst), "r"(a) : "memory");
}

__device__ __forceinline__ uint4 ld_shared_v4(u32 src) {
    uint4 r;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(src) : "memory");
    return r;
}

// Makes this thread's writes to shared memory visible to wgmma.
__device__ __forceinline__ void fence_proxy_async() {
#if USE_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---------------------------------------------------------------- copies
// A tile of ROWS x D halves lies in shared memory as D/64 blocks of ROWS rows
// of 128 bytes; 16-byte chunk c of row r is at chunk c ^ (r & 7).
// dst and src are those of this thread's first row and chunk.

template <int D, int ROWS, int ALIGNED>
__device__ __forceinline__ void load_tile(u32 dst, const half* src, long long stride,
                                          int rows_left) {
    constexpr int STEP = THREADS / (D / 8);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; ++i) {
        const half* p = src + (long long)(i * STEP) * stride;
        const bool ok = i * STEP < rows_left;
        const u32 d = dst + (u32)(i * STEP * 128);
        if constexpr (ALIGNED != 0) {
            cp_async16(d, p, ok ? 16 : 0);
        } else {
            u32 w[4] = {0u, 0u, 0u, 0u};
            if (ok) {
                const unsigned short* u = reinterpret_cast<const unsigned short*>(p);
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    w[e] = (u32)u[2 * e] | ((u32)u[2 * e + 1] << 16);
            }
            st_shared_v4(d, w[0], w[1], w[2], w[3]);
        }
    }
}

// ---------------------------------------------------------------- products

#if USE_WGMMA

#define ACC8(d, i)                                                              \
    "+f"(d[(i) + 0]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]),     \
    "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define ACC32(d) ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24)
#define ACC64(d) ACC32(d), ACC8(d, 32), ACC8(d, 40), ACC8(d, 48), ACC8(d, 56)

#define REGS32                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, "           \
    "%8, %9, %10, %11, %12, %13, %14, %15, "     \
    "%16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define REGS64 REGS32 ", "                       \
    "%32, %33, %34, %35, %36, %37, %38, %39, "   \
    "%40, %41, %42, %43, %44, %45, %46, %47, "   \
    "%48, %49, %50, %51, %52, %53, %54, %55, "   \
    "%56, %57, %58, %59, %60, %61, %62, %63"

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_wait_all() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void hold(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i]) :: "memory");
}

template <int A, int B, int N>
__device__ __forceinline__ void hold_range(u32 (&r)[N]) {
#pragma unroll
    for (int i = A; i < B; ++i) asm volatile("" : "+r"(r[i]) :: "memory");
}

// 128-byte swizzle
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    u64 d = (u64)((addr & 0x3FFFFu) >> 4);
    d |= (u64)((lbo & 0x3FFFFu) >> 4) << 16;
    d |= (u64)((sbo & 0x3FFFFu) >> 4) << 32;
    d |= (u64)1 << 62;
    return d;
}

// both operands K-major in shared memory, N = 128
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" REGS64 "}, %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(acc));
}

// N = 64
__device__ __forceinline__ void wgmma_ss(float (&d)[32], u64 da, u64 db, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{" REGS32 "}, %32, %33, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC32(d)
        : "l"(da), "l"(db), "r"(acc));
}

// first operand in registers, second N-major in shared memory, N = 128
__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3,
                                         u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" REGS64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// N = 64
__device__ __forceinline__ void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3,
                                         u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{" REGS32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : ACC32(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// starts S = Q K^T for this warpgroup's 64 rows
template <int D, int BN>
__device__ __forceinline__ void issue_qk(float (&s)[BN / 2], u32 q_base, u32 k_base) {
    const u64 dq = make_desc(q_base, 16, 1024);
    const u64 dk = make_desc(k_base, 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u64 aq = dq + (u64)(((kk >> 2) * (BM * 128) + (kk & 3) * 32) >> 4);
        const u64 ak = dk + (u64)(((kk >> 2) * (BN * 128) + (kk & 3) * 32) >> 4);
        wgmma_ss(s, aq, ak, kk != 0 ? 1 : 0);
    }
    wgmma_commit();
}

// starts O += P V for the steps A..B of 16 keys
template <int D, int BN, int A, int B>
__device__ __forceinline__ void issue_pv(float (&o)[D / 2], u32 (&p)[BN / 4], u32 v_base) {
    const u64 dv = make_desc(v_base, BN * 128, 1024);
    wgmma_fence();
#pragma unroll
    for (int kk = A; kk < B; ++kk)
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3],
                 dv + (u64)((kk * 2048) >> 4));
    wgmma_commit();
}

#else  // mma.sync

__device__ __forceinline__ void mma16816(float& d0, float& d1, float& d2, float& d3,
                                         u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}

__device__ __forceinline__ void ldmatrix4_trans(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}

template <int ROWS>
__device__ __forceinline__ u32 chunk_at(u32 base, int row, int chunk) {
    return base + (u32)((chunk >> 3) * (ROWS * 128) + row * 128 +
                        (((chunk & 7) ^ (row & 7)) << 4));
}

template <int D, int BN>
__device__ __forceinline__ void sync_qk(float (&s)[BN / 2], u32 sQ, u32 sK, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) s[i] = 0.0f;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        u32 a[4];
        ldmatrix4(a, chunk_at<BM>(sQ, warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
        for (int nb = 0; nb < BN / 16; ++nb) {
            u32 b[4];
            ldmatrix4(b, chunk_at<BN>(sK, nb * 16 + (lane & 7) + ((lane >> 4) << 3),
                                      kk * 2 + ((lane >> 3) & 1)));
            mma16816(s[8 * nb + 0], s[8 * nb + 1], s[8 * nb + 2], s[8 * nb + 3],
                     a[0], a[1], a[2], a[3], b[0], b[1]);
            mma16816(s[8 * nb + 4], s[8 * nb + 5], s[8 * nb + 6], s[8 * nb + 7],
                     a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }
}

template <int D, int BN>
__device__ __forceinline__ void sync_pv(float (&o)[D / 2], u32 (&p)[BN / 4], u32 sV, int lane) {
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
#pragma unroll
        for (int nb = 0; nb < D / 16; ++nb) {
            u32 b[4];
            ldmatrix4_trans(b, chunk_at<BN>(sV, kk * 16 + (lane & 15), nb * 2 + (lane >> 4)));
            mma16816(o[8 * nb + 0], o[8 * nb + 1], o[8 * nb + 2], o[8 * nb + 3],
                     p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], b[0], b[1]);
            mma16816(o[8 * nb + 4], o[8 * nb + 5], o[8 * nb + 6], o[8 * nb + 7],
                     p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], b[2], b[3]);
        }
    }
}

#endif

// ---------------------------------------------------------------- softmax

// P = exp2(S * sl - ms) for the steps A..B of 16 keys, rounded to half as the
// first operand of the next product; row sums go to l0 and l1.
template <int BN, int A, int B>
__device__ __forceinline__ void exp_range(float (&s)[BN / 2], u32 (&p)[BN / 4], float sl,
                                          float ms0, float ms1, float& l0, float& l1) {
#pragma unroll
    for (int kk = A; kk < B; ++kk) {
        const float e0 = ex2(fmaf(s[8 * kk + 0], sl, -ms0));
        const float e1 = ex2(fmaf(s[8 * kk + 1], sl, -ms0));
        const float e2 = ex2(fmaf(s[8 * kk + 2], sl, -ms1));
        const float e3 = ex2(fmaf(s[8 * kk + 3], sl, -ms1));
        const float e4 = ex2(fmaf(s[8 * kk + 4], sl, -ms0));
        const float e5 = ex2(fmaf(s[8 * kk + 5], sl, -ms0));
        const float e6 = ex2(fmaf(s[8 * kk + 6], sl, -ms1));
        const float e7 = ex2(fmaf(s[8 * kk + 7], sl, -ms1));
        l0 += (e0 + e1) + (e4 + e5);
        l1 += (e2 + e3) + (e6 + e7);
        p[4 * kk + 0] = pack_half2(e0, e1);
        p[4 * kk + 1] = pack_half2(e2, e3);
        p[4 * kk + 2] = pack_half2(e4, e5);
        p[4 * kk + 3] = pack_half2(e6, e7);
    }
}

// ---------------------------------------------------------------- one key tile

template <int D, int ALIGNED, bool MASK>
__device__ __forceinline__ void tile_step(
    int j, int tiles, float (&o)[D / 2], float& m0, float& m1, float& l0, float& l1,
    u32 sQ, u32 sK0, u32 sV0, u32 load_off, const half*& kp, const half*& vp,
    long long k_ss, long long v_ss, int thread_rows, float scale, float sl, bool prescale,
    int limit, int wg_last, int warp, int lane) {
    constexpr int BN = Tile<D>::BN;
    constexpr int TILE_BYTES = BN * D * 2;
    constexpr int STEPS = BN / 16;

    const u32 here = (u32)(j & 1) * TILE_BYTES;
    const u32 next = (u32)TILE_BYTES - here;
    const u32 sK = sK0 + here;
    const u32 sV = sV0 + here;

    // tile j has arrived, and everyone is done with tile j - 1
    cp_async_wait_all();
    fence_proxy_async();
    __syncthreads();

    float s[BN / 2];

    constexpr bool LOAD_FIRST = MASK || ALIGNED == 0 || USE_WGMMA == 0;
    if constexpr (LOAD_FIRST) {
        if (j + 1 < tiles) {
            const int left = thread_rows - (j + 1) * BN;
            load_tile<D, BN, ALIGNED>(sK0 + next + load_off, kp, k_ss, left);
            load_tile<D, BN, ALIGNED>(sV0 + next + load_off, vp, v_ss, left);
            kp += (long long)BN * k_ss;
            vp += (long long)BN * v_ss;
        }
    }
    if constexpr (MASK) {
        // no row of this warpgroup sees a key of this tile
        if (j * BN > wg_last) return;
    }

#if USE_WGMMA
    issue_qk<D, BN>(s, sQ + (u32)((warp >> 2) * 64 * 128), sK);
#else
    sync_qk<D, BN>(s, sQ, sK, warp, lane);
#endif

    if constexpr (!LOAD_FIRST) {
        // rows past the end are not read; a tile too many is harmless
        const int left = thread_rows - (j + 1) * BN;
        load_tile<D, BN, ALIGNED>(sK0 + next + load_off, kp, k_ss, left);
        load_tile<D, BN, ALIGNED>(sV0 + next + load_off, vp, v_ss, left);
        kp += (long long)BN * k_ss;
        vp += (long long)BN * v_ss;
    }

#if USE_WGMMA
    wgmma_wait_all();
    hold(s);
#endif

    if (prescale) {  // only where scale <= 0; otherwise scale is part of sl
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) s[i] *= scale;
    }

    if constexpr (MASK) {
        const int lim0 = limit - j * BN;
        const int lim1 = lim0 + 8;
#pragma unroll
        for (int n = 0; n < BN / 8; ++n) {
            if (n * 8 + 0 > lim0) s[4 * n + 0] = neg_inf();
            if (n * 8 + 1 > lim0) s[4 * n + 1] = neg_inf();
            if (n * 8 + 0 > lim1) s[4 * n + 2] = neg_inf();
            if (n * 8 + 1 > lim1) s[4 * n + 3] = neg_inf();
        }
    }

    float x0 = m0, x1 = m1, y0 = s[1], y1 = s[3];
#pragma unroll
    for (int n = 0; n < BN / 8; ++n) {
        x0 = fmaxf(x0, s[4 * n + 0]);
        y0 = fmaxf(y0, s[4 * n + 1]);
        x1 = fmaxf(x1, s[4 * n + 2]);
        y1 = fmaxf(y1, s[4 * n + 3]);
    }
    x0 = fmaxf(x0, y0);
    x1 = fmaxf(x1, y1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));

    // The rounded products are used everywhere, so that old and new tiles agree.
    const float ms0 = (x0 == neg_inf()) ? 0.0f : __fmul_rn(x0, sl);
    const float ms1 = (x1 == neg_inf()) ? 0.0f : __fmul_rn(x1, sl);
    const float a0 = ex2(__fadd_rn(__fmul_rn(m0, sl), -ms0));
    const float a1 = ex2(__fadd_rn(__fmul_rn(m1, sl), -ms1));
    m0 = x0;
    m1 = x1;
    l0 *= a0;
    l1 *= a1;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        o[4 * n + 0] *= a0;
        o[4 * n + 1] *= a0;
        o[4 * n + 2] *= a1;
        o[4 * n + 3] *= a1;
    }

    u32 p[BN / 4];
#if USE_WGMMA
    // the first half of P V runs beside the second half of the exponentials
    constexpr int HALF = STEPS / 2;
    exp_range<BN, 0, HALF>(s, p, sl, ms0, ms1, l0, l1);
    hold(o);
    hold_range<0, HALF * 4>(p);
    issue_pv<D, BN, 0, HALF>(o, p, sV);
    exp_range<BN, HALF, STEPS>(s, p, sl, ms0, ms1, l0, l1);
    hold_range<HALF * 4, STEPS * 4>(p);
    issue_pv<D, BN, HALF, STEPS>(o, p, sV);
    wgmma_wait_all();
    hold(o);
    hold_range<0, STEPS * 4>(p);
#else
    exp_range<BN, 0, STEPS>(s, p, sl, ms0, ms1, l0, l1);
    sync_pv<D, BN>(o, p, sV, lane);
#endif
}

// ---------------------------------------------------------------- kernel

template <int D, int ALIGNED>
__global__ void __launch_bounds__(256, 2)
causal_attention(const half* __restrict__ q, const half* __restrict__ k,
                 const half* __restrict__ v, half* __restrict__ out,
                 long long q_sb, long long q_ss, long long q_sh,
                 long long k_sb, long long k_ss, long long k_sh,
                 long long v_sb, long long v_ss, long long v_sh,
                 long long o_sb, long long o_ss, long long o_sh,
                 int batch_heads, int heads, int group, int seq_q, int seq_k,
                 int section, float scale) {
    constexpr int BN = Tile<D>::BN;
    constexpr int CPR = D / 8;  // 16-byte chunks of a row
    constexpr int TILE_BYTES = BN * D * 2;

    extern __shared__ unsigned char smem_raw[];
    const u32 smem = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = smem;
    const u32 sK = sQ + BM * D * 2;
    const u32 sV = sK + 2 * TILE_BYTES;

    const int tid = (int)threadIdx.x;
    const int lane = tid & 31;
    const int warp = __shfl_sync(0xffffffffu, tid >> 5, 0);

    // block -> (b, h, i): sections of heads, longest query tiles first in each
    const int n_tiles = (seq_q + BM - 1) / BM;
    const int per = section * n_tiles;
    const int bid = (int)blockIdx.x;
    const int sec = bid / per;
    const int rem = bid - sec * per;
    const int first = sec * section;
    const int count = min(section, batch_heads - first);
    const int i = rem / count;
    const int bh = first + (rem - i * count);
    const int b = bh / heads;
    const int h = bh - b * heads;
    const int t = n_tiles - 1 - i;

    const int diff = seq_k - seq_q;
    const int full = max(t * BM + diff + 1, 0) / BN;
    const int tiles = (max(min((t + 1) * BM, seq_q) + diff, 0) + BN - 1) / BN;

    const int r = tid / CPR;
    const int c = tid % CPR;
    const u32 row_off = (u32)(r * 128 + (((c & 7) ^ (r & 7)) << 4));
    const u32 load_off = (u32)((c >> 3) * (BN * 128)) + row_off;
    const int thread_rows = seq_k - r;

    const half* kp = k + (long long)b * k_sb + (long long)(h / group) * k_sh +
                     (long long)r * k_ss + c * 8;
    const half* vp = v + (long long)b * v_sb + (long long)(h / group) * v_sh +
                     (long long)r * v_ss + c * 8;

    if (tiles > 0) {
        const half* qp = q + (long long)b * q_sb + (long long)h * q_sh +
                         (long long)(t * BM + r) * q_ss + c * 8;
        load_tile<D, BM, ALIGNED>(sQ + (u32)((c >> 3) * (BM * 128)) + row_off, qp, q_ss,
                                  seq_q - t * BM - r);
        load_tile<D, BN, ALIGNED>(sK + load_off, kp, k_ss, thread_rows);
        load_tile<D, BN, ALIGNED>(sV + load_off, vp, v_ss, thread_rows);
        kp += (long long)BN * k_ss;
        vp += (long long)BN * v_ss;
    }

    const float log2e = 1.4426950408889634f;
    const bool prescale = !(scale > 0.0f);
    const float sl = prescale ? log2e : scale * log2e;

    const int lr = warp * 16 + (lane >> 2);  // this thread's rows: lr and lr + 8
    const int limit = t * BM + lr + diff - 2 * (lane & 3);
    const int wg_last = t * BM + (warp >> 2) * 64 + 63 + diff;

    float o[D / 2];
#pragma unroll
    for (int e = 0; e < D / 2; ++e) o[e] = 0.0f;
    float m0 = neg_inf(), m1 = neg_inf(), l0 = 0.0f, l1 = 0.0f;

    int j = 0;
    // fully visible key tiles: no mask
#pragma unroll 1
    for (; j < full; ++j)
        tile_step<D, ALIGNED, false>(j, tiles, o, m0, m1, l0, l1, sQ, sK, sV, load_off, kp, vp,
                                     k_ss, v_ss, thread_rows, scale, sl, prescale, limit,
                                     wg_last, warp, lane);
    // key tiles on the diagonal
#pragma unroll 1
    for (; j < tiles; ++j)
        tile_step<D, ALIGNED, true>(j, tiles, o, m0, m1, l0, l1, sQ, sK, sV, load_off, kp, vp,
                                    k_ss, v_ss, thread_rows, scale, sl, prescale, limit,
                                    wg_last, warp, lane);

    // normalise; l = 0 (no visible key) gives 0
    l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
    l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
    const float inv0 = l0 > 0.0f ? 1.0f / l0 : 0.0f;
    const float inv1 = l1 > 0.0f ? 1.0f / l1 : 0.0f;

    // through the shared memory of Q, for stores of 16 bytes
    cp_async_wait_all();
    __syncthreads();
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        const u32 a = sQ + (u32)((n >> 3) * (BM * 128) + lr * 128 +
                                 (((n & 7) ^ (lr & 7)) << 4) + (lane & 3) * 4);
        st_shared(a, pack_half2(o[4 * n + 0] * inv0, o[4 * n + 1] * inv0));
        st_shared(a + 1024u, pack_half2(o[4 * n + 2] * inv1, o[4 * n + 3] * inv1));
    }
    __syncwarp();

    constexpr int ROWS_PER = 32 / CPR;
    half* op = out + (long long)b * o_sb + (long long)h * o_sh;
    const int oc = lane % CPR;
#pragma unroll
    for (int it = 0; it < 16 / ROWS_PER; ++it) {
        const int row = warp * 16 + it * ROWS_PER + lane / CPR;
        const uint4 x = ld_shared_v4(sQ + (u32)((oc >> 3) * (BM * 128) + row * 128 +
                                                (((oc & 7) ^ (row & 7)) << 4)));
        const int g = t * BM + row;
        if (g < seq_q) {
            half* dst = op + (long long)g * o_ss + oc * 8;
            if constexpr (ALIGNED != 0) {
                *reinterpret_cast<uint4*>(dst) = x;
            } else {
                unsigned short* u = reinterpret_cast<unsigned short*>(dst);
                u[0] = (unsigned short)(x.x & 0xffffu);
                u[1] = (unsigned short)(x.x >> 16);
                u[2] = (unsigned short)(x.y & 0xffffu);
                u[3] = (unsigned short)(x.y >> 16);
                u[4] = (unsigned short)(x.z & 0xffffu);
                u[5] = (unsigned short)(x.z >> 16);
                u[6] = (unsigned short)(x.w & 0xffffu);
                u[7] = (unsigned short)(x.w >> 16);
            }
        }
    }
}
