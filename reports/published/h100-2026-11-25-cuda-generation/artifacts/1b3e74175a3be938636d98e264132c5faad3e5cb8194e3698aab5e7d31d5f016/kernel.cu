typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define DEV __device__ __forceinline__
#define NEG_INF __int_as_float(0xff800000)

constexpr int BM = 128;
constexpr int BN = 128;

template <int D>
struct Cfg {
    static constexpr int QST = 2;
    static constexpr int ST = (D == 128) ? 2 : 4;
    static constexpr int TILE = 128 * D * 2;
    static constexpr int K_OFF = QST * TILE;
    static constexpr int V_OFF = K_OFF + ST * TILE;
    static constexpr int BAR_OFF = V_OFF + ST * TILE;
};

// ----------------------------------------------------------------- barriers

DEV void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
DEV void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEV u32 mbar_try(u32 bar, u32 parity) {
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
    return ok;
}
DEV u32 mbar_test(u32 bar, u32 parity) {
    u32 ok;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(ok)
        : "r"(bar), "r"(parity)
        : "memory");
    return ok;
}
DEV void mbar_wait(u32 bar, u32 parity) {
    while (!mbar_try(bar, parity)) {
    }
}
DEV void bar_sync(int id) {
    asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}
DEV void bar_arrive(int id) {
    asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}

struct Pipe {
    int i;
    u32 ph;
};
template <int N>
DEV void advance(Pipe& p) {
    if (++p.i == N) {
        p.i = 0;
        p.ph ^= 1u;
    }
}

// ----------------------------------------------------------------- cp.async

DEV void cp_async16(u32 dst, const u16* src) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
DEV void cp_async16_z(u32 dst, const u16* src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}
DEV void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEV void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads 128 rows of D elements into D/64 panels of [128 rows][128 bytes], 128B swizzle.
template <int D, int ALIGNED>
DEV void load_tile(u32 sdst, const u16* g, long long stride, int rows_valid, int tid) {
    const int c = tid & 7;
    const int r = tid >> 3;
    u32 dst = sdst + (u32)(r * 128 + ((c ^ (r & 7)) << 4));
    const u16* src = g + (long long)r * stride + c * 8;
    const long long inc = 16 * stride;
    if (ALIGNED) {
        if (rows_valid >= 128) {
#pragma unroll 4
            for (int i = 0; i < 8; ++i) {
                cp_async16(dst, src);
                if (D == 128) cp_async16(dst + 16384, src + 64);
                dst += 2048;
                src += inc;
            }
        } else {
            int row = r;
#pragma unroll 1
            for (int i = 0; i < 8; ++i) {
                const bool ok = row < rows_valid;
                const u16* s = ok ? src : g;
                const u32 bytes = ok ? 16u : 0u;
                cp_async16_z(dst, s, bytes);
                if (D == 128) cp_async16_z(dst + 16384, ok ? s + 64 : g, bytes);
                dst += 2048;
                src += inc;
                row += 16;
            }
        }
    } else {
        int row = r;
#pragma unroll 1
        for (int i = 0; i < 8; ++i) {
            const bool ok = row < rows_valid;
#pragma unroll 1
            for (int pn = 0; pn < D / 64; ++pn) {
                u32 w0 = 0, w1 = 0, w2 = 0, w3 = 0;
                if (ok) {
                    const u16* s = src + pn * 64;
                    w0 = (u32)s[0] | ((u32)s[1] << 16);
                    w1 = (u32)s[2] | ((u32)s[3] << 16);
                    w2 = (u32)s[4] | ((u32)s[5] << 16);
                    w3 = (u32)s[6] | ((u32)s[7] << 16);
                }
                asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst + pn * 16384), "r"(w0), "r"(w1),
                             "r"(w2), "r"(w3)
                             : "memory");
            }
            dst += 2048;
            src += inc;
            row += 16;
        }
    }
}

DEV void signal_full(u32 bar, int lane) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (lane == 0) mbar_arrive(bar);
}

// Wait for a free buffer; if it is not free yet, hand over first what is under way.
DEV void producer_acquire(u32 empty_bar, u32 parity, u32& pending, int lane) {
    const u32 ok = mbar_test(empty_bar, parity);
    if (!__all_sync(0xffffffffu, (int)ok)) {
        if (pending) {
            cp_wait<0>();
            signal_full(pending, lane);
            pending = 0;
        }
        mbar_wait(empty_bar, parity);
    }
}
DEV void producer_commit(u32 full_bar, u32& pending, int lane) {
    cp_commit();
    if (pending) {
        cp_wait<1>();
        signal_full(pending, lane);
    }
    pending = full_bar;
}

// -------------------------------------------------------------------- wgmma

DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEV void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
DEV void pin(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N>
DEV void pin(u32 (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

DEV u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)lbo << 16) | ((u64)sbo << 32) | (1ull << 62);
}

#define ACC4(d, i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define ACC16(d, i) ACC4(d, (i)), ACC4(d, (i) + 4), ACC4(d, (i) + 8), ACC4(d, (i) + 12)
#define ACC32(d) ACC16(d, 0), ACC16(d, 16)
#define ACC64(d) ACC16(d, 0), ACC16(d, 16), ACC16(d, 32), ACC16(d, 48)

#define REGS32                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, "                           \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                     \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define REGS64                                                   \
    REGS32 ", "                                                  \
    "%32, %33, %34, %35, %36, %37, %38, %39, "                   \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                   \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                   \
    "%56, %57, %58, %59, %60, %61, %62, %63"

template <int NEGI>
DEV void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" REGS64 "}, "
        "%64, %65, p, %67, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(scale_d), "n"(NEGI ? -1 : 1));
}

DEV void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{" REGS64 "}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

DEV void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{" REGS32 "}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : ACC32(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

template <int D, int NEGI>
DEV void gemm_s(float (&s)[64], u64 qd, u64 kd) {
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u64 off = (u64)((kk >> 2) * 1024 + (kk & 3) * 2);
        wgmma_ss<NEGI>(s, qd + off, kd + off, kk != 0 ? 1 : 0);
    }
}

template <int D>
DEV void gemm_pv(float (&o)[D / 2], u32 (&p)[32], u64 vd) {
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], vd + (u64)(kk * 128));
    }
}

// ------------------------------------------------------------------ softmax

DEV float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEV u32 pack2(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

struct Row {
    float b0, b1;  // scaled maximum in use
    float l0, l1;  // this thread's part of the sum
    float a0, a1;  // factor for what came before
};

// Scores to probabilities, in place. Returns whether O must be rescaled (this thread's rows).
template <bool MASK>
DEV bool softmax_block(float (&s)[64], Row& r, float c, int rel0, int rel1) {
    if (MASK) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                if (8 * j + e > rel0) s[4 * j + e] = NEG_INF;
                if (8 * j + e > rel1) s[4 * j + 2 + e] = NEG_INF;
            }
        }
    }
    float x0 = fmaxf(s[0], s[1]), x1 = fmaxf(s[2], s[3]);
    float y0 = fmaxf(s[4], s[5]), y1 = fmaxf(s[6], s[7]);
#pragma unroll
    for (int j = 2; j < 16; j += 2) {
        x0 = fmaxf(x0, fmaxf(s[4 * j + 0], s[4 * j + 1]));
        x1 = fmaxf(x1, fmaxf(s[4 * j + 2], s[4 * j + 3]));
        y0 = fmaxf(y0, fmaxf(s[4 * j + 4], s[4 * j + 5]));
        y1 = fmaxf(y1, fmaxf(s[4 * j + 6], s[4 * j + 7]));
    }
    x0 = fmaxf(x0, y0);
    x1 = fmaxf(x1, y1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));

    const float t0 = __fmul_rn(x0, c);
    const float t1 = __fmul_rn(x1, c);
    const bool u0 = t0 > r.b0 + 8.0f;
    const bool u1 = t1 > r.b1 + 8.0f;
    const float n0 = u0 ? t0 : r.b0;
    const float n1 = u1 ? t1 : r.b1;
    r.a0 = u0 ? ex2(r.b0 - n0) : 1.0f;
    r.a1 = u1 ? ex2(r.b1 - n1) : 1.0f;
    r.b0 = n0;
    r.b1 = n1;
    float f0 = -n0, f1 = -n1;
    if (MASK) {
        f0 = (n0 == NEG_INF) ? 0.0f : f0;
        f1 = (n1 == NEG_INF) ? 0.0f : f1;
    }
    float p0 = 0.0f, p1 = 0.0f, q0 = 0.0f, q1 = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        s[4 * j + 0] = ex2(fmaf(s[4 * j + 0], c, f0));
        s[4 * j + 1] = ex2(fmaf(s[4 * j + 1], c, f0));
        s[4 * j + 2] = ex2(fmaf(s[4 * j + 2], c, f1));
        s[4 * j + 3] = ex2(fmaf(s[4 * j + 3], c, f1));
        p0 += s[4 * j + 0];
        q0 += s[4 * j + 1];
        p1 += s[4 * j + 2];
        q1 += s[4 * j + 3];
    }
    r.l0 = fmaf(r.l0, r.a0, p0 + q0);
    r.l1 = fmaf(r.l1, r.a1, p1 + q1);
    return u0 || u1;
}

DEV void pack_p(u32 (&p)[32], float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

// One block: scores of block n, values of block n + 1.
template <int D, int NEGI, bool MASK>
DEV void step(float (&s)[64], float (&o)[D / 2], u32 (&p)[32], Row& r, Pipe& pk, Pipe& pv, u32 fullK, u32 emptyK,
              u32 fullV, u32 emptyV, u32 emptyQ, u64 qd, u64 kd0, u64 vd0, float c, int lim0, int lim1, int n,
              int cwg, int lane) {
    constexpr int ST = Cfg<D>::ST;
    constexpr int TENC = Cfg<D>::TILE >> 4;

    mbar_wait(fullK + 8 * pk.i, pk.ph);
    bar_sync(1 + cwg);
    pin(s);
    pin(o);
    pin(p);
    wgmma_fence();
    gemm_s<D, NEGI>(s, qd, kd0 + (u64)(pk.i * TENC));
    wgmma_commit();
    mbar_wait(fullV + 8 * pv.i, pv.ph);
    gemm_pv<D>(o, p, vd0 + (u64)(pv.i * TENC));
    wgmma_commit();
    bar_arrive(2 - cwg);

    wgmma_wait<1>();
    pin(s);
    if (lane == 0) {
        mbar_arrive(emptyK + 8 * pk.i);
        if (n == 0) mbar_arrive(emptyQ);
    }
    advance<ST>(pk);

    const bool upd = softmax_block<MASK>(s, r, c, lim0 - n * BN, lim1 - n * BN);
    pin(s);

    wgmma_wait<0>();
    pin(o);
    if (lane == 0) mbar_arrive(emptyV + 8 * pv.i);
    advance<ST>(pv);

    pack_p(p, s);
    if (__any_sync(0xffffffffu, (int)upd)) {
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
            o[4 * j + 0] *= r.a0;
            o[4 * j + 1] *= r.a0;
            o[4 * j + 2] *= r.a1;
            o[4 * j + 3] *= r.a1;
        }
    }
}

// ----------------------------------------------------------------- schedule

// The k-th tile of this block. 0: no more, 1: a tile, 2: nothing in this place.
DEV int get_tile(int k, int BH, int M, int& bh, int& m) {
    const int c = blockIdx.x;
    const int nc = gridDim.x;
    const int G = (BH + 1) >> 1;
    const int P = G * M;
    int R0 = P / nc - 1;
    if (R0 < 0) R0 = 0;
    if (k < 2 * R0) {
        const int p = (k >> 1) * nc + c;
        const int g = p / M;
        const int i = p - g * M;
        if (k & 1) {
            bh = 2 * g + 1;
            m = i;
        } else {
            bh = 2 * g;
            m = M - 1 - i;
        }
    } else {
        const int kk = k - 2 * R0;
        const int P0 = R0 * nc;
        const int T = 2 * (P - P0);
        if (kk * nc >= T) return 0;
        int idx = kk * nc + ((kk & 1) ? nc - 1 - c : c);
        if (idx >= T) return 2;
        const int g0 = P0 / M;
        const int i0 = P0 - g0 * M;
        const int nf2 = 2 * (G - g0 - 1);
        int mm = M - 1;
        while (mm > 0) {
            const int cnt = nf2 + (mm >= i0 ? 1 : 0) + (mm <= M - 1 - i0 ? 1 : 0);
            if (idx < cnt) break;
            idx -= cnt;
            --mm;
        }
        m = mm;
        if (idx < nf2) {
            bh = 2 * (g0 + 1) + idx;
        } else {
            idx -= nf2;
            bh = 2 * g0 + ((mm <= M - 1 - i0) ? idx : 1);
        }
    }
    return bh < BH ? 1 : 2;
}

// ------------------------------------------------------------------- kernel

template <int D, int NEGI, int ALIGNED>
__global__ void __launch_bounds__(384, 1)
attn_fwd(const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v, u16* __restrict__ out,
         long long qs_b, long long qs_n, long long qs_h, long long ks_b, long long ks_n, long long ks_h,
         long long vs_b, long long vs_n, long long vs_h, long long os_b, long long os_n, long long os_h, int H,
         int BH, int seq_q, int seq_k, float c) {
    constexpr int ST = Cfg<D>::ST;
    constexpr int TILE = Cfg<D>::TILE;

    extern __shared__ unsigned char smem_raw[];
    const u32 base = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = base;
    const u32 sK = base + Cfg<D>::K_OFF;
    const u32 sV = base + Cfg<D>::V_OFF;
    const u32 fullQ = base + Cfg<D>::BAR_OFF;
    const u32 emptyQ = fullQ + 16;
    const u32 fullK = fullQ + 32;
    const u32 emptyK = fullK + 8 * ST;
    const u32 fullV = emptyK + 8 * ST;
    const u32 emptyV = fullV + 8 * ST;

    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) {
            mbar_init(fullQ + 8 * i, 4);
            mbar_init(emptyQ + 8 * i, 8);
        }
        for (int i = 0; i < ST; ++i) {
            mbar_init(fullK + 8 * i, 4);
            mbar_init(emptyK + 8 * i, 8);
            mbar_init(fullV + 8 * i, 4);
            mbar_init(emptyV + 8 * i, 8);
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();

    const int M = (seq_q + BM - 1) / BM;
    const int DK = seq_k - seq_q;
    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);
    const int lane = threadIdx.x & 31;

    if (wg == 0) {
        // ------------------------------------------------------- producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const int tid = threadIdx.x;
        Pipe pq = {0, 0u}, pk = {0, 0u}, pv = {0, 0u};
        u32 pending = 0;

        for (int t = 0;; ++t) {
            int bh, m;
            const int what = get_tile(t, BH, M, bh, m);
            if (what == 0) break;
            if (what == 2) continue;
            const int row0 = m * BM;
            const int kmax = min(seq_k, row0 + BM + DK);
            if (kmax <= 0) continue;
            const int nb = (kmax + BN - 1) / BN;
            const int b = bh / H;
            const int h = bh - b * H;

            producer_acquire(emptyQ + 8 * pq.i, pq.ph ^ 1u, pending, lane);
            load_tile<D, ALIGNED>(sQ + pq.i * TILE, q + b * qs_b + h * qs_h + (long long)row0 * qs_n, qs_n,
                                  seq_q - row0, tid);
            producer_commit(fullQ + 8 * pq.i, pending, lane);
            advance<2>(pq);

            const u16* kb = k + b * ks_b + h * ks_h;
            const u16* vb = v + b * vs_b + h * vs_h;
#pragma unroll 1
            for (int n = nb - 1; n >= -1; --n) {
                if (n >= 0) {
                    producer_acquire(emptyK + 8 * pk.i, pk.ph ^ 1u, pending, lane);
                    load_tile<D, ALIGNED>(sK + pk.i * TILE, kb + (long long)(n * BN) * ks_n, ks_n, seq_k - n * BN,
                                          tid);
                    producer_commit(fullK + 8 * pk.i, pending, lane);
                    advance<ST>(pk);
                }
                if (n < nb - 1) {
                    const int nv = n + 1;
                    producer_acquire(emptyV + 8 * pv.i, pv.ph ^ 1u, pending, lane);
                    load_tile<D, ALIGNED>(sV + pv.i * TILE, vb + (long long)(nv * BN) * vs_n, vs_n,
                                          seq_k - nv * BN, tid);
                    producer_commit(fullV + 8 * pv.i, pending, lane);
                    advance<ST>(pv);
                }
            }
        }
        if (pending) {
            cp_wait<0>();
            signal_full(pending, lane);
        }
    } else {
        // ------------------------------------------------------ consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int cwg = wg - 1;
        const int warp = (threadIdx.x >> 5) & 3;
        const int quad = lane & 3;
        Pipe pq = {0, 0u}, pk = {0, 0u}, pv = {0, 0u};

        const u64 qd0 = make_desc(sQ + (u32)(cwg * 64 * 128), 1, 64);
        const u64 kd0 = make_desc(sK, 1, 64);
        const u64 vd0 = make_desc(sV, 1024, 64);

        if (cwg == 1) bar_arrive(1);

        for (int t = 0;; ++t) {
            int bh, m;
            const int what = get_tile(t, BH, M, bh, m);
            if (what == 0) break;
            if (what == 2) continue;
            const int row0 = m * BM;
            const int wrow = row0 + cwg * 64;
            const int r0 = wrow + warp * 16 + (lane >> 2);
            const int kmax = min(seq_k, row0 + BM + DK);

            float o[D / 2];
#pragma unroll
            for (int i = 0; i < D / 2; ++i) o[i] = 0.0f;
            Row r;
            r.b0 = NEG_INF;
            r.b1 = NEG_INF;
            r.l0 = 0.0f;
            r.l1 = 0.0f;
            r.a0 = 1.0f;
            r.a1 = 1.0f;

            if (kmax > 0) {
                const int nb = (kmax + BN - 1) / BN;
                const int nfull = max(0, min(wrow + DK + 1, seq_k)) / BN;
                const int lim0 = min(seq_k - 1, r0 + DK) - 2 * quad;
                const int lim1 = min(seq_k - 1, r0 + 8 + DK) - 2 * quad;
                const u64 qd = qd0 + (u64)(pq.i * (TILE >> 4));
                const u32 eQ = emptyQ + 8 * pq.i;

                float s[64];
                u32 p[32];
#pragma unroll
                for (int i = 0; i < 64; ++i) s[i] = 0.0f;

                int n = nb - 1;
                mbar_wait(fullQ + 8 * pq.i, pq.ph);
                mbar_wait(fullK + 8 * pk.i, pk.ph);
                pin(s);
                wgmma_fence();
                gemm_s<D, NEGI>(s, qd, kd0 + (u64)(pk.i * (TILE >> 4)));
                wgmma_commit();
                wgmma_wait<0>();
                pin(s);
                if (lane == 0) {
                    mbar_arrive(emptyK + 8 * pk.i);
                    if (n == 0) mbar_arrive(eQ);
                }
                advance<ST>(pk);
                softmax_block<true>(s, r, c, lim0 - n * BN, lim1 - n * BN);
                pack_p(p, s);

                --n;
#pragma unroll 1
                for (; n >= nfull; --n) {
                    step<D, NEGI, true>(s, o, p, r, pk, pv, fullK, emptyK, fullV, emptyV, eQ, qd, kd0, vd0, c, lim0,
                                        lim1, n, cwg, lane);
                }
#pragma unroll 1
                for (; n >= 0; --n) {
                    step<D, NEGI, false>(s, o, p, r, pk, pv, fullK, emptyK, fullV, emptyV, eQ, qd, kd0, vd0, c, lim0,
                                         lim1, n, cwg, lane);
                }

                mbar_wait(fullV + 8 * pv.i, pv.ph);
                pin(o);
                pin(p);
                wgmma_fence();
                gemm_pv<D>(o, p, vd0 + (u64)(pv.i * (TILE >> 4)));
                wgmma_commit();
                wgmma_wait<0>();
                pin(o);
                if (lane == 0) mbar_arrive(emptyV + 8 * pv.i);
                advance<ST>(pv);
                advance<2>(pq);
            }

            // ---------------------------------------------------- epilogue
            float l0 = r.l0, l1 = r.l1;
            l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
            l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
            const float inv0 = l0 > 0.0f ? 1.0f / l0 : 0.0f;
            const float inv1 = l1 > 0.0f ? 1.0f / l1 : 0.0f;

            const int b = bh / H;
            const int h = bh - b * H;
            u16* ob = out + b * os_b + h * os_h;
#pragma unroll
            for (int rr = 0; rr < 2; ++rr) {
                const int row = r0 + 8 * rr;
                const float inv = rr ? inv1 : inv0;
                u16* orow = ob + (long long)row * os_n;
                const bool ok = row < seq_q;
                if (ALIGNED) {
                    const bool odd = (quad & 1) != 0;
                    const bool hi = (quad & 2) != 0;
#pragma unroll
                    for (int j0 = 0; j0 < D / 8; j0 += 4) {
                        u32 w0 = pack2(o[4 * (j0 + 0) + 2 * rr] * inv, o[4 * (j0 + 0) + 2 * rr + 1] * inv);
                        u32 w1 = pack2(o[4 * (j0 + 1) + 2 * rr] * inv, o[4 * (j0 + 1) + 2 * rr + 1] * inv);
                        u32 w2 = pack2(o[4 * (j0 + 2) + 2 * rr] * inv, o[4 * (j0 + 2) + 2 * rr + 1] * inv);
                        u32 w3 = pack2(o[4 * (j0 + 3) + 2 * rr] * inv, o[4 * (j0 + 3) + 2 * rr + 1] * inv);
                        // 4x4 transpose among the four lanes of a row
                        const u32 x = __shfl_xor_sync(0xffffffffu, odd ? w0 : w1, 1);
                        const u32 y = __shfl_xor_sync(0xffffffffu, odd ? w2 : w3, 1);
                        if (odd) {
                            w0 = x;
                            w2 = y;
                        } else {
                            w1 = x;
                            w3 = y;
                        }
                        const u32 e = __shfl_xor_sync(0xffffffffu, hi ? w0 : w2, 2);
                        const u32 f = __shfl_xor_sync(0xffffffffu, hi ? w1 : w3, 2);
                        uint4 val;
                        val.x = hi ? e : w0;
                        val.y = hi ? f : w1;
                        val.z = hi ? w2 : e;
                        val.w = hi ? w3 : f;
                        if (ok) *reinterpret_cast<uint4*>(orow + (j0 + quad) * 8) = val;
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < D / 8; ++j) {
                        const u32 w = pack2(o[4 * j + 2 * rr] * inv, o[4 * j + 2 * rr + 1] * inv);
                        if (ok) {
                            orow[8 * j + 2 * quad] = (u16)(w & 0xffffu);
                            orow[8 * j + 2 * quad + 1] = (u16)(w >> 16);
                        }
                    }
                }
            }
        }
    }
}
