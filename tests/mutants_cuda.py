"""The mutants of what runs on a device, for mutation.py: of the CUDA kernels, on the emulator, and of the library, on
the stand-in for CuPy's arrays (tests/standin). A mutant of a kernel's text is compiled when it is first launched: the
emulator keeps what it has compiled under a hash of the text."""

from __future__ import annotations

# File -> the tests that guard it, and words of which a test's name has one.
TESTS = {
    "kernels/cuda/reduce.cuh": (["test_cuda_norm"], ""),
    "kernels/cuda/norm.cu": (["test_cuda_norm"], ""),
    "kernels/cuda/norm.py": (["test_cuda_norm"], ""),
    "kernels/cuda/pool.cu": (["test_cuda_pool"], ""),
    "kernels/cuda/loss.cu": (["test_cuda_loss"], ""),
    "kernels/cuda/optim.cu": (["test_cuda_optim", "test_optim_rules"], ""),
    "kernels/cuda/optim.py": (["test_cuda_optim", "test_optim_rules"], ""),
    "kernels/cuda/philox.cuh": (["test_dropout"], "numpys or stream or gpu or order"),
    "kernels/cuda/dropout.cu": (["test_dropout"], "numpys or set or gpu or order or share"),
    "kernels/cuda/augment.cu": (["test_cuda_augment"], ""),
    "kernels/cuda/im2col.cu": (["test_cuda_conv"], ""),
    "kernels/cuda/matmul.cu": (["test_cuda_conv"], ""),
    "kernels/cuda/conv.py": (["test_cuda_conv"], ""),
    "kernels/cuda/matmul.py": (["test_cuda_conv"], ""),
    "kernels/cuda/im2col.py": (["test_cuda_conv"], ""),
    "kernels/cuda/emulator/memory.py": (["test_emulator", "test_emulator_launch"], ""),
    "kernels/cuda/emulator/meetings.h": (["test_emulator", "test_emulator_threads"], ""),
    "kernels/cuda/emulator/block.h": (["test_emulator", "test_emulator_threads"], ""),
    "kernels/cuda/emulator/watch.h": (["test_emulator", "test_emulator_threads"], ""),
    "kernels/cuda/emulator/arrays.h": (["test_emulator", "test_emulator_threads", "test_emulator_launch"], ""),
    "kernels/cuda/emulator/build.py": (["test_emulator_build"], ""),
    "kernels/layout.py": (["test_cuda_library"], ""),
    "tinyres/graph.py": (["test_cuda_library"], ""),
    "tinyres/nn/parameter.py": (["test_cuda_library"], ""),
    "tinyres/data/dataset.py": (["test_data_device"], "data_set or read_from or batches"),
    "tinyres/finite.py": (["test_data_device"], "finite"),
}

# File -> (text, what it becomes).
MUTANTS = {
    "kernels/cuda/emulator/memory.py": [
        ("                ctypes.memmove(c.begin, c.start, c.end - c.begin)", "                pass"),
        ("rest if at_start else", "0 if at_start else"),
        ("SLACK_READ, SLACK_WRITTEN = 0xFF, 0xC1", "SLACK_READ, SLACK_WRITTEN = 0xFF, 0xFF"),
    ],
    "kernels/cuda/emulator/meetings.h": [
        ("        if (lane.mask != mask) return;", ""),
    ],
    "kernels/cuda/emulator/block.h": [
        ("    if (waiting_[warp]) try_warp(warp, threads_[warp * 32 + __builtin_ctz(waiting_[warp])].mask);", ""),
    ],
    "kernels/cuda/emulator/watch.h": [
        ("if (one[l] > all[l]) all[l] = one[l];", "all[l] = one[l];"),
    ],
    "kernels/cuda/emulator/arrays.h": [
        ("void fence() { values_.clear(); }", "void fence() {}"),
    ],
    "kernels/cuda/emulator/build.py": [
        ("version, processor(), [link", "version, [link"),
    ],
    "kernels/cuda/reduce.cuh": [
        ("distance /= 2) v +=", "distance /= 4) v +="),
        ("const unsigned half = (rows + 1) / 2;", "const unsigned half = rows / 2;"),
        ("__syncthreads();                                 // the next", "// the next"),
    ],
    "kernels/cuda/norm.cu": [
        ("return value - value == 0 ? value : 0;", "return value;"),
        ("b < blocks; b += blockDim.x) sum", "b < blocks && b < blockDim.x; b += blockDim.x) sum"),
        ("square - offset * offset;", "square;"),
        ("difference < 0 ? 0 : difference", "difference > 0 ? difference : 0"),
        ("relu && v <= 0 ? T(0) : v;", "relu && !(v > 0) ? T(0) : v;"),
        ("output.v[v] <= 0 ? T(0)", "output.v[v] < 0 ? T(0)"),
        ("values.v[v] + through_mean[v];", "values.v[v] - through_mean[v];"),
        ("partials[(channels + c + v) * gridDim.x + blockIdx.x] = sums[V + v];",
         "partials[(channels + c + v) * gridDim.x + blockIdx.x] = sums[v];"),
    ],
    "kernels/cuda/norm.py": [
        ("lanes = lanes if C % lanes == 0 else 1", "pass"),
        ("else outputs, partials, np.uint32(M), np.uint32(C), np.int32(y is not None)",
         "else outputs, partials, np.uint32(M), np.uint32(C), np.int32(0)"),
    ],
    "kernels/cuda/pool.cu": [
        ("value > best ||", "value >= best ||"),
        ("|| value != value", ""),
        ("with_padding ? end - start", "with_padding ? taps"),
        ("(h + padding - taps) / stride + 1", "(h + padding - taps) / stride"),
        ("double sum = 0, share", "T sum = 0, share"),
        ("if (place[later] == place[j]) total[later] = total[j];", ";"),
        ("(dilation - 1 - start) / dilation", "-start / dilation"),
        ("int((end + places - 1) / places)", "int(end / places)"),
        ("index < 0 ? index + pixels : index", "index"),
    ],
    "kernels/cuda/loss.cu": [
        ("T top = x[0];", "T top = 0;"),
        ("(sum / (T)K)", "sum"),
        ("if (smoothing != 0) loss", "loss"),
        ("other > value ? other : value", "other < value ? other : value"),
        ("label >= 0 && label < (long long)K;\n    T d", "label >= 0;\n    T d"),
    ],
    "kernels/cuda/optim.cu": [
        ("gradient += decay * weight;", "gradient += decay * at.p[i];"),
        ("if (decay != 0) step", "step"),
        ("step = nesterov ? step + keep * v : v;", "step = v;"),
        ("(T*)row[2], (T*)row[3]", "(T*)row[3], (T*)row[2]"),
    ],
    "kernels/cuda/optim.py": [
        ("starts * np.uint64(itemsize)", "starts * np.uint64(4)"),
        ("            seen[_address(p)] += 1\n", ""),
        (" if entry[4] == step)", ")"),
        ("np.minimum(PIECE, size - starts)", "np.minimum(PIECE, size - starts) - 1"),
    ],
    "kernels/cuda/philox.cuh": [
        ("{block + 1, 0, 0, stream}", "{(unsigned)(block + 1), 0, 0, stream}"),
        ("round < 10", "round < 9"),
        ("i & 2 ? c.w3 : c.w1", "i & 2 ? c.w1 : c.w3"),
    ],
    "kernels/cuda/dropout.cu": [
        ("    __syncthreads();\n", ""),
        ("bits[j] >= threshold", "bits[j] > threshold"),
        ("if (first + j < size) y", "y"),
    ],
    "kernels/cuda/augment.cu": [
        ("__fadd_rn(__fmul_rn((float)value, factor[c]), offset[c])", "fmaf((float)value, factor[c], offset[c])"),
        ("    __syncthreads();\n", ""),
        ("philox_word(seed, epoch, stream, sample)", "philox_word(seed, epoch, stream, blockIdx.x)"),
        ("words[1] >> 63", "words[1] & 1"),
        ("(unsigned)from_w < (unsigned)width)", "from_w >= 0)"),
        ("width - 1 - (int)w", "width - (int)w"),
    ],
    "kernels/cuda/im2col.cu": [
        ("pad_h + r * dilation_h;\n    const T* line", "pad_h + s * dilation_h;\n    const T* line"),
        ("h >= 0 && h < H && w >= 0 && w < W) pack", "h >= 0 && h < H && w >= 0 && w <= W) pack"),
        ("if (q_first + j < Q) {", "if (true) {"),
        ("W * C + blockIdx.y * channels + i % runs * V;", "W * C + i % runs * V;"),
        ("p * stride_h != below) continue;", "false) continue;"),
        ("sum.v[j] = old.v[j] + sum.v[j];", "sum.v[j] = old.v[j];"),
        ("right < 0 || q >= Q ||", "right < 0 || q >= Q - 1 ||"),
    ],
    "kernels/cuda/matmul.cu": [
        ("        __syncthreads();  // the strips are there\n", ""),
        ("        __syncthreads();  // no thread needs them any more\n", ""),
        ("b += group * stride_b;", "b += group * stride_a;"),
        ("end = inner - begin < part ? inner : begin + part;", "end = inner;"),
        ("part += 8) sum +=", "part += 8) sum ="),
        ("sum = add ? total[i] : 0;", "sum = 0;"),
        ("other < 8; other++) sum +=", "other < 7; other++) sum +="),
        ("if (fast + v < fast_end) pieces", "pieces"),
        ("const int k = i % K, l = i / K % L,", "const int l = i % L, k = i / L % K,"),
    ],
    "kernels/cuda/conv.py": [
        ("(1, 1, 1, 1, 0, 0)", "(1, 1, 2, 2, 0, 0)"),
        ("add=add and direct)", "add=False)"),
        ("return V if self.C // self.groups % V == 0 else 1", "return V if self.C % V == 0 else 1"),
    ],
    "kernels/cuda/matmul.py": [
        ("a.shape[-1], _width(a, groups) if a.ndim == 2 else", "a.shape[-1], 0 if a.ndim == 2 else"),
        ("total is not None, empty(", "False, empty("),
        ("    if total is None:\n        c[...] = 0\n", ""),
    ],
    "kernels/cuda/im2col.py": [
        ("total = c.astype(np.float64) + total", "total = c.astype(np.float64)"),
        ("        c += xp.matmul(a, b)", "        c[...] = xp.matmul(a, b)"),
    ],
    "kernels/layout.py": [
        ("return nchw(fn(*map(show_nhwc, operands)))", "return fn(*operands)"),
        ("return nchw(getattr(x.transpose(0, 2, 3, 1), how)(axis=memory, keepdims=True, **options))",
         "return getattr(x, how)(axis=axes, keepdims=True, **options)"),
        ("return nchw(fn(*(a.transpose(0, 2, 3, 1) for a in arrays), axis=(0, 3, 1, 2)[axis]))",
         "return fn(*arrays, axis=axis)"),
    ],
    "tinyres/graph.py": [
        ("array_module(x.data) is xp and xp.may_share_memory", "xp.may_share_memory"),
    ],
    "tinyres/nn/parameter.py": [
        ('self.data.copy(order="K")', "self.data.copy()"),
    ],
    "tinyres/data/dataset.py": [
        ("other._factors = images, labels, {}", "_ = images, labels, {}"),
        ("_read_only(move(self.labels, device))", "_read_only(self.labels)"),
    ],
    "tinyres/finite.py": [
        ("finite = math.isfinite(squares) or bool(xp.isfinite(every).all())", "finite = math.isfinite(squares)"),
        ("*hits, every @ every)]", "*hits, 0 * hits[0])]"),
    ],
}
