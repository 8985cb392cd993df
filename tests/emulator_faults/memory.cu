// Faults of memory, each with its mended twin: compiled with -DMENDED the kernels are right.

#ifdef MENDED
constexpr bool mended = true;
#else
constexpr bool mended = false;
#endif

// y[i] = x[i] + x[i+1]; the last one has no neighbour.
__global__ void read_past_end(const float* __restrict__ x, float* __restrict__ y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    if (!mended || i + 1 < n)
        v += __ldg(x + i + 1);  // <- read_past_end
    y[i] = v;
}

// The grid is rounded up to whole blocks, and what is too much is not left out.
__global__ void write_past_end(float* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (!mended || i < n)
        y[i] = float(i);  // <- write_past_end
}

// What is read beyond the one array is what lies beyond the other, or so it seems.
__global__ void copy_past_end(const float* x, float* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (mended ? i < n : i <= n) y[i] = x[i];  // <- copy_past_end
}

// A NaN would stay what it is, whatever is added.
__global__ void add_past_end(float* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (mended ? i < n : i <= n) y[i] += 0.125f;  // <- add_past_end
}

// The neighbour to the left of the first one.
__global__ void write_before_beginning(float* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && (!mended || i > 0))
        y[i - 1] = float(i);  // <- write_before_beginning
}

// One value far away: in a row beyond the last.
__global__ void read_far_away(const double* x, double* y, int rows, int columns)
{
    const int r = blockIdx.x, c = threadIdx.x;
    y[r * columns + c] = x[(mended ? r : r + rows) * columns + c];  // <- read_far_away
}

// Column 0 of the tile is meant to be zero and is never written.
__global__ void unwritten_shared(const float* x, float* y)
{
    __shared__ float tile[33];
    tile[threadIdx.x + 1] = x[threadIdx.x];
    if (mended && threadIdx.x == 0) tile[0] = 0.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x] + tile[threadIdx.x + 1];  // <- unwritten_shared
}

// Needs a float for each thread; launched with less.
__global__ void dynamic_shared(const float* x, float* y)
{
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[threadIdx.x];  // <- dynamic_shared
    __syncthreads();
    y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// The promise of const is cast away.
__global__ void write_to_const(const float* x, float* y)
{
    y[threadIdx.x] = x[threadIdx.x];
    if (!mended)
        const_cast<float*>(x)[threadIdx.x] = 0.0f;  // <- write_to_const
}

// Four floats at once, from an address that need not be a multiple of 16.
__global__ void misaligned_load(const float* x, float* y, int first)
{
    const float4 v = mended ? make_float4(x[first], x[first + 1], x[first + 2], x[first + 3])
                            : *reinterpret_cast<const float4*>(x + first);  // <- misaligned_load
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// The same by a function of CUDA: it is the kernel's line that counts.
__global__ void misaligned_ldg(const float* x, float* y, int first)
{
    const float4 v = __ldg(reinterpret_cast<const float4*>(x + (mended ? 0 : first)));  // <- misaligned_ldg
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// Pairs of an odd number of values: the last pair is half outside.
__global__ void half_outside(const float* x, float* y, int n)
{
    const int i = 2 * threadIdx.x;
    float2 v = make_float2(0.0f, 0.0f);
    if (!mended || i + 1 < n)
        v = *reinterpret_cast<const float2*>(x + i);  // <- half_outside
    y[threadIdx.x] = v.x + v.y;
}

// A window of 5 in a local array of 4.
__global__ void local_overrun(const float* x, float* y, int width)
{
    float window[4] = {};
    for (int k = 0; k < (mended ? 4 : width); ++k)
        window[k] = x[threadIdx.x + k];  // <- local_overrun
    y[threadIdx.x] = window[0] + window[3];
}

// The number of bytes of a batch, in 32 bits.
__global__ void overflow(int* y, int images)
{
    const int bytes_of_one = 3 * 224 * 224 * 4;
    y[threadIdx.x] = (mended ? images % 1000 : images) * bytes_of_one;  // <- overflow
}

__global__ void division_by_zero(const int* x, int* y)
{
    const int d = x[threadIdx.x];
    y[threadIdx.x] = mended && d == 0 ? 0 : 100 / d;  // <- division_by_zero
}

__device__ int depth(const volatile char* above, int levels)
{
    volatile char local[1024];
    local[0] = char(*above + 1);
    return levels == 0 ? local[0] : depth(local, levels - 1) + local[0];
}

__global__ void deep_recursion(int* y)
{
    const volatile char none = 0;
    y[threadIdx.x] = depth(&none, mended ? 3 : 300);
}
