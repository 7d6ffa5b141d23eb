typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define NEG_INF (__int_as_float(0xff800000))
#define LOG2E 1.4426950408889634f

// ------------------------------------------------------------------ helpers

__device__ __forceinline__ u32 smem_u32(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// low half = a, high half = b
__device__ __forceinline__ u32 pack_half2(float a, float b) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ u32 mbar_try(u32 bar, u32 parity) {
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

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    while (!mbar_try(bar, parity)) {
    }
}

__device__ __forceinline__ void named_sync(int id) {
    asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}

__device__ __forceinline__ void named_arrive(int id) {
    asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}

__device__ __forceinline__ void tma_load(u32 dst, u64 map, u32 bar, int c0, int c1, int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
        "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}

// Builds a tensor map (dim, seq, heads, batch), box (64, 128, 1, 1), 128-byte swizzle, in shared memory
// that has been filled with zeros.
__device__ __forceinline__ void build_map(u32 m, u64 g, u32 n_seq, u32 n_head, u32 n_batch, u64 s_seq,
                                          u64 s_head, u64 s_batch) {
#if !((__CUDACC_VER_MAJOR__ > 12) || ((__CUDACC_VER_MAJOR__ == 12) && (__CUDACC_VER_MINOR__ >= 5)))
    s_seq >>= 4;
    s_head >>= 4;
    s_batch >>= 4;
#endif
    asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(m), "l"(g)
                 : "memory");
    asm volatile("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%0], 3;" ::"r"(m) : "memory");

    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(m), "r"(64)
                 : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(m), "r"(128)
                 : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 2, %1;" ::"r"(m), "r"(1)
                 : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 3, %1;" ::"r"(m), "r"(1)
                 : "memory");

    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(m), "r"(128)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(m), "r"(n_seq)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 2, %1;" ::"r"(m), "r"(n_head)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 3, %1;" ::"r"(m), "r"(n_batch)
                 : "memory");

    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(m), "l"(s_seq)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 1, %1;" ::"r"(m), "l"(s_head)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 2, %1;" ::"r"(m), "l"(s_batch)
                 : "memory");

    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(m), "r"(1)
                 : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(m), "r"(1)
                 : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 2, %1;" ::"r"(m), "r"(1)
                 : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 3, %1;" ::"r"(m), "r"(1)
                 : "memory");

    asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], 6;" ::"r"(m) : "memory");
    asm volatile("tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%0], 0;" ::"r"(m) : "memory");
    asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], 3;" ::"r"(m) : "memory");
    asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(m) : "memory");
}

// ------------------------------------------------------------------ wgmma

__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFF) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(sbo >> 4) << 32) | (1ull << 62);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

template <int N>
__device__ __forceinline__ void keep(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void keep(u32 (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

#define ACC_LIST                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "                              \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                         \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                       \
    "%24, %25, %26, %27, %28, %29, %30, %31, "                       \
    "%32, %33, %34, %35, %36, %37, %38, %39, "                       \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                       \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                       \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

#define ACC8(d, i)                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])

#define ACC64(d) \
    ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24), ACC8(d, 32), ACC8(d, 40), ACC8(d, 48), ACC8(d, 56)

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC64(d)
        : "l"(da), "l"(db), "r"(acc));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(acc));
}

__device__ __forceinline__ void gemm_qk(float (&s)[64], u64 dq, u64 dk) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const u64 off = (u64)((kk >> 2) * 1024 + (kk & 3) * 2);
        wgmma_ss(s, dq + off, dk + off, kk != 0 ? 1 : 0);
    }
}

__device__ __forceinline__ void gemm_pv(float (&o)[64], u32 (&p)[32], u64 dv) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], dv + (u64)(kk * 128), 1);
    }
}

// ------------------------------------------------------------------ softmax

__device__ __forceinline__ void mask_block(float (&s)[64], int lim0) {
    // columns 8 i + e (relative to this thread) above lim0 (row r) or lim0 + 8 (row r + 8) are hidden
    const int lim1 = lim0 + 8;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        if (8 * i > lim0) s[4 * i] = NEG_INF;
        if (8 * i + 1 > lim0) s[4 * i + 1] = NEG_INF;
        if (8 * i > lim1) s[4 * i + 2] = NEG_INF;
        if (8 * i + 1 > lim1) s[4 * i + 3] = NEG_INF;
    }
}

// c: scaled reference of the row (log2 units). It is only moved when a row maximum passes it by more
// than 8, so that P stays below 2^8. Returns whether the accumulators must be multiplied by r0, r1.
template <bool FIRST>
__device__ __forceinline__ bool softmax_step(float (&s)[64], float sl, float& c0, float& c1, float& l0,
                                             float& l1, float& r0, float& r1) {
    float a0 = s[0], b0 = s[1], a1 = s[2], b1 = s[3];
#pragma unroll
    for (int i = 1; i < 16; ++i) {
        a0 = fmaxf(a0, s[4 * i]);
        b0 = fmaxf(b0, s[4 * i + 1]);
        a1 = fmaxf(a1, s[4 * i + 2]);
        b1 = fmaxf(b1, s[4 * i + 3]);
    }
    float m0 = fmaxf(a0, b0), m1 = fmaxf(a1, b1);
    m0 = fmaxf(m0, __shfl_xor_sync(0xffffffffu, m0, 1));
    m1 = fmaxf(m1, __shfl_xor_sync(0xffffffffu, m1, 1));
    m0 = fmaxf(m0, __shfl_xor_sync(0xffffffffu, m0, 2));
    m1 = fmaxf(m1, __shfl_xor_sync(0xffffffffu, m1, 2));
    m0 *= sl;
    m1 *= sl;

    bool need = false;
    if (FIRST) {
        c0 = m0;
        c1 = m1;
        l0 = 0.f;
        l1 = 0.f;
    } else {
        need = __any_sync(0xffffffffu, (m0 > c0 + 8.f) || (m1 > c1 + 8.f));
        if (need) {
            const float n0 = fmaxf(c0, m0), n1 = fmaxf(c1, m1);
            const float v0 = (n0 == NEG_INF) ? 0.f : n0;
            const float v1 = (n1 == NEG_INF) ? 0.f : n1;
            r0 = ex2(c0 - v0);
            r1 = ex2(c1 - v1);
            l0 *= r0;
            l1 *= r1;
            c0 = n0;
            c1 = n1;
        }
    }
    const float u0 = (c0 == NEG_INF) ? 0.f : -c0;
    const float u1 = (c1 == NEG_INF) ? 0.f : -c1;
    float x0 = 0.f, y0 = 0.f, x1 = 0.f, y1 = 0.f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        s[4 * i] = ex2(fmaf(s[4 * i], sl, u0));
        s[4 * i + 1] = ex2(fmaf(s[4 * i + 1], sl, u0));
        s[4 * i + 2] = ex2(fmaf(s[4 * i + 2], sl, u1));
        s[4 * i + 3] = ex2(fmaf(s[4 * i + 3], sl, u1));
        x0 += s[4 * i];
        y0 += s[4 * i + 1];
        x1 += s[4 * i + 2];
        y1 += s[4 * i + 3];
    }
    l0 += x0 + y0;
    l1 += x1 + y1;
    return need;
}

__device__ __forceinline__ void pack_p(u32 (&p)[32], const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack_half2(s[2 * i], s[2 * i + 1]);
}

// ------------------------------------------------------------------ schedule

struct Sched {
    int bh_total, m_tiles, sec_heads, grid, cta;
    int sec0, base, rnd;

    __device__ __forceinline__ bool next(int& bh, int& mb) {
        while (sec0 < bh_total) {
            const int left = bh_total - sec0;
            const int hin = left < sec_heads ? left : sec_heads;
            const int total = hin * m_tiles;
            if (base >= total) {
                sec0 += sec_heads;
                base = 0;
                continue;
            }
            const int t = base + ((rnd & 1) ? grid - 1 - cta : cta);
            base += grid;
            ++rnd;
            if (t < total) {
                const int lv = t / hin;
                mb = m_tiles - 1 - lv;
                bh = sec0 + (t - lv * hin);
                return true;
            }
        }
        return false;
    }
};

__device__ __forceinline__ int count_blocks(int m0, int nq, int nk) {
    const int last = (m0 + 127 < nq - 1) ? m0 + 127 : nq - 1;
    int kmax = last + (nk - nq) + 1;
    if (kmax > nk) kmax = nk;
    return kmax <= 0 ? 0 : (kmax + 127) / 128;
}

// ------------------------------------------------------------------ the fast kernel

#define STAGES 3
#define TILE_BYTES 32768

template <int D>
__global__ void __launch_bounds__(384, 1)
    attn_fwd(const u16* q, const u16* k, const u16* v, u16* out, unsigned char* maps,
             long long q_sb, long long q_ss, long long q_sh,
             long long k_sb, long long k_ss, long long k_sh,
             long long v_sb, long long v_ss, long long v_sh,
             long long o_sb, long long o_ss, long long o_sh,
             int batch, int heads, int kv_heads, int nq, int nk, int sec_heads, float scale) {
    static_assert(D == 128, "head dimension 128");
    extern __shared__ unsigned char smem_raw[];

    const u32 raw = smem_u32(smem_raw);
    const u32 base = (raw + 1023u) & ~1023u;
    unsigned char* base_ptr = smem_raw + (base - raw);

    const u32 sQ = base;
    const u32 sK = base + TILE_BYTES;
    const u32 sV = sK + STAGES * TILE_BYTES;
    const u32 map_off = (1 + 2 * STAGES) * TILE_BYTES;
    const u32 sMap = base + map_off;
    const u32 bars = sMap + 384;
    const u32 q_full = bars, q_empty = bars + 8;
    const u32 k_full = bars + 16, k_empty = k_full + 8 * STAGES;
    const u32 v_full = k_empty + 8 * STAGES, v_empty = v_full + 8 * STAGES;

    const int wgid = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);
    const int warp = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 5), 0);
    const int lane = threadIdx.x & 31;

    unsigned char* my_maps = maps + (u64)blockIdx.x * 384;

    if (warp < 3) {
        u32* mp = reinterpret_cast<u32*>(base_ptr + map_off + warp * 128);
        mp[lane] = 0u;
        __syncwarp();
        const u32 ms = sMap + warp * 128;
        if (lane == 0) {
            if (warp == 0)
                build_map(ms, (u64)q, nq, heads, batch, (u64)q_ss * 2, (u64)q_sh * 2, (u64)q_sb * 2);
            else if (warp == 1)
                build_map(ms, (u64)k, nk, kv_heads, batch, (u64)k_ss * 2, (u64)k_sh * 2, (u64)k_sb * 2);
            else
                build_map(ms, (u64)v, nk, kv_heads, batch, (u64)v_ss * 2, (u64)v_sh * 2, (u64)v_sb * 2);
        }
        __syncwarp();
        asm volatile(
            "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
            "[%0], [%1], 128;" ::"l"((u64)(my_maps + warp * 128)),
            "r"(ms)
            : "memory");
    } else if (warp == 3 && lane == 0) {
        mbar_init(q_full, 1);
        mbar_init(q_empty, 8);
        for (int i = 0; i < STAGES; ++i) {
            mbar_init(k_full + 8 * i, 1);
            mbar_init(k_empty + 8 * i, 8);
            mbar_init(v_full + 8 * i, 1);
            mbar_init(v_empty + 8 * i, 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();

    Sched sched;
    sched.bh_total = batch * heads;
    sched.m_tiles = (nq + 127) / 128;
    sched.sec_heads = sec_heads;
    sched.grid = gridDim.x;
    sched.cta = blockIdx.x;
    sched.sec0 = 0;
    sched.base = 0;
    sched.rnd = 0;

    if (wgid == 0) {
        // ---------------------------------------------------------- producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            const u64 map_q = (u64)my_maps, map_k = map_q + 128, map_v = map_q + 256;
            asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map_q) : "memory");
            asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map_k) : "memory");
            asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map_v) : "memory");

            const int group = heads / kv_heads;
            u32 st = 0, ph = 0, qph = 0;
            int bh, mb;
            while (sched.next(bh, mb)) {
                const int m0 = mb * 128;
                const int nblk = count_blocks(m0, nq, nk);
                if (nblk == 0) continue;
                const int b = bh / heads;
                const int h = bh - b * heads;
                const int g = h / group;
#pragma unroll 1
                for (int n = nblk - 1; n >= 0; --n) {
                    const u32 off = st * TILE_BYTES;
                    mbar_wait(k_empty + 8 * st, ph ^ 1);
                    mbar_expect(k_full + 8 * st, TILE_BYTES);
                    tma_load(sK + off, map_k, k_full + 8 * st, 0, n * 128, g, b);
                    tma_load(sK + off + 16384, map_k, k_full + 8 * st, 64, n * 128, g, b);
                    if (n == nblk - 1) {
                        mbar_wait(q_empty, qph ^ 1);
                        mbar_expect(q_full, TILE_BYTES);
                        tma_load(sQ, map_q, q_full, 0, m0, h, b);
                        tma_load(sQ + 16384, map_q, q_full, 64, m0, h, b);
                        qph ^= 1;
                    }
                    mbar_wait(v_empty + 8 * st, ph ^ 1);
                    mbar_expect(v_full + 8 * st, TILE_BYTES);
                    tma_load(sV + off, map_v, v_full + 8 * st, 0, n * 128, g, b);
                    tma_load(sV + off + 16384, map_v, v_full + 8 * st, 64, n * 128, g, b);
                    if (++st == STAGES) {
                        st = 0;
                        ph ^= 1;
                    }
                }
            }
        }
    } else {
        // ---------------------------------------------------------- consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int wg = wgid - 1;
        const int my_bar = 1 + wg, other_bar = 1 + (wg ^ 1);
        const int diff = nk - nq;
        const float sl = scale * LOG2E;
        const int row_in_tile = wg * 64 + (warp & 3) * 16 + (lane >> 2);
        const int quad = lane & 3;

        const u64 dq = make_desc(sQ + wg * 8192, 16, 1024);
        const u64 dk0 = make_desc(sK, 16, 1024);
        const u64 dv0 = make_desc(sV, 16384, 1024);

        if (wg == 1) named_arrive(1);  // the first warpgroup may start

        u32 ks = 0, kph = 0, vs = 0, vph = 0, qph = 0;
        int bh, mb;
        while (sched.next(bh, mb)) {
            const int m0 = mb * 128;
            const int nblk = count_blocks(m0, nq, nk);
            const int wg_row = m0 + wg * 64;
            const int row = m0 + row_in_tile;

            float o[64];
#pragma unroll
            for (int i = 0; i < 64; ++i) o[i] = 0.f;
            float l0 = 0.f, l1 = 0.f;

            if (nblk > 0) {
                float s[64];
                u32 p[32];
                float c0, c1, r0 = 1.f, r1 = 1.f;
                const int lim_base = row + diff - 2 * quad;

                mbar_wait(q_full, qph);
                qph ^= 1;
                mbar_wait(k_full + 8 * ks, kph);
                named_sync(my_bar);
                keep(s);
                wgmma_fence();
                gemm_qk(s, dq, dk0 + (u64)(ks * (TILE_BYTES / 16)));
                wgmma_commit();
                named_arrive(other_bar);
                wgmma_wait<0>();
                keep(s);
                if (lane == 0) {
                    mbar_arrive(k_empty + 8 * ks);
                    if (nblk == 1) mbar_arrive(q_empty);
                }
                if (++ks == STAGES) {
                    ks = 0;
                    kph ^= 1;
                }
                {
                    const int n0 = (nblk - 1) * 128;
                    if (n0 + 127 > wg_row + diff) mask_block(s, lim_base - n0);
                }
                softmax_step<true>(s, sl, c0, c1, l0, l1, r0, r1);
                pack_p(p, s);

#pragma unroll 1
                for (int n = nblk - 2; n >= 0; --n) {
                    mbar_wait(k_full + 8 * ks, kph);
                    named_sync(my_bar);
                    keep(s);
                    keep(o);
                    keep(p);
                    wgmma_fence();
                    gemm_qk(s, dq, dk0 + (u64)(ks * (TILE_BYTES / 16)));
                    wgmma_commit();
                    mbar_wait(v_full + 8 * vs, vph);
                    wgmma_fence();
                    gemm_pv(o, p, dv0 + (u64)(vs * (TILE_BYTES / 16)));
                    wgmma_commit();
                    named_arrive(other_bar);
                    wgmma_wait<1>();
                    keep(s);
                    if (lane == 0) {
                        mbar_arrive(k_empty + 8 * ks);
                        if (n == 0) mbar_arrive(q_empty);
                    }
                    if (++ks == STAGES) {
                        ks = 0;
                        kph ^= 1;
                    }
                    if (n * 128 + 127 > wg_row + diff) mask_block(s, lim_base - n * 128);
                    const bool need = softmax_step<false>(s, sl, c0, c1, l0, l1, r0, r1);
                    wgmma_wait<0>();
                    keep(o);
                    if (lane == 0) mbar_arrive(v_empty + 8 * vs);
                    if (++vs == STAGES) {
                        vs = 0;
                        vph ^= 1;
                    }
                    pack_p(p, s);
                    if (need) {
#pragma unroll
                        for (int i = 0; i < 16; ++i) {
                            o[4 * i] *= r0;
                            o[4 * i + 1] *= r0;
                            o[4 * i + 2] *= r1;
                            o[4 * i + 3] *= r1;
                        }
                    }
                }

                mbar_wait(v_full + 8 * vs, vph);
                keep(o);
                keep(p);
                wgmma_fence();
                gemm_pv(o, p, dv0 + (u64)(vs * (TILE_BYTES / 16)));
                wgmma_commit();
                wgmma_wait<0>();
                keep(o);
                if (lane == 0) mbar_arrive(v_empty + 8 * vs);
                if (++vs == STAGES) {
                    vs = 0;
                    vph ^= 1;
                }
            }

            // ------------------------------------------------------ epilogue
            l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
            l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
            l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
            const float i0 = l0 > 0.f ? 1.f / l0 : 0.f;
            const float i1 = l1 > 0.f ? 1.f / l1 : 0.f;

            const int b = bh / heads;
            const int h = bh - b * heads;
            u16* ob = out + (long long)b * o_sb + (long long)h * o_sh;
            const bool odd = (quad & 1) != 0;
            const bool high = (quad & 2) != 0;
#pragma unroll
            for (int rr = 0; rr < 2; ++rr) {
                const float inv = rr == 0 ? i0 : i1;
                const int r = row + 8 * rr;
                u16* orow = ob + (long long)r * o_ss;
#pragma unroll
                for (int gq = 0; gq < 4; ++gq) {
                    u32 a[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const int e = (4 * gq + j) * 4 + 2 * rr;
                        a[j] = pack_half2(o[e] * inv, o[e + 1] * inv);
                    }
                    // 4 x 4 transposition within the quad
                    u32 x, y;
                    x = odd ? a[0] : a[1];
                    y = __shfl_xor_sync(0xffffffffu, x, 1);
                    if (odd) a[0] = y; else a[1] = y;
                    x = odd ? a[2] : a[3];
                    y = __shfl_xor_sync(0xffffffffu, x, 1);
                    if (odd) a[2] = y; else a[3] = y;
                    x = high ? a[0] : a[2];
                    y = __shfl_xor_sync(0xffffffffu, x, 2);
                    if (high) a[0] = y; else a[2] = y;
                    x = high ? a[1] : a[3];
                    y = __shfl_xor_sync(0xffffffffu, x, 2);
                    if (high) a[1] = y; else a[3] = y;
                    if (r < nq) {
                        uint4 w;
                        w.x = a[0];
                        w.y = a[1];
                        w.z = a[2];
                        w.w = a[3];
                        *reinterpret_cast<uint4*>(orow + (4 * gq + quad) * 8) = w;
                    }
                }
            }
        }
    }
}

// ------------------------------------------------------------------ any alignment, any scale

__device__ __forceinline__ void mma16816(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int D>
__global__ void __launch_bounds__(128)
    attn_generic(const u16* q, const u16* k, const u16* v, u16* out,
                 long long q_sb, long long q_ss, long long q_sh,
                 long long k_sb, long long k_ss, long long k_sh,
                 long long v_sb, long long v_ss, long long v_sh,
                 long long o_sb, long long o_ss, long long o_sh,
                 int heads, int kv_heads, int nq, int nk, float scale) {
    static_assert(D == 128, "head dimension 128");
    const int P = 136;
    __shared__ __align__(16) u16 sk[64 * 136];
    __shared__ __align__(16) u16 sv[64 * 136];

    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const int g = lane >> 2, t = lane & 3;
    const int m0 = blockIdx.x * 64, h = blockIdx.y, b = blockIdx.z;
    const int hk = h / (heads / kv_heads);
    const int diff = nk - nq;

    const u16* qb = q + (long long)b * q_sb + (long long)h * q_sh;
    const u16* kb = k + (long long)b * k_sb + (long long)hk * k_sh;
    const u16* vb = v + (long long)b * v_sb + (long long)hk * v_sh;
    u16* ob = out + (long long)b * o_sb + (long long)h * o_sh;

    for (int i = tid; i < 64 * 128; i += 128) {
        const int r = i >> 7, c = i & 127;
        u16 x = 0;
        if (m0 + r < nq) x = qb[(long long)(m0 + r) * q_ss + c];
        sk[r * P + c] = x;
    }
    __syncthreads();
    u32 qf[8][4];
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const u16* a = sk + (warp * 16 + g) * P + kk * 16 + 2 * t;
        qf[kk][0] = *reinterpret_cast<const u32*>(a);
        qf[kk][1] = *reinterpret_cast<const u32*>(a + 8 * P);
        qf[kk][2] = *reinterpret_cast<const u32*>(a + 8);
        qf[kk][3] = *reinterpret_cast<const u32*>(a + 8 * P + 8);
    }
    __syncthreads();

    // the sign (or zero) of the scale goes into the scores exactly; what is left is positive
    const float sgn = scale > 0.f ? 1.f : (scale < 0.f ? -1.f : 0.f);
    const float sl = scale == 0.f ? 1.f : fabsf(scale) * LOG2E;

    float o[16][4];
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        o[j][0] = 0.f;
        o[j][1] = 0.f;
        o[j][2] = 0.f;
        o[j][3] = 0.f;
    }
    float c0 = NEG_INF, c1 = NEG_INF, l0 = 0.f, l1 = 0.f;
    const int row = m0 + warp * 16 + g;

    const int last = (m0 + 63 < nq - 1) ? m0 + 63 : nq - 1;
    int kmax = last + diff + 1;
    if (kmax > nk) kmax = nk;

    for (int n0 = 0; n0 < kmax; n0 += 64) {
        for (int i = tid; i < 64 * 128; i += 128) {
            const int r = i >> 7, c = i & 127;
            u16 x = 0, y = 0;
            if (n0 + r < nk) {
                x = kb[(long long)(n0 + r) * k_ss + c];
                y = vb[(long long)(n0 + r) * v_ss + c];
            }
            sk[r * P + c] = x;
            sv[r * P + c] = y;
        }
        __syncthreads();

        float s[8][4];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            s[j][0] = 0.f;
            s[j][1] = 0.f;
            s[j][2] = 0.f;
            s[j][3] = 0.f;
#pragma unroll
            for (int kk = 0; kk < 8; ++kk) {
                const u16* a = sk + (8 * j + g) * P + kk * 16 + 2 * t;
                const u32 b0 = *reinterpret_cast<const u32*>(a);
                const u32 b1 = *reinterpret_cast<const u32*>(a + 8);
                mma16816(s[j], qf[kk][0], qf[kk][1], qf[kk][2], qf[kk][3], b0, b1);
            }
        }
        float mx0 = NEG_INF, mx1 = NEG_INF;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int col = n0 + 8 * j + 2 * t + e;
                s[j][e] = (col > row + diff || col >= nk) ? NEG_INF : s[j][e] * sgn;
                s[j][2 + e] = (col > row + 8 + diff || col >= nk) ? NEG_INF : s[j][2 + e] * sgn;
                mx0 = fmaxf(mx0, s[j][e]);
                mx1 = fmaxf(mx1, s[j][2 + e]);
            }
        }
        mx0 = fmaxf(mx0, __shfl_xor_sync(0xffffffffu, mx0, 1));
        mx1 = fmaxf(mx1, __shfl_xor_sync(0xffffffffu, mx1, 1));
        mx0 = fmaxf(mx0, __shfl_xor_sync(0xffffffffu, mx0, 2));
        mx1 = fmaxf(mx1, __shfl_xor_sync(0xffffffffu, mx1, 2));
        const float n_0 = (mx0 == NEG_INF) ? c0 : fmaxf(c0, mx0 * sl);
        const float n_1 = (mx1 == NEG_INF) ? c1 : fmaxf(c1, mx1 * sl);
        const float u0 = (n_0 == NEG_INF) ? 0.f : n_0;
        const float u1 = (n_1 == NEG_INF) ? 0.f : n_1;
        const float r0 = ex2(c0 - u0), r1 = ex2(c1 - u1);
        c0 = n_0;
        c1 = n_1;
        float sum0 = 0.f, sum1 = 0.f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                s[j][e] = (s[j][e] == NEG_INF) ? 0.f : ex2(fmaf(s[j][e], sl, -u0));
                s[j][2 + e] = (s[j][2 + e] == NEG_INF) ? 0.f : ex2(fmaf(s[j][2 + e], sl, -u1));
                sum0 += s[j][e];
                sum1 += s[j][2 + e];
            }
        }
        l0 = l0 * r0 + sum0;
        l1 = l1 * r1 + sum1;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            o[j][0] *= r0;
            o[j][1] *= r0;
            o[j][2] *= r1;
            o[j][3] *= r1;
        }
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) {
            const u32 a0 = pack_half2(s[2 * kk][0], s[2 * kk][1]);
            const u32 a1 = pack_half2(s[2 * kk][2], s[2 * kk][3]);
            const u32 a2 = pack_half2(s[2 * kk + 1][0], s[2 * kk + 1][1]);
            const u32 a3 = pack_half2(s[2 * kk + 1][2], s[2 * kk + 1][3]);
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                const u16* a = sv + (kk * 16 + 2 * t) * P + 8 * j + g;
                const u32 b0 = (u32)a[0] | ((u32)a[P] << 16);
                const u32 b1 = (u32)a[8 * P] | ((u32)a[9 * P] << 16);
                mma16816(o[j], a0, a1, a2, a3, b0, b1);
            }
        }
        __syncthreads();
    }

    l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
    l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
    const float i0 = l0 > 0.f ? 1.f / l0 : 0.f;
    const float i1 = l1 > 0.f ? 1.f / l1 : 0.f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const int col = 8 * j + 2 * t;
        if (row < nq) {
            const u32 w = pack_half2(o[j][0] * i0, o[j][1] * i0);
            u16* p = ob + (long long)row * o_ss + col;
            p[0] = (u16)(w & 0xffffu);
            p[1] = (u16)(w >> 16);
        }
        if (row + 8 < nq) {
            const u32 w = pack_half2(o[j][2] * i1, o[j][3] * i1);
            u16* p = ob + (long long)(row + 8) * o_ss + col;
            p[0] = (u16)(w & 0xffffu);
            p[1] = (u16)(w >> 16);
        }
    }
}
