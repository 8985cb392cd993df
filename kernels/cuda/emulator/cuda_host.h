// What a .cu file sees when a C++ compiler for the processor reads it: every name that CUDA adds to C++, so that the
// same text, unchanged, becomes a function that runs here. The build puts this file in front of it (-include).
//
//   types.h             __global__, __shared__, float4, dim3: the words and types
//   place.h             threadIdx, blockIdx, blockDim, gridDim, __syncthreads()
//   warp.h              shuffles, votes, __syncwarp(): what the 32 threads of a warp do together
//   atomic.h            atomicAdd() and its family
//   device_functions.h  arithmetic: rsqrtf(), __umulhi(), __ldg(), ...
//   launch.h            from the arguments as an array of pointers to a call of the kernel
//
// These files hold as little as they can, as each .cu file pays for reading them. What runs the threads, one after
// another, is runtime.cpp, compiled once.
#pragma once

#include "types.h"
#include "place.h"
#include "warp.h"
#include "atomic.h"
#include "device_functions.h"
#include "launch.h"
