// Causal grouped-query attention, head dimension 128, fp16 in and out.

#ifndef USE_WGMMA
#define USE_WGMMA 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef long long i64;

extern __shared__ __align__(1024) unsigned char smem_raw[];

__device__ __forceinline__ float neg_inf() { return __int_as_float((int)0xff800000u); }

__device__ __forceinline__ u32 smem_addr(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// two floats as fp16, the first one in the low half
__device__ __forceinline__ u32 pack2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ __forceinline__ void cp_async16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

// copies `bytes` (16 or 0) and fills the rest of the 16 bytes with zeros
__device__ __forceinline__ void cp_async16_zfill(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// One step of the online softmax on a thread's part of S: rows g and g + 8, columns
// 8 n + 2 t + e.  m is kept times scale * log2(e); l is this thread's part of the row sum.
// A column 8 n + e is visible to row g where it is <= lim, to row g + 8 where <= lim + 8.
template <int NT, bool NEG, bool MASK>
__device__ __forceinline__ void softmax_step(float (&s)[4 * NT], float (&m)[2], float (&l)[2],
                                             float (&alpha)[2], float c, int lim) {
    if (NEG) {
#pragma unroll
        for (int i = 0; i < 4 * NT; ++i) s[i] = -s[i];
    }
    if (MASK) {
        const int lim1 = lim + 8;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                if (8 * n + e > lim) s[4 * n + e] = neg_inf();
                if (8 * n + e > lim1) s[4 * n + 2 + e] = neg_inf();
            }
        }
    }
    float a0 = s[0], a1 = s[1], b0 = s[2], b1 = s[3];
#pragma unroll
    for (int n = 1; n < NT; ++n) {
        a0 = fmaxf(a0, s[4 * n + 0]);
        a1 = fmaxf(a1, s[4 * n + 1]);
        b0 = fmaxf(b0, s[4 * n + 2]);
        b1 = fmaxf(b1, s[4 * n + 3]);
    }
    float x0 = fmaxf(a0, a1), x1 = fmaxf(b0, b1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));
    const float n0 = fmaxf(m[0], x0 * c);
    const float n1 = fmaxf(m[1], x1 * c);
    float u0 = n0, u1 = n1;
    if (MASK) {
        if (n0 == neg_inf()) u0 = 0.f;
        if (n1 == neg_inf()) u1 = 0.f;
    }
    alpha[0] = ex2(m[0] - u0);
    alpha[1] = ex2(m[1] - u1);
    m[0] = n0;
    m[1] = n1;
    float r00 = 0.f, r01 = 0.f, r10 = 0.f, r11 = 0.f;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        s[4 * n + 0] = ex2(__fmaf_rn(s[4 * n + 0], c, -u0));
        s[4 * n + 1] = ex2(__fmaf_rn(s[4 * n + 1], c, -u0));
        s[4 * n + 2] = ex2(__fmaf_rn(s[4 * n + 2], c, -u1));
        s[4 * n + 3] = ex2(__fmaf_rn(s[4 * n + 3], c, -u1));
        r00 += s[4 * n + 0];
        r01 += s[4 * n + 1];
        r10 += s[4 * n + 2];
        r11 += s[4 * n + 3];
    }
    l[0] = l[0] * alpha[0] + (r00 + r01);
    l[1] = l[1] * alpha[1] + (r10 + r11);
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    x += __shfl_xor_sync(0xffffffffu, x, 2);
    return x;
}

// bounds of the two loops of the program
template <int BN>
__device__ __forceinline__ void loop_bounds(int q0, int seq_q, int seq_k, int& n_full, int& n_all) {
    const int diff = seq_k - seq_q;
    const int f = q0 + diff + 1;
    n_full = f > 0 ? f / BN : 0;
    if (n_full > seq_k / BN) n_full = seq_k / BN;
    const int a = q0 + 128 + diff;
    n_all = a > 0 ? (a + BN - 1) / BN : 0;
    const int tiles = (seq_k + BN - 1) / BN;
    if (n_all > tiles) n_all = tiles;
    if (n_all < n_full) n_all = n_full;
}

#if USE_WGMMA

// ------------------------------------------------------------------ wgmma kernel

#define TILE_BYTES 32768  // 128 rows of 128 fp16: two halves of 64 columns, 16 KiB each

// offsets of the mbarriers (two stages of 8 bytes each)
#define K_FULL 0
#define K_EMPTY 16
#define V_FULL 32
#define V_EMPTY 48

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred P1;\n"
        "LAB_WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n"
        "@P1 bra DONE;\n"
        "bra LAB_WAIT;\n"
        "DONE:\n"
        "}\n" ::"r"(bar),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void cp_async_mbar_arrive(u32 bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void bar_sync(int id, int n) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

__device__ __forceinline__ void bar_arrive(int id, int n) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
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
__device__ __forceinline__ void pin(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

template <int N>
__device__ __forceinline__ void pin(u32 (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

#define ACC_NAMES                                      \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "                \
    "%8, %9, %10, %11, %12, %13, %14, %15, "           \
    "%16, %17, %18, %19, %20, %21, %22, %23, "         \
    "%24, %25, %26, %27, %28, %29, %30, %31, "         \
    "%32, %33, %34, %35, %36, %37, %38, %39, "         \
    "%40, %41, %42, %43, %44, %45, %46, %47, "         \
    "%48, %49, %50, %51, %52, %53, %54, %55, "         \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

#define ACC8(d, i)                                                                      \
    "+f"(d[i + 0]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]),     \
        "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

#define ACC64(d)                                                                        \
    ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24), ACC8(d, 32), ACC8(d, 40),         \
        ACC8(d, 48), ACC8(d, 56)

// both operands in shared memory, both K-major
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int accumulate) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_NAMES
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(accumulate));
}

// first operand in registers, second in shared memory and MN-major; accumulates
__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_NAMES
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(1));
}

// descriptor of a 128-byte-swizzled operand; lbo and sbo in units of 16 bytes
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)lbo << 16) | ((u64)sbo << 32) | (1ull << 62);
}

__device__ __forceinline__ void gemm_qk(float (&s)[64], u64 qd, u64 kd) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const u64 off = (u64)((k >> 2) * 1024 + (k & 3) * 2);
        wgmma_ss(s, qd + off, kd + off, k > 0 ? 1 : 0);
    }
}

__device__ __forceinline__ void gemm_pv(float (&o)[64], u32 (&p)[32], u64 vd) {
#pragma unroll
    for (int k = 0; k < 8; ++k)
        wgmma_rs(o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3], vd + (u64)(k * 128));
}

// One thread's share of a tile of 128 rows: rows r0 + 8 i, one chunk of 16 bytes each.
// rows_left counts the tensor's rows from this thread's first one on.
__device__ __forceinline__ void load_tile(u32 dst, const u16* src, i64 step, int rows_left,
                                          const u16* safe) {
    if (rows_left > 120) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            cp_async16(dst + i * 1024, src);
            src += step;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const bool ok = 8 * i < rows_left;
            cp_async16_zfill(dst + i * 1024, ok ? src : safe, ok ? 16 : 0);
            src += step;
        }
    }
}

// Tile j >= 1: S = Q K_j^T is issued together with O += P_{j-1} V_{j-1}; the softmax of
// tile j runs while the second product is under way.
template <bool NEG, bool MASK>
__device__ __forceinline__ void kv_step(float (&s)[64], float (&o)[64], u32 (&p)[32], float (&m)[2],
                                        float (&l)[2], float c, int j, int lim, u64 qd, u64 kd,
                                        u64 vd, u32 bars, int w, int lane) {
    const int st = j & 1, ph = (j >> 1) & 1;
    const int sp = (j - 1) & 1, pp = ((j - 1) >> 1) & 1;

    mbar_wait(bars + K_FULL + 8 * st, ph);
    mbar_wait(bars + V_FULL + 8 * sp, pp);
    fence_proxy_async();
    bar_sync(1 + w, 256);

    pin(s);
    pin(o);
    pin(p);
    wgmma_fence();
    gemm_qk(s, qd, kd + (u64)(st * (TILE_BYTES >> 4)));
    wgmma_commit();
    wgmma_fence();
    gemm_pv(o, p, vd + (u64)(sp * (TILE_BYTES >> 4)));
    wgmma_commit();
    bar_arrive(1 + (w ^ 1), 256);

    wgmma_wait<1>();
    pin(s);
    if (lane == 0) mbar_arrive(bars + K_EMPTY + 8 * st);

    float alpha[2];
    softmax_step<16, NEG, MASK>(s, m, l, alpha, c, lim);

    wgmma_wait<0>();
    pin(o);
    pin(s);
    if (lane == 0) mbar_arrive(bars + V_EMPTY + 8 * sp);

#pragma unroll
    for (int n = 0; n < 16; ++n) {
        o[4 * n + 0] *= alpha[0];
        o[4 * n + 1] *= alpha[0];
        o[4 * n + 2] *= alpha[1];
        o[4 * n + 3] *= alpha[1];
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);
}

template <int NEG>
__global__ void __launch_bounds__(384, 1)
attention_wgmma(const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v,
                u16* __restrict__ out, i64 qb, i64 qs, i64 qh, i64 kb, i64 ks, i64 kh, i64 vb,
                i64 vs, i64 vh, i64 ob, i64 os, i64 oh, int seq_q, int seq_k, int heads, int group,
                float c) {
    const u32 base = (smem_addr(smem_raw) + 1023u) & ~1023u;
    const u32 sm_q = base;
    const u32 sm_k = base + TILE_BYTES;
    const u32 sm_v = base + 3 * TILE_BYTES;
    const u32 bars = base + 5 * TILE_BYTES;

    const int tid = threadIdx.x;
    const int wg = __shfl_sync(0xffffffffu, tid >> 7, 0);
    const int t128 = tid & 127;

    const int b = blockIdx.x / heads;
    const int h = blockIdx.x - b * heads;
    const int g = h / group;
    const int qi = (int)gridDim.y - 1 - (int)blockIdx.y;  // longest query tiles first
    const int q0 = qi * 128;

    int n_full, n_all;
    loop_bounds<128>(q0, seq_q, seq_k, n_full, n_all);

    if (tid == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            mbar_init(bars + K_FULL + 8 * i, 128);
            mbar_init(bars + V_FULL + 8 * i, 128);
            mbar_init(bars + K_EMPTY + 8 * i, 8);
            mbar_init(bars + V_EMPTY + 8 * i, 8);
        }
    }
    __syncthreads();

    // this thread's chunk of 16 bytes in rows r0, r0 + 8, ...
    const int ch = t128 & 15;
    const int r0 = t128 >> 4;
    const u32 sw = (u32)((ch >> 3) * 16384 + r0 * 128 + (((ch & 7) ^ r0) << 4));

    if (wg == 0) {
        // ------------------------------------------------ producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const u16* k_safe = k + (i64)b * kb + (i64)g * kh;
        const u16* v_safe = v + (i64)b * vb + (i64)g * vh;
        const u16* kp = k_safe + (i64)r0 * ks + ch * 8;
        const u16* vp = v_safe + (i64)r0 * vs + ch * 8;
        int rows_left = seq_k - r0;
#pragma unroll 1
        for (int j = 0; j < n_all; ++j) {
            const int st = j & 1;
            const int ph = (j >> 1) & 1;
            mbar_wait(bars + K_EMPTY + 8 * st, ph ^ 1);
            load_tile(sm_k + st * TILE_BYTES + sw, kp, 8 * ks, rows_left, k_safe);
            cp_async_mbar_arrive(bars + K_FULL + 8 * st);
            mbar_wait(bars + V_EMPTY + 8 * st, ph ^ 1);
            load_tile(sm_v + st * TILE_BYTES + sw, vp, 8 * vs, rows_left, v_safe);
            cp_async_mbar_arrive(bars + V_FULL + 8 * st);
            kp += 128 * ks;
            vp += 128 * vs;
            rows_left -= 128;
        }
        cp_async_wait_all();
    } else {
        // ------------------------------------------------ consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int w = wg - 1;
        const int lane = tid & 31;
        const int warp = t128 >> 5;
        const int row = q0 + w * 64 + warp * 16 + (lane >> 2);

        // the first of the two warpgroups may issue first
        if (w == 0) bar_arrive(1, 256);

        // the query rows of this warpgroup
        {
            const u16* q_safe = q + (i64)b * qb + (i64)h * qh;
            const int rq = q0 + w * 64 + r0;
            const u16* qp = q_safe + (i64)rq * qs + ch * 8;
            const u32 dst = sm_q + w * 8192 + sw;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const bool ok = rq + 8 * i < seq_q;
                cp_async16_zfill(dst + i * 1024, ok ? qp : q_safe, ok ? 16 : 0);
                qp += 8 * qs;
            }
            cp_async_wait_all();
            fence_proxy_async();
            bar_sync(3 + w, 128);
        }

        const u64 qd = make_desc(sm_q + w * 8192, 1, 64);
        const u64 kd = make_desc(sm_k, 1, 64);
        const u64 vd = make_desc(sm_v, 1024, 64);

        float o[64], s[64];
        u32 p[32];
        float m[2] = {neg_inf(), neg_inf()};
        float l[2] = {0.f, 0.f};
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            o[i] = 0.f;
            s[i] = 0.f;
        }

        if (n_all > 0) {
            // last visible column for row `row`, less this thread's first column
            int lim = row + (seq_k - seq_q) - 2 * (lane & 3);

            // tile 0
            mbar_wait(bars + K_FULL, 0);
            fence_proxy_async();
            pin(s);
            wgmma_fence();
            gemm_qk(s, qd, kd);
            wgmma_commit();
            wgmma_wait<0>();
            pin(s);
            if (lane == 0) mbar_arrive(bars + K_EMPTY);
            {
                float alpha[2];  // O is still zero
                if (n_full > 0)
                    softmax_step<16, (NEG != 0), false>(s, m, l, alpha, c, lim);
                else
                    softmax_step<16, (NEG != 0), true>(s, m, l, alpha, c, lim);
            }
#pragma unroll
            for (int i = 0; i < 32; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);

            int j = 1;
            // key tiles wholly visible: no mask
#pragma unroll 1
            for (; j < n_full; ++j)
                kv_step<(NEG != 0), false>(s, o, p, m, l, c, j, 0, qd, kd, vd, bars, w, lane);
            // key tiles that the diagonal crosses, or the ragged last one
#pragma unroll 1
            for (; j < n_all; ++j)
                kv_step<(NEG != 0), true>(s, o, p, m, l, c, j, lim - j * 128, qd, kd, vd, bars, w,
                                          lane);

            // the last product
            const int jl = n_all - 1;
            mbar_wait(bars + V_FULL + 8 * (jl & 1), (jl >> 1) & 1);
            fence_proxy_async();
            pin(o);
            pin(p);
            wgmma_fence();
            gemm_pv(o, p, vd + (u64)((jl & 1) * (TILE_BYTES >> 4)));
            wgmma_commit();
            wgmma_wait<0>();
            pin(o);
        }

        // normalise; a row without a visible key gives 0
        const float l0 = quad_sum(l[0]);
        const float l1 = quad_sum(l[1]);
        const float inv0 = l0 > 0.f ? 1.f / l0 : 0.f;
        const float inv1 = l1 > 0.f ? 1.f / l1 : 0.f;

        const int t = lane & 3;
        u16* op = out + (i64)b * ob + (i64)h * oh;
#pragma unroll
        for (int hr = 0; hr < 2; ++hr) {
            const float inv = hr ? inv1 : inv0;
            const int r = row + 8 * hr;
            u16* dst = op + (i64)r * os + t * 8;
#pragma unroll
            for (int kq = 0; kq < 4; ++kq) {
                u32 a[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int n = 4 * kq + e;
                    a[e] = pack2(o[4 * n + 2 * hr] * inv, o[4 * n + 2 * hr + 1] * inv);
                }
                // transpose 4 x 4 within the quad: lane t gets chunk t of 16 bytes
                u32 x;
                x = (t & 1) ? a[0] : a[1];
                x = __shfl_xor_sync(0xffffffffu, x, 1);
                if (t & 1) a[0] = x; else a[1] = x;
                x = (t & 1) ? a[2] : a[3];
                x = __shfl_xor_sync(0xffffffffu, x, 1);
                if (t & 1) a[2] = x; else a[3] = x;
                x = (t & 2) ? a[0] : a[2];
                x = __shfl_xor_sync(0xffffffffu, x, 2);
                if (t & 2) a[0] = x; else a[2] = x;
                x = (t & 2) ? a[1] : a[3];
                x = __shfl_xor_sync(0xffffffffu, x, 2);
                if (t & 2) a[1] = x; else a[3] = x;
                if (r < seq_q)
                    *reinterpret_cast<uint4*>(dst + kq * 32) = make_uint4(a[0], a[1], a[2], a[3]);
            }
        }
    }
}

#else

// ------------------------------------------------------------------ mma.sync kernel
// For tensors that are not aligned to 16 bytes, and for targets without wgmma.

#define PITCH 272  // bytes of a row of 128 fp16 in shared memory, padded

__device__ __forceinline__ void ldsm4(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

__device__ __forceinline__ void ldsm4_t(u32 (&r)[4], u32 addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

__device__ __forceinline__ void mma16816(float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1,
                                         u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void load_chunk(u32 dst, const u16* src, bool ok, const u16* safe,
                                           int vec) {
    if (vec) {
        cp_async16_zfill(dst, ok ? src : safe, ok ? 16 : 0);
    } else {
        u32 x[4] = {0u, 0u, 0u, 0u};
        if (ok) {
#pragma unroll
            for (int e = 0; e < 4; ++e) x[e] = (u32)src[2 * e] | ((u32)src[2 * e + 1] << 16);
        }
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(x[0]), "r"(x[1]),
                     "r"(x[2]), "r"(x[3])
                     : "memory");
    }
}

template <int ROWS>
__device__ __forceinline__ void load_rows(u32 dst, const u16* mat, i64 stride, int first, int end,
                                          int tid, int vec) {
#pragma unroll
    for (int i = 0; i < ROWS / 16; ++i) {
        const int r = (tid >> 4) + 16 * i;
        const int ch = tid & 15;
        load_chunk(dst + r * PITCH + ch * 16, mat + (i64)(first + r) * stride + ch * 8,
                   first + r < end, mat, vec);
    }
}

template <int NEG>
__global__ void __launch_bounds__(256, 1)
attention_mma(const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v,
              u16* __restrict__ out, i64 qb, i64 qs, i64 qh, i64 kb, i64 ks, i64 kh, i64 vb, i64 vs,
              i64 vh, i64 ob, i64 os, i64 oh, int seq_q, int seq_k, int heads, int group, float c,
              int vec) {
    const u32 sm_q = smem_addr(smem_raw);
    const u32 sm_k = sm_q + 128 * PITCH;
    const u32 sm_v = sm_k + 128 * PITCH;

    const int tid = threadIdx.x;
    const int lane = tid & 31;
    const int warp = tid >> 5;

    const int b = blockIdx.x / heads;
    const int h = blockIdx.x - b * heads;
    const int g = h / group;
    const int qi = (int)gridDim.y - 1 - (int)blockIdx.y;
    const int q0 = qi * 128;
    const int row = q0 + warp * 16 + (lane >> 2);

    int n_full, n_all;
    loop_bounds<64>(q0, seq_q, seq_k, n_full, n_all);

    const u16* qm = q + (i64)b * qb + (i64)h * qh;
    const u16* km = k + (i64)b * kb + (i64)g * kh;
    const u16* vm = v + (i64)b * vb + (i64)g * vh;

    load_rows<128>(sm_q, qm, qs, q0, seq_q, tid, vec);
    cp_async_wait_all();
    __syncthreads();

    u32 qf[8][4];
#pragma unroll
    for (int kk = 0; kk < 8; ++kk)
        ldsm4(qf[kk], sm_q + (warp * 16 + (lane & 15)) * PITCH + kk * 32 + (lane >> 4) * 16);

    float o[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] = 0.f;
    float m[2] = {neg_inf(), neg_inf()};
    float l[2] = {0.f, 0.f};
    const int lim = row + (seq_k - seq_q) - 2 * (lane & 3);

    const u32 k_off = (u32)(((lane & 7) + ((lane >> 4) & 1) * 8) * PITCH + ((lane >> 3) & 1) * 16);
    const u32 v_off = (u32)(((lane & 7) + ((lane >> 3) & 1) * 8) * PITCH + ((lane >> 4) & 1) * 16);

    if (n_all > 0) {
        load_rows<64>(sm_k, km, ks, 0, seq_k, tid, vec);
        load_rows<64>(sm_v, vm, vs, 0, seq_k, tid, vec);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");

#pragma unroll 1
    for (int j = 0; j < n_all; ++j) {
        if (j + 1 < n_all) {
            const u32 nb = (u32)(((j + 1) & 1) * 64 * PITCH);
            load_rows<64>(sm_k + nb, km, ks, (j + 1) * 64, seq_k, tid, vec);
            load_rows<64>(sm_v + nb, vm, vs, (j + 1) * 64, seq_k, tid, vec);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();

        const u32 kt = sm_k + (u32)((j & 1) * 64 * PITCH) + k_off;
        const u32 vt = sm_v + (u32)((j & 1) * 64 * PITCH) + v_off;

        float s[32];
#pragma unroll
        for (int i = 0; i < 32; ++i) s[i] = 0.f;
#pragma unroll
        for (int kk = 0; kk < 8; ++kk) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                u32 f[4];
                ldsm4(f, kt + n * 16 * PITCH + kk * 32);
                mma16816(s[8 * n + 0], s[8 * n + 1], s[8 * n + 2], s[8 * n + 3], qf[kk][0],
                         qf[kk][1], qf[kk][2], qf[kk][3], f[0], f[1]);
                mma16816(s[8 * n + 4], s[8 * n + 5], s[8 * n + 6], s[8 * n + 7], qf[kk][0],
                         qf[kk][1], qf[kk][2], qf[kk][3], f[2], f[3]);
            }
        }

        float alpha[2];
        if (j < n_full)
            softmax_step<8, (NEG != 0), false>(s, m, l, alpha, c, 0);
        else
            softmax_step<8, (NEG != 0), true>(s, m, l, alpha, c, lim - j * 64);

#pragma unroll
        for (int n = 0; n < 16; ++n) {
            o[4 * n + 0] *= alpha[0];
            o[4 * n + 1] *= alpha[0];
            o[4 * n + 2] *= alpha[1];
            o[4 * n + 3] *= alpha[1];
        }
        u32 p[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) p[i] = pack2(s[2 * i], s[2 * i + 1]);

#pragma unroll
        for (int kk = 0; kk < 4; ++kk) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                u32 f[4];
                ldsm4_t(f, vt + kk * 16 * PITCH + n * 32);
                mma16816(o[8 * n + 0], o[8 * n + 1], o[8 * n + 2], o[8 * n + 3], p[4 * kk],
                         p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], f[0], f[1]);
                mma16816(o[8 * n + 4], o[8 * n + 5], o[8 * n + 6], o[8 * n + 7], p[4 * kk],
                         p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], f[2], f[3]);
            }
        }
        __syncthreads();
    }
    cp_async_wait_all();

    const float l0 = quad_sum(l[0]);
    const float l1 = quad_sum(l[1]);
    const float inv0 = l0 > 0.f ? 1.f / l0 : 0.f;
    const float inv1 = l1 > 0.f ? 1.f / l1 : 0.f;

    u16* op = out + (i64)b * ob + (i64)h * oh;
#pragma unroll
    for (int hr = 0; hr < 2; ++hr) {
        const float inv = hr ? inv1 : inv0;
        const int r = row + 8 * hr;
        if (r < seq_q) {
            u16* dst = op + (i64)r * os + 2 * (lane & 3);
#pragma unroll
            for (int n = 0; n < 16; ++n) {
                const u32 x = pack2(o[4 * n + 2 * hr] * inv, o[4 * n + 2 * hr + 1] * inv);
                if (vec) {
                    *reinterpret_cast<u32*>(dst + 8 * n) = x;
                } else {
                    dst[8 * n] = (u16)(x & 0xffffu);
                    dst[8 * n + 1] = (u16)(x >> 16);
                }
            }
        }
    }
}

#endif
