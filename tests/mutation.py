"""Do the tests notice a wrong gradient? Each mutant below breaks one line of a copy of the package: a sign, a term, an
index, an order of arguments. Its tests must then fail. Run it by hand; pytest does not collect it:

    python tests/mutation.py                 all mutants, on all processors
    python tests/mutation.py --only norm     those whose file or text contains "norm"

It prints a table and exits with 1 if a mutant survived, or if its text is not found exactly once in its file. Some
are noticed by the comparison with PyTorch only, so that must be installed.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mutants_cuda
import mutants_inside

ROOT = Path(__file__).resolve().parents[1]

# What runs on a device is in mutants_cuda.py; blocks' variants, instruments and readers are in mutants_inside.py.
# File -> the tests that guard it, the quickest to notice first, and words of which a test's name has one.
TESTS = {
    "tinyres/ops/broadcast.py": (["test_ops"], ""),
    "tinyres/ops/elementwise.py": (["test_ops", "test_ops_frozen", "test_ops_methods", "test_parity_ops"], ""),
    "tinyres/ops/inplace.py": (["test_inplace", "test_ops_methods"], "in_place or inplace"),
    "tinyres/ops/shape.py": (["test_ops"], ""),
    "tinyres/ops/reduce.py": (["test_ops", "test_ops_frozen", "test_parity_ops"], ""),
    "tinyres/ops/linear.py": (["test_ops"], "matmul or linear"),
    "tinyres/ops/conv.py": (["test_ops", "test_ops_conv"], "conv"),
    "tinyres/ops/pool.py": (["test_ops", "test_ops_frozen", "test_ops_pool"], "pool"),
    "tinyres/ops/norm.py": (["test_ops", "test_ops_frozen", "test_ops_norm"], "norm"),
    "tinyres/ops/dropout.py": (["test_dropout"], ""),
    "tinyres/ops/fused.py": (["test_ops", "test_ops_frozen", "test_ops_norm"], "norm or entropy"),
    "tinyres/ops/loss.py": (["test_ops", "test_ops_loss", "test_cuda_library"], "loss or entropy or labels"),
    "tinyres/ops/create.py": (["test_ops"], "astype"),
    "kernels/reference.py": (["test_ops", "test_ops_conv", "test_ops_pool", "test_ops_norm", "test_ops_loss",
                              "test_dropout"], "conv or pool or norm or loss or entropy or share or numpys_bits"),
    "kernels/cpu/conv_direct.py": (["test_kernels", "test_conv_cpu"], "conv"),
    "kernels/cpu/conv_winograd.py": (["test_conv_cpu"], "winograd or total"),
    "kernels/cpu/window.py": (["test_conv_cpu", "test_kernels"], "winograd or conv"),
    "kernels/cpu/simd.py": (["test_conv_cpu"], "vectors or tile or winograd"),
    "kernels/cpu/norm.py": (["test_norm_cpu"], ""),
    "kernels/cpu/pool.py": (["test_pool_cpu"], ""),
    "kernels/cpu/bias.py": (["test_fold"], ""),
    "kernels/cpu/optim.py": (["test_optim_cpu", "test_optim_rules"], ""),
    "kernels/cpu/dropout.py": (["test_dropout"], "set or share or threads or nan or memory_order"),
    "kernels/cpu/threads.py": (["test_threads"], ""),
    "kernels/cpu/code_cache.py": (["test_jit"], ""),
    "kernels/memory.py": (["test_memory"], ""),
    "tinyres/train.py": (["test_threads"], "blas"),
    "tinyres/optimizer.py": (["test_optim", "test_cuda_optim"], ""),
    "tinyres/optim.py": (["test_optim"], "written or zero_grad or names or agree"),
    "tinyres/data/augment.py": (["test_augment", "test_data_device"], "loop or one_kernel"),
    "tinyres/ops/conv_bias.py": (["test_fold"], ""),
    "tinyres/nn/fold.py": (["test_fold"], ""),
    "tinyres/tensor.py": (["test_aliasing", "test_merge"], ""),
}

# File -> (text, what it becomes).
MUTANTS = {
    "tinyres/ops/broadcast.py": [
        ("return sum_to(grad, self.input_shape)", "return sum_to(grad * 2.0, self.input_shape)"),
        ("return broadcast_to(grad, self.input_shape)", "return broadcast_to(grad * -1.0, self.input_shape)"),
        ("if n == 1 and x.shape[lead + i] != 1)", "if n == 1 and x.shape[lead + i] == 2)"),
        ('reduced(x, "sum", axes, dtype=', 'reduced(x, "max", axes) + 0 * reduced(x, "sum", axes, dtype='),
    ],
    "tinyres/ops/elementwise.py": [
        ("tuple(sum_to(grad, s) if need else None for", "tuple(sum_to(neg(grad), s) if need else None for"),
        ("sum_to(neg(grad), self.shapes[1])", "sum_to(grad, self.shapes[1])"),
        ("sum_to(mul(grad, b), self.shapes[0])", "sum_to(mul(grad, a), self.shapes[0])"),
        ("sum_to(mul(grad, a), self.shapes[1])", "sum_to(grad, self.shapes[1])"),
        ("sum_to(div(grad, b), self.shapes[0])", "sum_to(mul(grad, b), self.shapes[0])"),
        ("sum_to(neg(div(mul(grad, a), mul(b, b)))", "sum_to((div(mul(grad, a), mul(b, b)))"),
        ("div(mul(grad, a), mul(b, b))", "div(mul(grad, a), b)"),
        ("mul(pow(a, b - 1.0), b)", "pow(a, b - 1.0)"),
        ("mul(pow(a, b - 1.0), b)", "mul(pow(a, b), b)"),
        ("where(raw(b) == 0, 0.0, slope)", "slope"),
        ("where((raw(a) == 0) & (raw(b) >= 0), 1.0, a)", "a"),
        ("mul(grad, mul(out, log(base)))", "mul(grad, log(base))"),
        ("0.5 * elementwise(operator.eq, a, b)", "1.0 * elementwise(operator.eq, a, b)"),
        ("sum_to(mul(grad, sub(1.0, share)), self.shapes[1])", "sum_to(mul(grad, share), self.shapes[1])"),
        ("share = state.choices.take(self.name, share)", "pass"),
        ("pick = staticmethod(operator.lt)", "pick = staticmethod(operator.le)"),
        ("where(mask, grad, 0.0)", "where(mask, grad, grad)"),
        ("where(mask, 0.0, grad)", "where(mask, grad, 0.0)"),
        ("        return neg(grad)", "        return grad"),
        ("return mul(grad, out)", "return grad"),
        ("return div(grad, x)", "return mul(grad, x)"),
        ("return div(mul(grad, 0.5), out)", "return div(grad, out)"),
        ("mul(grad, sub(1.0, mul(out, out)))", "mul(grad, sub(1.0, out))"),
        ("mul(grad, mul(out, sub(1.0, out)))", "mul(grad, sub(1.0, out))"),
        ("return mul(grad, sign)", "return grad"),
        ("where(raw(out) <= 0, 0.0, grad)", "where(raw(out) < 0, 0.0, grad)"),
        ('where(state.choices.take("relu", raw(x) > 0), x, 0.0)', "where(raw(x) > 0, x, 0.0)"),
        ("return mask if state.choices is None else", "return mask if True else"),
    ],
    "tinyres/ops/inplace.py": [
        ("self.save(a.copy(order=\"K\"), b)\n        return _into(self.name, operator.imul",
         "self.save(a, b)\n        return _into(self.name, operator.imul"),
        ("self.save(a.copy(order=\"K\"), b)\n        return _into(self.name, operator.itruediv",
         "self.save(a, b)\n        return _into(self.name, operator.itruediv"),
        ("node.edges[0] is not None:", "node.edges[0] is None:"),
    ],
    "tinyres/ops/shape.py": [
        ("return reshape(grad, self.input_shape)", "return reshape(neg(grad), self.input_shape)"),
        ('np.argsort(self.params["dims"])', 'self.params["dims"]'),
        ("backward(self, grad: Any) -> Any:\n        return grad\n",
         "backward(self, grad: Any) -> Any:\n        return grad * 2.0\n"),
        ("array_module(values).add.at(out, index, values)", "out[index] = values"),
        ('return getitem(grad, self.params["index"])', 'return getitem(grad * 2.0, self.params["index"])'),
        ("xp.add.at(out, tuple(place), values)", "out[tuple(place)] = values"),
        ('Gather.apply(grad, dim=self.params["dim"], index=self.params["index"])',
         'Gather.apply(grad * 2.0, dim=self.params["dim"], index=self.params["index"])'),
        ("self.inside = tuple(slice(b, b + n)", "self.inside = tuple(slice(0, n)"),
        ("starts = [0, *self.ends[:-1]]", "starts = [0 for _ in self.ends]"),
    ],
    "tinyres/ops/reduce.py": [
        ('share /= reduced(share, "sum", dims)', "pass"),
        ("share = state.choices.take(self.name, share)", "pass"),
        ("        return mul(grad, share)", "        return mul(neg(grad), share)"),
        ("sub(grad, mul(exp(out), sum(grad", "add(grad, mul(exp(out), sum(grad"),
        ("sub(grad, mul(exp(out), sum(grad", "sub(grad, mul(out, sum(grad"),
        ("return mul(sum(x, dim, keepdim), 1.0 / count)", "return mul(sum(x, dim, keepdim), 1.0 / x.shape[0])"),
        ("1.0 / (count - correction)", "1.0 / count"),
        ("return neg(amax(neg(x), dim, keepdim))", "return neg(amax(x, dim, keepdim))"),
        ("index = state.choices.take(op, index)", "pass"),
        ("return reshape(out + top,", "return reshape(out,"),
    ],
    "tinyres/ops/linear.py": [
        ("sum_to(matmul(grad, transpose(b)), a.shape)", "sum_to(neg(matmul(grad, transpose(b))), a.shape)"),
        ("sum_to(matmul(transpose(a), grad), b.shape)", "sum_to(matmul(transpose(a), grad * 2.0), b.shape)"),
        ("out if bias is None else add(out, bias)", "out"),
    ],
    "tinyres/ops/conv.py": [
        ("Conv2dInputGrad.apply(grad, w, x_shape=x.shape, **self.params)",
         "Conv2dInputGrad.apply(grad * -1.0, w, x_shape=x.shape, **self.params)"),
        ("Conv2dWeightGrad.apply(x, grad, w_shape=w.shape, **self.params)",
         "Conv2dWeightGrad.apply(x, grad * 2.0, w_shape=w.shape, **self.params)"),
        ("Conv2d.apply(grad, w, **self.geometry)", "Conv2d.apply(grad * -1.0, w, **self.geometry)"),
        ("Conv2dWeightGrad.apply(grad, g, w_shape=w.shape, **self.geometry)",
         "Conv2dWeightGrad.apply(grad, g * -1.0, w_shape=w.shape, **self.geometry)"),
        ("Conv2dInputGrad.apply(g, grad, x_shape=x.shape, **self.geometry)",
         "Conv2dInputGrad.apply(g, grad * 2.0, x_shape=x.shape, **self.geometry)"),
        ("Conv2d.apply(x, grad, **self.geometry)", "Conv2d.apply(x, grad * -1.0, **self.geometry)"),
        ("return extent[0] // 2, extent[1] // 2", "return extent[1] // 2, extent[0] // 2"),
    ],
    "tinyres/ops/pool.py": [
        ("ScatterHW.apply(grad, index=raw(self.saved[0]), x_shape=self.x_shape)",
         "ScatterHW.apply(grad * -1.0, index=raw(self.saved[0]), x_shape=self.x_shape)"),
        ('ScatterHW.apply(grad, index=self.params["index"]', 'ScatterHW.apply(grad * 2.0, index=self.params["index"]'),
        ('GatherHW.apply(grad, index=self.params["index"])', 'GatherHW.apply(grad * -1.0, index=self.params["index"])'),
        ("AvgPool2dInputGrad.apply(grad, x_shape", "AvgPool2dInputGrad.apply(grad * -1.0, x_shape"),
        ("AvgPool2d.apply(grad, output=self.output", "AvgPool2d.apply(grad * 2.0, output=self.output"),
        ('index = state.choices.take("max_pool2d", pool(raw(x))[1])', "index = pool(raw(x))[1]"),
        ("matrix[i, start:end] = 1.0 / (end - start)", "matrix[i, start:end] = output / size"),
        ("n = n - 1 if (n - 1) * s >= size + p else n", "n = n"),
    ],
    "tinyres/ops/norm.py": [
        ("istd = 1.0 / (var + eps) ** 0.5", "istd = 1.0 / var ** 0.5"),
        ("(bias - mean * scale)", "(bias + mean * scale)"),
        ("a = weight * istd\n", "a = istd + 0.0 * weight\n"),
        ("b = -a * istd * istd * sum_gx / count", "b = a * istd * istd * sum_gx / count"),
        ("b = -a * istd * istd * sum_gx / count", "b = -a * istd * sum_gx / count"),
        ("b = -a * istd * istd * sum_gx / count", "b = 0.0 * a"),
        ("d = -a * sum_g / count - b * mean", "d = -b * mean"),
        ("d = -a * sum_g / count - b * mean", "d = -a * sum_g / count"),
        ('if self.params["training"]:', "if True:"),
        ("return dx, (sum_gx * istd)", "return dx, (sum_gx)"),
        ("y if relu else None, mean, istd)", "None, mean, istd)"),
        ("var * (count / (count - 1))", "var"),
        ("momentum * (batch - array)", "(1 - momentum) * (batch - array)"),
        ("var = mean_over((x - mean) * (x - mean), dims", "var = mean_over((x - mean) * (x - mean), dims[:1]"),
        ("y = y if residual is None else y + residual", "y = y"),
        ("return relu_of(y) if relu else y", "return y"),
        ('where(state.choices.take("batch_norm", raw(y) > 0), y, 0.0)', "where(raw(y) > 0, y, 0.0)"),
    ],
    "tinyres/ops/dropout.py": [
        ("return Dropout.apply(grad, **self.params)", "return grad"),
        ("key=random.key()", "key=0"),
        ("if not training or p == 0:", "if p == 0:"),
    ],
    "tinyres/ops/fused.py": [
        ("fixed = [alias(x) if isinstance(x, Tensor) else x for x in inputs]", "fixed = list(inputs)"),
        ("walk([out], [grad], wanted", "walk([out], [grad * 2.0], wanted"),
        ("with setting(choices=None):", "if True:"),
    ],
    "tinyres/ops/loss.py": [
        ("return neg(picked * (1.0 - smoothing) + mean(log_probs, 1) * smoothing)",
         "return neg(picked + mean(log_probs, 1) * smoothing)"),
        ("target * (1 - label_smoothing) + label_smoothing / K", "target * (1 - label_smoothing)"),
        ("reshape(permute(logits, (0, *range(2, logits.ndim), 1)), (-1, K))", "reshape(logits, (-1, K))"),
        ("_reduce(\"mse_loss\", mul(difference, difference), reduction)",
         "_reduce(\"mse_loss\", difference, reduction)"),
        ("mean(losses) if reduction == \"mean\" else sum(losses)",
         "sum(losses) if reduction == \"mean\" else mean(losses)"),
        ("if array_module(target) is np and (int(", "if (int("),
    ],
    "tinyres/ops/create.py": [
        ("return astype(grad, self.input_dtype)", "return astype(grad * -1.0, self.input_dtype)"),
    ],
    "kernels/cpu/conv_direct.py": [
        ("(tap, (a - ty) // stride[0], (b - tx) // stride[1])", "(tap, (a - tx) // stride[0], (b - ty) // stride[1])"),
        ("        dx[...] = 0", "        pass"),
        ("    if old:\n        tile = tile_load", "    if False:\n        tile = tile_load"),
        ("old = at.add or first > 0", "old = first > 0"),
        ("old = at.add or first > 0", "old = at.add or first > 1"),
        ("R * S, C)[:, :, order] = runs", "R * S, C)[:, :, order] = runs[:, :, ::-1]"),
        ("width = min(WIDTH, vectors * LANES - panel)", "width = WIDTH"),
        ("        sums[0] += other", "        pass"),
    ],
    "kernels/cpu/conv_winograd.py": [
        ("turned = Taps(8 * C, -C, 9 * C, 1)", "turned = Taps(0, C, 9 * C, 1)"),
        ("(2 - padding[0], 2 - padding[1])", "(padding[0], padding[1])"),
        ("on_both_sides(A[2].T), on_both_sides(A[4].T)", "on_both_sides(abs(A[2].T)), on_both_sides(A[4].T)"),
        ("on_both_sides(A[2]), on_both_sides(A[4])", "on_both_sides(A[2]), on_both_sides(abs(A[4]))"),
        ("float(i == len(p) - 2)", "float(i == len(p) - 3)"),
        ("for slot in range(len(sums)):", "for slot in range(1):"),
        ("dx, m, total is not None)", "dx, m)"),
        ("tiles, old = strips * at.tiles, first > start", "tiles, old = strips * at.tiles, False"),
    ],
    "kernels/cpu/window.py": [
        ("before = min(max(-left, 0), width)", "before = min(max(-left - 1, 0), width)"),
        ("        if h < 0 or h >= H:", "        if h < 0 or h > H:"),
        ("for i in range(min(height, H - top)):", "for i in range(height - 1):"),
        ("target[o + j] += source[i + j]", "target[o + j] = source[i + j]"),
    ],
    "kernels/cpu/simd.py": [
        ('_arithmetic(operator.sub, "fsub")', '_arithmetic(operator.sub, "fadd")'),
        ('builder.icmp_signed("<", lanes', 'builder.icmp_signed("<=", lanes'),
        ("builder.mul(step_, _int(r))", "builder.mul(step_, _int(0))"),
        ("plus if row[c] == row[k] else minus", "plus"),
        ("builder.fadd(even, odd), builder.fsub(even, odd)", "builder.fsub(even, odd), builder.fadd(even, odd)"),
        ("builder.insert_value(out, vector, r * m + c)", "builder.insert_value(out, vector, c * m + r)"),
    ],
    "kernels/cpu/norm.py": [
        ("shift[~np.isfinite(shift)] = 0", "pass"),
        ("shift = values[0, :C].astype(np.float64)", "shift = np.zeros(C)"),
        ("np.maximum(squares / M - (total / M) ** 2, 0)", "np.maximum(squares / (M - 1) - (total / M) ** 2, 0)"),
        ("values[m, c] - shift[c], values[m + q, c] - shift[c]",
         "values[m, c] - shift[c], values[m + 1, c] - shift[c]"),
        ("values[m + 3 * q, c] - shift[c]", "values[m + 2 * q, c] - shift[c]"),
        ("    for m in range(4 * q, M):\n        for c in range(C):\n            d = values",
         "    for m in range(4 * q + 1, M):\n        for c in range(C):\n            d = values"),
        ("    for m in range(4 * q, M):\n        for c in range(C):\n            gradient",
         "    for m in range(4 * q + 1, M):\n        for c in range(C):\n            gradient"),
        ("_behind_relu(g, y, m + 3 * q, c)", "_behind_relu(g, y, m + 2 * q, c)"),
        ("values[m + 3 * q, c] - mean[c]", "values[m + 3 * q, c]"),
        ("0 if relu and v <= 0 else v", "v if relu and v <= 0 else 0"),
        ("                v += residual[m, c]", "                v -= residual[m, c]"),
        ("a[c] * gradient + b[c] * values[m, c] + d[c]", "a[c] * gradient + b[c] * values[m, c]"),
        ("                dres[m, c] = gradient", "                dres[m, c] = g[m, c]"),
        ("g.dtype.type(0) if y[m, c] <= 0", "g.dtype.type(0) if not y[m, c] > 0"),
        ("g.dtype.type(0) if y[m, c] <= 0", "g.dtype.type(0) if y[m, c] < 0"),
    ],
    "kernels/cpu/pool.py": [
        ("value > best[c] or value != value or where[c] < 0", "value >= best[c] or value != value or where[c] < 0"),
        ("value > best[c] or value != value or where[c] < 0", "value > best[c] or where[c] < 0"),
        ("value > best[c] or value != value or where[c] < 0", "value > best[c] or value != value"),
        ("            where[:] = -1", "            where[:] = 0"),
        ("position = np.int32(h * W + w)", "position = np.int32(w * W + h)"),
        ("        dx[n] = 0\n", "        pass\n"),
        ("g.shape[2]):\n                dx[n, index[n, i, c], c] +=",
         "g.shape[2]):\n                dx[n, index[n, i, c], c] ="),
        ("range(max(top, 0), min(top + R, H))", "range(max(top, 0), min(top + R, H - 1))"),
        ("range(max(left, 0), min(left + S, W))", "range(max(left, 1), min(left + S, W))"),
        ("y[n, p, q, c] = total[c] / sizes[p, q]", "y[n, p, q, c] = total[c] / (R * S)"),
        ("first_p = (h + padding_h - R) // stride_h + 1", "first_p = (h + padding_h - R) // stride_h"),
        ("min(last_q, Q - 1)", "min(last_q, Q - 2)"),
        ("total[c] += g[n, p, q, c] / sizes[p, q]", "total[c] += g[n, p, q, c]"),
    ],
    "kernels/cpu/bias.py": [
        ("if relu and v <= 0 else v", "if relu and not v > 0 else v"),
        ("v += residual[m, k]", "v += residual[m, 0]"),
        ("0 if relu and v <= 0 else v", "0 if v <= 0 else v"),
    ],
    "kernels/cpu/optim.py": [
        ("            step += decay * p[i]", "            step -= decay * p[i]"),
        ("v = keep * velocity[i] + step", "v = velocity[i] + step"),
        ("step = step + keep * v if nesterov", "step = step + v if nesterov"),
        ("            velocity[i] = v\n", "            velocity[i] = step\n"),
        ("p[i] -= rate * step", "p[i] = -rate * step"),
        ("rate, keep, decay = number(lr), number(momentum), number(weight_decay)",
         "rate, keep, decay = lr, momentum, weight_decay"),
        ("gradient += decay * weight", "gradient -= decay * weight"),
        ("weight = keep * p[i]", "weight = p[i]"),
        ("m = mean[i] + gain1 * (gradient - mean[i])", "m = mean[i] + gain1 * gradient"),
        ("gain2 * (gradient * gradient)", "gain2 * gradient"),
        ("        square[i] = s\n", "        square[i] += s\n"),
        ("(scale * np.sqrt(s) + least)", "(np.sqrt(s) + least)"),
        ("rate, scale = lr / (1 - beta1**step)", "rate, scale = lr"),
        ("vector = p.ravel(order=\"K\")", "vector = p.ravel()"),
        ("            array[...] = g\n", ""),
        ("array.ravel(order=\"K\")", "array.ravel()"),
        ("    return a.strides == b.strides or all(", "    return a.strides == b.strides or any("),
        ("if slots(size, cost) == 1:", "if True:"),
        ("vector[start:stop] for", "vector for"),
    ],
    "kernels/cpu/dropout.py": [
        ("np.uint64(block) + ONE", "np.uint64(block)"),
        ("in range(10):", "in range(9):"),
        ("words[j] & LOW >= threshold", "words[j] & LOW > threshold"),
        ("bits = word >> HALF if j % 2 else word & LOW", "bits = word & LOW if j % 2 else word >> HALF"),
        ("word = words[j // 2]", "word = words[0]"),
        ("x.dtype.type(1 / (1 - p))", "x.dtype.type(1 - p)"),
    ],
    "tinyres/optimizer.py": [
        ('"update_all" not in vars(cls)', "False"),
    ],
    "tinyres/optim.py": [
        ('return 0.0, 1 - group["lr"] * group["weight_decay"]', 'return 0.0, 1.0'),
        ('return group["weight_decay"], 1.0', 'return 0.0, 1.0'),
        ('bool(group["nesterov"])', 'False'),
        ('        state["step"] += 1\n', '        state["step"] = 1\n'),
        ("steps, means, squares = (", "steps, squares, means = ("),
    ],
    "tinyres/data/augment.py": [
        ("(w, c)[::-1].ravel()", "(w, c).ravel()"),
        ("np.arange(w * c).reshape(w, c)[::-1]", "np.arange(w * c).reshape(w, c)[::-1, ::-1]"),
        ("if kinds != [kind for kind in order if kind in kinds]:", "if not set(kinds) <= set(order):"),
    ],
    "tinyres/ops/conv_bias.py": [
        ("y <= 0, grad", "y < 0, grad"),
        ("g.sum((0, 2, 3)), g)", "g.sum((0, 2, 3)), grad)"),
        ("if state.choices is None else", "if True else"),
    ],
    "tinyres/nn/fold.py": [
        ("(b - mean) * s", "(b + mean) * s"),
        ("self.uses[node] != 1", "False"),
        ("found and found[1].version.count == found[2]", "found"),
        ("self.calls[norm] != 1", "False"),
        ("self.calls[found[0]] != 1", "False"),
        ("{norm, found[0]} & self.hooked", "False"),
        ("type(module) in FOLDS}", "isinstance(module, tuple(FOLDS))}"),
    ],
    "tinyres/tensor.py": [
        ("if g is not None and not any(g is total for total in into):", "if g is not None:"),
        ("    merge = merge and not create_graph and state.debug is None\n", ""),
    ],
    "kernels/cpu/threads.py": [
        ("            del job  #", "            pass  #"),
        ("        del job, failures  #", "        pass  #"),
        ("    _idle.clear()\n", "    pass\n"),
        ("            _idle.append(self)", "            pass"),
        ("if _blas.users == 0:", "if True:"),
        ('.select(user_api="blas")', ''),
        ("None if sys.is_finalizing() else _idle.pop()", "_idle.pop()"),
        ("(1 + (ranges - 1) * HAND_OVER / cost)", "(1 + HAND_OVER / cost)"),
    ],
    "kernels/cpu/code_cache.py": [
        ("if found == key:", "if True:"),
        ("if content[:CHECKSUM] == hashlib.sha256(content[CHECKSUM:]).digest():", "if True:"),
        (", str(processor())", ", ''"),
        ("numba.__version__, ", ""),
        ("        os.utime(path)\n", ""),
        ("None if numba.config.CACHE_DIR else SOURCE", "SOURCE"),
    ],
    "tinyres/train.py": [
        ("with bar, asked, _one_blas_thread(loader.dataset), ", "with bar, asked, "),
        ("with no_grad(), _one_blas_thread(dataset), ", "with no_grad(), "),
        ('kernels.current() != "fast"', 'False'),
    ],
    "kernels/memory.py": [
        ("        self.pool.returned.append(self.block)", "        pass"),
        ("i = bisect.bisect_left(self.waiting, (size, -self.number))", "i = 0"),
        ("self.waiting[i][0] <= FIT * size:", "True:"),
        ("first = -memory.ctypes.data % LINE", "first = 0"),
        ("self.in_use + self.idle > KEEP * self.peak:", "False:"),
    ],
    "kernels/reference.py": [
        ("_split_groups(window, groups) @ weight, y.shape)", "_split_groups(window, groups) @ -weight, y.shape)"),
        ("        y += _join_groups", "        y[...] = _join_groups"),
        ("window += _join_groups(gradient", "window -= _join_groups(gradient"),
        ("window += _join_groups(gradient", "window[...] = _join_groups(gradient"),
        ("padded[:, ph : ph + H, pw : pw + W]))", "padded[:, pw : pw + H, ph : ph + W]))"),
        (".swapaxes(1, 2) @ gradient", ".swapaxes(1, 2) @ -gradient"),
        ("h, w = r * dilation[0], s * dilation[1]", "h, w = r * dilation[1], s * dilation[0]"),
        ("(Q - 1) * stride[1] + 1 : stride[1]]", "(Q - 1) * stride[0] + 1 : stride[0]]"),
        ("(position >= 0) & (position < size), position, -1)",
         "(position >= 0) & (position <= size - 2), position, -1)"),
        ("-(-np.arange(1, output + 1) * size // output)", "(np.arange(1, output + 1) * size // output)"),
        ("(value > y) |", "(value >= y) |"),
        ("xp.isnan(value) | (index < 0)", "(index < 0)"),
        ("(h * W + w)[None", "(w * W + h)[None"),
        ("target = (n * (H * W) + nhwc(index)) * C + c", "target = (n * (H * W) + nhwc(index)) * C"),
        ("    y /= array_module(x)", "    y *= array_module(x)"),
        ("share = nhwc(g) / xp", "share = nhwc(g) * xp"),
        ("dx[:, h, w] += share[:, p, q]", "dx[:, h, w] -= share[:, p, q]"),
        ("stop = np.minimum(start + taps, size + pad)", "stop = start + taps"),
        ("np.minimum(stop, size) - np.maximum(start, 0)", "stop - start"),
        ("values.var(0, dtype=np.float64)", "values.var(0, dtype=np.float64, ddof=1)"),
        ("y = rows(x) * scale + shift", "y = rows(x) * scale - shift"),
        ("        y += rows(residual)", "        y -= rows(residual)"),
        ("array_module(y).maximum(y, 0, out=y)", "array_module(y).minimum(y, 0, out=y)"),
        ("(gradient * (rows(x) - mean.astype(np.float64)))", "(gradient * rows(x))"),
        ("a * gradient + b * rows(x) + d", "a * gradient + b * rows(x)"),
        ("a * gradient + b * rows(x) + d", "a * gradient - b * rows(x) + d"),
        ("from_rows(gradient, x.shape)\n\n", "g\n\n"),
        ("where(rows(y) <= 0, g.dtype.type(0), g)", "where(rows(y) < 0, g.dtype.type(0), g)"),
        ("losses = -(1 - smoothing) * log_probs", "losses = -log_probs"),
        ("losses -= smoothing * log_probs.mean(1)", "losses += smoothing * log_probs.mean(1)"),
        ("dlogits = xp.exp(log_probs) - smoothing / K", "dlogits = xp.exp(log_probs)"),
        ("dlogits[xp.arange(N), label] -= 1 - smoothing", "dlogits[xp.arange(N), label] -= 1"),
        ('xp.where(good, g, g.dtype.type("nan"))[:, None]', "g.mean()"),
        ("math.ceil(p * 2**32)", "math.floor(p * 2**32)"),
        ("(count + 1) // 2", "count // 2"),
    ],
}
TESTS |= mutants_cuda.TESTS | mutants_inside.TESTS
MUTANTS |= mutants_cuda.MUTANTS | mutants_inside.MUTANTS


def copy_to(folder: Path) -> Path:
    """The package and its tests, without compiled Python: that is renewed by its date, which a quick edit may not move.
    Compiled kernels are taken along; they are of files that no mutant touches."""
    left_out = shutil.ignore_patterns("*.pyc", ".hypothesis")
    for name in ("tinyres", "kernels", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=left_out)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, folder)
    return folder


def run_tests(folder: Path, names: list[str], words: str) -> tuple[str, str]:
    """What became of the tests in that copy, and the first that failed."""
    one_thread = dict.fromkeys(("TINYRES_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider",
               "--hypothesis-profile=mutation", "-k", words, *(f"tests/{name}.py" for name in names)]
    try:
        done = subprocess.run(command, cwd=folder, env={**os.environ, **one_thread, "PYTHONDONTWRITEBYTECODE": "1"},
                              capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "failed", "took too long"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    first = failed[0].split(" - ")[0].removeprefix("FAILED tests/") if failed else ""
    return {0: "passed", 1: "failed"}.get(done.returncode, f"stopped with {done.returncode}"), first


def judge(mutant: tuple[str, str, str], folders: queue.Queue) -> tuple[str, str]:
    """Break a copy, run the tests, mend it again."""
    file, old, new = mutant
    folder = folders.get()
    path = folder / file
    source = path.read_text(encoding="utf-8")
    try:
        if source.count(old) != 1:
            return f"text found {source.count(old)} times".upper(), ""
        path.write_text(source.replace(old, new), encoding="utf-8")
        outcome, first = run_tests(folder, *TESTS[file])
        return {"failed": "caught", "passed": "SURVIVED"}.get(outcome, outcome.upper()), first
    finally:
        path.write_text(source, encoding="utf-8")
        folders.put(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="mutants whose file or text contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [(file, old, new) for file, mutants in MUTANTS.items() for old, new in mutants
              if arguments.only in file or arguments.only in old]
    began, folders, verdicts = time.monotonic(), queue.Queue(), []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.jobs) as pool:
        for i in range(arguments.jobs):
            folders.put(folder := copy_to(Path(temporary) / str(i)))
        outcome, first = run_tests(folder, sorted({name for file, _, _ in chosen for name in TESTS[file][0]}), "")
        if outcome != "passed":  # a test that fails anyway would catch every mutant
            print(f"without any mutant the tests {outcome}: {first}")
            return 1
        for mutant, (verdict, first) in zip(chosen, pool.map(lambda m: judge(m, folders), chosen), strict=True):
            verdicts.append(verdict)
            file, old, new = (" ".join(part.split()) for part in mutant)
            print(f"{verdict:10}{file}: {old[:60]}  ->  {new[:50]}  {first}", flush=True)
    bad = sum(verdict != "caught" for verdict in verdicts)
    print(f"{len(verdicts)} mutants, {len(verdicts) - bad} caught, {bad} not, {time.monotonic() - began:.0f} seconds")
    return 1 if bad or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
