// Runs a block: its threads one after another, each until it has to wait for others.
//
// A thread waits in two places: at a barrier, until all threads of the block are there, and at an operation of its
// warp, until all lanes of the mask are. The last to come makes the others ready. When no thread can go on and not all
// have returned, the block would hang on the device too: a deadlock, reported with where everyone waits.
//
// Between two barriers the threads run in a chosen order, one by one. So a missing barrier shows in at least one order:
// forward or reverse, the reader comes before the writer. And shared memory is filled with 255 before each block, which
// as a float is NaN, never the last block's values.
//
// A thread gets a fiber (fiber.h) when it first runs. A kernel without barriers needs only one: as long as threads
// return without waiting, the fiber goes on with the next.
#pragma once

#include <algorithm>
#include <numeric>

#include "worker.h"

namespace emulator {

// ---- a launch on this operating-system thread: blocks, as long as there are any ----

// Dynamic shared memory ends where memory cannot be touched, so that an access past its end is noticed.
inline Worker::Worker()
{
    void* m = mmap(nullptr, MOST_SHARED + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) throw std::bad_alloc();
    dynamic_end_ = static_cast<char*>(m) + MOST_SHARED;
    mprotect(dynamic_end_, PAGE, PROT_NONE);
}

inline std::uint64_t mixed(std::uint64_t x)  // splitmix64 (G. Steele, D. Lea, C. Flood 2014)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// The k-th block to be run. In random order k * step + start, modulo the number of blocks, which takes each one once
// as the two have no common divisor.
inline std::uint64_t block_number(std::uint64_t k, std::uint64_t blocks, const Request& request)
{
    if (request.order == REVERSE) return blocks - 1 - k;
    if (request.order == FORWARD) return k;
    std::uint64_t step = mixed(request.seed) % blocks;
    while (std::gcd(step, blocks) != 1) ++step;
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(k) * step + mixed(request.seed + 1)) % blocks);
}

inline void Worker::run(Launch& launch)
{
    launch_ = &launch;
    const Request& request = launch.request;
    const uint3 size = request.block, grid = request.grid;
    const unsigned n = size.x * size.y * size.z;
    here = Here{{}, {}, size, grid, this};
    forget_fibers();  // this worker may have run on another operating-system thread, whose addresses code keeps
    dynamic_size_ = (request.shared + 15) / 16 * 16;
    static_begin_ = launch.segment.size ? launch.marker() - launch.segment.marker : nullptr;
    static_size_ = launch.segment.size;
    threads_.assign(n, {});
    for (unsigned i = 0; i < n; ++i) {
        threads_[i].number = i;
        threads_[i].index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    }
    order_.resize(n);
    const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y * grid.z;
    for (std::uint64_t k; !launch.failed && (k = launch.next++) < blocks;) {
        const std::uint64_t b = block_number(k, blocks, request);
        std::iota(order_.begin(), order_.end(), 0u);
        if (request.order == REVERSE) std::reverse(order_.begin(), order_.end());
        if (request.order == RANDOM)
            for (unsigned i = n; i > 1; --i)
                std::swap(order_[i - 1], order_[mixed(mixed(request.seed + b) + i) % i]);
        run_block({unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)});
    }
    here.worker = nullptr;
}

// ---- a block ----

inline void Worker::run_block(uint3 block)
{
    here.block = block;
    poison_shared();
    const unsigned n = threads_.size();
    if (launch_->request.sanitize) watch_.begin_block(n, static_size_ + dynamic_size_);
    for (Thread& thread : threads_) thread.state = State::fresh;
    waiting_.assign((n + 31) / 32, 0);
    alive_.assign((n + 31) / 32, ~0u);
    if (n % 32) alive_.back() = (1u << n % 32) - 1;
    at_barrier_ = returned_ = 0;
    ended_ = false;
    while (returned_ < n && !ended_)
        if (!run_ready_threads() && !ended_) report_deadlock();
    if (ended_) forget_fibers();
}

inline void Worker::poison_shared()
{
    memset(dynamic_shared(), 0xff, dynamic_size_);
    if (static_begin_) memset(static_begin_, 0xff, static_size_);
}

// Each thread that need not wait, once. False if there was none.
inline bool Worker::run_ready_threads()
{
    bool any = false;
    for (scan_ = 0; scan_ < order_.size() && !ended_; ++scan_) {
        Thread* thread = &threads_[order_[scan_]];
        if (thread->state != State::fresh && thread->state != State::ready) continue;
        any = true;
        resume(thread);
    }
    return any;
}

inline void Worker::resume(Thread* thread)
{
    if (thread->state == State::fresh) thread->fiber = spare_fiber();
    enter(thread);
    if (thread->fiber->fresh) thread->fiber->start(fiber_main);
    emulator_switch(&scheduler_, thread->fiber->stack_pointer);
    running = nullptr;
}

inline void Worker::enter(Thread* thread)
{
    running = thread;
    thread->state = State::ready;
    here.thread = thread->index;
}

// The first function of each fiber: calls the kernel for one thread, and then for those next in order that are fresh.
inline void Worker::fiber_main()
{
    for (;;) {
        Worker* w = here.worker;
        Fiber* fiber = w->running->fiber;
        for (;;) {
            w->launch_->call(w->launch_->kernel, w->launch_->request.arguments);
            w->finish(w->running);
            if (w->scan_ + 1 >= w->order_.size()) break;
            Thread* next = &w->threads_[w->order_[w->scan_ + 1]];
            if (next->state != State::fresh) break;
            ++w->scan_;
            next->fiber = fiber;
            w->enter(next);
        }
        w->spare_.push_back(fiber);
        w->switch_to_scheduler();
    }
}

inline Fiber* Worker::spare_fiber()
{
    if (spare_.empty()) {
        fibers_.push_back(std::make_unique<Fiber>());
        return fibers_.back().get();
    }
    Fiber* fiber = spare_.back();
    spare_.pop_back();
    return fiber;
}

inline void Worker::forget_fibers()
{
    spare_.clear();
    for (auto& fiber : fibers_) {
        fiber->fresh = true;
        spare_.push_back(fiber.get());
    }
}

inline void Worker::finish(Thread* thread)
{
    thread->state = State::returned;
    ++returned_;
    const unsigned warp = thread->number / 32;
    alive_[warp] &= ~(1u << thread->number % 32);
    if (waiting_[warp]) try_warp(warp, threads_[warp * 32 + __builtin_ctz(waiting_[warp])].mask);
    try_barrier();
}

}  // namespace emulator
