#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define USE_WGMMA 1
#elif defined(__CUDA_ARCH_SPECIFIC__)
#if __CUDA_ARCH_SPECIFIC__ == 900
#define USE_WGMMA 1
#endif
#endif

#define NEG_INF __int_as_float(0xff800000)

// ---------------------------------------------------------------- common

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack2(float lo, float hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

__device__ __forceinline__ u32 smem_u32(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

template <bool AL>
__device__ __forceinline__ void copy16(u32 dst, const __half* src, bool ok) {
    if (AL) {
        int sz = ok ? 16 : 0;
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n"
                     :: "r"(dst), "l"(src), "r"(sz) : "memory");
    } else {
        const unsigned short* s = reinterpret_cast<const unsigned short*>(src);
        u32 w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 lo = ok ? (u32)s[2 * i] : 0u;
            u32 hi = ok ? (u32)s[2 * i + 1] : 0u;
            w[i] = lo | (hi << 16);
        }
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n"
                     :: "r"(dst), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
    }
}

// One step of the online softmax on the accumulator of a tile. A thread holds
// two rows: elements 4j, 4j+1 and 4j+2, 4j+3 at columns 8j+2t, 8j+2t+1.
template <int N, bool MASK>
__device__ __forceinline__ void softmax_step(float (&S)[N], float c, float& mc0, float& mc1,
                                             float& l0, float& l1, float& f0, float& f1,
                                             int lim0, int lim1, int t) {
    if (MASK) {
#pragma unroll
        for (int j = 0; j < N / 4; ++j) {
            int col = 8 * j + 2 * t;
            S[4 * j + 0] = (col <= lim0) ? S[4 * j + 0] : NEG_INF;
            S[4 * j + 1] = (col + 1 <= lim0) ? S[4 * j + 1] : NEG_INF;
            S[4 * j + 2] = (col <= lim1) ? S[4 * j + 2] : NEG_INF;
            S[4 * j + 3] = (col + 1 <= lim1) ? S[4 * j + 3] : NEG_INF;
        }
    }
    float a0 = S[0], a1 = S[1], b0 = S[2], b1 = S[3];
#pragma unroll
    for (int j = 1; j < N / 4; ++j) {
        a0 = fmaxf(a0, S[4 * j + 0]);
        a1 = fmaxf(a1, S[4 * j + 1]);
        b0 = fmaxf(b0, S[4 * j + 2]);
        b1 = fmaxf(b1, S[4 * j + 3]);
    }
    a0 = fmaxf(a0, a1);
    b0 = fmaxf(b0, b1);
    a0 = fmaxf(a0, __shfl_xor_sync(0xffffffffu, a0, 1));
    b0 = fmaxf(b0, __shfl_xor_sync(0xffffffffu, b0, 1));
    a0 = fmaxf(a0, __shfl_xor_sync(0xffffffffu, a0, 2));
    b0 = fmaxf(b0, __shfl_xor_sync(0xffffffffu, b0, 2));
    float m0 = fmaxf(mc0, a0 * c);
    float m1 = fmaxf(mc1, b0 * c);
    float u0 = m0, u1 = m1;
    if (MASK) {
        u0 = (m0 == NEG_INF) ? 0.f : m0;
        u1 = (m1 == NEG_INF) ? 0.f : m1;
    }
    f0 = ex2(mc0 - u0);
    f1 = ex2(mc1 - u1);
    mc0 = m0;
    mc1 = m1;
    float s0 = 0.f, s1 = 0.f, s2 = 0.f, s3 = 0.f;
#pragma unroll
    for (int j = 0; j < N / 4; ++j) {
        S[4 * j + 0] = ex2(fmaf(S[4 * j + 0], c, -u0));
        S[4 * j + 1] = ex2(fmaf(S[4 * j + 1], c, -u0));
        S[4 * j + 2] = ex2(fmaf(S[4 * j + 2], c, -u1));
        S[4 * j + 3] = ex2(fmaf(S[4 * j + 3], c, -u1));
        s0 += S[4 * j + 0];
        s1 += S[4 * j + 1];
        s2 += S[4 * j + 2];
        s3 += S[4 * j + 3];
    }
    l0 = fmaf(l0, f0, s0 + s1);
    l1 = fmaf(l1, f1, s2 + s3);
}

__device__ __forceinline__ void rescale(float (&O)[64], float f0, float f1) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        O[4 * j + 0] *= f0;
        O[4 * j + 1] *= f0;
        O[4 * j + 2] *= f1;
        O[4 * j + 3] *= f1;
    }
}

__device__ __forceinline__ void quad_transpose(u32& v0, u32& v1, u32& v2, u32& v3, int t) {
    const bool b = (t & 1) != 0;
    const bool c = (t & 2) != 0;
    u32 x = b ? v0 : v1;
    u32 y = b ? v2 : v3;
    x = __shfl_xor_sync(0xffffffffu, x, 1);
    y = __shfl_xor_sync(0xffffffffu, y, 1);
    if (b) { v0 = x; v2 = y; } else { v1 = x; v3 = y; }
    x = c ? v0 : v2;
    y = c ? v1 : v3;
    x = __shfl_xor_sync(0xffffffffu, x, 2);
    y = __shfl_xor_sync(0xffffffffu, y, 2);
    if (c) { v0 = x; v1 = y; } else { v2 = x; v3 = y; }
}

template <bool AL>
__device__ __forceinline__ void store_out(float (&O)[64], float l0, float l1, __half* ob,
                                          long long oss, int row0, int seq_q, int t) {
    l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
    l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
    l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
    float inv[2];
    inv[0] = l0 > 0.f ? 1.f / l0 : 0.f;
    inv[1] = l1 > 0.f ? 1.f / l1 : 0.f;
#pragma unroll
    for (int hf = 0; hf < 2; ++hf) {
        const int row = row0 + 8 * hf;
        const bool ok = row < seq_q;
        __half* p = ob + (long long)row * oss + 8 * t;
#pragma unroll
        for (int kb = 0; kb < 4; ++kb) {
            u32 w[4];
#pragma unroll
            for (int s = 0; s < 4; ++s) {
                const int e = 4 * (4 * kb + s) + 2 * hf;
                w[s] = pack2(O[e] * inv[hf], O[e + 1] * inv[hf]);
            }
            quad_transpose(w[0], w[1], w[2], w[3], t);
            if (ok) {
                if (AL) {
                    *reinterpret_cast<uint4*>(p + 32 * kb) = make_uint4(w[0], w[1], w[2], w[3]);
                } else {
                    unsigned short* ps = reinterpret_cast<unsigned short*>(p + 32 * kb);
#pragma unroll
                    for (int s = 0; s < 4; ++s) {
                        ps[2 * s] = (unsigned short)(w[s] & 0xffffu);
                        ps[2 * s + 1] = (unsigned short)(w[s] >> 16);
                    }
                }
            }
        }
    }
}

#ifdef USE_WGMMA
// ---------------------------------------------------------------- Hopper

#define F8(d, o)                                                                       \
    "+f"(d[o + 0]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3]), "+f"(d[o + 4]),    \
        "+f"(d[o + 5]), "+f"(d[o + 6]), "+f"(d[o + 7])
#define F64(d) F8(d, 0), F8(d, 8), F8(d, 16), F8(d, 24), F8(d, 32), F8(d, 40), F8(d, 48), F8(d, 56)
#define R64                                                                            \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

template <int SGN>
__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 a, u64 b, int sd) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " R64
        ", %64, %65, p, %67, 1, 0, 0;\n"
        "}\n"
        : F64(d)
        : "l"(a), "l"(b), "r"(sd), "n"(SGN));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " R64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
        "}\n"
        : F64(d)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1));
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" :: "n"(N) : "memory");
}
template <int N>
__device__ __forceinline__ void pin(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(r[i]) :: "memory");
}
template <int N>
__device__ __forceinline__ void pin(u32 (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(r[i]) :: "memory");
}

__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" :: "r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void mbar_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" :: "r"(bar) : "memory");
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
        "}\n"
        :: "r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ void named_sync(int id) { asm volatile("bar.sync %0, 256;\n" :: "r"(id) : "memory"); }
__device__ __forceinline__ void named_arrive(int id) { asm volatile("bar.arrive %0, 256;\n" :: "r"(id) : "memory"); }

template <bool AL>
__device__ __forceinline__ void producer_signal(u32 bar) {
    if (AL) {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" :: "r"(bar) : "memory");
    } else {
        fence_async();
        mbar_arrive(bar);
    }
}

// 128 rows x 128 columns as two halves of 64 columns, each row 128 bytes, 128B swizzle
template <bool AL>
__device__ __forceinline__ void load_tile(u32 dst, const __half* base, long long stride, int row0,
                                          int rows, int tid) {
    constexpr int U = AL ? 16 : 1;
    const int c = tid & 15, r = tid >> 4;
    dst += (c >> 3) * 16384 + r * 128 + (((c & 7) ^ r) << 4);
    const __half* p = base + (long long)(row0 + r) * stride + c * 8;
    const long long step = 8 * stride;
    if (row0 + 128 <= rows) {
#pragma unroll U
        for (int i = 0; i < 16; ++i) {
            copy16<AL>(dst + i * 1024, p, true);
            p += step;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 16; ++i) {
            const bool ok = row0 + r + 8 * i < rows;
            copy16<AL>(dst + i * 1024, ok ? p : base, ok);
            p += step;
        }
    }
}

template <int SGN>
__device__ __forceinline__ void issue_qk(float (&S)[64], u64 qd, u64 kd) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk) {
        const int off = (kk >> 2) * 1024 + (kk & 3) * 2;
        wgmma_ss<SGN>(S, qd + off, kd + off, kk != 0 ? 1 : 0);
    }
}

__device__ __forceinline__ void issue_pv(float (&O)[64], u32 (&P)[32], u64 vd) {
#pragma unroll
    for (int kk = 0; kk < 8; ++kk)
        wgmma_rs(O, P[4 * kk], P[4 * kk + 1], P[4 * kk + 2], P[4 * kk + 3], vd + kk * 128);
}

__device__ __forceinline__ void to_p(u32 (&P)[32], float (&S)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) P[i] = pack2(S[2 * i], S[2 * i + 1]);
}

struct Bars {
    u32 qfull, qempty, kfull, kempty, vfull, vempty;
};

template <int SGN, bool MASK>
__device__ __forceinline__ void step(float (&O)[64], u32 (&P)[32], u64 qd, u64 kbase, u64 vbase,
                                     const Bars& bars, u32& kit, u32& vit, int wg, int lane, int t,
                                     float c, float& mc0, float& mc1, float& l0, float& l1,
                                     int lim0, int lim1) {
    float S[64];
    const u32 ks = kit & 1, kph = (kit >> 1) & 1;
    const u32 vs = vit & 1, vph = (vit >> 1) & 1;
    mbar_wait(bars.kfull + 8 * ks, kph);
    fence_async();
    named_sync(1 + wg);
    pin(O);
    pin(P);
    wgmma_fence();
    issue_qk<SGN>(S, qd, kbase + (u64)(ks * 2048));
    wgmma_commit();
    mbar_wait(bars.vfull + 8 * vs, vph);
    fence_async();
    wgmma_fence();
    issue_pv(O, P, vbase + (u64)(vs * 2048));
    wgmma_commit();
    named_arrive(2 - wg);
    wgmma_wait<1>();
    pin(S);
    if (lane == 0) mbar_arrive(bars.kempty + 8 * ks);
    ++kit;
    float f0, f1;
    softmax_step<64, MASK>(S, c, mc0, mc1, l0, l1, f0, f1, lim0, lim1, t);
    wgmma_wait<0>();
    pin(O);
    pin(P);
    if (lane == 0) mbar_arrive(bars.vempty + 8 * vs);
    ++vit;
    to_p(P, S);
    rescale(O, f0, f1);
}
#endif

// ---------------------------------------------------------------- kernel

template <int SGN, bool AL>
__global__ void __launch_bounds__(384, 1)
attn_fwd(const __half* q, const __half* k, const __half* v, __half* out,
         long long qsb, long long qss, long long qsh,
         long long ksb, long long kss, long long ksh,
         long long vsb, long long vss, long long vsh,
         long long osb, long long oss, long long osh,
         int batch, int heads, int kv_heads, int seq_q, int seq_k, float scale) {
    extern __shared__ unsigned char smem_raw[];
    const u32 sbase = (smem_u32(smem_raw) + 1023u) & ~1023u;

    const int G = (int)gridDim.x;
    const int cta = (int)blockIdx.x;
    const int nM = (seq_q + 127) / 128;
    const int BH = batch * heads;
    const int total = nM * BH;
    const int group = heads / kv_heads;
    const int D = seq_k - seq_q;
    const float c = scale * 1.4426950408889634f;

#ifdef USE_WGMMA
    const u32 sQ = sbase;
    const u32 sK = sbase + 65536;
    const u32 sV = sbase + 131072;
    const u32 sB = sbase + 196608;
    Bars bars;
    bars.qfull = sB;
    bars.qempty = sB + 16;
    bars.kfull = sB + 32;
    bars.kempty = sB + 48;
    bars.vfull = sB + 64;
    bars.vempty = sB + 80;

    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) {
            mbar_init(bars.qfull + 8 * i, 128);
            mbar_init(bars.kfull + 8 * i, 128);
            mbar_init(bars.vfull + 8 * i, 128);
            mbar_init(bars.qempty + 8 * i, 8);
            mbar_init(bars.kempty + 8 * i, 8);
            mbar_init(bars.vempty + 8 * i, 8);
        }
        fence_async();
    }
    __syncthreads();

    const int wgi = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 7), 0);

    if (wgi == 0) {
        // ------------------------------------------------ producer
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;\n");
        const int tid = (int)threadIdx.x;
        u32 qit = 0, kit = 0, vit = 0;
        for (int r = 0; r * G < total; ++r) {
            const int idx = r * G + ((r & 1) ? (G - 1 - cta) : cta);
            if (idx >= total) continue;
            const int m = nM - 1 - idx / BH;
            const int bh = idx % BH;
            const int b = bh / heads, h = bh % heads;
            const int kvh = h / group;
            const int row_last = min(m * 128 + 127, seq_q - 1);
            const int kmax = min(seq_k, row_last + D + 1);
            const int nt = kmax <= 0 ? 0 : (kmax + 127) / 128;
            if (nt == 0) continue;
            const __half* qb = q + (long long)b * qsb + (long long)h * qsh;
            const __half* kb = k + (long long)b * ksb + (long long)kvh * ksh;
            const __half* vb = v + (long long)b * vsb + (long long)kvh * vsh;

            mbar_wait(bars.qempty + 8 * (qit & 1), ((qit >> 1) & 1) ^ 1);
            load_tile<AL>(sQ + (qit & 1) * 32768, qb, qss, m * 128, seq_q, tid);
            producer_signal<AL>(bars.qfull + 8 * (qit & 1));
            ++qit;

            // K(nt-1), then K(n), V(n+1) in turn, then V(0)
#pragma unroll 1
            for (int n = nt - 1; n >= -1; --n) {
                if (n >= 0) {
                    mbar_wait(bars.kempty + 8 * (kit & 1), ((kit >> 1) & 1) ^ 1);
                    load_tile<AL>(sK + (kit & 1) * 32768, kb, kss, n * 128, seq_k, tid);
                    producer_signal<AL>(bars.kfull + 8 * (kit & 1));
                    ++kit;
                }
                if (n < nt - 1) {
                    mbar_wait(bars.vempty + 8 * (vit & 1), ((vit >> 1) & 1) ^ 1);
                    load_tile<AL>(sV + (vit & 1) * 32768, vb, vss, (n + 1) * 128, seq_k, tid);
                    producer_signal<AL>(bars.vfull + 8 * (vit & 1));
                    ++vit;
                }
            }
        }
        asm volatile("cp.async.wait_all;\n" ::: "memory");
    } else {
        // ------------------------------------------------ consumers
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;\n");
        const int wg = wgi - 1;
        const int tid = (int)threadIdx.x & 127;
        const int lane = tid & 31;
        const int t = lane & 3;
        u32 qit = 0, kit = 0, vit = 0;

        const u64 swz = (u64)1 << 62;
        const u64 sbo = (u64)64 << 32;
        const u64 qbase = swz | sbo | ((u64)1 << 16) | (u64)((sQ + wg * 8192) >> 4);
        const u64 kbase = swz | sbo | ((u64)1 << 16) | (u64)(sK >> 4);
        const u64 vbase = swz | sbo | ((u64)1024 << 16) | (u64)(sV >> 4);

        if (wg == 1) named_arrive(1);  // warpgroup 0 goes first

        for (int r = 0; r * G < total; ++r) {
            const int idx = r * G + ((r & 1) ? (G - 1 - cta) : cta);
            if (idx >= total) continue;
            const int m = nM - 1 - idx / BH;
            const int bh = idx % BH;
            const int b = bh / heads, h = bh % heads;
            const int row_last = min(m * 128 + 127, seq_q - 1);
            const int kmax = min(seq_k, row_last + D + 1);
            const int nt = kmax <= 0 ? 0 : (kmax + 127) / 128;
            const int rw = m * 128 + wg * 64;  // first row of this warpgroup
            const int row0 = rw + (tid >> 5) * 16 + (lane >> 2);
            const int vis = min(seq_k, rw + D + 1);
            const int nfull = vis <= 0 ? 0 : vis / 128;
            const int lim0 = min(seq_k - 1, row0 + D);
            const int lim1 = min(seq_k - 1, row0 + 8 + D);

            float O[64];
#pragma unroll
            for (int i = 0; i < 64; ++i) O[i] = 0.f;
            float l0 = 0.f, l1 = 0.f;

            if (nt > 0) {
                float mc0 = NEG_INF, mc1 = NEG_INF;
                u32 P[32];
                const u32 qs = qit & 1;
                const u64 qd = qbase + (u64)(qs * 2048);
                mbar_wait(bars.qfull + 8 * qs, (qit >> 1) & 1);
                ++qit;
                {
                    float S[64];
                    const u32 ks = kit & 1;
                    mbar_wait(bars.kfull + 8 * ks, (kit >> 1) & 1);
                    fence_async();
                    wgmma_fence();
                    issue_qk<SGN>(S, qd, kbase + (u64)(ks * 2048));
                    wgmma_commit();
                    wgmma_wait<0>();
                    pin(S);
                    if (lane == 0) mbar_arrive(bars.kempty + 8 * ks);
                    ++kit;
                    float f0, f1;
                    const int o = (nt - 1) * 128;
                    softmax_step<64, true>(S, c, mc0, mc1, l0, l1, f0, f1, lim0 - o, lim1 - o, t);
                    to_p(P, S);
                }
                int n = nt - 2;
#pragma unroll 1
                for (; n >= nfull && n >= 0; --n)
                    step<SGN, true>(O, P, qd, kbase, vbase, bars, kit, vit, wg, lane, t, c, mc0,
                                    mc1, l0, l1, lim0 - n * 128, lim1 - n * 128);
#pragma unroll 1
                for (; n >= 0; --n)
                    step<SGN, false>(O, P, qd, kbase, vbase, bars, kit, vit, wg, lane, t, c, mc0,
                                     mc1, l0, l1, 0, 0);
                if (lane == 0) mbar_arrive(bars.qempty + 8 * qs);

                const u32 vs = vit & 1;
                mbar_wait(bars.vfull + 8 * vs, (vit >> 1) & 1);
                fence_async();
                pin(O);
                pin(P);
                wgmma_fence();
                issue_pv(O, P, vbase + (u64)(vs * 2048));
                wgmma_commit();
                wgmma_wait<0>();
                pin(O);
                if (lane == 0) mbar_arrive(bars.vempty + 8 * vs);
                ++vit;
            }
            __half* ob = out + (long long)b * osb + (long long)h * osh;
            store_out<AL>(O, l0, l1, ob, oss, row0, seq_q, t);
        }
    }
#else
    // ------------------------------------------------ plain sm_90: mma.sync
    const u32 sQ = sbase;
    const u32 sK = sbase + 32768;
    const u32 sV = sbase + 65536;
    const int tid = (int)threadIdx.x;
    const int warp = tid >> 5, lane = tid & 31, t = lane & 3;

    for (int r = 0; r * G < total; ++r) {
        const int idx = r * G + ((r & 1) ? (G - 1 - cta) : cta);
        if (idx >= total) continue;
        const int m = nM - 1 - idx / BH;
        const int bh = idx % BH;
        const int b = bh / heads, h = bh % heads;
        const int kvh = h / group;
        const int row_last = min(m * 128 + 127, seq_q - 1);
        const int kmax = min(seq_k, row_last + D + 1);
        const int nt = kmax <= 0 ? 0 : (kmax + 63) / 64;
        const int row0 = m * 128 + warp * 16 + (lane >> 2);
        const int lim0 = min(seq_k - 1, row0 + D);
        const int lim1 = min(seq_k - 1, row0 + 8 + D);
        const __half* qb = q + (long long)b * qsb + (long long)h * qsh;
        const __half* kb = k + (long long)b * ksb + (long long)kvh * ksh;
        const __half* vb = v + (long long)b * vsb + (long long)kvh * vsh;

        float O[64];
#pragma unroll
        for (int i = 0; i < 64; ++i) O[i] = 0.f;
        float l0 = 0.f, l1 = 0.f, mc0 = NEG_INF, mc1 = NEG_INF;

        __syncthreads();
        if (nt > 0) {
            for (int i = tid; i < 128 * 16; i += 384) {
                const int rr = i >> 4, cc = i & 15;
                const bool ok = m * 128 + rr < seq_q;
                copy16<AL>(sQ + rr * 256 + ((cc ^ (rr & 7)) << 4),
                           ok ? qb + (long long)(m * 128 + rr) * qss + cc * 8 : qb, ok);
            }
        }
#pragma unroll 1
        for (int n = -1; n < nt; ++n) {
            if (n + 1 < nt) {
                const u32 so = ((n + 1) & 1) * 16384;
                for (int i = tid; i < 64 * 16; i += 384) {
                    const int rr = i >> 4, cc = i & 15;
                    const int key = (n + 1) * 64 + rr;
                    const bool ok = key < seq_k;
                    const u32 o = so + rr * 256 + ((cc ^ (rr & 7)) << 4);
                    copy16<AL>(sK + o, ok ? kb + (long long)key * kss + cc * 8 : kb, ok);
                    copy16<AL>(sV + o, ok ? vb + (long long)key * vss + cc * 8 : vb, ok);
                }
            }
            asm volatile("cp.async.commit_group;\n" ::: "memory");
            if (n < 0) continue;
            asm volatile("cp.async.wait_group 1;\n" ::: "memory");
            __syncthreads();
            if (warp < 8) {
                const u32 kst = sK + (n & 1) * 16384;
                const u32 vst = sV + (n & 1) * 16384;
                float S[32];
#pragma unroll
                for (int i = 0; i < 32; ++i) S[i] = 0.f;
#pragma unroll
                for (int kk = 0; kk < 8; ++kk) {
                    u32 a[4];
                    {
                        const int rr = warp * 16 + (lane & 15);
                        const int cc = 2 * kk + (lane >> 4);
                        const u32 ad = sQ + rr * 256 + ((cc ^ (rr & 7)) << 4);
                        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                                     : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                                     : "r"(ad) : "memory");
                    }
#pragma unroll
                    for (int nb = 0; nb < 4; ++nb) {
                        u32 w[4];
                        const int rr = nb * 16 + (lane & 7) + ((lane >> 4) << 3);
                        const int cc = 2 * kk + ((lane >> 3) & 1);
                        const u32 ad = kst + rr * 256 + ((cc ^ (rr & 7)) << 4);
                        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                                     : "r"(ad) : "memory");
#pragma unroll
                        for (int x = 0; x < 2; ++x) {
                            const int e = (2 * nb + x) * 4;
                            asm volatile(
                                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                                : "+f"(S[e]), "+f"(S[e + 1]), "+f"(S[e + 2]), "+f"(S[e + 3])
                                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(w[2 * x]),
                                  "r"(w[2 * x + 1]));
                        }
                    }
                }
                if (SGN < 0) {
#pragma unroll
                    for (int i = 0; i < 32; ++i) S[i] = -S[i];
                }
                float f0, f1;
                softmax_step<32, true>(S, c, mc0, mc1, l0, l1, f0, f1, lim0 - n * 64,
                                       lim1 - n * 64, t);
                rescale(O, f0, f1);
#pragma unroll
                for (int kk = 0; kk < 4; ++kk) {
                    const u32 a0 = pack2(S[8 * kk + 0], S[8 * kk + 1]);
                    const u32 a1 = pack2(S[8 * kk + 2], S[8 * kk + 3]);
                    const u32 a2 = pack2(S[8 * kk + 4], S[8 * kk + 5]);
                    const u32 a3 = pack2(S[8 * kk + 6], S[8 * kk + 7]);
#pragma unroll
                    for (int db = 0; db < 8; ++db) {
                        u32 w[4];
                        const int rr = kk * 16 + (lane & 7) + (((lane >> 3) & 1) << 3);
                        const int cc = 2 * db + (lane >> 4);
                        const u32 ad = vst + rr * 256 + ((cc ^ (rr & 7)) << 4);
                        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                                     : "r"(ad) : "memory");
#pragma unroll
                        for (int x = 0; x < 2; ++x) {
                            const int e = (2 * db + x) * 4;
                            asm volatile(
                                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                                : "+f"(O[e]), "+f"(O[e + 1]), "+f"(O[e + 2]), "+f"(O[e + 3])
                                : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(w[2 * x]),
                                  "r"(w[2 * x + 1]));
                        }
                    }
                }
            }
            __syncthreads();
        }
        if (warp < 8) {
            __half* ob = out + (long long)b * osb + (long long)h * osh;
            store_out<AL>(O, l0, l1, ob, oss, row0, seq_q, t);
        }
    }
    asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}
