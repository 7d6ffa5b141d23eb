// Causal grouped-query attention, head dimension 128, fp16, sm_90a.
// 1 producer warpgroup (cp.async) + 2 consumer warpgroups (wgmma), persistent.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define STAGES 6
#define TILE_BYTES 32768
#define NEG_INF __int_as_float((int)0xff800000u)

// ---------------------------------------------------------------- barriers

__device__ __forceinline__ void mbar_init(u32 a, u32 n) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(a), "r"(n) : "memory");
}
__device__ __forceinline__ void mbar_arrive(u32 a) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(a) : "memory");
}
__device__ __forceinline__ bool mbar_test(u32 a, u32 parity) {
    u32 ok;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(ok)
        : "r"(a), "r"(parity)
        : "memory");
    return ok != 0;
}
__device__ __forceinline__ bool mbar_try(u32 a, u32 parity) {
    u32 ok;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(ok)
        : "r"(a), "r"(parity)
        : "memory");
    return ok != 0;
}
__device__ __forceinline__ void mbar_wait(u32 a, u32 parity) {
    while (!mbar_try(a, parity)) {
    }
}
__device__ __forceinline__ void bar_sync256(u32 id) {
    asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}
__device__ __forceinline__ void bar_arrive256(u32 id) {
    asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---------------------------------------------------------------- cp.async

__device__ __forceinline__ void cp16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
__device__ __forceinline__ void cp16z(u32 dst, const void* src, u32 n) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(n)
                 : "memory");
}
__device__ __forceinline__ void cp_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads 128 rows of 128 halves; this thread takes one 16-byte column of every eighth row.
template <int AL>
__device__ __forceinline__ void load_rows(u32 dst, const u16* p, const u16* safe, long long stride,
                                          int r0, int rows) {
    const long long step = stride * 8;
    if (AL) {
        if (rows >= 128) {
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                cp16(dst + i * 1024, p);
                p += step;
            }
        } else {
#pragma unroll 4
            for (int i = 0; i < 16; ++i) {
                const bool ok = (r0 + 8 * i) < rows;
                cp16z(dst + i * 1024, ok ? p : safe, ok ? 16u : 0u);
                p += step;
            }
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 16; ++i) {
            u32 w0 = 0, w1 = 0, w2 = 0, w3 = 0;
            if ((r0 + 8 * i) < rows) {
                w0 = (u32)p[0] | ((u32)p[1] << 16);
                w1 = (u32)p[2] | ((u32)p[3] << 16);
                w2 = (u32)p[4] | ((u32)p[5] << 16);
                w3 = (u32)p[6] | ((u32)p[7] << 16);
            }
            asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst + i * 1024), "r"(w0),
                         "r"(w1), "r"(w2), "r"(w3)
                         : "memory");
            p += step;
        }
    }
}

// ---------------------------------------------------------------- wgmma

#define R64                                                                                    \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

#define OP8(c, d, i)                                                                           \
    c(d[i + 0]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), \
        c(d[i + 7])
#define OP64(c, d)                                                                             \
    OP8(c, d, 0), OP8(c, d, 8), OP8(c, d, 16), OP8(c, d, 24), OP8(c, d, 32), OP8(c, d, 40),    \
        OP8(c, d, 48), OP8(c, d, 56)

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

// d = (+-)A B
template <int SA>
__device__ __forceinline__ void wgmma_ss_first(float (&d)[64], u64 da, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " R64
        ", %64, %65, p, %67, 1, 0, 0;\n"
        "}\n"
        : OP64("=f", d)
        : "l"(da), "l"(db), "r"(0), "n"(SA));
}
// d += (+-)A B
template <int SA>
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " R64
        ", %64, %65, p, %67, 1, 0, 0;\n"
        "}\n"
        : OP64("+f", d)
        : "l"(da), "l"(db), "r"(1), "n"(SA));
}
// d += A B, A in registers, B with its n axis contiguous
__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " R64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : OP64("+f", d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

__device__ __forceinline__ void fence_f(float (&r)[64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
__device__ __forceinline__ void fence_u(u32 (&r)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

template <int SA>
__device__ __forceinline__ void issue_qk(float (&s)[64], u64 dq, u64 dk) {
    wgmma_fence();
    wgmma_ss_first<SA>(s, dq, dk);
#pragma unroll
    for (int t = 1; t < 8; ++t) {
        const u64 off = (u64)((t & 3) * 2 + (t >> 2) * 1024);
        wgmma_ss<SA>(s, dq + off, dk + off);
    }
    wgmma_commit();
}
__device__ __forceinline__ void issue_pv(float (&o)[64], u32 (&p)[32], u64 dv) {
    wgmma_fence();
#pragma unroll
    for (int t = 0; t < 8; ++t) {
        wgmma_rs(o, p[4 * t + 0], p[4 * t + 1], p[4 * t + 2], p[4 * t + 3], dv + (u64)(t * 128));
    }
    wgmma_commit();
}

// ---------------------------------------------------------------- softmax

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

// lim: the last visible column, relative to this thread's first column, for its first row
__device__ __forceinline__ void mask_tile(float (&s)[64], int lim) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            if (8 * j + e > lim) s[4 * j + e] = NEG_INF;
            if (8 * j + e > lim + 8) s[4 * j + 2 + e] = NEG_INF;
        }
    }
}

// Turns scores into unnormalised probabilities. The reference maximum is moved only when it
// grew by more than 2^8, so the probabilities stay at most 256. Returns whether it moved.
template <bool FIRST>
__device__ __forceinline__ bool softmax_tile(float (&s)[64], float (&m)[2], float (&l)[2],
                                             float (&a)[2], float c) {
    float x0 = s[0], x1 = s[1], y0 = s[2], y1 = s[3];
#pragma unroll
    for (int j = 1; j < 16; ++j) {
        x0 = fmaxf(x0, s[4 * j + 0]);
        x1 = fmaxf(x1, s[4 * j + 1]);
        y0 = fmaxf(y0, s[4 * j + 2]);
        y1 = fmaxf(y1, s[4 * j + 3]);
    }
    x0 = fmaxf(x0, x1);
    y0 = fmaxf(y0, y1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    y0 = fmaxf(y0, __shfl_xor_sync(0xffffffffu, y0, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    y0 = fmaxf(y0, __shfl_xor_sync(0xffffffffu, y0, 2));
    const float n0 = __fmul_ru(x0, c);
    const float n1 = __fmul_ru(y0, c);

    bool moved = true;
    float u0, u1;
    if (FIRST) {
        m[0] = n0;
        m[1] = n1;
        u0 = (n0 == NEG_INF) ? 0.f : n0;
        u1 = (n1 == NEG_INF) ? 0.f : n1;
    } else {
        const bool need = (n0 > m[0] + 8.f) || (n1 > m[1] + 8.f);
        moved = __any_sync(0xffffffffu, need) != 0;
        const float k0 = moved ? fmaxf(m[0], n0) : m[0];
        const float k1 = moved ? fmaxf(m[1], n1) : m[1];
        u0 = (k0 == NEG_INF) ? 0.f : k0;
        u1 = (k1 == NEG_INF) ? 0.f : k1;
        a[0] = ex2(m[0] - u0);
        a[1] = ex2(m[1] - u1);
        m[0] = k0;
        m[1] = k1;
    }

    float r0 = 0.f, r1 = 0.f, t0 = 0.f, t1 = 0.f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        s[4 * j + 0] = ex2(fmaf(s[4 * j + 0], c, -u0));
        s[4 * j + 1] = ex2(fmaf(s[4 * j + 1], c, -u0));
        s[4 * j + 2] = ex2(fmaf(s[4 * j + 2], c, -u1));
        s[4 * j + 3] = ex2(fmaf(s[4 * j + 3], c, -u1));
        r0 += s[4 * j + 0];
        r1 += s[4 * j + 1];
        t0 += s[4 * j + 2];
        t1 += s[4 * j + 3];
    }
    if (FIRST) {
        l[0] = r0 + r1;
        l[1] = t0 + t1;
    } else {
        l[0] = fmaf(l[0], a[0], r0 + r1);
        l[1] = fmaf(l[1], a[1], t0 + t1);
    }
    return moved;
}

__device__ __forceinline__ void pack_tile(u32 (&p)[32], float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

__device__ __forceinline__ void advance(u32& slot, u32& phase) {
    ++slot;
    if (slot == STAGES) {
        slot = 0;
        phase ^= 1u;
    }
}

// Scores of block n, and the product of the previous block's probabilities with its values.
template <int SA, bool MASK>
__device__ __forceinline__ void kv_step(float (&o)[64], u32 (&p)[32], float (&m)[2], float (&l)[2],
                                        u64 dq, u64 dk0, u64 dv0, u32 full, u32 empty, u32 qempty,
                                        u32& slot, u32& phase, u32 cw, int lane, bool last, int lim,
                                        float c) {
    const u32 ks = slot, kp = phase;
    advance(slot, phase);
    const u32 vs = slot, vp = phase;
    advance(slot, phase);

    mbar_wait(full + 8 * ks, kp);
    mbar_wait(full + 8 * vs, vp);

    float s[64];
    fence_f(o);
    fence_u(p);
    bar_sync256(1 + cw);
    issue_qk<SA>(s, dq, dk0 + (u64)(ks * 2048));
    issue_pv(o, p, dv0 + (u64)(vs * 2048));
    bar_arrive256(1 + (cw ^ 1u));

    wgmma_wait<1>();
    fence_f(s);
    if (lane == 0) {
        mbar_arrive(empty + 8 * ks);
        if (last) mbar_arrive(qempty);
    }
    if (MASK) mask_tile(s, lim);
    float a[2];
    const bool moved = softmax_tile<false>(s, m, l, a, c);

    wgmma_wait<0>();
    fence_f(o);
    fence_u(p);
    if (lane == 0) mbar_arrive(empty + 8 * vs);
    if (moved) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            o[4 * j + 0] *= a[0];
            o[4 * j + 1] *= a[0];
            o[4 * j + 2] *= a[1];
            o[4 * j + 3] *= a[1];
        }
    }
    pack_tile(p, s);
}

// ---------------------------------------------------------------- tiles

__device__ __forceinline__ void decode_tile(int idx, int heads, int seq_q, int seq_k, int mblocks,
                                            int hs, int nsec, int bh_total, int& m0, int& b, int& h,
                                            int& nb) {
    const int per = hs * mblocks;
    const int sec = idx / per;
    const int r = idx - sec * per;
    int here = bh_total - sec * hs;
    here = here < hs ? here : hs;
    const int lvl = r / here;
    const int bh = sec * hs + (r - lvl * here);
    const bool desc = ((nsec - 1 - sec) & 1) == 0;
    const int mb = desc ? (mblocks - 1 - lvl) : lvl;
    b = bh / heads;
    h = bh - b * heads;
    m0 = mb * 128;
    int end = m0 + 128;
    end = end < seq_q ? end : seq_q;
    const int kmax = end + (seq_k - seq_q);
    nb = kmax > 0 ? (kmax + 127) / 128 : 0;
}

// Stores one row's 128 results; w holds 16 words of two columns each.
template <int AL>
__device__ __forceinline__ void store_row(u16* rowp, bool ok, u32 (&w)[16], int qd) {
    if (AL) {
#pragma unroll
        for (int g = 0; g < 4; ++g) {
            u32 w0 = w[4 * g + 0], w1 = w[4 * g + 1], w2 = w[4 * g + 2], w3 = w[4 * g + 3];
            const bool b1 = (qd & 1) != 0;
            const bool b2 = (qd & 2) != 0;
            u32 y;
            y = __shfl_xor_sync(0xffffffffu, b1 ? w0 : w1, 1);
            if (b1) w0 = y; else w1 = y;
            y = __shfl_xor_sync(0xffffffffu, b1 ? w2 : w3, 1);
            if (b1) w2 = y; else w3 = y;
            y = __shfl_xor_sync(0xffffffffu, b2 ? w0 : w2, 2);
            if (b2) w0 = y; else w2 = y;
            y = __shfl_xor_sync(0xffffffffu, b2 ? w1 : w3, 2);
            if (b2) w1 = y; else w3 = y;
            if (ok) {
                uint4 val;
                val.x = w0;
                val.y = w1;
                val.z = w2;
                val.w = w3;
                *reinterpret_cast<uint4*>(rowp + (4 * g + qd) * 8) = val;
            }
        }
    } else {
        if (ok) {
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                rowp[8 * j + 2 * qd + 0] = (u16)(w[j] & 0xffffu);
                rowp[8 * j + 2 * qd + 1] = (u16)(w[j] >> 16);
            }
        }
    }
}

// ---------------------------------------------------------------- kernel

template <int SA, int AL>
__global__ void __launch_bounds__(384, 1)
attn_kernel(const u16* q, const u16* k, const u16* v, u16* out,
            long long qb, long long qs, long long qh,
            long long kb, long long ks, long long kh,
            long long vb, long long vs, long long vh,
            long long ob, long long os, long long oh,
            int heads, int group, int seq_q, int seq_k,
            int mblocks, int hs, int nsec, int bh_total, int tiles,
            float c) {
    extern __shared__ unsigned char smem_raw[];
    const u32 base = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
    const u32 sq = base;
    const u32 ring = base + TILE_BYTES;
    const u32 full = base + (1 + STAGES) * TILE_BYTES;
    const u32 empty = full + 8 * STAGES;
    const u32 qfull = empty + 8 * STAGES;
    const u32 qempty = qfull + 8;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            mbar_init(full + 8 * i, 128);
            mbar_init(empty + 8 * i, 8);
        }
        mbar_init(qfull, 128);
        mbar_init(qempty, 8);
    }
    __syncthreads();

    const int G = (int)gridDim.x;
    const int bid = (int)blockIdx.x;
    const int wg = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);

    if (wg == 0) {
        // ------------------------------------------------ producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const int tid = (int)threadIdx.x;
        const int cc = tid & 15;
        const int r0 = tid >> 4;
        const u32 doff = (u32)((cc >> 3) * 16384 + r0 * 128 + (((cc & 7) ^ r0) << 4));
        u32 slot = 0, phase = 1, qphase = 1, pend = 0;

        auto flush = [&]() {
            if (pend) {
                cp_wait<0>();
                fence_async();
                mbar_arrive(pend);
                pend = 0;
            }
        };
        auto acquire = [&](u32 bar, u32 parity) {
            if (!__all_sync(0xffffffffu, mbar_test(bar, parity) ? 1 : 0)) {
                flush();
                mbar_wait(bar, parity);
                __syncwarp();
            }
        };
        auto commit = [&](u32 bar) {
            cp_commit();
            if (pend) {
                cp_wait<1>();
                fence_async();
                mbar_arrive(pend);
            }
            pend = bar;
        };

        for (int r = 0;; ++r) {
            const int idx = r * G + ((r & 1) ? (G - 1 - bid) : bid);
            if (idx >= tiles) break;
            int m0, b, h, nb;
            decode_tile(idx, heads, seq_q, seq_k, mblocks, hs, nsec, bh_total, m0, b, h, nb);
            if (nb == 0) continue;
            const int g = h / group;
            const u16* kp = k + (long long)b * kb + (long long)g * kh + (long long)r0 * ks + cc * 8;
            const u16* vp = v + (long long)b * vb + (long long)g * vh + (long long)r0 * vs + cc * 8;

            // first key block
            {
                const int n0 = (nb - 1) * 128;
                acquire(empty + 8 * slot, phase);
                load_rows<AL>(ring + slot * TILE_BYTES + doff, kp + (long long)n0 * ks, k, ks, r0,
                              seq_k - n0);
                commit(full + 8 * slot);
                advance(slot, phase);
            }
            // queries
            {
                acquire(qempty, qphase);
                qphase ^= 1u;
                const u16* qp = q + (long long)b * qb + (long long)h * qh +
                                (long long)(m0 + r0) * qs + cc * 8;
                load_rows<AL>(sq + doff, qp, q, qs, r0, seq_q - m0);
                commit(qfull);
            }
            for (int n = nb - 1; n >= 0; --n) {
                if (n > 0) {
                    const int n1 = (n - 1) * 128;
                    acquire(empty + 8 * slot, phase);
                    load_rows<AL>(ring + slot * TILE_BYTES + doff, kp + (long long)n1 * ks, k, ks,
                                  r0, seq_k - n1);
                    commit(full + 8 * slot);
                    advance(slot, phase);
                }
                const int n0 = n * 128;
                acquire(empty + 8 * slot, phase);
                load_rows<AL>(ring + slot * TILE_BYTES + doff, vp + (long long)n0 * vs, v, vs, r0,
                              seq_k - n0);
                commit(full + 8 * slot);
                advance(slot, phase);
            }
        }
        flush();
    } else {
        // ------------------------------------------------ consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const u32 cw = (u32)(wg - 1);
        const int lane = (int)(threadIdx.x & 31);
        const int warp = (int)((threadIdx.x >> 5) & 3);
        const int qd = lane & 3;
        const int diff = seq_k - seq_q;

        // 128-byte swizzle; keys and queries with the head dimension contiguous (K-major),
        // values with their n axis contiguous (MN-major).
        const u64 kmaj = ((u64)1 << 62) | ((u64)64 << 32) | ((u64)1 << 16);
        const u64 mnmaj = ((u64)1 << 62) | ((u64)64 << 32) | ((u64)1024 << 16);
        const u64 dq = kmaj | (u64)((sq + cw * 8192u) >> 4);
        const u64 dk0 = kmaj | (u64)(ring >> 4);
        const u64 dv0 = mnmaj | (u64)(ring >> 4);

        u32 slot = 0, phase = 0, qphase = 0;
        if (cw == 1) bar_arrive256(1);  // the first turn is the first warpgroup's

        for (int r = 0;; ++r) {
            const int idx = r * G + ((r & 1) ? (G - 1 - bid) : bid);
            if (idx >= tiles) break;
            int m0, b, h, nb;
            decode_tile(idx, heads, seq_q, seq_k, mblocks, hs, nsec, bh_total, m0, b, h, nb);

            const int wrow = m0 + (int)cw * 64;
            const int row = wrow + warp * 16 + (lane >> 2);
            float o[64];
            float m[2], l[2];
#pragma unroll
            for (int i = 0; i < 64; ++i) o[i] = 0.f;
            l[0] = 0.f;
            l[1] = 0.f;

            if (nb > 0) {
                u32 p[32];
                const int lim_base = row + diff - 2 * qd;
                int n = nb - 1;
                {
                    float s[64];
                    mbar_wait(qfull, qphase);
                    qphase ^= 1u;
                    mbar_wait(full + 8 * slot, phase);
                    issue_qk<SA>(s, dq, dk0 + (u64)(slot * 2048));
                    wgmma_wait<0>();
                    fence_f(s);
                    if (lane == 0) {
                        mbar_arrive(empty + 8 * slot);
                        if (n == 0) mbar_arrive(qempty);
                    }
                    advance(slot, phase);
                    mask_tile(s, lim_base - n * 128);
                    float a[2];
                    softmax_tile<true>(s, m, l, a, c);
                    pack_tile(p, s);
                }
                --n;
                // blocks that the diagonal still crosses
                for (; n >= 0 && n * 128 + 127 > wrow + diff; --n) {
                    kv_step<SA, true>(o, p, m, l, dq, dk0, dv0, full, empty, qempty, slot, phase,
                                      cw, lane, n == 0, lim_base - n * 128, c);
                }
                // blocks that every row sees whole
                for (; n >= 0; --n) {
                    kv_step<SA, false>(o, p, m, l, dq, dk0, dv0, full, empty, qempty, slot, phase,
                                       cw, lane, n == 0, 0, c);
                }
                // last product with the values
                mbar_wait(full + 8 * slot, phase);
                fence_f(o);
                fence_u(p);
                issue_pv(o, p, dv0 + (u64)(slot * 2048));
                wgmma_wait<0>();
                fence_f(o);
                fence_u(p);
                if (lane == 0) mbar_arrive(empty + 8 * slot);
                advance(slot, phase);
            }

            // normalise and store
            float l0 = l[0], l1 = l[1];
            l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
            l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
            const float i0 = l0 > 0.f ? 1.f / l0 : 0.f;
            const float i1 = l1 > 0.f ? 1.f / l1 : 0.f;

            u16* op = out + (long long)b * ob + (long long)h * oh + (long long)row * os;
            u32 w[16];
#pragma unroll
            for (int j = 0; j < 16; ++j) w[j] = pack2(o[4 * j + 0] * i0, o[4 * j + 1] * i0);
            store_row<AL>(op, row < seq_q, w, qd);
#pragma unroll
            for (int j = 0; j < 16; ++j) w[j] = pack2(o[4 * j + 2] * i1, o[4 * j + 3] * i1);
            store_row<AL>(op + 8 * os, row + 8 < seq_q, w, qd);
        }
    }
}
