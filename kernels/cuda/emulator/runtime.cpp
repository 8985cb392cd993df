// The runtime: what all kernels of a process are linked to. Compiled once, as one file.
//
//   fiber.h     switching from one thread to another
//   worker.h    what runs blocks
//   block.h     running the threads of a block in turns
//   meetings.h  barriers and warps
//   watch.h     races and unwritten shared memory
//   arrays.h    races between blocks
//   faults.h    reports; signals
//   hooks.h     the compiler's checks
//
// Here: what kernels call (place.h, warp.h, atomic.h) and run(), which is a launch.
#include <link.h>

#include <map>
#include <mutex>
#include <thread>

#include "atomic.h"
#include "hooks.h"
#include "launch.h"

namespace emulator {

__thread Here here{};

// ---- what kernels call ----

int barrier(int vote, Source caller) { return here.worker->wait_at_barrier(vote, caller); }

void fail(const char* reason, Source caller) { here.worker->fail(reason, caller); }

void fence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    here.worker->fence();
}

void* dynamic_shared() { return here.worker->dynamic_shared(); }

int lane_number() { return here.worker->running->number % 32; }

// A lane that does not take part has no value: all bits set, as a float NaN.
static void shuffle_lanes(Thread* warp, unsigned lanes)
{
    for (unsigned m = lanes; m; m &= m - 1) {
        Lane* lane = warp[__builtin_ctz(m)].lane;
        lane->result = lanes >> lane->source & 1 ? warp[lane->source].lane->value : ~0ull;
    }
}

static void ballot_lanes(Thread* warp, unsigned lanes)
{
    unsigned votes = 0;
    for (unsigned m = lanes; m; m &= m - 1)
        if (warp[__builtin_ctz(m)].lane->value) votes |= m & -m;
    for (unsigned m = lanes; m; m &= m - 1) warp[__builtin_ctz(m)].lane->result = votes;
}

static void only_meet(Thread*, unsigned) {}

void warp_shuffle(unsigned mask, Lane& lane, const char* operation, Source caller)
{
    here.worker->wait_for_lanes(mask, &lane, shuffle_lanes, operation, caller);
}

void warp_ballot(unsigned mask, Lane& lane, const char* operation, Source caller)
{
    here.worker->wait_for_lanes(mask, &lane, ballot_lanes, operation, caller);
}

void warp_sync(unsigned mask, const char* operation, Source caller)
{
    here.worker->wait_for_lanes(mask, nullptr, only_meet, operation, caller);
}

}  // namespace emulator

// Replaces *p by change(*p), and again if another thread was quicker. Not by value where floats are concerned: -0 is
// not 0, and NaN is itself.
template <class T, class Change>
static T atomically(T* p, const void* instruction, Change change)
{
    if (emulator::here.worker->sanitizes()) emulator::touched(p, sizeof(T), true, true, true, instruction);
    T old, changed;
    __atomic_load(p, &old, __ATOMIC_SEQ_CST);
    do changed = change(old);
    while (!__atomic_compare_exchange(p, &old, &changed, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return old;
}

#define EMULATOR_ATOMIC(name, T, expression) \
    T name(T* p, T v) { return atomically(p, __builtin_return_address(0), [v](T old) -> T { return expression; }); }
#define EMULATOR_ATOMIC_2(name, expression) \
    EMULATOR_ATOMIC(name, int, expression) \
    EMULATOR_ATOMIC(name, unsigned, expression)
#define EMULATOR_ATOMIC_3(name, expression) \
    EMULATOR_ATOMIC_2(name, expression) \
    EMULATOR_ATOMIC(name, unsigned long long, expression)
EMULATOR_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(v)))
EMULATOR_ATOMIC(atomicAdd, unsigned, old + v)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + v)
EMULATOR_ATOMIC(atomicAdd, float, old + v)
EMULATOR_ATOMIC(atomicAdd, double, old + v)
EMULATOR_ATOMIC(atomicSub, int, int(unsigned(old) - unsigned(v)))
EMULATOR_ATOMIC(atomicSub, unsigned, old - v)
EMULATOR_ATOMIC_3(atomicExch, ((void)old, v))
EMULATOR_ATOMIC(atomicExch, float, ((void)old, v))
EMULATOR_ATOMIC_3(atomicMin, v < old ? v : old)
EMULATOR_ATOMIC(atomicMin, long long, v < old ? v : old)
EMULATOR_ATOMIC_3(atomicMax, v > old ? v : old)
EMULATOR_ATOMIC(atomicMax, long long, v > old ? v : old)
EMULATOR_ATOMIC_3(atomicAnd, old & v)
EMULATOR_ATOMIC_3(atomicOr, old | v)
EMULATOR_ATOMIC_3(atomicXor, old ^ v)
EMULATOR_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)

#define EMULATOR_CAS(T) \
    T atomicCAS(T* p, T expected, T v) \
    { \
        return atomically(p, __builtin_return_address(0), [=](T old) { return old == expected ? v : old; }); \
    }
EMULATOR_CAS(int)
EMULATOR_CAS(unsigned)
EMULATOR_CAS(unsigned long long)

// ---- a launch ----

namespace emulator {

// The thread-local memory of the module that `marker` lies in: where the marker is in it, and its size.
static SharedSegment find_segment(char* marker)
{
    struct Search {
        char* marker;
        SharedSegment found;
    } search{marker, {0, 0}};
    const auto look = [](dl_phdr_info* module, std::size_t, void* data) {
        auto* s = static_cast<Search*>(data);
        char* begin = static_cast<char*>(module->dlpi_tls_data);
        for (int i = 0; begin && i < module->dlpi_phnum; ++i) {
            const auto& segment = module->dlpi_phdr[i];
            if (segment.p_type != PT_TLS || s->marker < begin || s->marker >= begin + segment.p_memsz) continue;
            s->found = {s->marker - begin, segment.p_memsz};
            return 1;
        }
        return 0;
    };
    dl_iterate_phdr(look, &search);
    return search.found;
}

// Workers are kept, with their fibers, for the next launch.
static std::mutex pool_lock;
static std::vector<std::unique_ptr<Worker>> pool;
static std::map<char* (*)(), SharedSegment> segments;

static std::unique_ptr<Worker> take_worker()
{
    const std::lock_guard<std::mutex> lock(pool_lock);
    if (pool.empty()) return std::make_unique<Worker>();
    auto worker = std::move(pool.back());
    pool.pop_back();
    return worker;
}

static void work(Launch& launch)
{
    auto worker = take_worker();
    {
        const AlternateStack stack;
        worker->run(launch);
    }
    const std::lock_guard<std::mutex> lock(pool_lock);
    pool.push_back(std::move(worker));
}

int run(Request* request, Call call, const void* kernel, char* (*marker)())
{
    const auto known = segments.find(marker);
    if (known == segments.end()) {
        segments[marker] = find_segment(marker());
        void* frame;
        backtrace(&frame, 1);  // the first call of it loads a library, which a signal handler must not
    }
    Launch launch{*request, call, kernel, marker, segments[marker], ArrayWatch(*request)};
    const SignalHandlers handlers;
    if (request->workers <= 1) {
        work(launch);
    } else {
        std::vector<std::thread> threads;
        for (int i = 0; i < request->workers; ++i) threads.emplace_back([&launch] { work(launch); });
        for (std::thread& thread : threads) thread.join();
    }
    fflush(stdout);  // of a kernel's printf
    return request->report->failed;
}

}  // namespace emulator
