#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define USE_WGMMA 1
#else
#define USE_WGMMA 0
#endif

template <bool B>
struct BoolC {
    static constexpr bool value = B;
};

// ---------------------------------------------------------------- primitives

__device__ __forceinline__ u32 smem_u32(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void mbar_arrive_if(u32 bar, u32 pred) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.u32 p, %1, 0;\n"
        "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n"
        "}\n" ::"r"(bar), "r"(pred)
        : "memory");
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    u32 ok;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(ok)
            : "r"(bar), "r"(parity)
            : "memory");
    } while (ok == 0);
}

__device__ __forceinline__ void cp_async_arrive_noinc(u32 bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void cp_async16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp_async16_zfill(u32 dst, const void* src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void bar_sync(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(N) : "memory");
}

template <int N>
__device__ __forceinline__ void bar_arrive_if(int id, u32 pred) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.u32 p, %2, 0;\n"
        "@p bar.arrive %0, %1;\n"
        "}\n" ::"r"(id), "n"(N), "r"(pred)
        : "memory");
}

__device__ __forceinline__ void st_shared_v4(u32 addr, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(x.x), "r"(x.y),
                 "r"(x.z), "r"(x.w)
                 : "memory");
}

__device__ __forceinline__ uint4 ld_shared_v4(u32 addr) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(addr)
                 : "memory");
    return x;
}

__device__ __forceinline__ void st_shared_b32(u32 addr, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(addr), "r"(x) : "memory");
}

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

template <int N>
__device__ __forceinline__ void fence_regs(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

template <int N>
__device__ __forceinline__ void fence_regs(u32 (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

// ---------------------------------------------------------------- tile loads
// Element (r, c) of a tile lies at ((c / 64 * TILE_ROWS + r) * 64 + c % 64),
// 16-byte pieces permuted by the row (128-byte swizzle).

template <int D, int ROWS, int TILE_ROWS, int NT>
__device__ __forceinline__ void load_rows(const __half* src, long long stride, int valid,
                                          const __half* safe, u32 dst, int tid, bool vec) {
    constexpr int CPR = D / 8;
    constexpr int RPI = NT / CPR;
    constexpr int PER = (RPI < 8) ? 8 / RPI : 1;
    constexpr int GROUP = PER * RPI;
    constexpr int GROUPS = ROWS / GROUP;
    const int c = tid % CPR;
    const int r0 = tid / CPR;
    u32 off[PER];
#pragma unroll
    for (int s = 0; s < PER; ++s) {
        const int r = r0 + s * RPI;
        off[s] = dst + (u32)((c >> 3) * TILE_ROWS * 128 + r * 128 + (((c & 7) ^ (r & 7)) << 4));
    }
    if (vec) {
        if (valid >= ROWS) {
            const __half* p = src + (long long)r0 * stride + c * 8;
            const long long step = (long long)RPI * stride;
#pragma unroll 4
            for (int g = 0; g < GROUPS; ++g) {
#pragma unroll
                for (int s = 0; s < PER; ++s) {
                    cp_async16(off[s] + (u32)(g * GROUP * 128), p);
                    p += step;
                }
            }
        } else {
#pragma unroll 1
            for (int g = 0; g < GROUPS; ++g) {
#pragma unroll
                for (int s = 0; s < PER; ++s) {
                    const int r = g * GROUP + s * RPI + r0;
                    const bool in = r < valid;
                    const __half* p = in ? src + (long long)r * stride + c * 8 : safe;
                    cp_async16_zfill(off[s] + (u32)(g * GROUP * 128), p, in ? 16u : 0u);
                }
            }
        }
    } else {
#pragma unroll 1
        for (int g = 0; g < GROUPS; ++g) {
#pragma unroll
            for (int s = 0; s < PER; ++s) {
                const int r = g * GROUP + s * RPI + r0;
                uint4 x = make_uint4(0u, 0u, 0u, 0u);
                if (r < valid) {
                    const unsigned short* p =
                        reinterpret_cast<const unsigned short*>(src + (long long)r * stride + c * 8);
                    x.x = (u32)p[0] | ((u32)p[1] << 16);
                    x.y = (u32)p[2] | ((u32)p[3] << 16);
                    x.z = (u32)p[4] | ((u32)p[5] << 16);
                    x.w = (u32)p[6] | ((u32)p[7] << 16);
                }
                st_shared_v4(off[s] + (u32)(g * GROUP * 128), x);
            }
        }
    }
}

// ------------------------------------------------------------------ products

#if USE_WGMMA

#define ACC8(d, i)                                                                      \
    "+f"(d[(i) + 0]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]),             \
        "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define ACC32(d) ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24)
#define ACC64(d) \
    ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24), ACC8(d, 32), ACC8(d, 40), ACC8(d, 48), ACC8(d, 56)

#define LIST32                                  \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "         \
    "%8, %9, %10, %11, %12, %13, %14, %15, "    \
    "%16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31}"

#define LIST64                                  \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "         \
    "%8, %9, %10, %11, %12, %13, %14, %15, "    \
    "%16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31, "  \
    "%32, %33, %34, %35, %36, %37, %38, %39, "  \
    "%40, %41, %42, %43, %44, %45, %46, %47, "  \
    "%48, %49, %50, %51, %52, %53, %54, %55, "  \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

__device__ __forceinline__ void wg_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wg_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void wg_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// 128-byte swizzle, 1024 bytes between groups of eight rows
template <u32 LBO>
__device__ __forceinline__ u64 make_desc(u32 addr) {
    const u32 lo = ((addr & 0x3FFFFu) >> 4) | ((LBO >> 4) << 16);
    const u32 hi = (1u << 30) | (1024u >> 4);
    return ((u64)hi << 32) | (u64)lo;
}

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " LIST64
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(acc));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " LIST64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " LIST32
        ", {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : ACC32(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// S = Q K^T for the 64 rows of this warpgroup
template <int D, int BM, int BN>
__device__ __forceinline__ void gemm_qk(float (&S)[64], u32 sQ, u32 sK, int, int) {
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u64 da = make_desc<16>(sQ + (u32)((kk / 4) * BM * 128 + (kk % 4) * 32));
        const u64 db = make_desc<16>(sK + (u32)((kk / 4) * BN * 128 + (kk % 4) * 32));
        wgmma_ss(S, da, db, kk != 0 ? 1 : 0);
    }
}

// O += P V
template <int D, int BN>
__device__ __forceinline__ void gemm_pv(float (&O)[D / 2], const u32 (&P)[32], u32 sV, int) {
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
        const u64 db = make_desc<(u32)(BN * 128)>(sV + (u32)(kk * 16 * 128));
        wgmma_rs(O, P[4 * kk], P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3], db);
    }
}

#else  // the same products by mma.sync

__device__ __forceinline__ void wg_fence() {}
__device__ __forceinline__ void wg_commit() {}
template <int N>
__device__ __forceinline__ void wg_wait() {}

__device__ __forceinline__ void ldsm4(u32& r0, u32& r1, u32& r2, u32& r3, u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
                 : "r"(addr)
                 : "memory");
}
__device__ __forceinline__ void ldsm4t(u32& r0, u32& r1, u32& r2, u32& r3, u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
                 : "r"(addr)
                 : "memory");
}
__device__ __forceinline__ void mma16816(float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1,
                                         u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int D, int BM, int BN>
__device__ __forceinline__ void gemm_qk(float (&S)[64], u32 sQ, u32 sK, int warp4, int lane) {
#pragma unroll
    for (int i = 0; i < 64; ++i) S[i] = 0.f;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        u32 a0, a1, a2, a3;
        {
            const int row = warp4 * 16 + (lane & 15);
            const int ch = (kk % 4) * 2 + (lane >> 4);
            ldsm4(a0, a1, a2, a3,
                  sQ + (u32)((kk / 4) * BM * 128 + row * 128 + ((ch ^ (row & 7)) << 4)));
        }
#pragma unroll
        for (int nb = 0; nb < BN / 16; ++nb) {
            const int row = nb * 16 + (lane >> 4) * 8 + (lane & 7);
            const int ch = (kk % 4) * 2 + ((lane >> 3) & 1);
            u32 b0, b1, b2, b3;
            ldsm4(b0, b1, b2, b3,
                  sK + (u32)((kk / 4) * BN * 128 + row * 128 + ((ch ^ (row & 7)) << 4)));
            mma16816(S[8 * nb], S[8 * nb + 1], S[8 * nb + 2], S[8 * nb + 3], a0, a1, a2, a3, b0, b1);
            mma16816(S[8 * nb + 4], S[8 * nb + 5], S[8 * nb + 6], S[8 * nb + 7], a0, a1, a2, a3, b2,
                     b3);
        }
    }
}

template <int D, int BN>
__device__ __forceinline__ void gemm_pv(float (&O)[D / 2], const u32 (&P)[32], u32 sV, int lane) {
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
#pragma unroll
        for (int nc = 0; nc < D / 16; ++nc) {
            const int row = kk * 16 + (lane & 15);
            const int ch = (nc % 4) * 2 + (lane >> 4);
            u32 b0, b1, b2, b3;
            ldsm4t(b0, b1, b2, b3,
                   sV + (u32)((nc / 4) * BN * 128 + row * 128 + ((ch ^ (row & 7)) << 4)));
            mma16816(O[8 * nc], O[8 * nc + 1], O[8 * nc + 2], O[8 * nc + 3], P[4 * kk],
                     P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3], b0, b1);
            mma16816(O[8 * nc + 4], O[8 * nc + 5], O[8 * nc + 6], O[8 * nc + 7], P[4 * kk],
                     P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3], b2, b3);
        }
    }
}

#endif

// -------------------------------------------------------------------- kernel
// warps 0-3 and 4-7: two consumer warpgroups of 64 query rows; warp 8: producer

template <int D>
__global__ void __launch_bounds__(288, 1)
causal_mha(const __half* __restrict__ q, const __half* __restrict__ k, const __half* __restrict__ v,
           __half* __restrict__ out,
           long long qsb, long long qss, long long qsh,
           long long ksb, long long kss, long long ksh,
           long long vsb, long long vss, long long vsh,
           long long osb, long long oss, long long osh,
           int seq_q, int seq_k, int group, float scale, bool vec) {
    constexpr int BM = 128;
    constexpr int BN = 128;
    constexpr int NS = (D == 64) ? 3 : 2;
    constexpr u32 Q_BYTES = BM * D * 2;
    constexpr u32 KV_BYTES = BN * D * 2;

    extern __shared__ unsigned char smem_raw[];
    const u32 base = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = base;
    const u32 sK = sQ + Q_BYTES;
    const u32 sV = sK + NS * KV_BYTES;
    const u32 bars = sV + NS * KV_BYTES;
    const u32 fullK = bars;
    const u32 emptyK = bars + 8 * NS;
    const u32 fullV = bars + 16 * NS;
    const u32 emptyV = bars + 24 * NS;

    const int tid = (int)threadIdx.x;
    const int lane = tid & 31;
    const int warp = __shfl_sync(0xffffffffu, tid >> 5, 0);

    if (tid == 0) {
#pragma unroll
        for (int s = 0; s < NS; ++s) {
            mbar_init(fullK + 8 * s, 32);
            mbar_init(emptyK + 8 * s, 8);
            mbar_init(fullV + 8 * s, 32);
            mbar_init(emptyV + 8 * s, 8);
        }
    }
    __syncthreads();

    const int b = (int)blockIdx.z;
    const int h = (int)blockIdx.y;
    const int hk = h / group;
    const int qi = (int)gridDim.x - 1 - (int)blockIdx.x;  // longest blocks first
    const int q0 = qi * BM;
    const int delta = seq_k - seq_q;
    int tiles = min((seq_k + BN - 1) / BN, (q0 + BM + delta + BN - 1) / BN);
    tiles = max(tiles, 0);
    int full_tiles = max(0, (q0 + delta + 1) / BN);
    full_tiles = min(full_tiles, tiles);

    if (warp == 8) {
        // ------------------------------------------------------- producer
        const __half* kb = k + (long long)b * ksb + (long long)hk * ksh;
        const __half* vb = v + (long long)b * vsb + (long long)hk * vsh;
        int sk = 0, sv = 0;
        u32 pk = 0, pv = 0;
#pragma unroll 1
        for (int j = 0; j <= tiles; ++j) {
            if (j < tiles) {
                mbar_wait(emptyK + 8 * sk, pk ^ 1u);
                load_rows<D, BN, BN, 32>(kb + (long long)j * BN * kss, kss, seq_k - j * BN, k,
                                         sK + (u32)sk * KV_BYTES, lane, vec);
                if (vec) {
                    cp_async_arrive_noinc(fullK + 8 * sk);
                } else {
                    fence_proxy_async();
                    mbar_arrive(fullK + 8 * sk);
                }
                if (++sk == NS) {
                    sk = 0;
                    pk ^= 1u;
                }
            }
            if (j > 0) {
                const int jv = j - 1;
                mbar_wait(emptyV + 8 * sv, pv ^ 1u);
                load_rows<D, BN, BN, 32>(vb + (long long)jv * BN * vss, vss, seq_k - jv * BN, v,
                                         sV + (u32)sv * KV_BYTES, lane, vec);
                if (vec) {
                    cp_async_arrive_noinc(fullV + 8 * sv);
                } else {
                    fence_proxy_async();
                    mbar_arrive(fullV + 8 * sv);
                }
                if (++sv == NS) {
                    sv = 0;
                    pv ^= 1u;
                }
            }
        }
        cp_async_wait_all();
    } else {
        // ------------------------------------------------------ consumers
        const int wg = warp >> 2;
        const int warp4 = warp & 3;
        const int wtid = tid & 127;
        const float NEG_INF = __int_as_float(0xff800000);

        const u32 sQw = sQ + (u32)(wg * 64 * 128);
        const int row0 = q0 + wg * 64;
        {
            const __half* qb = q + (long long)b * qsb + (long long)h * qsh;
            load_rows<D, 64, BM, 128>(qb + (long long)row0 * qss, qss, seq_q - row0, q, sQw, wtid,
                                      vec);
        }
        cp_async_wait_all();

        // The loop wants a positive scale: a sign (or zero) goes exactly into Q.
        float sl = scale * 1.4426950408889634f;
        if (!(scale > 0.f)) {
            bar_sync<128>(3 + wg);
            const bool zero = (scale == 0.f);
#pragma unroll 1
            for (int c = 0; c < D / 64; ++c) {
#pragma unroll 1
                for (int i = wtid; i < 512; i += 128) {
                    const u32 addr = sQw + (u32)(c * BM * 128 + i * 16);
                    uint4 x = ld_shared_v4(addr);
                    if (zero) {
                        x = make_uint4(0u, 0u, 0u, 0u);
                    } else {
                        x.x ^= 0x80008000u;
                        x.y ^= 0x80008000u;
                        x.z ^= 0x80008000u;
                        x.w ^= 0x80008000u;
                    }
                    st_shared_v4(addr, x);
                }
            }
            sl = zero ? 1.f : -sl;
        }
        fence_proxy_async();
        bar_sync<128>(3 + wg);

        const int g = lane >> 2;
        const int t = lane & 3;
        const u32 lead = (lane == 0) ? 1u : 0u;

        float S[64];
        float O[D / 2];
        u32 P[32];
        float m0 = NEG_INF, m1 = NEG_INF, l0 = 0.f, l1 = 0.f;
#pragma unroll
        for (int i = 0; i < 64; ++i) S[i] = 0.f;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) O[i] = 0.f;

        // last visible key of this thread's two rows, less its first column
        const int qrow = row0 + warp4 * 16 + g;
        const int vis0 = min(qrow + delta, seq_k - 1) - 2 * t;
        const int vis1 = min(qrow + 8 + delta, seq_k - 1) - 2 * t;

        auto mask = [&](int j) {
            const int lim0 = vis0 - j * BN;
            const int lim1 = vis1 - j * BN;
#pragma unroll
            for (int nb = 0; nb < BN / 8; ++nb) {
                if (nb * 8 > lim0) S[4 * nb + 0] = NEG_INF;
                if (nb * 8 + 1 > lim0) S[4 * nb + 1] = NEG_INF;
                if (nb * 8 > lim1) S[4 * nb + 2] = NEG_INF;
                if (nb * 8 + 1 > lim1) S[4 * nb + 3] = NEG_INF;
            }
        };

        auto softmax = [&](float& a0, float& a1) {
            float x0 = fmaxf(S[0], S[1]);
            float x1 = fmaxf(S[2], S[3]);
            float y0 = fmaxf(S[4], S[5]);
            float y1 = fmaxf(S[6], S[7]);
#pragma unroll
            for (int nb = 2; nb < BN / 8; nb += 2) {
                x0 = fmaxf(x0, fmaxf(S[4 * nb + 0], S[4 * nb + 1]));
                x1 = fmaxf(x1, fmaxf(S[4 * nb + 2], S[4 * nb + 3]));
                y0 = fmaxf(y0, fmaxf(S[4 * nb + 4], S[4 * nb + 5]));
                y1 = fmaxf(y1, fmaxf(S[4 * nb + 6], S[4 * nb + 7]));
            }
            x0 = fmaxf(x0, y0);
            x1 = fmaxf(x1, y1);
            x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
            x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
            x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
            x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));
            const float n0 = fmaxf(m0, x0);
            const float n1 = fmaxf(m1, x1);
            float s0 = __fmul_rn(n0, sl);
            float s1 = __fmul_rn(n1, sl);
            s0 = (n0 == NEG_INF) ? 0.f : s0;
            s1 = (n1 == NEG_INF) ? 0.f : s1;
            a0 = ex2(__fsub_rn(__fmul_rn(m0, sl), s0));
            a1 = ex2(__fsub_rn(__fmul_rn(m1, sl), s1));
            m0 = n0;
            m1 = n1;
            const float c0 = -s0;
            const float c1 = -s1;
            float u0 = 0.f, u1 = 0.f, w0 = 0.f, w1 = 0.f;
#pragma unroll
            for (int nb = 0; nb < BN / 8; ++nb) {
                S[4 * nb + 0] = ex2(__fmaf_rn(S[4 * nb + 0], sl, c0));
                S[4 * nb + 1] = ex2(__fmaf_rn(S[4 * nb + 1], sl, c0));
                S[4 * nb + 2] = ex2(__fmaf_rn(S[4 * nb + 2], sl, c1));
                S[4 * nb + 3] = ex2(__fmaf_rn(S[4 * nb + 3], sl, c1));
                u0 += S[4 * nb + 0];
                w0 += S[4 * nb + 1];
                u1 += S[4 * nb + 2];
                w1 += S[4 * nb + 3];
            }
            l0 = __fmaf_rn(l0, a0, u0 + w0);
            l1 = __fmaf_rn(l1, a1, u1 + w1);
        };

        auto pack = [&]() {
#pragma unroll
            for (int i = 0; i < 32; ++i) P[i] = pack2(S[2 * i], S[2 * i + 1]);
        };

        if (tiles > 0) {
            int sk = 0, sv = 0;
            u32 pk = 0, pv = 0;

            // the two warpgroups take turns in issuing products
            bar_arrive_if<256>(1, (wg == 1 && tiles > 1) ? 1u : 0u);

            // first key tile
            mbar_wait(fullK, 0);
            fence_proxy_async();
            fence_regs(S);
            wg_fence();
            gemm_qk<D, BM, BN>(S, sQw, sK, warp4, lane);
            wg_commit();
            wg_wait<0>();
            fence_regs(S);
            __syncwarp();
            mbar_arrive_if(emptyK, lead);
            if (++sk == NS) {
                sk = 0;
                pk ^= 1u;
            }
            if (full_tiles == 0) mask(0);
            {
                float a0, a1;
                softmax(a0, a1);  // O is still zero: nothing to rescale
            }
            pack();

            auto step = [&](auto tag, int j) {
                constexpr bool MASK = decltype(tag)::value;
                mbar_wait(fullK + 8 * sk, pk);
                mbar_wait(fullV + 8 * sv, pv);
                fence_proxy_async();
                bar_sync<256>(1 + wg);
                fence_regs(S);
                fence_regs(O);
                fence_regs(P);
                wg_fence();
                gemm_qk<D, BM, BN>(S, sQw, sK + (u32)sk * KV_BYTES, warp4, lane);
                wg_commit();
                gemm_pv<D, BN>(O, P, sV + (u32)sv * KV_BYTES, lane);
                wg_commit();
                bar_arrive_if<256>(1 + (wg ^ 1), (wg == 1 && j == tiles - 1) ? 0u : 1u);
                wg_wait<1>();
                fence_regs(S);
                __syncwarp();
                mbar_arrive_if(emptyK + 8 * sk, lead);
                if constexpr (MASK) mask(j);
                float a0, a1;
                softmax(a0, a1);
                wg_wait<0>();
                fence_regs(O);
                fence_regs(S);
                __syncwarp();
                mbar_arrive_if(emptyV + 8 * sv, lead);
#pragma unroll
                for (int nb = 0; nb < D / 8; ++nb) {
                    O[4 * nb + 0] *= a0;
                    O[4 * nb + 1] *= a0;
                    O[4 * nb + 2] *= a1;
                    O[4 * nb + 3] *= a1;
                }
                pack();
                if (++sk == NS) {
                    sk = 0;
                    pk ^= 1u;
                }
                if (++sv == NS) {
                    sv = 0;
                    pv ^= 1u;
                }
            };

            // key tiles that every query of this block sees
#pragma unroll 1
            for (int j = 1; j < full_tiles; ++j) step(BoolC<false>{}, j);
            // key tiles that cross the diagonal
#pragma unroll 1
            for (int j = max(1, full_tiles); j < tiles; ++j) step(BoolC<true>{}, j);

            // the last value product
            mbar_wait(fullV + 8 * sv, pv);
            fence_proxy_async();
            fence_regs(O);
            fence_regs(P);
            wg_fence();
            gemm_pv<D, BN>(O, P, sV + (u32)sv * KV_BYTES, lane);
            wg_commit();
            wg_wait<0>();
            fence_regs(O);
        }

        // normalise once; l = 0 gives 0
        l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
        l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
        l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
        l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
        const float i0 = (l0 > 0.f) ? 1.f / l0 : 0.f;
        const float i1 = (l1 > 0.f) ? 1.f / l1 : 0.f;

        // through this warpgroup's part of Q's buffer, so that rows go out in 16-byte pieces
        bar_sync<128>(3 + wg);
        {
            const int r = warp4 * 16 + g;
#pragma unroll
            for (int nb = 0; nb < D / 8; ++nb) {
                const u32 addr = sQw + (u32)((nb >> 3) * BM * 128 + r * 128 +
                                             (((nb & 7) ^ (r & 7)) << 4) + t * 4);
                st_shared_b32(addr, pack2(O[4 * nb + 0] * i0, O[4 * nb + 1] * i0));
                st_shared_b32(addr + 1024u, pack2(O[4 * nb + 2] * i1, O[4 * nb + 3] * i1));
            }
        }
        __syncwarp();
        {
            constexpr int CPR = D / 8;
            constexpr int RPI = 32 / CPR;
            const int c = lane % CPR;
            __half* ob = out + (long long)b * osb + (long long)h * osh;
#pragma unroll
            for (int it = 0; it < 16 / RPI; ++it) {
                const int r = warp4 * 16 + it * RPI + lane / CPR;
                const int grow = row0 + r;
                const uint4 x = ld_shared_v4(
                    sQw + (u32)((c >> 3) * BM * 128 + r * 128 + (((c & 7) ^ (r & 7)) << 4)));
                if (grow < seq_q) {
                    __half* op = ob + (long long)grow * oss + c * 8;
                    if (vec) {
                        *reinterpret_cast<uint4*>(op) = x;
                    } else {
                        unsigned short* os = reinterpret_cast<unsigned short*>(op);
                        os[0] = (unsigned short)(x.x & 0xffffu);
                        os[1] = (unsigned short)(x.x >> 16);
                        os[2] = (unsigned short)(x.y & 0xffffu);
                        os[3] = (unsigned short)(x.y >> 16);
                        os[4] = (unsigned short)(x.z & 0xffffu);
                        os[5] = (unsigned short)(x.z >> 16);
                        os[6] = (unsigned short)(x.w & 0xffffu);
                        os[7] = (unsigned short)(x.w >> 16);
                    }
                }
            }
        }
    }
}
