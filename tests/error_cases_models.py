"""Mistakes with modules, networks, their names, and states that do not fit."""

import numpy as np
from error_case import chapter, floats, leaf

import tinyres as tr
from tinyres import models, nn

case = chapter("Modules")


@case("Parts assigned before super().__init__()", AttributeError, "Unready", "'layer'", fix="call super().__init__()")
def _(folder):
    class Unready(nn.Module):
        def __init__(self):
            self.layer = nn.ReLU()

    return lambda: Unready(),


@case("A module without forward", NotImplementedError, "Silent", "no forward", fix="define forward(self, x)")
def _(folder):
    class Silent(nn.Module):
        pass

    x, module = floats(2), Silent()
    return lambda: module(x), x, module


@case("A list of modules called", NotImplementedError, "ModuleList", "no forward", fix="use Sequential")
def _(folder):
    x, modules = floats(2), nn.ModuleList([nn.ReLU()])
    return lambda: modules(x), x, modules


@case("A function in a Sequential", TypeError, "Sequential: module '1'", "function", "a Module", fix="as nn.ReLU is")
def _(folder):
    layer = nn.Linear(2, 2)
    return lambda: nn.Sequential(layer, tr.relu), layer


@case("A class instead of a layer", TypeError, "Sequential: module '0'", "type", "a Module", fix="ReLU(...)")
def _(folder):
    return lambda: nn.Sequential(nn.ReLU),


@case("A module replaced by a number", TypeError, "Sequential.0", "int", "a Module", fix="delete the attribute first")
def _(folder):
    module = nn.Sequential(nn.ReLU())
    return lambda: setattr(module, "0", 3), module


@case("An array registered as a parameter", TypeError, "ReLU: parameter 'w'", "ndarray", "a Parameter",
      fix="nn.Parameter(...)")
def _(folder):
    x, module = floats(2), nn.ReLU()
    return lambda: module.register_parameter("w", x), x, module


@case("A parameter of integers", TypeError, "requires_grad", "int64", "float tensors", fix="astype('float32')")
def _(folder):
    x = np.arange(3)
    return lambda: nn.Parameter(x), x


@case("A buffer that requires a gradient", TypeError, "ReLU: buffer 'b'", "requires a gradient",
      "a Tensor without gradient", fix="detach()")
def _(folder):
    x, module = leaf(2), nn.ReLU()
    return lambda: module.register_buffer("b", x), x, module


@case("A name with a dot", ValueError, "ReLU: a name", "'a.b'", "without dots", fix="must be a non-empty string")
def _(folder):
    x, module = leaf(2), nn.ReLU()
    return lambda: module.register_buffer("a.b", x.detach()), x, module


@case("A name that a method has", ValueError, "ReLU.forward", "already a method", fix="choose another name")
def _(folder):
    module = nn.ReLU()
    return lambda: module.register_module("forward", nn.ReLU()), module


@case("A position that is not there", IndexError, "Sequential", "index 3", "1 modules", fix="from -1 to 0")
def _(folder):
    module = nn.Sequential(nn.ReLU())
    return lambda: module[3], module


@case("A part that a network does not have", AttributeError, "get_submodule('layer1.7')", "'7'", fix="only 0")
def _(folder):
    model = models.resnet8()
    return lambda: model.get_submodule("layer1.7"), model


@case("train('eval')", TypeError, "ReLU.train: mode", "'eval'", "True or False", fix="use eval()")
def _(folder):
    module = nn.ReLU()
    return lambda: module.train("eval"), module


@case("Weights drawn for a bias", ValueError, "fan_in and fan_out", "(3,)", "at least 2 dimensions", fix="use zeros_")
def _(folder):
    x = leaf(3)
    return lambda: nn.init.kaiming_normal_(x), x


@case("Numbers drawn with a negative deviation", ValueError, "normal_: std", "-1.0", fix="must not be negative")
def _(folder):
    x = leaf(3)
    return lambda: nn.init.normal_(x, 0.0, -1.0), x


@case("A nonlinearity that is not known", ValueError, "calculate_gain", "'rleu'", fix="did you mean 'relu'?")
def _(folder):
    return lambda: nn.init.calculate_gain("rleu"),


case = chapter("Networks and names")


@case("A network that is not there", ValueError, "models.build", "'resnet21'", fix="did you mean resnet32 or resnet20")
def _(folder):
    return lambda: models.build("resnet21"),


@case("A network that is not there, as an attribute", AttributeError, "tinyres.models", "'ResNet20'",
      fix="did you mean resnet20")
def _(folder):
    return lambda: models.ResNet20,


@case("An option misspelt", ValueError, "models.build", "'num_clases'", fix="did you mean 'num_classes'?")
def _(folder):
    return lambda: models.build("resnet20", num_clases=10),


@case("Shortcuts asked of a plain network", ValueError, "models.build", "plain20 has no option 'option'",
      fix="use resnet20")
def _(folder):
    return lambda: models.build("plain20", option="A"),


@case("A shortcut that is not there", ValueError, "option must be one of A, B, C", "'D'", fix="B projects")
def _(folder):
    return lambda: models.resnet20(option="D"),


@case("No classes", ValueError, "ResNet: num_classes", "got 0", fix="a positive int")
def _(folder):
    return lambda: models.resnet8(num_classes=0),


@case("A depth that the family does not have", ValueError, "cifar_resnet: depth", "got 21", "6n+2", fix="use 20")
def _(folder):
    return lambda: models.resnet.cifar_resnet(21),


@case("Zero channels that cannot be added evenly", ValueError, "PadShortcut", "16 -> 33", fix="option B")
def _(folder):
    return lambda: models.blocks.PadShortcut(16, 33, 2),


@case("A function that is not there", AttributeError, "tinyres", "'rellu'", fix="did you mean 'relu'?")
def _(folder):
    return lambda: tr.rellu,


@case("A method that has another name in PyTorch", AttributeError, "Tensor", "'view'", fix="use reshape()")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.view(3, 2), x


@case("A kernel set that is not there", ValueError, "use_kernels", "'fats'", fix="did you mean 'fast'?")
def _(folder):
    return lambda: tr.use_kernels("fats"),


case = chapter("States of networks")


@case("The state of a deeper network", ValueError, "ResNet.load_state_dict", "unknown to the model (72)",
      "layer1.1.conv1.weight", fix="strict=False")
def _(folder):
    model, state = models.resnet8(), models.resnet20().state_dict()
    return lambda: model.load_state_dict(state), model, state


@case("The state of other shortcuts", ValueError, "ResNet.load_state_dict", "missing from the state (10)",
      "layer2.0.downsample.0.weight", fix="strict=False")
def _(folder):
    model, state = models.resnet8(option="B"), models.resnet8().state_dict()
    return lambda: model.load_state_dict(state), model, state


@case("The state of other classes", ValueError, "ResNet.load_state_dict", "fc.weight", "(10, 64)", "(100, 64)",
      fix="nothing was loaded")
def _(folder):
    model, state = models.resnet8(num_classes=100), models.resnet8().state_dict()
    return lambda: model.load_state_dict(state), model, state


@case("A state whose names have a prefix", ValueError, "Linear.load_state_dict", "begin with 'module.'",
      fix="remove it")
def _(folder):
    model = nn.Linear(2, 2)
    state = {f"module.{name}": array for name, array in model.state_dict().items()}
    return lambda: model.load_state_dict(state), model, state


@case("A state of integers", ValueError, "Linear.load_state_dict", "int64", "float32", fix="astype()")
def _(folder):
    model, state = nn.Linear(1, 1), {"weight": np.array([[1]]), "bias": np.array([0.0])}
    return lambda: model.load_state_dict(state), model, state


@case("A state of numbers too large for float32", ValueError, "Linear.load_state_dict", "1e+300", "float32",
      fix="model.double()")
def _(folder):
    model, state = nn.Linear(1, 1), {"weight": np.array([[1e300]]), "bias": np.array([0.0])}
    return lambda: model.load_state_dict(state), model, state


@case("A path where a state is expected", TypeError, "Linear.load_state_dict", "str", "a mapping",
      fix="weights.load(model, path)")
def _(folder):
    model = nn.Linear(1, 1)
    return lambda: model.load_state_dict("w.safetensors"), model
