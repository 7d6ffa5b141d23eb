#include <cuda_fp16.h>

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_SPECIFIC__)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

#define DEV __device__ __forceinline__

template <int D>
struct Cfg {
    static constexpr int NWG = (D == 128) ? 2 : 3;
    static constexpr int BM = 64 * NWG;
    static constexpr int BN = 128;
    static constexpr int ST = (D == 128) ? 2 : 4;
    static constexpr int THREADS = 128 * (NWG + 1);
    static constexpr int Q_BYTES = BM * D * 2;
    static constexpr int KV_BYTES = BN * D * 2;
    static constexpr int OFF_K = Q_BYTES;
    static constexpr int OFF_V = OFF_K + ST * KV_BYTES;
    static constexpr int OFF_O = OFF_V + ST * KV_BYTES;
    static constexpr int OFF_BAR = OFF_O + Q_BYTES;
    // barriers
    static constexpr int B_QFULL = 0;
    static constexpr int B_QEMPTY = 8;
    static constexpr int B_KFULL = 16;
    static constexpr int B_KEMPTY = 16 + 8 * ST;
    static constexpr int B_VFULL = 16 + 16 * ST;
    static constexpr int B_VEMPTY = 16 + 24 * ST;
};

// ---------------------------------------------------------------- primitives

DEV void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

DEV void mbar_wait(u32 bar, u32 parity) {
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
    } while (!ok);
}

DEV void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

DEV void cp_async_arrive(u32 bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

DEV void cp_async16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

DEV void cp_async16_z(u32 dst, const void* src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

DEV void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEV void bar_sync256(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
DEV void bar_arrive256(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }

DEV float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEV u32 pack_half(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

template <int N>
DEV void fence_f(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

template <int N>
DEV void fence_r(u32 (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

// ------------------------------------------------------------- matrix products

#if HAS_WGMMA

DEV void wg_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEV void wg_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

DEV u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(sbo >> 4) << 32) |
           (1ull << 62);
}

#define F8(x, i)                                                                              \
    "+f"(x[(i) + 0]), "+f"(x[(i) + 1]), "+f"(x[(i) + 2]), "+f"(x[(i) + 3]), "+f"(x[(i) + 4]), \
        "+f"(x[(i) + 5]), "+f"(x[(i) + 6]), "+f"(x[(i) + 7])
#define F32R(x) F8(x, 0), F8(x, 8), F8(x, 16), F8(x, 24)
#define F64R(x) F32R(x), F8(x, 32), F8(x, 40), F8(x, 48), F8(x, 56)

#define REGS32                                                \
    "%0, %1, %2, %3, %4, %5, %6, %7, "                        \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define REGS64                                                \
    REGS32                                                    \
    ", %32, %33, %34, %35, %36, %37, %38, %39, "              \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                \
    "%56, %57, %58, %59, %60, %61, %62, %63"

// S(64x128) (+)= A(smem, K-major) * B(smem, K-major)^T
DEV void wgmma_ss(float (&d)[64], u64 da, u64 db, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" REGS64
        "}, %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : F64R(d)
        : "l"(da), "l"(db), "r"(acc));
}

// O(64x128) += A(registers) * B(smem, N-major)
DEV void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" REGS64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : F64R(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// O(64x64) += A(registers) * B(smem, N-major)
DEV void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" REGS32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : F32R(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

template <int D>
DEV void qk_issue(float (&s)[64], u32 q_addr, u32 k_addr, int warp, int lane) {
    const u64 dq = make_desc(q_addr, 16, 1024);
    const u64 dk = make_desc(k_addr, 16, 1024);
    fence_f(s);
    wg_arrive();
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u32 oq = (kk / 4) * (Cfg<D>::BM * 128) + (kk % 4) * 32;
        const u32 ok = (kk / 4) * (Cfg<D>::BN * 128) + (kk % 4) * 32;
        wgmma_ss(s, dq + (oq >> 4), dk + (ok >> 4), kk == 0 ? 0 : 1);
    }
    wg_commit();
    fence_f(s);
}

template <int D>
DEV void pv_issue(float (&o)[D / 2], u32 (&p)[32], u32 v_addr, int lane) {
    const u64 dv = make_desc(v_addr, Cfg<D>::BN * 128, 1024);
    fence_r(p);
    fence_f(o);
    wg_arrive();
#pragma unroll
    for (int kk = 0; kk < Cfg<D>::BN / 16; ++kk)
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3],
                 dv + ((kk * 2048) >> 4));
    wg_commit();
    fence_f(o);
    fence_r(p);
}

template <int N>
DEV void reg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
DEV void reg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#else  // the same tiles with mma.sync

template <int N>
DEV void wg_wait() {}
template <int N>
DEV void reg_dec() {}
template <int N>
DEV void reg_inc() {}

DEV void ldsm4(u32& a, u32& b, u32& c, u32& d, u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(addr)
                 : "memory");
}
DEV void ldsm4t(u32& a, u32& b, u32& c, u32& d, u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(addr)
                 : "memory");
}
DEV void mma16816(float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1, u32 a2, u32 a3,
                  u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int D>
DEV void qk_issue(float (&s)[64], u32 q_addr, u32 k_addr, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = 0.f;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        u32 a0, a1, a2, a3;
        {
            const int r = warp * 16 + (lane & 15);
            const int c = kk * 2 + (lane >> 4);
            ldsm4(a0, a1, a2, a3,
                  q_addr + (c >> 3) * (Cfg<D>::BM * 128) + r * 128 + (((c & 7) ^ (r & 7)) << 4));
        }
#pragma unroll
        for (int nb = 0; nb < 8; ++nb) {
            const int r = nb * 16 + ((lane >> 4) << 3) + (lane & 7);
            const int c = kk * 2 + ((lane >> 3) & 1);
            u32 b0, b1, b2, b3;
            ldsm4(b0, b1, b2, b3,
                  k_addr + (c >> 3) * (Cfg<D>::BN * 128) + r * 128 + (((c & 7) ^ (r & 7)) << 4));
            mma16816(s[nb * 8 + 0], s[nb * 8 + 1], s[nb * 8 + 2], s[nb * 8 + 3], a0, a1, a2, a3, b0,
                     b1);
            mma16816(s[nb * 8 + 4], s[nb * 8 + 5], s[nb * 8 + 6], s[nb * 8 + 7], a0, a1, a2, a3, b2,
                     b3);
        }
    }
}

template <int D>
DEV void pv_issue(float (&o)[D / 2], u32 (&p)[32], u32 v_addr, int lane) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
#pragma unroll
        for (int nb = 0; nb < D / 16; ++nb) {
            const int r = kk * 16 + (lane & 15);
            const int c = nb * 2 + (lane >> 4);
            u32 b0, b1, b2, b3;
            ldsm4t(b0, b1, b2, b3,
                   v_addr + (c >> 3) * (Cfg<D>::BN * 128) + r * 128 + (((c & 7) ^ (r & 7)) << 4));
            mma16816(o[nb * 8 + 0], o[nb * 8 + 1], o[nb * 8 + 2], o[nb * 8 + 3], p[4 * kk],
                     p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], b0, b1);
            mma16816(o[nb * 8 + 4], o[nb * 8 + 5], o[nb * 8 + 6], o[nb * 8 + 7], p[4 * kk],
                     p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], b2, b3);
        }
    }
}

#endif

// ------------------------------------------------------------------- schedule

// -1: no more work, 0: nothing at this step, 1: a tile (bh, m)
DEV int get_tile(int it, int ncta, int cta, int nm, int BH, int& bh, int& m) {
    const int odd = nm & 1;
    const int P = (nm + 1) >> 1;
    const int total = BH * P;
    const int rounds = total / ncta;
    const int R1 = rounds > 1 ? rounds - 1 : 0;
    if (it < 2 * R1) {
        const int x = (it >> 1) * ncta + cta;
        bh = x / P;
        const int p = x - bh * P;
        m = (it & 1) ? p - odd : nm - 1 - p;
        return m >= 0 ? 1 : 0;
    }
    const int r = it - 2 * R1;
    const int pos = r * ncta + ((r & 1) ? ncta - 1 - cta : cta);
    const int done = R1 * ncta;
    const int first = done / P;
    const int H = BH - first;
    if (pos >= H * nm) return -1;
    const int rank = pos / H;
    m = nm - 1 - rank;
    bh = first + (pos - rank * H);
    const int p = rank < P ? rank : m + odd;
    return (bh * P + p < done) ? 0 : 1;
}

DEV int tiles_upto(int lim) { return lim < 0 ? 0 : lim / 128 + 1; }

// ---------------------------------------------------------------------- loads

template <int ROWS, int D, bool FAST>
DEV void load_tile(const half* g, i64 stride, int row0, int nrows, u32 dst, u32 bar, int t) {
    constexpr int CH = D / 8;      // 16-byte chunks in a row
    constexpr int RPI = 128 / CH;  // rows in one pass, a multiple of 8
    constexpr int IT = ROWS / RPI;
    const int c = t % CH;
    const int r = t / CH;
    const u32 d = dst + (c >> 3) * (ROWS * 128) + r * 128 + (((c & 7) ^ (r & 7)) << 4);
    const half* p = g + (i64)(row0 + r) * stride + c * 8;
    if (FAST) {
        if (row0 + ROWS <= nrows) {
#pragma unroll
            for (int i = 0; i < IT; ++i) {
                cp_async16(d + i * (RPI * 128), p);
                p += RPI * stride;
            }
        } else {
#pragma unroll
            for (int i = 0; i < IT; ++i) {
                const bool ok = row0 + r + i * RPI < nrows;
                cp_async16_z(d + i * (RPI * 128), ok ? p : g, ok ? 16u : 0u);
                p += RPI * stride;
            }
        }
        cp_async_arrive(bar);
    } else {
#pragma unroll 1
        for (int i = 0; i < IT; ++i) {
            u32 x[4] = {0u, 0u, 0u, 0u};
            if (row0 + r + i * RPI < nrows) {
                const unsigned short* e = reinterpret_cast<const unsigned short*>(p);
#pragma unroll
                for (int y = 0; y < 4; ++y) x[y] = (u32)e[2 * y] | ((u32)e[2 * y + 1] << 16);
            }
            asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(d + i * (RPI * 128)),
                         "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                         : "memory");
            p += RPI * stride;
        }
        fence_proxy_async();
        mbar_arrive(bar);
    }
}

// -------------------------------------------------------------------- softmax

DEV float neg_inf() { return __int_as_float(0xff800000); }

// rel: last visible column of the upper row, counted from this thread's first column
DEV void mask_tile(float (&s)[64], int rel) {
#pragma unroll
    for (int b = 0; b < 16; ++b) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            if (b * 8 + e > rel) s[4 * b + e] = neg_inf();
            if (b * 8 + e > rel + 8) s[4 * b + 2 + e] = neg_inf();
        }
    }
}

template <bool CHECK>
DEV void softmax_tile(float (&s)[64], float& m0, float& m1, float& l0, float& l1, float sl,
                      float& a0, float& a1) {
    float x0 = fmaxf(s[0], s[1]), y0 = fmaxf(s[4], s[5]);
    float x1 = fmaxf(s[2], s[3]), y1 = fmaxf(s[6], s[7]);
#pragma unroll
    for (int b = 2; b < 16; b += 2) {
        x0 = fmaxf(x0, s[4 * b]);
        y0 = fmaxf(y0, s[4 * b + 4]);
        x1 = fmaxf(x1, s[4 * b + 2]);
        y1 = fmaxf(y1, s[4 * b + 6]);
        x0 = fmaxf(x0, s[4 * b + 1]);
        y0 = fmaxf(y0, s[4 * b + 5]);
        x1 = fmaxf(x1, s[4 * b + 3]);
        y1 = fmaxf(y1, s[4 * b + 7]);
    }
    x0 = fmaxf(x0, y0);
    x1 = fmaxf(x1, y1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));
    const float n0 = fmaxf(m0, x0);
    const float n1 = fmaxf(m1, x1);
    float r0 = n0, r1 = n1;
    if (CHECK) {
        if (r0 == neg_inf()) r0 = 0.f;
        if (r1 == neg_inf()) r1 = 0.f;
    }
    const float c0 = __fmul_rn(r0, sl);
    const float c1 = __fmul_rn(r1, sl);
    a0 = ex2(__fsub_rn(__fmul_rn(m0, sl), c0));
    a1 = ex2(__fsub_rn(__fmul_rn(m1, sl), c1));
    m0 = n0;
    m1 = n1;
    float t0 = 0.f, t1 = 0.f, u0 = 0.f, u1 = 0.f;
#pragma unroll
    for (int b = 0; b < 16; ++b) {
        s[4 * b + 0] = ex2(fmaf(s[4 * b + 0], sl, -c0));
        s[4 * b + 1] = ex2(fmaf(s[4 * b + 1], sl, -c0));
        s[4 * b + 2] = ex2(fmaf(s[4 * b + 2], sl, -c1));
        s[4 * b + 3] = ex2(fmaf(s[4 * b + 3], sl, -c1));
        t0 += s[4 * b + 0];
        u0 += s[4 * b + 1];
        t1 += s[4 * b + 2];
        u1 += s[4 * b + 3];
    }
    l0 = l0 * a0 + (t0 + u0);
    l1 = l1 * a1 + (t1 + u1);
}

DEV void to_half(u32 (&p)[32], float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack_half(s[2 * i], s[2 * i + 1]);
}

// One pipelined step: S_j = Q K_j^T together with O += P_{j-1} V_{j-1}.
template <int D, bool MASK, bool FAST>
DEV void step(float (&s)[64], float (&o)[D / 2], u32 (&p)[32], float& m0, float& m1, float& l0,
              float& l1, float sl, u32 c, int rel, u32 sQw, u32 sK, u32 sV, u32 bars, int w,
              int warp, int lane) {
    using C = Cfg<D>;
    const u32 kst = c & (C::ST - 1);
    const u32 kph = (c / C::ST) & 1;
    const u32 cv = c - 1;
    const u32 vst = cv & (C::ST - 1);
    const u32 vph = (cv / C::ST) & 1;
    mbar_wait(bars + C::B_KFULL + 8 * kst, kph);
    mbar_wait(bars + C::B_VFULL + 8 * vst, vph);
    fence_proxy_async();
    bar_sync256(1 + w);
    qk_issue<D>(s, sQw, sK + kst * C::KV_BYTES, warp, lane);
    pv_issue<D>(o, p, sV + vst * C::KV_BYTES, lane);
    bar_arrive256(1 + (w + 1 == C::NWG ? 0 : w + 1));
    wg_wait<1>();
    fence_f(s);
    if (lane == 0) mbar_arrive(bars + C::B_KEMPTY + 8 * kst);
    if (!FAST) {
#pragma unroll
        for (int i = 0; i < 64; ++i) s[i] *= sl;
    }
    if (MASK) mask_tile(s, rel);
    float a0, a1;
    softmax_tile<MASK>(s, m0, m1, l0, l1, FAST ? sl : 1.f, a0, a1);
    wg_wait<0>();
    fence_f(o);
    fence_r(p);
    if (lane == 0) mbar_arrive(bars + C::B_VEMPTY + 8 * vst);
    to_half(p, s);
#pragma unroll
    for (int b = 0; b < D / 8; ++b) {
        o[4 * b + 0] *= a0;
        o[4 * b + 1] *= a0;
        o[4 * b + 2] *= a1;
        o[4 * b + 3] *= a1;
    }
}

// --------------------------------------------------------------------- kernel

template <int D, bool FAST>
__global__ void __launch_bounds__(Cfg<D>::THREADS, 1)
attn_fwd(const half* q, const half* k, const half* v, half* out, i64 sqb, i64 sqs, i64 sqh, i64 skb,
         i64 sks, i64 skh, i64 svb, i64 svs, i64 svh, i64 sob, i64 sos, i64 soh, int BH, int heads,
         int seq_q, int seq_k, float scale) {
    using C = Cfg<D>;
    extern __shared__ unsigned char smem_raw[];
    const u32 smem = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = smem;
    const u32 sK = smem + C::OFF_K;
    const u32 sV = smem + C::OFF_V;
    const u32 bars = smem + C::OFF_BAR;

    if (threadIdx.x == 0) {
        mbar_init(bars + C::B_QFULL, 128);
        mbar_init(bars + C::B_QEMPTY, 4 * C::NWG);
        for (int i = 0; i < C::ST; ++i) {
            mbar_init(bars + C::B_KFULL + 8 * i, 128);
            mbar_init(bars + C::B_KEMPTY + 8 * i, 4 * C::NWG);
            mbar_init(bars + C::B_VFULL + 8 * i, 128);
            mbar_init(bars + C::B_VEMPTY + 8 * i, 4 * C::NWG);
        }
    }
    __syncthreads();

    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);
    const int tid = threadIdx.x & 127;
    const int nm = (seq_q + C::BM - 1) / C::BM;
    const int delta = seq_k - seq_q;

    if (wg == 0) {
        // ------------------------------------------------------------ loader
        if (D == 128) reg_dec<40>();
        else reg_dec<32>();
        u32 base = 0, qc = 0;
        for (int it = 0;; ++it) {
            int bh, m;
            const int got = get_tile(it, gridDim.x, blockIdx.x, nm, BH, bh, m);
            if (got < 0) break;
            if (got == 0) continue;
            const int last = min(m * C::BM + C::BM, seq_q) - 1;
            const int n = tiles_upto(last + delta);
            if (n == 0) continue;
            const int b = bh / heads;
            const int h = bh - b * heads;
            const half* gk = k + (b * skb + h * skh);
            const half* gv = v + (b * svb + h * svh);
#pragma unroll 1
            for (int j = 0; j <= n; ++j) {
                if (j < n) {
                    const u32 c = base + j;
                    const u32 st = c & (C::ST - 1);
                    mbar_wait(bars + C::B_KEMPTY + 8 * st, ((c / C::ST) & 1) ^ 1);
                    load_tile<C::BN, D, FAST>(gk, sks, j * C::BN, seq_k, sK + st * C::KV_BYTES,
                                              bars + C::B_KFULL + 8 * st, tid);
                }
                if (j == 0) {
                    mbar_wait(bars + C::B_QEMPTY, (qc & 1) ^ 1);
                    load_tile<C::BM, D, FAST>(q + (b * sqb + h * sqh), sqs, m * C::BM, seq_q, sQ,
                                              bars + C::B_QFULL, tid);
                    ++qc;
                } else {
                    const u32 c = base + j - 1;
                    const u32 st = c & (C::ST - 1);
                    mbar_wait(bars + C::B_VEMPTY + 8 * st, ((c / C::ST) & 1) ^ 1);
                    load_tile<C::BN, D, FAST>(gv, svs, (j - 1) * C::BN, seq_k,
                                              sV + st * C::KV_BYTES, bars + C::B_VFULL + 8 * st,
                                              tid);
                }
            }
            base += n;
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    } else {
        // --------------------------------------------------------- consumers
        if (D == 128) reg_inc<232>();
        else reg_inc<160>();
        const int w = wg - 1;
        const int warp = tid >> 5;
        const int lane = tid & 31;
        const float sl = scale * 1.4426950408889634f;
        const u32 sQw = sQ + w * (64 * 128);
        u32 base = 0, qc = 0;
        if (w == 0) bar_arrive256(1);

        float s[64];
        float o[D / 2];
        u32 p[32];

        for (int it = 0;; ++it) {
            int bh, m;
            const int got = get_tile(it, gridDim.x, blockIdx.x, nm, BH, bh, m);
            if (got < 0) break;
            if (got == 0) continue;
            const int row0 = m * C::BM + w * 64;
            const int n = tiles_upto(min(m * C::BM + C::BM, seq_q) - 1 + delta);
            int nw = 0, nu = 0;
            if (row0 < seq_q) {
                nw = tiles_upto(min(row0 + 64, seq_q) - 1 + delta);
                const int a = row0 + delta + 1;
                nu = a > 0 ? min(a / C::BN, nw) : 0;
            }
            // last visible key of the upper row, less this thread's first column
            const int rel = row0 + warp * 16 + (lane >> 2) + delta - 2 * (lane & 3);

            float m0 = neg_inf(), m1 = neg_inf(), l0 = 0.f, l1 = 0.f;
#pragma unroll
            for (int i = 0; i < D / 2; ++i) o[i] = 0.f;

            if (n > 0) mbar_wait(bars + C::B_QFULL, qc & 1);
            if (nw > 0) {
                {
                    const u32 st = base & (C::ST - 1);
                    mbar_wait(bars + C::B_KFULL + 8 * st, (base / C::ST) & 1);
                    fence_proxy_async();
                    qk_issue<D>(s, sQw, sK + st * C::KV_BYTES, warp, lane);
                    wg_wait<0>();
                    fence_f(s);
                    if (lane == 0) mbar_arrive(bars + C::B_KEMPTY + 8 * st);
                    if (!FAST) {
#pragma unroll
                        for (int i = 0; i < 64; ++i) s[i] *= sl;
                    }
                    if (nu == 0) mask_tile(s, rel);
                    float a0, a1;
                    softmax_tile<true>(s, m0, m1, l0, l1, FAST ? sl : 1.f, a0, a1);
                    to_half(p, s);
                }
                int j = 1;
#pragma unroll 1
                for (; j < nu; ++j)
                    step<D, false, FAST>(s, o, p, m0, m1, l0, l1, sl, base + j, 0, sQw, sK, sV,
                                         bars, w, warp, lane);
#pragma unroll 1
                for (; j < nw; ++j)
                    step<D, true, FAST>(s, o, p, m0, m1, l0, l1, sl, base + j, rel - j * C::BN, sQw,
                                        sK, sV, bars, w, warp, lane);
                if (lane == 0) mbar_arrive(bars + C::B_QEMPTY);
                {
                    const u32 c = base + nw - 1;
                    const u32 st = c & (C::ST - 1);
                    mbar_wait(bars + C::B_VFULL + 8 * st, (c / C::ST) & 1);
                    fence_proxy_async();
                    pv_issue<D>(o, p, sV + st * C::KV_BYTES, lane);
                    wg_wait<0>();
                    fence_f(o);
                    if (lane == 0) mbar_arrive(bars + C::B_VEMPTY + 8 * st);
                }
            } else if (n > 0) {
                __syncwarp();
                if (lane == 0) mbar_arrive(bars + C::B_QEMPTY);
            }

            // tiles that only later warpgroups need: hand them back
#pragma unroll 1
            for (int j = nw; j < n; ++j) {
                const u32 c = base + j;
                const u32 st = c & (C::ST - 1);
                const u32 ph = (c / C::ST) & 1;
                mbar_wait(bars + C::B_KFULL + 8 * st, ph);
                __syncwarp();
                if (lane == 0) mbar_arrive(bars + C::B_KEMPTY + 8 * st);
                __syncwarp();
                if (j > 0) {
                    bar_sync256(1 + w);
                    bar_arrive256(1 + (w + 1 == C::NWG ? 0 : w + 1));
                }
                mbar_wait(bars + C::B_VFULL + 8 * st, ph);
                __syncwarp();
                if (lane == 0) mbar_arrive(bars + C::B_VEMPTY + 8 * st);
                __syncwarp();
            }
            base += n;
            if (n > 0) ++qc;

            // ------------------------------------------------------ epilogue
            if (row0 < seq_q) {
                l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
                l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
                l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
                l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
                const float i0 = l0 > 0.f ? 1.f / l0 : 0.f;
                const float i1 = l1 > 0.f ? 1.f / l1 : 0.f;
                const u32 sO = smem + C::OFF_O + w * (64 * D * 2);
                const int g = lane >> 2;
                const u32 wr = sO + (warp * 16 + g) * 128 + (lane & 3) * 4;
                __syncwarp();
#pragma unroll
                for (int b = 0; b < D / 8; ++b) {
                    const u32 ad = wr + (b >> 3) * (64 * 128) + (((b & 7) ^ g) << 4);
                    const u32 h0 = pack_half(o[4 * b + 0] * i0, o[4 * b + 1] * i0);
                    const u32 h1 = pack_half(o[4 * b + 2] * i1, o[4 * b + 3] * i1);
                    asm volatile("st.shared.b32 [%0], %1;" ::"r"(ad), "r"(h0) : "memory");
                    asm volatile("st.shared.b32 [%0], %1;" ::"r"(ad + 1024), "r"(h1) : "memory");
                }
                __syncwarp();
                const int bb = bh / heads;
                const int hh = bh - bb * heads;
                half* go = out + (bb * sob + hh * soh);
                constexpr int CH = D / 8;
#pragma unroll
                for (int i = 0; i < 16 * CH / 32; ++i) {
                    const int idx = i * 32 + lane;
                    const int r = warp * 16 + idx / CH;
                    const int c = idx % CH;
                    u32 x0, x1, x2, x3;
                    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(x0), "=r"(x1), "=r"(x2), "=r"(x3)
                                 : "r"(sO + (c >> 3) * (64 * 128) + r * 128 +
                                       (((c & 7) ^ (r & 7)) << 4))
                                 : "memory");
                    const int row = row0 + r;
                    if (row < seq_q) {
                        half* dst = go + (i64)row * sos + c * 8;
                        if (FAST) {
                            *reinterpret_cast<uint4*>(dst) = make_uint4(x0, x1, x2, x3);
                        } else {
                            unsigned short* e = reinterpret_cast<unsigned short*>(dst);
                            e[0] = (unsigned short)(x0 & 0xffffu);
                            e[1] = (unsigned short)(x0 >> 16);
                            e[2] = (unsigned short)(x1 & 0xffffu);
                            e[3] = (unsigned short)(x1 >> 16);
                            e[4] = (unsigned short)(x2 & 0xffffu);
                            e[5] = (unsigned short)(x2 >> 16);
                            e[6] = (unsigned short)(x3 & 0xffffu);
                            e[7] = (unsigned short)(x3 >> 16);
                        }
                    }
                }
                __syncwarp();
            }
        }
    }
}
