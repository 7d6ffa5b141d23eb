#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#define NEG_INF __int_as_float(0xff800000)

static constexpr int BN = 128;  // keys per block

// ---------------------------------------------------------------- small helpers

__device__ __forceinline__ u32 smem_u32(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred P1;\n"
        "LAB_WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n"
        "@P1 bra LAB_DONE;\n"
        "bra LAB_WAIT;\n"
        "LAB_DONE:\n"
        "}\n" ::"r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void named_sync(int id) {
    asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}

__device__ __forceinline__ void named_arrive(int id) {
    asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}

__device__ __forceinline__ void cp16(u32 dst, const half* src) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp16z(u32 dst, const half* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
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

// ---------------------------------------------------------------- wgmma

__device__ __forceinline__ void wg_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wg_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// 128-byte swizzle
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(sbo >> 4) << 32) | (1ull << 62);
}

#define F4(d, i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define F16(d, i) F4(d, (i)), F4(d, (i) + 4), F4(d, (i) + 8), F4(d, (i) + 12)

#define L32                                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, "                       \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                 \
    "%16, %17, %18, %19, %20, %21, %22, %23, "               \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define L64                                                  \
    L32 ", "                                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, "               \
    "%40, %41, %42, %43, %44, %45, %46, %47, "               \
    "%48, %49, %50, %51, %52, %53, %54, %55, "               \
    "%56, %57, %58, %59, %60, %61, %62, %63"

// S (64 x 128) (+)= SA * Q K^T, both from shared memory, K-major
template <int SA>
__device__ __forceinline__ void wgmma_qk(float (&d)[64], u64 a, u64 b, int sd) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" L64 "}, %64, %65, p, %67, 1, 0, 0;\n"
        "}\n"
        : F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48)
        : "l"(a), "l"(b), "r"(sd), "n"(SA));
}

// O (64 x 128) += P V, P from registers, V from shared memory with its columns contiguous
__device__ __forceinline__ void wgmma_pv(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" L64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1));
}

// O (64 x 64) += P V
__device__ __forceinline__ void wgmma_pv(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{" L32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : F16(d, 0), F16(d, 16)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1));
}

template <int D, int BM, int SA>
__device__ __forceinline__ void issue_qk(float (&S)[64], u64 qd, u64 kd) {
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const int h = kk / 4, r = kk % 4;
        wgmma_qk<SA>(S, qd + (u64)(h * (BM * 128 / 16) + r * 2), kd + (u64)(h * (BN * 128 / 16) + r * 2),
                     kk == 0 ? 0 : 1);
    }
}

template <int NO>
__device__ __forceinline__ void issue_pv(float (&O)[NO], u32 (&P)[32], u64 vd) {
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
        wgmma_pv(O, P[4 * kk], P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3], vd + (u64)(kk * 128));
    }
}

// ---------------------------------------------------------------- producer

// This thread copies rows row0 + r0 + 16 i, one 16-byte chunk of each 64 columns.
template <int D, int ROWS>
__device__ __forceinline__ void load_rows(u32 dst, const half* src, long long stride, int row0, int nrows, int r0) {
    const half* p = src + (long long)(row0 + r0) * stride;
    const long long step = 16 * stride;
    if (row0 + ROWS <= nrows) {
#pragma unroll
        for (int i = 0; i < ROWS / 16; ++i) {
#pragma unroll
            for (int h = 0; h < D / 64; ++h) cp16(dst + i * 2048 + h * (ROWS * 128), p + h * 64);
            p += step;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS / 16; ++i) {
            const bool ok = row0 + r0 + 16 * i < nrows;
            const half* pp = ok ? p : src;
#pragma unroll
            for (int h = 0; h < D / 64; ++h) cp16z(dst + i * 2048 + h * (ROWS * 128), pp + h * 64, ok ? 16 : 0);
            p += step;
        }
    }
}

__device__ __forceinline__ void publish(u32 bar, int lane) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (lane == 0) mbar_arrive(bar);
}

__device__ __forceinline__ void commit_item(u32 bar, u32& pend, int lane) {
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (pend) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        publish(pend, lane);
    }
    pend = bar;
}

__device__ __forceinline__ void flush_items(u32& pend, int lane) {
    if (pend) {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        publish(pend, lane);
        pend = 0;
    }
}

// ---------------------------------------------------------------- tile schedule

// 0: no more, 1: a tile, 2: nothing at this index
__device__ __forceinline__ int next_tile(int it, int nu, int BH, int nt, int held, int pairs, int rest, int& bh,
                                         int& qt) {
    const int c = blockIdx.x;
    const int G = gridDim.x;
    if (it < 2 * nu) {
        const int u = c + (it >> 1) * G;
        bh = u / pairs;
        const int p = u - bh * pairs;
        const int hi = nt - 1 - p;
        if (it & 1) {
            qt = held + p;
            return qt == hi ? 2 : 1;
        }
        qt = hi;
        return 1;
    }
    if (held == 0 || c < G - rest) return 0;
    const int x = (c - (G - rest)) + (it - 2 * nu) * rest;
    if (x >= BH * held) return 0;
    const int y = x / BH;
    qt = held - 1 - y;
    bh = x - y * BH;
    return 1;
}

template <int BM>
__device__ __forceinline__ int num_blocks(int q0, int Nq, int off) {
    const int last = min(q0 + BM, Nq) - 1;
    const int kv = last + off + 1;
    return kv <= 0 ? 0 : (kv + BN - 1) / BN;
}

// ---------------------------------------------------------------- consumer pieces

struct Ctx {
    u32 fullK, emptyK, fullV, emptyV, emptyQ;
    u64 qd, kd, vd;
    float sl2;
    int lane, bar_mine, bar_next;
};

struct State {
    int ks, vs;
    u32 kph, vph;
    float m0, m1, l0, l1;
};

template <int STAGES>
__device__ __forceinline__ void advance(int& s, u32& ph) {
    if (++s == STAGES) {
        s = 0;
        ph ^= 1u;
    }
}

// lim: last visible key of the thread's first row, relative to the thread's first column
__device__ __forceinline__ void apply_mask(float (&S)[64], int lim) {
    const int lim1 = lim + 8;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        if (8 * j > lim) S[4 * j] = NEG_INF;
        if (8 * j + 1 > lim) S[4 * j + 1] = NEG_INF;
        if (8 * j > lim1) S[4 * j + 2] = NEG_INF;
        if (8 * j + 1 > lim1) S[4 * j + 3] = NEG_INF;
    }
}

__device__ __forceinline__ void softmax(float (&S)[64], State& st, float sl2, float& f0, float& f1) {
    float a0 = fmaxf(S[0], S[1]), a1 = fmaxf(S[2], S[3]);
    float b0 = fmaxf(S[4], S[5]), b1 = fmaxf(S[6], S[7]);
#pragma unroll
    for (int i = 8; i < 64; i += 8) {
        a0 = fmaxf(a0, fmaxf(S[i], S[i + 1]));
        a1 = fmaxf(a1, fmaxf(S[i + 2], S[i + 3]));
        b0 = fmaxf(b0, fmaxf(S[i + 4], S[i + 5]));
        b1 = fmaxf(b1, fmaxf(S[i + 6], S[i + 7]));
    }
    a0 = fmaxf(a0, b0);
    a1 = fmaxf(a1, b1);
    a0 = fmaxf(a0, __shfl_xor_sync(0xffffffffu, a0, 1));
    a1 = fmaxf(a1, __shfl_xor_sync(0xffffffffu, a1, 1));
    a0 = fmaxf(a0, __shfl_xor_sync(0xffffffffu, a0, 2));
    a1 = fmaxf(a1, __shfl_xor_sync(0xffffffffu, a1, 2));
    const float n0 = fmaxf(st.m0, a0);
    const float n1 = fmaxf(st.m1, a1);
    const float s0 = (n0 == NEG_INF) ? 0.0f : __fmul_rn(n0, sl2);
    const float s1 = (n1 == NEG_INF) ? 0.0f : __fmul_rn(n1, sl2);
    f0 = ex2(__fmul_rn(st.m0, sl2) - s0);
    f1 = ex2(__fmul_rn(st.m1, sl2) - s1);
    st.m0 = n0;
    st.m1 = n1;
    float x0 = 0.0f, x1 = 0.0f, y0 = 0.0f, y1 = 0.0f;
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
        S[i] = ex2(fmaf(S[i], sl2, -s0));
        S[i + 1] = ex2(fmaf(S[i + 1], sl2, -s0));
        S[i + 2] = ex2(fmaf(S[i + 2], sl2, -s1));
        S[i + 3] = ex2(fmaf(S[i + 3], sl2, -s1));
        x0 += S[i];
        y0 += S[i + 1];
        x1 += S[i + 2];
        y1 += S[i + 3];
    }
    st.l0 = fmaf(st.l0, f0, x0 + y0);
    st.l1 = fmaf(st.l1, f1, x1 + y1);
}

__device__ __forceinline__ void pack_p(const float (&S)[64], u32 (&P)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) P[i] = pack2(S[2 * i], S[2 * i + 1]);
}

// Scores of block n, together with P V of the block before it.
template <int D, int BM, int STAGES, int SA, bool MASK>
__device__ __forceinline__ void step(float (&S)[64], float (&O)[D / 2], u32 (&P)[32], const Ctx& c, State& st, int n,
                                     int lim_base) {
    constexpr u64 TILE16 = (u64)(BN * D * 2 / 16);
    mbar_wait(c.fullK + 8 * st.ks, st.kph);
    named_sync(c.bar_mine);
    wg_fence();
    issue_qk<D, BM, SA>(S, c.qd, c.kd + TILE16 * (u64)st.ks);
    wg_commit();
    mbar_wait(c.fullV + 8 * st.vs, st.vph);
    issue_pv(O, P, c.vd + TILE16 * (u64)st.vs);
    wg_commit();
    named_arrive(c.bar_next);
    wg_wait<1>();
    fence_regs(S);
    if (c.lane == 0) {
        mbar_arrive(c.emptyK + 8 * st.ks);
        if (n == 0) mbar_arrive(c.emptyQ);
    }
    advance<STAGES>(st.ks, st.kph);
    if (MASK) apply_mask(S, lim_base - n * BN);
    float f0, f1;
    softmax(S, st, c.sl2, f0, f1);
    wg_wait<0>();
    fence_regs(O);
    if (c.lane == 0) mbar_arrive(c.emptyV + 8 * st.vs);
    advance<STAGES>(st.vs, st.vph);
#pragma unroll
    for (int i = 0; i < D / 2; i += 4) {
        O[i] *= f0;
        O[i + 1] *= f0;
        O[i + 2] *= f1;
        O[i + 3] *= f1;
    }
    pack_p(S, P);
    fence_regs(O);
    fence_regs(P);
}

// Four lanes hold 4 registers each; afterwards lane t holds register t of lanes 0..3.
__device__ __forceinline__ void quad_transpose(u32& r0, u32& r1, u32& r2, u32& r3, int t) {
    const bool hi = (t & 2) != 0;
    u32 x = hi ? r0 : r2;
    u32 y = hi ? r1 : r3;
    x = __shfl_xor_sync(0xffffffffu, x, 2);
    y = __shfl_xor_sync(0xffffffffu, y, 2);
    if (hi) {
        r0 = x;
        r1 = y;
    } else {
        r2 = x;
        r3 = y;
    }
    const bool odd = (t & 1) != 0;
    x = odd ? r0 : r1;
    y = odd ? r2 : r3;
    x = __shfl_xor_sync(0xffffffffu, x, 1);
    y = __shfl_xor_sync(0xffffffffu, y, 1);
    if (odd) {
        r0 = x;
        r2 = y;
    } else {
        r1 = x;
        r3 = y;
    }
}

// ---------------------------------------------------------------- the kernel

template <int D, int NWG, int STAGES, bool NEG>
__global__ void __launch_bounds__((NWG + 1) * 128, 1)
    attn_fwd(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v,
             half* __restrict__ out, long long qsb, long long qss, long long qsh, long long ksb, long long kss,
             long long ksh, long long vsb, long long vss, long long vsh, long long osb, long long oss,
             long long osh, int heads, int group, int BH, int Nq, int Nk, float sl2, int nt, int held, int pairs,
             int units, int rest) {
    constexpr int BM = NWG * 64;
    constexpr int TILE = BN * D * 2;
    constexpr int SA = NEG ? -1 : 1;
    constexpr int REG_P = NWG == 2 ? 40 : 32;
    constexpr int REG_C = NWG == 2 ? 232 : 160;

    extern __shared__ unsigned char smem_raw[];
    const u32 sQ = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const u32 sK = sQ + BM * D * 2;
    const u32 sV = sK + STAGES * TILE;
    const u32 bars = sV + STAGES * TILE;
    const u32 fullK = bars;
    const u32 emptyK = fullK + 8 * STAGES;
    const u32 fullV = emptyK + 8 * STAGES;
    const u32 emptyV = fullV + 8 * STAGES;
    const u32 fullQ = emptyV + 8 * STAGES;
    const u32 emptyQ = fullQ + 8;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            mbar_init(fullK + 8 * i, 4);
            mbar_init(fullV + 8 * i, 4);
            mbar_init(emptyK + 8 * i, 4 * NWG);
            mbar_init(emptyV + 8 * i, 4 * NWG);
        }
        mbar_init(fullQ, 4);
        mbar_init(emptyQ, 4 * NWG);
    }
    __syncthreads();

    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);
    const int lane = threadIdx.x & 31;
    const int off = Nk - Nq;
    const int nu = (int)blockIdx.x < units ? (units - 1 - (int)blockIdx.x) / (int)gridDim.x + 1 : 0;

    if (wg == 0) {
        // ------------------------------------------------ producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REG_P));
        const int tid = threadIdx.x;
        const int c8 = tid & 7;
        const int r0 = tid >> 3;
        const u32 soff = (u32)(r0 * 128 + ((c8 ^ (r0 & 7)) << 4));
        int ks = 0, vs = 0;
        u32 kph = 0, vph = 0, qph = 0, pend = 0;

#pragma unroll 1
        for (int it = 0;; ++it) {
            int bh, qt;
            const int rc = next_tile(it, nu, BH, nt, held, pairs, rest, bh, qt);
            if (rc == 0) break;
            if (rc == 2) continue;
            const int q0 = qt * BM;
            const int nb = num_blocks<BM>(q0, Nq, off);
            if (nb <= 0) continue;
            const int b = bh / heads;
            const int h = bh - b * heads;
            const int hk = h / group;
            const half* kp = k + (long long)b * ksb + (long long)hk * ksh + c8 * 8;
            const half* vp = v + (long long)b * vsb + (long long)hk * vsh + c8 * 8;

#pragma unroll 1
            for (int n = nb - 1; n >= 0; --n) {
                mbar_wait(emptyK + 8 * ks, kph ^ 1u);
                load_rows<D, BN>(sK + ks * TILE + soff, kp, kss, n * BN, Nk, r0);
                commit_item(fullK + 8 * ks, pend, lane);
                advance<STAGES>(ks, kph);
                if (n == nb - 1) {
                    flush_items(pend, lane);
                    mbar_wait(emptyQ, qph ^ 1u);
                    load_rows<D, BM>(sQ + soff, q + (long long)b * qsb + (long long)h * qsh + c8 * 8, qss, q0, Nq,
                                     r0);
                    commit_item(fullQ, pend, lane);
                    qph ^= 1u;
                } else {
                    mbar_wait(emptyV + 8 * vs, vph ^ 1u);
                    load_rows<D, BN>(sV + vs * TILE + soff, vp, vss, (n + 1) * BN, Nk, r0);
                    commit_item(fullV + 8 * vs, pend, lane);
                    advance<STAGES>(vs, vph);
                }
            }
            mbar_wait(emptyV + 8 * vs, vph ^ 1u);
            load_rows<D, BN>(sV + vs * TILE + soff, vp, vss, 0, Nk, r0);
            commit_item(fullV + 8 * vs, pend, lane);
            advance<STAGES>(vs, vph);
        }
        flush_items(pend, lane);
    } else {
        // ------------------------------------------------ consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REG_C));
        constexpr u64 TILE16 = (u64)(TILE / 16);
        const int cw = wg - 1;
        const int warp = (threadIdx.x >> 5) & 3;
        const int t = lane & 3;

        Ctx c;
        c.fullK = fullK;
        c.emptyK = emptyK;
        c.fullV = fullV;
        c.emptyV = emptyV;
        c.emptyQ = emptyQ;
        c.qd = make_desc(sQ + cw * 8192, 16, 1024);
        c.kd = make_desc(sK, 16, 1024);
        c.vd = make_desc(sV, BN * 128, 1024);
        c.sl2 = sl2;
        c.lane = lane;
        c.bar_mine = 1 + cw;
        c.bar_next = 1 + (cw + 1 == NWG ? 0 : cw + 1);
        if (cw == NWG - 1) named_arrive(1);  // the first warpgroup goes first

        State st;
        st.ks = 0;
        st.vs = 0;
        st.kph = 0;
        st.vph = 0;
        u32 qph = 0;

        float S[64];
        float O[D / 2];
        u32 P[32];
#pragma unroll
        for (int i = 0; i < 64; ++i) S[i] = 0.0f;

#pragma unroll 1
        for (int it = 0;; ++it) {
            int bh, qt;
            const int rc = next_tile(it, nu, BH, nt, held, pairs, rest, bh, qt);
            if (rc == 0) break;
            if (rc == 2) continue;
            const int q0 = qt * BM;
            const int nb = num_blocks<BM>(q0, Nq, off);
            const int wr0 = q0 + cw * 64;                    // first row of this warpgroup
            const int row = wr0 + warp * 16 + (lane >> 2);   // and of this thread (the other is row + 8)

            if (nb <= 0) {
                const int b = bh / heads;
                const int h = bh - b * heads;
                half* op = out + (long long)b * osb + (long long)h * osh;
                const uint4 z = make_uint4(0u, 0u, 0u, 0u);
#pragma unroll
                for (int jg = 0; jg < D / 32; ++jg) {
                    const int col = 8 * (4 * jg + t);
                    if (row < Nq) *reinterpret_cast<uint4*>(op + (long long)row * oss + col) = z;
                    if (row + 8 < Nq) *reinterpret_cast<uint4*>(op + (long long)(row + 8) * oss + col) = z;
                }
                continue;
            }

            // Blocks this warpgroup has to look at, and those of them that need no mask.
            int wnb = 1;
            if (wr0 < Nq) {
                const int kv = min(wr0 + 63, Nq - 1) + off + 1;
                if (kv > 0) wnb = min(nb, (kv + BN - 1) / BN);
            }
            const int nfull = max(0, wr0 + off + 1) / BN;
            const int lim_base = row + off - 2 * t;

            int n = nb - 1;
#pragma unroll 1
            for (; n >= wnb; --n) {
                mbar_wait(fullK + 8 * st.ks, st.kph);
                if (lane == 0) mbar_arrive(emptyK + 8 * st.ks);
                advance<STAGES>(st.ks, st.kph);
                mbar_wait(fullV + 8 * st.vs, st.vph);
                if (lane == 0) mbar_arrive(emptyV + 8 * st.vs);
                advance<STAGES>(st.vs, st.vph);
                named_sync(c.bar_mine);
                named_arrive(c.bar_next);
            }

            st.m0 = NEG_INF;
            st.m1 = NEG_INF;
            st.l0 = 0.0f;
            st.l1 = 0.0f;

            // First block.
            mbar_wait(fullQ, qph);
            qph ^= 1u;
            mbar_wait(fullK + 8 * st.ks, st.kph);
            wg_fence();
            issue_qk<D, BM, SA>(S, c.qd, c.kd + TILE16 * (u64)st.ks);
            wg_commit();
            wg_wait<0>();
            fence_regs(S);
            if (lane == 0) {
                mbar_arrive(emptyK + 8 * st.ks);
                if (n == 0) mbar_arrive(emptyQ);
            }
            advance<STAGES>(st.ks, st.kph);
            if (n >= nfull) apply_mask(S, lim_base - n * BN);
            {
                float f0, f1;
                softmax(S, st, sl2, f0, f1);
            }
            pack_p(S, P);
#pragma unroll
            for (int i = 0; i < D / 2; ++i) O[i] = 0.0f;
            fence_regs(O);
            fence_regs(P);

            --n;
#pragma unroll 1
            for (; n >= nfull; --n) step<D, BM, STAGES, SA, true>(S, O, P, c, st, n, lim_base);
#pragma unroll 1
            for (; n >= 0; --n) step<D, BM, STAGES, SA, false>(S, O, P, c, st, n, lim_base);

            // Last P V.
            mbar_wait(fullV + 8 * st.vs, st.vph);
            wg_fence();
            issue_pv(O, P, c.vd + TILE16 * (u64)st.vs);
            wg_commit();
            float l0 = st.l0, l1 = st.l1;
            l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
            l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
            const float i0 = l0 > 0.0f ? 1.0f / l0 : 0.0f;
            const float i1 = l1 > 0.0f ? 1.0f / l1 : 0.0f;
            wg_wait<0>();
            fence_regs(O);
            if (lane == 0) mbar_arrive(emptyV + 8 * st.vs);
            advance<STAGES>(st.vs, st.vph);

            const int b = bh / heads;
            const int h = bh - b * heads;
            half* op = out + (long long)b * osb + (long long)h * osh;
            half* o0 = op + (long long)row * oss;
            half* o1 = op + (long long)(row + 8) * oss;
#pragma unroll
            for (int jg = 0; jg < D / 32; ++jg) {
                const int e = 16 * jg;
                u32 a0 = pack2(O[e] * i0, O[e + 1] * i0);
                u32 a1 = pack2(O[e + 4] * i0, O[e + 5] * i0);
                u32 a2 = pack2(O[e + 8] * i0, O[e + 9] * i0);
                u32 a3 = pack2(O[e + 12] * i0, O[e + 13] * i0);
                quad_transpose(a0, a1, a2, a3, t);
                u32 b0 = pack2(O[e + 2] * i1, O[e + 3] * i1);
                u32 b1 = pack2(O[e + 6] * i1, O[e + 7] * i1);
                u32 b2 = pack2(O[e + 10] * i1, O[e + 11] * i1);
                u32 b3 = pack2(O[e + 14] * i1, O[e + 15] * i1);
                quad_transpose(b0, b1, b2, b3, t);
                const int col = 8 * (4 * jg + t);
                if (row < Nq) *reinterpret_cast<uint4*>(o0 + col) = make_uint4(a0, a1, a2, a3);
                if (row + 8 < Nq) *reinterpret_cast<uint4*>(o1 + col) = make_uint4(b0, b1, b2, b3);
            }
        }
    }
}

// ---------------------------------------------------------------- any alignment, one warp a row

template <int D>
__global__ void __launch_bounds__(128)
    attn_simple(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v,
                half* __restrict__ out, long long qsb, long long qss, long long qsh, long long ksb, long long kss,
                long long ksh, long long vsb, long long vss, long long vsh, long long osb, long long oss,
                long long osh, int group, int Nq, int Nk, float sl2) {
    __shared__ float sq[4][D];
    const int warp = threadIdx.x >> 5;
    const int lane = threadIdx.x & 31;
    const int row = blockIdx.x * 4 + warp;
    const int h = blockIdx.y;
    const int b = blockIdx.z;
    if (row >= Nq) return;
    const int hk = h / group;
    const half* qp = q + (long long)b * qsb + (long long)row * qss + (long long)h * qsh;
    const half* kp = k + (long long)b * ksb + (long long)hk * ksh;
    const half* vp = v + (long long)b * vsb + (long long)hk * vsh;
    half* op = out + (long long)b * osb + (long long)row * oss + (long long)h * osh;

    for (int d = lane; d < D; d += 32) sq[warp][d] = __half2float(qp[d]);
    __syncwarp();

    const int lim = row + Nk - Nq;
    float m = NEG_INF, l = 0.0f;
    float acc[D / 32];
#pragma unroll
    for (int d = 0; d < D / 32; ++d) acc[d] = 0.0f;

    for (int j0 = 0; j0 <= lim; j0 += 32) {
        const int j = j0 + lane;
        float s = NEG_INF;
        if (j <= lim) {
            const half* kr = kp + (long long)j * kss;
            float dot = 0.0f;
#pragma unroll 8
            for (int d = 0; d < D; ++d) dot = fmaf(sq[warp][d], __half2float(kr[d]), dot);
            s = __fmul_rn(dot, sl2);
        }
        float mx = s;
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, o));
        const float mn = fmaxf(m, mx);
        const float f = exp2f(m - mn);
        const float p = exp2f(s - mn);
        float sum = p;
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        l = fmaf(l, f, sum);
        m = mn;
#pragma unroll
        for (int d = 0; d < D / 32; ++d) acc[d] *= f;
        const int cnt = min(32, lim - j0 + 1);
        for (int i = 0; i < cnt; ++i) {
            const float pi = __shfl_sync(0xffffffffu, p, i);
            const half* vr = vp + (long long)(j0 + i) * vss;
#pragma unroll
            for (int d = 0; d < D / 32; ++d) acc[d] = fmaf(pi, __half2float(vr[lane + 32 * d]), acc[d]);
        }
    }
    const float inv = l > 0.0f ? 1.0f / l : 0.0f;
#pragma unroll
    for (int d = 0; d < D / 32; ++d) op[lane + 32 * d] = __float2half_rn(acc[d] * inv);
}
