"""Wrong answers to the exercises of lesson 4."""

from tinyres.teach.misconception import WrongAnswer


def collects(tag: str, why: str, *, zeros: str = "np.zeros((N, C, H + 2 * padding, W + 2 * padding), columns.dtype)",
             h: str = "r * dilation", v: str = "s * dilation", step: str = "stride", put: str = "+=",
             what: str = "columns[..., r, s]",
             end: str = "dx[:, :, padding : padding + H, padding : padding + W]") -> WrongAnswer:
    """A col2im that goes through the kernel's positions, with one thing changed."""
    return WrongAnswer("col2im", tag, why, f"""\
def col2im(columns, x_shape, stride=1, padding=0, dilation=1):
    (N, C, H, W), (_, P, Q, _, R, S) = x_shape, columns.shape
    dx = {zeros}
    for r, s in np.ndindex(R, S):
        h, v, t = {h}, {v}, {step}
        seen = (slice(None), slice(None), slice(h, h + (P - 1) * t + 1, t), slice(v, v + (Q - 1) * t + 1, t))
        dx[seen] {put} ({what}).transpose(0, 3, 1, 2)
    return {end}
""")


def backward(tag: str, why: str, *, G: str = "g.transpose(0, 2, 3, 1).reshape(-1, K)", dX: str = "G @ W",
             dx: str = "col2im(dX.reshape(shape), x.shape, stride, padding, dilation)",
             dw: str = "(G.T @ X).reshape(w.shape)", db: str = "G.sum(0)", end: str = "dx, dw, db") -> WrongAnswer:
    """A conv2d_backward by the three products, with one thing changed."""
    return WrongAnswer("conv2d_backward", tag, why, f"""\
def conv2d_backward(g, x, w, stride=1, padding=0, dilation=1):
    K, C, R, S = w.shape
    windows = im2col(x, (R, S), stride, padding, dilation)
    shape, X, W = windows.shape, windows.reshape(-1, C * R * S), w.reshape(K, -1)
    G = {G}
    dX = {dX}
    dx = {dx}
    dw = {dw}
    db = {db}
    return {end}
""")


WRONG = [
    collects("assigns-instead-of-adding", "each window's element has its place, so it is put there", put="="),
    collects("averages", "col2im undoes im2col", end="""\
divided(dx, columns, stride, dilation)[:, :, padding : padding + H, padding : padding + W]


def divided(dx, columns, stride, dilation):
    counts = np.zeros_like(dx)
    for p, q, r, s in np.ndindex(*columns.shape[1:3], *columns.shape[4:]):
        counts[:, :, p * stride + r * dilation, q * stride + s * dilation] += 1
    return dx / np.maximum(counts, 1)"""),
    collects("not-cropped", "the result has the size of what the windows were taken from", end="dx"),
    collects("cropped-at-the-corner", "cutting to H x W is cutting to H x W", end="dx[:, :, :H, :W]"),
    collects("kernel-axes-swapped", "r goes along the columns", what="columns[..., s, r] if R == S else "
             "columns[..., r, s]"),
    collects("kernel-turned", "backward everything is turned round", what="columns[..., R - 1 - r, S - 1 - s]"),
    collects("stride-not-used", "neighbouring windows are neighbours", step="1"),
    collects("dilation-not-used", "the pixels of a window are neighbours", h="r", v="s"),
    collects("size-from-the-output", "the windows say how large the image was",
             zeros="np.zeros((N, C, (P - 1) * stride + dilation * (R - 1) + 1, "
                   "(Q - 1) * stride + dilation * (S - 1) + 1), columns.dtype)",
             end="dx[:, :, padding : dx.shape[2] - padding, padding : dx.shape[3] - padding]"),
    collects("another-dtype", "zeros are zeros", zeros="np.zeros((N, C, H + 2 * padding, W + 2 * padding))"),
    backward("g-not-transposed", "reshape(-1, K) makes a row for each output", G="g.reshape(-1, K)"),
    backward("upstream-ignored", "the gradient of a product is the other factor",
             G="np.ones_like(g).transpose(0, 2, 3, 1).reshape(-1, K)"),
    backward("batch-mean", "the gradient of a batch is the mean over its images",
             dw="(G.T @ X).reshape(w.shape) / len(x)", db="G.sum(0) / len(x)"),
    backward("bias-mean", "a bias that is used everywhere is moved by the mean", db="G.mean(0)"),
    backward("bias-not-summed", "only the batch is summed over", db="g.sum(0)"),
    backward("kernel-turned", "the backward convolution turns its kernel",
             dX="G @ w[:, :, ::-1, ::-1].reshape(K, -1)"),
    backward("weight-axes", "the columns of X count r, s, c",
             dw="(G.T @ X).reshape(K, R, S, C).transpose(0, 3, 1, 2)"),
    backward("geometry-not-passed-on", "dX knows where it belongs",
             dx="col2im(dX.reshape(shape), x.shape, padding=padding)"),
    backward("another-order", "the weight comes first", end="dw, dx, db"),
]
