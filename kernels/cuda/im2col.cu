// Convolution as a matrix product, its two copies: im2col lays the window of each output pixel out as a row of a
// matrix, col2im adds such rows back to the pixels that they came from. The product between them is matmul.cu's or a
// library's.
//
//     x (N, H, W, C)                         columns of one group (N*P*Q, R*S*C/G)
//                                                      r=0,s=0   r=0,s=1   ...       r=2,s=2
//     . . . . . .     window of the          row       +---------+---------+---+-----+---------+
//     . a b c . .     output pixel (p,q)     (n,p,q)   | a: C/G  | b: C/G  |   ...   | i: C/G  |
//     . d e f . .  ------------------------>           +---------+---------+---+-----+---------+
//     . g h i . .                            row       | b: C/G  | c: C/G  |   ...   |
//     . . . . . .                            (n,p,q+1)
//
// The channels of one pixel are neighbours in x and stay neighbours in the row. So threads that are neighbours take
// neighbouring channels, and each warp reads and writes whole runs of memory (coalesced). The groups' matrices lie one
// after another, each by itself what a matrix product wants; blockIdx.y is the group. Windows that hang over the edge
// read zeros.
//
// Bytes of im2col, with M = N*P*Q rows, b bytes a value:  M*R*S*C*b written, N*H*W*C*b read from memory at least once;
// that a pixel is read R*S times is the caches' affair. It computes nothing: its roofline is the memory's bandwidth. On
// an H100 (3.35 TB/s) a layer of ResNet-20 with C = 16 and 3x3 windows, 128 images of 32x32, writes 75 MB and reads
// 8 MB: 25 us at best. This is what the bare formula says; it has not been measured here.
// col2im moves the same bytes the other way, with one addition a value: 1/4 operation a byte in float. The ridge of
// that machine lies at 67 TFLOP/s / 3.35 TB/s = 20 operations a byte, so this is the memory's too.
// With one channel a group (depthwise) a warp reads x in steps of C values: 8 times the traffic between the caches.
//
// V values, 16 bytes, are one move (see pack.cuh) where the channels of a group are a multiple of V; else V = 1.

#include "pack.cuh"

constexpr int PIXELS = 4;  // output pixels of a thread in im2col: working out where to read is shared by so many

// One thread: V channels of one kernel position (r,s), for PIXELS neighbouring output pixels of a row of the output.
template <typename T, int V>
__global__ void __launch_bounds__(256)
im2col(const T* __restrict__ x, T* __restrict__ columns, int N, int C, int H, int W, int P, int Q, int R, int S,
       int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int groups) {
    const bool whole = is_aligned(x) && is_aligned(columns);
    const unsigned channels = C / groups, runs = channels / V, strips = (Q + PIXELS - 1) / PIXELS;
    const unsigned i = blockIdx.x * 256 + threadIdx.x, place = i / runs;  // channels fastest, then s, r, q, p, n
    const int s = place % S, r = place / S % R;
    const unsigned strip = place / (R * S), row = strip / strips;  // row of the output: n*P + p
    const int p = row % P, n = row / P, q_first = strip % strips * PIXELS;
    if (n >= N) return;

    const int h = p * stride_h - pad_h + r * dilation_h;
    const T* line = x + (n * H + h) * W * C + blockIdx.y * channels + i % runs * V;
    T* out = columns + (((blockIdx.y * N + n) * P + p) * Q + q_first) * R * S * channels + (r * S + s) * channels
             + i % runs * V;
#pragma unroll
    for (int j = 0; j < PIXELS; j++) {
        const int w = (q_first + j) * stride_w - pad_w + s * dilation_w;
        if (q_first + j < Q) {
            Pack<T, V> pack = {};
            if (h >= 0 && h < H && w >= 0 && w < W) pack = load<V>(line + w * C, V > 1 && whole);
            store(out + j * R * S * channels, pack, V > 1 && whole);
        }
    }
}

// Gather: one thread has V channels of one pixel of x and looks for the windows that cover it. Position (r,s) of window
// (p,q) lies on the pixel (h,w) if p*stride - pad + r*dilation = h, and so for w: for each r at most one p, found by a
// division that must leave no rest. The order of the sum is that of (r,s), whatever runs first: bit for bit the same
// each time. With `add`, dx keeps what it has and the sum is added to it.
template <typename T, int V>
__global__ void __launch_bounds__(256)
col2im(const T* __restrict__ columns, T* __restrict__ dx, int N, int C, int H, int W, int P, int Q, int R, int S,
       int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, int add) {
    const bool whole = V > 1 && is_aligned(dx) && is_aligned(columns);
    const unsigned i = blockIdx.x * 256 + threadIdx.x, pixel = i / (C / V);
    const int channel = i % (C / V) * V, channels = C / groups, group = channel / channels;
    const int w = pixel % W, h = pixel / W % H, n = pixel / W / H;
    if (n >= N) return;

    Pack<T, V> sum = {};
    for (int r = 0; r < R; r++) {
        const int below = h + pad_h - r * dilation_h, p = below / stride_h;
        if (below < 0 || p >= P || p * stride_h != below) continue;
        for (int s = 0; s < S; s++) {
            const int right = w + pad_w - s * dilation_w, q = right / stride_w;
            if (right < 0 || q >= Q || q * stride_w != right) continue;
            const int window = ((group * N + n) * P + p) * Q + q;
            const Pack<T, V> share =
                load<V>(columns + ((window * R + r) * S + s) * channels + channel % channels, whole);
#pragma unroll
            for (int j = 0; j < V; j++) sum.v[j] += share.v[j];
        }
    }
    T* total = dx + pixel * C + channel;
    if (add) {
        const Pack<T, V> old = load<V>(total, whole);
#pragma unroll
        for (int j = 0; j < V; j++) sum.v[j] = old.v[j] + sum.v[j];
    }
    store(total, sum, whole);
}

// Scatter: one thread has one value of `columns` and adds it to its pixel; dx is zero before. It is im2col with the
// arrow turned round, and needs no division by the stride. But up to R*S threads add to the same pixel, so they must
// take turns (atomicAdd), and who comes first is not the same in two runs. Float addition is not associative:
// (a + b) + c and a + (b + c) round differently, and the same training, run twice, drifts apart. So this form is for
// the lesson and for comparison, never for training. It also reads and writes dx R*S times in the second-level cache.
template <typename T>
__global__ void __launch_bounds__(256)
col2im_atomic(const T* __restrict__ columns, T* dx, int N, int C, int H, int W, int P, int Q, int R, int S,
              int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int groups) {
    const unsigned channels = C / groups, i = blockIdx.x * 256 + threadIdx.x, place = i / channels;
    const int s = place % S, r = place / S % R;
    const unsigned window = place / (R * S);
    const int q = window % Q, p = window / Q % P, n = window / Q / P;
    const int h = p * stride_h - pad_h + r * dilation_h, w = q * stride_w - pad_w + s * dilation_w;
    if (n < N && h >= 0 && h < H && w >= 0 && w < W) {
        const T value = columns[blockIdx.y * N * P * Q * R * S * channels + i];
        atomicAdd(dx + ((n * H + h) * W + w) * C + blockIdx.y * channels + i % channels, value);
    }
}
