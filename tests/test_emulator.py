"""The CUDA emulator: planted faults are found where they are, and right kernels are right.

Each kernel of emulator_faults/ has one fault, and is right when it is compiled with MENDED defined. A mark at the end
of a line, "// <- its name", says where the fault is; "// <- its name, before" where an earlier part of it is.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np
import pytest
from emulated import FAULTS, I32, NEEDS_EMULATOR, ORDERS, X32, X64, blank, launch, ramp

from tinyres.kernels.cuda.emulator import KernelError, build, settings

pytestmark = NEEDS_EMULATOR


def line_of(file, mark):
    """The number of the line of the file that ends in the mark; None if none does."""
    found = [i for i, line in enumerate((FAULTS / file).read_text().splitlines(), 1) if line.endswith("// <- " + mark)]
    assert len(found) <= 1, (mark, found)
    return found[0] if found else None


CHECKED = {"sanitize": True}

# file, kernel, (grid, block, args, shared), settings, what is said ("@before" is the line marked so), block, thread
PLANTED = {
    "divergent barrier": (
        "barriers.cu", "divergent_barrier", lambda: (1, 64, (X64, blank(64))), {},
        r"thread \(0,0,0\) waits at that of barriers.cu:@before", (0, 0, 0), (32, 0, 0)),
    "barrier after return": (
        "barriers.cu", "barrier_after_return", lambda: (1, 64, (X64, blank(64), I32(50))), {},
        r"__syncthreads, which 14 threads of its block, such as \(50,0,0\), will not reach", (0, 0, 0), (0, 0, 0)),
    "deadlock": (
        "barriers.cu", "deadlock", lambda: (1, 64, (X64, blank(64))), {},
        r"deadlock: .* 32 wait at __shfl_xor_sync in barriers.cu:@, 32 wait at __syncthreads in barriers.cu:@others, "
        r"0 have returned", (0, 0, 0), (0, 0, 0)),
    "missing barrier, sanitized": (
        "barriers.cu", "missing_barrier", lambda: (1, 64, (X64, blank(64))), CHECKED,
        r"reads shared memory that no thread of the block has written", (0, 0, 0), (0, 0, 0)),
    "missing second barrier, sanitized": (
        "barriers.cu", "missing_second_barrier", lambda: (1, 64, (ramp(192), blank(64), I32(3))), CHECKED,
        r"reads shared memory that thread \(31,0,0\) wrote in barriers.cu:@before, with no barrier in between",
        (0, 0, 0), (32, 0, 0)),
    "one of the readers writes, sanitized": (
        "barriers.cu", "one_of_the_readers_writes", lambda: (1, 64, (X64, blank(64))), CHECKED,
        r"writes shared memory that thread \(0,0,0\) read in barriers.cu:@before, with no barrier in between",
        (0, 0, 0), (1, 0, 0)),
    "read past the end": (
        "memory.cu", "read_past_end", lambda: (2, 32, (ramp(8, 5), blank(40), I32(40))), {},
        r"reads outside the array 'x' \(argument 1, float32 \(8, 5\)\), 0 bytes past its end",
        (1, 0, 0), (7, 0, 0)),
    "write past the end": (
        "memory.cu", "write_past_end", lambda: (2, 32, (blank(44), I32(44))), {},
        r"writes outside the array 'y' \(argument 1, float32 \(44,\)\), 0 bytes past its end",
        (1, 0, 0), (12, 0, 0)),
    "write past the end, within the slack": (
        "memory.cu", "write_past_end", lambda: (1, 64, (blank(63), I32(63))), {},
        r"has written outside the array 'y' \(argument 1, float32 \(63,\)\), 0 bytes past its end", None, None),
    "write past the end, within the slack, sanitized": (
        "memory.cu", "write_past_end", lambda: (1, 64, (blank(63), I32(63))), CHECKED,
        r"writes outside the array 'y' \(argument 1, float32 \(63,\)\), 0 bytes past its end",
        (0, 0, 0), (63, 0, 0)),
    "copy past the end, within the slack": (
        "memory.cu", "copy_past_end", lambda: (1, 64, (ramp(61), blank(61), I32(61))), {},
        r"has written outside the array 'y' \(argument 2, float32 \(61,\)\), 0 bytes past its end", None, None),
    "add past the end, within the slack": (
        "memory.cu", "add_past_end", lambda: (1, 64, (ramp(61), I32(61))), {},
        r"has written outside the array 'y' \(argument 1, float32 \(61,\)\), 0 bytes past its end", None, None),
    "write before the beginning": (
        "memory.cu", "write_before_beginning", lambda: (1, 64, (blank(64), I32(64))), {},
        r"has written outside the array 'y' \(argument 1, float32 \(64,\)\), 4 bytes before its beginning",
        None, None),
    "write before the beginning, in reverse order": (
        "memory.cu", "write_before_beginning", lambda: (1, 64, (blank(64), I32(64))), {"order": "reverse"},
        r"writes outside the array 'y' \(argument 1, float32 \(64,\)\), 4 bytes before its beginning",
        (0, 0, 0), (0, 0, 0)),
    "read far away": (
        "memory.cu", "read_far_away",
        lambda: (3, 4, (ramp(3, 4, dtype=float), blank(3, 4, dtype=float), I32(3), I32(4))), {},
        r"reads outside the array 'x' \(argument 1, float64 \(3, 4\)\), 0 bytes past its end", (0, 0, 0), (0, 0, 0)),
    "unwritten shared memory, sanitized": (
        "memory.cu", "unwritten_shared", lambda: (1, 32, (X32, blank(32))), CHECKED,
        r"reads shared memory that no thread of the block has written", (0, 0, 0), (0, 0, 0)),
    "too little dynamic shared memory": (
        "memory.cu", "dynamic_shared", lambda: (1, 64, (X64, blank(64)), 128), {},
        r"writes 0 bytes past the end of the dynamic shared memory, of which the launch gives 128 bytes",
        (0, 0, 0), (32, 0, 0)),
    "no dynamic shared memory": (
        "memory.cu", "dynamic_shared", lambda: (1, 64, (X64, blank(64))), {},
        r"of which the launch gives 0 bytes", (0, 0, 0), (0, 0, 0)),
    "write to a const array": (
        "memory.cu", "write_to_const", lambda: (1, 32, (X32.copy(), blank(32))), {},
        r"writes value 0 of the array 'x' \(argument 1, float32 \(32,\)\), which is const", (0, 0, 0), (0, 0, 0)),
    "misaligned float4": (
        "memory.cu", "misaligned_load", lambda: (1, 1, (X32, blank(1), I32(5))), CHECKED,
        r"'const float4' at an address that is not a multiple of 16, but 4 more", (0, 0, 0), (0, 0, 0)),
    "misaligned __ldg": (
        "memory.cu", "misaligned_ldg", lambda: (1, 1, (X32, blank(1), I32(5))), CHECKED,
        r"'const float4' at an address that is not a multiple of 16, but 4 more", (0, 0, 0), (0, 0, 0)),
    "half outside": (
        "memory.cu", "half_outside", lambda: (1, 16, (ramp(31), blank(16), I32(31))), CHECKED,
        r"reads outside the array 'x' \(argument 1, float32 \(31,\)\), 0 bytes past its end", (0, 0, 0), (15, 0, 0)),
    "overrun of a local array": (
        "memory.cu", "local_overrun", lambda: (1, 8, (X32, blank(8), I32(5))), CHECKED,
        r"index 4 is outside an array of type 'float ?\[4\]'", (0, 0, 0), (0, 0, 0)),
    "overflow of an int": (
        "memory.cu", "overflow", lambda: (1, 1, (blank(1, dtype=I32), I32(4000))), CHECKED,
        r"a product of signed integers overflows", (0, 0, 0), (0, 0, 0)),
    "division by zero": (
        "memory.cu", "division_by_zero", lambda: (1, 4, (np.array([3, 2, 0, 1], I32), blank(4, dtype=I32))),
        {"sanitize": platform.machine() != "x86_64"},  # where the processor itself refuses
        r"divides an integer by zero", (0, 0, 0), (2, 0, 0)),
    "too deep a recursion": (
        "memory.cu", "deep_recursion", lambda: (1, 1, (blank(1, dtype=I32),)), {},
        r"needs more than the 64 KB of stack", (0, 0, 0), (0, 0, 0)),
    "blocks that add to one sum, sanitized": (
        "blocks.cu", "sum_without_atomics", lambda: (3, 32, (ramp(96), np.zeros(1, np.float32))), CHECKED,
        r"(reads|writes) value 0 of the array 'sum' \(argument 2, float32 \(1,\)\), which block \(0,0,0\) wrote "
        r"in blocks.cu:@ in the same launch, where blocks have no order", (1, 0, 0), (0, 0, 0)),
    "blocks that read what others write, sanitized": (
        "blocks.cu", "neighbours_in_place", lambda: (3, 32, (ramp(90), ramp(90), I32(90))), CHECKED,
        r"writes value 32 of the array 'y' \(argument 2, float32 \(90,\)\), which several blocks read in "
        r"blocks.cu:@", (1, 0, 0), (0, 0, 0)),
    "a lane outside its mask": (
        "warps.cu", "lane_outside_mask", lambda: (1, 32, (X32, blank(32))), {},
        r"lane 16 calls __shfl_down_sync, but is not in its mask 0x0000ffff", (0, 0, 0), (16, 0, 0)),
    "different operations of a warp": (
        "warps.cu", "different_operations", lambda: (1, 32, (X32, blank(32))), {},
        r"waits at this __ballot_sync, while thread \(0,0,0\) of its mask waits at __shfl_xor_sync in warps.cu:@before",
        (0, 0, 0), (5, 0, 0)),
    "lanes that name different masks": (
        "warps.cu", "masks_disagree", lambda: (1, 32, (X32, blank(32))), {},
        r"32 wait at __shfl_xor_sync in warps.cu:@, 0 have returned; lanes of one warp name different masks",
        (0, 0, 0), (0, 0, 0)),
    "missing __syncwarp, sanitized": (
        "warps.cu", "missing_syncwarp", lambda: (1, 32, (X32, blank(1))), CHECKED,
        r"writes shared memory that thread \(0,0,0\) read in warps.cu:@before, with no barrier in between",
        (0, 0, 0), (8, 0, 0)),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found_where_it_is(fault):
    file, kernel, case, changes, said, block, thread = PLANTED[fault]
    if fault.startswith("misaligned") and "clang" in build.compiler()[1]:
        pytest.skip("clang does not check how a struct is aligned that is copied as a whole")
    said = re.sub("@(\\w*)", lambda m: str(line_of(file, kernel + (m[1] and ", " + m[1]))), said)
    with settings(**changes), pytest.raises(KernelError) as caught:
        launch(file, kernel, False, *case())
    e = caught.value
    assert re.search(said, e.reason), e
    assert (e.kernel, Path(e.file).name) == (kernel, file)
    assert block is None or e.line == line_of(file, kernel) or line_of(file, kernel) is None, e
    assert block is None or (e.block, e.thread) == (block, thread), e
    place = f"{kernel}: {file}:{e.line}:" if e.line else f"{kernel}: {file}: "
    assert str(e).startswith(place) and e.reason in str(e)


@pytest.mark.parametrize("fault", [f for f in PLANTED if "dynamic" not in f])
def test_its_mended_twin_runs_in_every_order_and_in_the_sanitize_build(fault):
    file, kernel, case, _, _, _, _ = PLANTED[fault]
    results = []
    for changes in (*({"order": order, "seed": 4} for order in ORDERS), {"workers": 2}, CHECKED,
                    {"sanitize": True, "order": "random"}):
        grid, block, args, *shared = case()
        args = tuple(a.copy() for a in args)
        with settings(**changes):
            launch(file, kernel, True, grid, block, args, *shared)
        results.append(np.concatenate([np.ravel(a) for a in args]).tobytes())
    assert len(set(results)) == 1


def test_dynamic_shared_memory_that_is_large_enough():
    for changes in ({}, CHECKED):
        y = blank(64)
        with settings(**changes):
            launch("memory.cu", "dynamic_shared", True, 1, 64, (X64, y), 256)
        assert (y == X64[::-1]).all()


@pytest.mark.parametrize("kernel, args", [("missing_barrier", lambda: (X64, blank(64))),
                                          ("missing_second_barrier", lambda: (ramp(192), blank(64), I32(3)))])
def test_a_missing_barrier_changes_the_result_in_some_order(kernel, args):
    results = {}
    for mended in (False, True):
        for order in ORDERS:
            given = args()
            with settings(order=order, seed=1):
                launch("barriers.cu", kernel, mended, 1, 64, given)
            results[mended, order] = given[1].tobytes()
    assert len({results[True, order] for order in ORDERS}) == 1
    assert any(results[False, order] != results[True, "forward"] for order in ORDERS)


def test_shared_memory_that_nobody_wrote_is_nan_in_every_block():
    y = blank(32)
    launch("memory.cu", "unwritten_shared", False, 3, 32, (X32, y))
    assert np.isnan(y[0]) and not np.isnan(y[1:]).any()


def test_a_lane_that_is_not_there_is_nan():
    y = blank(32)
    launch("warps.cu", "lane_not_there", False, 1, 32, (X32, y))
    assert np.isnan(y[:16]).all() and (y[16:] == -1).all()


def test_the_arrays_are_as_before_when_a_launch_fails():
    y = blank(44)
    with pytest.raises(KernelError):
        launch("memory.cu", "write_past_end", False, 2, 32, (y, I32(44)))
    assert (y == -1).all()


def test_the_first_fault_is_told_when_several_blocks_fail_at_once():
    for _ in range(20):
        with settings(workers=4), pytest.raises(KernelError, match="deadlock") as caught:
            launch("barriers.cu", "deadlock", False, 8, 64, (X64, blank(64)))
        assert caught.value.thread == (0, 0, 0)


def test_blocks_that_order_themselves_by_fences_are_let_pass():
    for changes in ({"order": "random", "workers": 3}, CHECKED):
        parts, total, counter = blank(9), blank(1), np.zeros(1, np.uint32)
        with settings(**changes):
            launch("blocks.cu", "last_block", True, 9, 1, (ramp(9), parts, total, counter))
        assert total[0] == 45 and (parts == ramp(9)).all()
