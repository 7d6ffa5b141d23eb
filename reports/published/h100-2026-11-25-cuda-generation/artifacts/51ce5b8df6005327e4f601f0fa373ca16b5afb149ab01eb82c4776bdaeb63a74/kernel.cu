// Causal grouped-query attention, head dimension 128, fp16, Hopper.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define USE_WGMMA 1
#else
#define USE_WGMMA 0
#endif

#define TILE_BYTES 32768u   // 128 rows x 128 halves
#define HALF_BYTES 16384u   // 128 rows x 64 halves, one swizzled panel

// offsets in shared memory
#define OFF_Q 0u
#define OFF_K 32768u
#define OFF_V 98304u
#define OFF_O 163840u
#define OFF_BAR 196608u

#define BAR_QFULL(b) ((b) + 0u)
#define BAR_QEMPTY(b) ((b) + 8u)
#define BAR_KFULL(b, s) ((b) + 16u + 8u * (s))
#define BAR_KEMPTY(b, s) ((b) + 32u + 8u * (s))
#define BAR_VFULL(b, s) ((b) + 48u + 8u * (s))
#define BAR_VEMPTY(b, s) ((b) + 64u + 8u * (s))

// ---------------------------------------------------------------- small helpers

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
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
  } while (!ok);
}

__device__ __forceinline__ void mbar_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void mbar_arrive_if(u32 bar, u32 cond) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "}\n" ::"r"(bar),
      "r"(cond)
      : "memory");
}

__device__ __forceinline__ void cp_async_arrive(u32 bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void cp_async16(u32 dst, const void* src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void cp_async16_zfill(u32 dst, const void* src, u32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void st_shared_v4(u32 dst, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

__device__ __forceinline__ void st_shared_b32(u32 dst, u32 a) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(dst), "r"(a) : "memory");
}

__device__ __forceinline__ void ld_shared_v4(u32 src, u32& a, u32& b, u32& c, u32& d) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(src)
               : "memory");
}

__device__ __forceinline__ void bar_sync_256(u32 id) {
  asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory");
}

__device__ __forceinline__ void bar_arrive_256(u32 id) {
  asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
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

template <int N>
__device__ __forceinline__ void fence_regs(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// ---------------------------------------------------------------- matrix products

#if USE_WGMMA

#define ACC4(d, i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define ACC16(d, i) ACC4(d, (i)), ACC4(d, (i) + 4), ACC4(d, (i) + 8), ACC4(d, (i) + 12)
#define ACC64(d) ACC16(d, 0), ACC16(d, 16), ACC16(d, 32), ACC16(d, 48)

#define DREGS                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, "                   \
  "%8, %9, %10, %11, %12, %13, %14, %15, "              \
  "%16, %17, %18, %19, %20, %21, %22, %23, "            \
  "%24, %25, %26, %27, %28, %29, %30, %31, "            \
  "%32, %33, %34, %35, %36, %37, %38, %39, "            \
  "%40, %41, %42, %43, %44, %45, %46, %47, "            \
  "%48, %49, %50, %51, %52, %53, %54, %55, "            \
  "%56, %57, %58, %59, %60, %61, %62, %63}"

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
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ void wgmma_ss(float (&d)[64], u64 da, u64 db, int scale_d) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " DREGS
      ", %64, %65, p, 1, 1, 0, 0;\n"
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
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " DREGS
      ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
      "}\n"
      : ACC64(d)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(db), "r"(scale_d));
}

// 128-byte swizzle; offsets in bytes
__device__ __forceinline__ u64 make_desc(u32 addr, u32 lbo, u32 sbo) {
  return (u64)((addr & 0x3FFFFu) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(sbo >> 4) << 32) |
         ((u64)1 << 62);
}

// S (64 x 128) = Q (64 x 128) K^T, both K-major
__device__ __forceinline__ void gemm_qk_async(float (&s)[64], u64 qd, u64 kd) {
#pragma unroll
  for (int kk = 0; kk < 8; ++kk) {
    const u64 off = (u64)((kk >> 2) * (HALF_BYTES >> 4) + (kk & 3) * 2);
    wgmma_ss(s, qd + off, kd + off, kk != 0 ? 1 : 0);
  }
}

// O (64 x 128) += P (64 x 128, registers) V (128 x 128, MN-major)
__device__ __forceinline__ void gemm_pv_async(float (&o)[64], const u32 (&p)[32], u64 vd) {
#pragma unroll
  for (int kk = 0; kk < 8; ++kk) {
    wgmma_rs(o, p[4 * kk], p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], vd + (u64)(kk * 128), 1);
  }
}

#else  // mma.sync

__device__ __forceinline__ u32 swz(u32 tile, int row, int chunk) {
  return tile + (u32)(chunk >> 3) * HALF_BYTES + (u32)row * 128u +
         (u32)(((chunk & 7) ^ (row & 7)) << 4);
}

__device__ __forceinline__ void ldsm4(u32 addr, u32& a, u32& b, u32& c, u32& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(addr)
               : "memory");
}

__device__ __forceinline__ void ldsm4t(u32 addr, u32& a, u32& b, u32& c, u32& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(addr)
               : "memory");
}

__device__ __forceinline__ void mma16816(float& d0, float& d1, float& d2, float& d3, u32 a0, u32 a1,
                                         u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void gemm_qk_sync(float (&s)[64], u32 sq, int row_base, u32 sk,
                                             int lane) {
#pragma unroll
  for (int i = 0; i < 64; ++i) s[i] = 0.f;
  const int arow = row_base + (lane & 7) + ((lane >> 3) & 1) * 8;
  const int brow = (lane & 7) + ((lane >> 4) & 1) * 8;
#pragma unroll
  for (int kk = 0; kk < 8; ++kk) {
    u32 a0, a1, a2, a3;
    ldsm4(swz(sq, arow, kk * 2 + (lane >> 4)), a0, a1, a2, a3);
#pragma unroll
    for (int np = 0; np < 8; ++np) {
      u32 b0, b1, b2, b3;
      ldsm4(swz(sk, np * 16 + brow, kk * 2 + ((lane >> 3) & 1)), b0, b1, b2, b3);
      mma16816(s[8 * np], s[8 * np + 1], s[8 * np + 2], s[8 * np + 3], a0, a1, a2, a3, b0, b1);
      mma16816(s[8 * np + 4], s[8 * np + 5], s[8 * np + 6], s[8 * np + 7], a0, a1, a2, a3, b2, b3);
    }
  }
}

__device__ __forceinline__ void gemm_pv_sync(float (&o)[64], const u32 (&p)[32], u32 sv, int lane) {
  const int brow = (lane & 7) + ((lane >> 3) & 1) * 8;
#pragma unroll
  for (int kk = 0; kk < 8; ++kk) {
#pragma unroll
    for (int np = 0; np < 8; ++np) {
      u32 b0, b1, b2, b3;
      ldsm4t(swz(sv, kk * 16 + brow, np * 2 + (lane >> 4)), b0, b1, b2, b3);
      mma16816(o[8 * np], o[8 * np + 1], o[8 * np + 2], o[8 * np + 3], p[4 * kk], p[4 * kk + 1],
               p[4 * kk + 2], p[4 * kk + 3], b0, b1);
      mma16816(o[8 * np + 4], o[8 * np + 5], o[8 * np + 6], o[8 * np + 7], p[4 * kk],
               p[4 * kk + 1], p[4 * kk + 2], p[4 * kk + 3], b2, b3);
    }
  }
}

#endif

// ---------------------------------------------------------------- producer copy

// A thread copies the 16-byte chunk of rows r, r+8, ..., r+120; `left` counts
// the valid rows from its first row on.
template <bool VEC>
__device__ __forceinline__ void load_tile(u32 dst, const u16* src, long long step, int left,
                                          const u16* safe) {
  if (VEC) {
    if (left > 120) {
#pragma unroll 8
      for (int i = 0; i < 16; ++i) {
        cp_async16(dst + (u32)i * 1024u, src);
        src += step;
      }
    } else {
#pragma unroll 4
      for (int i = 0; i < 16; ++i) {
        const bool ok = i * 8 < left;
        cp_async16_zfill(dst + (u32)i * 1024u, ok ? src : safe, ok ? 16u : 0u);
        src += step;
      }
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
      u32 w0 = 0, w1 = 0, w2 = 0, w3 = 0;
      if (i * 8 < left) {
        w0 = (u32)src[0] | ((u32)src[1] << 16);
        w1 = (u32)src[2] | ((u32)src[3] << 16);
        w2 = (u32)src[4] | ((u32)src[5] << 16);
        w3 = (u32)src[6] | ((u32)src[7] << 16);
      }
      st_shared_v4(dst + (u32)i * 1024u, w0, w1, w2, w3);
      src += step;
    }
  }
}

template <bool VEC>
__device__ __forceinline__ void signal_full(u32 bar) {
  if (VEC)
    cp_async_arrive(bar);
  else
    mbar_arrive(bar);
}

// ---------------------------------------------------------------- softmax

#define NEG_INF __int_as_float(0xff800000)

struct RowState {
  float m0, m1;  // raw running maxima
  float l0, l1;  // running sums, this thread's share
  float c0, c1;  // last rescaling factors
};

template <bool PRE, bool MASK>
__device__ __forceinline__ void softmax_tile(float (&s)[64], RowState& st, int lim0, float scale,
                                             float sl2) {
  if (PRE) {
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] *= scale;
  }
  if (MASK) {
    const int lim1 = lim0 + 8;
#pragma unroll
    for (int nb = 0; nb < 16; ++nb) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (nb * 8 + e > lim0) s[4 * nb + e] = NEG_INF;
        if (nb * 8 + e > lim1) s[4 * nb + 2 + e] = NEG_INF;
      }
    }
  }
  float a0 = s[0], a1 = s[1], b0 = s[2], b1 = s[3];
#pragma unroll
  for (int nb = 1; nb < 16; ++nb) {
    a0 = fmaxf(a0, s[4 * nb]);
    a1 = fmaxf(a1, s[4 * nb + 1]);
    b0 = fmaxf(b0, s[4 * nb + 2]);
    b1 = fmaxf(b1, s[4 * nb + 3]);
  }
  float x0 = fmaxf(fmaxf(a0, a1), st.m0);
  float x1 = fmaxf(fmaxf(b0, b1), st.m1);
  x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 1));
  x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 1));
  x0 = fmaxf(x0, __shfl_xor_sync(0xffffffffu, x0, 2));
  x1 = fmaxf(x1, __shfl_xor_sync(0xffffffffu, x1, 2));

  const float M0 = (x0 == NEG_INF) ? 0.f : __fmul_rn(x0, sl2);
  const float M1 = (x1 == NEG_INF) ? 0.f : __fmul_rn(x1, sl2);
  st.c0 = ex2(__fmul_rn(st.m0, sl2) - M0);
  st.c1 = ex2(__fmul_rn(st.m1, sl2) - M1);
  st.m0 = x0;
  st.m1 = x1;

  float t0 = 0.f, t1 = 0.f, u0 = 0.f, u1 = 0.f;
#pragma unroll
  for (int nb = 0; nb < 16; ++nb) {
    s[4 * nb] = ex2(fmaf(s[4 * nb], sl2, -M0));
    s[4 * nb + 1] = ex2(fmaf(s[4 * nb + 1], sl2, -M0));
    s[4 * nb + 2] = ex2(fmaf(s[4 * nb + 2], sl2, -M1));
    s[4 * nb + 3] = ex2(fmaf(s[4 * nb + 3], sl2, -M1));
    t0 += s[4 * nb];
    t1 += s[4 * nb + 1];
    u0 += s[4 * nb + 2];
    u1 += s[4 * nb + 3];
  }
  st.l0 = fmaf(st.l0, st.c0, t0 + t1);
  st.l1 = fmaf(st.l1, st.c1, u0 + u1);
}

__device__ __forceinline__ void pack_p(u32 (&p)[32], const float (&s)[64]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) p[i] = pack_half2(s[2 * i], s[2 * i + 1]);
}

__device__ __forceinline__ void rescale_o(float (&o)[64], float c0, float c1) {
#pragma unroll
  for (int nb = 0; nb < 16; ++nb) {
    o[4 * nb] *= c0;
    o[4 * nb + 1] *= c0;
    o[4 * nb + 2] *= c1;
    o[4 * nb + 3] *= c1;
  }
}

// ---------------------------------------------------------------- consumer step

struct Ctx {
  u32 sq, sk, sv, bars;
  u64 qd, kd, vd;
  int wg;        // consumer warpgroup, 0 or 1
  int row_base;  // first row of this warp inside the tile
  int lane;
  float scale, sl2;
};

// S = Q K_item^T and O += P V_{item-1}, then the softmax of S.
template <bool PRE, bool MASK>
__device__ __forceinline__ void step(const Ctx& c, float (&s)[64], float (&o)[64], u32 (&p)[32],
                                     RowState& st, u32 item, bool last, int lim0) {
  const u32 ki = item, vi = item - 1u;
  const u32 ks = ki & 1u, vs = vi & 1u;
  mbar_wait(BAR_KFULL(c.bars, ks), (ki >> 1) & 1u);
  mbar_wait(BAR_VFULL(c.bars, vs), (vi >> 1) & 1u);
  __syncwarp();
#if USE_WGMMA
  fence_proxy_async();
  bar_sync_256(1u + (u32)c.wg);
  fence_regs(s);
  fence_regs(o);
  wgmma_fence();
  gemm_qk_async(s, c.qd, c.kd + (u64)(ks * (TILE_BYTES >> 4)));
  wgmma_commit();
  gemm_pv_async(o, p, c.vd + (u64)(vs * (TILE_BYTES >> 4)));
  wgmma_commit();
  bar_arrive_256(2u - (u32)c.wg);
  wgmma_wait<1>();
  fence_regs(s);
#else
  gemm_pv_sync(o, p, c.sv + vs * TILE_BYTES, c.lane);
  gemm_qk_sync(s, c.sq, c.row_base, c.sk + ks * TILE_BYTES, c.lane);
  __syncwarp();
#endif
  mbar_arrive_if(BAR_KEMPTY(c.bars, ks), c.lane == 0 ? 1u : 0u);
  mbar_arrive_if(BAR_QEMPTY(c.bars), (c.lane == 0 && last) ? 1u : 0u);

  softmax_tile<PRE, MASK>(s, st, lim0, c.scale, c.sl2);

#if USE_WGMMA
  wgmma_wait<0>();
  fence_regs(o);
  fence_regs(s);
#endif
  mbar_arrive_if(BAR_VEMPTY(c.bars, vs), c.lane == 0 ? 1u : 0u);
  pack_p(p, s);
  rescale_o(o, st.c0, st.c1);
}

// ---------------------------------------------------------------- the kernel

template <bool VEC, bool PRE>
__global__ void __launch_bounds__(384, 1)
    attn_fwd(const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v,
             u16* __restrict__ out, long long sq0, long long sq1, long long sq2, long long sk0,
             long long sk1, long long sk2, long long sv0, long long sv1, long long sv2,
             long long so0, long long so1, long long so2, int batch, int heads, int group, int nq,
             int nk, float scale) {
  extern __shared__ unsigned char smem_raw[];
  const u32 sbase = ((u32)__cvta_generic_to_shared(smem_raw) + 1023u) & ~1023u;
  const u32 bars = sbase + OFF_BAR;

  const int warp = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 5), 0);
  const int lane = (int)(threadIdx.x & 31u);

  if (threadIdx.x == 0) {
    mbar_init(BAR_QFULL(bars), 128);
    mbar_init(BAR_QEMPTY(bars), 8);
    for (u32 i = 0; i < 2; ++i) {
      mbar_init(BAR_KFULL(bars, i), 128);
      mbar_init(BAR_KEMPTY(bars, i), 8);
      mbar_init(BAR_VFULL(bars, i), 128);
      mbar_init(BAR_VEMPTY(bars, i), 8);
    }
  }
  __syncthreads();

  const int diff = nk - nq;
  const int bh_total = batch * heads;
  const int m_blocks = (nq + 127) >> 7;
  const int num_tiles = m_blocks * bh_total;
  const int grid = (int)gridDim.x;
  const int bid = (int)blockIdx.x;

  if (warp < 4) {
    // ------------------------------------------------------------ producer
#if USE_WGMMA
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
    const int t = (int)threadIdx.x;
    const int ch = t & 15;
    const int tr = t >> 4;
    const u32 toff =
        (u32)(ch >> 3) * HALF_BYTES + (u32)tr * 128u + (u32)(((ch & 7) ^ tr) << 4);
    u32 it = 0, tc = 0;
    for (int round = 0;; ++round) {
      const int tile = round * grid + ((round & 1) ? grid - 1 - bid : bid);
      if (tile >= num_tiles) break;
      const int lvl = tile / bh_total;
      const int bh = tile - lvl * bh_total;
      const int b = bh / heads;
      const int h = bh - b * heads;
      const int g = h / group;
      const int r0 = (m_blocks - 1 - lvl) << 7;
      const int lim = min(r0 + 128, nq) + diff;
      const int n_end = lim <= 0 ? 0 : ((lim + 127) >> 7);
      if (n_end == 0) continue;

      {
        const u16* qp = q + (long long)b * sq0 + (long long)h * sq2 + (long long)(r0 + tr) * sq1 +
                        ch * 8;
        mbar_wait(BAR_QEMPTY(bars), (tc & 1u) ^ 1u);
        load_tile<VEC>(sbase + OFF_Q + toff, qp, sq1 * 8, nq - r0 - tr, q);
        signal_full<VEC>(BAR_QFULL(bars));
      }

      const u16* kp =
          k + (long long)b * sk0 + (long long)g * sk2 + (long long)tr * sk1 + ch * 8;
      const u16* vp =
          v + (long long)b * sv0 + (long long)g * sv2 + (long long)tr * sv1 + ch * 8;

      for (int j = 0; j <= n_end; ++j) {
        if (j < n_end) {
          const int n = n_end - 1 - j;
          const u32 item = it + (u32)j;
          const u32 sidx = item & 1u;
          mbar_wait(BAR_KEMPTY(bars, sidx), ((item >> 1) & 1u) ^ 1u);
          load_tile<VEC>(sbase + OFF_K + sidx * TILE_BYTES + toff, kp + (long long)(n * 128) * sk1,
                         sk1 * 8, nk - n * 128 - tr, k);
          signal_full<VEC>(BAR_KFULL(bars, sidx));
        }
        if (j > 0) {
          const int n = n_end - j;
          const u32 item = it + (u32)(j - 1);
          const u32 sidx = item & 1u;
          mbar_wait(BAR_VEMPTY(bars, sidx), ((item >> 1) & 1u) ^ 1u);
          load_tile<VEC>(sbase + OFF_V + sidx * TILE_BYTES + toff, vp + (long long)(n * 128) * sv1,
                         sv1 * 8, nk - n * 128 - tr, v);
          signal_full<VEC>(BAR_VFULL(bars, sidx));
        }
      }
      it += (u32)n_end;
      ++tc;
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
  } else {
    // ------------------------------------------------------------ consumers
#if USE_WGMMA
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
    Ctx c;
    c.wg = (warp >> 2) - 1;
    const int wi = warp & 3;
    c.lane = lane;
    c.row_base = c.wg * 64 + wi * 16;
    c.sq = sbase + OFF_Q;
    c.sk = sbase + OFF_K;
    c.sv = sbase + OFF_V;
    c.bars = bars;
    c.scale = scale;
    c.sl2 = PRE ? 1.4426950408889634f : scale * 1.4426950408889634f;
#if USE_WGMMA
    c.qd = make_desc(c.sq + (u32)c.wg * 8192u, 16u, 1024u);
    c.kd = make_desc(c.sk, 16u, 1024u);
    c.vd = make_desc(c.sv, HALF_BYTES, 1024u);
    if (c.wg == 1) bar_arrive_256(1u);  // warpgroup 0 goes first
#else
    c.qd = c.kd = c.vd = 0;
#endif
    const u32 so = sbase + OFF_O + (u32)(c.wg * 4 + wi) * 4096u;
    const int gr = lane >> 2;
    const int tq = lane & 3;

    float s[64];
    float o[64];
    u32 p[32];
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = 0.f;

    u32 it = 0, tc = 0;
    for (int round = 0;; ++round) {
      const int tile = round * grid + ((round & 1) ? grid - 1 - bid : bid);
      if (tile >= num_tiles) break;
      const int lvl = tile / bh_total;
      const int bh = tile - lvl * bh_total;
      const int r0 = (m_blocks - 1 - lvl) << 7;
      const int lim = min(r0 + 128, nq) + diff;
      const int n_end = lim <= 0 ? 0 : ((lim + 127) >> 7);
      const int full_keys = r0 + diff + 1;
      const int n_full = full_keys <= 0 ? 0 : (full_keys >> 7);

      RowState st;
      st.m0 = NEG_INF;
      st.m1 = NEG_INF;
      st.l0 = 0.f;
      st.l1 = 0.f;
      st.c0 = 0.f;
      st.c1 = 0.f;
#pragma unroll
      for (int i = 0; i < 64; ++i) o[i] = 0.f;

      if (n_end > 0) {
        // limit of the visible columns, relative to key 0 and this thread's columns
        const int lim_row = r0 + c.row_base + gr + diff - 2 * tq;

        // first key tile
        {
          const u32 ks = it & 1u;
          mbar_wait(BAR_QFULL(bars), tc & 1u);
          mbar_wait(BAR_KFULL(bars, ks), (it >> 1) & 1u);
          __syncwarp();
#if USE_WGMMA
          fence_proxy_async();
          fence_regs(s);
          wgmma_fence();
          gemm_qk_async(s, c.qd, c.kd + (u64)(ks * (TILE_BYTES >> 4)));
          wgmma_commit();
          wgmma_wait<0>();
          fence_regs(s);
#else
          gemm_qk_sync(s, c.sq, c.row_base, c.sk + ks * TILE_BYTES, lane);
          __syncwarp();
#endif
          mbar_arrive_if(BAR_KEMPTY(bars, ks), lane == 0 ? 1u : 0u);
          mbar_arrive_if(BAR_QEMPTY(bars), (lane == 0 && n_end == 1) ? 1u : 0u);
          softmax_tile<PRE, true>(s, st, lim_row - (n_end - 1) * 128, c.scale, c.sl2);
          pack_p(p, s);
        }

        const int jm = n_end - n_full;  // key tiles j < jm need the mask
        int j = 1;
        for (; j < jm; ++j) {
          step<PRE, true>(c, s, o, p, st, it + (u32)j, j == n_end - 1,
                          lim_row - (n_end - 1 - j) * 128);
        }
        for (; j < n_end; ++j) {
          step<PRE, false>(c, s, o, p, st, it + (u32)j, j == n_end - 1, 0);
        }

        // last P V
        {
          const u32 vi = it + (u32)(n_end - 1);
          const u32 vs = vi & 1u;
          mbar_wait(BAR_VFULL(bars, vs), (vi >> 1) & 1u);
          __syncwarp();
#if USE_WGMMA
          fence_proxy_async();
          fence_regs(o);
          wgmma_fence();
          gemm_pv_async(o, p, c.vd + (u64)(vs * (TILE_BYTES >> 4)));
          wgmma_commit();
          wgmma_wait<0>();
          fence_regs(o);
#else
          gemm_pv_sync(o, p, c.sv + vs * TILE_BYTES, lane);
          __syncwarp();
#endif
          mbar_arrive_if(BAR_VEMPTY(bars, vs), lane == 0 ? 1u : 0u);
        }
        it += (u32)n_end;
        ++tc;
      }

      // ---------------------------------------------------------- epilogue
      float l0 = st.l0, l1 = st.l1;
      l0 += __shfl_xor_sync(0xffffffffu, l0, 1);
      l1 += __shfl_xor_sync(0xffffffffu, l1, 1);
      l0 += __shfl_xor_sync(0xffffffffu, l0, 2);
      l1 += __shfl_xor_sync(0xffffffffu, l1, 2);
      const float i0 = l0 > 0.f ? 1.f / l0 : 0.f;
      const float i1 = l1 > 0.f ? 1.f / l1 : 0.f;
      const u32 wbase = so + (u32)gr * 256u + (u32)tq * 4u;
#pragma unroll
      for (int nb = 0; nb < 16; ++nb) {
        const u32 a = wbase + (u32)((nb ^ gr) << 4);
        st_shared_b32(a, pack_half2(o[4 * nb] * i0, o[4 * nb + 1] * i0));
        st_shared_b32(a + 2048u, pack_half2(o[4 * nb + 2] * i1, o[4 * nb + 3] * i1));
      }
      __syncwarp();
      const int b = bh / heads;
      const int h = bh - b * heads;
      const int wrow = r0 + c.row_base;
      const int cc = lane & 15;
      u16* op = out + (long long)b * so0 + (long long)h * so2 + cc * 8;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = 2 * i + (lane >> 4);
        u32 w0, w1, w2, w3;
        ld_shared_v4(so + (u32)row * 256u + (u32)((cc ^ (row & 7)) << 4), w0, w1, w2, w3);
        if (wrow + row < nq) {
          u16* dst = op + (long long)(wrow + row) * so1;
          if (VEC) {
            *reinterpret_cast<uint4*>(dst) = make_uint4(w0, w1, w2, w3);
          } else {
            dst[0] = (u16)(w0 & 0xffffu);
            dst[1] = (u16)(w0 >> 16);
            dst[2] = (u16)(w1 & 0xffffu);
            dst[3] = (u16)(w1 >> 16);
            dst[4] = (u16)(w2 & 0xffffu);
            dst[5] = (u16)(w2 >> 16);
            dst[6] = (u16)(w3 & 0xffffu);
            dst[7] = (u16)(w3 >> 16);
          }
        }
      }
      __syncwarp();
    }
#if USE_WGMMA
    if (c.wg == 0) bar_sync_256(1u);  // take the last pending arrival
#endif
  }
}
