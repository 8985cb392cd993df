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

ROOT = Path(__file__).resolve().parents[1]

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
    "tinyres/ops/norm.py": (["test_ops", "test_ops_frozen", "test_ops_norm"], "norm or dropout"),
    "tinyres/ops/fused.py": (["test_ops", "test_ops_frozen", "test_ops_norm"], "norm or entropy"),
    "tinyres/ops/loss.py": (["test_ops", "test_ops_loss"], "loss or entropy"),
    "tinyres/ops/create.py": (["test_ops"], "astype"),
    "kernels/reference.py": (["test_ops", "test_ops_conv", "test_ops_pool", "test_ops_norm", "test_ops_loss"],
                             "conv or pool or norm or loss or entropy"),
    "kernels/cpu/conv_direct.py": (["test_kernels", "test_conv_cpu"], "conv"),
    "kernels/cpu/conv_winograd.py": (["test_conv_cpu"], "winograd"),
    "kernels/cpu/simd.py": (["test_conv_cpu"], "vectors or tile"),
}

# File -> (text, what it becomes).
MUTANTS = {
    "tinyres/ops/broadcast.py": [
        ("return sum_to(grad, self.input_shape)", "return sum_to(grad * 2.0, self.input_shape)"),
        ("return broadcast_to(grad, self.input_shape)", "return broadcast_to(grad * -1.0, self.input_shape)"),
        ("if n == 1 and x.shape[lead + i] != 1)", "if n == 1 and x.shape[lead + i] == 2)"),
        ("total = x.sum(axis=axes, dtype=", "total = x.max(axis=axes, keepdims=True) + 0 * x.sum(axis=axes, dtype="),
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
        ("share /= share.sum(axis=dims, keepdims=True)", "pass"),
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
        ("/ (1.0 - float(p))", "/ 1.0"),
        ("dtype=np.float32) >= p", "dtype=np.float32) < p"),
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
    ],
    "tinyres/ops/create.py": [
        ("return astype(grad, self.input_dtype)", "return astype(grad * -1.0, self.input_dtype)"),
    ],
    "kernels/cpu/conv_direct.py": [
        ("(a + padding[0] - r * dilation[0]) // stride[0]", "(a - r * dilation[0]) // stride[0]"),
        ("dx[:, a :: stride[0], b :: stride[1]] = 0", "pass"),
        ("    if first > 0:\n        tile = tile_load", "    if first > 1:\n        tile = tile_load"),
        ("R * S, C)[:, :, order] = runs", "R * S, C)[:, :, order] = runs[:, :, ::-1]"),
        ("before = min(max(-left, 0), width)", "before = min(max(-left - 1, 0), width)"),
        ("        sums[0] += other", "        pass"),
    ],
    "kernels/cpu/conv_winograd.py": [
        ("[:, ::-1, ::-1].transpose(1, 2, 0, 3)", "[:, ::-1].transpose(1, 2, 0, 3)"),
        ("(2 - padding[0], 2 - padding[1])", "(padding[0], padding[1])"),
        ("store(target, o + 3 * out_step, c + 2 * e)", "store(target, o + 3 * out_step, c - 2 * e)"),
        ("store(target, o + 2 * out_step, p + 4 * r)", "store(target, o + 2 * out_step, p + 2 * r)"),
        ("store(target, o + 3 * out_step, zeros(source) - d1)", "store(target, o + 3 * out_step, d1)"),
        ("for i in range(min(m, P - top)):", "for i in range(m - 1):"),
    ],
    "kernels/cpu/simd.py": [
        ('_arithmetic(operator.sub, "fsub")', '_arithmetic(operator.sub, "fadd")'),
        ('builder.icmp_signed("<", lanes', 'builder.icmp_signed("<=", lanes'),
        ("builder.mul(step_, _int(r))", "builder.mul(step_, _int(0))"),
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
        ("+= share[:, p[:, None], q]", "-= share[:, p[:, None], q]"),
        ("stop = np.minimum(start + taps, size + pad)", "stop = start + taps"),
        ("np.minimum(stop, size) - np.maximum(start, 0)", "stop - start"),
        ("values.var(0, dtype=np.float64)", "values.var(0, dtype=np.float64, ddof=1)"),
        ("y = rows(x) * scale + shift", "y = rows(x) * scale - shift"),
        ("        y += rows(residual)", "        y -= rows(residual)"),
        ("y[y <= 0] = 0", "y[y >= 0] = 0"),
        ("(gradient * (rows(x) - mean.astype(np.float64)))", "(gradient * rows(x))"),
        ("a * gradient + b * rows(x) + d", "a * gradient + b * rows(x)"),
        ("a * gradient + b * rows(x) + d", "a * gradient - b * rows(x) + d"),
        ("from_rows(gradient, x.shape)\n\n", "g\n\n"),
        ("where(rows(y) <= 0, g.dtype.type(0), g)", "where(rows(y) < 0, g.dtype.type(0), g)"),
        ("losses = -(1 - smoothing) * log_probs", "losses = -log_probs"),
        ("losses -= smoothing * log_probs.mean(1)", "losses += smoothing * log_probs.mean(1)"),
        ("dlogits = xp.exp(log_probs) - smoothing / K", "dlogits = xp.exp(log_probs)"),
        ("dlogits[xp.arange(N), labels] -= 1 - smoothing", "dlogits[xp.arange(N), labels] -= 1"),
        ("return dlogits * g[:, None]", "return dlogits * g.mean()"),
    ],
}


def copy_to(folder: Path) -> Path:
    """The package and its tests, without compiled Python: that is renewed by its date, which a quick edit may not move.
    Compiled kernels are taken along; they are of files that no mutant touches."""
    left_out = shutil.ignore_patterns("*.pyc", ".hypothesis")
    for name in ("tinyres", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=left_out)
    shutil.copy2(ROOT / "pyproject.toml", folder)
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
