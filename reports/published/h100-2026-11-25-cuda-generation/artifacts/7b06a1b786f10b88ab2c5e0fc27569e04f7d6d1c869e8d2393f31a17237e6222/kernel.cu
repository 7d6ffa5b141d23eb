#include <cuda_fp16.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#elif defined(__CUDA_ARCH_SPECIFIC__)
#if (__CUDA_ARCH_SPECIFIC__ == 900)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif
#else
#define HAS_WGMMA 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define NEG_INF __int_as_float(0xff800000)
#define LOG2E 1.4426950408889634f

// ------------------------------------------------------------------ helpers

__device__ __forceinline__ u32 smem_addr(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
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

__device__ __forceinline__ void cp_async16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp_async16_zfill(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void bar_sync(int id, int n) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

__device__ __forceinline__ void bar_arrive(int id, int n) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}

__device__ __forceinline__ void st_shared_u32(u32 a, u32 v) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(v) : "memory");
}

__device__ __forceinline__ void st_shared_v4(u32 a, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(a), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

__device__ __forceinline__ uint4 ld_shared_v4(u32 a) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(a)
                 : "memory");
    return v;
}

// block index -> (head of a batch entry, query tile); longest query tiles first
// inside a section of heads whose keys and values fit in L2
__device__ __forceinline__ void decode_block(int bid, int nq, int nbh, int section, int& hb, int& i) {
    const int per = section * nq;
    const int sec = bid / per;
    const int rem = bid - sec * per;
    const int first = sec * section;
    const int here = min(section, nbh - first);
    const int r = rem / here;
    hb = first + (rem - r * here);
    i = nq - 1 - r;
}

// ------------------------------------------------------------------ mma.sync path

__device__ __forceinline__ void ldsm4(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}

__device__ __forceinline__ void ldsm4t(u32 (&r)[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}

__device__ __forceinline__ void mma16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <int D, int ROWS, bool VEC>
__device__ __forceinline__ void load_rows(u32 dst, const half* src, i64 stride, int valid, int t) {
    constexpr int CPR = D / 8;
#pragma unroll 4
    for (int idx = t; idx < ROWS * CPR; idx += 256) {
        const int r = idx / CPR;
        const int c = idx % CPR;
        const u32 a = dst + r * (D * 2) + ((c ^ (r & 7)) * 16);
        const bool ok = r < valid;
        if (VEC) {
            const half* g = ok ? (src + (i64)r * stride + c * 8) : src;
            cp_async16_zfill(a, g, ok ? 16 : 0);
        } else {
            uint4 val = make_uint4(0u, 0u, 0u, 0u);
            if (ok) {
                const unsigned short* g =
                    reinterpret_cast<const unsigned short*>(src + (i64)r * stride + c * 8);
                val.x = (u32)g[0] | ((u32)g[1] << 16);
                val.y = (u32)g[2] | ((u32)g[3] << 16);
                val.z = (u32)g[4] | ((u32)g[5] << 16);
                val.w = (u32)g[6] | ((u32)g[7] << 16);
            }
            st_shared_v4(a, val);
        }
    }
}

template <int D, bool VEC>
__device__ __forceinline__ void generic_body(
    const half* q, const half* k, const half* v, half* out,
    i64 qb, i64 qs, i64 qh, i64 kb, i64 ks, i64 kh, i64 vb, i64 vs, i64 vh,
    i64 ob, i64 os, i64 oh,
    int heads, int group, int nbh, int section, int seq_q, int seq_k, float scale, u32 smem) {
    constexpr int BM = 128, BN = 64;
    constexpr int KT = BN * D * 2;

    const int t = threadIdx.x;
    const int warp = t / 32;
    const int lane = t % 32;
    const int nq = (seq_q + BM - 1) / BM;
    int hb, i;
    decode_block(blockIdx.x, nq, nbh, section, hb, i);
    const int b = hb / heads;
    const int h = hb - b * heads;
    const int hk = h / group;

    const int diff = seq_k - seq_q;
    const int xt = (i + 1) * BM + diff;
    const int xf = i * BM + diff + 1;
    const int tiles = xt <= 0 ? 0 : min((seq_k + BN - 1) / BN, (xt + BN - 1) / BN);
    const int full = xf <= 0 ? 0 : min(seq_k / BN, xf / BN);

    const half* qp = q + (i64)b * qb + (i64)h * qh + (i64)i * BM * qs;
    const half* kp = k + (i64)b * kb + (i64)hk * kh;
    const half* vp = v + (i64)b * vb + (i64)hk * vh;

    const u32 sQ = smem;
    const u32 sK = sQ + BM * D * 2;
    const u32 sV = sK + 2 * KT;

    const float pre = scale > 0.f ? 1.f : (scale < 0.f ? -1.f : 0.f);
    const float sl2 = (scale == 0.f ? 1.f : fabsf(scale)) * LOG2E;

    float o[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        o[n][0] = 0.f; o[n][1] = 0.f; o[n][2] = 0.f; o[n][3] = 0.f;
    }
    float m0 = NEG_INF, m1 = NEG_INF, l0 = 0.f, l1 = 0.f;

    const int row0 = i * BM + warp * 16 + lane / 4;

    if (tiles > 0) {
        load_rows<D, BM, VEC>(sQ, qp, qs, seq_q - i * BM, t);
        load_rows<D, BN, VEC>(sK, kp, ks, seq_k, t);
        load_rows<D, BN, VEC>(sV, vp, vs, seq_k, t);
        cp_async_commit();
    }

    for (int j = 0; j < tiles; ++j) {
        if (j + 1 < tiles) {
            const int st = (j + 1) & 1;
            const int r0 = (j + 1) * BN;
            load_rows<D, BN, VEC>(sK + st * KT, kp + (i64)r0 * ks, ks, seq_k - r0, t);
            load_rows<D, BN, VEC>(sV + st * KT, vp + (i64)r0 * vs, vs, seq_k - r0, t);
        }
        cp_async_commit();
        cp_async_wait<1>();
        bar_sync(1, 256);

        const u32 cK = sK + (j & 1) * KT;
        const u32 cV = sV + (j & 1) * KT;

        float s[BN / 8][4];
#pragma unroll
        for (int n = 0; n < BN / 8; ++n) {
            s[n][0] = 0.f; s[n][1] = 0.f; s[n][2] = 0.f; s[n][3] = 0.f;
        }
#pragma unroll
        for (int kk = 0; kk < D / 16; ++kk) {
            u32 a[4];
            {
                const int r = warp * 16 + (lane & 15);
                const int c = kk * 2 + (lane >> 4);
                ldsm4(a, sQ + r * (D * 2) + ((c ^ (r & 7)) * 16));
            }
#pragma unroll
            for (int nb = 0; nb < BN / 16; ++nb) {
                u32 bb[4];
                const int r = nb * 16 + (lane & 7) + ((lane >> 4) & 1) * 8;
                const int c = kk * 2 + ((lane >> 3) & 1);
                ldsm4(bb, cK + r * (D * 2) + ((c ^ (r & 7)) * 16));
                mma16816(s[2 * nb], a, bb[0], bb[1]);
                mma16816(s[2 * nb + 1], a, bb[2], bb[3]);
            }
        }
        if (pre != 1.f) {
#pragma unroll
            for (int n = 0; n < BN / 8; ++n) {
                s[n][0] *= pre; s[n][1] *= pre; s[n][2] *= pre; s[n][3] *= pre;
            }
        }
        if (j >= full) {
            const int lim = row0 + diff - j * BN - 2 * (lane & 3);
#pragma unroll
            for (int n = 0; n < BN / 8; ++n) {
                if (8 * n > lim) s[n][0] = NEG_INF;
                if (8 * n + 1 > lim) s[n][1] = NEG_INF;
                if (8 * n > lim + 8) s[n][2] = NEG_INF;
                if (8 * n + 1 > lim + 8) s[n][3] = NEG_INF;
            }
        }
        float x0 = NEG_INF, x1 = NEG_INF;
#pragma unroll
        for (int n = 0; n < BN / 8; ++n) {
            x0 = fmaxf(x0, fmaxf(s[n][0], s[n][1]));
            x1 = fmaxf(x1, fmaxf(s[n][2], s[n][3]));
        }
        x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
        x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
        x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
        x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));
        const float n0 = fmaxf(m0, x0 * sl2);
        const float n1 = fmaxf(m1, x1 * sl2);
        const float u0 = (n0 == NEG_INF) ? 0.f : n0;
        const float u1 = (n1 == NEG_INF) ? 0.f : n1;
        const float a0 = ex2(m0 - u0);
        const float a1 = ex2(m1 - u1);
        m0 = n0;
        m1 = n1;
        float p0 = 0.f, p1 = 0.f;
#pragma unroll
        for (int n = 0; n < BN / 8; ++n) {
            s[n][0] = ex2(fmaf(s[n][0], sl2, -u0));
            s[n][1] = ex2(fmaf(s[n][1], sl2, -u0));
            s[n][2] = ex2(fmaf(s[n][2], sl2, -u1));
            s[n][3] = ex2(fmaf(s[n][3], sl2, -u1));
            p0 += s[n][0] + s[n][1];
            p1 += s[n][2] + s[n][3];
        }
        l0 = l0 * a0 + p0;
        l1 = l1 * a1 + p1;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            o[n][0] *= a0; o[n][1] *= a0; o[n][2] *= a1; o[n][3] *= a1;
        }
#pragma unroll
        for (int kk = 0; kk < BN / 16; ++kk) {
            u32 a[4];
            a[0] = pack2(s[2 * kk][0], s[2 * kk][1]);
            a[1] = pack2(s[2 * kk][2], s[2 * kk][3]);
            a[2] = pack2(s[2 * kk + 1][0], s[2 * kk + 1][1]);
            a[3] = pack2(s[2 * kk + 1][2], s[2 * kk + 1][3]);
#pragma unroll
            for (int nb = 0; nb < D / 16; ++nb) {
                u32 bb[4];
                const int r = kk * 16 + (lane & 7) + ((lane >> 3) & 1) * 8;
                const int c = nb * 2 + ((lane >> 4) & 1);
                ldsm4t(bb, cV + r * (D * 2) + ((c ^ (r & 7)) * 16));
                mma16816(o[2 * nb], a, bb[0], bb[1]);
                mma16816(o[2 * nb + 1], a, bb[2], bb[3]);
            }
        }
        bar_sync(1, 256);
    }

    l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
    l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
    const float i0 = l0 > 0.f ? 1.f / l0 : 0.f;
    const float i1 = l1 > 0.f ? 1.f / l1 : 0.f;

    half* op = out + (i64)b * ob + (i64)h * oh;
    const int col = 2 * (lane & 3);
    if (row0 < seq_q) {
        half* g = op + (i64)row0 * os + col;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            g[8 * n] = __float2half_rn(o[n][0] * i0);
            g[8 * n + 1] = __float2half_rn(o[n][1] * i0);
        }
    }
    if (row0 + 8 < seq_q) {
        half* g = op + (i64)(row0 + 8) * os + col;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            g[8 * n] = __float2half_rn(o[n][2] * i1);
            g[8 * n + 1] = __float2half_rn(o[n][3] * i1);
        }
    }
}

template <int D>
__global__ void __launch_bounds__(256, 1) attn_any(
    const half* q, const half* k, const half* v, half* out,
    long long qb, long long qs, long long qh,
    long long kb, long long ks, long long kh,
    long long vb, long long vs, long long vh,
    long long ob, long long os, long long oh,
    int heads, int group, int nbh, int section, int seq_q, int seq_k, float scale) {
    extern __shared__ __align__(128) unsigned char smem_raw[];
    generic_body<D, false>(q, k, v, out, qb, qs, qh, kb, ks, kh, vb, vs, vh, ob, os, oh,
                           heads, group, nbh, section, seq_q, seq_k, scale, smem_addr(smem_raw));
}

// ------------------------------------------------------------------ WGMMA path

#if HAS_WGMMA

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

template <int N>
__device__ __forceinline__ void hold(float (&r)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) asm volatile("" : "+f"(r[n])::"memory");
}

// shared memory descriptor, 128-byte swizzle
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    u64 d = 0;
    d |= (u64)((addr & 0x3FFFFu) >> 4);
    d |= (u64)((lbo >> 4) & 0x3FFFu) << 16;
    d |= (u64)((sbo >> 4) & 0x3FFFu) << 32;
    d |= (u64)1 << 62;
    return d;
}

#define F8(d, i)                                                                        \
    "+f"(d[(i) + 0]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]),             \
        "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define F32R(d, i) F8(d, (i)), F8(d, (i) + 8), F8(d, (i) + 16), F8(d, (i) + 24)

#define P32                                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, "                       \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                 \
    "%16, %17, %18, %19, %20, %21, %22, %23, "               \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define P64                                                  \
    P32 ", "                                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, "               \
    "%40, %41, %42, %43, %44, %45, %46, %47, "               \
    "%48, %49, %50, %51, %52, %53, %54, %55, "               \
    "%56, %57, %58, %59, %60, %61, %62, %63"

// S (64 x 128) = or += A (64 x 16, shared, K-major) * B (128 x 16, shared, K-major)^T
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" P64 "}, "
        "%64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : F32R(d, 0), F32R(d, 32)
        : "l"(da), "l"(db), "r"(acc));
}

// O (64 x 128) += A (64 x 16, registers) * B (16 x 128, shared, N-major)
__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" P64 "}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : F32R(d, 0), F32R(d, 32)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// O (64 x 64) += A (64 x 16, registers) * B (16 x 64, shared, N-major)
__device__ __forceinline__ void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" P32 "}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : F32R(d, 0)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// 128 rows of D halves into swizzled shared memory: halves of 64 columns,
// 128 bytes a row, 16-byte chunk c of row r at c ^ (r & 7)
template <int D>
__device__ __forceinline__ void load_tile(u32 dst, const half* src, i64 stride, int valid, int t) {
    constexpr int CPR = D / 8;
    constexpr int RPI = 128 / CPR;
    constexpr int ITERS = 128 / RPI;
    const int c = t % CPR;
    const int r = t / CPR;
    const u32 a = dst + (c / 8) * (128 * 128) + r * 128 + (((c & 7) ^ (r & 7)) * 16);
    const half* g = src + (i64)r * stride + c * 8;
    const i64 step = (i64)RPI * stride;
    if (valid >= 128) {
#pragma unroll
        for (int n = 0; n < ITERS; ++n) {
            cp_async16(a + n * (RPI * 128), g);
            g += step;
        }
    } else {
#pragma unroll 4
        for (int n = 0; n < ITERS; ++n) {
            const bool ok = r + n * RPI < valid;
            cp_async16_zfill(a + n * (RPI * 128), ok ? g : src, ok ? 16 : 0);
            g += step;
        }
    }
}

// this thread's copies have landed: make them visible to WGMMA, then tell the consumers
__device__ __forceinline__ void publish(u32 bar, int lane) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (lane == 0) mbar_arrive(bar);
}

template <int D>
__device__ __forceinline__ void gemm_qk(float (&s)[64], u64 dq, u64 dk) {
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u64 off = (u64)((kk / 4) * ((128 * 128) >> 4) + (kk % 4) * 2);
        wgmma_ss(s, dq + off, dk + off, kk != 0 ? 1 : 0);
    }
}

template <int D>
__device__ __forceinline__ void gemm_pv(float (&o)[D / 2], const u32 (&p)[32], u64 dv) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3],
                 dv + (u64)(kk * ((16 * 128) >> 4)));
    }
}

__device__ __forceinline__ void mask_tile(float (&s)[64], int lim) {
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        s[4 * n] = (8 * n > lim) ? NEG_INF : s[4 * n];
        s[4 * n + 1] = (8 * n + 1 > lim) ? NEG_INF : s[4 * n + 1];
        s[4 * n + 2] = (8 * n > lim + 8) ? NEG_INF : s[4 * n + 2];
        s[4 * n + 3] = (8 * n + 1 > lim + 8) ? NEG_INF : s[4 * n + 3];
    }
}

template <bool CHECK>
__device__ __forceinline__ void softmax_tile(float (&s)[64], float& m0, float& m1, float& l0,
                                             float& l1, float sl2, float& a0, float& a1) {
    float x0 = s[0], x1 = s[1], y0 = s[2], y1 = s[3];
#pragma unroll
    for (int n = 1; n < 16; ++n) {
        x0 = fmaxf(x0, s[4 * n]);
        x1 = fmaxf(x1, s[4 * n + 1]);
        y0 = fmaxf(y0, s[4 * n + 2]);
        y1 = fmaxf(y1, s[4 * n + 3]);
    }
    x0 = fmaxf(x0, x1);
    y0 = fmaxf(y0, y1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    y0 = fmaxf(y0, __shfl_xor_sync(0xffffffffu, y0, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    y0 = fmaxf(y0, __shfl_xor_sync(0xffffffffu, y0, 2));
    const float n0 = fmaxf(m0, x0 * sl2);
    const float n1 = fmaxf(m1, y0 * sl2);
    float u0 = n0, u1 = n1;
    if (CHECK) {
        u0 = (n0 == NEG_INF) ? 0.f : n0;
        u1 = (n1 == NEG_INF) ? 0.f : n1;
    }
    a0 = ex2(m0 - u0);
    a1 = ex2(m1 - u1);
    m0 = n0;
    m1 = n1;
    float p0 = 0.f, p1 = 0.f, r0 = 0.f, r1 = 0.f;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        s[4 * n] = ex2(fmaf(s[4 * n], sl2, -u0));
        s[4 * n + 1] = ex2(fmaf(s[4 * n + 1], sl2, -u0));
        s[4 * n + 2] = ex2(fmaf(s[4 * n + 2], sl2, -u1));
        s[4 * n + 3] = ex2(fmaf(s[4 * n + 3], sl2, -u1));
        p0 += s[4 * n];
        p1 += s[4 * n + 1];
        r0 += s[4 * n + 2];
        r1 += s[4 * n + 3];
    }
    l0 = l0 * a0 + (p0 + p1);
    l1 = l1 * a1 + (r0 + r1);
}

__device__ __forceinline__ void pack_tile(const float (&s)[64], u32 (&p)[32]) {
#pragma unroll
    for (int n = 0; n < 32; ++n) p[n] = pack2(s[2 * n], s[2 * n + 1]);
}

template <bool POS>
__device__ __forceinline__ void sign_tile(float (&s)[64], float pre) {
    if (!POS) {
#pragma unroll
        for (int n = 0; n < 64; ++n) s[n] *= pre;
    }
}

// S of tile j is computed beside P V of tile j - 1
template <int D, bool POS, bool MASK>
__device__ __forceinline__ void step(int j, float (&o)[D / 2], float (&s)[64], u32 (&p)[32],
                                     float& m0, float& m1, float& l0, float& l1, float sl2,
                                     float pre, u64 dq, u64 dk, u64 dv, u32 bars, int w, int lane,
                                     int lim0) {
    constexpr u32 TILE16 = (128 * D * 2) >> 4;
    const int sk = j & 1;
    const int sv = (j - 1) & 1;
    mbar_wait(bars + sk * 8, (j >> 1) & 1);
    mbar_wait(bars + 32 + sv * 8, ((j - 1) >> 1) & 1);
    bar_sync(1 + w, 256);

    hold(s);
    wg_fence();
    gemm_qk<D>(s, dq, dk + (u64)(sk * TILE16));
    wg_commit();
    hold(o);
    wg_fence();
    gemm_pv<D>(o, p, dv + (u64)(sv * TILE16));
    wg_commit();
    bar_arrive(2 - w, 256);

    wg_wait<1>();
    hold(s);
    if (lane == 0) mbar_arrive(bars + 16 + sk * 8);

    float a0, a1;
    sign_tile<POS>(s, pre);
    if (MASK) mask_tile(s, lim0 - j * 128);
    softmax_tile<MASK>(s, m0, m1, l0, l1, sl2, a0, a1);

    wg_wait<0>();
    hold(o);
    hold(s);
    if (lane == 0) mbar_arrive(bars + 48 + sv * 8);
    pack_tile(s, p);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        o[4 * n] *= a0;
        o[4 * n + 1] *= a0;
        o[4 * n + 2] *= a1;
        o[4 * n + 3] *= a1;
    }
}

#endif  // HAS_WGMMA

template <int D, bool POS>
__global__ void __launch_bounds__(384, 1) attn_fwd(
    const half* q, const half* k, const half* v, half* out,
    long long qb, long long qs, long long qh,
    long long kb, long long ks, long long kh,
    long long vb, long long vs, long long vh,
    long long ob, long long os, long long oh,
    int heads, int group, int nbh, int section, int seq_q, int seq_k, float scale) {
    extern __shared__ __align__(128) unsigned char smem_raw[];
#if HAS_WGMMA
    constexpr int BM = 128, BN = 128;
    constexpr u32 TILE = 128 * D * 2;

    const u32 base = (smem_addr(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = base;
    const u32 sK = sQ + TILE;
    const u32 sV = sK + 2 * TILE;
    // full K 0, 1; empty K 2, 3; full V 4, 5; empty V 6, 7
    const u32 bars = sV + 2 * TILE;

    const int nq = (seq_q + BM - 1) / BM;
    int hb, i;
    decode_block(blockIdx.x, nq, nbh, section, hb, i);
    const int b = hb / heads;
    const int h = hb - b * heads;
    const int hk = h / group;

    const int diff = seq_k - seq_q;
    const int xt = (i + 1) * BM + diff;
    const int xf = i * BM + diff + 1;
    const int tiles = xt <= 0 ? 0 : min((seq_k + BN - 1) / BN, (xt + BN - 1) / BN);
    const int full = xf <= 0 ? 0 : min(seq_k / BN, xf / BN);

    if (threadIdx.x == 0) {
        mbar_init(bars + 0, 4);
        mbar_init(bars + 8, 4);
        mbar_init(bars + 16, 8);
        mbar_init(bars + 24, 8);
        mbar_init(bars + 32, 4);
        mbar_init(bars + 40, 4);
        mbar_init(bars + 48, 8);
        mbar_init(bars + 56, 8);
    }
    __syncthreads();

    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x / 128), 0);
    const int lane = threadIdx.x % 32;

    if (wg == 0) {
        // ---------------------------------------------------------- producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (tiles > 0) {
            const int t = threadIdx.x;
            const half* qp = q + (i64)b * qb + (i64)h * qh + (i64)i * BM * qs;
            const half* kp = k + (i64)b * kb + (i64)hk * kh;
            const half* vp = v + (i64)b * vb + (i64)hk * vh;

            load_tile<D>(sQ, qp, qs, seq_q - i * BM, t);
            load_tile<D>(sK, kp, ks, seq_k, t);
            cp_async_commit();
            if (tiles > 1) load_tile<D>(sK + TILE, kp + (i64)BN * ks, ks, seq_k - BN, t);
            cp_async_commit();
            load_tile<D>(sV, vp, vs, seq_k, t);
            cp_async_commit();

            cp_async_wait<2>();
            publish(bars + 0, lane);
            cp_async_wait<1>();
            if (tiles > 1) publish(bars + 8, lane);

#pragma unroll 1
            for (int j = 1; j < tiles; ++j) {
                const int jn = j + 1;
                if (jn < tiles) {
                    const int st = jn & 1;
                    mbar_wait(bars + 16 + st * 8, ((jn >> 1) - 1) & 1);
                    load_tile<D>(sK + st * TILE, kp + (i64)jn * BN * ks, ks, seq_k - jn * BN, t);
                }
                cp_async_commit();
                cp_async_wait<1>();
                publish(bars + 32 + ((j - 1) & 1) * 8, lane);

                {
                    const int st = j & 1;
                    if (j >= 2) mbar_wait(bars + 48 + st * 8, ((j >> 1) - 1) & 1);
                    load_tile<D>(sV + st * TILE, vp + (i64)j * BN * vs, vs, seq_k - j * BN, t);
                }
                cp_async_commit();
                cp_async_wait<1>();
                if (jn < tiles) publish(bars + (jn & 1) * 8, lane);
            }
            cp_async_wait<0>();
            publish(bars + 32 + ((tiles - 1) & 1) * 8, lane);
        }
    } else {
        // ---------------------------------------------------------- consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int w = wg - 1;
        const int warp = (threadIdx.x % 128) / 32;

        const float pre = POS ? 1.f : (scale < 0.f ? -1.f : 0.f);
        const float sl2 = (scale == 0.f ? 1.f : fabsf(scale)) * LOG2E;

        float o[D / 2];
#pragma unroll
        for (int n = 0; n < D / 2; ++n) o[n] = 0.f;
        float m0 = NEG_INF, m1 = NEG_INF, l0 = 0.f, l1 = 0.f;

        if (tiles > 0) {
            float s[64];
            u32 p[32];
#pragma unroll
            for (int n = 0; n < 64; ++n) s[n] = 0.f;

            const u64 dq = make_desc(sQ + w * (64 * 128), 16, 1024);
            const u64 dk = make_desc(sK, 16, 1024);
            const u64 dv = make_desc(sV, 128 * 128, 1024);
            // last visible column of this thread's first row, for tile 0
            const int lim0 = i * BM + w * 64 + warp * 16 + lane / 4 + diff - 2 * (lane & 3);

            if (tiles > 1 && w == 1) bar_arrive(1, 256);

            mbar_wait(bars + 0, 0);
            hold(s);
            wg_fence();
            gemm_qk<D>(s, dq, dk);
            wg_commit();
            wg_wait<0>();
            hold(s);
            if (lane == 0) mbar_arrive(bars + 16);

            {
                float a0, a1;  // O is still zero
                sign_tile<POS>(s, pre);
                if (full == 0) mask_tile(s, lim0);
                softmax_tile<true>(s, m0, m1, l0, l1, sl2, a0, a1);
                pack_tile(s, p);
            }

            int j = 1;
            // key tiles that every row sees
#pragma unroll 1
            for (; j < full; ++j) {
                step<D, POS, false>(j, o, s, p, m0, m1, l0, l1, sl2, pre, dq, dk, dv, bars, w, lane,
                                    lim0);
            }
            // key tiles on the diagonal
#pragma unroll 1
            for (; j < tiles; ++j) {
                step<D, POS, true>(j, o, s, p, m0, m1, l0, l1, sl2, pre, dq, dk, dv, bars, w, lane,
                                   lim0);
            }

            const int sv = (tiles - 1) & 1;
            mbar_wait(bars + 32 + sv * 8, ((tiles - 1) >> 1) & 1);
            hold(o);
            wg_fence();
            gemm_pv<D>(o, p, dv + (u64)(sv * (TILE >> 4)));
            wg_commit();
            wg_wait<0>();
            hold(o);
        }

        // normalise once; l = 0 gives 0
        l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
        l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
        l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
        l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
        const float i0 = l0 > 0.f ? 1.f / l0 : 0.f;
        const float i1 = l1 > 0.f ? 1.f / l1 : 0.f;

        // through this warpgroup's part of Q's shared memory, for wide stores
        bar_sync(3 + w, 128);
        const u32 sO = sQ + (w * 64 + warp * 16) * 128;
        {
            const int g = lane / 4;
            const u32 a = sO + g * 128 + (lane & 3) * 4;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const u32 x = a + (n / 8) * (128 * 128) + (((n & 7) ^ g) * 16);
                st_shared_u32(x, pack2(o[4 * n] * i0, o[4 * n + 1] * i0));
                st_shared_u32(x + 8 * 128, pack2(o[4 * n + 2] * i1, o[4 * n + 3] * i1));
            }
        }
        __syncwarp();
        {
            constexpr int CPR = D / 8;
            half* op = out + (i64)b * ob + (i64)h * oh;
            const int row0 = i * BM + w * 64 + warp * 16;
#pragma unroll
            for (int n = 0; n < 16 * CPR / 32; ++n) {
                const int idx = n * 32 + lane;
                const int r = idx / CPR;
                const int c = idx % CPR;
                const uint4 val =
                    ld_shared_v4(sO + (c / 8) * (128 * 128) + r * 128 + (((c & 7) ^ (r & 7)) * 16));
                if (row0 + r < seq_q) {
                    *reinterpret_cast<uint4*>(op + (i64)(row0 + r) * os + c * 8) = val;
                }
            }
        }
        // takes up the last arrival of the other warpgroup
        if (w == 0 && tiles > 1) bar_sync(1, 256);
    }
#else
    if (threadIdx.x >= 256) return;
    generic_body<D, true>(q, k, v, out, qb, qs, qh, kb, ks, kh, vb, vs, vh, ob, os, oh,
                          heads, group, nbh, section, seq_q, seq_k, scale, smem_addr(smem_raw));
#endif
}
