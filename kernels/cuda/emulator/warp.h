// What the 32 threads (lanes) of a warp do together: each waits until all lanes of its mask have come, and the last one
// to come works out the results of all.
//
// A lane's input and result lie in a struct on its own stack. So a lane that hurries on to the next shuffle cannot
// overwrite what a slow one has not read yet, and there is no buffer to be cleared.
#pragma once

#include <cstring>

#include "place.h"

namespace emulator {

struct Lane {
    unsigned long long value;   // what this lane brings
    unsigned long long result;  // what it takes away
    int source;                 // shuffles: the lane whose value it wants
};

#pragma GCC visibility push(default)

// Each waits for the lanes of the mask and fills in `result`; `operation` names the CUDA function in messages.
void warp_shuffle(unsigned mask, Lane& lane, const char* operation, Source caller);  // all bits set: no such lane
void warp_ballot(unsigned mask, Lane& lane, const char* operation, Source caller);   // bit l: whether lane l's is true
void warp_sync(unsigned mask, const char* operation, Source caller);
int lane_number();

#pragma GCC visibility pop

template <class T>
T shuffle(unsigned mask, T value, int source, const char* operation, Source caller)
{
    static_assert(sizeof(T) <= 8, "a shuffle takes values of at most 8 bytes");
    Lane lane{0, 0, source};
    memcpy(&lane.value, &value, sizeof value);
    warp_shuffle(mask, lane, operation, caller);
    memcpy(&value, &lane.result, sizeof value);
    return value;
}

}  // namespace emulator

// The four shuffles work in sections of `width` lanes, a power of two. Who asks beyond the section's end gets its own.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emulator::Source caller = emulator::Source::caller())
{
    const int first = emulator::lane_number() & -width;
    return emulator::shuffle(mask, value, first | (source & (width - 1)), "__shfl_sync", caller);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 emulator::Source caller = emulator::Source::caller())
{
    const int lane = emulator::lane_number(), first = lane & -width, source = lane - int(by);
    return emulator::shuffle(mask, value, source >= first ? source : lane, "__shfl_up_sync", caller);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   emulator::Source caller = emulator::Source::caller())
{
    const int lane = emulator::lane_number(), last = lane | (width - 1), source = lane + int(by);
    return emulator::shuffle(mask, value, source <= last ? source : lane, "__shfl_down_sync", caller);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32,
                  emulator::Source caller = emulator::Source::caller())
{
    const int lane = emulator::lane_number(), last = lane | (width - 1), source = lane ^ with;
    return emulator::shuffle(mask, value, source <= last ? source : lane, "__shfl_xor_sync", caller);
}

inline unsigned __ballot_sync(unsigned mask, int p, emulator::Source caller = emulator::Source::caller())
{
    emulator::Lane lane{p != 0, 0, 0};
    emulator::warp_ballot(mask, lane, "__ballot_sync", caller);
    return unsigned(lane.result);
}

inline int __any_sync(unsigned mask, int p, emulator::Source caller = emulator::Source::caller())
{
    return __ballot_sync(mask, p != 0, caller) != 0;
}

inline int __all_sync(unsigned mask, int p, emulator::Source caller = emulator::Source::caller())
{
    return __ballot_sync(mask, p == 0, caller) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, emulator::Source caller = emulator::Source::caller())
{
    emulator::warp_sync(mask, "__syncwarp", caller);
}
