// Multi-head attention, compiled from the LLM-TL program `mha`.
#include "tile.cuh"

using namespace tile;

template <class T, int dim, int dim_v, int BM, int BN, int WARPS, int STAGES, bool ALIGNED, bool FOLD, bool SPLIT>
__global__ void __launch_bounds__(32 * WARPS) mha_kernel(
    const T* q_ptr, long long q_ptr_s0, int q_ptr_s1, long long q_ptr_s2,
    const T* k_ptr, long long k_ptr_s0, int k_ptr_s1, long long k_ptr_s2,
    const T* v_ptr, long long v_ptr_s0, int v_ptr_s1, long long v_ptr_s2,
    T* out_ptr, long long out_ptr_s0, int out_ptr_s1, long long out_ptr_s2,
    int seq_q, int seq_k, float scale, float factor_scale) {
    const int i = int(blockIdx.x);
    const int h = int(blockIdx.y);
    const int b = int(blockIdx.z);
    constexpr int THREADS = 32 * WARPS;
    extern __shared__ __align__(128) unsigned char bytes[];
    T* const shared = reinterpret_cast<T*>(bytes);
    using Q_shared_t = Shared<T, BM, dim>;
    const Q_shared_t Q_shared{shared};
    using K_shared_t = Shared<T, BN, dim>;
    T* const K_shared_ring = Q_shared.data + Q_shared_t::elements;
    using V_shared_t = Shared<T, BN, dim_v>;
    T* const V_shared_ring = K_shared_ring + STAGES * K_shared_t::elements;
    Rows<BM / (16 * WARPS)> m;
    Rows<BM / (16 * WARPS)> l;
    Accumulator<BM / (16 * WARPS), padded(BN) / 8> S;
    Accumulator<BM / (16 * WARPS), padded(dim_v) / 8> O;
    // Allocate m in register (BM) init -inf
    fill(m, -kInfinity);
    // Allocate l in register (BM) init 0
    fill(l, 0.0f);
    // Allocate O in register (BM, dim_v) init 0
    fill(O, 0.0f);
    // Copy Q (BM, dim) in coordinate [L = i] from global to shared
    fetch<ALIGNED, THREADS>(Q_shared, matrix(q_ptr + b * q_ptr_s0 + h * q_ptr_s2, q_ptr_s1, seq_q, dim),
        i * BM);
    commit();
    // for j = 0 : ceil(seq_k / BN)
    const int j_start = 0, j_stop = ceil_div(seq_k, BN);
    const int j_edge = floor_div(seq_k - BN, BN) + 1;
    // Copy K (BN, dim) in coordinate [L = j] from global to shared
    auto fetch_K_shared = [&](int j) {
        if (j >= j_stop) return;
        fetch<ALIGNED, THREADS>(K_shared_t{K_shared_ring + (j - j_start) % STAGES * K_shared_t::elements},
            matrix(k_ptr + b * k_ptr_s0 + h * k_ptr_s2, k_ptr_s1, seq_k, dim), j * BN);
    };
    // Copy V (BN, dim_v) in coordinate [L = j] from global to shared
    auto fetch_V_shared = [&](int j) {
        if (j >= j_stop) return;
        fetch<ALIGNED, THREADS>(V_shared_t{V_shared_ring + (j - j_start) % STAGES * V_shared_t::elements},
            matrix(v_ptr + b * v_ptr_s0 + h * v_ptr_s2, v_ptr_s1, seq_k, dim_v), j * BN);
    };
    for (int n = 0; n < STAGES; ++n) {
        if (n > 0) fetch_V_shared(j_start + n - 1);
        commit();
        fetch_K_shared(j_start + n);
        commit();
    }
    auto round_j = [&](const int j, auto masked) {
        const K_shared_t K_shared{K_shared_ring + (j - j_start) % STAGES * K_shared_t::elements};
        const V_shared_t V_shared{V_shared_ring + (j - j_start) % STAGES * V_shared_t::elements};
        arrived<2 * STAGES - 2>();
        fetch_V_shared(j + STAGES - 1);
        commit();
        // Compute GEMM Q, K^T and get S
        fill(S, 0.f);
        gemm_nt<0, padded(dim), 0>(S, operand<BM / (16 * WARPS)>(Q_shared), K_shared);
        // Compute Multiply S, scale and get new S  (waits until it can be folded into exp2)
        if constexpr (!FOLD) each(S, [&](int mm, int nn, int ee) { S(mm, nn, ee) *= scale; });
        // keys past the end count for nothing
        if (masked) {
            const int col0 = opaque(j * BN + first_col());
            each(S, [&](int mm, int nn, int ee) {
                if (col0 + col_of(nn, ee % 2) >= seq_k) S(mm, nn, ee) = -kInfinity;
            });
        }
        // Compute Softmax S, m, l and rescale O
        const auto m_decay = softmax_step<true>(S, m, l, factor_scale);
        rescale(O, m_decay);
        arrived<2 * STAGES - 2>();
        fetch_K_shared(j + STAGES);
        commit();
        // Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)
        const auto S_operand = reshape<T>(S);
        // Compute GEMM S, V and accumulate O
        gemm_nn<0>(O, S_operand, V_shared);
    };
    if constexpr (SPLIT) {
        int j = j_start;
        for (; j < least(j_edge, j_stop); ++j) round_j(j, Known<false>{});
        for (; j < j_stop; ++j) round_j(j, Known<true>{});
    } else {
        for (int j = j_start; j < j_stop; ++j) round_j(j, !(j < j_edge));
    }
    {
        const int i = block_x();
        const int h = block_y();
        const int b = block_z();
        // the sums of the four threads that share a row meet
        each(l, [&](int mm, int hh) { l(mm, hh) = quad_sum(l(mm, hh)); });
        // Compute Divide O, l and get new O
        each(O, [&](int mm, int nn, int ee) { O(mm, nn, ee) = O(mm, nn, ee) * inverse(l(mm, ee / 2)); });
        // Copy O (BM, dim_v) in coordinate [L = i] from register to global
        store<ALIGNED>(matrix(out_ptr + b * out_ptr_s0 + h * out_ptr_s2, out_ptr_s1, seq_q, dim_v), O,
            i * BM);
    }
}
