// Faults between blocks, each with its mended twin: compiled with -DMENDED the kernels are right.

#ifdef MENDED
constexpr bool mended = true;
#else
constexpr bool mended = false;
#endif

// Each block adds its part to the same sum. A block's own threads may do that one after another; blocks may not.
__global__ void sum_without_atomics(const float* x, float* sum)
{
    float part = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int k = 16; k > 0; k /= 2) part += __shfl_down_sync(0xffffffffu, part, k);
    if (threadIdx.x != 0) return;
    if (mended)
        atomicAdd(sum, part);
    else
        *sum += part;  // <- sum_without_atomics
}

// In place: each value becomes the sum of itself and its right neighbour, which the next block may have changed.
__global__ void neighbours_in_place(const float* x, float* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float* from = mended ? x : y;
    const float neighbour = i + 1 < n ? from[i + 1] : 0.0f;  // <- neighbours_in_place, before
    __syncthreads();
    if (i < n) y[i] = from[i] + neighbour;  // <- neighbours_in_place
}

// The last block to come adds up what all have left, ordered by a counter and a fence: that is allowed.
__global__ void last_block(const float* x, float* parts, float* sum, unsigned* counter)
{
    parts[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    if (atomicAdd(counter, 1u) == gridDim.x - 1) {
        float total = 0.0f;
        for (unsigned b = 0; b < gridDim.x; ++b) total += parts[b];
        *sum = total;
    }
}
