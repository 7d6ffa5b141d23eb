#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#define NEG_INF (__int_as_float(0xff800000))

// ---------------------------------------------------------------- helpers

__device__ __forceinline__ u32 smem_addr(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

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

__device__ __forceinline__ void cp16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp16_zfill(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
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

__device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---------------------------------------------------------------- wgmma

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
__device__ __forceinline__ void fence_regs(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

template <int N>
__device__ __forceinline__ void fence_regs(u32 (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

#define ACC8(d, i)                                                                       \
    "+f"(d[(i) + 0]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]),              \
        "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define ACC64(d)                                                                         \
    ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24), ACC8(d, 32), ACC8(d, 40),          \
        ACC8(d, 48), ACC8(d, 56)

#define REGS64                                                                           \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "                                                  \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                                             \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                                           \
    "%24, %25, %26, %27, %28, %29, %30, %31, "                                           \
    "%32, %33, %34, %35, %36, %37, %38, %39, "                                           \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                                           \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                                           \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

// D (64 x 128) = A (shared, K-major) * B (shared, K-major)
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " REGS64
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(accumulate));
}

// D (64 x 128) += A (registers) * B (shared, N-major)
__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " REGS64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo_bytes, u32 sbo_bytes) {
    u64 d = (u64)((addr & 0x3FFFFu) >> 4);
    d |= (u64)(lbo_bytes >> 4) << 16;
    d |= (u64)(sbo_bytes >> 4) << 32;
    d |= (u64)1 << 62;  // 128-byte swizzle
    return d;
}

// One thread's share of a 128 x 128 tile: 16 pieces of 16 bytes, 8 rows apart.
__device__ __forceinline__ void produce_tile(u32 dst, const char* src, const char* safe,
                                             long long step, int rows_left) {
    if (rows_left > 120) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            cp16(dst + i * 1024, src);
            src += step;
        }
    } else {
#pragma unroll 4
        for (int i = 0; i < 16; ++i) {
            bool inside = 8 * i < rows_left;
            cp16_zfill(dst + i * 1024, inside ? src : safe, inside ? 16 : 0);
            src += step;
        }
    }
}

// One step of the online softmax on a 64 x 128 piece (two rows a thread).
__device__ __forceinline__ void softmax_step(float (&S)[64], float (&m)[2], float (&l)[2],
                                             float (&alpha)[2], float c) {
    float sub[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float x0 = fmaxf(m[r], S[2 * r]);
        float x1 = S[2 * r + 1];
#pragma unroll
        for (int n = 1; n < 16; ++n) {
            x0 = fmaxf(x0, S[4 * n + 2 * r]);
            x1 = fmaxf(x1, S[4 * n + 2 * r + 1]);
        }
        float mx = fmaxf(x0, x1);
        mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 1));
        mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 2));
        sub[r] = (mx == NEG_INF) ? 0.0f : __fmul_rn(mx, c);
        alpha[r] = ex2(__fmul_rn(m[r], c) - sub[r]);
        m[r] = mx;
    }
    float s00 = 0.0f, s01 = 0.0f, s10 = 0.0f, s11 = 0.0f;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        float p0 = ex2(fmaf(S[4 * n + 0], c, -sub[0]));
        float p1 = ex2(fmaf(S[4 * n + 1], c, -sub[0]));
        float p2 = ex2(fmaf(S[4 * n + 2], c, -sub[1]));
        float p3 = ex2(fmaf(S[4 * n + 3], c, -sub[1]));
        s00 += p0;
        s01 += p1;
        s10 += p2;
        s11 += p3;
        S[4 * n + 0] = p0;
        S[4 * n + 1] = p1;
        S[4 * n + 2] = p2;
        S[4 * n + 3] = p3;
    }
    l[0] = l[0] * alpha[0] + (s00 + s01);
    l[1] = l[1] * alpha[1] + (s10 + s11);
}

struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};

// ---------------------------------------------------------------- fast kernel
// head dimensions 128, everything 16-byte aligned, scale > 0
// warpgroup 0 copies, warpgroups 1 and 2 compute 64 rows each

template <int STAGES>
__global__ void __launch_bounds__(384, 1)
attn_wgmma(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v,
           half* __restrict__ out,
           long long qb, long long qn, long long qh,
           long long kb, long long kn, long long kh,
           long long vb, long long vn, long long vh,
           long long ob, long long on, long long oh,
           int seq_q, int seq_k, int heads, int group, int n_bh, int section, int n_tiles,
           float c) {
    constexpr int BM = 128;
    constexpr int BN = 128;
    constexpr u32 TILE = 128 * 128 * 2;
    constexpr u32 PANEL = 128 * 128;  // bytes of 128 rows of 64 columns

    extern __shared__ __align__(1024) unsigned char smem_raw[];
    const u32 base = (smem_addr(smem_raw) + 1023u) & ~1023u;
    const u32 sq = base;
    const u32 sk = base + TILE;
    const u32 sv = sk + STAGES * TILE;
    const u32 bars = sv + STAGES * TILE;
    const u32 full_k = bars;
    const u32 full_v = bars + 8 * STAGES;
    const u32 empty_k = bars + 16 * STAGES;
    const u32 empty_v = bars + 24 * STAGES;

    // Which tile: sections of heads whose K and V fit in L2, in each the last rows first.
    const int per = section * n_tiles;
    const int sec = blockIdx.x / per;
    const int rem = blockIdx.x - sec * per;
    const int cnt = min(section, n_bh - sec * section);
    const int ti = rem / cnt;
    const int bh = sec * section + (rem - ti * cnt);
    const int b = bh / heads;
    const int h = bh - b * heads;
    const int g = h / group;
    const int qt = n_tiles - 1 - ti;

    const int delta = seq_k - seq_q;
    const int visible = max(0, min(seq_k, (qt + 1) * BM + delta));
    const int tiles = (visible + BN - 1) / BN;
    const int full = max(0, qt * BM + delta + 1) / BN;

    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbar_init(full_k + 8 * s, 128);
            mbar_init(full_v + 8 * s, 128);
            mbar_init(empty_k + 8 * s, 8);
            mbar_init(empty_v + 8 * s, 8);
        }
    }
    __syncthreads();

    const int role = __shfl_sync(0xffffffffu, (int)(threadIdx.x / 128), 0);

    if (role == 0) {
        // ------------------------------------------------ producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(40));
        if (tiles > 0) {
            const int t = threadIdx.x;
            const int r0 = t / 16;
            const int ch = t % 16;
            const u32 toff = (u32)(ch / 8) * PANEL + (u32)r0 * 128u + (u32)((ch % 8) ^ r0) * 16u;

            {
                const char* qsafe = (const char*)(q + b * qb + h * qh + ch * 8);
                const char* qsrc = qsafe + ((long long)qt * BM + r0) * qn * 2;
                produce_tile(sq + toff, qsrc, qsafe, qn * 16, seq_q - qt * BM - r0);
            }

            const char* ksafe = (const char*)(k + b * kb + g * kh + ch * 8);
            const char* vsafe = (const char*)(v + b * vb + g * vh + ch * 8);
            const char* ksrc = ksafe + (long long)r0 * kn * 2;
            const char* vsrc = vsafe + (long long)r0 * vn * 2;

            int ks = 0, vs = 0;
            u32 kp = 1, vp = 1;
            u32 pending = 0;
            for (int j = 0; j <= tiles; ++j) {
                if (j < tiles) {
                    mbar_wait(empty_k + 8 * ks, kp);
                    produce_tile(sk + ks * TILE + toff, ksrc, ksafe, kn * 16,
                                 seq_k - j * BN - r0);
                    ksrc += kn * (2 * BN);
                    cp_commit();
                    if (pending != 0) {
                        cp_wait<1>();
                        fence_proxy_async();
                        mbar_arrive(pending);
                    }
                    pending = full_k + 8 * ks;
                    if (++ks == STAGES) {
                        ks = 0;
                        kp ^= 1;
                    }
                }
                if (j > 0) {
                    mbar_wait(empty_v + 8 * vs, vp);
                    produce_tile(sv + vs * TILE + toff, vsrc, vsafe, vn * 16,
                                 seq_k - (j - 1) * BN - r0);
                    vsrc += vn * (2 * BN);
                    cp_commit();
                    // here there is always a pending copy of K or V
                    cp_wait<1>();
                    fence_proxy_async();
                    mbar_arrive(pending);
                    pending = full_v + 8 * vs;
                    if (++vs == STAGES) {
                        vs = 0;
                        vp ^= 1;
                    }
                }
            }
            cp_wait<0>();
            fence_proxy_async();
            mbar_arrive(pending);
        }
    } else {
        // ------------------------------------------------ consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(232));
        const int wg = role - 1;
        const int warp = (threadIdx.x % 128) / 32;
        const int lane = threadIdx.x % 32;

        float S[64];
        float O[64];
        u32 P[32];
        float m[2] = {NEG_INF, NEG_INF};
        float l[2] = {0.0f, 0.0f};
        float alpha[2];
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            O[i] = 0.0f;
            S[i] = 0.0f;
        }

        const int row0 = qt * BM + wg * 64 + warp * 16 + lane / 4;

        if (tiles > 0) {
            const u64 desc_q = make_desc(sq + wg * 8192, 16, 1024);
            const u64 desc_k = make_desc(sk, 16, 1024);
            const u64 desc_v = make_desc(sv, PANEL, 1024);

            auto issue_qk = [&](int s) {
                const u64 dk = desc_k + (u64)((u32)s * (TILE >> 4));
                fence_regs(S);
                wgmma_fence();
#pragma unroll
                for (int kk = 0; kk < 8; ++kk) {
                    const u64 off = (u64)((kk / 4) * (PANEL >> 4) + (kk % 4) * 2);
                    wgmma_ss(S, desc_q + off, dk + off, kk != 0 ? 1 : 0);
                }
                wgmma_commit();
            };

            auto issue_pv = [&](int s) {
                const u64 dv = desc_v + (u64)((u32)s * (TILE >> 4));
                fence_regs(O);
                fence_regs(P);
                wgmma_fence();
#pragma unroll
                for (int kk = 0; kk < 8; ++kk) {
                    wgmma_rs(O, P[4 * kk], P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3],
                             dv + (u64)(kk * (2048 >> 4)));
                }
                wgmma_commit();
            };

            auto mask = [&](int j) {
                const int shift = j * BN + 2 * (lane % 4);
                const int lim0 = min(row0 + delta, seq_k - 1) - shift;
                const int lim1 = min(row0 + 8 + delta, seq_k - 1) - shift;
#pragma unroll
                for (int n = 0; n < 16; ++n) {
                    if (8 * n > lim0) S[4 * n + 0] = NEG_INF;
                    if (8 * n + 1 > lim0) S[4 * n + 1] = NEG_INF;
                    if (8 * n > lim1) S[4 * n + 2] = NEG_INF;
                    if (8 * n + 1 > lim1) S[4 * n + 3] = NEG_INF;
                }
            };

            auto pack = [&]() {
#pragma unroll
                for (int i = 0; i < 32; ++i) P[i] = pack_half2(S[2 * i], S[2 * i + 1]);
            };

            int ks = 0, vs = 0;
            u32 kp = 0, vp = 0;

            // the first computing warpgroup has the first turn
            if (wg == 0 && tiles > 1) bar_arrive(1, 256);

            // round 0: scores only
            mbar_wait(full_k, 0);
            issue_qk(0);
            wgmma_wait<0>();
            fence_regs(S);
            if (lane == 0) mbar_arrive(empty_k);
            if (++ks == STAGES) {
                ks = 0;
                kp ^= 1;
            }
            if (full <= 0) mask(0);
            softmax_step(S, m, l, alpha, c);  // O is still 0: nothing to rescale
            pack();

            auto step = [&](int j, auto tag) {
                constexpr bool MASKED = decltype(tag)::value;
                mbar_wait(full_k + 8 * ks, kp);
                bar_sync(1 + wg, 256);
                issue_qk(ks);
                mbar_wait(full_v + 8 * vs, vp);
                issue_pv(vs);
                if (wg == 0 || j + 1 < tiles) bar_arrive(2 - wg, 256);

                wgmma_wait<1>();
                fence_regs(S);
                if (lane == 0) mbar_arrive(empty_k + 8 * ks);
                if (++ks == STAGES) {
                    ks = 0;
                    kp ^= 1;
                }
                if (MASKED) mask(j);
                softmax_step(S, m, l, alpha, c);
                fence_regs(S);

                wgmma_wait<0>();
                fence_regs(O);
                fence_regs(S);
                if (lane == 0) mbar_arrive(empty_v + 8 * vs);
                if (++vs == STAGES) {
                    vs = 0;
                    vp ^= 1;
                }
                pack();
#pragma unroll
                for (int n = 0; n < 16; ++n) {
                    O[4 * n + 0] *= alpha[0];
                    O[4 * n + 1] *= alpha[0];
                    O[4 * n + 2] *= alpha[1];
                    O[4 * n + 3] *= alpha[1];
                }
            };

            int j = 1;
            const int clear = min(full, tiles);
#pragma unroll 1
            for (; j < clear; ++j) step(j, No{});
#pragma unroll 1
            for (; j < tiles; ++j) step(j, Yes{});

            // the last product with V
            mbar_wait(full_v + 8 * vs, vp);
            issue_pv(vs);
            wgmma_wait<0>();
            fence_regs(O);
        }

        // normalise, stage through this warpgroup's rows of Q, write 16 bytes a thread
        float inv[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float s = l[r];
            s += __shfl_xor_sync(0xffffffffu, s, 1);
            s += __shfl_xor_sync(0xffffffffu, s, 2);
            inv[r] = s > 0.0f ? 1.0f / s : 0.0f;
        }

        bar_sync(3 + wg, 128);
        const u32 so = sq + wg * 8192;
        {
            const u32 r8 = lane / 4;
            const u32 rowaddr = so + (u32)(warp * 16 + lane / 4) * 128u + (u32)(lane % 4) * 4u;
#pragma unroll
            for (int n = 0; n < 16; ++n) {
                const u32 a = rowaddr + (u32)(n / 8) * PANEL + (((u32)(n % 8) ^ r8) << 4);
                const u32 x0 = pack_half2(O[4 * n + 0] * inv[0], O[4 * n + 1] * inv[0]);
                const u32 x1 = pack_half2(O[4 * n + 2] * inv[1], O[4 * n + 3] * inv[1]);
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(x0) : "memory");
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(a + 1024u), "r"(x1) : "memory");
            }
        }
        __syncwarp();
        half* optr = out + b * ob + h * oh;
#pragma unroll
        for (int it = 0; it < 8; ++it) {
            const int r = warp * 16 + it * 2 + lane / 16;
            const int ch = lane % 16;
            const u32 a = so + (u32)(ch / 8) * PANEL + (u32)r * 128u +
                          ((u32)((ch % 8) ^ (r % 8)) << 4);
            u32 x0, x1, x2, x3;
            asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(x0), "=r"(x1), "=r"(x2), "=r"(x3)
                         : "r"(a)
                         : "memory");
            const int row = qt * BM + wg * 64 + r;
            if (row < seq_q) {
                *reinterpret_cast<uint4*>(optr + (long long)row * on + ch * 8) =
                    make_uint4(x0, x1, x2, x3);
            }
        }
    }
}

// ---------------------------------------------------------------- general kernel (mma.sync)

__device__ __forceinline__ void ldsm4(u32 addr, u32 (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

__device__ __forceinline__ void ldsm4_t(u32 addr, u32 (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

__device__ __forceinline__ void mma16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// byte address of the 16-byte piece `ch` of row `r` in a tile of ROWS rows
template <int ROWS>
__device__ __forceinline__ u32 piece(u32 tile, int r, int ch) {
    return tile + (u32)(((ch / 8) * ROWS + r) * 128 + (((ch % 8) ^ (r % 8)) * 16));
}

template <int ROWS, int COLS, bool ALIGNED>
__device__ __forceinline__ void load_tile(u32 tile, const half* src, long long stride, int row0,
                                          int total) {
    constexpr int CH = COLS / 8;
#pragma unroll 4
    for (int idx = threadIdx.x; idx < ROWS * CH; idx += 128) {
        const int r = idx / CH;
        const int ch = idx % CH;
        const bool inside = row0 + r < total;
        const half* p = src + (long long)(inside ? row0 + r : 0) * stride + ch * 8;
        const u32 dst = piece<ROWS>(tile, r, ch);
        if (ALIGNED) {
            cp16_zfill(dst, p, inside ? 16 : 0);
        } else {
            const unsigned short* s = reinterpret_cast<const unsigned short*>(p);
            u32 w[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                u32 lo = 0, hi = 0;
                if (inside) {
                    lo = s[2 * e];
                    hi = s[2 * e + 1];
                }
                w[e] = lo | (hi << 16);
            }
            asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(w[0]),
                         "r"(w[1]), "r"(w[2]), "r"(w[3])
                         : "memory");
        }
    }
}

template <int D, int DV, bool ALIGNED>
__global__ void __launch_bounds__(128, 2)
attn_mma(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v,
         half* __restrict__ out,
         long long qb, long long qn, long long qh,
         long long kb, long long kn, long long kh,
         long long vb, long long vn, long long vh,
         long long ob, long long on, long long oh,
         int seq_q, int seq_k, int group, float c) {
    constexpr int BM = 128;
    constexpr int BN = 64;
    constexpr int M = 2;
    constexpr int NS = BN / 8;
    constexpr int NO = DV / 8;

    extern __shared__ __align__(1024) unsigned char smem_raw[];
    const u32 sq = smem_addr(smem_raw);
    const u32 sk = sq + BM * D * 2;
    const u32 sv = sk + BN * D * 2;

    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const int qt = (int)gridDim.x - 1 - (int)blockIdx.x;
    const int h = blockIdx.y;
    const int b = blockIdx.z;
    const int g = h / group;

    const int delta = seq_k - seq_q;
    const int visible = max(0, min(seq_k, (qt + 1) * BM + delta));
    const int tiles = (visible + BN - 1) / BN;
    const int full = max(0, qt * BM + delta + 1) / BN;

    const half* qp = q + b * qb + h * qh;
    const half* kp = k + b * kb + g * kh;
    const half* vp = v + b * vb + g * vh;
    half* op = out + b * ob + h * oh;

    float O[M][NO][4];
    float m[M][2], l[M][2];
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
        for (int n = 0; n < NO; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) O[i][n][e] = 0.0f;
        m[i][0] = m[i][1] = NEG_INF;
        l[i][0] = l[i][1] = 0.0f;
    }

    if (tiles > 0) {
        load_tile<BM, D, ALIGNED>(sq, qp, qn, qt * BM, seq_q);
        load_tile<BN, D, ALIGNED>(sk, kp, kn, 0, seq_k);
        cp_commit();
    }

#pragma unroll 1
    for (int j = 0; j < tiles; ++j) {
        cp_wait<0>();
        __syncthreads();
        load_tile<BN, DV, ALIGNED>(sv, vp, vn, j * BN, seq_k);
        cp_commit();

        float S[M][NS][4];
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int n = 0; n < NS; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) S[i][n][e] = 0.0f;

#pragma unroll
        for (int kk = 0; kk < D / 16; ++kk) {
            u32 a[M][4];
#pragma unroll
            for (int i = 0; i < M; ++i)
                ldsm4(piece<BM>(sq, warp * 32 + i * 16 + lane % 16, kk * 2 + lane / 16), a[i]);
#pragma unroll
            for (int n = 0; n < BN / 16; ++n) {
                u32 bb[4];
                ldsm4(piece<BN>(sk, n * 16 + (lane / 16) * 8 + lane % 8, kk * 2 + (lane / 8) % 2),
                      bb);
#pragma unroll
                for (int i = 0; i < M; ++i) {
                    mma16816(S[i][2 * n], a[i], bb[0], bb[1]);
                    mma16816(S[i][2 * n + 1], a[i], bb[2], bb[3]);
                }
            }
        }

#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int n = 0; n < NS; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) S[i][n][e] = __fmul_rn(S[i][n][e], c);

        if (j >= full) {
#pragma unroll
            for (int i = 0; i < M; ++i) {
                const int row = qt * BM + warp * 32 + i * 16 + lane / 4;
                const int shift = j * BN + 2 * (lane % 4);
                const int lim0 = min(row + delta, seq_k - 1) - shift;
                const int lim1 = min(row + 8 + delta, seq_k - 1) - shift;
#pragma unroll
                for (int n = 0; n < NS; ++n) {
                    if (8 * n > lim0) S[i][n][0] = NEG_INF;
                    if (8 * n + 1 > lim0) S[i][n][1] = NEG_INF;
                    if (8 * n > lim1) S[i][n][2] = NEG_INF;
                    if (8 * n + 1 > lim1) S[i][n][3] = NEG_INF;
                }
            }
        }

#pragma unroll
        for (int i = 0; i < M; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float mx = m[i][r];
#pragma unroll
                for (int n = 0; n < NS; ++n)
                    mx = fmaxf(mx, fmaxf(S[i][n][2 * r], S[i][n][2 * r + 1]));
                mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 1));
                mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 2));
                const float sub = (mx == NEG_INF) ? 0.0f : mx;
                const float al = ex2(m[i][r] - sub);
                m[i][r] = mx;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < NS; ++n) {
                    const float p0 = ex2(S[i][n][2 * r] - sub);
                    const float p1 = ex2(S[i][n][2 * r + 1] - sub);
                    S[i][n][2 * r] = p0;
                    S[i][n][2 * r + 1] = p1;
                    sum += p0 + p1;
                }
                l[i][r] = l[i][r] * al + sum;
#pragma unroll
                for (int n = 0; n < NO; ++n) {
                    O[i][n][2 * r] *= al;
                    O[i][n][2 * r + 1] *= al;
                }
            }
        }

        cp_wait<0>();
        __syncthreads();
        if (j + 1 < tiles) load_tile<BN, D, ALIGNED>(sk, kp, kn, (j + 1) * BN, seq_k);
        cp_commit();

#pragma unroll
        for (int kk = 0; kk < BN / 16; ++kk) {
            u32 a[M][4];
#pragma unroll
            for (int i = 0; i < M; ++i) {
                a[i][0] = pack_half2(S[i][2 * kk][0], S[i][2 * kk][1]);
                a[i][1] = pack_half2(S[i][2 * kk][2], S[i][2 * kk][3]);
                a[i][2] = pack_half2(S[i][2 * kk + 1][0], S[i][2 * kk + 1][1]);
                a[i][3] = pack_half2(S[i][2 * kk + 1][2], S[i][2 * kk + 1][3]);
            }
#pragma unroll
            for (int n = 0; n < DV / 16; ++n) {
                u32 bb[4];
                ldsm4_t(piece<BN>(sv, kk * 16 + lane % 16, n * 2 + lane / 16), bb);
#pragma unroll
                for (int i = 0; i < M; ++i) {
                    mma16816(O[i][2 * n], a[i], bb[0], bb[1]);
                    mma16816(O[i][2 * n + 1], a[i], bb[2], bb[3]);
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float s = l[i][r];
            s += __shfl_xor_sync(0xffffffffu, s, 1);
            s += __shfl_xor_sync(0xffffffffu, s, 2);
            const float inv = s > 0.0f ? 1.0f / s : 0.0f;
            const int row = qt * BM + warp * 32 + i * 16 + r * 8 + lane / 4;
            if (row < seq_q) {
                half* o = op + (long long)row * on + 2 * (lane % 4);
#pragma unroll
                for (int n = 0; n < NO; ++n) {
                    const float x0 = O[i][n][2 * r] * inv;
                    const float x1 = O[i][n][2 * r + 1] * inv;
                    if (ALIGNED) {
                        *reinterpret_cast<u32*>(o + n * 8) = pack_half2(x0, x1);
                    } else {
                        o[n * 8] = __float2half_rn(x0);
                        o[n * 8 + 1] = __float2half_rn(x1);
                    }
                }
            }
        }
    }
}
