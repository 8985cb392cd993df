// What Python asks of the runtime, and what it gets back. module.py and report.py hold the same structs for ctypes.
#pragma once

#include <cstdint>

#include "place.h"

namespace emulator {

struct Array {  // one array's copy in guarded memory, and all of that memory that can be touched
    char *begin, *end, *first, *last;
    std::uint64_t value_size;  // bytes of one value; 0 if the kernel takes it as const
};

struct Report {  // the first fault of a launch
    int failed, signal;   // signal: SIGSEGV, ... where the processor stopped the thread; otherwise 0
    int access;           // 1 it read, 2 it wrote, 0 unknown, at
    std::uint64_t address;
    char reason[512];     // {other}: where `other_frame` is in the text
    char file[512];       // empty where only the frames tell
    int line, column;
    uint3 block, thread;
    int frame_count;
    std::uint64_t frames[32];   // instructions, the innermost first; after the first one each is where a call returns
    std::uint64_t other_frame;  // the earlier one of two accesses that collide
};

enum Order { FORWARD, REVERSE, RANDOM };

struct Request {
    uint3 grid, block;
    std::uint64_t shared;  // bytes of dynamic shared memory
    std::uint64_t seed;    // of the random order
    int order, workers;    // workers: operating-system threads, each with a block at a time; 1 if it sanitizes
    int sanitize;          // whether the kernel was built to announce its accesses
    int array_count;
    Array* arrays;
    void** arguments;
    Report* report;
};

}  // namespace emulator
