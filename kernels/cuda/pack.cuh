// V neighbouring values as one: 16 bytes where V = 16 / sizeof(T), which a thread moves with one instruction.
//
// A warp of 32 threads asks for 32 x 4 = 128 bytes when each moves a float, for 512 when each moves four. It is the
// same traffic for the memory, but a quarter of the instructions and of the requests that are on their way at a time.
// The address must be a multiple of 16; the device traps otherwise. So `whole` says whether this place may be moved as
// a whole; where not, the values go one by one.

#pragma once

template <typename T, int V = 16 / sizeof(T)>
struct alignas(sizeof(T) * V) Pack {
    T v[V];
};

__device__ __forceinline__ bool is_aligned(const void* p) {
    return (unsigned long long)p % 16 == 0;
}

template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load(const T* p, bool whole) {
    if (whole) return *reinterpret_cast<const Pack<T, V>*>(p);
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; i++) pack.v[i] = p[i];
    return pack;
}

template <int V, typename T>
__device__ __forceinline__ void store(T* p, const Pack<T, V>& pack, bool whole) {
    if (whole) {
        *reinterpret_cast<Pack<T, V>*>(p) = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < V; i++) p[i] = pack.v[i];
}
