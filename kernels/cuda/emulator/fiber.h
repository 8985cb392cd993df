// Fibers: threads that take turns of their own accord.
//
// A function that has been called but has not returned is no more than its stack and the processor's registers. By the
// calling convention a called function may spoil most registers, and must restore a few. So to stop in the middle of
// one function and go on in the middle of another, it is enough to push those few on the stack, put the stack pointer
// away, take the other's, and pop: some 15 instructions, 5 nanoseconds. Here each CUDA thread is a fiber; an
// operating-system thread for each would take a thousand times as long to switch.
//
// A new fiber's stack is made to look as if the fiber had once switched away: registers all zero, and as the address
// to return to its first function. Above that a zero, where debuggers and unwinders stop.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

// Saves where it is to *save and goes on with `load`, which was saved by another call.
extern "C" void emulator_switch(void** save, void* load) __attribute__((visibility("hidden")));
extern "C" void emulator_first() __attribute__((visibility("hidden")));  // aarch64: calls the first function

#if defined(__x86_64__)
asm(R"(
    .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, . - emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8,  d9,  [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8,  d9,  [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulator_switch, . - emulator_switch

    .hidden emulator_first
    .globl emulator_first
    .type emulator_first, %function
emulator_first:
    mov x30, xzr
    br x19
    .size emulator_first, . - emulator_first
)");
#else
#error "the emulator runs on x86-64 and aarch64: add this processor's switch to fiber.h"
#endif

namespace emulator {

constexpr std::size_t PAGE = 64 << 10;   // a multiple of the system's, whichever it has
constexpr std::size_t STACK = 64 << 10;  // bytes for a CUDA thread's local variables and calls

struct Fiber {
    void* stack_pointer = nullptr;
    char* memory;  // a page that cannot be touched, then the stack, which grows down towards it
    bool fresh = true;

    Fiber()
    {
        void* m = mmap(nullptr, PAGE + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (m == MAP_FAILED) throw std::bad_alloc();
        memory = static_cast<char*>(m);
        mprotect(memory, PAGE, PROT_NONE);
    }
    ~Fiber() { munmap(memory, PAGE + STACK); }
    Fiber(const Fiber&) = delete;

    bool overflowed_at(const char* address) const { return memory <= address && address < memory + PAGE; }
    bool holds(const char* address) const { return memory + PAGE <= address && address < memory + PAGE + STACK; }

    // The next switch to this fiber calls `first`, which never returns. The tops of the stacks are spread, as memory
    // a power of two apart shares a place in the processor's cache.
    void start(void (*first)())
    {
        const std::size_t spread = reinterpret_cast<std::uintptr_t>(memory) / (PAGE + STACK) % 61 * 192;
        void** top = reinterpret_cast<void**>(memory + PAGE + STACK - spread - 64);
#if defined(__x86_64__)
        constexpr int words = 8;  // six registers, the address, and a zero so that the stack is aligned as after a call
        void** frame = top - words;
        memset(frame, 0, words * sizeof(void*));
        frame[6] = reinterpret_cast<void*>(first);
#else
        constexpr int words = 20;
        void** frame = top - words;
        memset(frame, 0, words * sizeof(void*));
        frame[0] = reinterpret_cast<void*>(first);            // x19
        frame[11] = reinterpret_cast<void*>(emulator_first);  // x30
#endif
        stack_pointer = frame;
        fresh = false;
    }
};

}  // namespace emulator
