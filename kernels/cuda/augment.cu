// A batch of training images in one launch: picked from the data set, moved, mirrored, cut out and normalised.
//
// The data set lies on the device as it came, as bytes. NumPy's way through a batch is a copy of it per step: gather,
// pad, crop, mirror, cut, convert, multiply, add; here no step but the last has a result that is ever stored. What they
// do to an image is to say which stored value each output value is (see ../augmentation.py), so a thread reads that
// one, normalises it and writes it:
//
//     block (b, slab)                     b: an image of the batch;  slab: a part of its H*W*C values
//         threads 0, 1, 2: one random word each, of image index[b]      -> shared memory, read by all after the barrier
//         thread t: values slab*256 + t, + slabs*256, + ...             neighbours write neighbours: 128 bytes a warp
//             (h, w, c)  ->  (h + down, (mirrored ? W-1-w : w) + right, c)     in the image: its value; outside: 0
//             x[b, h, w, c] = value * factor[c] + offset[c]
//
// The random words are computed here, from (seed, epoch, number of the image): nothing comes from the host but the
// order of the epoch, and a sample is augmented alike in whatever batch, on whatever device.
//
// Bytes moved: 1 read and 4 written a value, 1.97 MB for 128 images of 32 x 32 x 3: 0.6 us at 3.3 TB/s. The roofline is
// the memory's, far out of reach at that size: a launch takes longer. The arithmetic is two divisions of 32 bits a
// value, and for each block the time of one Philox word, some 240 instructions, which three threads wait for at once.
//
// Equal bit for bit to NumPy's arithmetic on the host, as the two roundings of value * factor + offset are kept: left
// to itself the compiler would contract them to one fused multiply-add. (But CuPy compiles with -ftz=true: stored
// floats below 1.2e-38 count as 0.)

#include "philox.cuh"

// A uniform integer below `bound` from 32 random bits: floor(bits * bound / 2^32).
__device__ __forceinline__ int below(int bound, unsigned long long bits) {
    return (int)__umulhi((unsigned)bits, (unsigned)bound);
}

// images (N, H, W, C) of T, index (B), factor and offset (C) -> x (B, H, W, C). padding 0: nothing is moved; flip 0:
// nothing is mirrored; cutout 0: nothing is cut out, and fill (C) is not read. Grid (B, slabs).
template <typename T>
__global__ void __launch_bounds__(256)
augment(const T* __restrict__ images, const long long* __restrict__ index, const float* __restrict__ factor,
        const float* __restrict__ offset, const T* __restrict__ fill, float* __restrict__ x, int height, int width,
        int channels, int padding, int flip, int cutout, unsigned long long seed, unsigned long long epoch,
        unsigned long long crop_stream, unsigned long long flip_stream, unsigned long long cutout_stream) {
    __shared__ unsigned long long words[3];
    const unsigned sample = (unsigned)index[blockIdx.x];
    if (threadIdx.x < 3) {
        const unsigned t = threadIdx.x;
        const unsigned long long stream = t == 0 ? crop_stream : t == 1 ? flip_stream : cutout_stream;
        words[t] = philox_word(seed, epoch, stream, sample);
    }
    __syncthreads();
    const int down = below(2 * padding + 1, words[0] >> 32) - padding;
    const int right = below(2 * padding + 1, words[0]) - padding;
    const bool mirrored = flip && words[1] >> 63;
    const int cut_top = below(height, words[2] >> 32) - cutout / 2;
    const int cut_left = below(width, words[2]) - cutout / 2;

    const unsigned line = (unsigned)(width * channels), size = (unsigned)height * line;
    const T* image = images + sample * size;
    float* out = x + blockIdx.x * size;
    for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < size; i += gridDim.y * blockDim.x) {
        const unsigned h = i / line, w = (i - h * line) / (unsigned)channels, c = i - h * line - w * (unsigned)channels;
        const int from_h = (int)h + down, from_w = (mirrored ? width - 1 - (int)w : (int)w) + right;
        T value = 0;
        // As unsigned a negative number is a huge one, so that one comparison asks for both ends.
        if ((unsigned)((int)h - cut_top) < (unsigned)cutout && (unsigned)((int)w - cut_left) < (unsigned)cutout)
            value = fill[c];
        else if ((unsigned)from_h < (unsigned)height && (unsigned)from_w < (unsigned)width)
            value = image[(unsigned)(from_h * width + from_w) * (unsigned)channels + c];
        out[i] = __fadd_rn(__fmul_rn((float)value, factor[c]), offset[c]);
    }
}
