"""Mistakes on the command line: one line on stderr, nothing on stdout, no traceback, and no folder left behind."""

import json
from pathlib import Path

from error_case import Command, chapter

from tinyres import models, weights

case = chapter("Command line")


@case("A command misspelt", 2, "tinyres", "'trian'", fix="tinyres --help")
def _(folder):
    return Command("trian"),


@case("An option misspelt, on the command line", 2, "tinyres train", "--epohcs", fix="--epochs")
def _(folder):
    return Command("train --epohcs 3"),


@case("A word where a number is expected", 2, "'--epochs'", "'x'", "a whole number", fix="of at least 1")
def _(folder):
    return Command("train --epochs x"),


@case("A number out of range", 2, "'--momentum'", "'1'", fix="from 0 to 0.9999")
def _(folder):
    return Command("train --momentum 1"),


@case("A learning rate that is not a number", 2, "'--lr'", "'nan'", fix="of at least 0")
def _(folder):
    return Command("train --lr nan"),


@case("Epochs and iterations both, on the command line", 2, "--iterations", "2 epochs and 9 iterations",
      fix="give one of them")
def _(folder):
    return Command("train --epochs 2 --iterations 9"),


@case("A warm-up with a schedule that has its own", 2, "--warmup", "5 batches", "onecycle", fix="another --schedule")
def _(folder):
    return Command("train --schedule onecycle --warmup 5"),


@case("A warm-up longer than the run", 2, "--warmup", "500 batches", "a run of 22", fix="give fewer")
def _(folder):
    return Command("train --warmup 500 --epochs 1"),


@case("Nesterov's momentum without momentum, on the command line", 2, "--nesterov", "got 0", "above 0",
      fix="--momentum")
def _(folder):
    return Command("train --nesterov --momentum 0"),


@case("More parts of a batch than it has images", 2, "--accumulate", "9 parts", "8 images", fix="at most 8")
def _(folder):
    return Command("train --batch 8 --accumulate 9"),


@case("A batch larger than the data, on the command line", 2, "--batch", "batch_size 5000", "1437 images",
      fix="smaller batch_size")
def _(folder):
    return Command("train --batch 5000"),


@case("A network's option without a value", 2, "--model-option", "'zero_init_residual'", fix="give NAME=VALUE")
def _(folder):
    return Command("train --model-option zero_init_residual"),


@case("A network's option misspelt", 2, "--model-option", "resnet8", "'zero_init'", fix="zero_init_residual")
def _(folder):
    return Command("train --model-option zero_init=true"),


@case("A network's option of the wrong kind", 2, "--model-option", "'zero_init_residual=maybe'", fix="true or false")
def _(folder):
    return Command("train --model-option zero_init_residual=maybe"),


@case("A network's option that the data decides", 2, "--model-option", "'num_classes=5'", "the data",
      fix="leave it out")
def _(folder):
    return Command("train --model-option num_classes=5"),


@case("A recipe that is not there", 2, "--recipe", "'he2016'", fix="Did you mean 'he2015'?")
def _(folder):
    return Command("train --recipe he2016"),


@case("A schedule that is not there", 2, "--schedule", "'cosin'", fix="cosine, onecycle, he2015, constant")
def _(folder):
    return Command("train --schedule cosin"),


@case("A network that is not there, on the command line", 2, "--model", "'resnet21'", fix="did you mean resnet")
def _(folder):
    return Command("train --model resnet21"),


@case("A data set that is not there, on the command line", 2, "--data", "'cifar'", fix="Did you mean 'cifar10'?")
def _(folder):
    return Command("train --data cifar"),


@case("A kernel set that is not there, on the command line", 2, "--kernels", "'fats'", fix="did you mean 'fast'?")
def _(folder):
    return Command("train --kernels fats"),


@case("A shortcut that is not there, on the command line", 2, "--option", "'D'", fix="one of A, B, C")
def _(folder):
    return Command("train --option D"),


@case("Everything frozen", 2, "--freeze", "nothing is left to train", fix="freeze less")
def _(folder):
    return Command("train --freeze '*'"),


@case("A folder that holds a run already", 2, "--out", "run holds a run already", fix="--resume run")
def _(folder):
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    return Command("train --out run"),


@case("A file where a folder is expected", 2, "--out", "run is a file", fix="give a folder")
def _(folder):
    Path("run").write_text("")
    return Command("train --out run"),


@case("A run resumed that is none", 2, "--resume", "nowhere holds no run", fix="there is no config.json in it")
def _(folder):
    return Command("train --resume nowhere"),


@case("A run resumed with other options", 2, "--resume", "--epochs, --lr", "the run's own options hold",
      fix="leave out")
def _(folder):
    return Command("train --resume run --epochs 9 --lr 1"),


@case("A run resumed whose settings are damaged", 1, "config.json lacks", "it is damaged", fix="train anew",
      varies=r"(?<=lacks ).*(?=: it is)")
def _(folder):
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps({"data": "digits"}))
    return Command("train --resume run"),


@case("Weights that do not say on which data", 2, "--data", "w.safetensors", "does not say", fix="give one of digits")
def _(folder):
    weights.save(models.resnet8(in_channels=1), "w.safetensors")
    return Command("eval --weights w.safetensors"),


@case("Weights of no network that has a name", 2, "--model", "thin.safetensors", "a ResNet of 8 layers",
      fix="say which network")
def _(folder):
    weights.save(models.resnet.cifar_resnet(8, in_channels=1, widths=(8, 16, 32)), "thin.safetensors")
    return Command("eval --weights thin.safetensors --data digits"),


@case("Weights that are not there, on the command line", 1, "weights", "there is no file", "nowhere",
      fix="check the path")
def _(folder):
    return Command("eval --weights nowhere --data digits"),


@case("A normalisation that is none", 2, "--normalize", "'1,0'", "positive stds", fix="expected imagenet")
def _(folder):
    weights.save(models.resnet8(in_channels=1), "w.safetensors")
    return Command("eval --weights w.safetensors --data digits --normalize 1,0"),


@case("A split that is not there, on the command line", 2, "--split", "'tset'", fix="Did you mean 'test'?")
def _(folder):
    weights.save(models.resnet8(in_channels=1), "w.safetensors")
    return Command("eval --weights w.safetensors --data digits --split tset"),


@case("Weights for a network that cannot be", 2, "--model", "w.safetensors", "'depth' of '8'", fix="Say which it is")
def _(folder):
    weights.save(models.resnet8(), "w.safetensors", {"model": "scaled_resnet", "network": '{"depth": "8"}'})
    return Command("eval --weights w.safetensors --data digits"),


@case("A shape that is none", 2, "--input", "'3x32'", fix="three positive numbers")
def _(folder):
    return Command("summary --model resnet20 --input 3x32"),


@case("A picture that is no .png", 2, "--out", "digits.jpg", "the only kind", fix=".png")
def _(folder):
    return Command("data show digits --out digits.jpg"),


@case("Runs compared where there are none", 1, "runs", "no folder nowhere", fix="train a network")
def _(folder):
    return Command("runs nowhere"),


@case("Runs sorted by what they do not have", 2, "--sort", "'speed'", fix="accuracy, time, name")
def _(folder):
    return Command("runs --sort speed"),


@case("An image size for data that has one", 2, "--image-size: 32", "digits", "your own", fix="leave it out")
def _(folder):
    return Command("train --data digits --image-size 32"),


@case("A folder for data that comes with the package", 2, "--data-dir: mine", "digits come with the package",
      fix="leave it out")
def _(folder):
    return Command("train --data digits --data-dir mine"),


@case("Networks named and all of them asked for", 2, "--all", "--model", fix="not both")
def _(folder):
    return Command("claims proof --all --model resnet20"),


@case("A set fetched that is not there, on the command line", 2, "NAME", "'cifar11'", fix="Did you mean 'cifar10'?")
def _(folder):
    return Command("data fetch cifar11"),


@case("A path where no data is", 1, "own data", "nothing at", "a folder", fix="check the path")
def _(folder):
    return Command("train --data ./nowhere"),


@case("A moving average that never forgets, on the command line", 2, "'--ema'", "'1'", fix="from 0 to 0.999999")
def _(folder):
    return Command("train --ema 1"),
