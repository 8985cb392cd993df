// Faults of warps, each with its mended twin: compiled with -DMENDED the kernels are right.

#ifdef MENDED
constexpr bool mended = true;
#else
constexpr bool mended = false;
#endif

// The upper half of the warp takes part in a shuffle of the lower half.
__global__ void lane_outside_mask(const float* x, float* y)
{
    const unsigned mask = mended ? 0xffffffffu : 0x0000ffffu;
    y[threadIdx.x] = __shfl_down_sync(mask, x[threadIdx.x], 1);  // <- lane_outside_mask
}

// The lower half takes the value of a lane that is not there: what it gets is nobody's.
__global__ void lane_not_there(const float* x, float* y)
{
    if (threadIdx.x < 16)
        y[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], mended ? 0 : 20);
}

// One lane votes while the others shuffle.
__global__ void different_operations(const float* x, float* y)
{
    float v = x[threadIdx.x];
    if (!mended && threadIdx.x == 5)
        v = float(__ballot_sync(0xffffffffu, v > 0.0f));  // <- different_operations
    else
        v = __shfl_xor_sync(0xffffffffu, v, 1);  // <- different_operations, before
    y[threadIdx.x] = v;
}

// One lane means to meet the first eight, those mean to meet all.
__global__ void masks_disagree(const float* x, float* y)
{
    const unsigned mask = !mended && threadIdx.x == 7 ? 0x000000ffu : 0xffffffffu;
    y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 1);  // <- masks_disagree
}

// A reduction in shared memory within one warp, which needs no barrier of the block, but one of the warp.
__global__ void missing_syncwarp(const float* x, float* y)
{
    __shared__ float s[32];
    const int i = threadIdx.x;
    s[i] = x[i];
    __syncwarp();
    for (int k = 16; k > 0; k /= 2) {
        const float v = s[i] + (i + k < 32 ? s[i + k] : 0.0f);  // <- missing_syncwarp, before
        __syncwarp();
        s[i] = v;  // <- missing_syncwarp
        if (mended) __syncwarp();
    }
    if (i == 0) y[0] = s[0];
}
