#include <cuda_fp16.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define USE_WGMMA 1
#elif defined(__CUDA_ARCH_SPECIFIC__)
#if __CUDA_ARCH_SPECIFIC__ == 900
#define USE_WGMMA 1
#else
#define USE_WGMMA 0
#endif
#else
#define USE_WGMMA 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

// ---------------------------------------------------------------- constants
// tiles: BM = BN = 128, dim = dim_v = 128; every tile is [2][128 rows][64] halves,
// rows of 128 bytes, 16-byte chunks swizzled by (row & 7)
#define TILE_BYTES 32768
#define OFF_Q 0
#define OFF_K 32768
#define OFF_V 98304
#define OFF_O 163840
#define OFF_BAR 196608

#define BAR_QFULL 0
#define BAR_QEMPTY 8
#define BAR_KFULL 16
#define BAR_KEMPTY 32
#define BAR_VFULL 48
#define BAR_VEMPTY 64

#define NEG_INF __int_as_float(0xff800000)

// ---------------------------------------------------------------- helpers
__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(bar) : "memory");
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
        "}\n" ::"r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ void cp_async16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp_async16_zfill(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_arrive(u32 bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void st_shared_v4(u32 addr, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(addr), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

__device__ __forceinline__ void st_shared_b32(u32 addr, u32 a) {
    asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(addr), "r"(a) : "memory");
}

__device__ __forceinline__ void ld_shared_v4(u32 addr, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(addr)
                 : "memory");
}

__device__ __forceinline__ u32 pack_half2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ bool aligned16(const void* p, long long a, long long b, long long c) {
    u64 bits = (u64)p | (u64)(a * 2) | (u64)(b * 2) | (u64)(c * 2);
    return (bits & 15ull) == 0;
}

// ---------------------------------------------------------------- work items
struct Work {
    int b, h, row0, tiles, full;
};

// item `round` of this block: the program's (b, h, i), longest first, dealt out in a snake
__device__ __forceinline__ bool get_work(int round, int total, int bh, int heads, int nt, int seq_q, int seq_k,
                                         Work& w) {
    const int G = (int)gridDim.x;
    const int blk = (int)blockIdx.x;
    const int idx = round * G + ((round & 1) ? (G - 1 - blk) : blk);
    if (idx >= total) return false;
    const int i = idx / bh;
    const int rem = idx - i * bh;
    w.b = rem / heads;
    w.h = rem - w.b * heads;
    const int t = nt - 1 - i;
    const int shift = seq_k - seq_q;
    w.row0 = t * 128;
    int reach = min(seq_q, (t + 1) * 128) + shift;
    reach = max(0, reach);
    w.tiles = (reach + 127) / 128;
    w.full = max(0, t * 128 + shift + 1) / 128;
    return true;
}

// ---------------------------------------------------------------- producer
// one tile of 128 rows x 128 halves by 128 threads; rows from `limit` on are zero
__device__ __forceinline__ void load_tile(u32 dst, const half* src, long long stride, int row_start, int limit,
                                          bool vec, u32 bar, int tid) {
    const int c = tid & 15;
    const int r = tid >> 4;
    const u32 d = dst + ((u32)(c >> 3) << 14) + (u32)(r * 128) + (u32)(((c & 7) ^ r) << 4);
    const half* p = src + (long long)(row_start + r) * stride + c * 8;
    const long long step = stride * 8;
    if (vec) {
        if (row_start + 128 <= limit) {
#pragma unroll
            for (int it = 0; it < 16; ++it) {
                cp_async16(d + it * 1024, p);
                p += step;
            }
        } else {
#pragma unroll 4
            for (int it = 0; it < 16; ++it) {
                const bool ok = (row_start + r + it * 8) < limit;
                cp_async16_zfill(d + it * 1024, ok ? p : src, ok ? 16 : 0);
                p += step;
            }
        }
        cp_async_arrive(bar);
    } else {
#pragma unroll 1
        for (int it = 0; it < 16; ++it) {
            u32 w0 = 0, w1 = 0, w2 = 0, w3 = 0;
            if ((row_start + r + it * 8) < limit) {
                const unsigned short* e = reinterpret_cast<const unsigned short*>(p);
                w0 = (u32)e[0] | ((u32)e[1] << 16);
                w1 = (u32)e[2] | ((u32)e[3] << 16);
                w2 = (u32)e[4] | ((u32)e[5] << 16);
                w3 = (u32)e[6] | ((u32)e[7] << 16);
            }
            st_shared_v4(d + it * 1024, w0, w1, w2, w3);
            p += step;
        }
        fence_proxy_async();
        mbar_arrive(bar);
    }
}

// ---------------------------------------------------------------- softmax, mask, store
// accumulator layout: s[4 i + e]: column 8 i + 2 (lane & 3) + (e & 1), row lane / 4 + 8 (e >> 1)
template <int N>
__device__ __forceinline__ void mask_tile(float (&s)[N], int lim0) {
    const int lim1 = lim0 + 8;
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        if (i * 8 > lim0) s[4 * i + 0] = NEG_INF;
        if (i * 8 + 1 > lim0) s[4 * i + 1] = NEG_INF;
        if (i * 8 > lim1) s[4 * i + 2] = NEG_INF;
        if (i * 8 + 1 > lim1) s[4 * i + 3] = NEG_INF;
    }
}

template <int N>
__device__ __forceinline__ void scale_tile(float (&s)[N], float c) {
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] *= c;
}

template <int N>
__device__ __forceinline__ void softmax_step(float (&s)[N], float (&m)[2], float (&l)[2], float (&alpha)[2],
                                             float c) {
    float a0 = fmaxf(s[0], s[1]), b0 = fmaxf(s[2], s[3]);
    float a1 = fmaxf(s[4], s[5]), b1 = fmaxf(s[6], s[7]);
#pragma unroll
    for (int i = 8; i < N; i += 8) {
        a0 = fmaxf(a0, fmaxf(s[i + 0], s[i + 1]));
        b0 = fmaxf(b0, fmaxf(s[i + 2], s[i + 3]));
        a1 = fmaxf(a1, fmaxf(s[i + 4], s[i + 5]));
        b1 = fmaxf(b1, fmaxf(s[i + 6], s[i + 7]));
    }
    float x0 = fmaxf(m[0], fmaxf(a0, a1));
    float x1 = fmaxf(m[1], fmaxf(b0, b1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
    x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
    x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));
    const float base0 = (x0 == NEG_INF) ? 0.0f : x0 * c;
    const float base1 = (x1 == NEG_INF) ? 0.0f : x1 * c;
    alpha[0] = ex2(__fmul_rn(m[0], c) - base0);
    alpha[1] = ex2(__fmul_rn(m[1], c) - base1);
    m[0] = x0;
    m[1] = x1;
    float r0a = 0.0f, r0b = 0.0f, r1a = 0.0f, r1b = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        s[i + 0] = ex2(fmaf(s[i + 0], c, -base0));
        s[i + 1] = ex2(fmaf(s[i + 1], c, -base0));
        s[i + 2] = ex2(fmaf(s[i + 2], c, -base1));
        s[i + 3] = ex2(fmaf(s[i + 3], c, -base1));
        r0a += s[i + 0];
        r0b += s[i + 1];
        r1a += s[i + 2];
        r1b += s[i + 3];
    }
    l[0] = fmaf(l[0], alpha[0], r0a + r0b);
    l[1] = fmaf(l[1], alpha[1], r1a + r1b);
}

__device__ __forceinline__ void rescale(float (&o)[64], const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
        o[i + 0] *= alpha[0];
        o[i + 1] *= alpha[0];
        o[i + 2] *= alpha[1];
        o[i + 3] *= alpha[1];
    }
}

// divides by l and stores the 16 rows of this warp through its own piece of shared memory
__device__ __forceinline__ void store_o(float (&o)[64], float (&l)[2], u32 stage, half* op, long long so_s,
                                        int row_base, int seq_q, bool vec, int lane) {
    float l0 = l[0], l1 = l[1];
    l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
    l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
    const float inv0 = (l0 == 0.0f) ? 0.0f : 1.0f / l0;
    const float inv1 = (l1 == 0.0f) ? 0.0f : 1.0f / l1;
    const int g = lane >> 2;
    const int t = lane & 3;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const u32 a = stage + (u32)(g * 256) + (u32)((i ^ g) << 4) + (u32)(t * 4);
        st_shared_b32(a, pack_half2(o[4 * i + 0] * inv0, o[4 * i + 1] * inv0));
        st_shared_b32(a + 2048, pack_half2(o[4 * i + 2] * inv1, o[4 * i + 3] * inv1));
    }
    __syncwarp();
    const int ch = lane & 15;
#pragma unroll
    for (int it = 0; it < 8; ++it) {
        const int r = it * 2 + (lane >> 4);
        u32 w0, w1, w2, w3;
        ld_shared_v4(stage + (u32)(r * 256) + (u32)((ch ^ (r & 7)) << 4), w0, w1, w2, w3);
        const int row = row_base + r;
        if (row < seq_q) {
            half* p = op + (long long)row * so_s + ch * 8;
            if (vec) {
                *reinterpret_cast<uint4*>(p) = make_uint4(w0, w1, w2, w3);
            } else {
                unsigned short* e = reinterpret_cast<unsigned short*>(p);
                e[0] = (unsigned short)(w0 & 0xffffu);
                e[1] = (unsigned short)(w0 >> 16);
                e[2] = (unsigned short)(w1 & 0xffffu);
                e[3] = (unsigned short)(w1 >> 16);
                e[4] = (unsigned short)(w2 & 0xffffu);
                e[5] = (unsigned short)(w2 >> 16);
                e[6] = (unsigned short)(w3 & 0xffffu);
                e[7] = (unsigned short)(w3 >> 16);
            }
        }
    }
}

#if USE_WGMMA
// ---------------------------------------------------------------- WGMMA
#define ACC_LIST                                                  \
    "{%0, %1, %2, %3, %4, %5, %6, %7, "                           \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                      \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                    \
    "%24, %25, %26, %27, %28, %29, %30, %31, "                    \
    "%32, %33, %34, %35, %36, %37, %38, %39, "                    \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                    \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                    \
    "%56, %57, %58, %59, %60, %61, %62, %63}"

#define ACC8(d, b)                                                                          \
    "+f"(d[b + 0]), "+f"(d[b + 1]), "+f"(d[b + 2]), "+f"(d[b + 3]), "+f"(d[b + 4]),         \
        "+f"(d[b + 5]), "+f"(d[b + 6]), "+f"(d[b + 7])

#define ACC_OUT(d) \
    ACC8(d, 0), ACC8(d, 8), ACC8(d, 16), ACC8(d, 24), ACC8(d, 32), ACC8(d, 40), ACC8(d, 48), ACC8(d, 56)

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST
        ", %64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : ACC_OUT(d)
        : "l"(da), "l"(db), "r"(scale_d));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 db, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " ACC_LIST
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : ACC_OUT(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(scale_d));
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}

__device__ __forceinline__ void fence_f(float (&x)[64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
__device__ __forceinline__ void fence_u(u32 (&x)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)lbo << 16) | ((u64)sbo << 32) | (1ull << 62);
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
    for (int kk = 0; kk < 8; ++kk) {
        wgmma_rs(o, p[4 * kk + 0], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], dv + (u64)(kk * 128), 1);
    }
}

__device__ __forceinline__ void convert_p(u32 (&p)[32], float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack_half2(s[2 * i], s[2 * i + 1]);
}

__device__ __forceinline__ void bar_sync(int id) { asm volatile("bar.sync %0, 256;\n" ::"r"(id) : "memory"); }
__device__ __forceinline__ void bar_arrive(int id) { asm volatile("bar.arrive %0, 256;\n" ::"r"(id) : "memory"); }

// S_j = Q K_j^T and O += P_{j-1} V_{j-1} together, then the softmax of S_j
template <bool POS, bool MASK>
__device__ __forceinline__ void step(float (&s)[64], float (&o)[64], u32 (&p)[32], float (&m)[2], float (&l)[2],
                                     u64 dq, u64 dk, u64 dv, u32 bars, u32& kc, u32& vc, bool last, int wg,
                                     int lane, int lim0, float c) {
    const u32 ks = kc & 1u, vs = vc & 1u;
    mbar_wait(bars + BAR_KFULL + ks * 8, (kc >> 1) & 1u);
    mbar_wait(bars + BAR_VFULL + vs * 8, (vc >> 1) & 1u);
    fence_proxy_async();
    bar_sync(1 + wg);

    fence_f(s);
    fence_f(o);
    fence_u(p);
    wgmma_fence();
    issue_qk(s, dq, dk + (u64)(ks * 2048u));
    wgmma_commit();
    issue_pv(o, p, dv + (u64)(vs * 2048u));
    wgmma_commit();
    bar_arrive(2 - wg);

    wgmma_wait<1>();
    fence_f(s);
    if (lane == 0) {
        mbar_arrive(bars + BAR_KEMPTY + ks * 8);
        if (last) mbar_arrive(bars + BAR_QEMPTY);
    }
    if (!POS) scale_tile<64>(s, c);
    if (MASK) mask_tile<64>(s, lim0);
    float alpha[2];
    softmax_step<64>(s, m, l, alpha, POS ? c : 1.0f);

    wgmma_wait<0>();
    fence_f(o);
    fence_f(s);
    if (lane == 0) mbar_arrive(bars + BAR_VEMPTY + vs * 8);
    convert_p(p, s);
    rescale(o, alpha);
    ++kc;
    ++vc;
}
#else
// ---------------------------------------------------------------- mma.sync, where WGMMA is not available
__device__ __forceinline__ void ldsm4(u32 addr, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(addr)
                 : "memory");
}
__device__ __forceinline__ void ldsm4t(u32 addr, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(addr)
                 : "memory");
}
__device__ __forceinline__ void mma16816(float& c0, float& c1, float& c2, float& c3, u32 a0, u32 a1, u32 a2, u32 a3,
                                         u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ u32 tile_addr(u32 base, int row, int chunk) {
    return base + ((u32)(chunk >> 3) << 14) + (u32)(row * 128) + (u32)(((chunk & 7) ^ (row & 7)) << 4);
}
#endif

// ---------------------------------------------------------------- the kernel
template <bool POS>
__global__ void __launch_bounds__(384, 1)
    causal_gqa(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v,
               half* __restrict__ out, long long sq_b, long long sq_s, long long sq_h, long long sk_b, long long sk_s,
               long long sk_h, long long sv_b, long long sv_s, long long sv_h, long long so_b, long long so_s,
               long long so_h, int batch, int heads, int group, int seq_q, int seq_k, float scale) {
    extern __shared__ unsigned char smem_raw[];
    const u32 raw = (u32)__cvta_generic_to_shared(smem_raw);
    const u32 smem = (raw + 1023u) & ~1023u;
    const u32 bars = smem + OFF_BAR;

    if (threadIdx.x == 0) {
        mbar_init(bars + BAR_QFULL, 128);
        mbar_init(bars + BAR_QEMPTY, 8);
        for (int i = 0; i < 2; ++i) {
            mbar_init(bars + BAR_KFULL + i * 8, 128);
            mbar_init(bars + BAR_KEMPTY + i * 8, 8);
            mbar_init(bars + BAR_VFULL + i * 8, 128);
            mbar_init(bars + BAR_VEMPTY + i * 8, 8);
        }
        fence_proxy_async();
    }
    __syncthreads();

    const int nt = (seq_q + 127) / 128;
    const int bh = batch * heads;
    const int total = nt * bh;
    const int wgi = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);

    if (wgi == 0) {
        // ------------------------------------------------ producer warpgroup
#if USE_WGMMA
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;\n");
#endif
        const int tid = (int)threadIdx.x;
        const bool vec_q = aligned16(q, sq_b, sq_s, sq_h);
        const bool vec_k = aligned16(k, sk_b, sk_s, sk_h);
        const bool vec_v = aligned16(v, sv_b, sv_s, sv_h);
        u32 kc = 0, vc = 0, qc = 0;
        Work w;
        for (int round = 0; get_work(round, total, bh, heads, nt, seq_q, seq_k, w); ++round) {
            if (w.tiles == 0) continue;
            const int g = w.h / group;
            const half* kp = k + (long long)w.b * sk_b + (long long)g * sk_h;
            const half* vp = v + (long long)w.b * sv_b + (long long)g * sv_h;
            {
                const half* qp = q + (long long)w.b * sq_b + (long long)w.h * sq_h;
                mbar_wait(bars + BAR_QEMPTY, (qc & 1u) ^ 1u);
                load_tile(smem + OFF_Q, qp, sq_s, w.row0, seq_q, vec_q, bars + BAR_QFULL, tid);
                ++qc;
            }
#pragma unroll 1
            for (int j = 0; j <= w.tiles; ++j) {
                if (j < w.tiles) {
                    const u32 st = kc & 1u;
                    mbar_wait(bars + BAR_KEMPTY + st * 8, ((kc >> 1) & 1u) ^ 1u);
                    load_tile(smem + OFF_K + st * TILE_BYTES, kp, sk_s, j * 128, seq_k, vec_k,
                              bars + BAR_KFULL + st * 8, tid);
                    ++kc;
                }
                if (j > 0) {
                    const u32 st = vc & 1u;
                    mbar_wait(bars + BAR_VEMPTY + st * 8, ((vc >> 1) & 1u) ^ 1u);
                    load_tile(smem + OFF_V + st * TILE_BYTES, vp, sv_s, (j - 1) * 128, seq_k, vec_v,
                              bars + BAR_VFULL + st * 8, tid);
                    ++vc;
                }
            }
        }
        asm volatile("cp.async.wait_all;\n" ::: "memory");
    } else {
        // ------------------------------------------------ consumer warpgroups
#if USE_WGMMA
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;\n");
#endif
        const int wg = wgi - 1;
        const int tid = (int)threadIdx.x - 128;
        const int warp = tid >> 5;  // 0 .. 7, rows 16 warp .. 16 warp + 15 of the block
        const int lane = tid & 31;
        const float c = scale * 1.4426950408889634f;
        const int shift = seq_k - seq_q;
        const bool vec_o = aligned16(out, so_b, so_s, so_h);
        const u32 stage_o = smem + OFF_O + (u32)(warp * 4096);
        u32 kc = 0, vc = 0, qc = 0;
        float o[64];
        float m[2], l[2];

#if USE_WGMMA
        const u64 dq = make_desc(smem + OFF_Q + (u32)(wg * 8192), 1, 64);
        const u64 dk = make_desc(smem + OFF_K, 1, 64);
        const u64 dv = make_desc(smem + OFF_V, 1024, 64);
        float s[64];
        u32 p[32];
#pragma unroll
        for (int i = 0; i < 64; ++i) s[i] = 0.0f;
        // warpgroup 0 goes first
        if (wg == 1) bar_arrive(1);
#endif

        Work w;
        for (int round = 0; get_work(round, total, bh, heads, nt, seq_q, seq_k, w); ++round) {
#pragma unroll
            for (int i = 0; i < 64; ++i) o[i] = 0.0f;
            m[0] = NEG_INF;
            m[1] = NEG_INF;
            l[0] = 0.0f;
            l[1] = 0.0f;

            if (w.tiles > 0) {
                // last visible key of this thread's first row, less the thread's first column
                const int lim = w.row0 + warp * 16 + (lane >> 2) + shift - (lane & 3) * 2;
#if USE_WGMMA
                mbar_wait(bars + BAR_QFULL, qc & 1u);
                {
                    const u32 ks = kc & 1u;
                    mbar_wait(bars + BAR_KFULL + ks * 8, (kc >> 1) & 1u);
                    fence_proxy_async();
                    fence_f(s);
                    wgmma_fence();
                    issue_qk(s, dq, dk + (u64)(ks * 2048u));
                    wgmma_commit();
                    wgmma_wait<0>();
                    fence_f(s);
                    if (lane == 0) {
                        mbar_arrive(bars + BAR_KEMPTY + ks * 8);
                        if (w.tiles == 1) mbar_arrive(bars + BAR_QEMPTY);
                    }
                    ++kc;
                    if (!POS) scale_tile<64>(s, c);
                    if (w.full == 0) mask_tile<64>(s, lim);
                    float alpha[2];
                    softmax_step<64>(s, m, l, alpha, POS ? c : 1.0f);
                    convert_p(p, s);
                }
                int j = 1;
                // 1. key tiles visible to every row of the block: no mask
#pragma unroll 1
                for (; j < w.full; ++j) {
                    step<POS, false>(s, o, p, m, l, dq, dk, dv, bars, kc, vc, j == w.tiles - 1, wg, lane, 0, c);
                }
                // 2. key tiles that cross the diagonal
#pragma unroll 1
                for (; j < w.tiles; ++j) {
                    step<POS, true>(s, o, p, m, l, dq, dk, dv, bars, kc, vc, j == w.tiles - 1, wg, lane,
                                    lim - j * 128, c);
                }
                // the last product with V
                {
                    const u32 vs = vc & 1u;
                    mbar_wait(bars + BAR_VFULL + vs * 8, (vc >> 1) & 1u);
                    fence_proxy_async();
                    fence_f(o);
                    fence_u(p);
                    wgmma_fence();
                    issue_pv(o, p, dv + (u64)(vs * 2048u));
                    wgmma_commit();
                    wgmma_wait<0>();
                    fence_f(o);
                    if (lane == 0) mbar_arrive(bars + BAR_VEMPTY + vs * 8);
                    ++vc;
                }
                ++qc;
#else
                mbar_wait(bars + BAR_QFULL, qc & 1u);
#pragma unroll 1
                for (int j = 0; j < w.tiles; ++j) {
                    const u32 ks = kc & 1u, vs = vc & 1u;
                    const u32 kb_s = smem + OFF_K + ks * TILE_BYTES;
                    const u32 vb_s = smem + OFF_V + vs * TILE_BYTES;
                    mbar_wait(bars + BAR_KFULL + ks * 8, (kc >> 1) & 1u);
#pragma unroll 1
                    for (int hf = 0; hf < 2; ++hf) {
                        float s[32];
#pragma unroll
                        for (int i = 0; i < 32; ++i) s[i] = 0.0f;
#pragma unroll
                        for (int kk = 0; kk < 8; ++kk) {
                            u32 a0, a1, a2, a3;
                            ldsm4(tile_addr(smem + OFF_Q, warp * 16 + (lane & 15), kk * 2 + (lane >> 4)), a0, a1, a2,
                                  a3);
#pragma unroll
                            for (int nb = 0; nb < 4; ++nb) {
                                u32 b0, b1, b2, b3;
                                const int row = hf * 64 + nb * 16 + (lane & 7) + ((lane >> 4) << 3);
                                ldsm4(tile_addr(kb_s, row, kk * 2 + ((lane >> 3) & 1)), b0, b1, b2, b3);
                                mma16816(s[nb * 8 + 0], s[nb * 8 + 1], s[nb * 8 + 2], s[nb * 8 + 3], a0, a1, a2, a3,
                                         b0, b1);
                                mma16816(s[nb * 8 + 4], s[nb * 8 + 5], s[nb * 8 + 6], s[nb * 8 + 7], a0, a1, a2, a3,
                                         b2, b3);
                            }
                        }
                        if (!POS) scale_tile<32>(s, c);
                        if (j >= w.full) mask_tile<32>(s, lim - j * 128 - hf * 64);
                        float alpha[2];
                        softmax_step<32>(s, m, l, alpha, POS ? c : 1.0f);
                        rescale(o, alpha);
                        if (hf == 0) mbar_wait(bars + BAR_VFULL + vs * 8, (vc >> 1) & 1u);
#pragma unroll
                        for (int kb = 0; kb < 4; ++kb) {
                            const u32 a0 = pack_half2(s[kb * 8 + 0], s[kb * 8 + 1]);
                            const u32 a1 = pack_half2(s[kb * 8 + 2], s[kb * 8 + 3]);
                            const u32 a2 = pack_half2(s[kb * 8 + 4], s[kb * 8 + 5]);
                            const u32 a3 = pack_half2(s[kb * 8 + 6], s[kb * 8 + 7]);
#pragma unroll
                            for (int db = 0; db < 8; ++db) {
                                u32 b0, b1, b2, b3;
                                const int row = hf * 64 + kb * 16 + (lane & 7) + (((lane >> 3) & 1) << 3);
                                ldsm4t(tile_addr(vb_s, row, db * 2 + (lane >> 4)), b0, b1, b2, b3);
                                mma16816(o[db * 8 + 0], o[db * 8 + 1], o[db * 8 + 2], o[db * 8 + 3], a0, a1, a2, a3,
                                         b0, b1);
                                mma16816(o[db * 8 + 4], o[db * 8 + 5], o[db * 8 + 6], o[db * 8 + 7], a0, a1, a2, a3,
                                         b2, b3);
                            }
                        }
                    }
                    __syncwarp();
                    if (lane == 0) {
                        mbar_arrive(bars + BAR_KEMPTY + ks * 8);
                        mbar_arrive(bars + BAR_VEMPTY + vs * 8);
                        if (j == w.tiles - 1) mbar_arrive(bars + BAR_QEMPTY);
                    }
                    __syncwarp();
                    ++kc;
                    ++vc;
                }
                ++qc;
#endif
            }

            half* op = out + (long long)w.b * so_b + (long long)w.h * so_h;
            store_o(o, l, stage_o, op, so_s, w.row0 + warp * 16, seq_q, vec_o, lane);
        }
#if USE_WGMMA
        // takes the last signal, so that none is left over
        if (wg == 0) bar_sync(1);
#endif
    }
}
