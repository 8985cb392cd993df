"""Colours (Okabe & Ito 2008) and markers that can be told apart with any kind of sight, and in grey."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "*")
