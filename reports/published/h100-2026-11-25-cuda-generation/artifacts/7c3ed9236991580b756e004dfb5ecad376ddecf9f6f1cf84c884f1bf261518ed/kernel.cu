#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int BM = 128;
constexpr int BN = 128;
constexpr int ST = 3;             // stages of the K ring and of the V ring
constexpr u32 BLK = 128 * 128;    // bytes of 128 rows x 64 halves

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ATTN_WGMMA 1
#else
#define ATTN_WGMMA 0
#endif

// ------------------------------------------------------------------ helpers

__device__ __forceinline__ float neg_inf() { return __int_as_float((int)0xff800000u); }

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

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "LAB_WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra LAB_DONE;\n"
        "bra LAB_WAIT;\n"
        "LAB_DONE:\n"
        "}\n" ::"r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void bar_sync(int id, int n) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

__device__ __forceinline__ void bar_arrive(int id, int n) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}

__device__ __forceinline__ void cp16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp16z(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ void sts128(u32 a, u32 x, u32 y, u32 z, u32 w) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(a), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}

__device__ __forceinline__ void sts32(u32 a, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(x) : "memory");
}

__device__ __forceinline__ void lds128(u32 a, u32& x, u32& y, u32& z, u32& w) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(a) : "memory");
}

// A tile of 128 rows in shared memory: blocks of 64 columns, each 128 rows of 128 bytes,
// 16-byte chunk c of row r at place c ^ (r & 7). 128 threads load it.
template <int D, bool AL>
__device__ __forceinline__ void load_tile(const __half* g, long long stride, int valid, u32 dst,
                                          int tid) {
    constexpr int CH = D / 8;
    constexpr int RPI = 128 / CH;
    constexpr int IT = 128 / RPI;
    const int c = tid % CH;
    const int r0 = tid / CH;
    const u32 d = dst + (u32)(c >> 3) * BLK + (u32)r0 * 128u + (u32)(((c & 7) ^ (r0 & 7)) << 4);
    const __half* s = g + (long long)r0 * stride + c * 8;
    const long long inc = stride * RPI;
    if (AL) {
        if (valid >= 128) {
#pragma unroll
            for (int it = 0; it < IT; ++it) {
                cp16(d + it * (RPI * 128), s);
                s += inc;
            }
        } else {
#pragma unroll 4
            for (int it = 0; it < IT; ++it) {
                const bool ok = r0 + it * RPI < valid;
                cp16z(d + it * (RPI * 128), ok ? s : g, ok ? 16 : 0);
                s += inc;
            }
        }
    } else {
#pragma unroll 1
        for (int it = 0; it < IT; ++it) {
            u32 w0 = 0, w1 = 0, w2 = 0, w3 = 0;
            if (r0 + it * RPI < valid) {
                const unsigned short* x = reinterpret_cast<const unsigned short*>(s);
                w0 = (u32)x[0] | ((u32)x[1] << 16);
                w1 = (u32)x[2] | ((u32)x[3] << 16);
                w2 = (u32)x[4] | ((u32)x[5] << 16);
                w3 = (u32)x[6] | ((u32)x[7] << 16);
            }
            sts128(d + it * (RPI * 128), w0, w1, w2, w3);
            s += inc;
        }
    }
}

// A scale <= 0 is moved into Q, exactly: -q, or 0. The softmax then works with |scale|.
template <int D>
__device__ __forceinline__ void fix_q(u32 sq_wg, float scale, int t) {
#pragma unroll 1
    for (int cb = 0; cb < D / 64; ++cb) {
#pragma unroll 1
        for (int i = t; i < 512; i += 128) {
            const u32 a = sq_wg + (u32)cb * BLK + (u32)i * 16u;
            u32 x, y, z, w;
            lds128(a, x, y, z, w);
            if (scale < 0.f) {
                x ^= 0x80008000u; y ^= 0x80008000u; z ^= 0x80008000u; w ^= 0x80008000u;
            } else {
                x = 0; y = 0; z = 0; w = 0;
            }
            sts128(a, x, y, z, w);
        }
    }
}

// One step of the online softmax on a fragment of 64 x 128 per warpgroup (16 x 128 per warp).
// m is kept already scaled (by |scale| * log2 e); l is this thread's part of the sum.
template <bool MASK>
__device__ __forceinline__ void softmax_step(float (&s)[64], float (&m)[2], float (&l)[2],
                                             float (&a)[2], float sl2, int lim0, int lim1) {
    if (MASK) {
#pragma unroll
        for (int nb = 0; nb < 16; ++nb) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int c = nb * 8 + e;
                if (c > lim0) s[nb * 4 + e] = neg_inf();
                if (c > lim1) s[nb * 4 + 2 + e] = neg_inf();
            }
        }
    }
    float use[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float x = fmaxf(s[2 * r], s[2 * r + 1]);
        float y = fmaxf(s[4 + 2 * r], s[4 + 2 * r + 1]);
#pragma unroll
        for (int nb = 2; nb < 16; nb += 2) {
            x = fmaxf(x, s[nb * 4 + 2 * r]);
            y = fmaxf(y, s[nb * 4 + 4 + 2 * r]);
            x = fmaxf(x, s[nb * 4 + 2 * r + 1]);
            y = fmaxf(y, s[nb * 4 + 4 + 2 * r + 1]);
        }
        x = fmaxf(x, y);
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
        const float mn = fmaxf(m[r], x * sl2);
        use[r] = (mn == neg_inf()) ? 0.f : mn;
        a[r] = ex2(m[r] - use[r]);
        m[r] = mn;
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        s[i] = ex2(fmaf(s[i], sl2, -use[(i >> 1) & 1]));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float x = s[2 * r] + s[2 * r + 1];
        float y = s[4 + 2 * r] + s[4 + 2 * r + 1];
#pragma unroll
        for (int nb = 2; nb < 16; nb += 2) {
            x += s[nb * 4 + 2 * r];
            y += s[nb * 4 + 4 + 2 * r];
            x += s[nb * 4 + 2 * r + 1];
            y += s[nb * 4 + 4 + 2 * r + 1];
        }
        l[r] = l[r] * a[r] + (x + y);
    }
}

// Normalise and store through the (no longer needed) rows of Q in shared memory.
template <int D, bool AL>
__device__ __forceinline__ void store_out(float (&O)[D / 2], float (&l)[2], u32 sQ, int wl, int warp,
                                          int lane, __half* op, long long os, int row0, int seq_q) {
    float inv[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float x = l[r];
        x += __shfl_xor_sync(0xffffffffu, x, 1);
        x += __shfl_xor_sync(0xffffffffu, x, 2);
        inv[r] = (x > 0.f) ? (1.f / x) : 0.f;
    }
    bar_sync(3 + wl, 128);
    const int rb = wl * 64 + warp * 16;
    const int row = rb + (lane >> 2);
#pragma unroll
    for (int nb = 0; nb < D / 8; ++nb) {
        const u32 a = sQ + (u32)(nb >> 3) * BLK + (u32)row * 128u +
                      (u32)(((nb & 7) ^ (row & 7)) << 4) + (u32)(lane & 3) * 4u;
        sts32(a, pack2(O[nb * 4] * inv[0], O[nb * 4 + 1] * inv[0]));
        sts32(a + 8 * 128, pack2(O[nb * 4 + 2] * inv[1], O[nb * 4 + 3] * inv[1]));
    }
    __syncwarp();
    constexpr int CH = D / 8;
#pragma unroll 4
    for (int i = lane; i < 16 * CH; i += 32) {
        const int r = rb + i / CH;
        const int c = i % CH;
        u32 x, y, z, w;
        lds128(sQ + (u32)(c >> 3) * BLK + (u32)r * 128u + (u32)(((c & 7) ^ (r & 7)) << 4), x, y, z, w);
        if (row0 + r < seq_q) {
            __half* p = op + (long long)(row0 + r) * os + c * 8;
            if (AL) {
                *reinterpret_cast<uint4*>(p) = make_uint4(x, y, z, w);
            } else {
                unsigned short* t = reinterpret_cast<unsigned short*>(p);
                t[0] = (unsigned short)(x & 0xffffu); t[1] = (unsigned short)(x >> 16);
                t[2] = (unsigned short)(y & 0xffffu); t[3] = (unsigned short)(y >> 16);
                t[4] = (unsigned short)(z & 0xffffu); t[5] = (unsigned short)(z >> 16);
                t[6] = (unsigned short)(w & 0xffffu); t[7] = (unsigned short)(w >> 16);
            }
        }
    }
}

#if ATTN_WGMMA
// ------------------------------------------------------------------ WGMMA

#define AT_F4(d, i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define AT_F16(d, i) AT_F4(d, (i)), AT_F4(d, (i) + 4), AT_F4(d, (i) + 8), AT_F4(d, (i) + 12)
#define AT_F32(d) AT_F16(d, 0), AT_F16(d, 16)
#define AT_F64(d) AT_F16(d, 0), AT_F16(d, 16), AT_F16(d, 32), AT_F16(d, 48)

#define AT_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
              "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AT_R1 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
              "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
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

// 128-byte swizzle
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
    return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(sbo >> 4) << 32) |
           (1ull << 62);
}

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 a, u64 b, int acc) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" AT_R0 ", " AT_R1 "}, "
        "%64, %65, p, 1, 1, 0, 0;\n"
        "}\n"
        : AT_F64(d)
        : "l"(a), "l"(b), "r"(acc));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" AT_R0 ", " AT_R1 "}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : AT_F64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" AT_R0 "}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
        "}\n"
        : AT_F32(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1));
}

template <int D>
__device__ __forceinline__ void issue_qk(float (&S)[64], u64 dq, u64 dk) {
#pragma unroll
    for (int kk = 0; kk < D / 16; ++kk) {
        const u64 off = (u64)((kk >> 2) * (int)(BLK >> 4) + (kk & 3) * 2);
        wgmma_ss(S, dq + off, dk + off, kk > 0 ? 1 : 0);
    }
}

template <int N>
__device__ __forceinline__ void issue_pv(float (&O)[N], u32 (&P)[32], u64 dv) {
#pragma unroll
    for (int kk = 0; kk < BN / 16; ++kk) {
        wgmma_rs(O, P[kk * 4], P[kk * 4 + 1], P[kk * 4 + 2], P[kk * 4 + 3], dv + (u64)(kk * 128));
    }
}

struct Ctx {
    u64 dq, dk, dv;          // descriptors of Q's rows and of stage 0 of K and V
    u32 full_k, empty_k, full_v, empty_v;
    u32 ks, kp, vs, vp;      // next K tile and next V tile: stage and parity
    float sl2;
    int lim0, lim1;          // last visible column of the two rows, less this thread's column
    int own, other;          // named barriers that order the two warpgroups
    int lane;
};

__device__ __forceinline__ void advance(u32& s, u32& p) {
    if (++s == (u32)ST) {
        s = 0;
        p ^= 1u;
    }
}

// S_n = Q K_n^T and O += P_{n-1} V_{n-1} in flight together, softmax of S_n under the second
template <int D, bool MASK>
__device__ __forceinline__ void step(int n, Ctx& c, float (&O)[D / 2], u32 (&P)[32], float (&m)[2],
                                     float (&l)[2]) {
    constexpr u32 TILE = 128 * D * 2;
    float S[64];
    float a[2];
    mbar_wait(c.full_v + 8 * c.vs, c.vp);
    mbar_wait(c.full_k + 8 * c.ks, c.kp);
    fence_async();
    bar_sync(c.own, 256);
    keep(O);
    keep(P);
    wgmma_fence();
    issue_qk<D>(S, c.dq, c.dk + (u64)(c.ks * (TILE >> 4)));
    wgmma_commit();
    issue_pv(O, P, c.dv + (u64)(c.vs * (TILE >> 4)));
    wgmma_commit();
    bar_arrive(c.other, 256);
    wgmma_wait<1>();
    keep(S);
    if (c.lane == 0) mbar_arrive(c.empty_k + 8 * c.ks);
    softmax_step<MASK>(S, m, l, a, c.sl2, c.lim0 - n * BN, c.lim1 - n * BN);
    wgmma_wait<0>();
    keep(O);
    keep(P);
    if (c.lane == 0) mbar_arrive(c.empty_v + 8 * c.vs);
#pragma unroll
    for (int i = 0; i < 32; ++i) P[i] = pack2(S[2 * i], S[2 * i + 1]);
#pragma unroll
    for (int i = 0; i < D / 2; ++i) O[i] *= a[(i >> 1) & 1];
    advance(c.ks, c.kp);
    advance(c.vs, c.vp);
}

template <bool AL>
__device__ __forceinline__ void publish(u32 bar) {
    if (AL) {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
    } else {
        fence_async();
        mbar_arrive(bar);
    }
}

#else
// ------------------------------------------------------------------ mma.sync (plain sm_90)

__device__ __forceinline__ u32 tile_addr(u32 base, int row, int chunk) {
    return base + (u32)(chunk >> 3) * BLK + (u32)row * 128u + (u32)(((chunk & 7) ^ (row & 7)) << 4);
}

__device__ __forceinline__ void ldsm(u32 a, u32& x, u32& y, u32& z, u32& w) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(a) : "memory");
}

__device__ __forceinline__ void ldsm_t(u32 a, u32& x, u32& y, u32& z, u32& w) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(a) : "memory");
}

__device__ __forceinline__ void mma16816(float& c0, float& c1, float& c2, float& c3, u32 a0, u32 a1,
                                         u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

// ------------------------------------------------------------------ kernel

template <int D, bool AL>
__global__ void __launch_bounds__(384, 1)
attn_kernel(const __half* q, const __half* k, const __half* v, __half* out,
            long long q_b, long long q_s, long long q_h,
            long long k_b, long long k_s, long long k_h,
            long long v_b, long long v_s, long long v_h,
            long long o_b, long long o_s, long long o_h,
            int seq_q, int seq_k, int heads, int group, int bh_total, int section, float scale) {
    extern __shared__ unsigned char smem_raw[];
    constexpr u32 TILE = 128 * D * 2;
    const u32 base = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
    const u32 sQ = base;
    const u32 sK = base + TILE;
    const u32 sV = sK + ST * TILE;

    // which block: heads in sections that fit in L2, longest query tiles first
    const int n_tiles = (seq_q + BM - 1) / BM;
    const int idx = (int)blockIdx.x;
    const int per = section * n_tiles;
    const int sec = idx / per;
    const int rem = idx - sec * per;
    const int in_sec = min(section, bh_total - sec * section);
    const int i = rem / in_sec;
    const int bh = sec * section + (rem - i * in_sec);
    const int b = bh / heads;
    const int h = bh - b * heads;
    const int hk = h / group;
    const int qi = n_tiles - 1 - i;

    const int diag = seq_k - seq_q;
    const int row0 = qi * BM;
    const int full_num = row0 + diag + 1;
    const int full_tiles = full_num > 0 ? full_num / BN : 0;
    const int all_num = row0 + BM + diag;
    const int tiles = all_num > 0 ? min((seq_k + BN - 1) / BN, (all_num + BN - 1) / BN) : 0;

    const __half* qp = q + (long long)b * q_b + (long long)h * q_h + (long long)row0 * q_s;
    const __half* kp = k + (long long)b * k_b + (long long)hk * k_h;
    const __half* vp = v + (long long)b * v_b + (long long)hk * v_h;
    __half* op = out + (long long)b * o_b + (long long)h * o_h;

    const int tid = (int)threadIdx.x;
    const int wg = __shfl_sync(0xffffffffu, tid >> 7, 0);
    const int t = tid & 127;
    const int warp = t >> 5;
    const int lane = tid & 31;
    const float sl2 = (scale == 0.f) ? 1.f : fabsf(scale) * 1.4426950408889634f;

#if ATTN_WGMMA
    const u32 bars = sV + ST * TILE;
    const u32 bar_q = bars;
    const u32 full_k = bars + 8;
    const u32 empty_k = full_k + 8 * ST;
    const u32 full_v = empty_k + 8 * ST;
    const u32 empty_v = full_v + 8 * ST;
    if (tid == 0) {
        mbar_init(bar_q, 128);
        for (int s = 0; s < ST; ++s) {
            mbar_init(full_k + 8 * s, 128);
            mbar_init(empty_k + 8 * s, 8);
            mbar_init(full_v + 8 * s, 128);
            mbar_init(empty_v + 8 * s, 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
    }
    __syncthreads();

    if (wg == 0) {
        // ---------------- producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (tiles > 0) {
            load_tile<D, AL>(qp, q_s, seq_q - row0, sQ, t);
            publish<AL>(bar_q);
            u32 s = 0, p = 1;
#pragma unroll 1
            for (int j = 0; j < tiles; ++j) {
                const int valid = seq_k - j * BN;
                mbar_wait(empty_k + 8 * s, p);
                load_tile<D, AL>(kp, k_s, valid, sK + s * TILE, t);
                publish<AL>(full_k + 8 * s);
                mbar_wait(empty_v + 8 * s, p);
                load_tile<D, AL>(vp, v_s, valid, sV + s * TILE, t);
                publish<AL>(full_v + 8 * s);
                kp += k_s * BN;
                vp += v_s * BN;
                if (++s == (u32)ST) {
                    s = 0;
                    p ^= 1u;
                }
            }
            cp_wait_all();
        }
    } else {
        // ---------------- consumers: 64 rows each
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int wl = wg - 1;
        float O[D / 2];
        float m[2], l[2];
#pragma unroll
        for (int x = 0; x < D / 2; ++x) O[x] = 0.f;
        m[0] = m[1] = neg_inf();
        l[0] = l[1] = 0.f;

        if (tiles > 0) {
            u32 P[32];
            Ctx c;
            c.dq = make_desc(sQ + (u32)wl * 8192u, 16, 1024);
            c.dk = make_desc(sK, 16, 1024);
            c.dv = make_desc(sV, BLK, 1024);
            c.full_k = full_k;
            c.empty_k = empty_k;
            c.full_v = full_v;
            c.empty_v = empty_v;
            c.ks = 0;
            c.kp = 0;
            c.vs = 0;
            c.vp = 0;
            c.sl2 = sl2;
            const int qrow = row0 + wl * 64 + warp * 16 + (lane >> 2);
            c.lim0 = min(qrow + diag, seq_k - 1) - (lane & 3) * 2;
            c.lim1 = min(qrow + 8 + diag, seq_k - 1) - (lane & 3) * 2;
            c.own = 1 + wl;
            c.other = 2 - wl;
            c.lane = lane;

            mbar_wait(bar_q, 0);
            if (!(scale > 0.f)) {
                fix_q<D>(sQ + (u32)wl * 8192u, scale, t);
                fence_async();
                bar_sync(3 + wl, 128);
            }
            if (wl == 1) bar_arrive(1, 256);  // the first warpgroup may start

            {
                float S[64];
                float a[2];
                mbar_wait(full_k, 0);
                fence_async();
                wgmma_fence();
                issue_qk<D>(S, c.dq, c.dk);
                wgmma_commit();
                wgmma_wait<0>();
                keep(S);
                if (lane == 0) mbar_arrive(empty_k);
                if (full_tiles > 0) {
                    softmax_step<false>(S, m, l, a, sl2, 0, 0);
                } else {
                    softmax_step<true>(S, m, l, a, sl2, c.lim0, c.lim1);
                }
#pragma unroll
                for (int x = 0; x < 32; ++x) P[x] = pack2(S[2 * x], S[2 * x + 1]);
                advance(c.ks, c.kp);
            }

            int n = 1;
#pragma unroll 1
            for (; n < full_tiles; ++n) step<D, false>(n, c, O, P, m, l);
#pragma unroll 1
            for (; n < tiles; ++n) step<D, true>(n, c, O, P, m, l);

            mbar_wait(full_v + 8 * c.vs, c.vp);
            fence_async();
            keep(O);
            keep(P);
            wgmma_fence();
            issue_pv(O, P, c.dv + (u64)(c.vs * (TILE >> 4)));
            wgmma_commit();
            if (wl == 0) bar_sync(1, 256);  // takes the arrival that is left over
            wgmma_wait<0>();
            keep(O);
            keep(P);
        }
        store_out<D, AL>(O, l, sQ, wl, warp, lane, op, o_s, row0, seq_q);
    }
#else
    const int wl = wg - 1;
    float O[D / 2];
    float m[2], l[2];
#pragma unroll
    for (int x = 0; x < D / 2; ++x) O[x] = 0.f;
    m[0] = m[1] = neg_inf();
    l[0] = l[1] = 0.f;
    const int qrow = row0 + wl * 64 + warp * 16 + (lane >> 2);
    const int lim0 = min(qrow + diag, seq_k - 1) - (lane & 3) * 2;
    const int lim1 = min(qrow + 8 + diag, seq_k - 1) - (lane & 3) * 2;

    if (wg == 0 && tiles > 0) {
        load_tile<D, AL>(qp, q_s, seq_q - row0, sQ, t);
        load_tile<D, AL>(kp, k_s, seq_k, sK, t);
        load_tile<D, AL>(vp, v_s, seq_k, sV, t);
    }
#pragma unroll 1
    for (int j = 0; j < tiles; ++j) {
        if (wg == 0) cp_wait_all();
        __syncthreads();  // tile j is there, and everyone is done with tile j - 1
        if (wg == 0) {
            if (j + 1 < tiles) {
                const u32 off = (u32)((j + 1) & 1) * TILE;
                const int valid = seq_k - (j + 1) * BN;
                load_tile<D, AL>(kp + (long long)(j + 1) * BN * k_s, k_s, valid, sK + off, t);
                load_tile<D, AL>(vp + (long long)(j + 1) * BN * v_s, v_s, valid, sV + off, t);
            }
        } else {
            if (j == 0 && !(scale > 0.f)) {
                fix_q<D>(sQ + (u32)wl * 8192u, scale, t);
                bar_sync(3 + wl, 128);
            }
            const u32 tk = sK + (u32)(j & 1) * TILE;
            const u32 tv = sV + (u32)(j & 1) * TILE;
            float S[64];
            float a[2];
#pragma unroll
            for (int x = 0; x < 64; ++x) S[x] = 0.f;
            const int arow = wl * 64 + warp * 16 + (lane & 15);
#pragma unroll
            for (int kk = 0; kk < D / 16; ++kk) {
                u32 a0, a1, a2, a3;
                ldsm(tile_addr(sQ, arow, kk * 2 + (lane >> 4)), a0, a1, a2, a3);
#pragma unroll
                for (int nb = 0; nb < 16; nb += 2) {
                    u32 b0, b1, b2, b3;
                    ldsm(tile_addr(tk, nb * 8 + (lane & 7) + ((lane >> 4) << 3),
                                   kk * 2 + ((lane >> 3) & 1)), b0, b1, b2, b3);
                    mma16816(S[nb * 4], S[nb * 4 + 1], S[nb * 4 + 2], S[nb * 4 + 3],
                             a0, a1, a2, a3, b0, b1);
                    mma16816(S[nb * 4 + 4], S[nb * 4 + 5], S[nb * 4 + 6], S[nb * 4 + 7],
                             a0, a1, a2, a3, b2, b3);
                }
            }
            if (j < full_tiles) {
                softmax_step<false>(S, m, l, a, sl2, 0, 0);
            } else {
                softmax_step<true>(S, m, l, a, sl2, lim0 - j * BN, lim1 - j * BN);
            }
#pragma unroll
            for (int x = 0; x < D / 2; ++x) O[x] *= a[(x >> 1) & 1];
#pragma unroll
            for (int kb = 0; kb < 8; ++kb) {
                const u32 a0 = pack2(S[kb * 8], S[kb * 8 + 1]);
                const u32 a1 = pack2(S[kb * 8 + 2], S[kb * 8 + 3]);
                const u32 a2 = pack2(S[kb * 8 + 4], S[kb * 8 + 5]);
                const u32 a3 = pack2(S[kb * 8 + 6], S[kb * 8 + 7]);
#pragma unroll
                for (int nb = 0; nb < D / 8; nb += 2) {
                    u32 b0, b1, b2, b3;
                    ldsm_t(tile_addr(tv, kb * 16 + (lane & 7) + (((lane >> 3) & 1) << 3),
                                     nb + (lane >> 4)), b0, b1, b2, b3);
                    mma16816(O[nb * 4], O[nb * 4 + 1], O[nb * 4 + 2], O[nb * 4 + 3],
                             a0, a1, a2, a3, b0, b1);
                    mma16816(O[nb * 4 + 4], O[nb * 4 + 5], O[nb * 4 + 6], O[nb * 4 + 7],
                             a0, a1, a2, a3, b2, b3);
                }
            }
        }
    }
    if (wg != 0) {
        store_out<D, AL>(O, l, sQ, wl, warp, lane, op, o_s, row0, seq_q);
    }
#endif
}
