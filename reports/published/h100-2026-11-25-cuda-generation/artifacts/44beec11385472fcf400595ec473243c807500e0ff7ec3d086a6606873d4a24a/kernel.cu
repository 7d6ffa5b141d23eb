#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#define NEG_INF __int_as_float((int)0xff800000u)

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

#ifdef FAST
// ---------------------------------------------------------------------------
// Fast kernel: wgmma, cp.async producer, persistent blocks
// ---------------------------------------------------------------------------

template <int D> struct Cfg;
template <> struct Cfg<128> {
    static constexpr int NC = 2, BM = 128, BN = 128, ST = 2, PR = 40, CR = 232;
};
template <> struct Cfg<64> {
    static constexpr int NC = 3, BM = 192, BN = 128, ST = 4, PR = 32, CR = 160;
};

struct Pipe {
    int st;
    u32 ph;
};

template <int ST>
__device__ __forceinline__ void advance(Pipe& p) {
    if (++p.st == ST) {
        p.st = 0;
        p.ph ^= 1u;
    }
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("{\n"
                 ".reg .b64 state;\n"
                 "mbarrier.arrive.shared::cta.b64 state, [%0];\n"
                 "}\n" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred P1;\n"
                 "LAB_WAIT:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n"
                 "@P1 bra DONE;\n"
                 "bra LAB_WAIT;\n"
                 "DONE:\n"
                 "}\n" ::"r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void cp_arrive(u32 bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void cp16(u32 dst, const __half* src) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp16_zfill(u32 dst, const __half* src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bar_sync(u32 id) {
    asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}

__device__ __forceinline__ void bar_arrive(u32 id) {
    asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}

__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
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

// 128-byte swizzle descriptor
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    u64 d = 0;
    d |= (u64)((addr & 0x3FFFFu) >> 4);
    d |= ((u64)((lbo & 0x3FFFFu) >> 4)) << 16;
    d |= ((u64)((sbo & 0x3FFFFu) >> 4)) << 32;
    d |= 1ull << 62;
    return d;
}

#define ACC4(d, i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define ACC16(d, i) ACC4(d, (i)), ACC4(d, (i) + 4), ACC4(d, (i) + 8), ACC4(d, (i) + 12)

#define REGS32                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, "               \
    "%8, %9, %10, %11, %12, %13, %14, %15, "         \
    "%16, %17, %18, %19, %20, %21, %22, %23, "       \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define REGS64                                       \
    REGS32 ", "                                      \
    "%32, %33, %34, %35, %36, %37, %38, %39, "       \
    "%40, %41, %42, %43, %44, %45, %46, %47, "       \
    "%48, %49, %50, %51, %52, %53, %54, %55, "       \
    "%56, %57, %58, %59, %60, %61, %62, %63"

// S (64 x 128) = or += A(smem, K-major) * B(smem, K-major)
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int accumulate) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{" REGS64 "}, %64, %65, p, 1, 1, 0, 0;\n"
                 "}\n"
                 : ACC16(d, 0), ACC16(d, 16), ACC16(d, 32), ACC16(d, 48)
                 : "l"(da), "l"(db), "r"(accumulate));
}

// O (64 x 128) += A(registers) * B(smem, MN-major)
__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{" REGS64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
                 "}\n"
                 : ACC16(d, 0), ACC16(d, 16), ACC16(d, 32), ACC16(d, 48)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// O (64 x 64) += A(registers) * B(smem, MN-major)
__device__ __forceinline__ void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{" REGS32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
                 "}\n"
                 : ACC16(d, 0), ACC16(d, 16)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

template <int D>
__device__ __forceinline__ void gemm_qk(float (&s)[64], u64 dq, u64 dk) {
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u64 qo = (u64)((kk >> 2) * (Cfg<D>::BM * 128 / 16) + (kk & 3) * 2);
        const u64 ko = (u64)((kk >> 2) * (Cfg<D>::BN * 128 / 16) + (kk & 3) * 2);
        wgmma_ss(s, dq + qo, dk + ko, kk != 0 ? 1 : 0);
    }
}

template <int D>
__device__ __forceinline__ void gemm_pv(float (&o)[D / 2], u32 (&p)[32], u64 dv) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], dv + (u64)(kk * 128));
    }
}

// lim: columns (without this thread's own offset) <= lim are visible in the first row,
// <= lim + 8 in the second.
template <bool MASK>
__device__ __forceinline__ void softmax_tile(float (&s)[64], float (&m)[2], float (&l)[2],
                                             float (&alpha)[2], float c, int lim) {
    if (MASK) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            if (8 * i > lim) s[4 * i] = NEG_INF;
            if (8 * i + 1 > lim) s[4 * i + 1] = NEG_INF;
            if (8 * i > lim + 8) s[4 * i + 2] = NEG_INF;
            if (8 * i + 1 > lim + 8) s[4 * i + 3] = NEG_INF;
        }
    }
    float a0 = fmaxf(m[0], s[0]), b0 = s[1];
    float a1 = fmaxf(m[1], s[2]), b1 = s[3];
#pragma unroll
    for (int i = 1; i < 16; ++i) {
        a0 = fmaxf(a0, s[4 * i]);
        b0 = fmaxf(b0, s[4 * i + 1]);
        a1 = fmaxf(a1, s[4 * i + 2]);
        b1 = fmaxf(b1, s[4 * i + 3]);
    }
    a0 = fmaxf(a0, b0);
    a1 = fmaxf(a1, b1);
    a0 = fmaxf(a0, __shfl_xor_sync(0xffffffffu, a0, 1));
    a1 = fmaxf(a1, __shfl_xor_sync(0xffffffffu, a1, 1));
    a0 = fmaxf(a0, __shfl_xor_sync(0xffffffffu, a0, 2));
    a1 = fmaxf(a1, __shfl_xor_sync(0xffffffffu, a1, 2));

    const float old0 = __fmul_rn(m[0], c);
    const float old1 = __fmul_rn(m[1], c);
    float base0 = __fmul_rn(a0, c);
    float base1 = __fmul_rn(a1, c);
    if (MASK) {
        if (a0 == NEG_INF) base0 = 0.f;
        if (a1 == NEG_INF) base1 = 0.f;
    }
    alpha[0] = ex2(old0 - base0);
    alpha[1] = ex2(old1 - base1);
    m[0] = a0;
    m[1] = a1;

    float s00 = 0.f, s01 = 0.f, s10 = 0.f, s11 = 0.f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        s[4 * i] = ex2(fmaf(s[4 * i], c, -base0));
        s[4 * i + 1] = ex2(fmaf(s[4 * i + 1], c, -base0));
        s[4 * i + 2] = ex2(fmaf(s[4 * i + 2], c, -base1));
        s[4 * i + 3] = ex2(fmaf(s[4 * i + 3], c, -base1));
        s00 += s[4 * i];
        s01 += s[4 * i + 1];
        s10 += s[4 * i + 2];
        s11 += s[4 * i + 3];
    }
    l[0] = l[0] * alpha[0] + (s00 + s01);
    l[1] = l[1] * alpha[1] + (s10 + s11);
}

__device__ __forceinline__ void convert_p(u32 (&p)[32], float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

// One step: S = Q K(n)^T and O += P V(n+1) in flight together, then the softmax of tile n.
template <int D, bool MASK>
__device__ __forceinline__ void kv_step(float (&s)[64], float (&o)[D / 2], u32 (&p)[32],
                                        float (&m)[2], float (&l)[2], u64 dq, u64 dk0, u64 dv0,
                                        u32 bars, Pipe& kp, Pipe& vp, int w, int lane, bool last,
                                        float c, int lim) {
    constexpr int ST = Cfg<D>::ST;
    constexpr int NC = Cfg<D>::NC;
    constexpr u64 STAGE = (u64)(Cfg<D>::BN * D * 2 / 16);

    mbar_wait(bars + 8 * kp.st, kp.ph);
    mbar_wait(bars + 8 * (2 * ST + vp.st), vp.ph);
    fence_async();
    bar_sync(1 + w);

    fence_regs(s);
    fence_regs(o);
    fence_regs(p);
    wgmma_fence();
    gemm_qk<D>(s, dq, dk0 + (u64)kp.st * STAGE);
    wgmma_commit();
    gemm_pv<D>(o, p, dv0 + (u64)vp.st * STAGE);
    wgmma_commit();
    bar_arrive(w + 1 == NC ? 1 : w + 2);

    wgmma_wait<1>();
    fence_regs(s);
    if (lane == 0) {
        mbar_arrive(bars + 8 * (ST + kp.st));
        if (last) mbar_arrive(bars + 8 * (4 * ST + 1));
    }
    advance<ST>(kp);

    float alpha[2];
    softmax_tile<MASK>(s, m, l, alpha, c, lim);

    wgmma_wait<0>();
    fence_regs(o);
    fence_regs(s);
    if (lane == 0) mbar_arrive(bars + 8 * (3 * ST + vp.st));
    advance<ST>(vp);

    convert_p(p, s);
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
        o[4 * i] *= alpha[0];
        o[4 * i + 1] *= alpha[0];
        o[4 * i + 2] *= alpha[1];
        o[4 * i + 3] *= alpha[1];
    }
}

// Transpose 4x4 words among the four lanes of a quad.
__device__ __forceinline__ void transpose4(u32 (&v)[4], int qd) {
    const bool odd = (qd & 1) != 0;
    const bool high = (qd & 2) != 0;
#pragma unroll
    for (int b = 0; b < 4; b += 2) {
        const u32 send = odd ? v[b] : v[b + 1];
        const u32 recv = __shfl_xor_sync(0xffffffffu, send, 1);
        if (odd) v[b] = recv; else v[b + 1] = recv;
    }
#pragma unroll
    for (int t = 0; t < 2; ++t) {
        const u32 send = high ? v[t] : v[2 + t];
        const u32 recv = __shfl_xor_sync(0xffffffffu, send, 2);
        if (high) v[t] = recv; else v[2 + t] = recv;
    }
}

// src points at this thread's row and chunk of the tile; step = elements between its rows.
// valid = rows of the tile that exist.
template <int D, int ROWS>
__device__ __forceinline__ void load_rows(u32 dst, const __half* src, long long step, int valid,
                                          int r0, const __half* safe) {
    constexpr int RP = 128 / (D / 8);
    if (valid >= ROWS) {
#pragma unroll
        for (int i = 0; i < ROWS / RP; ++i) {
            cp16(dst + i * RP * 128, src);
            src += step;
        }
    } else {
        const int rem = valid - r0;
#pragma unroll 1
        for (int i = 0; i < ROWS / RP; ++i) {
            const bool ok = i * RP < rem;
            cp16_zfill(dst + i * RP * 128, ok ? src : safe, ok ? 16u : 0u);
            src += step;
        }
    }
}

template <int D>
__global__ void __launch_bounds__((Cfg<D>::NC + 1) * 128, 1)
attn_fast(const __half* __restrict__ q, const __half* __restrict__ k, const __half* __restrict__ v,
          __half* __restrict__ out,
          long long q_b, long long q_s, long long q_h,
          long long k_b, long long k_s, long long k_h,
          long long v_b, long long v_s, long long v_h,
          long long o_b, long long o_s, long long o_h,
          int batch, int heads, int group, int seq_q, int seq_k, float scale) {
    constexpr int NC = Cfg<D>::NC;
    constexpr int BM = Cfg<D>::BM;
    constexpr int BN = Cfg<D>::BN;
    constexpr int ST = Cfg<D>::ST;
    constexpr u32 STAGE_BYTES = BN * D * 2;

    extern __shared__ __align__(1024) unsigned char smem_raw[];
    const u32 base = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = base;
    const u32 sK = sQ + BM * D * 2;
    const u32 sV = sK + ST * STAGE_BYTES;
    const u32 bars = sV + ST * STAGE_BYTES;
    // bars: K full [ST], K empty [ST], V full [ST], V empty [ST], Q full, Q empty

    if (threadIdx.x == 0) {
        for (int i = 0; i < ST; ++i) {
            mbar_init(bars + 8 * i, 128);
            mbar_init(bars + 8 * (ST + i), NC * 4);
            mbar_init(bars + 8 * (2 * ST + i), 128);
            mbar_init(bars + 8 * (3 * ST + i), NC * 4);
        }
        mbar_init(bars + 8 * (4 * ST), 128);
        mbar_init(bars + 8 * (4 * ST + 1), NC * 4);
    }
    __syncthreads();

    const int off = seq_k - seq_q;
    const int n_m = (seq_q + BM - 1) / BM;
    const int n_pairs = (n_m + 1) / 2;
    const int units = batch * heads * n_pairs;
    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);

    if (wg == 0) {
        // ------------------------------------------------------------ producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Cfg<D>::PR));
        constexpr int CH = D / 8;
        constexpr int RP = 128 / CH;
        const int ch = threadIdx.x % CH;
        const int r0 = threadIdx.x / CH;
        const u32 so = (u32)((ch >> 3) * BN * 128 + r0 * 128 + (((ch & 7) ^ (r0 & 7)) << 4));

        Pipe kp, vp;
        kp.st = 0; kp.ph = 0;
        vp.st = 0; vp.ph = 0;
        u32 qph = 0;

        for (int u = blockIdx.x; u < units; u += gridDim.x) {
            const int bh = u / n_pairs;
            const int pr = u - bh * n_pairs;
            const int b = bh / heads;
            const int h = bh - b * heads;
            const __half* kb = k + b * k_b + (h / group) * k_h + r0 * k_s + ch * 8;
            const __half* vb = v + b * v_b + (h / group) * v_h + r0 * v_s + ch * 8;
#pragma unroll 1
            for (int part = 0; part < 2; ++part) {
                const int mt = part ? pr : n_m - 1 - pr;
                if (part && pr == n_m - 1 - pr) break;
                const int kv_len = min((mt + 1) * BM, seq_q) + off;
                if (kv_len <= 0) continue;
                int n = (kv_len + BN - 1) / BN - 1;

                // first K tile
                mbar_wait(bars + 8 * (ST + kp.st), kp.ph ^ 1u);
                load_rows<D, BN>(sK + kp.st * STAGE_BYTES + so, kb + (long long)n * BN * k_s,
                                 RP * k_s, seq_k - n * BN, r0, k);
                cp_arrive(bars + 8 * kp.st);
                advance<ST>(kp);

                // Q tile
                mbar_wait(bars + 8 * (4 * ST + 1), qph ^ 1u);
                load_rows<D, BM>(sQ + so,
                                 q + b * q_b + h * q_h + ((long long)mt * BM + r0) * q_s + ch * 8,
                                 RP * q_s, seq_q - mt * BM, r0, q);
                cp_arrive(bars + 8 * (4 * ST));
                qph ^= 1u;

#pragma unroll 1
                for (; n >= 0; --n) {
                    if (n > 0) {
                        mbar_wait(bars + 8 * (ST + kp.st), kp.ph ^ 1u);
                        load_rows<D, BN>(sK + kp.st * STAGE_BYTES + so,
                                         kb + (long long)(n - 1) * BN * k_s, RP * k_s,
                                         seq_k - (n - 1) * BN, r0, k);
                        cp_arrive(bars + 8 * kp.st);
                        advance<ST>(kp);
                    }
                    mbar_wait(bars + 8 * (3 * ST + vp.st), vp.ph ^ 1u);
                    load_rows<D, BN>(sV + vp.st * STAGE_BYTES + so, vb + (long long)n * BN * v_s,
                                     RP * v_s, seq_k - n * BN, r0, v);
                    cp_arrive(bars + 8 * (2 * ST + vp.st));
                    advance<ST>(vp);
                }
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    } else {
        // ----------------------------------------------------------- consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Cfg<D>::CR));
        const int w = wg - 1;
        const int lane = threadIdx.x & 31;
        const int warp = (threadIdx.x >> 5) & 3;
        const int g = lane >> 2;
        const int qd = lane & 3;
        const float c = scale * 1.4426950408889634f;

        const u64 dq = make_desc(sQ + w * 8192, 16, 1024);
        const u64 dk0 = make_desc(sK, 16, 1024);
        const u64 dv0 = make_desc(sV, BN * 128, 1024);
        constexpr u64 STAGE = (u64)(STAGE_BYTES / 16);

        Pipe kp, vp;
        kp.st = 0; kp.ph = 0;
        vp.st = 0; vp.ph = 0;
        u32 qph = 0;

        float s[64];
        float o[D / 2];
        u32 p[32];
#pragma unroll
        for (int i = 0; i < 64; ++i) s[i] = 0.f;

        // The first warpgroup may issue first.
        if (w == NC - 1) bar_arrive(1);

        for (int u = blockIdx.x; u < units; u += gridDim.x) {
            const int bh = u / n_pairs;
            const int pr = u - bh * n_pairs;
            const int b = bh / heads;
            const int h = bh - b * heads;
#pragma unroll 1
            for (int part = 0; part < 2; ++part) {
                const int mt = part ? pr : n_m - 1 - pr;
                if (part && pr == n_m - 1 - pr) break;
                const int kv_len = min((mt + 1) * BM, seq_q) + off;
                const int row0 = mt * BM + w * 64 + warp * 16 + g;

                if (kv_len <= 0) {
                    __half* op = out + b * o_b + h * o_h + (long long)row0 * o_s + 8 * qd;
                    const uint4 z = make_uint4(0u, 0u, 0u, 0u);
#pragma unroll
                    for (int j = 0; j < D / 32; ++j) {
                        if (row0 < seq_q) *reinterpret_cast<uint4*>(op + 32 * j) = z;
                        if (row0 + 8 < seq_q) *reinterpret_cast<uint4*>(op + 8 * o_s + 32 * j) = z;
                    }
                    continue;
                }

                int n = (kv_len + BN - 1) / BN - 1;
                const int lim_base = row0 + off - 2 * qd;
                float m[2], l[2];
                m[0] = m[1] = NEG_INF;
                l[0] = l[1] = 0.f;
#pragma unroll
                for (int i = 0; i < D / 2; ++i) o[i] = 0.f;

                // first tile: scores only
                mbar_wait(bars + 8 * (4 * ST), qph);
                qph ^= 1u;
                mbar_wait(bars + 8 * kp.st, kp.ph);
                fence_async();
                fence_regs(s);
                wgmma_fence();
                gemm_qk<D>(s, dq, dk0 + (u64)kp.st * STAGE);
                wgmma_commit();
                wgmma_wait<0>();
                fence_regs(s);
                if (lane == 0) {
                    mbar_arrive(bars + 8 * (ST + kp.st));
                    if (n == 0) mbar_arrive(bars + 8 * (4 * ST + 1));
                }
                advance<ST>(kp);
                {
                    float alpha[2];
                    softmax_tile<true>(s, m, l, alpha, c, lim_base - n * BN);
                }
                convert_p(p, s);

                // key tiles below n_full are seen entirely by this warpgroup
                const int n_full = max(0, mt * BM + w * 64 + off + 1) / BN;
                --n;
#pragma unroll 1
                for (; n >= n_full; --n) {
                    kv_step<D, true>(s, o, p, m, l, dq, dk0, dv0, bars, kp, vp, w, lane, n == 0, c,
                                     lim_base - n * BN);
                }
#pragma unroll 1
                for (; n >= 0; --n) {
                    kv_step<D, false>(s, o, p, m, l, dq, dk0, dv0, bars, kp, vp, w, lane, n == 0, c,
                                      0);
                }

                // last product
                mbar_wait(bars + 8 * (2 * ST + vp.st), vp.ph);
                fence_async();
                fence_regs(o);
                fence_regs(p);
                wgmma_fence();
                gemm_pv<D>(o, p, dv0 + (u64)vp.st * STAGE);
                wgmma_commit();

                float l0 = l[0], l1 = l[1];
                l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
                l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
                l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
                l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
                const float inv0 = l0 > 0.f ? 1.f / l0 : 0.f;
                const float inv1 = l1 > 0.f ? 1.f / l1 : 0.f;

                wgmma_wait<0>();
                fence_regs(o);
                if (lane == 0) mbar_arrive(bars + 8 * (3 * ST + vp.st));
                advance<ST>(vp);

                __half* op = out + b * o_b + h * o_h + (long long)row0 * o_s + 8 * qd;
#pragma unroll
                for (int j = 0; j < D / 32; ++j) {
                    u32 x[4], y[4];
#pragma unroll
                    for (int t = 0; t < 4; ++t) {
                        const int i = 4 * j + t;
                        x[t] = pack2(o[4 * i] * inv0, o[4 * i + 1] * inv0);
                        y[t] = pack2(o[4 * i + 2] * inv1, o[4 * i + 3] * inv1);
                    }
                    transpose4(x, qd);
                    transpose4(y, qd);
                    if (row0 < seq_q)
                        *reinterpret_cast<uint4*>(op + 32 * j) = make_uint4(x[0], x[1], x[2], x[3]);
                    if (row0 + 8 < seq_q)
                        *reinterpret_cast<uint4*>(op + 8 * o_s + 32 * j) =
                            make_uint4(y[0], y[1], y[2], y[3]);
                }
            }
        }
        // Take the arrival that is left over.
        if (w == 0) bar_sync(1);
    }
}

#else
// ---------------------------------------------------------------------------
// Generic kernel: mma.sync, any alignment, any scale
// ---------------------------------------------------------------------------

__device__ __forceinline__ void mma16816(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,
                                         u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int D>
__global__ void __launch_bounds__(128)
attn_generic(const unsigned short* __restrict__ q, const unsigned short* __restrict__ k,
             const unsigned short* __restrict__ v, __half* __restrict__ out,
             long long q_b, long long q_s, long long q_h,
             long long k_b, long long k_s, long long k_h,
             long long v_b, long long v_s, long long v_h,
             long long o_b, long long o_s, long long o_h,
             int batch, int heads, int group, int seq_q, int seq_k, float scale) {
    constexpr int LD = D + 8;
    extern __shared__ __align__(16) unsigned char smem_raw[];
    unsigned short* sQ = reinterpret_cast<unsigned short*>(smem_raw);
    unsigned short* sK = sQ + 64 * LD;
    unsigned short* sV = sK + 64 * LD;

    const int n_m = (seq_q + 63) / 64;
    const int bh = blockIdx.x / n_m;
    const int mt = n_m - 1 - (int)(blockIdx.x - bh * n_m);
    const int b = bh / heads;
    const int h = bh - b * heads;
    const int off = seq_k - seq_q;
    const int tid = threadIdx.x;
    const int lane = tid & 31, warp = tid >> 5, g = lane >> 2, qd = lane & 3;
    const float c = scale * 1.4426950408889634f;

    const unsigned short* qp = q + b * q_b + h * q_h;
    const unsigned short* kp = k + b * k_b + (h / group) * k_h;
    const unsigned short* vp = v + b * v_b + (h / group) * v_h;

    for (int idx = tid; idx < 64 * D; idx += 128) {
        const int r = idx / D, cc = idx % D;
        const int row = mt * 64 + r;
        sQ[r * LD + cc] = row < seq_q ? qp[(long long)row * q_s + cc] : (unsigned short)0;
    }
    __syncthreads();

    u32 qa[D / 16][4];
    const int lr = warp * 16 + g;
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const unsigned short* x = sQ + lr * LD + kk * 16 + 2 * qd;
        qa[kk][0] = *reinterpret_cast<const u32*>(x);
        qa[kk][1] = *reinterpret_cast<const u32*>(x + 8 * LD);
        qa[kk][2] = *reinterpret_cast<const u32*>(x + 8);
        qa[kk][3] = *reinterpret_cast<const u32*>(x + 8 * LD + 8);
    }

    float o[D / 8][4];
#pragma unroll
    for (int i = 0; i < D / 8; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.f;
    float m0 = NEG_INF, m1 = NEG_INF, l0 = 0.f, l1 = 0.f;

    const int row0 = mt * 64 + lr;
    const int kv_len = min((mt + 1) * 64, seq_q) + off;
    const int n_max = kv_len > 0 ? (kv_len + 63) / 64 : 0;

    for (int n = 0; n < n_max; ++n) {
        __syncthreads();
        for (int idx = tid; idx < 64 * D; idx += 128) {
            const int r = idx / D, cc = idx % D;
            const int row = n * 64 + r;
            const bool ok = row < seq_k;
            sK[r * LD + cc] = ok ? kp[(long long)row * k_s + cc] : (unsigned short)0;
            sV[r * LD + cc] = ok ? vp[(long long)row * v_s + cc] : (unsigned short)0;
        }
        __syncthreads();

        float s[8][4];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.f;
#pragma unroll
            for (int kk = 0; kk < D / 16; ++kk) {
                const unsigned short* x = sK + (8 * j + g) * LD + kk * 16 + 2 * qd;
                const u32 b0 = *reinterpret_cast<const u32*>(x);
                const u32 b1 = *reinterpret_cast<const u32*>(x + 8);
                mma16816(s[j], qa[kk][0], qa[kk][1], qa[kk][2], qa[kk][3], b0, b1);
            }
        }

        float x0 = m0, x1 = m1;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int col = n * 64 + 8 * j + 2 * qd + e;
                s[j][e] = col <= row0 + off ? __fmul_rn(s[j][e], c) : NEG_INF;
                s[j][2 + e] = col <= row0 + 8 + off ? __fmul_rn(s[j][2 + e], c) : NEG_INF;
                x0 = fmaxf(x0, s[j][e]);
                x1 = fmaxf(x1, s[j][2 + e]);
            }
        }
        x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
        x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
        x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
        x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));
        const float base0 = x0 == NEG_INF ? 0.f : x0;
        const float base1 = x1 == NEG_INF ? 0.f : x1;
        const float al0 = ex2(m0 - base0);
        const float al1 = ex2(m1 - base1);
        m0 = x0;
        m1 = x1;
        float t0 = 0.f, t1 = 0.f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                s[j][e] = ex2(s[j][e] - base0);
                s[j][2 + e] = ex2(s[j][2 + e] - base1);
                t0 += s[j][e];
                t1 += s[j][2 + e];
            }
        }
        l0 = l0 * al0 + t0;
        l1 = l1 * al1 + t1;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            o[i][0] *= al0;
            o[i][1] *= al0;
            o[i][2] *= al1;
            o[i][3] *= al1;
        }
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) {
            const u32 a0 = pack2(s[2 * kk][0], s[2 * kk][1]);
            const u32 a1 = pack2(s[2 * kk][2], s[2 * kk][3]);
            const u32 a2 = pack2(s[2 * kk + 1][0], s[2 * kk + 1][1]);
            const u32 a3 = pack2(s[2 * kk + 1][2], s[2 * kk + 1][3]);
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
                const unsigned short* x = sV + (kk * 16 + 2 * qd) * LD + 8 * i + g;
                const u32 b0 = (u32)x[0] | ((u32)x[LD] << 16);
                const u32 b1 = (u32)x[8 * LD] | ((u32)x[9 * LD] << 16);
                mma16816(o[i], a0, a1, a2, a3, b0, b1);
            }
        }
    }

    l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
    l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
    const float inv0 = l0 > 0.f ? 1.f / l0 : 0.f;
    const float inv1 = l1 > 0.f ? 1.f / l1 : 0.f;

    __half* op = out + b * o_b + h * o_h + (long long)row0 * o_s + 2 * qd;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
        if (row0 < seq_q) {
            op[8 * i] = __float2half_rn(o[i][0] * inv0);
            op[8 * i + 1] = __float2half_rn(o[i][1] * inv0);
        }
        if (row0 + 8 < seq_q) {
            op[8 * o_s + 8 * i] = __float2half_rn(o[i][2] * inv1);
            op[8 * o_s + 8 * i + 1] = __float2half_rn(o[i][3] * inv1);
        }
    }
}
#endif
