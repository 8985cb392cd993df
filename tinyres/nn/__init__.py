"""Layers and the Module that holds them, with PyTorch's names: `from tinyres import nn`."""

from tinyres.nn import init
from tinyres.nn.containers import ModuleList, Sequential
from tinyres.nn.fold import FoldedConv2d, FoldedLinear, fold_batch_norm
from tinyres.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Tanh,
)
from tinyres.nn.module import Module
from tinyres.nn.parameter import Parameter

__all__ = [
    "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Conv2d", "ConvTranspose2d", "Dropout", "Flatten",
    "FoldedConv2d", "FoldedLinear", "GlobalAvgPool2d", "Identity", "Linear", "MaxPool2d", "Module", "ModuleList",
    "Parameter", "ReLU", "Sequential", "Sigmoid", "Tanh", "fold_batch_norm", "init",
]
