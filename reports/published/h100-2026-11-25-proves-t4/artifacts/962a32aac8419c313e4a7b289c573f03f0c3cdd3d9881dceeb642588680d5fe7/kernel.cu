// Attention in plain CUDA: a warp owns a query row and walks over the keys, 32 at a time.
//
// Lane n of the warp computes the score of key n of such a group; the group's probabilities then go round the
// warp, and each lane adds up its own columns of the output. No tensor cores, no shared memory but the query.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int kWarps = 4;
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

__device__ inline float number(float x) { return x; }
__device__ inline float number(half x) { return __half2float(x); }
__device__ inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(half* to, float x) { *to = __float2half_rn(x); }
__device__ inline void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

template <class T, int DIM, bool CAUSAL>
__global__ void __launch_bounds__(32 * kWarps) attention(
    const T* q, long long q_batch, long long q_row, long long q_head,
    const T* k, long long k_batch, long long k_row, long long k_head,
    const T* v, long long v_batch, long long v_row, long long v_head,
    T* out, long long out_batch, long long out_row, long long out_head,
    int seq_q, int seq_k, int group, float scale) {
    constexpr int COLUMNS = (DIM + 31) / 32;  // of the output, that a lane has
    __shared__ float query[kWarps][DIM];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = blockIdx.x * kWarps + warp, head = blockIdx.y, batch = blockIdx.z;
    if (row >= seq_q) return;

    const T* mine = q + batch * q_batch + row * q_row + head * q_head;
    for (int c = lane; c < DIM; c += 32) query[warp][c] = number(mine[c]) * scale;
    __syncwarp();

    const T* keys = k + batch * k_batch + head / group * k_head;
    const T* values = v + batch * v_batch + head / group * v_head;
    const int stop = CAUSAL ? min(seq_k, row + seq_k - seq_q + 1) : seq_k;
    float top = NEGATIVE_INFINITY, sum = 0.f, result[COLUMNS] = {};
    for (int first = 0; first < stop; first += 32) {
        const int key = first + lane;
        float score = NEGATIVE_INFINITY;
        if (key < stop) {
            score = 0.f;
            for (int c = 0; c < DIM; ++c) score += query[warp][c] * number(keys[key * k_row + c]);
        }
        float next = score;
        for (int step = 16; step > 0; step /= 2) next = fmaxf(next, __shfl_xor_sync(~0u, next, step));
        next = fmaxf(next, top);
        const float decay = expf(top - next), p = expf(score - next);  // the first group always has a key
        float total = p;
        for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
        sum = sum * decay + total;
        top = next;
        for (int n = 0; n < COLUMNS; ++n) result[n] *= decay;
        const int there = min(32, stop - first);
        for (int other = 0; other < there; ++other) {
            const float weight = __shfl_sync(~0u, p, other);
            for (int n = 0; n < COLUMNS; ++n) {
                const int c = n * 32 + lane;
                if (c < DIM) result[n] += weight * number(values[(first + other) * v_row + c]);
            }
        }
    }
    T* target = out + batch * out_batch + row * out_row + head * out_head;
    for (int n = 0; n < COLUMNS; ++n) {
        const int c = n * 32 + lane;
        if (c < DIM) put(target + c, sum > 0.f ? result[n] / sum : 0.f);  // a row that sees no key is zero
    }
}
