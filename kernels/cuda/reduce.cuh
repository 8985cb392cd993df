// Sums over the threads of a warp and of a block, always added in the same order.
//
// Floating-point addition is not associative, so a sum whose order depends on which thread comes first changes its last
// bits from run to run. Here the order depends on the threads' numbers only: training can be repeated bit by bit. A sum
// over all blocks is made in two kernels: each block writes its partial sum, and a second kernel adds those.
//
// warp_sum, a butterfly: in each step a lane adds the value of the lane whose number differs in one bit. With 8 lanes:
//
//     lane        0      1      2      3      4      5      6      7
//     distance 4  0+4    1+5    2+6    3+7    4+0    5+1    6+2    7+3
//     distance 2  0246   1357   0246   1357   ...
//     distance 1  the whole sum, in all lanes the same bits, as a + b = b + a
#pragma once

// The sum of v over the 32 lanes of a warp, in each of them. All lanes must take part.
template <typename T>
__device__ T warp_sum(T v) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

// The sum of v over a block of one dimension, in each thread; the block is a number of whole warps, 32 at most.
template <typename T>
__device__ T block_sum(T v) {
    __shared__ T sums[32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = warp_sum(v);
    if (lane == 0) sums[warp] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? sums[lane] : T(0));  // each warp for itself: nobody waits for a broadcast
    __syncthreads();                                 // the next block_sum writes to sums again
    return v;
}

// Adds K sums of each thread over threadIdx.y. A block is at most 256 threads, of any height. Afterwards the threads
// with threadIdx.y = 0 hold the sums of their columns, the others what was left on the way. Each step folds the lower
// half of the rows onto the upper one:
//
//     rows    7 -> 4 -> 2 -> 1:   row 0 + row 4, 1 + 5, 2 + 6, and row 3 stays;   then 0 + 2, 1 + 3;   then 0 + 1
template <int K>
__device__ void sum_down(double (&sums)[K]) {
    __shared__ double folded[K][256];
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int k = 0; k < K; k++) folded[k][thread] = sums[k];
    __syncthreads();
    for (unsigned rows = blockDim.y; rows > 1;) {
        const unsigned half = (rows + 1) / 2;
        if (threadIdx.y < rows - half) {
#pragma unroll
            for (int k = 0; k < K; k++) folded[k][thread] += folded[k][thread + half * blockDim.x];
        }
        __syncthreads();
        rows = half;
    }
#pragma unroll
    for (int k = 0; k < K; k++) sums[k] = folded[k][thread];
}
