"""Wrong answers to the exercises of lesson 3."""

from tinyres.teach.misconception import WrongAnswer


def size(tag: str, why: str, *lines: str) -> WrongAnswer:
    """An output_size with this body."""
    head = "def output_size(size, kernel, stride=1, padding=0, dilation=1):"
    return WrongAnswer("output_size", tag, why, "\n    ".join((head, *lines)) + "\n")


def windows(tag: str, why: str, *lines: str, shape: str = "N, P, Q, C, R, S") -> WrongAnswer:
    """An im2col that ends in these lines, after the shapes, and takes strides of the padded image."""
    head = ("def im2col(x, kernel, stride=1, padding=0, dilation=1):",
            "(N, C, H, W), (R, S) = x.shape, kernel",
            "P, Q = output_size(H, R, stride, padding, dilation), output_size(W, S, stride, padding, dilation)",
            f"shape = ({shape})")
    return WrongAnswer("im2col", tag, why, "\n    ".join((*head, *lines)) + "\n")


PADDED = ("x = pad(x, padding)", "n, c, h, v = x.strides")

WRONG = [
    size("rounds-up", "the last window may hang over the edge",
         "extent = dilation * (kernel - 1) + 1",
         "return -(-(size + 2 * padding - extent) // stride) + 1"),
    size("forgets-the-first", "the number of steps is the number of windows",
         "return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride"),
    size("padding-once", "padding is the number of zeros that are added",
         "return (size + padding - dilation * (kernel - 1) - 1) // stride + 1"),
    size("ignores-padding", "the padding changes the values, not the size",
         "return (size - dilation * (kernel - 1) - 1) // stride + 1"),
    size("ignores-dilation", "a dilated kernel has as many positions, so it covers as many pixels",
         "return (size + 2 * padding - kernel) // stride + 1"),
    size("counts-gaps-as-positions", "a dilated kernel is dilation times as large",
         "return (size + 2 * padding - dilation * kernel) // stride + 1"),
    size("ignores-the-kernel", "the stride alone divides the size",
         "return (size + 2 * padding) // stride"),
    size("not-an-integer", "the formula is a fraction",
         "return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1"),
    size("demands-a-multiple", "the size must be a multiple of the stride",
         "room = size + 2 * padding - dilation * (kernel - 1) - 1",
         "assert room % stride == 0, 'not an integer multiple'",
         "return room // stride + 1"),
    windows("stride-not-used", "the shape already says how far windows are apart",
            *PADDED, "return as_strided(x, shape, (n, h, v, c, dilation * h, dilation * v))"),
    windows("dilation-not-used", "the pixels of a window are neighbours",
            *PADDED, "return as_strided(x, shape, (n, stride * h, stride * v, c, h, v))"),
    windows("stride-and-dilation-swapped", "the stride is between the pixels of a window",
            *PADDED, "return as_strided(x, shape, (n, dilation * h, dilation * v, c, stride * h, stride * v))"),
    windows("kernel-axes-swapped", "r goes along the columns",
            *PADDED, "return as_strided(x, shape, (n, stride * h, stride * v, c, dilation * v, dilation * h))"),
    windows("strides-in-elements", "strides count numbers, as indices do",
            *PADDED, "n, c, h, v = n // 8, c // 8, h // 8, v // 8",
            "return as_strided(x, shape, (n, stride * h, stride * v, c, dilation * h, dilation * v))"),
    windows("assumes-the-memory", "a number has 8 bytes, and rows follow one another",
            "x = pad(x, padding)",
            "c, h, v = 8 * x.shape[2] * x.shape[3], 8 * x.shape[3], 8",
            "return as_strided(x, shape, (C * c, stride * h, stride * v, c, dilation * h, dilation * v))"),
    windows("reads-outside", "the padded shape comes from nowhere but the formula",
            "n, c, h, v = x.strides",
            "return as_strided(x, shape, (n, stride * h, stride * v, c, dilation * h, dilation * v))"),
    windows("padding-on-one-side", "all the zeros stand behind the image",
            "x = np.pad(x, ((0, 0), (0, 0), (0, 2 * padding), (0, 2 * padding))) if padding else x",
            "n, c, h, v = x.strides",
            "return as_strided(x, shape, (n, stride * h, stride * v, c, dilation * h, dilation * v))"),
    windows("copies", "right numbers are all that is asked for",
            "x, windows = pad(x, padding), np.empty(shape)",
            "for p, q, r, s in np.ndindex(P, Q, R, S):",
            "    windows[:, p, q, :, r, s] = x[:, :, p * stride + r * dilation, q * stride + s * dilation]",
            "return windows"),
    windows("copies-the-image", "padding by nothing costs nothing",
            "x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))",
            "n, c, h, v = x.strides",
            "return as_strided(x, shape, (n, stride * h, stride * v, c, dilation * h, dilation * v))"),
    windows("axes-in-another-order", "the order of the axes does not matter",
            *PADDED, "return as_strided(x, shape, (n, c, dilation * h, dilation * v, stride * h, stride * v))",
            shape="N, C, R, S, P, Q"),
    windows("matrix-already", "im2col is the matrix",
            *PADDED, "v = as_strided(x, shape, (n, stride * h, stride * v, c, dilation * h, dilation * v))",
            "return v.reshape(N * P * Q, C * R * S)"),
    windows("kernel-turned", "a convolution turns its kernel round",
            *PADDED, "v = as_strided(x, shape, (n, stride * h, stride * v, c, dilation * h, dilation * v))",
            "return v[..., ::-1, ::-1]"),
]
