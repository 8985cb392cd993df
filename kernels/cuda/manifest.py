"""Every CUDA kernel that tinyres has, instance by instance: the one list that all who use them read.

    launch.py        compiles an instance the first time it is launched on a GPU
    emulator/        compiles a file with all its instances and runs them on the processor
    the tests        compile every instance for every architecture and hold it to its budget
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ARCHITECTURES = ("75", "80", "90")  # compute capability 7.5 (Turing), 8.0 (Ampere, A100), 9.0 (Hopper, H100)
TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Kernel:
    """One instance.

    file: the .cu file in this folder; name: the instance as C++ writes it, "im2col<float>".
    threads: the most threads of a block, as in its __launch_bounds__. registers: the most a thread may take; shared:
    the most bytes of static shared memory. Nothing may spill.
    """

    file: str
    name: str
    threads: int = 256
    registers: int = 64
    shared: int = 0
    architectures: tuple[str, ...] = ARCHITECTURES


def for_types(file: str, name: str, double_registers: int = 0, **budget: Any) -> list[Kernel]:
    """The instances for float and double of a kernel whose first template parameter is the type of its values.

    name: with {} for that type, "im2col<{}>"; double_registers: their budget, where double needs more.
    """
    single = Kernel(file, name.format("float"), **budget)
    if double_registers:
        budget["registers"] = double_registers
    return [single, Kernel(file, name.format("double"), **budget)]


KERNELS: tuple[Kernel, ...] = (
    # --- im2col.cu ---
    *for_types("im2col.cu", "im2col<{}, 1>", registers=24),
    Kernel("im2col.cu", "im2col<float, 4>", registers=32),
    Kernel("im2col.cu", "im2col<double, 2>", registers=32),
    *for_types("im2col.cu", "col2im<{}, 1>", registers=40),
    Kernel("im2col.cu", "col2im<float, 4>", registers=40),
    Kernel("im2col.cu", "col2im<double, 2>", registers=40),
    *for_types("im2col.cu", "col2im_atomic<{}>", registers=24),
    # --- matmul.cu ---
    *for_types("matmul.cu", "matmul<{}, LARGE, false, true>", registers=128, double_registers=216, shared=8448),
    *for_types("matmul.cu", "matmul<{}, LARGE, false, false>", registers=128, double_registers=216, shared=8448),
    *for_types("matmul.cu", "matmul<{}, LARGE, true, false>", registers=128, double_registers=216, shared=8448),
    *for_types("matmul.cu", "matmul<{}, MEDIUM, false, true>", registers=128, double_registers=152, shared=12800),
    *for_types("matmul.cu", "matmul<{}, MEDIUM, false, false>", registers=128, double_registers=152, shared=12800),
    *for_types("matmul.cu", "matmul<{}, MEDIUM, true, false>", registers=128, double_registers=152, shared=12800),
    *for_types("matmul.cu", "matmul<{}, NARROW, false, true>", registers=80, double_registers=112, shared=10752),
    *for_types("matmul.cu", "matmul<{}, NARROW, false, false>", registers=80, double_registers=112, shared=10752),
    *for_types("matmul.cu", "matmul<{}, NARROW, true, false>", registers=80, double_registers=112, shared=10752),
    *for_types("matmul.cu", "sum_partials<{}>", registers=48, double_registers=56, shared=2048),
    # --- norm.cu ---
    Kernel("norm.cu", "batch_norm_stats<float, 4>", registers=48, shared=16384),
    Kernel("norm.cu", "batch_norm_stats<float, 1>", registers=24, shared=4096),
    Kernel("norm.cu", "batch_norm_stats<double, 2>", registers=32, shared=8192),
    Kernel("norm.cu", "batch_norm_stats<double, 1>", registers=24, shared=4096),
    Kernel("norm.cu", "batch_norm_apply<float, 4>", registers=32),
    Kernel("norm.cu", "batch_norm_apply<float, 1>", registers=24),
    Kernel("norm.cu", "batch_norm_apply<double, 2>", registers=32),
    Kernel("norm.cu", "batch_norm_apply<double, 1>", registers=32),
    Kernel("norm.cu", "add_bias<float, 4>", registers=32),
    Kernel("norm.cu", "add_bias<float, 1>", registers=16),
    Kernel("norm.cu", "add_bias<double, 2>", registers=32),
    Kernel("norm.cu", "add_bias<double, 1>", registers=24),
    Kernel("norm.cu", "batch_norm_grad_sums<float, 4>", registers=56, shared=16384),
    Kernel("norm.cu", "batch_norm_grad_sums<float, 1>", registers=32, shared=4096),
    Kernel("norm.cu", "batch_norm_grad_sums<double, 2>", registers=40, shared=8192),
    Kernel("norm.cu", "batch_norm_grad_sums<double, 1>", registers=32, shared=4096),
    Kernel("norm.cu", "batch_norm_input_grad<float, 4>", registers=40),
    Kernel("norm.cu", "batch_norm_input_grad<float, 1>", registers=32),
    Kernel("norm.cu", "batch_norm_input_grad<double, 2>", registers=40),
    Kernel("norm.cu", "batch_norm_input_grad<double, 1>", registers=32),
    *for_types("norm.cu", "batch_norm_moments<{}>", threads=128, registers=32, shared=256),
    Kernel("norm.cu", "add_partials<double>", threads=128, registers=24, shared=256),
    # --- pool.cu ---
    *for_types("pool.cu", "max_pool2d<{}>", registers=32, double_registers=40),
    *for_types("pool.cu", "adaptive_max_pool2d<{}>", registers=56, double_registers=32),
    *for_types("pool.cu", "gather_hw<{}>", registers=16),
    *for_types("pool.cu", "scatter_hw<{}>", threads=64, registers=64),
    *for_types("pool.cu", "avg_pool2d<{}>", registers=56, double_registers=64),
    *for_types("pool.cu", "avg_pool2d_input_grad<{}>", registers=40),
    # --- loss.cu ---
    *for_types("loss.cu", "softmax_cross_entropy<{}>", registers=32),
    *for_types("loss.cu", "softmax_cross_entropy_grad<{}>", registers=32),
    # --- optim.cu ---
    *for_types("optim.cu", "sgd<{}>", registers=24),
    *for_types("optim.cu", "adam<{}>", registers=40, double_registers=48),
    # --- dropout.cu ---
    *for_types("dropout.cu", "dropout<{}>", registers=32, shared=8192),
    Kernel("dropout.cu", "philox_words", registers=32),
    # --- augment.cu ---
    Kernel("augment.cu", "augment<unsigned char>", registers=32, shared=24),
    Kernel("augment.cu", "augment<float>", registers=32, shared=24),
    Kernel("augment.cu", "augment<double>", registers=32, shared=24),
)
BY_NAME = {kernel.name: kernel for kernel in KERNELS}
