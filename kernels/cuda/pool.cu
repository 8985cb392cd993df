// Pooling: the largest value, or the mean, of each window of an image, and the way back.
//
// Images are channels-last, (N, H, W, C) in memory. A thread makes one value of the result and runs through its window;
// neighbouring threads have neighbouring channels, so a warp reads and writes runs of 32 neighbours at every step:
//
//     thread (n, p, q, c):                             x, stride 2           y
//         for h in window p:                           +--+--+--+--+--+
//             for w in window q:                       |  q=0  |  :  |      +--+--+
//                 y = max(y, x[n, h, w, c])            |  :  :  |  q=1  |   |  |  |   p=0
//                 or y += x[n, h, w, c]                +--+--+--+--+--+      +--+--+
//
//     f is the number of values of x for each value of y:
//
//     kernel                 reads               writes     bytes for each value of y, in float
//     max_pool2d             x                   y index    4 f + 12    (the index has 8 bytes)
//     gather_hw              index, part of x    y          16
//     scatter_hw             g index             dx         12 + 8 f    (zeroed first; plus reading what is added to)
//     avg_pool2d             x                   y          4 f + 4
//     avg_pool2d_input_grad  g                   dx         4 f + 4
//
// Where windows overlap, the second thread that reads a value finds it in the cache. Roofline: the memory's, 3.35 TB/s
// on an H100. ResNet-18's 3x3 stride 2 on 32 x 64 x 112 x 112 floats has f = 4 and 6.4 million values of y: 180 MB
// forward, 54 us, and 280 MB backward, 84 us. Not measured yet.
//
// Backward there are two ways. Average pooling gathers: a thread has one pixel and adds up the windows that it lies in.
// Max pooling knows only an index for each value, which may be any: two values may name one pixel, and then it matters
// in which order they are added. Threads that add with atomics would come in another order each time. So one thread has
// one channel of one image for itself and goes through its values in order: the same bits each time, without a lock.
// The price: N*C threads (2,048 in the example, where the GPU could hold 270,000), each with P*Q additions, here 3,136.
// A pixel that is added to for the first time lies in no first cache: the thread waits for it, some 300 to 600 cycles.
// One wait after the other would be 0.6 to 1.1 ms, so a thread asks for the pixels of 8 values at a time: some 0.2 ms,
// two to three times the roofline, estimated, in a layer that a network has once.

// ---- windows ----

// The pixels of a window along one axis: first, first + step, ... below end; those outside the image are left out.
struct Window {
    int first, end, step;
};

// Window `place` of those that slide by `stride`, with `taps` pixels that are `dilation` apart.
__device__ Window sliding(int place, int size, int taps, int stride, int padding, int dilation) {
    const int start = place * stride - padding;
    const int outside = start < 0 ? (dilation - 1 - start) / dilation : 0;  // taps before the image
    return {start + outside * dilation, min(start + taps * dilation, size), dilation};
}

// Window `place` of `places` that cover the axis evenly: from floor(place*size/places) to ceil((place+1)*size/places).
__device__ Window adaptive(int place, int size, int places) {
    const long long start = (long long)place * size, end = start + size;  // 64 bits: the product may be large
    return {int(start / places), int((end + places - 1) / places), 1};
}

// Where value i of a channels-last (N, P, Q, C) array belongs.
struct Place {
    unsigned n;
    int p, q;
    unsigned c;
};

__device__ Place place_of(unsigned i, int P, int Q, int C) {
    const unsigned pixel = i / C, row = pixel / Q;
    return {row / P, int(row % P), int(pixel % Q), i % C};
}

// ---- maximum ----

// Value i of y, and its position h*W + w. As in PyTorch a later value wins if it is larger, or NaN; of equals the first
// stays. A window without a pixel gives -Inf and -1.
template <typename T>
__device__ void take_maximum(const T* x, Place at, Window rows, Window columns, int C, int H, int W, unsigned i, T* y,
                             long long* index) {
    const T* image = x + at.n * H * W * C + at.c;
    T best = -__int_as_float(0x7f800000);  // -Inf
    int where = -1;
    for (int h = rows.first; h < rows.end; h += rows.step)
        for (int w = columns.first; w < columns.end; w += columns.step) {
            const T value = image[(h * W + w) * C];
            if (value > best || value != value || where < 0) {
                best = value;
                where = h * W + w;
            }
        }
    y[i] = best;
    index[i] = where;
}

// x (N, H, W, C) -> y, index (N, P, Q, C), `count` values.
template <typename T>
__global__ void __launch_bounds__(256)
max_pool2d(const T* __restrict__ x, T* __restrict__ y, long long* __restrict__ index, unsigned count, int C, int H,
           int W, int P, int Q, int R, int S, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h,
           int dilation_w) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const Place at = place_of(i, P, Q, C);
    const Window rows = sliding(at.p, H, R, stride_h, pad_h, dilation_h);
    const Window columns = sliding(at.q, W, S, stride_w, pad_w, dilation_w);
    take_maximum(x, at, rows, columns, C, H, W, i, y, index);
}

// The same over a grid of P x Q windows that cover the image.
template <typename T>
__global__ void __launch_bounds__(256)
adaptive_max_pool2d(const T* __restrict__ x, T* __restrict__ y, long long* __restrict__ index, unsigned count, int C,
                    int H, int W, int P, int Q) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const Place at = place_of(i, P, Q, C);
    take_maximum(x, at, adaptive(at.p, H, P), adaptive(at.q, W, Q), C, H, W, i, y, index);
}

// ---- by index ----

// The index as a place in an image of `pixels`; a negative one counts from the end, as in NumPy.
__device__ unsigned pixel_of(long long index, int pixels) {
    return unsigned(index < 0 ? index + pixels : index);
}

// y[n, i, c] = x[n, index[n, i, c], c] for i below `values` (P*Q); x has `pixels` (H*W) an image.
template <typename T>
__global__ void __launch_bounds__(256)
gather_hw(const T* __restrict__ x, const long long* __restrict__ index, T* __restrict__ y, unsigned count, int C,
          int pixels, int values) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const unsigned n = i / (values * C);
    y[i] = x[(n * pixels + pixel_of(index[i], pixels)) * C + i % C];
}

constexpr int TOGETHER = 8;  // pixels that a thread of scatter_hw waits for at a time

// dx[n, index[n, i, c], c] += g[n, i, c] for all i in order, by one thread for each (n, c): `chains` (N*C) of them.
// dx is zero at the beginning. Of several values that meet in a pixel, each is added to the total of those before, also
// where the pixel was read before that total was written.
template <typename T>
__global__ void __launch_bounds__(64)
scatter_hw(const T* __restrict__ g, const long long* __restrict__ index, T* __restrict__ dx, unsigned chains, int C,
           int pixels, int values) {
    const unsigned chain = blockIdx.x * 64 + threadIdx.x;
    if (chain >= chains) return;
    const unsigned n = chain / C, c = chain % C, first = n * values * C + c;
    T* image = dx + n * pixels * C + c;
    for (int i = 0; i < values; i += TOGETHER) {
        unsigned place[TOGETHER];
        T share[TOGETHER], total[TOGETHER];
#pragma unroll
        for (int j = 0; j < TOGETHER; j++) {
            const unsigned from = first + min(i + j, values - 1) * C;  // behind the last value: that one again
            place[j] = pixel_of(index[from], pixels) * C;
            share[j] = g[from];
        }
#pragma unroll
        for (int j = 0; j < TOGETHER; j++) total[j] = image[place[j]];
#pragma unroll
        for (int j = 0; j < TOGETHER; j++) {
            total[j] += share[j];
#pragma unroll
            for (int later = j + 1; later < TOGETHER; later++)
                if (place[later] == place[j]) total[later] = total[j];
            if (i + j < values) image[place[j]] = total[j];
        }
    }
}

// ---- mean ----

// By how many pixels along one axis the sum of window `place` is divided: those of the image, or the padding's too (cut
// off at its outer edge, where a window overhangs).
__device__ int counted(int place, int size, int taps, int stride, int padding, int with_padding) {
    const int start = place * stride - padding, end = min(start + taps, size + padding);
    return with_padding ? end - start : min(end, size) - max(start, 0);
}

// x (N, H, W, C) -> y (N, P, Q, C). The sum is kept in double, as in the reference.
template <typename T>
__global__ void __launch_bounds__(256)
avg_pool2d(const T* __restrict__ x, T* __restrict__ y, unsigned count, int C, int H, int W, int P, int Q, int R, int S,
           int stride_h, int stride_w, int pad_h, int pad_w, int with_padding) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const Place at = place_of(i, P, Q, C);
    const Window rows = sliding(at.p, H, R, stride_h, pad_h, 1), columns = sliding(at.q, W, S, stride_w, pad_w, 1);
    const T* image = x + at.n * H * W * C + at.c;
    double sum = 0;
    for (int h = rows.first; h < rows.end; h++)
        for (int w = columns.first; w < columns.end; w++) sum += image[(h * W + w) * C];
    y[i] = T(sum / (counted(at.p, H, R, stride_h, pad_h, with_padding)
                    * counted(at.q, W, S, stride_w, pad_w, with_padding)));
}

// The first window that a pixel lies in: window p covers h where 0 <= h + padding - p*stride < taps.
__device__ int first_window(int h, int taps, int stride, int padding) {
    return h + padding < taps ? 0 : (h + padding - taps) / stride + 1;
}

// g (N, P, Q, C) -> dx (N, H, W, C): each pixel adds up its share of the gradient of each window that it lies in.
template <typename T>
__global__ void __launch_bounds__(256)
avg_pool2d_input_grad(const T* __restrict__ g, T* __restrict__ dx, unsigned count, int C, int H, int W, int P, int Q,
                      int R, int S, int stride_h, int stride_w, int pad_h, int pad_w, int with_padding) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const Place at = place_of(i, H, W, C);
    const T* gradient = g + at.n * P * Q * C + at.c;
    const int first_p = first_window(at.p, R, stride_h, pad_h), last_p = min((at.p + pad_h) / stride_h, P - 1);
    const int first_q = first_window(at.q, S, stride_w, pad_w), last_q = min((at.q + pad_w) / stride_w, Q - 1);
    double sum = 0, share = 0;
    int size = 0;
    for (int p = last_p; p >= first_p; p--)
        for (int q = last_q; q >= first_q; q--) {
            const int now = counted(p, H, R, stride_h, pad_h, with_padding)
                            * counted(q, W, S, stride_w, pad_w, with_padding);
            if (now != size) {  // only at the edge: a division in double takes as long as all the rest
                size = now;
                share = 1.0 / size;
            }
            sum += gradient[(p * Q + q) * C] * share;
        }
    dx[i] = T(sum);
}
