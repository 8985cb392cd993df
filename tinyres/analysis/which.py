"""Which network this is, in a phrase, told by its blocks; and what papers print of it.

The papers leave open, or changed later, what a name does not tell: where the stride is, what the shortcuts do where
shapes change, whether the branches start at zero. So these stand in the phrase.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres import nn, weights
from tinyres.analysis import published
from tinyres.models import blocks as b
from tinyres.models.preact import PreActResNet
from tinyres.models.resnet import ResNet

FAMILIES = "tinyres.models."
HE = {b.BasicBlock, b.Bottleneck, b.PlainBlock, b.PreActBasicBlock, b.PreActBottleneck, b.SharedPreActBasicBlock,
      b.SharedPreActBottleneck}
HE_SHORTCUTS = {nn.Identity, b.PadShortcut, b.ProjectionShortcut}
ORDINALS = ("first", "second", "third")


def which(model: nn.Module) -> str:
    """Which residual network this is, in a phrase; "" if it has no blocks of tinyres.models."""
    found = _blocks(model)
    if not found:
        return ""
    known = _he(model, found)
    text = _named(model, known) if known is not None else _described(model, found)
    return ", ".join(filter(None, (text, *_details(found))))


def published_costs(model: nn.Module, input: Sequence[int], name: str = "") -> tuple[str, ...]:
    """What papers print of the parameters of this network, and of the multiply-adds of one image, a sentence each.

    input: (N, C, H, W). Only where the number of classes, the stem and the image are the paper's: 10 classes and 32 x
    32 pixels, or 1,000 and 224 x 224; a number that was only remembered says so.
    """
    known = _he(model, _blocks(model))
    name = known.name if known is not None and known.name and not _plain(_blocks(model)) else name
    if not name or not isinstance(getattr(model, "fc", None), nn.Linear):
        return ()
    option = known.options["option"] if known is not None else ""
    usual = "A" if known is None or len(known.depths) == 3 else "B"
    key = name if option in ("", usual) else f"{name} option={option}"
    scale = (int(model.fc.out_features), *input[1:])
    small, large = (10, 3, 32, 32), (1000, 3, 224, 224)
    if scale not in (small, large) or (known is not None and len(known.depths) == 4 and (
            scale != large or known.options["cifar_stem"])):
        return ()
    costs = [number for number in published.find(network=key) if number.table and number.paper != "tinyres"
             and (number.what.startswith("parameters") or number.what.startswith("multiply-adds"))]
    return tuple(f"{number}{'' if number.checked == 'yes' else ', quoted from memory'}" for number in costs)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the zoo's families in this model, outermost only, in order."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if id(module) not in inside and _is_block(module):
            found.append(module)
            inside |= {id(part) for part in module.modules()}
    return found


def _is_block(module: nn.Module) -> bool:
    kind = type(module)
    plain = kind.__module__.startswith(FAMILIES) and kind.__name__.endswith(("Block", "Bottleneck", "DenseLayer"))
    return isinstance(module, b.Block) or plain


def _residual(found: Sequence[nn.Module]) -> list[b.Block]:
    """The blocks with a shortcut, also those inside of other blocks."""
    return [part for block in found for part in block.modules() if isinstance(part, b.Block)]


def _plain(found: Sequence[nn.Module]) -> bool:
    return not _residual(found)


def _he(model: nn.Module, found: Sequence[nn.Module]) -> weights.Architecture | None:
    """The architecture, if network, blocks and shortcuts are those of He et al. and nothing else."""
    if type(model) not in (ResNet, PreActResNet) or not found or not {type(block) for block in found} <= HE:
        return None
    shortcuts = {type(block.shortcut) for block in found if isinstance(block, b.Block)}
    allowed = HE_SHORTCUTS | ({b.ConvShortcut} if type(model) is PreActResNet else set())
    if not shortcuts <= allowed:
        return None
    return weights.identify({name: t.data for name, t in (*model.named_parameters(), *model.named_buffers())})


def _named(model: nn.Module, found: weights.Architecture) -> str:
    """The phrase of a network that is He's."""
    plain = _plain(_blocks(model))
    kind = "plain" if plain else "pre-activation ResNet" if type(model) is PreActResNet else "ResNet"
    source = "He et al. 2016" if type(model) is PreActResNet else "He et al. 2015"
    layers = 9 if isinstance(_blocks(model)[0], (b.Bottleneck, b.PreActBottleneck)) else 6
    n = found.depths[0]
    form = (f"{layers}n+2 layers with n = {n}" if set(found.depths) == {n} and len(found.depths) == 3
            else f"stages of {', '.join(map(str, found.depths))} blocks")
    widths = f", {'/'.join(map(str, found.widths))} channels" if not found.name else ""
    shortcuts = ", no shortcuts" if plain else f", shortcut option {found.options['option']}"
    stem = ", CIFAR stem" if found.options.get("cifar_stem") else ""
    return f"{kind}-{found.layers} ({source}): {form}{widths}{shortcuts}{stem}"


def _described(model: nn.Module, found: Sequence[nn.Module]) -> str:
    """The phrase of any other network of blocks: their classes, family and number, the stages and the shortcuts."""
    kinds = list(dict.fromkeys(type(block) for block in found))
    families = list(dict.fromkeys(f"models.{kind.__module__.removeprefix(FAMILIES)}" if
                                  kind.__module__.startswith(FAMILIES) else kind.__module__ for kind in kinds))
    stages = [len(stage) for stage in (getattr(model, name, ()) for name in getattr(model, "stages", ()))
              if isinstance(stage, (nn.Sequential, nn.ModuleList))]
    depth = f" in stages of {', '.join(map(str, stages))}" if len(stages) > 1 and sum(stages) == len(found) else ""
    words = f"{len(found)} block{'s' * (len(found) > 1)}{depth}: {', '.join(kind.__name__ for kind in kinds)}"
    return f"{type(model).__name__} of {words} ({', '.join(families)}){_shortcuts(found)}"


def _shortcuts(found: Sequence[nn.Module]) -> str:
    """The shortcuts' classes, where a block keeps its shape and where it changes it."""
    kinds = [type(block.shortcut).__name__ for block in _residual(found)]
    if not kinds:
        return ", no shortcuts"
    counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return f", shortcuts: {counts[0].split(' ', 1)[1] if len(counts) == 1 else ', '.join(counts)}"


def _details(found: Sequence[nn.Module]) -> list[str]:
    """Where the stride is, and whether every branch gives zero."""
    strides = list(dict.fromkeys(filter(None, (_stride(block) for block in found))))
    residual = _residual(found)
    zero = bool(residual) and all(_zero(block) for block in residual)
    return [*(f"stride in the {where}" for where in strides), *(["all branches zero"] if zero else [])]


def _stride(block: nn.Module) -> str:
    """Which convolution of the branch has the stride: "first convolution", or of a bottleneck "3x3"; "" for none."""
    shortcut = {id(part) for inner in _residual([block]) for part in inner.shortcut.modules()}
    gates = {id(part) for name, child in block.named_children() if name == "gate" for part in child.modules()}
    convolutions = [part for part in block.modules() if isinstance(part, nn.Conv2d)
                    and id(part) not in shortcut | gates]
    for i, conv in enumerate(convolutions):
        if max(conv.stride) > 1:
            sizes = [part.kernel_size for part in convolutions]
            name = "x".join(map(str, conv.kernel_size))
            if len(set(sizes)) == 1:
                return f"{ORDINALS[i] if i < len(ORDINALS) else f'{i + 1}th'} convolution"
            return name if sizes.count(conv.kernel_size) == 1 else f"{'first' if i == 0 else 'last'} {name}"
    return ""


def _zero(block: b.Block) -> bool:
    """Whether the branch's last layer is zero: what zero_branch_() would write is there already."""
    twin: Any = copy.deepcopy(block)
    try:
        twin.zero_branch_()
    except NotImplementedError:
        return False
    return all(np.array_equal(p.data, q.data) for p, q in zip(block.parameters(), twin.parameters(), strict=True))
