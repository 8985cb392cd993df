// Which block touched which value of an array: finds what depends on the order of the blocks.
//
// Blocks run in any order, several at a time, and wait for nothing. So what one block writes, no other block may read
// or write in the same launch, unless it is by atomic operations (a plain load beside them is let pass, as loops around
// atomicCAS() begin with one). In the sanitize build each access comes here, and for each value of an array that the
// kernel may write is noted
//
//     the block that stored it last         and the instruction that did
//     the block that has loaded it          or that several have; and the instruction of the last one
//
// A kernel that orders its blocks itself, with atomics and __threadfence(), is not watched from its first fence on, as
// what it then may do cannot be told from its accesses alone.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime.h"

namespace emulator {

class ArrayWatch {
public:
    struct Found {
        const void* instruction = nullptr;  // null: all is well
        std::uint32_t block = 0;
        bool stored = false, known = false;  // known: which block it was
    };

    explicit ArrayWatch(const Request& request) : values_(request.sanitize ? request.array_count : 0)
    {
        for (std::size_t i = 0; i < values_.size(); ++i) {
            const Array& a = request.arrays[i];
            if (a.value_size) values_[i].resize((a.end - a.begin + a.value_size - 1) / a.value_size);
        }
    }

    void fence() { values_.clear(); }

    // The block touches `size` bytes at `offset` of array i; base: of the instructions.
    Found touch(int i, const Array& a, std::size_t offset, std::size_t size, std::uint32_t block, bool reads,
                bool writes, bool atomic, const char* instruction, const char* base)
    {
        if (values_.empty() || !a.value_size) return {};
        const auto from_base = static_cast<std::int32_t>(instruction - base);
        for (std::size_t v = offset / a.value_size; v <= (offset + size - 1) / a.value_size; ++v) {
            Value& value = values_[i][v];
            const bool other_stored = value.stored_by && value.stored_by != block + 1;
            const bool other_loaded = value.loaded_by && value.loaded_by != block + 1;
            if (other_stored && !(value.atomic && (atomic || !writes)))
                return {base + value.store, value.stored_by - 1, true, true};
            if (other_loaded && writes && !atomic)
                return {base + value.load, value.loaded_by - 1, false, value.loaded_by != SEVERAL};
            if (writes) value.stored_by = block + 1, value.store = from_base, value.atomic = atomic;
            if (reads && !atomic) value.loaded_by = other_loaded ? SEVERAL : block + 1, value.load = from_base;
        }
        return {};
    }

private:
    static constexpr std::uint32_t SEVERAL = ~0u;
    struct Value {
        std::uint32_t stored_by = 0, loaded_by = 0;  // the number of the block, plus 1
        std::int32_t store = 0, load = 0;
        bool atomic = false;
    };
    std::vector<std::vector<Value>> values_;
};

}  // namespace emulator
