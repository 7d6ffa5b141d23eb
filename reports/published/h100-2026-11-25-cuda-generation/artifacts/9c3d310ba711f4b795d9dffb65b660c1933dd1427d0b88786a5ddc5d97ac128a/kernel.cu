typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define NEG_INF __int_as_float(0xff800000)

// ---------------------------------------------------------------------------
// small helpers
// ---------------------------------------------------------------------------
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack_half(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_expect_tx(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(bar), "r"(bytes) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
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
        "}\n" :: "r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void named_sync(int id) {
    asm volatile("bar.sync %0, 256;" :: "r"(id) : "memory");
}

__device__ __forceinline__ void named_arrive(int id) {
    asm volatile("bar.arrive %0, 256;" :: "r"(id) : "memory");
}

__device__ __forceinline__ void tma_load(u32 dst, u64 map, u32 bar, int c0, int c1, int c2, int c3,
                                         u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
        :: "r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
        : "memory");
}

// ---------------------------------------------------------------------------
// tensor map built on the device: 4D (dim, seq, heads, batch), box 64 x 128 x 1 x 1, 128B swizzle
// ---------------------------------------------------------------------------
#define TM_B32(field, ord, val) \
    asm volatile("tensormap.replace.tile." field ".shared::cta.b1024.b32 [%0], " ord ", %1;" \
                 :: "l"(sm), "r"(val) : "memory")
#define TM_B64(field, ord, val) \
    asm volatile("tensormap.replace.tile." field ".shared::cta.b1024.b64 [%0], " ord ", %1;" \
                 :: "l"(sm), "l"(val) : "memory")
#define TM_IMM(field, imm) \
    asm volatile("tensormap.replace.tile." field ".shared::cta.b1024.b32 [%0], " imm ";" \
                 :: "l"(sm) : "memory")

#if (__CUDACC_VER_MAJOR__ > 12) || ((__CUDACC_VER_MAJOR__ == 12) && (__CUDACC_VER_MINOR__ >= 5))
#define TM_STRIDE_SHIFT 0
#else
#define TM_STRIDE_SHIFT 4
#endif

__device__ __forceinline__ void build_map(u32 smem, u64 gmem, const void* base, int seq, int heads,
                                          int batch, long long ss, long long sh, long long sb,
                                          int lane) {
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(smem + lane * 4), "r"(0) : "memory");
    __syncwarp();
    if (lane == 0) {
        u64 sm = (u64)smem;
        u64 addr = (u64)base;
        asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;"
                     :: "l"(sm), "l"(addr) : "memory");
        TM_IMM("rank", "3");
        u32 b0 = 64, b1 = 128, one = 1;
        TM_B32("box_dim", "0", b0);
        TM_B32("box_dim", "1", b1);
        TM_B32("box_dim", "2", one);
        TM_B32("box_dim", "3", one);
        u32 d0 = 128, d1 = (u32)seq, d2 = (u32)heads, d3 = (u32)batch;
        TM_B32("global_dim", "0", d0);
        TM_B32("global_dim", "1", d1);
        TM_B32("global_dim", "2", d2);
        TM_B32("global_dim", "3", d3);
        u64 s1 = ((u64)ss * 2) >> TM_STRIDE_SHIFT;
        u64 s2 = ((u64)sh * 2) >> TM_STRIDE_SHIFT;
        u64 s3 = ((u64)sb * 2) >> TM_STRIDE_SHIFT;
        TM_B64("global_stride", "0", s1);
        TM_B64("global_stride", "1", s2);
        TM_B64("global_stride", "2", s3);
        TM_B32("element_stride", "0", one);
        TM_B32("element_stride", "1", one);
        TM_B32("element_stride", "2", one);
        TM_B32("element_stride", "3", one);
        TM_IMM("elemtype", "6");           // f16
        TM_IMM("interleave_layout", "0");  // none
        TM_IMM("swizzle_mode", "3");       // 128B
        TM_IMM("fill_mode", "0");          // zeros
    }
    __syncwarp();
    asm volatile(
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
        "[%0], [%1], 128;" :: "l"(gmem), "r"(smem) : "memory");
}

__device__ __forceinline__ void map_acquire(u64 gmem) {
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" :: "l"(gmem) : "memory");
}

// ---------------------------------------------------------------------------
// wgmma
// ---------------------------------------------------------------------------
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}
__device__ __forceinline__ void fence_regs(float (&r)[64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(r[i]) :: "memory");
}

#define ACC_STR \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

#define ACC8(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
    "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define ACC64(d) \
    ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24), ACC8(d, 32), ACC8(d, 40), ACC8(d, 48), ACC8(d, 56)

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        ACC_STR ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(scale_d));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db,
                                         int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        ACC_STR ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(scale_d));
}

__device__ __forceinline__ void issue_qk(float (&s)[64], u64 dq, u64 dk) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const u64 off = (u64)((kk >> 2) * 1024 + (kk & 3) * 2);
        wgmma_ss(s, dq + off, dk + off, kk != 0 ? 1 : 0);
    }
}

__device__ __forceinline__ void issue_pv(float (&o)[64], u32 (&p)[32], u64 dv) {
#pragma unroll
    for (int t = 0; t < 8; ++t) {
        wgmma_rs(o, p[4 * t], p[4 * t + 1], p[4 * t + 2], p[4 * t + 3], dv + (u64)(t * 128), 1);
    }
}

// ---------------------------------------------------------------------------
// softmax on the accumulator fragment
// ---------------------------------------------------------------------------
__device__ __forceinline__ void causal_mask(float (&s)[64], int lim) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        if (8 * j > lim) s[4 * j] = NEG_INF;
        if (8 * j + 1 > lim) s[4 * j + 1] = NEG_INF;
        if (8 * j > lim + 8) s[4 * j + 2] = NEG_INF;
        if (8 * j + 1 > lim + 8) s[4 * j + 3] = NEG_INF;
    }
}

__device__ __forceinline__ void softmax_step(float (&s)[64], float (&m)[2], float (&l)[2],
                                             float (&a)[2], float sl2) {
    float x0 = fmaxf(s[0], s[1]), x1 = fmaxf(s[4], s[5]);
    float y0 = fmaxf(s[2], s[3]), y1 = fmaxf(s[6], s[7]);
#pragma unroll
    for (int j = 2; j < 16; j += 2) {
        x0 = fmaxf(x0, fmaxf(s[4 * j], s[4 * j + 1]));
        y0 = fmaxf(y0, fmaxf(s[4 * j + 2], s[4 * j + 3]));
        x1 = fmaxf(x1, fmaxf(s[4 * j + 4], s[4 * j + 5]));
        y1 = fmaxf(y1, fmaxf(s[4 * j + 6], s[4 * j + 7]));
    }
    x0 = fmaxf(x0, x1);
    y0 = fmaxf(y0, y1);
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    y0 = fmaxf(y0, __shfl_xor_sync(0xffffffffu, y0, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    y0 = fmaxf(y0, __shfl_xor_sync(0xffffffffu, y0, 2));

    const float n0 = fmaxf(m[0], x0 * sl2);
    const float n1 = fmaxf(m[1], y0 * sl2);
    const float u0 = (n0 == NEG_INF) ? 0.0f : n0;
    const float u1 = (n1 == NEG_INF) ? 0.0f : n1;
    a[0] = ex2(m[0] - u0);
    a[1] = ex2(m[1] - u1);
    m[0] = n0;
    m[1] = n1;

    float p0 = 0.0f, p1 = 0.0f, r0 = 0.0f, r1 = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        s[4 * j] = ex2(fmaf(s[4 * j], sl2, -u0));
        s[4 * j + 1] = ex2(fmaf(s[4 * j + 1], sl2, -u0));
        s[4 * j + 2] = ex2(fmaf(s[4 * j + 2], sl2, -u1));
        s[4 * j + 3] = ex2(fmaf(s[4 * j + 3], sl2, -u1));
        p0 += s[4 * j];
        p1 += s[4 * j + 1];
        r0 += s[4 * j + 2];
        r1 += s[4 * j + 3];
    }
    l[0] = fmaf(l[0], a[0], p0 + p1);
    l[1] = fmaf(l[1], a[1], r0 + r1);
}

__device__ __forceinline__ void convert_p(u32 (&p)[32], float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack_half(s[2 * i], s[2 * i + 1]);
}

// barrier offsets
#define FULL_Q(b) (b)
#define EMPTY_Q(b) ((b) + 8)
#define FULL_K(b, st) ((b) + 16 + 8 * (st))
#define EMPTY_K(b, st) ((b) + 32 + 8 * (st))
#define FULL_V(b, st) ((b) + 48 + 8 * (st))
#define EMPTY_V(b, st) ((b) + 64 + 8 * (st))

template <bool kMask>
__device__ __forceinline__ void kv_step(float (&o)[64], float (&s)[64], u32 (&p)[32], float (&m)[2],
                                        float (&l)[2], u64 dq, u64 dk0, u64 dv0, u32 bars, u32& kc,
                                        u32& vc, int wg, int lane, int lim, bool last, float sl2) {
    float a[2];
    const u32 kst = kc & 1, vst = vc & 1;

    mbar_wait(FULL_K(bars, kst), (kc >> 1) & 1);
    named_sync(1 + wg);
    fence_regs(s);
    wgmma_fence();
    issue_qk(s, dq, dk0 + (u64)(kst * 2048));
    wgmma_commit();

    mbar_wait(FULL_V(bars, vst), (vc >> 1) & 1);
    fence_regs(o);
    wgmma_fence();
    issue_pv(o, p, dv0 + (u64)(vst * 2048));
    wgmma_commit();
    named_arrive(2 - wg);

    wgmma_wait<1>();
    fence_regs(s);
    if (lane == 0) {
        mbar_arrive(EMPTY_K(bars, kst));
        if (last) mbar_arrive(EMPTY_Q(bars));
    }
    ++kc;

    if (kMask) causal_mask(s, lim);
    softmax_step(s, m, l, a, sl2);

    wgmma_wait<0>();
    fence_regs(o);
    fence_regs(s);
    if (lane == 0) mbar_arrive(EMPTY_V(bars, vst));
    ++vc;

    convert_p(p, s);
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        o[4 * j] *= a[0];
        o[4 * j + 1] *= a[0];
        o[4 * j + 2] *= a[1];
        o[4 * j + 3] *= a[1];
    }
}

// ---------------------------------------------------------------------------
// fast kernel: persistent, 1 producer warpgroup + 2 consumer warpgroups
// ---------------------------------------------------------------------------
#define OFF_Q 0
#define OFF_K 32768
#define OFF_V 98304
#define OFF_O 163840
#define OFF_MAP 196608
#define OFF_BAR 196992

__global__ void __launch_bounds__(384, 1)
attn_sm90(const u16* q, const u16* k, const u16* v, u16* out, unsigned char* scratch,
          long long q_sb, long long q_ss, long long q_sh,
          long long k_sb, long long k_ss, long long k_sh,
          long long v_sb, long long v_ss, long long v_sh,
          long long o_sb, long long o_ss, long long o_sh,
          int batch, int seq_q, int seq_k, int heads, int kv_heads, float scale) {
    extern __shared__ unsigned char smem_raw[];
    const u32 raw = (u32)__cvta_generic_to_shared(smem_raw);
    const u32 sbase = (raw + 1023u) & ~1023u;
    const u32 bars = sbase + OFF_BAR;

    const int tid = threadIdx.x;
    const int lane = tid & 31;
    const int warp = __shfl_sync(0xffffffffu, tid >> 5, 0);
    const int wg_idx = warp >> 2;

    const u64 gmap = (u64)scratch + (u64)blockIdx.x * 384;

    // set-up: tensor maps and barriers
    if (warp == 0) {
        build_map(sbase + OFF_MAP, gmap, q, seq_q, heads, batch, q_ss, q_sh, q_sb, lane);
    } else if (warp == 1) {
        build_map(sbase + OFF_MAP + 128, gmap + 128, k, seq_k, kv_heads, batch, k_ss, k_sh, k_sb, lane);
    } else if (warp == 2) {
        build_map(sbase + OFF_MAP + 256, gmap + 256, v, seq_k, kv_heads, batch, v_ss, v_sh, v_sb, lane);
    } else if (warp == 3) {
        if (lane == 0) {
            mbar_init(FULL_Q(bars), 1);
            mbar_init(EMPTY_Q(bars), 8);
            for (int st = 0; st < 2; ++st) {
                mbar_init(FULL_K(bars, st), 1);
                mbar_init(EMPTY_K(bars, st), 8);
                mbar_init(FULL_V(bars, st), 1);
                mbar_init(EMPTY_V(bars, st), 8);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            asm volatile("fence.proxy.async;" ::: "memory");
        }
    }
    __syncthreads();

    const int G = (int)gridDim.x;
    const int cta = (int)blockIdx.x;
    const int m_blocks = (seq_q + 127) >> 7;
    const int bh_count = batch * heads;
    const int total = bh_count * m_blocks;
    const int D = seq_k - seq_q;

    if (wg_idx == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (tid == 0) {
            const u64 map_q = gmap, map_k = gmap + 128, map_v = gmap + 256;
            map_acquire(map_q);
            map_acquire(map_k);
            map_acquire(map_v);
            const u64 pol_first = 0x12F0000000000000ull;
            const u64 pol_last = 0x14F0000000000000ull;
            const int group = heads / kv_heads;
            u32 kc = 0, vc = 0, qc = 0;
            int base = 0;
            for (int r = 0; base < total; ++r, base += G) {
                const int t = base + ((__popc(r) & 1) ? (G - 1 - cta) : cta);
                if (t >= total) continue;
                const int rank = t / bh_count;
                const int bh = t - rank * bh_count;
                const int mb = m_blocks - 1 - rank;
                const int b = bh / heads;
                const int h = bh - b * heads;
                const int g = h / group;
                const int kmax = min(seq_q, (mb + 1) * 128) + D;
                if (kmax <= 0) continue;
                int n = (kmax + 127) / 128 - 1;

                {
                    const u32 st = kc & 1;
                    mbar_wait(EMPTY_K(bars, st), ((kc >> 1) & 1) ^ 1);
                    mbar_expect_tx(FULL_K(bars, st), 32768);
                    const u32 dst = sbase + OFF_K + st * 32768;
                    tma_load(dst, map_k, FULL_K(bars, st), 0, n * 128, g, b, pol_last);
                    tma_load(dst + 16384, map_k, FULL_K(bars, st), 64, n * 128, g, b, pol_last);
                    ++kc;
                }
                {
                    mbar_wait(EMPTY_Q(bars), (qc & 1) ^ 1);
                    mbar_expect_tx(FULL_Q(bars), 32768);
                    const u32 dst = sbase + OFF_Q;
                    tma_load(dst, map_q, FULL_Q(bars), 0, mb * 128, h, b, pol_first);
                    tma_load(dst + 16384, map_q, FULL_Q(bars), 64, mb * 128, h, b, pol_first);
                    ++qc;
                }
                for (; n >= 0; --n) {
                    if (n > 0) {
                        const u32 st = kc & 1;
                        mbar_wait(EMPTY_K(bars, st), ((kc >> 1) & 1) ^ 1);
                        mbar_expect_tx(FULL_K(bars, st), 32768);
                        const u32 dst = sbase + OFF_K + st * 32768;
                        tma_load(dst, map_k, FULL_K(bars, st), 0, (n - 1) * 128, g, b, pol_last);
                        tma_load(dst + 16384, map_k, FULL_K(bars, st), 64, (n - 1) * 128, g, b, pol_last);
                        ++kc;
                    }
                    const u32 st = vc & 1;
                    mbar_wait(EMPTY_V(bars, st), ((vc >> 1) & 1) ^ 1);
                    mbar_expect_tx(FULL_V(bars, st), 32768);
                    const u32 dst = sbase + OFF_V + st * 32768;
                    tma_load(dst, map_v, FULL_V(bars, st), 0, n * 128, g, b, pol_last);
                    tma_load(dst + 16384, map_v, FULL_V(bars, st), 64, n * 128, g, b, pol_last);
                    ++vc;
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int wg = wg_idx - 1;
        const int wrow = wg * 64 + (warp & 3) * 16;  // first row of this warp in the tile
        const float sl2 = scale * 1.4426950408889634f;

        const u64 desc_k_hi = ((u64)1 << 62) | ((u64)64 << 32) | ((u64)1 << 16);
        const u64 desc_v_hi = ((u64)1 << 62) | ((u64)64 << 32) | ((u64)1024 << 16);
        const u64 dq = desc_k_hi | (u64)((sbase + OFF_Q + wg * 8192) >> 4);
        const u64 dk0 = desc_k_hi | (u64)((sbase + OFF_K) >> 4);
        const u64 dv0 = desc_v_hi | (u64)((sbase + OFF_V) >> 4);
        const u32 stage_o = sbase + OFF_O + (u32)(wg * 4 + (warp & 3)) * 4096;

        float o[64], s[64];
        u32 p[32];
        float m[2], l[2];
#pragma unroll
        for (int i = 0; i < 64; ++i) s[i] = 0.0f;

        u32 kc = 0, vc = 0, qc = 0;
        if (wg == 1) named_arrive(1);  // let the first warpgroup start

        int base = 0;
        for (int r = 0; base < total; ++r, base += G) {
            const int t = base + ((__popc(r) & 1) ? (G - 1 - cta) : cta);
            if (t >= total) continue;
            const int rank = t / bh_count;
            const int bh = t - rank * bh_count;
            const int mb = m_blocks - 1 - rank;
            const int b = bh / heads;
            const int h = bh - b * heads;
            const int kmax = min(seq_q, (mb + 1) * 128) + D;
            const int row_base = mb * 128 + wrow;
            u16* obase = out + (long long)b * o_sb + (long long)h * o_sh;

            if (kmax <= 0) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const int row = row_base + i * 2 + (lane >> 4);
                    if (row < seq_q) {
                        uint4* ptr = (uint4*)(obase + (long long)row * o_ss + (lane & 15) * 8);
                        *ptr = make_uint4(0u, 0u, 0u, 0u);
                    }
                }
                continue;
            }
            const int nblk = (kmax + 127) / 128;
            const int vis = mb * 128 + D + 1;
            const int nfull = vis > 0 ? (vis >> 7) : 0;  // blocks below are fully visible
            // key limit of this thread's first row, relative to its first column
            const int lim_row = row_base + (lane >> 2) + D - 2 * (lane & 3);

            m[0] = NEG_INF;
            m[1] = NEG_INF;
            l[0] = 0.0f;
            l[1] = 0.0f;

            int n = nblk - 1;
            mbar_wait(FULL_Q(bars), qc & 1);
            ++qc;
            {
                const u32 kst = kc & 1;
                mbar_wait(FULL_K(bars, kst), (kc >> 1) & 1);
                fence_regs(s);
                wgmma_fence();
                issue_qk(s, dq, dk0 + (u64)(kst * 2048));
                wgmma_commit();
                wgmma_wait<0>();
                fence_regs(s);
                if (lane == 0) {
                    mbar_arrive(EMPTY_K(bars, kst));
                    if (n == 0) mbar_arrive(EMPTY_Q(bars));
                }
                ++kc;
                causal_mask(s, lim_row - n * 128);
                float a[2];
                softmax_step(s, m, l, a, sl2);
                convert_p(p, s);
            }
#pragma unroll
            for (int i = 0; i < 64; ++i) o[i] = 0.0f;

            --n;
            for (; n >= 0 && n >= nfull; --n) {
                kv_step<true>(o, s, p, m, l, dq, dk0, dv0, bars, kc, vc, wg, lane,
                              lim_row - n * 128, n == 0, sl2);
            }
            for (; n >= 0; --n) {
                kv_step<false>(o, s, p, m, l, dq, dk0, dv0, bars, kc, vc, wg, lane, 0, n == 0, sl2);
            }

            {
                const u32 vst = vc & 1;
                mbar_wait(FULL_V(bars, vst), (vc >> 1) & 1);
                fence_regs(o);
                wgmma_fence();
                issue_pv(o, p, dv0 + (u64)(vst * 2048));
                wgmma_commit();
                wgmma_wait<0>();
                fence_regs(o);
                if (lane == 0) mbar_arrive(EMPTY_V(bars, vst));
                ++vc;
            }

            // epilogue: normalise, transpose through this warp's own staging area, store rows
            float l0 = l[0], l1 = l[1];
            l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
            l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
            const float i0 = (l0 == 0.0f) ? 0.0f : 1.0f / l0;
            const float i1 = (l1 == 0.0f) ? 0.0f : 1.0f / l1;
            const u32 rr = (u32)(lane >> 2);
            const u32 wr = stage_o + rr * 256 + (u32)(lane & 3) * 4;
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                const u32 addr = wr + (((u32)j ^ rr) << 4);
                const u32 w0 = pack_half(o[4 * j] * i0, o[4 * j + 1] * i0);
                const u32 w1 = pack_half(o[4 * j + 2] * i1, o[4 * j + 3] * i1);
                asm volatile("st.shared.u32 [%0], %1;" :: "r"(addr), "r"(w0) : "memory");
                asm volatile("st.shared.u32 [%0], %1;" :: "r"(addr + 2048), "r"(w1) : "memory");
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int lr = i * 2 + (lane >> 4);
                const u32 c = (u32)(lane & 15);
                const u32 addr = stage_o + (u32)lr * 256 + ((c ^ (u32)(lr & 7)) << 4);
                u32 w0, w1, w2, w3;
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(w0), "=r"(w1), "=r"(w2), "=r"(w3) : "r"(addr) : "memory");
                const int row = row_base + lr;
                if (row < seq_q) {
                    uint4* ptr = (uint4*)(obase + (long long)row * o_ss + c * 8);
                    *ptr = make_uint4(w0, w1, w2, w3);
                }
            }
            __syncwarp();
        }
        if (wg == 0) named_sync(1);  // take the last pending arrival
    }
}

// ---------------------------------------------------------------------------
// fallback: any strides, any scale
// ---------------------------------------------------------------------------
__device__ __forceinline__ void mma16816(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 load_pair(const u16* p, bool ok) {
    if (!ok) return 0u;
    return (u32)p[0] | ((u32)p[1] << 16);
}

__global__ void __launch_bounds__(128)
attn_generic(const u16* q, const u16* k, const u16* v, u16* out,
             long long q_sb, long long q_ss, long long q_sh,
             long long k_sb, long long k_ss, long long k_sh,
             long long v_sb, long long v_ss, long long v_sh,
             long long o_sb, long long o_ss, long long o_sh,
             int seq_q, int seq_k, int heads, int kv_heads, float scale) {
    __shared__ __align__(16) u16 sk[64][136];
    __shared__ __align__(16) u16 sv[64][136];

    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int m0 = ((int)gridDim.x - 1 - (int)blockIdx.x) * 64;
    const int h = blockIdx.y, b = blockIdx.z;
    const int g = h / (heads / kv_heads);
    const int D = seq_k - seq_q;
    const int qr = lane >> 2, qc = 2 * (lane & 3);

    const u16* qb = q + (long long)b * q_sb + (long long)h * q_sh;
    const u16* kb = k + (long long)b * k_sb + (long long)g * k_sh;
    const u16* vb = v + (long long)b * v_sb + (long long)g * v_sh;
    u16* ob = out + (long long)b * o_sb + (long long)h * o_sh;

    const int r0 = m0 + warp * 16 + qr;
    const int r1 = r0 + 8;
    u32 qf[8][4];
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const int c = kk * 16 + qc;
        qf[kk][0] = load_pair(qb + (long long)r0 * q_ss + c, r0 < seq_q);
        qf[kk][1] = load_pair(qb + (long long)r1 * q_ss + c, r1 < seq_q);
        qf[kk][2] = load_pair(qb + (long long)r0 * q_ss + c + 8, r0 < seq_q);
        qf[kk][3] = load_pair(qb + (long long)r1 * q_ss + c + 8, r1 < seq_q);
    }

    // the sign goes into the scores, so that the factor in the exponent is positive
    float mult = 1.0f, sl2 = scale * 1.4426950408889634f;
    if (scale < 0.0f) { mult = -1.0f; sl2 = -sl2; }
    if (scale == 0.0f) { mult = 0.0f; sl2 = 1.0f; }

    float o[16][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[i][e] = 0.0f;
    }
    float ms0 = NEG_INF, ms1 = NEG_INF, l0 = 0.0f, l1 = 0.0f;

    const int kmax = min(seq_q, m0 + 64) + D;
    const int nb = kmax > 0 ? (kmax + 63) / 64 : 0;

    for (int n = 0; n < nb; ++n) {
        __syncthreads();
        for (int row = 0; row < 64; ++row) {
            const int key = n * 64 + row;
            u16 kvv = 0, vvv = 0;
            if (key < seq_k) {
                kvv = kb[(long long)key * k_ss + tid];
                vvv = vb[(long long)key * v_ss + tid];
            }
            sk[row][tid] = kvv;
            sv[row][tid] = vvv;
        }
        __syncthreads();

        float s[8][4];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
            for (int kk = 0; kk < 8; ++kk) {
                const u32 b0 = *(const u32*)&sk[j * 8 + qr][kk * 16 + qc];
                const u32 b1 = *(const u32*)&sk[j * 8 + qr][kk * 16 + qc + 8];
                mma16816(s[j], qf[kk][0], qf[kk][1], qf[kk][2], qf[kk][3], b0, b1);
            }
        }
        float x0 = NEG_INF, x1 = NEG_INF;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int col = n * 64 + j * 8 + qc + e;
                s[j][e] = (col > r0 + D) ? NEG_INF : s[j][e] * mult;
                s[j][e + 2] = (col > r1 + D) ? NEG_INF : s[j][e + 2] * mult;
                x0 = fmaxf(x0, s[j][e]);
                x1 = fmaxf(x1, s[j][e + 2]);
            }
        }
        x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
        x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
        x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
        x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));
        const float n0 = (x0 == NEG_INF) ? ms0 : fmaxf(ms0, x0 * sl2);
        const float n1 = (x1 == NEG_INF) ? ms1 : fmaxf(ms1, x1 * sl2);
        const float u0 = (n0 == NEG_INF) ? 0.0f : n0;
        const float u1 = (n1 == NEG_INF) ? 0.0f : n1;
        const float a0 = ex2(ms0 - u0);
        const float a1 = ex2(ms1 - u1);
        ms0 = n0;
        ms1 = n1;
        float t0 = 0.0f, t1 = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                s[j][e] = ex2(fmaf(s[j][e], sl2, -u0));
                s[j][e + 2] = ex2(fmaf(s[j][e + 2], sl2, -u1));
                t0 += s[j][e];
                t1 += s[j][e + 2];
            }
        }
        l0 = l0 * a0 + t0;
        l1 = l1 * a1 + t1;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            o[i][0] *= a0;
            o[i][1] *= a0;
            o[i][2] *= a1;
            o[i][3] *= a1;
        }
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            const u32 p0 = pack_half(s[2 * t][0], s[2 * t][1]);
            const u32 p1 = pack_half(s[2 * t][2], s[2 * t][3]);
            const u32 p2 = pack_half(s[2 * t + 1][0], s[2 * t + 1][1]);
            const u32 p3 = pack_half(s[2 * t + 1][2], s[2 * t + 1][3]);
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int c = i * 8 + qr;
                const int kr = t * 16 + qc;
                const u32 b0 = (u32)sv[kr][c] | ((u32)sv[kr + 1][c] << 16);
                const u32 b1 = (u32)sv[kr + 8][c] | ((u32)sv[kr + 9][c] << 16);
                mma16816(o[i], p0, p1, p2, p3, b0, b1);
            }
        }
    }

    l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
    l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
    const float i0 = (l0 == 0.0f) ? 0.0f : 1.0f / l0;
    const float i1 = (l1 == 0.0f) ? 0.0f : 1.0f / l1;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const int c = i * 8 + qc;
        if (r0 < seq_q) {
            const u32 w = pack_half(o[i][0] * i0, o[i][1] * i0);
            u16* ptr = ob + (long long)r0 * o_ss + c;
            ptr[0] = (u16)(w & 0xffffu);
            ptr[1] = (u16)(w >> 16);
        }
        if (r1 < seq_q) {
            const u32 w = pack_half(o[i][2] * i1, o[i][3] * i1);
            u16* ptr = ob + (long long)r1 * o_ss + c;
            ptr[0] = (u16)(w & 0xffffu);
            ptr[1] = (u16)(w >> 16);
        }
    }
}
