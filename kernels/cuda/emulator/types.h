// The words and types that CUDA adds to C++.
//
// Where a function runs (__global__, __device__) means nothing here. Where a variable lies does: a __shared__ array is
// one per block, and as an operating-system thread runs one block at a time, `thread_local` is just that.
#pragma once

#include <cstddef>

#define CUDA_EMULATOR 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))  // not alignas, which may not stand where CUDA's may

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// float2, float3, float4 and make_float2, ...: those of 2 and 4 are aligned, at most to 16 bytes, so that the device
// loads each with one instruction. A load from elsewhere is a fault there; the sanitize build finds it here.
#define EMULATOR_VECTOR_3(name, type)                                                                            \
    struct name##3 {                                                                                             \
        type x, y, z;                                                                                            \
    };
#define EMULATOR_VECTORS_BUT_3(name, type)                                                                       \
    struct name##1 {                                                                                             \
        type x;                                                                                                  \
    };                                                                                                           \
    struct __align__(2 * sizeof(type)) name##2 {                                                                 \
        type x, y;                                                                                               \
    };                                                                                                           \
    struct __align__(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 {                                    \
        type x, y, z, w;                                                                                         \
    };
#define EMULATOR_MAKE(name, type)                                                                                \
    inline name##1 make_##name##1(type x) { return {x}; }                                                        \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                             \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                                  \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
#define EMULATOR_VECTORS(name, type)                                                                             \
    EMULATOR_VECTOR_3(name, type)                                                                                \
    EMULATOR_VECTORS_BUT_3(name, type)                                                                           \
    EMULATOR_MAKE(name, type)

EMULATOR_VECTORS(char, signed char)
EMULATOR_VECTORS(uchar, unsigned char)
EMULATOR_VECTORS(short, short)
EMULATOR_VECTORS(ushort, unsigned short)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS_BUT_3(uint, unsigned)  // uint3 is above
EMULATOR_MAKE(uint, unsigned)
EMULATOR_VECTORS(longlong, long long)
EMULATOR_VECTORS(ulonglong, unsigned long long)
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(double, double)
