#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

constexpr int BM = 128;
constexpr int BN = 128;
constexpr int STAGES = 3;
constexpr int PANEL = 128 * 128;      // bytes: 128 rows of 64 halves
constexpr int TILE_BYTES = 2 * PANEL; // 128 x 128 halves

// ---------------------------------------------------------------- helpers

__device__ __forceinline__ float neg_inf() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    u32 done;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(done)
            : "r"(bar), "r"(parity)
            : "memory");
    } while (!done);
}

__device__ __forceinline__ void bar_sync(int id, int count) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}

__device__ __forceinline__ void bar_arrive(int id, int count) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(count) : "memory");
}

__device__ __forceinline__ void cp16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp16z(u32 dst, const void* src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void sts128(u32 a, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(a), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}

__device__ __forceinline__ uint4 lds128(u32 a) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(a)
                 : "memory");
    return x;
}

__device__ __forceinline__ void sts32(u32 a, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(x) : "memory");
}

__device__ __forceinline__ u32 pack2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ __forceinline__ uint4 load_chunk_scalar(const half* p) {
    const unsigned short* u = reinterpret_cast<const unsigned short*>(p);
    uint4 x;
    x.x = (u32)u[0] | ((u32)u[1] << 16);
    x.y = (u32)u[2] | ((u32)u[3] << 16);
    x.z = (u32)u[4] | ((u32)u[5] << 16);
    x.w = (u32)u[6] | ((u32)u[7] << 16);
    return x;
}

// ---------------------------------------------------------------- registers

#define ACC_LIST                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "                              \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                         \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                       \
    "%24, %25, %26, %27, %28, %29, %30, %31, "                       \
    "%32, %33, %34, %35, %36, %37, %38, %39, "                       \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                       \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                       \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

#define ACC8(d, i)                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), \
        "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

#define ACC64(d)                                                                    \
    ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24), ACC8(d, 32), ACC8(d, 40),     \
        ACC8(d, 48), ACC8(d, 56)

#define REG8(d, i)                                                              \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), \
        "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])

__device__ __forceinline__ void pin(float (&d)[64]) { asm volatile("" : ACC64(d)::"memory"); }

__device__ __forceinline__ void pin(u32 (&d)[32]) {
    asm volatile("" : REG8(d, 0), REG8(d, 8), REG8(d, 16), REG8(d, 24)::"memory");
}

// ---------------------------------------------------------------- products

#if HAS_WGMMA

__device__ __forceinline__ void wg_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wg_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// 128-byte swizzle; leading and stride offsets in bytes
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFF) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(sbo >> 4) << 32) | (1ull << 62);
}

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(scale_d));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(scale_d));
}

// S = Q K^T: both K-major, two panels of 64 columns each
__device__ __forceinline__ void gemm_qk(float (&s)[64], u32 sq, u32 sk) {
    const u64 da = make_desc(sq, 16, 1024);
    const u64 db = make_desc(sk, 16, 1024);
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const u64 off = (u64)(((kk >> 2) * PANEL + (kk & 3) * 32) >> 4);
        wgmma_ss(s, da + off, db + off, kk == 0 ? 0 : 1);
    }
}

// O += P V: P in registers, V with its columns contiguous
__device__ __forceinline__ void gemm_pv(float (&o)[64], u32 (&p)[32], u32 sv) {
    const u64 db = make_desc(sv, PANEL, 1024);
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const u64 off = (u64)((kk * 16 * 128) >> 4);
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], db + off, 1);
    }
}

#else  // plain sm_90: the same fragments by mma.sync

__device__ __forceinline__ void wg_fence() {}
__device__ __forceinline__ void wg_commit() {}
template <int N>
__device__ __forceinline__ void wg_wait() { __syncwarp(); }

__device__ __forceinline__ u32 swz(u32 base, int row, int chunk) {
    return base + (chunk >> 3) * PANEL + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
}

__device__ __forceinline__ void ldsm(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}

__device__ __forceinline__ void ldsm_t(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}

__device__ __forceinline__ void mma16816(float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1, u32 a2,
                                         u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void gemm_qk(float (&s)[64], u32 sq, u32 sk) {
    const int l = threadIdx.x & 31;
    const int w = (threadIdx.x >> 5) & 3;
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = 0.f;
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        u32 a[4];
        ldsm(a, swz(sq, w * 16 + (l & 7) + ((l >> 3) & 1) * 8, 2 * kk + (l >> 4)));
#pragma unroll
        for (int np = 0; np < 8; ++np) {
            u32 b[4];
            ldsm(b, swz(sk, 16 * np + (l & 7) + (l >> 4) * 8, 2 * kk + ((l >> 3) & 1)));
            mma16816(s[8 * np], s[8 * np + 1], s[8 * np + 2], s[8 * np + 3], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma16816(s[8 * np + 4], s[8 * np + 5], s[8 * np + 6], s[8 * np + 7], a[0], a[1], a[2], a[3], b[2],
                     b[3]);
        }
    }
}

__device__ __forceinline__ void gemm_pv(float (&o)[64], u32 (&p)[32], u32 sv) {
    const int l = threadIdx.x & 31;
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
#pragma unroll
        for (int np = 0; np < 8; ++np) {
            u32 b[4];
            ldsm_t(b, swz(sv, 16 * kk + (l & 7) + ((l >> 3) & 1) * 8, 2 * np + (l >> 4)));
            mma16816(o[8 * np], o[8 * np + 1], o[8 * np + 2], o[8 * np + 3], p[4 * kk], p[4 * kk + 1],
                     p[4 * kk + 2], p[4 * kk + 3], b[0], b[1]);
            mma16816(o[8 * np + 4], o[8 * np + 5], o[8 * np + 6], o[8 * np + 7], p[4 * kk], p[4 * kk + 1],
                     p[4 * kk + 2], p[4 * kk + 3], b[2], b[3]);
        }
    }
}

#endif

// ---------------------------------------------------------------- softmax

// columns 8 t + e (relative to this thread's first column) beyond lim are hidden
__device__ __forceinline__ void mask_tile(float (&s)[64], int lim) {
#pragma unroll
    for (int t = 0; t < 16; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            if (8 * t + e > lim) s[4 * t + e] = neg_inf();
            if (8 * t + e > lim + 8) s[4 * t + 2 + e] = neg_inf();
        }
    }
}

// mc: running maximum of the scores times scale * log2(e); l: this thread's part of the row sum
__device__ __forceinline__ void softmax_step(float (&s)[64], float (&mc)[2], float (&l)[2], float (&alpha)[2],
                                             float c) {
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float m0 = fmaxf(s[2 * r], s[2 * r + 1]);
        float m1 = fmaxf(s[4 + 2 * r], s[4 + 2 * r + 1]);
#pragma unroll
        for (int t = 2; t < 16; t += 2) {
            m0 = fmaxf(m0, fmaxf(s[4 * t + 2 * r], s[4 * t + 2 * r + 1]));
            m1 = fmaxf(m1, fmaxf(s[4 * t + 4 + 2 * r], s[4 * t + 4 + 2 * r + 1]));
        }
        m0 = fmaxf(m0, m1);
        m0 = fmaxf(m0, __shfl_xor_sync(0xffffffffu, m0, 1));
        m0 = fmaxf(m0, __shfl_xor_sync(0xffffffffu, m0, 2));
        const float mn = fmaxf(mc[r], m0 * c);
        base[r] = (mn == neg_inf()) ? 0.f : mn;
        alpha[r] = ex2(mc[r] - base[r]);
        mc[r] = mn;
    }
    float sum[2][2] = {{0.f, 0.f}, {0.f, 0.f}};
#pragma unroll
    for (int t = 0; t < 16; ++t) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float x = ex2(fmaf(s[4 * t + 2 * r], c, -base[r]));
            const float y = ex2(fmaf(s[4 * t + 2 * r + 1], c, -base[r]));
            s[4 * t + 2 * r] = x;
            s[4 * t + 2 * r + 1] = y;
            sum[r][0] += x;
            sum[r][1] += y;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) l[r] = fmaf(l[r], alpha[r], sum[r][0] + sum[r][1]);
}

__device__ __forceinline__ void pack_p(u32 (&p)[32], float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

// ---------------------------------------------------------------- one step of the loop

struct Pipe {
    u32 sq, sk, sv;
    u32 full_k, empty_k, full_v, empty_v;
    int kst, vst;
    u32 kph, vph;
};

template <bool MASK>
__device__ __forceinline__ void step(float (&s)[64], float (&o)[64], u32 (&p)[32], float (&mc)[2], float (&l)[2],
                                     Pipe& pipe, float c, int cw, int lane, int j, int tiles, int lim) {
    float alpha[2];

    mbar_wait(pipe.full_k + 8 * pipe.kst, pipe.kph);
    bar_sync(1 + cw, 256);  // this warpgroup's turn to issue
    pin(o);
    pin(p);
    wg_fence();
    gemm_qk(s, pipe.sq, pipe.sk + pipe.kst * TILE_BYTES);
    wg_commit();
    mbar_wait(pipe.full_v + 8 * pipe.vst, pipe.vph);
    wg_fence();
    gemm_pv(o, p, pipe.sv + pipe.vst * TILE_BYTES);
    wg_commit();
    if (!(cw == 1 && j == tiles - 1)) bar_arrive(1 + (cw ^ 1), 256);

    wg_wait<1>();
    pin(s);
    if (lane == 0) mbar_arrive(pipe.empty_k + 8 * pipe.kst);

    if (MASK) mask_tile(s, lim - j * BN);
    softmax_step(s, mc, l, alpha, c);
    pin(s);

    wg_wait<0>();
    pin(o);
    pin(p);
    if (lane == 0) mbar_arrive(pipe.empty_v + 8 * pipe.vst);

    pack_p(p, s);
#pragma unroll
    for (int t = 0; t < 16; ++t) {
        o[4 * t] *= alpha[0];
        o[4 * t + 1] *= alpha[0];
        o[4 * t + 2] *= alpha[1];
        o[4 * t + 3] *= alpha[1];
    }

    if (++pipe.kst == STAGES) {
        pipe.kst = 0;
        pipe.kph ^= 1;
    }
    if (++pipe.vst == STAGES) {
        pipe.vst = 0;
        pipe.vph ^= 1;
    }
}

// ---------------------------------------------------------------- producer's tile

// 64 threads load 128 rows of 128 halves; rows at or past `rows` become 0
template <int ALIGNED>
__device__ __forceinline__ void load_tile(const half* src, long long ss, int row0, int rows, u32 dst, int t) {
    const int c = t & 15;
    const int r0 = t >> 4;  // 0..3
    const u32 d0 = dst + (c >> 3) * PANEL + r0 * 128 + (((c & 7) ^ r0) << 4);
    const u32 d1 = (d0 ^ 64) + 512;  // four rows further down
    const half* p = src + (long long)(row0 + r0) * ss + c * 8;
    const long long ss4 = 4 * ss;
    if (ALIGNED) {
        if (row0 + BN <= rows) {
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                cp16(d0 + i * 1024, p);
                p += ss4;
                cp16(d1 + i * 1024, p);
                p += ss4;
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < 32; ++i) {
                const bool ok = row0 + r0 + 4 * i < rows;
                const u32 d = ((i & 1) ? d1 : d0) + (i >> 1) * 1024;
                cp16z(d, ok ? p : src, ok ? 16u : 0u);
                p += ss4;
            }
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 32; ++i) {
            const bool ok = row0 + r0 + 4 * i < rows;
            const u32 d = ((i & 1) ? d1 : d0) + (i >> 1) * 1024;
            uint4 x = make_uint4(0u, 0u, 0u, 0u);
            if (ok) x = load_chunk_scalar(p);
            sts128(d, x);
            p += ss4;
        }
    }
}

__device__ __forceinline__ void publish(u32 bar, int lane) {
    fence_async();
    __syncwarp();
    if (lane == 0) mbar_arrive(bar);
}

// ---------------------------------------------------------------- kernel

template <int ALIGNED>
__global__ void __launch_bounds__(384, 1)
causal_gqa(const half* q, const half* k, const half* v, half* out,
           long long q_sb, long long q_ss, long long q_sh,
           long long k_sb, long long k_ss, long long k_sh,
           long long v_sb, long long v_ss, long long v_sh,
           long long o_sb, long long o_ss, long long o_sh,
           int seq_q, int seq_k, int group, float scale) {
    extern __shared__ unsigned char smem_raw[];
    const u32 base = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
    const u32 s_q = base;
    const u32 s_k = s_q + TILE_BYTES;
    const u32 s_v = s_k + STAGES * TILE_BYTES;
    const u32 bars = s_v + STAGES * TILE_BYTES;
    const u32 full_k = bars;
    const u32 empty_k = full_k + 8 * STAGES;
    const u32 full_v = empty_k + 8 * STAGES;
    const u32 empty_v = full_v + 8 * STAGES;

    const int h = blockIdx.x;
    const int b = blockIdx.y;
    const int qt = (int)gridDim.z - 1 - (int)blockIdx.z;  // longest blocks first
    const int g = h / group;
    const int delta = seq_k - seq_q;
    const int visible = max(0, min(seq_k, (qt + 1) * BM + delta));
    const int tiles = (visible + BN - 1) / BN;
    const int full = max(0, qt * BM + delta + 1) / BN;

    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);
    const int lane = threadIdx.x & 31;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            mbar_init(full_k + 8 * i, 2);
            mbar_init(full_v + 8 * i, 2);
            mbar_init(empty_k + 8 * i, 8);
            mbar_init(empty_v + 8 * i, 8);
        }
    }

    if (wg != 0) {
        // each consumer warpgroup brings its own 64 query rows
        const int cw = wg - 1;
        const int t = threadIdx.x & 127;
        const int c = t & 15;
        const int r0 = t >> 4;  // 0..7
        const u32 d = s_q + cw * 8192 + (c >> 3) * PANEL + r0 * 128 + (((c & 7) ^ r0) << 4);
        const half* qb = q + (long long)b * q_sb + (long long)h * q_sh;
        const int row0 = qt * BM + cw * 64 + r0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int row = row0 + 8 * i;
            const bool ok = row < seq_q;
            const half* p = ok ? qb + (long long)row * q_ss + c * 8 : qb;
            if (ALIGNED) {
                cp16z(d + i * 1024, p, ok ? 16u : 0u);
            } else {
                uint4 x = make_uint4(0u, 0u, 0u, 0u);
                if (ok) x = load_chunk_scalar(p);
                sts128(d + i * 1024, x);
            }
        }
        cp_commit();
    }
    __syncthreads();

    if (wg == 0) {
        // ------------------------------------------------ producer: two warps for K, two for V
#if HAS_WGMMA
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
        const bool is_v = threadIdx.x >= 64;
        const int t = threadIdx.x & 63;
        const half* src = is_v ? v + (long long)b * v_sb + (long long)g * v_sh
                               : k + (long long)b * k_sb + (long long)g * k_sh;
        const long long ss = is_v ? v_ss : k_ss;
        const u32 dst = is_v ? s_v : s_k;
        const u32 full_b = is_v ? full_v : full_k;
        const u32 empty_b = is_v ? empty_v : empty_k;
        int stage = 0;
        u32 eph = 0;
#pragma unroll 1
        for (int j = 0; j < tiles; ++j) {
            if (j >= STAGES) mbar_wait(empty_b + 8 * stage, eph);
            load_tile<ALIGNED>(src, ss, j * BN, seq_k, dst + stage * TILE_BYTES, t);
            cp_commit();
            if (j > 0) {
                if (j == 1) {
                    cp_wait<1>();
                    publish(full_b, lane);
                }
                cp_wait<0>();
                publish(full_b + 8 * stage, lane);
            }
            if (++stage == STAGES) {
                stage = 0;
                if (j >= STAGES) eph ^= 1;
            }
        }
        if (tiles == 1) {
            cp_wait<0>();
            publish(full_b, lane);
        }
    } else {
        // ------------------------------------------------ consumers
#if HAS_WGMMA
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
        const int cw = wg - 1;
        const int warp = (threadIdx.x >> 5) & 3;
        const u32 s_qw = s_q + cw * 8192;

        float c = scale * 1.4426950408889634f;
        cp_wait<0>();
        if (!(c > 0.f)) {
            // a negative scale: negate Q (exact); a zero scale: zero Q
            const bool neg = c < 0.f;
            c = neg ? -c : 1.f;
            const int t = threadIdx.x & 127;
            const int ch = t & 15;
            const int r0 = t >> 4;
            const u32 d = s_qw + (ch >> 3) * PANEL + r0 * 128 + (((ch & 7) ^ r0) << 4);
#pragma unroll 1
            for (int i = 0; i < 8; ++i) {
                uint4 x = make_uint4(0u, 0u, 0u, 0u);
                if (neg) {
                    x = lds128(d + i * 1024);
                    x.x ^= 0x80008000u;
                    x.y ^= 0x80008000u;
                    x.z ^= 0x80008000u;
                    x.w ^= 0x80008000u;
                }
                sts128(d + i * 1024, x);
            }
        }
        fence_async();
        bar_sync(3 + cw, 128);

        float o[64];
        float s[64];
        u32 p[32];
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            o[i] = 0.f;
            s[i] = 0.f;
        }
        float mc[2] = {neg_inf(), neg_inf()};
        float l[2] = {0.f, 0.f};

        const int row = qt * BM + cw * 64 + warp * 16 + (lane >> 2);
        const int lim = row + delta - 2 * (lane & 3);

        if (tiles > 0) {
            Pipe pipe;
            pipe.sq = s_qw;
            pipe.sk = s_k;
            pipe.sv = s_v;
            pipe.full_k = full_k;
            pipe.empty_k = empty_k;
            pipe.full_v = full_v;
            pipe.empty_v = empty_v;
            pipe.kst = 1;
            pipe.kph = 0;
            pipe.vst = 0;
            pipe.vph = 0;

            // tile 0: scores and softmax
            mbar_wait(full_k, 0);
            pin(s);
            wg_fence();
            gemm_qk(s, s_qw, s_k);
            wg_commit();
            wg_wait<0>();
            pin(s);
            if (lane == 0) mbar_arrive(empty_k);
            if (full == 0) mask_tile(s, lim);
            {
                float alpha[2];
                softmax_step(s, mc, l, alpha, c);  // O is still 0
            }
            pack_p(p, s);

            if (cw == 1 && tiles > 1) bar_arrive(1, 256);  // the first warpgroup issues first

            int j = 1;
            const int unmasked = min(full, tiles);
#pragma unroll 1
            for (; j < unmasked; ++j) step<false>(s, o, p, mc, l, pipe, c, cw, lane, j, tiles, lim);
#pragma unroll 1
            for (; j < tiles; ++j) step<true>(s, o, p, mc, l, pipe, c, cw, lane, j, tiles, lim);

            // the last tile's second product
            mbar_wait(full_v + 8 * pipe.vst, pipe.vph);
            pin(o);
            pin(p);
            wg_fence();
            gemm_pv(o, p, s_v + pipe.vst * TILE_BYTES);
            wg_commit();
            wg_wait<0>();
            pin(o);
            pin(p);
        }

        // normalise once; l = 0 gives 0
        float inv[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float x = l[r];
            x += __shfl_xor_sync(0xffffffffu, x, 1);
            x += __shfl_xor_sync(0xffffffffu, x, 2);
            inv[r] = x > 0.f ? 1.f / x : 0.f;
        }

        half* ob = out + (long long)b * o_sb + (long long)h * o_sh;
        if (ALIGNED) {
            // through this warpgroup's part of Q's shared memory, for whole rows at a time
            bar_sync(3 + cw, 128);
            const u32 sw = s_qw + warp * 16 * 128;
            const int r = lane >> 2;
#pragma unroll
            for (int t = 0; t < 16; ++t) {
                const u32 a = sw + (t >> 3) * PANEL + r * 128 + (((t & 7) ^ r) << 4) + (lane & 3) * 4;
                sts32(a, pack2(o[4 * t] * inv[0], o[4 * t + 1] * inv[0]));
                sts32(a + 1024, pack2(o[4 * t + 2] * inv[1], o[4 * t + 3] * inv[1]));
            }
            __syncwarp();
            const int ch = lane & 15;
            const int rb = lane >> 4;
            const int grow0 = qt * BM + cw * 64 + warp * 16;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int rr = 2 * i + rb;
                const uint4 x = lds128(sw + (ch >> 3) * PANEL + rr * 128 + (((ch & 7) ^ (rr & 7)) << 4));
                const int grow = grow0 + rr;
                if (grow < seq_q) {
                    *reinterpret_cast<uint4*>(ob + (long long)grow * o_ss + ch * 8) = x;
                }
            }
        } else {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int grow = row + 8 * r;
                if (grow < seq_q) {
                    half* op = ob + (long long)grow * o_ss + 2 * (lane & 3);
#pragma unroll
                    for (int t = 0; t < 16; ++t) {
                        op[8 * t] = __float2half_rn(o[4 * t + 2 * r] * inv[r]);
                        op[8 * t + 1] = __float2half_rn(o[4 * t + 2 * r + 1] * inv[r]);
                    }
                }
            }
        }
    }
}
