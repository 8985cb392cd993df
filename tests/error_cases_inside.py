"""Mistakes with the variants of residual networks, with the instruments that look inside them, and with claim cards."""

import numpy as np
from error_case import Command, chapter, floats

import tinyres as tr
from tinyres import models, nn
from tinyres.analysis import feature_maps, hessian, lesion, loss_surface, path_spectrum, shattering

case = chapter("Networks and what is inside")

LABELS = np.arange(4) % 10


def network():
    tr.manual_seed(0)
    return models.resnet8(in_channels=1)


@case("A depth that no network of the family has", ValueError, "fixup_resnet", "6n+2", "got 21", fix="use 20")
def _(folder):
    return lambda: models.fixup_resnet(depth=21),


@case("A scale that is not a number", ValueError, "MLPBlock: a", "got nan", fix="be a finite number")
def _(folder):
    linear = nn.Linear(4, 4)
    return lambda: models.mlp.MLPBlock(linear, a=float("nan")), linear


@case("A scale that no float can hold", ValueError, "FixedScale: a", "got 1000", fix="be a finite number")
def _(folder):
    return lambda: models.article_blocks.FixedScale(10**400),


@case("A chance of survival above one", ValueError, "survival", "2", fix="lie in [0, 1]")
def _(folder):
    return lambda: models.stochastic_depth_resnet(survival=2),


@case("Images for a network that takes fewer values", ValueError, "MLP", "(2, 3, 8, 8)", "in_features=64",
      fix="in_features=192")
def _(folder):
    model, x = models.residual_mlp(depth=2), floats(2, 3, 8, 8)
    return lambda: model(x), model, x


@case("Paths of a network without residual blocks", ValueError, "path_spectrum", "no residual blocks",
      fix="use gradient_flow")
def _(folder):
    model, x = models.plain8(in_channels=1).eval(), floats(4, 1, 8, 8)
    return lambda: path_spectrum.path_spectrum(model, x, LABELS), model, x


@case("All paths of a deep network", ValueError, "path_gradients_by_force", "18 blocks", "2^18", fix="path_gradients")
def _(folder):
    model, x = models.residual_mlp(depth=18, in_features=16), floats(4, 1, 4, 4)
    return lambda: path_spectrum.path_gradients_by_force(model, x, LABELS), model, x


@case("More blocks removed than there are", ValueError, "lesion", "4 blocks", fix="expected 1 to 3")
def _(folder):
    model, x = network(), floats(4, 1, 8, 8)
    return lambda: lesion.lesion(model, x, LABELS, several=(4,)), model, x


@case("Blocks removed from what has none", ValueError, "lesion", "Linear has no residual blocks", fix="blocks=[...]")
def _(folder):
    model, x = nn.Linear(4, 4), floats(4, 4)
    return lambda: lesion.lesion(model, x, LABELS), model, x


@case("A loss surface without a middle", ValueError, "loss_surface", "steps=4", fix="an odd number of steps")
def _(folder):
    model, x = network(), floats(4, 1, 8, 8)
    return lambda: loss_surface.loss_surface(model, x, LABELS, steps=4), model, x


@case("The Hessian of a frozen network", ValueError, "hessian", "no parameter", fix="requires_grad_()")
def _(folder):
    model, x = network().requires_grad_(False), floats(4, 1, 8, 8)
    return lambda: hessian.hessian_eigenvalues(model, x, LABELS), model, x


@case("A line of inputs without length", ValueError, "shattering", fix="two different inputs of one shape")
def _(folder):
    model, x = network(), floats(1, 8, 8)
    return lambda: shattering.shattering(model, x, x), model, x


@case("Feature maps of a linear layer", ValueError, "feature_maps", "'fc'", "(4, 10)", fix="name a layer")
def _(folder):
    model, x = network(), floats(4, 1, 8, 8)
    return lambda: feature_maps.feature_maps(model, x, "fc"), model, x


# --- commands ---------------------------------------------------------------------------------------------------------


@case("All paths of a deep network one by one", 2, "--check", "27 blocks", "2^27", fix="at most 10 blocks")
def _(folder):
    return Command("analyze paths --model resnet56 --check"),


@case("A place where the gradient is not split", 2, "--to", "'block1'", fix="give block or images")
def _(folder):
    return Command("analyze paths --to block1"),


@case("A figure that is no PNG", 2, "--out", "f.pdf", fix="a .png file in a folder that exists")
def _(folder):
    return Command("analyze growth --out f.pdf"),


@case("A folder for random images", 2, "--data-dir", "random images", fix="leave it out")
def _(folder):
    return Command("analyze growth --data random --data-dir ."),


@case("A line of numbers for a network of images", 2, "resnet8 takes images", fix="residual_mlp or plain_mlp")
def _(folder):
    return Command("analyze shattering --grid --model resnet8"),


@case("A claim card misspelt", 2, "NAME", "'degredation'", fix="Did you mean 'degradation'?")
def _(folder):
    return Command("claims run degredation"),


@case("A budget that is not there", 2, "--budget", "'large'", fix="small, gpu")
def _(folder):
    return Command("claims run paths --budget large"),


@case("A folder without the record asked for", 2, "--out", "nowhere/paths.json", fix="run it: tinyres claims run paths")
def _(folder):
    return Command("claims show paths --out nowhere"),


@case("An export to a kind of file that is not written", 2, "--to", "n.pt", fix=".onnx or .safetensors")
def _(folder):
    return Command("export w.npz --to n.pt"),


@case("An export of weights that are not there", 1, "weights", "there is no file", fix="check the path")
def _(folder):
    return Command("export w.npz --to n.onnx"),


@case("A summary of nothing", 2, "--model", "say which network", fix="like resnet20")
def _(folder):
    return Command("summary"),
