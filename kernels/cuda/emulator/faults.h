// What is reported: the first fault of a launch, and where.
//
// Python makes the message of it (report.py). Where the line of the kernel is not known, as at a load that the
// processor has refused, the addresses of the instructions are noted; addr2line finds their lines afterwards.
#pragma once

#include <execinfo.h>
#include <signal.h>
#include <ucontext.h>

#include <string>

#include "meetings.h"

namespace emulator {

// ---- reports ----

inline void Worker::report(const std::string& reason, const Thread* thread, Source source, int column)
{
    ended_ = true;
    if (launch_->failed.exchange(true)) return;  // another block was first
    Report& r = *launch_->request.report;
    r.failed = 1;
    r.block = here.block;
    r.thread = thread ? thread->index : here.thread;
    snprintf(r.reason, sizeof r.reason, "%s", reason.c_str());
    snprintf(r.file, sizeof r.file, "%s", source.file ? source.file : "");
    r.line = source.line;
    r.column = column;
    if (r.frame_count == 0) {
        void* frames[32];
        r.frame_count = backtrace(frames, 32);
        for (int i = 0; i < r.frame_count; ++i) r.frames[i] = reinterpret_cast<std::uint64_t>(frames[i]);
    }
}

inline void Worker::fail(const std::string& reason, Source source, int column)
{
    report(reason, nullptr, source, column);
    void* never_resumed;
    emulator_switch(&never_resumed, scheduler_);
    __builtin_unreachable();
}

// Where everyone waits, the largest groups first.
inline void Worker::report_deadlock()
{
    struct Group {
        const Thread* first;
        unsigned count;
    };
    std::vector<Group> groups;
    for (const Thread& thread : threads_) {
        if (thread.state == State::returned) continue;
        auto same = [&](const Group& g) {
            return g.first->waits.line == thread.waits.line && !strcmp(g.first->operation, thread.operation);
        };
        const auto found = std::find_if(groups.begin(), groups.end(), same);
        if (found == groups.end())
            groups.push_back({&thread, 1});
        else
            ++found->count;
    }
    std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.count > b.count; });
    std::string text = "deadlock: no thread of the block can go on: ";
    if (groups.size() > 4) groups.resize(4);
    for (const Group& g : groups)
        text += std::to_string(g.count) + " wait at " + g.first->operation + " in " + line_of(g.first->waits) + ", ";
    text += std::to_string(returned_) + " have returned";
    const auto disagree = [](const Thread& a, const Thread& b) {
        return a.number / 32 == b.number / 32 && a.mask != b.mask && a.state == State::at_warp && b.state == a.state;
    };
    if (std::adjacent_find(threads_.begin(), threads_.end(), disagree) != threads_.end())
        text += "; lanes of one warp name different masks";
    report(text, groups[0].first, groups[0].first->waits, 0);
}

// ---- signals: what the processor refuses ----

// {address} is for Python, which knows the arrays.
inline void Worker::fail_at_fault(int signal, const char* address, int access, const void* instruction)
{
    Report& r = *launch_->request.report;
    const bool first = !launch_->failed;
    if (first) {
        r.signal = signal;
        r.access = access;
        r.address = reinterpret_cast<std::uint64_t>(address);
        void* frames[32];
        const int count = backtrace(frames, 32);
        int i = 0;  // the frames of the signal handler itself come before the instruction
        while (i < count && frames[i] != instruction) ++i;
        r.frames[r.frame_count++] = reinterpret_cast<std::uint64_t>(instruction);
        for (++i; i < count; ++i) r.frames[r.frame_count++] = reinterpret_cast<std::uint64_t>(frames[i]);
    }
    const std::string verb = access == 1 ? "reads" : access == 2 ? "writes" : "reads or writes";
    if (signal == SIGFPE) fail("divides an integer by zero");
    if (signal == SIGILL) fail("comes to a place that the compiler takes for unreachable");
    if (running->fiber->overflowed_at(address))
        fail("needs more than the " + std::to_string(STACK >> 10) + " KB of stack that a thread has here");
    if (dynamic_end_ <= address && address < dynamic_end_ + PAGE)
        fail(verb + " " + std::to_string(address - dynamic_end_) + " bytes past the end of the dynamic shared memory, "
             "of which the launch gives " + std::to_string(launch_->request.shared) + " bytes");
    fail(verb + " {address}");
}

inline int access_of(const ucontext_t* context)
{
#if defined(__x86_64__)
    return context->uc_mcontext.gregs[REG_TRAPNO] != 14 ? 0 : context->uc_mcontext.gregs[REG_ERR] & 2 ? 2 : 1;
#else
    // A record of the kind "ESR", the cause of the exception: its bit 6 tells writes.
    const auto* record = reinterpret_cast<const std::uint32_t*>(context->uc_mcontext.__reserved);
    for (; record[0] != 0 && record[1] != 0; record += record[1] / 4)
        if (record[0] == 0x45535201) return record[2] & 64 ? 2 : 1;
    return 0;
#endif
}

inline const void* instruction_of(const ucontext_t* context)
{
#if defined(__x86_64__)
    return reinterpret_cast<const void*>(context->uc_mcontext.gregs[REG_RIP]);
#else
    return reinterpret_cast<const void*>(context->uc_mcontext.pc);
#endif
}

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
inline struct sigaction handlers_before[4];

// On a stack of its own, as the thread's may be full. It never returns to the kernel, which it leaves as it is.
inline void on_signal(int signal, siginfo_t* info, void* context)
{
    Worker* w = here.worker;
    if (w && w->running) {
        const auto* c = static_cast<const ucontext_t*>(context);
        w->fail_at_fault(signal, static_cast<const char*>(info->si_addr), access_of(c), instruction_of(c));
    }
    for (int i = 0; i < 4; ++i)  // none of ours: it happens once more, with the handler that was there before
        if (SIGNALS[i] == signal) sigaction(signal, &handlers_before[i], nullptr);
}

class SignalHandlers {  // in force as long as it lives
public:
    SignalHandlers()
    {
        struct sigaction ours {};
        ours.sa_sigaction = on_signal;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &ours, &handlers_before[i]);
    }
    ~SignalHandlers()
    {
        for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &handlers_before[i], nullptr);
    }
};

class AlternateStack {  // for the handlers, on this operating-system thread
public:
    AlternateStack()
    {
        stack_t ours{};
        ours.ss_sp = memory_.data();
        ours.ss_size = memory_.size();
        sigaltstack(&ours, &before_);
    }
    ~AlternateStack() { sigaltstack(&before_, nullptr); }

private:
    std::vector<char> memory_ = std::vector<char>(256 << 10);
    stack_t before_;
};

}  // namespace emulator
