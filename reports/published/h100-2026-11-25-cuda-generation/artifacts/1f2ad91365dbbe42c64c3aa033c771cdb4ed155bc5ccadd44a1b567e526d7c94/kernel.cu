#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#define DEV __device__ __forceinline__

// ------------------------------------------------------------------ helpers

DEV float neg_inf() { return __int_as_float((int)0xff800000u); }

DEV u32 smem_u32(const void* p) { return (u32)__cvta_generic_to_shared(p); }

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

DEV void cp_async16(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"(dst), "l"(src), "r"(bytes) : "memory");
}

DEV void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
DEV void cp_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

DEV void st_shared_u32(u32 a, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(a), "r"(x) : "memory");
}

DEV void st_shared_v4(u32 a, u32 x, u32 y, u32 z, u32 w) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "r"(a), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

DEV uint4 ld_shared_v4(u32 a) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a) : "memory");
    return v;
}

// A tile of ROWS rows of 128 halves, loaded by 128 threads. Two panels of 64
// columns; rows of 128 bytes whose 16-byte pieces are permuted by row % 8.
template <int ROWS, bool VEC>
DEV void load_tile(u32 dst, const half* base, long long stride, int row0, int nrows, int t) {
    const int ch = t & 15;
    const int r0 = t >> 4;
    const u32 d = dst + (u32)((ch >> 3) * (ROWS * 128) + r0 * 128 + (((ch & 7) ^ r0) << 4));
    const half* src = base + (long long)(row0 + r0) * stride + ch * 8;
    const long long step = stride * 8;
    if constexpr (VEC) {
#pragma unroll 8
        for (int i = 0; i < ROWS / 8; ++i) {
            const bool in = row0 + r0 + i * 8 < nrows;
            cp_async16(d + i * 1024, in ? src : base, in ? 16 : 0);
            src += step;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS / 8; ++i) {
            u32 w[4] = {0u, 0u, 0u, 0u};
            if (row0 + r0 + i * 8 < nrows) {
                const unsigned short* s = reinterpret_cast<const unsigned short*>(src);
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    w[e] = (u32)s[2 * e] | ((u32)s[2 * e + 1] << 16);
            }
            st_shared_v4(d + i * 1024, w[0], w[1], w[2], w[3]);
            src += step;
        }
    }
}

template <bool VEC>
DEV void store_chunk(half* dst, uint4 x) {
    if constexpr (VEC) {
        *reinterpret_cast<uint4*>(dst) = x;
    } else {
        unsigned short* p = reinterpret_cast<unsigned short*>(dst);
        p[0] = (unsigned short)(x.x & 0xffffu);
        p[1] = (unsigned short)(x.x >> 16);
        p[2] = (unsigned short)(x.y & 0xffffu);
        p[3] = (unsigned short)(x.y >> 16);
        p[4] = (unsigned short)(x.z & 0xffffu);
        p[5] = (unsigned short)(x.z >> 16);
        p[6] = (unsigned short)(x.w & 0xffffu);
        p[7] = (unsigned short)(x.w >> 16);
    }
}

template <int BN>
DEV void loop_bounds(int q0, int seq_q, int seq_k, int& n_full, int& n_all) {
    const int diff = seq_k - seq_q;
    const int x = q0 + diff + 1;
    n_full = x > 0 ? min(seq_k / BN, x / BN) : 0;
    const int y = q0 + 128 + diff;
    n_all = y > 0 ? min((seq_k + BN - 1) / BN, (y + BN - 1) / BN) : 0;
    n_all = max(n_full, n_all);
}

#ifndef USE_MMA
// =================================================================== wgmma

DEV void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}

DEV void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
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
        "}\n"
        :: "r"(bar), "r"(parity) : "memory");
}

DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEV void bar_sync(int id, int n) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(n) : "memory");
}

DEV void bar_arrive(int id, int n) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(n) : "memory");
}

DEV void wg_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int N>
DEV void wg_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }

DEV void hold(float (&r)[64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(r[i]) :: "memory");
}

DEV void hold(u32 (&r)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(r[i]) :: "memory");
}

#define ACC_LIST                                                          \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "  \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "   \
    "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, "   \
    "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "   \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

#define F4(a, i) "+f"(a[(i)]), "+f"(a[(i) + 1]), "+f"(a[(i) + 2]), "+f"(a[(i) + 3])
#define F16(a, i) F4(a, (i)), F4(a, (i) + 4), F4(a, (i) + 8), F4(a, (i) + 12)
#define F64(a) F16(a, 0), F16(a, 16), F16(a, 32), F16(a, 48)

// both operands in shared memory, both with the inner axis contiguous
DEV void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : F64(d)
        : "l"(da), "l"(db), "r"(scale_d));
}

// first operand in registers, second with the outer axis contiguous
DEV void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : F64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// 128-byte swizzle; strides in bytes
DEV u64 make_desc(u32 addr, u32 lead_bytes, u32 stride_bytes) {
    u64 d = 0;
    d |= (u64)((addr >> 4) & 0x3fffu);
    d |= (u64)((lead_bytes >> 4) & 0x3fffu) << 16;
    d |= (u64)((stride_bytes >> 4) & 0x3fffu) << 32;
    d |= (u64)1 << 62;
    return d;
}

DEV void gemm_qk(float (&S)[64], u64 dq, u64 dk) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const u64 off = (u64)(((kk >> 2) * 16384 + (kk & 3) * 32) >> 4);
        wgmma_ss(S, dq + off, dk + off, kk == 0 ? 0 : 1);
    }
}

DEV void gemm_pv(float (&O)[64], u32 (&P)[32], u64 dv) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        wgmma_rs(O, P[4 * kk], P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3],
                 dv + (u64)(kk * 128));
    }
}

DEV void negate(float (&S)[64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) S[i] = -S[i];
}

DEV void mask_tile(float (&S)[64], int lim_a, int lim_b) {
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            S[4 * n + e] = (n * 8 + e > lim_a) ? neg_inf() : S[4 * n + e];
            S[4 * n + 2 + e] = (n * 8 + e > lim_b) ? neg_inf() : S[4 * n + 2 + e];
        }
    }
}

DEV void softmax_step(float (&S)[64], float (&m)[2], float (&l)[2], float (&alpha)[2], float sl) {
    float neg[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float a = fmaxf(S[2 * r], S[2 * r + 1]);
        float b = fmaxf(S[4 + 2 * r], S[4 + 2 * r + 1]);
#pragma unroll
        for (int n = 2; n < 16; n += 2) {
            a = fmaxf(a, fmaxf(S[4 * n + 2 * r], S[4 * n + 2 * r + 1]));
            b = fmaxf(b, fmaxf(S[4 * n + 4 + 2 * r], S[4 * n + 4 + 2 * r + 1]));
        }
        float mx = fmaxf(a, b);
        mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 1));
        mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 2));
        const float mnew = fmaxf(m[r], mx);
        const float ms = (mnew == neg_inf()) ? 0.0f : __fmul_rn(mnew, sl);
        alpha[r] = ex2(__fsub_rn(__fmul_rn(m[r], sl), ms));
        m[r] = mnew;
        neg[r] = -ms;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float s0 = 0.0f, s1 = 0.0f;
#pragma unroll
        for (int n = 0; n < 16; ++n) {
            const float x = ex2(__fmaf_rn(S[4 * n + 2 * r], sl, neg[r]));
            const float y = ex2(__fmaf_rn(S[4 * n + 2 * r + 1], sl, neg[r]));
            S[4 * n + 2 * r] = x;
            S[4 * n + 2 * r + 1] = y;
            s0 += x;
            s1 += y;
        }
        l[r] = l[r] * alpha[r] + (s0 + s1);
    }
}

DEV void convert_p(u32 (&P)[32], float (&S)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) P[i] = pack_half(S[2 * i], S[2 * i + 1]);
}

// One round: S = Q K_j^T is issued together with O += P_{j-1} V_{j-1}; the
// softmax of round j runs while the second product is still under way.
template <bool MASK, bool NEG>
DEV void round_step(float (&S)[64], float (&O)[64], u32 (&P)[32], float (&m)[2], float (&l)[2],
                    int j, u64 dq, u64 dk, u64 dv, u32 full_k, u32 full_v, u32 empty_k,
                    u32 empty_v, int wg, int lane, int lim_row, int lim_row8, float sl) {
    const int s = j & 1;
    const int t = (j - 1) & 1;
    float alpha[2];

    mbar_wait(full_k + 8 * s, (u32)((j >> 1) & 1));
    bar_sync(1 + wg, 256);
    wg_fence();
    gemm_qk(S, dq, dk + (u64)(s * 2048));
    wg_commit();

    mbar_wait(full_v + 8 * t, (u32)(((j - 1) >> 1) & 1));
    wg_fence();
    gemm_pv(O, P, dv + (u64)(t * 2048));
    wg_commit();
    bar_arrive(2 - wg, 256);

    wg_wait<1>();
    hold(S);
    if (lane == 0) mbar_arrive(empty_k + 8 * s);

    if constexpr (NEG) negate(S);
    if constexpr (MASK) mask_tile(S, lim_row - j * 128, lim_row8 - j * 128);
    softmax_step(S, m, l, alpha, sl);

    wg_wait<0>();
    hold(O);
    hold(P);
    if (lane == 0) mbar_arrive(empty_v + 8 * t);

    convert_p(P, S);
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        O[4 * n] *= alpha[0];
        O[4 * n + 1] *= alpha[0];
        O[4 * n + 2] *= alpha[1];
        O[4 * n + 3] *= alpha[1];
    }
}

template <bool VEC, bool NEG>
__global__ void __launch_bounds__(384, 1)
attn_wgmma(const half* q, const half* k, const half* v, half* out,
           long long qb, long long qs, long long qh,
           long long kb, long long ks, long long kh,
           long long vb, long long vs, long long vh,
           long long ob, long long os, long long oh,
           int seq_q, int seq_k, int group, float scale_log2) {
    extern __shared__ unsigned char smem_raw[];
    const u32 base = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = base;
    const u32 sK = base + 32768u;
    const u32 sV = base + 3u * 32768u;
    const u32 full_k = base + 5u * 32768u;
    const u32 full_v = full_k + 16u;
    const u32 empty_k = full_k + 32u;
    const u32 empty_v = full_k + 48u;

    const int qi = (int)gridDim.x - 1 - (int)blockIdx.x;  // longest query tiles first
    const int q0 = qi * 128;
    const int h = (int)blockIdx.y;
    const int hk = h / group;
    const long long b = (long long)blockIdx.z;

    int n_full, n_all;
    loop_bounds<128>(q0, seq_q, seq_k, n_full, n_all);

    if (threadIdx.x == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            mbar_init(full_k + 8 * i, 128);
            mbar_init(full_v + 8 * i, 128);
            mbar_init(empty_k + 8 * i, 8);
            mbar_init(empty_v + 8 * i, 8);
        }
    }
    __syncthreads();

    const int wgi = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);

    if (wgi == 0) {
        // ---------------------------------------------------------- producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (n_all > 0) {
            const int t = (int)threadIdx.x;
            const half* qp = q + b * qb + (long long)h * qh;
            const half* kp = k + b * kb + (long long)hk * kh;
            const half* vp = v + b * vb + (long long)hk * vh;

            load_tile<128, VEC>(sQ, qp, qs, q0, seq_q, t);
            load_tile<128, VEC>(sK, kp, ks, 0, seq_k, t);
            cp_commit();
            u32 pending = full_k;

#pragma unroll 1
            for (int j = 1; j <= n_all; ++j) {
                if (j < n_all) {
                    const int s = j & 1;
                    if (j >= 2) mbar_wait(empty_k + 8 * s, (u32)(((j >> 1) - 1) & 1));
                    load_tile<128, VEC>(sK + s * 32768, kp, ks, j * 128, seq_k, t);
                    cp_commit();
                    cp_wait<1>();
                    fence_async();
                    mbar_arrive(pending);
                    pending = full_k + 8 * s;
                }
                const int i = j - 1;
                const int s = i & 1;
                if (i >= 2) mbar_wait(empty_v + 8 * s, (u32)(((i >> 1) - 1) & 1));
                load_tile<128, VEC>(sV + s * 32768, vp, vs, i * 128, seq_k, t);
                cp_commit();
                cp_wait<1>();
                fence_async();
                mbar_arrive(pending);
                pending = full_v + 8 * s;
            }
            cp_wait<0>();
            fence_async();
            mbar_arrive(pending);
        }
    } else {
        // --------------------------------------------------------- consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int wg = wgi - 1;
        const int lane = (int)threadIdx.x & 31;
        const int warp = ((int)threadIdx.x >> 5) & 3;
        const int diff = seq_k - seq_q;

        float S[64];
        float O[64];
        u32 P[32];
        float m[2] = {neg_inf(), neg_inf()};
        float l[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            S[i] = 0.0f;
            O[i] = 0.0f;
        }

        // the second warpgroup lets the first one go first
        if (wg == 1) bar_arrive(1, 256);

        const int row = q0 + wg * 64 + warp * 16 + (lane >> 2);
        const int lim_row = min(row + diff, seq_k - 1) - 2 * (lane & 3);
        const int lim_row8 = min(row + 8 + diff, seq_k - 1) - 2 * (lane & 3);

        if (n_all > 0) {
            const u64 dq = make_desc(sQ + (u32)wg * 8192u, 16u, 1024u);
            const u64 dk = make_desc(sK, 16u, 1024u);
            const u64 dv = make_desc(sV, 16384u, 1024u);

            // first key tile
            {
                float alpha[2];
                mbar_wait(full_k, 0u);
                wg_fence();
                gemm_qk(S, dq, dk);
                wg_commit();
                wg_wait<0>();
                hold(S);
                if (lane == 0) mbar_arrive(empty_k);
                if constexpr (NEG) negate(S);
                if (n_full == 0) mask_tile(S, lim_row, lim_row8);
                softmax_step(S, m, l, alpha, scale_log2);
                convert_p(P, S);
            }

            int j = 1;
            // key tiles wholly visible
#pragma unroll 1
            for (; j < n_full; ++j)
                round_step<false, NEG>(S, O, P, m, l, j, dq, dk, dv, full_k, full_v, empty_k,
                                       empty_v, wg, lane, lim_row, lim_row8, scale_log2);
            // key tiles with the mask
#pragma unroll 1
            for (; j < n_all; ++j)
                round_step<true, NEG>(S, O, P, m, l, j, dq, dk, dv, full_k, full_v, empty_k,
                                      empty_v, wg, lane, lim_row, lim_row8, scale_log2);

            // last product
            const int t = (n_all - 1) & 1;
            mbar_wait(full_v + 8 * t, (u32)(((n_all - 1) >> 1) & 1));
            wg_fence();
            gemm_pv(O, P, dv + (u64)(t * 2048));
            wg_commit();
            wg_wait<0>();
            hold(O);
            hold(P);
        }

        float inv[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float x = l[r];
            x += __shfl_xor_sync(0xffffffffu, x, 1);
            x += __shfl_xor_sync(0xffffffffu, x, 2);
            inv[r] = x > 0.0f ? 1.0f / x : 0.0f;
        }

        // through this warpgroup's part of the query tile to global memory
        bar_sync(3 + wg, 128);
        const u32 stage = sQ + (u32)(wg * 8192 + warp * 16 * 128);
        const u32 st = stage + (u32)((lane >> 2) * 128 + (lane & 3) * 4);
#pragma unroll
        for (int n = 0; n < 16; ++n) {
            const u32 off = (u32)((n >> 3) * 16384 + (((n & 7) ^ (lane >> 2)) << 4));
            st_shared_u32(st + off, pack_half(O[4 * n] * inv[0], O[4 * n + 1] * inv[0]));
            st_shared_u32(st + off + 1024u,
                          pack_half(O[4 * n + 2] * inv[1], O[4 * n + 3] * inv[1]));
        }
        __syncwarp();
        half* op = out + b * ob + (long long)h * oh;
        const int orow0 = q0 + wg * 64 + warp * 16;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int r = i * 2 + (lane >> 4);
            const int ch = lane & 15;
            const uint4 x = ld_shared_v4(
                stage + (u32)((ch >> 3) * 16384 + r * 128 + (((ch & 7) ^ (r & 7)) << 4)));
            if (orow0 + r < seq_q)
                store_chunk<VEC>(op + (long long)(orow0 + r) * os + ch * 8, x);
        }

        // takes up the last arrival at the first warpgroup's barrier
        if (wg == 0) bar_sync(1, 256);
    }
}

#else
// ================================================================ mma.sync

DEV void ldsm4(u32 a, u32& x, u32& y, u32& z, u32& w) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(a) : "memory");
}

DEV void ldsm4_t(u32 a, u32& x, u32& y, u32& z, u32& w) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(a) : "memory");
}

DEV void mma16816(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int ROWS>
DEV u32 at(u32 tile, int r, int ch) {
    return tile + (u32)((ch >> 3) * (ROWS * 128) + r * 128 + (((ch & 7) ^ (r & 7)) << 4));
}

template <bool VEC, bool NEG>
__global__ void __launch_bounds__(128, 2)
attn_mma(const half* q, const half* k, const half* v, half* out,
         long long qb, long long qs, long long qh,
         long long kb, long long ks, long long kh,
         long long vb, long long vs, long long vh,
         long long ob, long long os, long long oh,
         int seq_q, int seq_k, int group, float scale_log2) {
    extern __shared__ __align__(1024) unsigned char smem_raw[];
    const u32 sQ = smem_u32(smem_raw);
    const u32 sK = sQ + 32768u;
    const u32 sV = sK + 16384u;

    const int qi = (int)gridDim.x - 1 - (int)blockIdx.x;
    const int q0 = qi * 128;
    const int h = (int)blockIdx.y;
    const int hk = h / group;
    const long long b = (long long)blockIdx.z;
    const int t = (int)threadIdx.x;
    const int lane = t & 31;
    const int warp = t >> 5;
    const int diff = seq_k - seq_q;

    int n_full, n_all;
    loop_bounds<64>(q0, seq_q, seq_k, n_full, n_all);

    const half* qp = q + b * qb + (long long)h * qh;
    const half* kp = k + b * kb + (long long)hk * kh;
    const half* vp = v + b * vb + (long long)hk * vh;

    float O[2][16][4];
    float m[2][2], l[2][2];
#pragma unroll
    for (int mi = 0; mi < 2; ++mi) {
#pragma unroll
        for (int n = 0; n < 16; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) O[mi][n][e] = 0.0f;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            m[mi][r] = neg_inf();
            l[mi][r] = 0.0f;
        }
    }

    if (n_all > 0) {
        load_tile<128, VEC>(sQ, qp, qs, q0, seq_q, t);
        load_tile<64, VEC>(sK, kp, ks, 0, seq_k, t);
        cp_commit();
    }

#pragma unroll 1
    for (int j = 0; j < n_all; ++j) {
        cp_wait<0>();
        __syncthreads();
        load_tile<64, VEC>(sV, vp, vs, j * 64, seq_k, t);
        cp_commit();

        float S[2][8][4];
#pragma unroll
        for (int mi = 0; mi < 2; ++mi)
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) S[mi][n][e] = 0.0f;

#pragma unroll
        for (int kk = 0; kk < 8; ++kk) {
            u32 a[2][4];
#pragma unroll
            for (int mi = 0; mi < 2; ++mi)
                ldsm4(at<128>(sQ, warp * 32 + mi * 16 + (lane & 15), kk * 2 + (lane >> 4)),
                      a[mi][0], a[mi][1], a[mi][2], a[mi][3]);
#pragma unroll
            for (int np = 0; np < 4; ++np) {
                u32 b0, b1, b2, b3;
                ldsm4(at<64>(sK, np * 16 + (lane >> 4) * 8 + (lane & 7), kk * 2 + ((lane >> 3) & 1)),
                      b0, b1, b2, b3);
#pragma unroll
                for (int mi = 0; mi < 2; ++mi) {
                    mma16816(S[mi][2 * np], a[mi][0], a[mi][1], a[mi][2], a[mi][3], b0, b1);
                    mma16816(S[mi][2 * np + 1], a[mi][0], a[mi][1], a[mi][2], a[mi][3], b2, b3);
                }
            }
        }

        if constexpr (NEG) {
#pragma unroll
            for (int mi = 0; mi < 2; ++mi)
#pragma unroll
                for (int n = 0; n < 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) S[mi][n][e] = -S[mi][n][e];
        }

        if (j >= n_full) {
#pragma unroll
            for (int mi = 0; mi < 2; ++mi)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int row = q0 + warp * 32 + mi * 16 + r * 8 + (lane >> 2);
                    const int lim = min(row + diff, seq_k - 1) - 2 * (lane & 3) - j * 64;
#pragma unroll
                    for (int n = 0; n < 8; ++n)
#pragma unroll
                        for (int e = 0; e < 2; ++e)
                            if (n * 8 + e > lim) S[mi][n][2 * r + e] = neg_inf();
                }
        }

#pragma unroll
        for (int mi = 0; mi < 2; ++mi)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float mx = m[mi][r];
#pragma unroll
                for (int n = 0; n < 8; ++n)
                    mx = fmaxf(mx, fmaxf(S[mi][n][2 * r], S[mi][n][2 * r + 1]));
                mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 1));
                mx = fmaxf(mx, __shfl_xor_sync(0xffffffffu, mx, 2));
                const float ms = (mx == neg_inf()) ? 0.0f : __fmul_rn(mx, scale_log2);
                const float alpha = ex2(__fsub_rn(__fmul_rn(m[mi][r], scale_log2), ms));
                m[mi][r] = mx;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < 8; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float x = ex2(__fmaf_rn(S[mi][n][2 * r + e], scale_log2, -ms));
                        S[mi][n][2 * r + e] = x;
                        sum += x;
                    }
                l[mi][r] = l[mi][r] * alpha + sum;
#pragma unroll
                for (int n = 0; n < 16; ++n) {
                    O[mi][n][2 * r] *= alpha;
                    O[mi][n][2 * r + 1] *= alpha;
                }
            }

        cp_wait<0>();
        __syncthreads();
        if (j + 1 < n_all) load_tile<64, VEC>(sK, kp, ks, (j + 1) * 64, seq_k, t);
        cp_commit();

#pragma unroll
        for (int kk = 0; kk < 4; ++kk) {
            u32 p[2][4];
#pragma unroll
            for (int mi = 0; mi < 2; ++mi) {
                p[mi][0] = pack_half(S[mi][2 * kk][0], S[mi][2 * kk][1]);
                p[mi][1] = pack_half(S[mi][2 * kk][2], S[mi][2 * kk][3]);
                p[mi][2] = pack_half(S[mi][2 * kk + 1][0], S[mi][2 * kk + 1][1]);
                p[mi][3] = pack_half(S[mi][2 * kk + 1][2], S[mi][2 * kk + 1][3]);
            }
#pragma unroll
            for (int np = 0; np < 8; ++np) {
                u32 b0, b1, b2, b3;
                ldsm4_t(at<64>(sV, kk * 16 + (lane & 15), np * 2 + (lane >> 4)), b0, b1, b2, b3);
#pragma unroll
                for (int mi = 0; mi < 2; ++mi) {
                    mma16816(O[mi][2 * np], p[mi][0], p[mi][1], p[mi][2], p[mi][3], b0, b1);
                    mma16816(O[mi][2 * np + 1], p[mi][0], p[mi][1], p[mi][2], p[mi][3], b2, b3);
                }
            }
        }
    }
    cp_wait<0>();
    __syncthreads();

    half* op = out + b * ob + (long long)h * oh;
#pragma unroll
    for (int mi = 0; mi < 2; ++mi)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float x = l[mi][r];
            x += __shfl_xor_sync(0xffffffffu, x, 1);
            x += __shfl_xor_sync(0xffffffffu, x, 2);
            const float inv = x > 0.0f ? 1.0f / x : 0.0f;
            const int rl = warp * 32 + mi * 16 + r * 8 + (lane >> 2);
#pragma unroll
            for (int n = 0; n < 16; ++n)
                st_shared_u32(at<128>(sQ, rl, n) + (u32)((lane & 3) * 4),
                              pack_half(O[mi][n][2 * r] * inv, O[mi][n][2 * r + 1] * inv));
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const int rl = warp * 32 + i * 2 + (lane >> 4);
        const int ch = lane & 15;
        const uint4 x = ld_shared_v4(at<128>(sQ, rl, ch));
        if (q0 + rl < seq_q) store_chunk<VEC>(op + (long long)(q0 + rl) * os + ch * 8, x);
    }
}

#endif
