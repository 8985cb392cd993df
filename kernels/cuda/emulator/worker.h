// What runs blocks: a worker, one on each operating-system thread of a launch, with a block at a time.
//
//   block.h     its blocks and their threads, in turns
//   meetings.h  where threads wait for each other: barriers and warps
//   faults.h    what it reports, and the signals of the processor
//   hooks.h     what it hears of each access, in the sanitize build
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "arrays.h"
#include "fiber.h"
#include "runtime.h"
#include "warp.h"
#include "watch.h"

namespace emulator {

enum class State : unsigned char { fresh, ready, at_barrier, at_warp, returned };

struct Thread;
using Meeting = void (*)(Thread* warp, unsigned lanes);  // fills in each lane's result

struct Thread {
    uint3 index{};
    unsigned number = 0;
    State state = State::fresh;
    Fiber* fiber = nullptr;
    Source waits{};  // at this line
    int vote = 0;    // brought to a barrier; then the sum over the block
    unsigned mask = 0;
    Lane* lane = nullptr;
    Meeting meeting = nullptr;
    const char* operation = "";
};

struct SharedSegment {  // a module's shared arrays within its thread-local memory
    std::ptrdiff_t marker;
    std::size_t size;
};

struct Launch {
    const Request& request;
    void (*call)(const void* kernel, void** arguments);
    const void* kernel;
    char* (*marker)();
    SharedSegment segment;
    ArrayWatch arrays;
    std::atomic<std::uint64_t> next{0};  // block to be run
    std::atomic<bool> failed{false};
};

constexpr std::size_t MOST_SHARED = 256 << 10;  // more than any device has

class Worker {
public:
    Worker();
    ~Worker() { munmap(dynamic_end_ - MOST_SHARED, MOST_SHARED + PAGE); }
    Worker(const Worker&) = delete;

    void run(Launch& launch);

    // What kernels call.
    int wait_at_barrier(int vote, Source caller);
    void wait_for_lanes(unsigned mask, Lane* lane, Meeting meeting, const char* operation, Source caller);
    void fence() { launch_->arrays.fence(); }
    bool sanitizes() const { return launch_->request.sanitize; }
    char* dynamic_shared() const { return dynamic_end_ - dynamic_size_; }
    void touched(const char* address, std::size_t size, bool reads, bool writes, bool atomic, const void* instruction);

    // Ends the block, and the launch: the running thread is left where it is.
    [[noreturn]] void fail(const std::string& reason, Source source = {}, int column = 0);
    [[noreturn]] void fail_at_fault(int signal, const char* address, int access, const void* instruction);

    Thread* running = nullptr;  // null while the scheduler itself runs

private:
    void run_block(uint3 block);
    void poison_shared();
    bool run_ready_threads();
    void resume(Thread* thread);
    void enter(Thread* thread);
    static void fiber_main();
    Fiber* spare_fiber();
    void forget_fibers();
    void switch_to_scheduler() { emulator_switch(&running->fiber->stack_pointer, scheduler_); }
    void finish(Thread* thread);
    void try_barrier();
    void try_warp(unsigned warp, unsigned mask);
    void report_deadlock();
    void report(const std::string& reason, const Thread* thread, Source source, int column);
    void touched_array(const char* address, std::size_t size, bool reads, bool writes, bool atomic,
                       const void* instruction);

    Launch* launch_ = nullptr;
    std::vector<Thread> threads_;
    std::vector<unsigned> order_;          // of the threads
    std::vector<unsigned> alive_, waiting_;  // of each warp, one bit for each lane
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Fiber*> spare_;
    void* scheduler_ = nullptr;  // its stack pointer while a thread runs
    unsigned scan_ = 0, at_barrier_ = 0, returned_ = 0;
    bool ended_ = false;  // by a fault
    char *dynamic_end_, *static_begin_ = nullptr;
    std::size_t dynamic_size_ = 0, static_size_ = 0;
    Watch watch_;
};

inline std::string in_parentheses(uint3 v)
{
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

inline bool same(Source a, Source b)
{
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

inline std::string line_of(Source source)
{
    const std::string file = source.file;
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(source.line);
}

}  // namespace emulator
