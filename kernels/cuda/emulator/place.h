// Which thread is running, and the barrier of its block.
#pragma once

#include "types.h"

namespace emulator {

class Worker;

// A line of the kernel's text. As the default argument of a function, caller() is the line that calls the function.
struct Source {
    const char* file;
    int line;
    static constexpr Source caller(const char* file = __builtin_FILE(), int line = __builtin_LINE())
    {
        return {file, line};
    }
};

#pragma GCC visibility push(default)  // from here to the pop: in the runtime, which kernels are linked to

// The runtime sets this before it lets a thread run; one per operating-system thread, as each runs another block.
struct Here {
    uint3 thread, block, block_size, grid_size;
    Worker* worker;
};
extern __thread Here here;

int barrier(int vote, Source caller);
[[noreturn]] void fail(const char* reason, Source caller);
void fence();
void* dynamic_shared();  // what `extern __shared__ T name[];` names

#pragma GCC visibility pop

}  // namespace emulator

#define threadIdx (static_cast<const uint3&>(emulator::here.thread))
#define blockIdx (static_cast<const uint3&>(emulator::here.block))
#define blockDim (static_cast<const uint3&>(emulator::here.block_size))
#define gridDim (static_cast<const uint3&>(emulator::here.grid_size))
constexpr int warpSize = 32;

inline void __syncthreads(emulator::Source caller = emulator::Source::caller())
{
    emulator::barrier(0, caller);
}

// In how many threads is p true? In any? In all?
inline int __syncthreads_count(int p, emulator::Source caller = emulator::Source::caller())
{
    return emulator::barrier(p != 0, caller);
}
inline int __syncthreads_or(int p, emulator::Source caller = emulator::Source::caller())
{
    return emulator::barrier(p != 0, caller) != 0;
}
inline int __syncthreads_and(int p, emulator::Source caller = emulator::Source::caller())
{
    return emulator::barrier(p == 0, caller) == 0;
}

[[noreturn]] inline void __trap(emulator::Source caller = emulator::Source::caller())
{
    emulator::fail("calls __trap()", caller);
}

// Threads run one after another, and a block's own writes are seen at once; between blocks on several operating-system
// threads a fence is one.
inline void __threadfence_block() {}
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
