"""Wrong answers to the exercise of lesson 1, each with what one who writes it believes."""

from tinyres.teach.misconception import WrongAnswer


def answer(tag: str, why: str, code: str) -> WrongAnswer:
    return WrongAnswer("backward", tag, why, code.strip("\n") + "\n")


def counted(tag: str, why: str, start: str = "root.grad = np.ones_like(root.data)", uses: str = "", first: str = "",
            arrives: str = "t.grad = g if t.grad is None else t.grad + g", end: str = "continue") -> WrongAnswer:
    """The right walk but for one line: how it starts, counts, begins a count, adds, or ends a route."""
    return answer(tag, why, f"""
def backward(root):
    count, seen = {{}}, [root]
    for tensor in seen:
        {first or "tensor.grad = None"}
        if tensor.node is None:
            continue
        for t in {uses or "tensor.node.inputs"}:
            if t not in seen:
                seen.append(t)
            count[t] = count.get(t, 0) + 1
    total = dict(count)
    {start}
    todo = [root]
    while todo:
        tensor = todo.pop()
        if tensor.node is None:
            {end}
        for t, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad)):
            {arrives}
            count[t] -= 1
            if count[t] == 0:
                todo.append(t)
""")


WRONG = [
    counted("overwrites", "a tensor has one gradient, the one that came last",
            arrives="t.grad = g"),
    counted("keeps-the-first", "a tensor that has a gradient is finished",
            arrives="t.grad = g if t.grad is None else t.grad"),
    counted("averages", "the gradient is shared out among the uses",
            arrives="t.grad = g / total[t] if t.grad is None else t.grad + g / total[t]"),
    counted("multiplies", "derivatives are multiplied, by the chain rule",
            arrives="t.grad = g if t.grad is None else t.grad * g"),
    counted("same-input-once", "the uses of a tensor are the ops that use it",
            uses="set(tensor.node.inputs)"),
    answer("same-input-once", "a dictionary from inputs to contributions", """
def backward(root):
    count, seen = {}, [root]
    for tensor in seen:
        tensor.grad = None
        for t in set(tensor.node.inputs) if tensor.node else ():
            if t not in seen:
                seen.append(t)
            count[t] = count.get(t, 0) + 1
    root.grad = np.ones_like(root.data)
    todo = [root]
    while todo:
        tensor = todo.pop()
        if tensor.node is not None:
            brought = dict(zip(tensor.node.inputs, tensor.node.rule(tensor.grad)))
            for t, g in brought.items():
                t.grad = g if t.grad is None else t.grad + g
                count[t] -= 1
                if count[t] == 0:
                    todo.append(t)
"""),
    answer("handed-on-too-early", "depth first, each tensor once: adding is enough, the order does not matter", """
def backward(root):
    seen = [root]
    for tensor in seen:
        tensor.grad = None
        for t in tensor.node.inputs if tensor.node else ():
            if t not in seen:
                seen.append(t)
    root.grad = np.ones_like(root.data)
    todo, done = [root], set()
    while todo:
        tensor = todo.pop()
        if tensor in done or tensor.node is None:
            continue
        done.add(tensor)
        for t, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad)):
            t.grad = g if t.grad is None else t.grad + g
            todo.append(t)
"""),
    answer("handed-on-too-early", "nearest to the loss first: what is few steps away has few consumers", """
def backward(root):
    order = [root]
    for tensor in order:
        tensor.grad = None
        for t in tensor.node.inputs if tensor.node else ():
            if t not in order:
                order.append(t)
    root.grad = np.ones_like(root.data)
    for tensor in order:
        if tensor.node is not None:
            for t, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad)):
                t.grad = g if t.grad is None else t.grad + g
"""),
    answer("handed-on-again", "whenever something arrives, hand on what is there by now", """
def backward(root):
    seen = [root]
    for tensor in seen:
        tensor.grad = None
        for t in tensor.node.inputs if tensor.node else ():
            if t not in seen:
                seen.append(t)
    root.grad = np.ones_like(root.data)
    todo = [root]
    while todo:
        tensor = todo.pop(0)
        if tensor.node is not None:
            for t, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad)):
                t.grad = g if t.grad is None else t.grad + g
                todo.append(t)
"""),
    answer("once-per-path", "follow each contribution to the leaves: right, so it is finished", """
def backward(root):
    seen = [root]
    for tensor in seen:
        tensor.grad = None
        for t in tensor.node.inputs if tensor.node else ():
            if t not in seen:
                seen.append(t)
    todo = [(root, np.ones_like(root.data))]
    while todo:
        tensor, g = todo.pop()
        tensor.grad = g if tensor.grad is None else tensor.grad + g
        if tensor.node is not None:
            todo.extend(zip(tensor.node.inputs, tensor.node.rule(g)))
"""),
    answer("once-per-path", "the same as a function that calls itself, as it stands in small engines", """
def backward(root, g=None):
    if g is None:
        g = np.ones_like(root.data)
    root.grad = g if root.grad is None else root.grad + g
    if root.node is not None:
        for t, part in zip(root.node.inputs, root.node.rule(g)):
            backward(t, part)
"""),
    counted("writes-into-a-shared-array", "a += b is short for a = a + b",
            arrives="if t.grad is None:\n                t.grad = g\n            else:\n                t.grad += g"),
    counted("keeps-the-last-pass", "gradients are added up, also from pass to pass",
            first="pass"),
    answer("keeps-the-last-pass", "a mark on the tensor says that it is done, and nobody takes it off", """
def backward(root):
    order = []

    def visit(start):
        todo = [(start, False)]
        while todo:
            tensor, left = todo.pop()
            if left:
                order.append(tensor)
            elif not hasattr(tensor, "visited"):
                tensor.visited = True
                todo.append((tensor, True))
                todo.extend((t, False) for t in (tensor.node.inputs if tensor.node else ()))

    visit(root)
    if not order:
        return
    for tensor in order:
        tensor.grad = np.zeros_like(tensor.data)
    root.grad = np.ones_like(root.data)
    for tensor in reversed(order):
        if tensor.node is not None:
            for t, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad)):
                t.grad = t.grad + g
"""),
    answer("recursion", "inputs first, by a function that calls itself: graphs are not that deep", """
def backward(root):
    order, seen = [], set()

    def visit(tensor):
        if tensor not in seen:
            seen.add(tensor)
            for t in tensor.node.inputs if tensor.node else ():
                visit(t)
            order.append(tensor)

    visit(root)
    for tensor in order:
        tensor.grad = np.zeros_like(tensor.data)
    root.grad = np.ones_like(root.data)
    for tensor in reversed(order):
        if tensor.node is not None:
            for t, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad)):
                t.grad = t.grad + g
"""),
    counted("starts-with-the-value", "the walk begins with the loss",
            start="root.grad = root.data"),
    counted("starts-with-nothing", "gradients begin at zero",
            start="root.grad = np.zeros_like(root.data)"),
    counted("starts-with-nothing", "the root gets its gradient like all others",
            start="pass"),
    counted("wrong-shape", "a gradient of one number is an array of length one",
            start="root.grad = np.array([1.0])"),
    answer("sets-nothing", "a tensor without a gradient has nothing to hand on", """
def backward(root):
    todo = [root]
    while todo:
        tensor = todo.pop()
        if tensor.node is None or tensor.grad is None:
            continue
        for t, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad)):
            t.grad = g if t.grad is None else t.grad + g
            todo.append(t)
"""),
    counted("stops-early", "a leaf is the end",
            end="break"),
    answer("leaves-only", "only parameters have gradients", """
def backward(root):
    count, seen = {}, [root]
    for tensor in seen:
        for t in tensor.node.inputs if tensor.node else ():
            if t not in seen:
                seen.append(t)
            count[t] = count.get(t, 0) + 1
    sums, todo = {root: np.ones_like(root.data)}, [root]
    while todo:
        tensor = todo.pop()
        if tensor.node is None:
            tensor.grad = sums[tensor]
            continue
        for t, g in zip(tensor.node.inputs, tensor.node.rule(sums[tensor])):
            sums[t] = g if t not in sums else sums[t] + g
            count[t] -= 1
            if count[t] == 0:
                todo.append(t)
"""),
]
