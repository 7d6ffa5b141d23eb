typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef unsigned short u16;

#ifndef USE_WGMMA
#define USE_WGMMA 1
#endif

#define DEV static __device__ __forceinline__

constexpr int STAGES = 3;
constexpr u32 TILE_BYTES = 32768;   // 128 rows x 128 halves
constexpr u32 HALF_BYTES = 16384;   // 128 rows x 64 halves, 128-byte rows, swizzled
constexpr u32 OFF_Q = 0;
constexpr u32 OFF_K = TILE_BYTES;
constexpr u32 OFF_V = TILE_BYTES * (1 + STAGES);
constexpr u32 OFF_BAR = TILE_BYTES * (1 + 2 * STAGES);

// ---------------------------------------------------------------- barriers

DEV void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

DEV void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

DEV void mbar_arrive_if(u32 bar, u32 pred) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %1, 0;\n"
        "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n"
        "}\n" ::"r"(bar), "r"(pred) : "memory");
}

DEV void mbar_wait(u32 bar, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred P1;\n"
        "LAB_WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n"
        "@P1 bra DONE;\n"
        "bra LAB_WAIT;\n"
        "DONE:\n"
        "}\n" ::"r"(bar), "r"(parity) : "memory");
}

DEV void cp_async_arrive(u32 bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

DEV void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

DEV void named_sync(int id) {
    asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}

DEV void named_arrive(int id) {
    asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}

// ---------------------------------------------------------------- small helpers

DEV float neg_inf() { return __int_as_float(0xff800000); }

DEV float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEV u32 pack_half(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

DEV void fence_regs(float (&r)[64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

// ---------------------------------------------------------------- matrix products

#if USE_WGMMA

#define A4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define A16(d, i) A4(d, i), A4(d, i + 4), A4(d, i + 8), A4(d, i + 12)
#define A64(d) A16(d, 0), A16(d, 16), A16(d, 32), A16(d, 48)
#define REGS64                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "                            \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                     \
    "%24, %25, %26, %27, %28, %29, %30, %31, "                     \
    "%32, %33, %34, %35, %36, %37, %38, %39, "                     \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                     \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                     \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

DEV void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " REGS64
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : A64(d)
        : "l"(da), "l"(db), "r"(scale_d));
}

DEV void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " REGS64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : A64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// S = Q K^T; q: address of the warpgroup's 64 rows, k: address of the key tile
DEV void gemm_qk(float (&s)[64], u32 q, u32 k, int, int) {
    // K-major, 128-byte swizzle, 8-row groups 1024 bytes apart
    const u64 base = (1ull << 62) | (64ull << 32) | (1ull << 16);
    const u64 dq = base | (u64)((q & 0x3FFFF) >> 4);
    const u64 dk = base | (u64)((k & 0x3FFFF) >> 4);
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const u64 off = (u64)((kk >> 2) * (HALF_BYTES >> 4) + (kk & 3) * 2);
        wgmma_ss(s, dq + off, dk + off, kk != 0 ? 1 : 0);
    }
}

// O += P V
DEV void gemm_pv(float (&o)[64], const u32 (&p)[32], u32 v, int) {
    // MN-major, 128-byte swizzle: 64-column halves LBO apart, 8-key groups SBO apart
    const u64 base = (1ull << 62) | (64ull << 32) | ((u64)(HALF_BYTES >> 4) << 16);
    const u64 dv = base | (u64)((v & 0x3FFFF) >> 4);
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], dv + (u64)(kk * 128));
    }
}

#else  // mma.sync

DEV void ldsm4(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
DEV void ldsm4t(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
DEV void mma16816(float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1, u32 a2, u32 a3,
                  u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEV u32 swz(u32 base, int row, int chunk) {
    return base + (u32)(chunk >> 3) * HALF_BYTES + (u32)row * 128u +
           (u32)(((chunk & 7) ^ (row & 7)) << 4);
}

DEV void gemm_qk(float (&s)[64], u32 q, u32 k, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = 0.f;
    const int i8 = lane >> 3;
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        u32 a[4];
        ldsm4(a, swz(q, warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
        for (int nb = 0; nb < 16; nb += 2) {
            u32 b[4];
            ldsm4(b, swz(k, nb * 8 + (i8 >> 1) * 8 + (lane & 7), kk * 2 + (i8 & 1)));
            mma16816(s[nb * 4], s[nb * 4 + 1], s[nb * 4 + 2], s[nb * 4 + 3], a[0], a[1], a[2], a[3],
                     b[0], b[1]);
            mma16816(s[nb * 4 + 4], s[nb * 4 + 5], s[nb * 4 + 6], s[nb * 4 + 7], a[0], a[1], a[2],
                     a[3], b[2], b[3]);
        }
    }
}

DEV void gemm_pv(float (&o)[64], const u32 (&p)[32], u32 v, int lane) {
    const int i8 = lane >> 3;
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
#pragma unroll
        for (int nb = 0; nb < 16; nb += 2) {
            u32 b[4];
            ldsm4t(b, swz(v, kk * 16 + (i8 & 1) * 8 + (lane & 7), nb + (i8 >> 1)));
            mma16816(o[nb * 4], o[nb * 4 + 1], o[nb * 4 + 2], o[nb * 4 + 3], p[4 * kk],
                     p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], b[0], b[1]);
            mma16816(o[nb * 4 + 4], o[nb * 4 + 5], o[nb * 4 + 6], o[nb * 4 + 7], p[4 * kk],
                     p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], b[2], b[3]);
        }
    }
}

#endif

// ---------------------------------------------------------------- producer

// Copies up to 128 rows of 128 halves into a swizzled tile and arrives on bar.
DEV void load_tile(u32 dst, const u16* src, i64 stride, int rows, bool aligned, int tid, u32 bar) {
    const int c = tid & 15;
    const int r = tid >> 4;
    u32 d = dst + (u32)(c >> 3) * HALF_BYTES + (u32)r * 128u + (u32)(((c & 7) ^ r) << 4);
    const u16* p = src + (i64)r * stride + c * 8;
    const i64 step = stride * 8;
    if (aligned) {
        if (rows >= 128) {
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(d + (u32)i * 1024u),
                             "l"(p)
                             : "memory");
                p += step;
            }
        } else {
#pragma unroll 2
            for (int i = 0; i < 16; ++i) {
                const bool ok = r + 8 * i < rows;
                const u16* g = ok ? p : src;
                const u32 bytes = ok ? 16u : 0u;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                                 d + (u32)i * 1024u),
                             "l"(g), "r"(bytes)
                             : "memory");
                p += step;
            }
        }
        cp_async_arrive(bar);
    } else {
#pragma unroll 1
        for (int i = 0; i < 16; ++i) {
            u32 w0 = 0, w1 = 0, w2 = 0, w3 = 0;
            if (r + 8 * i < rows) {
                w0 = (u32)p[0] | ((u32)p[1] << 16);
                w1 = (u32)p[2] | ((u32)p[3] << 16);
                w2 = (u32)p[4] | ((u32)p[5] << 16);
                w3 = (u32)p[6] | ((u32)p[7] << 16);
            }
            asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(d + (u32)i * 1024u),
                         "r"(w0), "r"(w1), "r"(w2), "r"(w3)
                         : "memory");
            p += step;
        }
        fence_proxy_async();
        mbar_arrive(bar);
    }
}

// ---------------------------------------------------------------- pipeline state, softmax

struct Pipe {
    u32 st;
    u32 ph;
};

DEV void advance(Pipe& p) {
    p.st += 1;
    if (p.st == (u32)STAGES) {
        p.st = 0;
        p.ph ^= 1;
    }
}

struct Bars {
    u32 q_full, q_empty, k_full, k_empty, v_full, v_empty;  // k_*, v_*: first of STAGES
};

// Scores become probabilities in place; ms is the running maximum of s * sl2.
template <bool MASK>
DEV void softmax_step(float (&s)[64], float& ms0, float& ms1, float& l0, float& l1, float& al0,
                      float& al1, float sl2, float sgn, int lim0, int lim1) {
    if (MASK) {
#pragma unroll
        for (int nb = 0; nb < 16; ++nb) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int col = nb * 8 + e;
                s[nb * 4 + e] = col > lim0 ? neg_inf() : s[nb * 4 + e] * sgn;
                s[nb * 4 + 2 + e] = col > lim1 ? neg_inf() : s[nb * 4 + 2 + e] * sgn;
            }
        }
    }
    float mx0 = fmaxf(s[0], s[1]);
    float mx1 = fmaxf(s[2], s[3]);
#pragma unroll
    for (int nb = 1; nb < 16; ++nb) {
        mx0 = fmaxf(mx0, fmaxf(s[nb * 4], s[nb * 4 + 1]));
        mx1 = fmaxf(mx1, fmaxf(s[nb * 4 + 2], s[nb * 4 + 3]));
    }
    mx0 = fmaxf(mx0, __shfl_xor_sync(0xffffffffu, mx0, 1));
    mx1 = fmaxf(mx1, __shfl_xor_sync(0xffffffffu, mx1, 1));
    mx0 = fmaxf(mx0, __shfl_xor_sync(0xffffffffu, mx0, 2));
    mx1 = fmaxf(mx1, __shfl_xor_sync(0xffffffffu, mx1, 2));
    const float n0 = fmaxf(ms0, mx0 * sl2);
    const float n1 = fmaxf(ms1, mx1 * sl2);
    float sub0 = n0, sub1 = n1;
    if (MASK) {
        sub0 = n0 == neg_inf() ? 0.f : n0;
        sub1 = n1 == neg_inf() ? 0.f : n1;
    }
    al0 = ex2(ms0 - sub0);
    al1 = ex2(ms1 - sub1);
    ms0 = n0;
    ms1 = n1;
    float sum0 = 0.f, sum1 = 0.f;
#pragma unroll
    for (int nb = 0; nb < 16; ++nb) {
        s[nb * 4] = ex2(fmaf(s[nb * 4], sl2, -sub0));
        s[nb * 4 + 1] = ex2(fmaf(s[nb * 4 + 1], sl2, -sub0));
        s[nb * 4 + 2] = ex2(fmaf(s[nb * 4 + 2], sl2, -sub1));
        s[nb * 4 + 3] = ex2(fmaf(s[nb * 4 + 3], sl2, -sub1));
        sum0 += s[nb * 4] + s[nb * 4 + 1];
        sum1 += s[nb * 4 + 2] + s[nb * 4 + 3];
    }
    l0 = fmaf(l0, al0, sum0);
    l1 = fmaf(l1, al1, sum1);
}

// accumulator layout -> A operand layout
DEV void pack_p(u32 (&p)[32], const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack_half(s[2 * i], s[2 * i + 1]);
}

DEV void rescale(float (&o)[64], float al0, float al1) {
#pragma unroll
    for (int nb = 0; nb < 16; ++nb) {
        o[nb * 4] *= al0;
        o[nb * 4 + 1] *= al0;
        o[nb * 4 + 2] *= al1;
        o[nb * 4 + 3] *= al1;
    }
}

#if USE_WGMMA
// S of tile n and, behind it, P V of tile n + 1; then the softmax of tile n.
template <bool MASK>
DEV void kv_step(float (&o)[64], float (&s)[64], u32 (&p)[32], float& ms0, float& ms1, float& l0,
                 float& l1, const Bars& bars, Pipe& kp, Pipe& vp, u32 sq, u32 sk, u32 sv, int wg,
                 u32 lead, int n, float sl2, float sgn, int vis0, int vis1) {
    mbar_wait(bars.k_full + kp.st * 8, kp.ph);
    mbar_wait(bars.v_full + vp.st * 8, vp.ph);
    fence_proxy_async();
    named_sync(1 + wg);
    wgmma_fence();
    gemm_qk(s, sq, sk + kp.st * TILE_BYTES, 0, 0);
    wgmma_commit();
    gemm_pv(o, p, sv + vp.st * TILE_BYTES, 0);
    wgmma_commit();
    named_arrive(1 + (wg ^ 1));
    wgmma_wait<1>();
    fence_regs(s);
    mbar_arrive_if(bars.k_empty + kp.st * 8, lead);
    mbar_arrive_if(bars.q_empty, n == 0 ? lead : 0u);
    float al0, al1;
    softmax_step<MASK>(s, ms0, ms1, l0, l1, al0, al1, sl2, sgn, vis0 - n * 128, vis1 - n * 128);
    wgmma_wait<0>();
    fence_regs(o);
    mbar_arrive_if(bars.v_empty + vp.st * 8, lead);
    pack_p(p, s);
    rescale(o, al0, al1);
    advance(kp);
    advance(vp);
}
#else
template <bool MASK>
DEV void kv_simple(float (&o)[64], float (&s)[64], u32 (&p)[32], float& ms0, float& ms1, float& l0,
                   float& l1, const Bars& bars, Pipe& kp, Pipe& vp, u32 sq, u32 sk, u32 sv,
                   int warp, int lane, u32 lead, int n, float sl2, float sgn, int vis0, int vis1) {
    mbar_wait(bars.k_full + kp.st * 8, kp.ph);
    gemm_qk(s, sq, sk + kp.st * TILE_BYTES, warp, lane);
    __syncwarp();
    mbar_arrive_if(bars.k_empty + kp.st * 8, lead);
    mbar_arrive_if(bars.q_empty, n == 0 ? lead : 0u);
    float al0, al1;
    softmax_step<MASK>(s, ms0, ms1, l0, l1, al0, al1, sl2, sgn, vis0 - n * 128, vis1 - n * 128);
    pack_p(p, s);
    rescale(o, al0, al1);
    mbar_wait(bars.v_full + vp.st * 8, vp.ph);
    gemm_pv(o, p, sv + vp.st * TILE_BYTES, lane);
    __syncwarp();
    mbar_arrive_if(bars.v_empty + vp.st * 8, lead);
    advance(kp);
    advance(vp);
}
#endif

// 4x4 transpose over the four lanes of a quad
DEV void quad_transpose(u32 (&r)[4], int lane) {
    const bool hi2 = (lane & 2) != 0;
    u32 x = hi2 ? r[0] : r[2];
    u32 y = hi2 ? r[1] : r[3];
    x = __shfl_xor_sync(0xffffffffu, x, 2);
    y = __shfl_xor_sync(0xffffffffu, y, 2);
    if (hi2) {
        r[0] = x;
        r[1] = y;
    } else {
        r[2] = x;
        r[3] = y;
    }
    const bool hi1 = (lane & 1) != 0;
    x = hi1 ? r[0] : r[1];
    y = hi1 ? r[2] : r[3];
    x = __shfl_xor_sync(0xffffffffu, x, 1);
    y = __shfl_xor_sync(0xffffffffu, y, 1);
    if (hi1) {
        r[0] = x;
        r[2] = y;
    } else {
        r[1] = x;
        r[3] = y;
    }
}

DEV bool is_aligned(const u16* p, i64 a, i64 b, i64 c) {
    return (((u64)p & 15ull) == 0) && (((a | b | c) & 7) == 0);
}

// ---------------------------------------------------------------- the kernel

template <int HEAD_DIM>
__global__ void __launch_bounds__(384, 1)
attn_fwd(const u16* q, const u16* k, const u16* v, u16* out,
         i64 qsb, i64 qss, i64 qsh, i64 ksb, i64 kss, i64 ksh,
         i64 vsb, i64 vss, i64 vsh, i64 osb, i64 oss, i64 osh,
         int batch, int heads, int group, int nq, int nk, float scale) {
    static_assert(HEAD_DIM == 128, "head dimension 128 only");
    extern __shared__ unsigned char smem_raw[];
    const u32 smem = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;

    Bars bars;
    bars.q_full = smem + OFF_BAR;
    bars.q_empty = smem + OFF_BAR + 8;
    bars.k_full = smem + OFF_BAR + 16;
    bars.k_empty = bars.k_full + 8 * STAGES;
    bars.v_full = bars.k_empty + 8 * STAGES;
    bars.v_empty = bars.v_full + 8 * STAGES;

    if (threadIdx.x == 0) {
        mbar_init(bars.q_full, 128);
        mbar_init(bars.q_empty, 8);
        for (int i = 0; i < STAGES; ++i) {
            mbar_init(bars.k_full + 8 * i, 128);
            mbar_init(bars.k_empty + 8 * i, 8);
            mbar_init(bars.v_full + 8 * i, 128);
            mbar_init(bars.v_empty + 8 * i, 8);
        }
        fence_proxy_async();
    }
    __syncthreads();

    const int wgid = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);
    const int diff = nk - nq;
    const int bh_count = batch * heads;
    const int m_count = (nq + 127) >> 7;
    const int total = m_count * bh_count;
    const int nblk = (int)gridDim.x;
    const int blk = (int)blockIdx.x;

    if (wgid == 0) {
        // ------------------------------------------------ producer
#if USE_WGMMA
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
        const int tid = (int)threadIdx.x;
        const bool qal = is_aligned(q, qsb, qss, qsh);
        const bool kal = is_aligned(k, ksb, kss, ksh);
        const bool val = is_aligned(v, vsb, vss, vsh);
        Pipe kp = {0u, 0u}, vp = {0u, 0u};
        u32 qph = 0;
        int round = 0;
        for (int first = 0; first < total; first += nblk, ++round) {
            const int t = first + ((round & 1) ? nblk - 1 - blk : blk);
            if (t >= total) continue;
            const int mi = t / bh_count;
            const int bh = t - mi * bh_count;
            const int b = bh / heads;
            const int h = bh - b * heads;
            const int g = h / group;
            const int m0 = (m_count - 1 - mi) * 128;
            const int last = min(m0 + 127, nq - 1);
            const int keys = min(nk, last + diff + 1);
            if (keys <= 0) continue;
            const int n_tiles = (keys + 127) >> 7;
            const u16* kb = k + (i64)b * ksb + (i64)g * ksh;
            const u16* vb = v + (i64)b * vsb + (i64)g * vsh;

            {
                const int n = n_tiles - 1;
                mbar_wait(bars.k_empty + kp.st * 8, kp.ph ^ 1);
                load_tile(smem + OFF_K + kp.st * TILE_BYTES, kb + (i64)n * 128 * kss, kss,
                          nk - n * 128, kal, tid, bars.k_full + kp.st * 8);
                advance(kp);
            }
            mbar_wait(bars.q_empty, qph ^ 1);
            load_tile(smem + OFF_Q, q + (i64)b * qsb + (i64)h * qsh + (i64)m0 * qss, qss, nq - m0,
                      qal, tid, bars.q_full);
            qph ^= 1;

#pragma unroll 1
            for (int n = n_tiles - 1; n >= 0; --n) {
                if (n > 0) {
                    mbar_wait(bars.k_empty + kp.st * 8, kp.ph ^ 1);
                    load_tile(smem + OFF_K + kp.st * TILE_BYTES, kb + (i64)(n - 1) * 128 * kss,
                              kss, nk - (n - 1) * 128, kal, tid, bars.k_full + kp.st * 8);
                    advance(kp);
                }
                mbar_wait(bars.v_empty + vp.st * 8, vp.ph ^ 1);
                load_tile(smem + OFF_V + vp.st * TILE_BYTES, vb + (i64)n * 128 * vss, vss,
                          nk - n * 128, val, tid, bars.v_full + vp.st * 8);
                advance(vp);
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    } else {
        // ------------------------------------------------ consumers
#if USE_WGMMA
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
        const int wg = wgid - 1;
        const int lane = (int)(threadIdx.x & 31);
        const int warp = (int)((threadIdx.x >> 5) & 3);
        const u32 lead = lane == 0 ? 1u : 0u;
        const bool oal = is_aligned(out, osb, oss, osh);

        float sl2 = fabsf(scale) * 1.4426950408889634f;
        float sgn = scale < 0.f ? -1.f : 1.f;
        bool plain = scale > 0.f;
        if (sl2 == 0.f) {
            sl2 = 1.f;
            sgn = 0.f;
            plain = false;
        }

        const u32 sq = smem + OFF_Q + (u32)wg * 8192u;
        const u32 sk = smem + OFF_K;
        const u32 sv = smem + OFF_V;
        Pipe kp = {0u, 0u}, vp = {0u, 0u};
        u32 qph = 0;

#if USE_WGMMA
        if (wg == 1) named_arrive(1);  // the first warpgroup goes first
#endif

        int round = 0;
        for (int first = 0; first < total; first += nblk, ++round) {
            const int t = first + ((round & 1) ? nblk - 1 - blk : blk);
            if (t >= total) continue;
            const int mi = t / bh_count;
            const int bh = t - mi * bh_count;
            const int b = bh / heads;
            const int h = bh - b * heads;
            const int m0 = (m_count - 1 - mi) * 128;
            const int last = min(m0 + 127, nq - 1);
            const int keys = min(nk, last + diff + 1);
            const int n_tiles = keys > 0 ? (keys + 127) >> 7 : 0;
            const int row = m0 + wg * 64 + warp * 16 + (lane >> 2);

            float o[64];
#pragma unroll
            for (int i = 0; i < 64; ++i) o[i] = 0.f;
            float ms0 = neg_inf(), ms1 = neg_inf();
            float l0 = 0.f, l1 = 0.f;

            if (n_tiles > 0) {
                const int seen = min(m0 + wg * 64 + diff + 1, nk);
                const int n_full = (plain && seen > 0) ? (seen >> 7) : 0;
                const int vis0 = min(row + diff, nk - 1) - 2 * (lane & 3);
                const int vis1 = min(row + 8 + diff, nk - 1) - 2 * (lane & 3);
                float s[64];
                u32 p[32];
                int n = n_tiles - 1;

                mbar_wait(bars.q_full, qph);
                qph ^= 1;
#if USE_WGMMA
#pragma unroll
                for (int i = 0; i < 64; ++i) s[i] = 0.f;
                mbar_wait(bars.k_full + kp.st * 8, kp.ph);
                fence_proxy_async();
                wgmma_fence();
                gemm_qk(s, sq, sk + kp.st * TILE_BYTES, 0, 0);
                wgmma_commit();
                wgmma_wait<0>();
                fence_regs(s);
                mbar_arrive_if(bars.k_empty + kp.st * 8, lead);
                mbar_arrive_if(bars.q_empty, n == 0 ? lead : 0u);
                advance(kp);
                float al0, al1;
                softmax_step<true>(s, ms0, ms1, l0, l1, al0, al1, sl2, sgn, vis0 - n * 128,
                                   vis1 - n * 128);
                pack_p(p, s);
                --n;

#pragma unroll 1
                for (; n >= n_full; --n)
                    kv_step<true>(o, s, p, ms0, ms1, l0, l1, bars, kp, vp, sq, sk, sv, wg, lead, n,
                                  sl2, sgn, vis0, vis1);
#pragma unroll 1
                for (; n >= 0; --n)
                    kv_step<false>(o, s, p, ms0, ms1, l0, l1, bars, kp, vp, sq, sk, sv, wg, lead,
                                   n, sl2, sgn, vis0, vis1);

                mbar_wait(bars.v_full + vp.st * 8, vp.ph);
                fence_proxy_async();
                wgmma_fence();
                gemm_pv(o, p, sv + vp.st * TILE_BYTES, 0);
                wgmma_commit();
                wgmma_wait<0>();
                fence_regs(o);
                mbar_arrive_if(bars.v_empty + vp.st * 8, lead);
                advance(vp);
#else
#pragma unroll 1
                for (; n >= n_full; --n)
                    kv_simple<true>(o, s, p, ms0, ms1, l0, l1, bars, kp, vp, sq, sk, sv, warp,
                                    lane, lead, n, sl2, sgn, vis0, vis1);
#pragma unroll 1
                for (; n >= 0; --n)
                    kv_simple<false>(o, s, p, ms0, ms1, l0, l1, bars, kp, vp, sq, sk, sv, warp,
                                     lane, lead, n, sl2, sgn, vis0, vis1);
#endif
            }

            // ---------------- epilogue
            l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
            l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
            const float inv0 = l0 == 0.f ? 0.f : 1.f / l0;
            const float inv1 = l1 == 0.f ? 0.f : 1.f / l1;
            u16* ob = out + (i64)b * osb + (i64)h * osh;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float inv = half ? inv1 : inv0;
                const int rr = row + 8 * half;
                u16* orow = ob + (i64)rr * oss;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    u32 r[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        r[i] = pack_half(o[(4 * j + i) * 4 + 2 * half] * inv,
                                         o[(4 * j + i) * 4 + 2 * half + 1] * inv);
                    quad_transpose(r, lane);
                    if (rr < nq) {
                        u16* dst = orow + (4 * j + (lane & 3)) * 8;
                        if (oal) {
                            *reinterpret_cast<uint4*>(dst) = make_uint4(r[0], r[1], r[2], r[3]);
                        } else {
#pragma unroll
                            for (int i = 0; i < 4; ++i) {
                                dst[2 * i] = (u16)(r[i] & 0xffffu);
                                dst[2 * i + 1] = (u16)(r[i] >> 16);
                            }
                        }
                    }
                    __syncwarp();
                }
            }
        }

#if USE_WGMMA
        if (wg == 0) named_sync(1);  // takes the arrival that is left over
#endif
    }
}
