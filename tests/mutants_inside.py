"""The mutants of the residual blocks' variants, of the instruments and of the readers of foreign files, for
mutation.py."""

from __future__ import annotations

# File -> the tests that guard it, and words of which a test's name has one.
TESTS = {
    "tinyres/models/joins.py": (["test_joins"], ""),
    "tinyres/models/gates.py": (["test_joins"], ""),
    "tinyres/models/fixup.py": (["test_fixup"], ""),
    "tinyres/models/stochastic_depth.py": (["test_stochastic_depth"], ""),
    "tinyres/models/shared.py": (["test_shared"], ""),
    "tinyres/models/mlp.py": (["test_mlp"], ""),
    "tinyres/models/article_blocks.py": (["test_article"], ""),
    "tinyres/models/connections.py": (["test_connections"], ""),
    "tinyres/analysis/path_spectrum.py": (["test_instruments_gradient"], "path or spectrum or force or length"),
    "tinyres/analysis/forks.py": (["test_instruments_gradient"], "fork or split"),
    "tinyres/analysis/hessian.py": (["test_instruments_function"], "hessian or lanczos or eigen"),
    "tinyres/analysis/loss_surface.py": (["test_instruments_function"], "surface or direction"),
    "tinyres/analysis/shattering.py": (["test_instruments_function"], "shatter or autocorrelation or slope"),
    "tinyres/analysis/detour.py": (["test_instruments_function"], "lesion or block or swap or removed"),
    "tinyres/keras_names.py": (["test_mlperf"], ""),
    "tinyres/torch_file.py": (["test_torch_file"], ""),
    "tinyres/onnx/ops.py": (["test_onnx"], ""),
    "tinyres/analysis/cards/expect.py": (["test_cards"], "can_give or above_wants or near_wants"),
}

# File -> (text, what it becomes).
MUTANTS = {
    "tinyres/models/joins.py": [
        ("scaled(shortcut, self.shortcut_scale) + scaled(branch, self.residual_scale)",
         "scaled(shortcut, self.residual_scale) + scaled(branch, self.shortcut_scale)"),
        ("        return shortcut + self.scale * branch", "        return self.scale * (shortcut + branch)"),
        ("scaled(ops.dropout(self.inner(x), self.p, self.training), 1.0 - self.p)",
         "ops.dropout(self.inner(x), self.p, self.training)"),
    ],
    "tinyres/models/gates.py": [
        ("ops.relu(g * self.branch(x) + (1.0 - g) * self.shortcut(x))",
         "ops.relu((1.0 - g) * self.branch(x) + g * self.shortcut(x))"),
        ("ops.relu(self.branch(x) + (1.0 - self.gate(x)) * self.shortcut(x))",
         "ops.relu(self.branch(x) + self.gate(x) * self.shortcut(x))"),
        ("        return ops.relu((1.0 - self.gate(x)) * self.shortcut(x))",
         "        return ops.relu(self.shortcut(x))"),
    ],
    "tinyres/models/fixup.py": [
        ("len(blocks) ** (-1 / (2 * block.layers - 2))", "len(blocks) ** (-1 / (2 * block.layers))"),
        ("        return ops.relu(self.shortcut(x) + self.bias2b)", "        return ops.relu(self.shortcut(x))"),
    ],
    "tinyres/models/stochastic_depth.py": [
        ("self.shortcut(x) + self.survival * self.bn2(self.conv2(h))", "self.shortcut(x) + self.bn2(self.conv2(h))"),
        ("1.0 - layer / blocks * (1.0 - survival)", "1.0 - (layer - 1) / blocks * (1.0 - survival)"),
        ("random.key() < survival * 2.0**64", "random.key() >= survival * 2.0**64"),
    ],
    "tinyres/models/shared.py": [
        ("        return SharedBasicBlock(self.channels, shortcut, Borrowed(owner_of(self.branch)))",
         "        return SharedBasicBlock(self.channels, shortcut)"),
        ("Borrowed(owner_of(conv)) for conv in self.convs",
         "Borrowed(owner_of(conv)) for conv in reversed(self.convs)"),
    ],
    "tinyres/models/mlp.py": [
        ("        return self.shortcut(x) + self.a * self.linear(ops.relu(x))",
         "        return self.a * (self.shortcut(x) + self.linear(ops.relu(x)))"),
        ("    return 1 / math.sqrt(depth)", "    return 1 / depth"),
    ],
    "tinyres/models/article_blocks.py": [
        ("        return self.branch(x) + self.shortcut(x)", "        return self.branch(x) - self.shortcut(x)"),
    ],
    "tinyres/models/connections.py": [
        ("            previous, last = last, block(joined)", "            previous, last = joined, block(joined)"),
    ],
    "tinyres/analysis/path_spectrum.py": [
        ("{tap.fork.edge: 1 for tap in forks}", "{tap.fork.edge: 0 for tap in forks}"),
        ("_add(known.setdefault(behind.get(edge, edge), []), k + passed[edge], part)",
         "_add(known.setdefault(behind.get(edge, edge), []), passed[edge], part)"),
    ],
    "tinyres/analysis/forks.py": [
        ("    rest = sum(others[1:], others[0]) if others else 0 * first",
         "    rest = others[0] if others else 0 * first"),
        ("(event.node, g.copy(order=\"K\"))", "(event.node, g)"),
    ],
    "tinyres/analysis/hessian.py": [
        ("            w = w - Q[:m + 1].T @ (Q[:m + 1] @ w)", "            w = w - diagonal[m] * q"),
        ("* (len(y) / N)", "/ N"),
        ("and not (again and m + 1 < most)", ""),
    ],
    "tinyres/analysis/loss_surface.py": [
        ("        drawn = drawn * (wanted / xp.sqrt((drawn * drawn).sum(axes, keepdims=True)))",
         "        drawn = drawn * (wanted / xp.sqrt((drawn * drawn).sum()))"),
    ],
    "tinyres/analysis/shattering.py": [
        ("    centred = g - g.mean(axis=0)", "    centred = g * 1.0"),
        ("g @ direction / length", "g @ direction"),
    ],
    "tinyres/analysis/detour.py": [
        ("        return block.without_branch if isinstance(block, Block) else lambda x: x",
         "        return lambda x: x"),
        ("            position, self.position = self.position, self.position + 1",
         "            position = self.position"),
    ],
    "tinyres/keras_names.py": [
        ("np.ascontiguousarray(array.transpose(AXES[array.ndim]))", "np.ascontiguousarray(array.transpose())"),
    ],
    "tinyres/torch_file.py": [
        ("        if member.header_offset < end:", "        if member.header_offset < 0:"),
        ("        if has != needs:", "        if has < needs:"),
    ],
    "tinyres/onnx/ops.py": [
        ("    y = y if residual is None else graph.node(step, \"Add\", y, residual)", "    y = y"),
        ("[*options[\"padding\"]] * 2,", "[options[\"padding\"][0]] * 4,"),
        ("    after = [0 if n == -1 else n - b - m", "    after = [0 if n == -1 else b"),
    ],
    "tinyres/analysis/cards/expect.py": [
        ("        return CONTRADICTED if one_way and abs(mean(found)) > 2 * self.within else NOT_HERE",
         "        return CONTRADICTED if abs(mean(found)) > 2 * self.within else NOT_HERE"),
        ("            return REPRODUCED if mean(found) >= self.by else ORDERING", "            return REPRODUCED"),
    ],
}
