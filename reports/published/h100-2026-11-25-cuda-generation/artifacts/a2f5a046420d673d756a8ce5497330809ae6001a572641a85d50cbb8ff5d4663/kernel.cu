#include <cuda_fp16.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define USE_WGMMA 1
#else
#define USE_WGMMA 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int BM = 128;
constexpr int BN = 128;
constexpr int NT = 256;
// bytes of one 64-column block of a 128-row tile
constexpr int BLOCK_BYTES = 128 * 128;

// ---------------------------------------------------------------- small helpers

__device__ __forceinline__ float neg_inf() { return __int_as_float((int)0xff800000u); }

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ __forceinline__ void cp_async16(u32 dst, const void* src, bool inside) {
    const int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_wait() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

// shared memory written by this thread becomes visible to wgmma
__device__ __forceinline__ void fence_async() {
#if USE_WGMMA
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void st_shared16(u32 dst, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(dst), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

__device__ __forceinline__ void st_shared4(u32 dst, u32 a) {
    asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(dst), "r"(a) : "memory");
}

__device__ __forceinline__ void ld_shared16(u32 src, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(src)
                 : "memory");
}

template <int N>
__device__ __forceinline__ void fence_regs(float (&x)[N]) {
#if USE_WGMMA
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
#endif
}

template <int N>
__device__ __forceinline__ void fence_regs(u32 (&x)[N]) {
#if USE_WGMMA
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(x[i])::"memory");
#endif
}

__device__ __forceinline__ void wg_fence() {
#if USE_WGMMA
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void wg_commit() {
#if USE_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}

template <int N>
__device__ __forceinline__ void wg_wait() {
#if USE_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
#endif
}

// ---------------------------------------------------------------- products

#if USE_WGMMA

#define ACC32_LIST                                                        \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "   \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "   \
    "%28, %29, %30, %31"
#define ACC64_LIST                                                        \
    ACC32_LIST                                                            \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, " \
    "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "   \
    "%58, %59, %60, %61, %62, %63"
#define F8(d, i)                                                          \
    "+f"(d[(i) + 0]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), \
    "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])

// 128-byte swizzle, 8-row groups 1024 bytes apart
__device__ __forceinline__ u64 make_desc(u32 addr, u32 leading_bytes) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)(leading_bytes >> 4) << 16) | ((u64)(1024 >> 4) << 32) |
           ((u64)1 << 62);
}

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" ACC64_LIST
        "}, %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : F8(d, 0), F8(d, 8), F8(d, 16), F8(d, 24), F8(d, 32), F8(d, 40), F8(d, 48), F8(d, 56)
        : "l"(da), "l"(db), "r"(scale_d));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" ACC64_LIST
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : F8(d, 0), F8(d, 8), F8(d, 16), F8(d, 24), F8(d, 32), F8(d, 40), F8(d, 48), F8(d, 56)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" ACC32_LIST
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : F8(d, 0), F8(d, 8), F8(d, 16), F8(d, 24)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// S = Q K^T: both operands K-major in shared memory
template <int D>
__device__ __forceinline__ void gemm_qk(float (&S)[64], u32 sQ, u32 sK, int warp, int lane) {
    const u64 da = make_desc(sQ + (u32)(warp >> 2) * 8192u, 16);
    const u64 db = make_desc(sK, 16);
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u64 off = (u64)((kk / 4) * (BLOCK_BYTES >> 4) + (kk % 4) * 2);
        wgmma_ss(S, da + off, db + off, kk == 0 ? 0 : 1);
    }
}

// O += P V: P in registers, V MN-major in shared memory
template <int D>
__device__ __forceinline__ void gemm_pv(float (&O)[D / 2], u32 (&P)[32], u32 sV, int lane) {
    const u64 db = make_desc(sV, BLOCK_BYTES);
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
        wgmma_rs(O, P[4 * kk], P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3], db + (u64)(kk * 128));
    }
}

#else

__device__ __forceinline__ u32 tile_addr(u32 base, int r, int c) {
    return base + (u32)((c >> 6) * BLOCK_BYTES + r * 128 + ((((c >> 3) & 7) ^ (r & 7)) << 4));
}

__device__ __forceinline__ void ldsm4(u32 addr, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(addr)
                 : "memory");
}

__device__ __forceinline__ void ldsm4t(u32 addr, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(addr)
                 : "memory");
}

__device__ __forceinline__ void mma(float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1, u32 a2, u32 a3,
                                    u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int D>
__device__ __forceinline__ void gemm_qk(float (&S)[64], u32 sQ, u32 sK, int warp, int lane) {
#pragma unroll
    for (int x = 0; x < 64; ++x) S[x] = 0.f;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        u32 a0, a1, a2, a3;
        ldsm4(tile_addr(sQ, warp * 16 + (lane & 15), kk * 16 + 8 * (lane >> 4)), a0, a1, a2, a3);
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) {
            u32 b0, b1, b2, b3;
            ldsm4(tile_addr(sK, n * 16 + (lane >> 4) * 8 + (lane & 7), kk * 16 + 8 * ((lane >> 3) & 1)), b0, b1,
                  b2, b3);
            mma(S[8 * n], S[8 * n + 1], S[8 * n + 2], S[8 * n + 3], a0, a1, a2, a3, b0, b1);
            mma(S[8 * n + 4], S[8 * n + 5], S[8 * n + 6], S[8 * n + 7], a0, a1, a2, a3, b2, b3);
        }
    }
}

template <int D>
__device__ __forceinline__ void gemm_pv(float (&O)[D / 2], u32 (&P)[32], u32 sV, int lane) {
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            u32 b0, b1, b2, b3;
            ldsm4t(tile_addr(sV, kk * 16 + (lane & 15), n * 16 + 8 * (lane >> 4)), b0, b1, b2, b3);
            mma(O[8 * n], O[8 * n + 1], O[8 * n + 2], O[8 * n + 3], P[4 * kk], P[4 * kk + 1], P[4 * kk + 2],
                P[4 * kk + 3], b0, b1);
            mma(O[8 * n + 4], O[8 * n + 5], O[8 * n + 6], O[8 * n + 7], P[4 * kk], P[4 * kk + 1], P[4 * kk + 2],
                P[4 * kk + 3], b2, b3);
        }
    }
}

#endif

// ---------------------------------------------------------------- copies

// rows row0 .. row0 + 127 of src; rows at or past limit become zeros
template <int D, bool VEC>
__device__ __forceinline__ void load_tile(u32 dst, const __half* src, long long stride, int row0, int limit,
                                          int tid) {
    constexpr int C = D / 8;
    constexpr int STEP = NT / C;
    constexpr int N = 128 / STEP;
    const int c = tid % C;
    const int r = tid / C;
    dst += (u32)((c >> 3) * BLOCK_BYTES + r * 128 + (((c & 7) ^ (r & 7)) << 4));
    const __half* p = src + (long long)(row0 + r) * stride + c * 8;
    const int left = limit - row0 - r;
#pragma unroll
    for (int it = 0; it < N; ++it) {
        const bool ok = it * STEP < left;
        const __half* s = ok ? p + (long long)(it * STEP) * stride : src;
        if constexpr (VEC) {
            cp_async16(dst + it * STEP * 128, s, ok);
        } else {
            u32 x[4] = {0u, 0u, 0u, 0u};
            if (ok) {
                const unsigned short* e = reinterpret_cast<const unsigned short*>(s);
#pragma unroll
                for (int t = 0; t < 4; ++t) x[t] = (u32)e[2 * t] | ((u32)e[2 * t + 1] << 16);
            }
            st_shared16(dst + it * STEP * 128, x[0], x[1], x[2], x[3]);
        }
    }
}

// changes the sign of what this thread itself loaded by load_tile
template <int D>
__device__ __forceinline__ void negate_tile(u32 dst, int tid) {
    constexpr int C = D / 8;
    constexpr int STEP = NT / C;
    constexpr int N = 128 / STEP;
    const int c = tid % C;
    const int r = tid / C;
    dst += (u32)((c >> 3) * BLOCK_BYTES + r * 128 + (((c & 7) ^ (r & 7)) << 4));
#pragma unroll 1
    for (int it = 0; it < N; ++it) {
        u32 a, b, e, f;
        ld_shared16(dst + it * STEP * 128, a, b, e, f);
        st_shared16(dst + it * STEP * 128, a ^ 0x80008000u, b ^ 0x80008000u, e ^ 0x80008000u, f ^ 0x80008000u);
    }
}

// ---------------------------------------------------------------- softmax

// element (row half h, column 8 n + e of the thread's own offset) is seen iff 8 n + e <= lim + 8 h
template <bool MASK>
__device__ __forceinline__ void softmax_step(float (&S)[64], float (&m)[2], float (&l)[2], float (&a)[2],
                                             float sl2, int lim) {
    if constexpr (MASK) {
#pragma unroll
        for (int n = 0; n < 16; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int c = n * 8 + e;
                if (c > lim) S[4 * n + e] = neg_inf();
                if (c > lim + 8) S[4 * n + 2 + e] = neg_inf();
            }
        }
    }
    float ms[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float u = fmaxf(S[2 * h], S[2 * h + 1]);
        float w = fmaxf(S[4 + 2 * h], S[5 + 2 * h]);
#pragma unroll
        for (int n = 2; n < 16; n += 2) {
            u = fmaxf(u, fmaxf(S[4 * n + 2 * h], S[4 * n + 2 * h + 1]));
            w = fmaxf(w, fmaxf(S[4 * n + 4 + 2 * h], S[4 * n + 5 + 2 * h]));
        }
        float mx = fmaxf(fmaxf(u, w), m[h]);
        mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 1));
        mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 2));
        float t = __fmul_rn(mx, sl2);
        if constexpr (MASK) {
            if (mx == neg_inf()) t = 0.f;
        }
        a[h] = ex2(__fsub_rn(__fmul_rn(m[h], sl2), t));
        m[h] = mx;
        ms[h] = -t;
    }
    float s00 = 0.f, s01 = 0.f, s10 = 0.f, s11 = 0.f;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        S[4 * n + 0] = ex2(fmaf(S[4 * n + 0], sl2, ms[0]));
        S[4 * n + 1] = ex2(fmaf(S[4 * n + 1], sl2, ms[0]));
        S[4 * n + 2] = ex2(fmaf(S[4 * n + 2], sl2, ms[1]));
        S[4 * n + 3] = ex2(fmaf(S[4 * n + 3], sl2, ms[1]));
        s00 += S[4 * n + 0];
        s01 += S[4 * n + 1];
        s10 += S[4 * n + 2];
        s11 += S[4 * n + 3];
    }
    l[0] = fmaf(l[0], a[0], s00 + s01);
    l[1] = fmaf(l[1], a[1], s10 + s11);
}

template <int N>
__device__ __forceinline__ void rescale(float (&O)[N], const float (&a)[2]) {
#pragma unroll
    for (int n = 0; n < N / 4; ++n) {
        O[4 * n + 0] *= a[0];
        O[4 * n + 1] *= a[0];
        O[4 * n + 2] *= a[1];
        O[4 * n + 3] *= a[1];
    }
}

__device__ __forceinline__ void to_operand(u32 (&P)[32], const float (&S)[64]) {
#pragma unroll
    for (int x = 0; x < 32; ++x) P[x] = pack(S[2 * x], S[2 * x + 1]);
}

// ---------------------------------------------------------------- rounds

struct Ctx {
    const __half* k;
    const __half* v;
    long long ks, vs;
    u32 sQ, sK, sV;
    int tid, lane, warp;
    int klim;   // keys at or past it are not loaded
    int lim0;   // last visible key of the thread's first row, less its column offset
    float sl2;
};

// S_j = Q K_j^T and O += P_{j-1} V_{j-1} in flight together; softmax of S_j behind the latter
template <int D, bool VEC, bool MASK>
__device__ __forceinline__ void round_pipelined(const Ctx& x, float (&O)[D / 2], u32 (&P)[32], float (&m)[2],
                                                float (&l)[2], int j) {
    constexpr u32 TILE = 128 * D * 2;
    cp_wait();
    fence_async();
    __syncthreads();
    float S[64];
    fence_regs(O);
    fence_regs(P);
    wg_fence();
    gemm_qk<D>(S, x.sQ, x.sK + (u32)(j & 1) * TILE, x.warp, x.lane);
    wg_commit();
    gemm_pv<D>(O, P, x.sV + (u32)((j + 1) & 1) * TILE, x.lane);
    wg_commit();
    load_tile<D, VEC>(x.sK + (u32)((j + 1) & 1) * TILE, x.k, x.ks, (j + 1) * BN, x.klim, x.tid);
    load_tile<D, VEC>(x.sV + (u32)(j & 1) * TILE, x.v, x.vs, j * BN, x.klim, x.tid);
    wg_wait<1>();
    fence_regs(S);
    float a[2];
    softmax_step<MASK>(S, m, l, a, x.sl2, x.lim0 - j * BN);
    fence_regs(S);
    wg_wait<0>();
    fence_regs(O);
    fence_regs(S);
    rescale(O, a);
    to_operand(P, S);
}

// one tile after the other; a second block on the SM fills the gaps
template <int D, bool VEC, bool MASK>
__device__ __forceinline__ void round_plain(const Ctx& x, float (&O)[D / 2], float (&m)[2], float (&l)[2], int j) {
    constexpr u32 TILE = 128 * D * 2;
    cp_wait();
    fence_async();
    __syncthreads();
    float S[64];
    wg_fence();
    gemm_qk<D>(S, x.sQ, x.sK + (u32)(j & 1) * TILE, x.warp, x.lane);
    wg_commit();
    load_tile<D, VEC>(x.sK + (u32)((j + 1) & 1) * TILE, x.k, x.ks, (j + 1) * BN, x.klim, x.tid);
    load_tile<D, VEC>(x.sV + (u32)((j + 1) & 1) * TILE, x.v, x.vs, (j + 1) * BN, x.klim, x.tid);
    wg_wait<0>();
    fence_regs(S);
    float a[2];
    softmax_step<MASK>(S, m, l, a, x.sl2, x.lim0 - j * BN);
    rescale(O, a);
    u32 P[32];
    to_operand(P, S);
    fence_regs(O);
    fence_regs(P);
    wg_fence();
    gemm_pv<D>(O, P, x.sV + (u32)(j & 1) * TILE, x.lane);
    wg_commit();
    wg_wait<0>();
    fence_regs(O);
}

// ---------------------------------------------------------------- kernel

template <int D, bool VEC>
__global__ void __launch_bounds__(NT, (D == 64) ? 2 : 1)
attention_kernel(const __half* __restrict__ q, const __half* __restrict__ k, const __half* __restrict__ v,
                 __half* __restrict__ out,
                 long long qb, long long qs, long long qh,
                 long long kb, long long ks, long long kh,
                 long long vb, long long vs, long long vh,
                 long long ob, long long os, long long oh,
                 int seq_q, int seq_k, int group, float scale) {
    constexpr u32 TILE = 128 * D * 2;
    constexpr bool PIPELINED = (D == 128);
    extern __shared__ unsigned char smem_raw[];

    const int tid = threadIdx.x;
    const int lane = tid & 31;
    const int warp = __shfl_sync(0xffffffffu, tid >> 5, 0);
    const int i = (int)gridDim.x - 1 - (int)blockIdx.x;  // the longest query tiles first
    const int h = blockIdx.y;
    const int b = blockIdx.z;
    const int diff = seq_k - seq_q;

    // key tiles that some row sees, and those that every row sees in full
    int tiles = min((seq_k + BN - 1) / BN, ((i + 1) * BM + diff + BN - 1) / BN);
    tiles = max(0, tiles);
    int full = min(seq_k / BN, (i * BM + diff + 1) / BN);
    full = max(0, full);

    q += (long long)b * qb + (long long)h * qh;
    out += (long long)b * ob + (long long)h * oh;

    const u32 base = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;

    Ctx x;
    x.k = k + (long long)b * kb + (long long)(h / group) * kh;
    x.v = v + (long long)b * vb + (long long)(h / group) * vh;
    x.ks = ks;
    x.vs = vs;
    x.sQ = base;
    x.sK = base + TILE;
    x.sV = base + 3 * TILE;
    x.tid = tid;
    x.lane = lane;
    x.warp = warp;
    x.klim = min(seq_k, tiles * BN);
    x.lim0 = i * BM + warp * 16 + (lane >> 2) + diff - 2 * (lane & 3);
    // a negative scale goes into the sign of Q; never quite 0, so that -inf stays -inf
    x.sl2 = fmaxf(fabsf(scale) * 1.4426950408889634f, 1e-30f);

    float O[D / 2];
#pragma unroll
    for (int n = 0; n < D / 2; ++n) O[n] = 0.f;
    float m[2] = {neg_inf(), neg_inf()};
    float l[2] = {0.f, 0.f};

    if (tiles > 0) {
        load_tile<D, VEC>(x.sQ, q, qs, i * BM, seq_q, tid);
        load_tile<D, VEC>(x.sK, x.k, x.ks, 0, x.klim, tid);
        if constexpr (!PIPELINED) load_tile<D, VEC>(x.sV, x.v, x.vs, 0, x.klim, tid);
        if (scale < 0.f) {
            cp_wait();
            negate_tile<D>(x.sQ, tid);
        }
        if constexpr (PIPELINED) {
            u32 P[32];
            {
                cp_wait();
                fence_async();
                __syncthreads();
                float S[64];
                wg_fence();
                gemm_qk<D>(S, x.sQ, x.sK, warp, lane);
                wg_commit();
                load_tile<D, VEC>(x.sK + TILE, x.k, x.ks, BN, x.klim, tid);
                load_tile<D, VEC>(x.sV, x.v, x.vs, 0, x.klim, tid);
                wg_wait<0>();
                fence_regs(S);
                float a[2];
                softmax_step<true>(S, m, l, a, x.sl2, x.lim0);
                to_operand(P, S);
            }
            int j = 1;
#pragma unroll 1
            for (; j < full; ++j) round_pipelined<D, VEC, false>(x, O, P, m, l, j);
#pragma unroll 1
            for (; j < tiles; ++j) round_pipelined<D, VEC, true>(x, O, P, m, l, j);
            cp_wait();
            fence_async();
            __syncthreads();
            fence_regs(O);
            fence_regs(P);
            wg_fence();
            gemm_pv<D>(O, P, x.sV + (u32)((tiles - 1) & 1) * TILE, lane);
            wg_commit();
            wg_wait<0>();
            fence_regs(O);
        } else {
            int j = 0;
#pragma unroll 1
            for (; j < full; ++j) round_plain<D, VEC, false>(x, O, m, l, j);
#pragma unroll 1
            for (; j < tiles; ++j) round_plain<D, VEC, true>(x, O, m, l, j);
        }
    }

    // normalise once; l = 0 gives 0
    float inv[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        float s = l[e];
        s += __shfl_xor_sync(0xffffffffu, s, 1);
        s += __shfl_xor_sync(0xffffffffu, s, 2);
        inv[e] = s > 0.f ? 1.f / s : 0.f;
    }

    // through the memory of Q, each warp its own 16 rows
    cp_wait();
    __syncthreads();
    {
        const int r0 = warp * 16 + (lane >> 2);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const u32 at = x.sQ + (u32)((n >> 3) * BLOCK_BYTES + r0 * 128 + (((n & 7) ^ (r0 & 7)) << 4) +
                                        (lane & 3) * 4);
            st_shared4(at, pack(O[4 * n] * inv[0], O[4 * n + 1] * inv[0]));
            st_shared4(at + 8 * 128, pack(O[4 * n + 2] * inv[1], O[4 * n + 3] * inv[1]));
        }
    }
    __syncwarp();
    {
        constexpr int C = D / 8;
#pragma unroll
        for (int it = 0; it < D / 16; ++it) {
            const int idx = it * 32 + lane;
            const int r = warp * 16 + idx / C;
            const int c = idx % C;
            u32 w[4];
            ld_shared16(x.sQ + (u32)((c >> 3) * BLOCK_BYTES + r * 128 + (((c & 7) ^ (r & 7)) << 4)), w[0], w[1],
                        w[2], w[3]);
            const int row = i * BM + r;
            if (row < seq_q) {
                __half* p = out + (long long)row * os + c * 8;
                if constexpr (VEC) {
                    *reinterpret_cast<uint4*>(p) = make_uint4(w[0], w[1], w[2], w[3]);
                } else {
                    unsigned short* e = reinterpret_cast<unsigned short*>(p);
#pragma unroll
                    for (int t = 0; t < 4; ++t) {
                        e[2 * t] = (unsigned short)(w[t] & 0xffffu);
                        e[2 * t + 1] = (unsigned short)(w[t] >> 16);
                    }
                }
            }
        }
    }
}
