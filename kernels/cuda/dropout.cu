// Dropout, y = x * m with a mask m that is never stored: it is a function of the key and of the position (philox.cuh),
// so the backward pass, dx = g * m, is this kernel again, and nothing is kept in between.
//
// Value i takes 32 bits, half a word; a thread computes a block of 4 words, which is 8 values. To read 8 neighbouring
// values each would have the threads of a warp read 32 bytes apart. So the bits change hands through shared memory:
//
//     bits:     thread t writes  8t, 8t+1, ... 8t+7            a block of 256 threads: bits of 2,048 values, 8 KB
//               ---- barrier ----
//     values:   thread t reads   t, t+256, t+512, ...          neighbours take neighbouring values, whole runs
//
// Bytes: 4 read and 4 written a float. The arithmetic is 20 products of 64 x 64 bits for 8 values, each in two halves
// of several instructions of 32 bits: with all else some 380 for sm_90, 47 a value. An H100 issues some 60 such a clock
// on each of 132 processors and moves about 2,000 bytes a clock: 170 values by the one count, 250 by the other. So
// arithmetic takes somewhat longer than the memory, as far as counting tells.

#include "philox.cuh"

// y = x * (bits >= threshold ? scale : 0); a dropped NaN or infinity is NaN, as 0 * x is.
template <typename T>
__global__ void __launch_bounds__(256)
dropout(const T* __restrict__ x, T* __restrict__ y, unsigned size, unsigned long long key,
        unsigned long long threshold, T scale) {
    __shared__ unsigned bits[8 * 256];
    const PhiloxBlock c = philox_block(key, 0, 0, blockIdx.x * 256 + threadIdx.x);
    const unsigned long long words[4] = {c.w0, c.w1, c.w2, c.w3};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bits[8 * threadIdx.x + 2 * j] = (unsigned)words[j];
        bits[8 * threadIdx.x + 2 * j + 1] = (unsigned)(words[j] >> 32);
    }
    __syncthreads();
    const unsigned first = blockIdx.x * 8 * 256;
#pragma unroll
    for (unsigned j = threadIdx.x; j < 8 * 256; j += 256)
        if (first + j < size) y[first + j] = x[first + j] * (bits[j] >= threshold ? scale : (T)0);
}

// Words first, first + 1, ... of a stream as they are, to compare them with NumPy's.
__global__ void __launch_bounds__(256)
philox_words(unsigned long long* __restrict__ words, unsigned count, unsigned long long key0, unsigned long long key1,
             unsigned long long stream, unsigned long long first) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i < count) words[i] = philox_word(key0, key1, stream, first + i);
}
