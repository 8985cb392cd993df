// SGD and Adam for all parameters of a network in one launch.
//
// A rule reads a weight, its gradient and its state once, and writes what changed once: 20 bytes a weight for SGD with
// momentum, 28 for Adam, in float. ResNet-20 has 270,000 weights: 5.4 MB, 2 us at 3.35 TB/s. But they lie in 59 arrays,
// and 59 launches take some 59 * 5 us of the host. So one launch is given a table that says where everything lies:
//
//     row of the table      p            g            state        state        count         (5 words of 64 bits)
//     block 0           ->  conv1.weight ...          ...          0            432
//     block 1           ->  bn1.weight   ...          ...          0            16
//     block 7           ->  + 2048 * b   + 2048 * b   + 2048 * b   0            2048          a piece of a large array
//
// A row is a piece of at most 2,048 values of one parameter, the work of one block: so no block has much more to do
// than another, though the arrays' sizes differ by a factor of thousands. The table changes only when an array moves,
// so it stays on the device from step to step; what changes from step to step, the rate, is an argument.
//
// What one multiprocessor must have on its way to keep the memory of an H100 busy: 3.35 TB/s * 0.6 us / 132 = 15 KB.
// Its 2,048 threads with 3 loads of 4 bytes each have 24 KB, so that wider loads are not needed. But that takes 8
// blocks on each, 2 million weights: the 170 blocks of ResNet-20 wait 8 times, one value after the other, some 5 us.
//
// The options come in double and become numbers of the arrays' type, as in the kernels for the processor.

template <typename T>
struct Piece {
    T *p, *first, *second;  // the weights and their state; null where a rule has none
    const T* g;
    unsigned count;
};

template <typename T>
__device__ __forceinline__ Piece<T> piece(const unsigned long long* table) {
    const unsigned long long* row = table + 5 * blockIdx.x;
    return {(T*)row[0], (T*)row[2], (T*)row[3], (const T*)row[1], (unsigned)row[4]};
}

// g' = g + weight_decay p;  v = momentum v + g';  p -= lr v, or lr (g' + momentum v) with nesterov; no v: p -= lr g'.
template <typename T>
__global__ void __launch_bounds__(256)
sgd(const unsigned long long* __restrict__ table, double lr, double momentum, double weight_decay, int nesterov) {
    const Piece<T> at = piece<T>(table);
    const T rate = (T)lr, keep = (T)momentum, decay = (T)weight_decay;
    for (unsigned i = threadIdx.x; i < at.count; i += 256) {
        const T weight = at.p[i];
        T step = at.g[i];
        if (decay != 0) step += decay * weight;  // 0 times an infinite weight would be NaN
        if (at.first) {
            const T v = keep * at.first[i] + step;
            at.first[i] = v;
            step = nesterov ? step + keep * v : v;
        }
        at.p[i] = weight - rate * step;
    }
}

// m += (1 - beta1) (g' - m);  s = beta2 s + (1 - beta2) g' g';  p = shrink p - rate m / (scale sqrt(s) + eps).
// rate = lr / (1 - beta1^step) and scale = 1 / sqrt(1 - beta2^step) are the host's to compute.
template <typename T>
__global__ void __launch_bounds__(256)
adam(const unsigned long long* __restrict__ table, double rate, double scale, double beta1, double beta2, double eps,
     double weight_decay, double shrink) {
    const Piece<T> at = piece<T>(table);
    const T gain1 = (T)(1 - beta1), keep2 = (T)beta2, gain2 = (T)(1 - beta2), decay = (T)weight_decay;
    const T factor = (T)rate, unbias = (T)scale, least = (T)eps, keep = (T)shrink;
    for (unsigned i = threadIdx.x; i < at.count; i += 256) {
        const T weight = keep * at.p[i];
        T gradient = at.g[i];
        if (decay != 0) gradient += decay * weight;
        const T m = at.first[i] + gain1 * (gradient - at.first[i]);
        const T s = keep2 * at.second[i] + gain2 * (gradient * gradient);
        at.first[i] = m;
        at.second[i] = s;
        at.p[i] = weight - factor * m / (unbias * (T)sqrt(s) + least);
    }
}
