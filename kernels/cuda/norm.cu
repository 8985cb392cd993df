// Batch norm forward and backward, with the residual addition and the ReLU that follow it, one pass over memory each.
//
// An image of N*H*W pixels, channels-last, is a matrix of M rows and C columns. Batch norm asks for sums down its
// columns, and for multiply-adds whose factors belong to columns. So a thread takes one column (one channel, or the V
// channels of a 16-byte load), keeps that column's factors and sums in registers, and walks down the rows:
//
//           blockDim.x columns           The threads of a block lie side by side along the rows, so that a warp reads
//          +----+----+----+----+         neighbouring addresses. With few channels a block is narrow and high: for 3
//          | t0 | t1 | t2 | t3 |         channels it has 3 x 85 threads, whose 255 addresses are neighbours all the
//     rows +----+----+----+----+         same.
//          | t4 | t5 | t6 | t7 |         A block covers up to 64 columns, blockIdx.y is the tile of columns, and the
//          +----+----+----+----+         gridDim.x blocks of a tile take turns down the rows.
//          | t0 | ...  gridDim.x * blockDim.y rows further down
//
//     kernel                  reads            writes       bytes for each value, in float
//     batch_norm_stats        x                             4
//     batch_norm_apply        x [residual]     y            8   [+ 4]
//     add_bias                y [residual]     y            8   [+ 4]
//     batch_norm_grad_sums    g x [y]                       8   [+ 4]
//     batch_norm_input_grad   g x [y]          dx [dres]    12  [+ 4 each]
//
// Roofline: the memory's, 3.35 TB/s on an H100. Four operations for each value are next to nothing: ResNet-20's largest
// image, 128 x 16 x 32 x 32 floats, is 8.4 MB, 2.5 us from memory (and it fits into that GPU's cache of 50 MB, which is
// faster still). Not measured yet.
//
// The sums run in double, as in the reference: a conversion, a subtraction and two additions a value, one operation for
// each byte. The memory of an A100 or H100 waits for its double units only beyond 5 to 10 operations a byte. Cards for
// graphics have a 32nd or 64th as many for double as for float: there the two kernels that sum are bound by arithmetic,
// and take two to three times as long at worst (estimated). Each block writes partial sums, and a second, small kernel
// adds them in the order of the blocks: the same bits each time.
#include "pack.cuh"
#include "reduce.cuh"

// The first row, from which the deviations are measured, or 0 where it is not finite: Inf - Inf would be NaN where the
// mean is Inf. Without a shift the variance would be the small difference of two large numbers where the mean is far
// larger than the standard deviation (Chan, Golub and LeVeque 1983).
template <typename T>
__device__ double first_row(const T* x, unsigned c, unsigned rows) {
    const double value = rows > 0 ? x[c] : T(0);
    return value - value == 0 ? value : 0;
}

// partials (2, C, blocks): what each block adds to the two sums of each channel. c: the thread's first channel.
template <int V>
__device__ void write_partials(double (&sums)[2 * V], double* partials, unsigned c, unsigned channels) {
    sum_down(sums);
    if (threadIdx.y == 0 && c < channels) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            partials[(c + v) * gridDim.x + blockIdx.x] = sums[v];
            partials[(channels + c + v) * gridDim.x + blockIdx.x] = sums[V + v];
        }
    }
}

// One block a channel adds up the partial sums of all blocks: sum number `which` of channel blockIdx.x, in each thread.
template <typename T>
__device__ T total_of(const T* partials, unsigned which, unsigned blocks) {
    const T* mine = partials + (which * gridDim.x + blockIdx.x) * blocks;
    T sum = 0;
    for (unsigned b = threadIdx.x; b < blocks; b += blockDim.x) sum += mine[b];
    return block_sum(sum);
}

// ---- forward ----

// x (M, C) -> partials of sum d and sum d*d, d = x - first row.
template <typename T, int V>
__global__ void __launch_bounds__(256)
batch_norm_stats(const T* __restrict__ x, double* __restrict__ partials, unsigned rows, unsigned channels) {
    const bool whole = V > 1 && is_aligned(x);
    const unsigned c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    double sums[2 * V] = {}, shift[V];
    if (c < channels) {
#pragma unroll
        for (int v = 0; v < V; v++) shift[v] = first_row(x, c + v, rows);
        for (unsigned m = blockIdx.x * blockDim.y + threadIdx.y; m < rows; m += gridDim.x * blockDim.y) {
            const auto values = load<V>(x + m * channels + c, whole);
#pragma unroll
            for (int v = 0; v < V; v++) {
                const double d = values.v[v] - shift[v];
                sums[v] += d;
                sums[V + v] += d * d;
            }
        }
    }
    write_partials<V>(sums, partials, c, channels);
}

// One block a channel: partials (2, C, blocks) -> mean and biased variance, (C,). x gives the shift again.
template <typename T>
__global__ void __launch_bounds__(128)
batch_norm_moments(const T* __restrict__ x, const double* __restrict__ partials, double* __restrict__ mean,
                   double* __restrict__ variance, unsigned rows, unsigned blocks) {
    const double offset = total_of(partials, 0, blocks) / rows, square = total_of(partials, 1, blocks) / rows;
    if (threadIdx.x == 0) {
        const double difference = square - offset * offset;
        mean[blockIdx.x] = first_row(x, blockIdx.x, rows) + offset;
        variance[blockIdx.x] = difference < 0 ? 0 : difference;  // rounding; a NaN passes
    }
}

// max(v, 0) if relu, but a NaN must pass.
template <typename T>
__device__ T through(int relu, T v) {
    return relu && v <= 0 ? T(0) : v;
}

// y = x*scale + shift [+ residual] [ReLU]; scale, shift (C,). residual: any valid array where with_residual is 0.
template <typename T, int V>
__global__ void __launch_bounds__(256)
batch_norm_apply(const T* __restrict__ x, const T* __restrict__ scale, const T* __restrict__ shift,
                 const T* __restrict__ residual, T* __restrict__ y, unsigned rows, unsigned channels,
                 int with_residual, int relu) {
    const bool whole = V > 1 && is_aligned(x) && is_aligned(residual) && is_aligned(y);
    const unsigned c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    if (c >= channels) return;
    T factor[V], term[V];
#pragma unroll
    for (int v = 0; v < V; v++) factor[v] = scale[c + v], term[v] = shift[c + v];
    for (unsigned m = blockIdx.x * blockDim.y + threadIdx.y; m < rows; m += gridDim.x * blockDim.y) {
        const unsigned i = m * channels + c;
        auto values = load<V>(x + i, whole);
        Pack<T, V> added = {};
        if (with_residual) added = load<V>(residual + i, whole);
#pragma unroll
        for (int v = 0; v < V; v++) values.v[v] = through(relu, values.v[v] * factor[v] + term[v] + added.v[v]);
        store(y + i, values, whole);
    }
}

// y += bias [+ residual] [ReLU], in place: what is left of a batch norm whose scale is in the convolution's weights.
template <typename T, int V>
__global__ void __launch_bounds__(256)
add_bias(T* __restrict__ y, const T* __restrict__ bias, const T* __restrict__ residual, unsigned rows,
         unsigned channels, int with_residual, int relu) {
    const bool whole = V > 1 && is_aligned(y) && is_aligned(residual);
    const unsigned c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    if (c >= channels) return;
    T term[V];
#pragma unroll
    for (int v = 0; v < V; v++) term[v] = bias[c + v];
    for (unsigned m = blockIdx.x * blockDim.y + threadIdx.y; m < rows; m += gridDim.x * blockDim.y) {
        const unsigned i = m * channels + c;
        auto values = load<V>(y + i, whole);
        Pack<T, V> added = {};
        if (with_residual) added = load<V>(residual + i, whole);
#pragma unroll
        for (int v = 0; v < V; v++) values.v[v] = through(relu, values.v[v] + term[v] + added.v[v]);
        store(y + i, values, whole);
    }
}

// ---- backward ----

// g', the gradient before the ReLU: 0 where the ReLU's output y was not positive, else g (so too where y is NaN).
template <int V, typename T>
__device__ Pack<T, V> before_relu(const T* g, const T* y, unsigned i, int relu, bool whole) {
    auto gradient = load<V>(g + i, whole);
    if (relu) {
        const auto output = load<V>(y + i, whole);
#pragma unroll
        for (int v = 0; v < V; v++) gradient.v[v] = output.v[v] <= 0 ? T(0) : gradient.v[v];
    }
    return gradient;
}

// g, x [, y] (M, C), mean (C,) -> partials of sum g' and sum g'*(x - mean). y: any valid array where relu is 0.
template <typename T, int V>
__global__ void __launch_bounds__(256)
batch_norm_grad_sums(const T* __restrict__ g, const T* __restrict__ x, const double* __restrict__ mean,
                     const T* __restrict__ y, double* __restrict__ partials, unsigned rows, unsigned channels,
                     int relu) {
    const bool whole = V > 1 && is_aligned(g) && is_aligned(x) && is_aligned(y);
    const unsigned c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    double sums[2 * V] = {}, shift[V];
    if (c < channels) {
#pragma unroll
        for (int v = 0; v < V; v++) shift[v] = mean[c + v];
        for (unsigned m = blockIdx.x * blockDim.y + threadIdx.y; m < rows; m += gridDim.x * blockDim.y) {
            const unsigned i = m * channels + c;
            const auto gradient = before_relu<V>(g, y, i, relu, whole), values = load<V>(x + i, whole);
#pragma unroll
            for (int v = 0; v < V; v++) {
                const double wide_gradient = gradient.v[v];
                sums[v] += wide_gradient;
                sums[V + v] += wide_gradient * (values.v[v] - shift[v]);
            }
        }
    }
    write_partials<V>(sums, partials, c, channels);
}

// One block a channel: partials (2, C, blocks) -> the two sums, (C,) each.
template <typename T>
__global__ void __launch_bounds__(128)
add_partials(const T* __restrict__ partials, T* __restrict__ first, T* __restrict__ second, unsigned blocks) {
    const T a = total_of(partials, 0, blocks), b = total_of(partials, 1, blocks);
    if (threadIdx.x == 0) first[blockIdx.x] = a, second[blockIdx.x] = b;
}

// dx = a*g' + b*x + d, dres = g'; a, b, d (C,). y, dres: any valid arrays where relu, with_residual are 0.
template <typename T, int V>
__global__ void __launch_bounds__(256)
batch_norm_input_grad(const T* __restrict__ g, const T* __restrict__ x, const T* __restrict__ a,
                      const T* __restrict__ b, const T* __restrict__ d, const T* __restrict__ y, T* __restrict__ dx,
                      T* __restrict__ dres, unsigned rows, unsigned channels, int relu, int with_residual) {
    const bool whole = V > 1 && is_aligned(g) && is_aligned(x) && is_aligned(y) && is_aligned(dx) && is_aligned(dres);
    const unsigned c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    if (c >= channels) return;
    T direct[V], through_variance[V], through_mean[V];
#pragma unroll
    for (int v = 0; v < V; v++) direct[v] = a[c + v], through_variance[v] = b[c + v], through_mean[v] = d[c + v];
    for (unsigned m = blockIdx.x * blockDim.y + threadIdx.y; m < rows; m += gridDim.x * blockDim.y) {
        const unsigned i = m * channels + c;
        const auto gradient = before_relu<V>(g, y, i, relu, whole);
        auto values = load<V>(x + i, whole);
#pragma unroll
        for (int v = 0; v < V; v++)
            values.v[v] = direct[v] * gradient.v[v] + through_variance[v] * values.v[v] + through_mean[v];
        store(dx + i, values, whole);
        if (with_residual) store(dres + i, gradient, whole);
    }
}
