// Who touched which byte of a block's shared memory last: finds races and reads of what nobody wrote.
//
// In the sanitize build every load and store of a kernel calls the runtime (hooks.h), and so comes here. Two accesses
// of one byte by two threads, at least one a store, are a race unless something makes the one wait for the other: a
// barrier of the block, or an operation of the warp in which both took part. To know that, time is counted in such
// meetings, and
//
//     for each byte          the last store and two loads by different threads, with their times
//     for the block          the time of its last barrier
//     for each thread        up to which time it knows what each of the other 31 lanes of its warp has done:
//                            a vector clock (C. Fidge 1988, F. Mattern 1989)
//
// Two loads are enough: a store that is no race with either of two threads' loads is by neither or ordered after both.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace emulator {

struct Access {
    const void* instruction = nullptr;
    unsigned time = 0;
    unsigned short thread = 0;
    bool atomic = false;
};

class Watch {
public:
    struct Found {
        const Access* other = nullptr;  // the one that collides
        bool unwritten = false, other_wrote = false;
    };

    // A block of `threads` threads begins; it has `bytes` bytes of shared memory that nobody has written.
    void begin_block(unsigned threads, std::size_t bytes)
    {
        if (bytes_.size() < bytes) bytes_.resize(bytes);
        known_.assign(threads, {});
        began_ = barrier_ = ++now_;
    }

    void barrier() { barrier_ = ++now_; }

    // The lanes of the warp whose first thread is `first` have met: each knows all that any of them knew.
    void met(unsigned first, unsigned lanes)
    {
        ++now_;
        std::array<unsigned, 32> all{};
        for (unsigned m = lanes; m; m &= m - 1) {
            const auto& one = known_[first + __builtin_ctz(m)];
            for (int l = 0; l < 32; ++l)
                if (one[l] > all[l]) all[l] = one[l];
        }
        for (unsigned m = lanes; m; m &= m - 1) all[__builtin_ctz(m)] = now_;
        for (unsigned m = lanes; m; m &= m - 1) known_[first + __builtin_ctz(m)] = all;
    }

    // The thread touches a byte: reads, writes, or both where it is an atomic operation.
    Found touch(std::size_t byte, unsigned thread, bool reads, bool writes, bool atomic, const void* instruction)
    {
        Byte& b = bytes_[byte];
        if (reads && b.store.time < began_) return {nullptr, true, false};
        if (collides(b.store, thread, atomic)) return {&b.store, false, true};
        const Access now{instruction, now_, static_cast<unsigned short>(thread), atomic};
        if (writes) {
            for (const Access& load : b.loads)
                if (collides(load, thread, atomic)) return {&load, false, false};
            b.store = now;
        } else {
            if (b.loads[0].thread != thread) b.loads[1] = b.loads[0];
            b.loads[0] = now;
        }
        return {};
    }

private:
    struct Byte {
        Access store, loads[2];
    };

    bool collides(const Access& before, unsigned thread, bool atomic) const
    {
        if (before.time < barrier_ || before.thread == thread || (before.atomic && atomic)) return false;
        return before.thread / 32 != thread / 32 || before.time >= known_[thread][before.thread % 32];
    }

    std::vector<Byte> bytes_;
    std::vector<std::array<unsigned, 32>> known_;
    unsigned now_ = 0, began_ = 0, barrier_ = 0;
};

}  // namespace emulator
