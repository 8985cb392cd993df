// Faults of barriers, each with its mended twin: compiled with -DMENDED the kernels are right.
//
// All are launched with blocks of 64 threads: two warps, so that no order within a warp hides a fault.

#ifdef MENDED
#define IF_MENDED(...) __VA_ARGS__
#define IF_FAULTY(...)
#else
#define IF_MENDED(...)
#define IF_FAULTY(...) __VA_ARGS__
#endif

// y = x backwards: what thread i wrote, thread 63-i reads.
__global__ void missing_barrier(const float* x, float* y)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    IF_MENDED(__syncthreads();)
    y[threadIdx.x] = tile[63 - threadIdx.x];  // <- missing_barrier
}

// The classic: the tile is overwritten for the next round while slow threads still read it.
__global__ void missing_second_barrier(const float* x, float* y, int rounds)
{
    __shared__ float tile[64];
    float sum = 0.0f;
    for (int r = 0; r < rounds; ++r) {
        tile[threadIdx.x] = x[64 * r + threadIdx.x];  // <- missing_second_barrier, before
        __syncthreads();
        sum += tile[63 - threadIdx.x];  // <- missing_second_barrier
        IF_MENDED(__syncthreads();)
    }
    y[threadIdx.x] = sum;
}

// All have read the value, thread 1 writes it; whether before or after the others have read, nobody knows.
__global__ void one_of_the_readers_writes(const float* x, float* y)
{
    __shared__ float scale;
    if (threadIdx.x == 0) scale = x[0];
    __syncthreads();
    const float mine = scale;  // <- one_of_the_readers_writes, before
    IF_MENDED(__syncthreads();)
    if (threadIdx.x == 1) scale = 2 * mine;  // <- one_of_the_readers_writes
    __syncthreads();
    y[threadIdx.x] = mine + scale;
}

// Both halves of the block wait, each at a barrier of its own.
__global__ void divergent_barrier(const float* x, float* y)
{
    __shared__ float tile[64];
    if (threadIdx.x < 32) {
        tile[threadIdx.x] = x[threadIdx.x];
        IF_FAULTY(__syncthreads();)  // <- divergent_barrier, before
    } else {
        tile[threadIdx.x] = 2 * x[threadIdx.x];
        IF_FAULTY(__syncthreads();)  // <- divergent_barrier
    }
    IF_MENDED(__syncthreads();)
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

// A guard by an early return: the threads beyond n never reach the barrier.
__global__ void barrier_after_return(const float* x, float* y, int n)
{
    __shared__ float tile[64];
    IF_FAULTY(if (int(threadIdx.x) >= n) return;)
    tile[threadIdx.x] = int(threadIdx.x) < n ? x[threadIdx.x] : 0.0f;
    __syncthreads();  // <- barrier_after_return
    if (int(threadIdx.x) < n) y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

// Half of a warp waits for all its lanes, the other half for the block.
__global__ void deadlock(const float* x, float* y)
{
    float v = x[threadIdx.x];
    IF_FAULTY(if (threadIdx.x % 32 < 16))
        v += __shfl_xor_sync(0xffffffffu, v, 1);  // <- deadlock
    __syncthreads();  // <- deadlock, others
    y[threadIdx.x] = v;
}
