// Flash attention forward in CuTe: a block owns BM queries and walks over the keys in tiles of BN.
//
// Layouts say where elements lie, tiled copies and a tiled MMA say which thread has which of them. Scores stay in
// registers: the accumulator of Q K^T becomes the first operand of P V by a change of layout alone.
#include <cute/tensor.hpp>

using namespace cute;

#if __CUDA_ARCH__ >= 800
template <class T> struct Mma { using atom = SM80_16x8x16_F32F16F16F32_TN; };
template <> struct Mma<bfloat16_t> { using atom = SM80_16x8x16_F32BF16BF16F32_TN; };
#else
template <class T> struct Mma { using atom = SM75_16x8x8_F32F16F16F32_TN; };
#endif
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// A tile of rows of D elements in shared memory, swizzled so that ldmatrix meets no bank twice.
template <int ROWS, int D>
using Rows = decltype(tile_to_shape(
    composition(Swizzle<3, 3, 3>{}, Layout<Shape<_8, _64>, Stride<_64, _1>>{}), Shape<Int<ROWS>, Int<D>>{}));

// Rows from device memory to shared memory, sixteen bytes a thread; rows past the end are zeros.
template <class Copy, class G, class S> __device__ void bring(Copy const& how, G const& from, S&& to, int rows) {
    auto mine = how.get_slice(threadIdx.x);
    Tensor source = mine.partition_S(from);
    Tensor target = mine.partition_D(to);
    Tensor where = mine.partition_S(make_identity_tensor(shape(from)));
    CUTE_UNROLL
    for (int m = 0; m < size<1>(source); ++m) {
        if (get<0>(where(0, m, 0)) < rows) copy(how, source(_, m, _), target(_, m, _));
        else clear(target(_, m, _));
    }
}

// An accumulator ((2, 2), M, N) as rows and columns.
template <class L> __device__ auto rows_of(L const& acc) {
    auto split = logical_divide(acc, Shape<_2>{});
    return make_layout(
        make_layout(get<0, 1>(split), get<1>(split)), make_layout(get<0, 0>(split), get<2>(split)));
}

// ... and as the first operand of a product over 16 columns: ((2, 2, 2), M, N / 2). Over 8 it is one already.
template <class L> __device__ auto operand_of(L const& acc) {
#if __CUDA_ARCH__ >= 800
    auto split = logical_divide(acc, Shape<Underscore, Underscore, _2>{});
    return make_layout(
        make_layout(get<0, 0>(split), get<0, 1>(split), get<2, 0>(split)), get<1>(split), get<2, 1>(split));
#else
    return acc;
#endif
}

template <class T, int D, int BM, int BN, int WARPS, bool CAUSAL>
__global__ void __launch_bounds__(32 * WARPS) attention(
    const T* q, long long q_batch, long long q_row, long long q_head,
    const T* k, long long k_batch, long long k_row, long long k_head,
    const T* v, long long v_batch, long long v_row, long long v_head,
    T* out, long long out_batch, long long out_row, long long out_head,
    int seq_q, int seq_k, int group, float scale_log2) {
    extern __shared__ __align__(128) unsigned char bytes[];
    const int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, batch = blockIdx.z;  // the longest first
    const int row0 = block * BM, shift = seq_k - seq_q;
    const int tiles = max(0, ((CAUSAL ? min(seq_k, row0 + BM + shift) : seq_k) + BN - 1) / BN);

    auto rows_from = [](auto* start, long long stride, auto rows) {
        return make_tensor(make_gmem_ptr(start), make_shape(rows, Int<D>{}), make_stride(stride, _1{}));
    };
    T* base = reinterpret_cast<T*>(bytes);
    Tensor sQ = make_tensor(make_smem_ptr(base), Rows<BM, D>{});
    Tensor sK = make_tensor(make_smem_ptr(base + BM * D), Rows<BN, D>{});
    Tensor sV = make_tensor(make_smem_ptr(base + (BM + BN) * D), Rows<BN, D>{});
    // V as (D, BN), for the product that sums over keys
    Tensor sVt = make_tensor(sV.data(), composition(
        Rows<BN, D>{}, make_layout(Shape<Int<D>, Int<BN>>{}, make_stride(Int<BN>{}, _1{}))));

    auto fetch = make_tiled_copy(
        Copy_Atom<UniversalCopy<uint128_t>, T>{}, Layout<Shape<Int<4 * WARPS>, _8>, Stride<_8, _1>>{},
        Layout<Shape<_1, _8>>{});
    auto mma = make_tiled_mma(
        typename Mma<T>::atom{}, Layout<Shape<Int<WARPS>, _1, _1>>{}, cute::Tile<Int<16 * WARPS>, _16, _16>{});
    auto mine = mma.get_slice(threadIdx.x);
    Tensor rQ = mine.partition_fragment_A(sQ);
    Tensor rK = mine.partition_fragment_B(sK);
    Tensor rV = mine.partition_fragment_B(sVt);
    Tensor rO = partition_fragment_C(mma, Shape<Int<BM>, Int<D>>{});
    auto load_q = make_tiled_copy_A(Copy_Atom<SM75_U32x4_LDSM_N, T>{}, mma);
    auto load_k = make_tiled_copy_B(Copy_Atom<SM75_U32x4_LDSM_N, T>{}, mma);
    auto load_v = make_tiled_copy_B(Copy_Atom<SM75_U16x8_LDSM_T, T>{}, mma);

    bring(fetch, rows_from(q + batch * q_batch + head * q_head + row0 * q_row, q_row, Int<BM>{}), sQ, seq_q - row0);
    __syncthreads();
    copy(load_q, load_q.get_slice(threadIdx.x).partition_S(sQ), load_q.get_slice(threadIdx.x).retile_D(rQ));
    clear(rO);
    Tensor result = make_tensor(rO.data(), rows_of(rO.layout()));
    float top[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0.f, 0.f};
    const int my_row = row0 + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, my_col = threadIdx.x % 4 * 2;

    for (int n = 0; n < tiles; ++n) {
        const long long at = n * BN;
        const int kv = head / group;
        __syncthreads();  // the last tile has been read
        bring(fetch, rows_from(k + batch * k_batch + kv * k_head + at * k_row, k_row, Int<BN>{}), sK, seq_k - n * BN);
        bring(fetch, rows_from(v + batch * v_batch + kv * v_head + at * v_row, v_row, Int<BN>{}), sV, seq_k - n * BN);
        __syncthreads();

        Tensor acc = partition_fragment_C(mma, Shape<Int<BM>, Int<BN>>{});
        clear(acc);
        copy(load_k, load_k.get_slice(threadIdx.x).partition_S(sK), load_k.get_slice(threadIdx.x).retile_D(rK));
        gemm(mma, rQ, rK, acc);

        Tensor s = make_tensor(acc.data(), rows_of(acc.layout()));
        CUTE_UNROLL
        for (int r = 0; r < size<0>(s); ++r) {
            const int last = CAUSAL ? min(seq_k - 1, my_row + 8 * r + shift) : seq_k - 1;
            float next = top[r];
            CUTE_UNROLL
            for (int c = 0; c < size<1>(s); ++c) {
                if (n * BN + my_col + c / 2 * 8 + c % 2 > last) s(r, c) = NEGATIVE_INFINITY;
                next = fmaxf(next, s(r, c));
            }
            next = fmaxf(next, __shfl_xor_sync(~0u, next, 1));
            next = fmaxf(next, __shfl_xor_sync(~0u, next, 2));
            const float taken = next == NEGATIVE_INFINITY ? 0.f : next * scale_log2;  // a row that has seen no key
            const float decay = exp2f(top[r] * scale_log2 - taken);
            top[r] = next;
            sum[r] *= decay;
            CUTE_UNROLL
            for (int c = 0; c < size<1>(s); ++c) {
                s(r, c) = exp2f(s(r, c) * scale_log2 - taken);
                sum[r] += s(r, c);
            }
            CUTE_UNROLL
            for (int c = 0; c < size<1>(result); ++c) result(r, c) *= decay;
        }
        Tensor p = make_fragment_like<T>(acc);
        CUTE_UNROLL
        for (int i = 0; i < size(acc); ++i) p(i) = T(acc(i));
        copy(load_v, load_v.get_slice(threadIdx.x).partition_S(sVt), load_v.get_slice(threadIdx.x).retile_D(rV));
        gemm(mma, make_tensor(p.data(), operand_of(p.layout())), rV, rO);
    }

    CUTE_UNROLL
    for (int r = 0; r < size<0>(result); ++r) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        const int row = my_row + 8 * r;
        if (row >= seq_q) continue;
        T* line = out + batch * out_batch + head * out_head + row * out_row;
        const float inverse = sum[r] > 0.f ? 1.f / sum[r] : 0.f;
        CUTE_UNROLL
        for (int c = 0; c < size<1>(result); ++c) line[my_col + c / 2 * 8 + c % 2] = T(result(r, c) * inverse);
    }
}
