// Where threads wait for each other: all of a block at a barrier, the lanes of a mask at an operation of their warp.
//
// Who comes sees whether all are there. If so, the last to come makes the others ready and the scheduler goes on; what
// a warp works out, a shuffle, is worked out then, for all its lanes. Threads that have returned are not waited for by a
// warp; at a barrier they are a fault, as are two barriers at once.
#pragma once

#include "block.h"

namespace emulator {

// ---- barriers ----

inline int Worker::wait_at_barrier(int vote, Source caller)
{
    Thread* thread = running;
    thread->vote = vote;
    thread->waits = caller;
    thread->operation = "__syncthreads";
    thread->state = State::at_barrier;
    ++at_barrier_;
    try_barrier();
    switch_to_scheduler();
    return thread->vote;
}

inline void Worker::try_barrier()
{
    if (!at_barrier_ || at_barrier_ + returned_ != threads_.size()) return;
    const Thread* first = nullptr;
    int votes = 0;
    for (const Thread& thread : threads_) {
        if (thread.state != State::at_barrier) continue;
        if (!first) first = &thread;
        votes += thread.vote;
        if (same(thread.waits, first->waits)) continue;
        here.thread = thread.index;
        fail("waits at this __syncthreads, while thread " + in_parentheses(first->index) + " waits at that of " +
             line_of(first->waits), thread.waits);
    }
    if (returned_) {
        here.thread = first->index;
        const auto gone = std::find_if(threads_.begin(), threads_.end(),
                                       [](const Thread& t) { return t.state == State::returned; });
        fail("waits at __syncthreads, which " + std::to_string(returned_) + " threads of its block, such as " +
             in_parentheses(gone->index) + ", will not reach: they have returned", first->waits);
    }
    for (Thread& thread : threads_) {
        thread.state = State::ready;
        thread.vote = votes;
    }
    at_barrier_ = 0;
    if (launch_->request.sanitize) watch_.barrier();
}

// ---- warps ----

inline void Worker::wait_for_lanes(unsigned mask, Lane* lane, Meeting meeting, const char* operation, Source caller)
{
    Thread* thread = running;
    const unsigned warp = thread->number / 32, number = thread->number % 32;
    if (!(mask >> number & 1)) {
        char text[128];
        snprintf(text, sizeof text, "lane %u calls %s, but is not in its mask 0x%08x", number, operation, mask);
        fail(text, caller);
    }
    thread->mask = mask;
    thread->lane = lane;
    thread->meeting = meeting;
    thread->operation = operation;
    thread->waits = caller;
    thread->state = State::at_warp;
    waiting_[warp] |= 1u << number;
    try_warp(warp, mask);
    switch_to_scheduler();
}

inline void Worker::try_warp(unsigned warp, unsigned mask)
{
    const unsigned needed = mask & alive_[warp];  // lanes that have returned are not waited for
    if (!needed || (waiting_[warp] & needed) != needed) return;
    Thread* lanes = &threads_[warp * 32];
    const Thread& first = lanes[__builtin_ctz(needed)];
    for (unsigned m = needed; m; m &= m - 1) {
        const Thread& lane = lanes[__builtin_ctz(m)];
        if (lane.mask != mask) return;
        if (lane.meeting == first.meeting && !strcmp(lane.operation, first.operation)) continue;
        here.thread = lane.index;
        fail(std::string("waits at this ") + lane.operation + ", while thread " + in_parentheses(first.index) +
             " of its mask waits at " + first.operation + " in " + line_of(first.waits), lane.waits);
    }
    first.meeting(lanes, needed);
    if (launch_->request.sanitize) watch_.met(warp * 32, needed);
    waiting_[warp] &= ~needed;
    for (unsigned m = needed; m; m &= m - 1) lanes[__builtin_ctz(m)].state = State::ready;
}

}  // namespace emulator
