// The sanitize build: what the compiler's checks call.
//
// GCC and clang can make each load and store call a function (-fsanitize=thread), and each suspicious address, index
// and shift (-fsanitize=alignment,bounds,...; clang leaves out structs that are copied as a whole). What is called is
// normally a library that comes with the compiler; here it is this file. So every access of shared memory is seen by
// watch.h, every access of a global array by arrays.h and held to the array's exact bounds, and a fault is reported
// with its thread like any other.
#pragma once

#include "faults.h"

namespace emulator {

inline void Worker::touched(const char* address, std::size_t size, bool reads, bool writes, bool atomic,
                            const void* instruction)
{
    std::size_t first;
    if (static_begin_ <= address && address < static_begin_ + static_size_)
        first = address - static_begin_;
    else if (dynamic_shared() <= address && address < dynamic_end_)
        first = static_size_ + (address - dynamic_shared());
    else
        return touched_array(address, size, reads, writes, atomic, instruction);
    for (std::size_t i = 0; i < size; ++i) {
        const Watch::Found found = watch_.touch(first + i, running->number, reads, writes, atomic, instruction);
        if (found.unwritten) fail("reads shared memory that no thread of the block has written");
        if (!found.other) continue;
        launch_->request.report->other_frame = reinterpret_cast<std::uint64_t>(found.other->instruction);
        const std::string other = in_parentheses(threads_[found.other->thread].index);
        fail((writes ? "writes" : "reads") + (" shared memory that thread " + other) +
             (found.other_wrote ? " wrote" : " read") + "{other}, with no barrier in between");
    }
}

inline void Worker::touched_array(const char* address, std::size_t size, bool reads, bool writes, bool atomic,
                                  const void* instruction)
{
    const Request& request = launch_->request;
    int i = 0;
    while (i < request.array_count && !(request.arrays[i].first <= address && address < request.arrays[i].last)) ++i;
    if (i == request.array_count) return;  // a local variable, or a constant
    const Array& a = request.arrays[i];
    Report& r = *request.report;
    r.access = writes ? 2 : 1;
    if (address < a.begin || address + size > a.end) {
        const char* outside = address < a.begin ? address : std::max<const char*>(address, a.end);
        r.address = reinterpret_cast<std::uint64_t>(outside);
        fail(writes ? "writes {address}" : "reads {address}");
    }
    const uint3 grid = request.grid, b = here.block;
    const auto found = launch_->arrays.touch(i, a, address - a.begin, size, (b.z * grid.y + b.y) * grid.x + b.x, reads,
                                             writes, atomic, static_cast<const char*>(instruction),
                                             reinterpret_cast<const char*>(launch_->marker));
    if (!found.instruction) return;
    r.address = reinterpret_cast<std::uint64_t>(address);
    r.other_frame = reinterpret_cast<std::uint64_t>(found.instruction);
    const uint3 one = {found.block % grid.x, found.block / grid.x % grid.y, found.block / grid.x / grid.y};
    const std::string other = found.known ? "block " + in_parentheses(one) : "several blocks";
    fail((writes ? "writes" : "reads") + (" {address}, which " + other) + (found.stored ? " wrote" : " read") +
         "{other} in the same launch, where blocks have no order");
}

// Accesses of the runtime itself, and of threads that are not a kernel's, are none of ours.
inline void touched(const void* address, std::size_t size, bool reads, bool writes, bool atomic,
                    const void* instruction)
{
    Worker* w = here.worker;
    if (w && w->running) w->touched(static_cast<const char*>(address), size, reads, writes, atomic, instruction);
}

}  // namespace emulator

#pragma GCC visibility push(default)
extern "C" {

// ---- -fsanitize=thread ----

#define EMULATOR_READ(name, size) \
    void name(void* p) { emulator::touched(p, size, true, false, false, __builtin_return_address(0)); }
#define EMULATOR_WRITE(name, size) \
    void name(void* p) { emulator::touched(p, size, false, true, false, __builtin_return_address(0)); }
#define EMULATOR_ACCESSES(size) \
    EMULATOR_READ(__tsan_read##size, size) \
    EMULATOR_READ(__tsan_unaligned_read##size, size) \
    EMULATOR_WRITE(__tsan_write##size, size) \
    EMULATOR_WRITE(__tsan_unaligned_write##size, size)
EMULATOR_ACCESSES(1)
EMULATOR_ACCESSES(2)
EMULATOR_ACCESSES(4)
EMULATOR_ACCESSES(8)
EMULATOR_ACCESSES(16)

void __tsan_read_range(void* p, unsigned long size)
{
    emulator::touched(p, size, true, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, unsigned long size)
{
    emulator::touched(p, size, false, true, false, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, unsigned long size)
{
    emulator::touched(from, size, true, false, false, __builtin_return_address(0));
    emulator::touched(to, size, false, true, false, __builtin_return_address(0));
    return memcpy(to, from, size);
}
void* __tsan_memset(void* to, int value, unsigned long size)
{
    emulator::touched(to, size, false, true, false, __builtin_return_address(0));
    return memset(to, value, size);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}

// ---- -fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero ----

struct Location {
    const char* file;
    unsigned line, column;
};
struct Type {
    unsigned short kind, info;
    char name[1];  // in quotes, as long as it is
};
struct Mismatch {
    Location location;
    const Type* type;
    unsigned char log_alignment, kind;
};
struct Index {
    Location location;
    const Type *array, *index;
};

[[noreturn]] static void unsound(const Location& l, const std::string& what)
{
    emulator::here.worker->fail(what, {l.file, int(l.line)}, int(l.column));
}

static std::string name_of(const Type* type)  // clang says 'float4', GCC 'struct float4'
{
    std::string name = type->name;
    const auto found = name.find("struct ");
    return found == name.npos ? name : name.erase(found, 7);
}

void __ubsan_handle_type_mismatch_v1(Mismatch* m, std::uintptr_t address)
{
    const std::uintptr_t alignment = std::uintptr_t(1) << m->log_alignment;
    unsound(m->location, "reads or writes a " + name_of(m->type) + " at an address that is not a multiple of " +
                             std::to_string(alignment) + ", but " + std::to_string(address % alignment) + " more");
}

void __ubsan_handle_out_of_bounds(Index* i, std::uintptr_t index)
{
    unsound(i->location,
            "index " + std::to_string(std::intptr_t(index)) + " is outside an array of type " + name_of(i->array));
}

#define EMULATOR_UNSOUND(name, what) \
    void __ubsan_handle_##name(Location* l, void*, void*) { unsound(*l, what); }
EMULATOR_UNSOUND(add_overflow, "an addition of signed integers overflows")
EMULATOR_UNSOUND(sub_overflow, "a subtraction of signed integers overflows")
EMULATOR_UNSOUND(mul_overflow, "a product of signed integers overflows")
EMULATOR_UNSOUND(negate_overflow, "the negative of a signed integer overflows")
EMULATOR_UNSOUND(divrem_overflow, "divides an integer by zero, or the least one by -1")
EMULATOR_UNSOUND(shift_out_of_bounds, "shifts by less than 0 or by as many bits as there are, or past the sign")
EMULATOR_UNSOUND(pointer_overflow, "a pointer overflows")
EMULATOR_UNSOUND(builtin_unreachable, "comes to a place that the compiler takes for unreachable")

}  // extern "C"
#pragma GCC visibility pop
