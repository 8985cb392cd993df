"""`tinyres export`: weights with their network as an ONNX file, or under the names used here as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tinyres.cli import setup
from tinyres.cli.stored import Stored, stored

SAME = 1e-4  # greatest difference of outputs, as a share of the largest, that rounding explains


def export_weights(
    weights: Annotated[Path, typer.Argument(help="A file of weights, or the folder of a run.", show_default=False)],
    to: Annotated[Path, typer.Option(help="The file to write; its ending says what: .onnx or .safetensors.")],
    model: Annotated[str | None, typer.Option(help="A network's name. Default: the run's, or what the file's names "
                                              "tell.")] = None,
    option: setup.ShortcutOption = None,
    model_option: setup.ModelOption = None,
    input: Annotated[str | None, typer.Option(help="Channels, height and width of an image. Default: those of the "
                                              "run's data, or what the network was made for.")] = None,
    batch: Annotated[int | None, setup.whole("Fix the number of images; default: any number.")] = None,
    opset: Annotated[int, setup.whole("ONNX's version of its operators.")] = 17,
    fold: Annotated[bool, typer.Option("--fold", help="Fold each batch norm into the convolution in front of it.")
                    ] = False,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Write a network for other programs: as ONNX, or its weights as safetensors.

    The ONNX file takes images that are normalised already; mean and std stand in its metadata. Where onnxruntime is
    installed, it is asked whether the file gives the same outputs.
    """
    if to.suffix not in (".onnx", ".safetensors"):
        raise typer.BadParameter(f"{to}: what to write is told by the ending; give a name that ends in .onnx or "
                                 ".safetensors.", param_hint="--to")
    if to.exists() and to.resolve() == weights.resolve():
        raise typer.BadParameter(f"{to} is the file to read; give another one.", param_hint="--to")
    if to.suffix == ".safetensors":
        asked = {"--batch": batch is not None, "--opset": opset != 17, "--fold": fold}
        if any(asked.values()):
            names = ", ".join(name for name, given in asked.items() if given)
            raise typer.BadParameter("is about ONNX, and safetensors holds arrays only; leave it out.",
                                     param_hint=names)
        return _safetensors(weights, to, model, option, model_option or [], input, json)
    found = stored(weights, model, option, model_option or [], input)
    setup.need("onnx", "onnx", "tinyres export to .onnx")
    _onnx(found, weights, to, batch, opset, fold, json, quiet)


def _safetensors(weights: Path, to: Path, model: str | None, option: str | None, own: list[str], input: str | None,
                 json: bool) -> None:
    """Write the weights under the names used here; if it is known which network they are for, only if they fit it."""
    from tinyres.files import safetensors, write_atomically
    from tinyres.weights import read, save

    source = read(weights)
    known = model or source.network or (source.architecture is not None and source.architecture.name)
    if known:
        found = stored(weights, model, option, own, input)
        name, count = found.name, len(found.network.state_dict())
        save(found.network, to, _texts(found))
    else:
        name, count = "", len(source.arrays)
        write_atomically(to, safetensors(source.arrays))
    result = {"out": str(to), "format": "safetensors", "model": name, "arrays": count, "bytes": to.stat().st_size}
    setup.report(result, f"{to}: {count} arrays of {name or 'a network not known by its names'}, "
                         f"{result['bytes']:,} bytes", json)


def _onnx(found: Stored, weights: Path, to: Path, batch: int | None, opset: int, fold: bool, json: bool,
          quiet: bool) -> None:
    from tinyres.analysis.which import which
    from tinyres.nn import fold_batch_norm
    from tinyres.onnx import export_onnx

    network = found.network
    about = which(network)
    images = _images(found.shape, 2 if batch is None else batch)
    if fold:
        network = fold_batch_norm(network, images)
    types = export_onnx(network, to, found.shape, "N" if batch is None else batch, opset,
                        f"{found.name}: {about}" if about else found.name, _texts(found))
    difference = _difference(network, to, images)
    if difference is not None and not difference <= SAME:  # also of NaN
        raise RuntimeError(f"export: onnxruntime's outputs of {to} differ by {difference:.2g} of the largest, expected "
                           f"at most {SAME:g}: the file is not the network; please report it")
    words = "onnxruntime is not installed, so the file was not run" if difference is None else \
        f"onnxruntime's outputs are the same to {difference:.1g}"
    setup.say(f"{found.name} from {weights}; {words}", quiet)
    result: dict[str, Any] = {
        "out": str(to), "format": "onnx", "model": found.name, "nodes": len(types), "opset": opset,
        "input": ["N" if batch is None else batch, *found.shape], "bytes": to.stat().st_size, "difference": difference}
    setup.report(result, f"{to}: {len(types)} nodes, input {' x '.join(map(str, result['input']))}, "
                         f"{result['bytes']:,} bytes", json)


def _texts(found: Stored) -> dict[str, str]:
    """What the file says about itself."""
    import tinyres
    from tinyres.weights import network_texts

    return {**network_texts(found.name, found.options, found.normalisation), "tinyres": tinyres.__version__}


def _images(shape: tuple[int, ...], batch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(0)).standard_normal((batch, *shape)).astype(np.float32)


def _difference(network: Any, path: Path, images: np.ndarray) -> float | None:
    """The greatest difference of onnxruntime's outputs, as a share of the largest; None without onnxruntime."""
    import importlib

    from tinyres.kernels import use_kernels
    from tinyres.state import no_grad
    from tinyres.tensor import Tensor

    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"input": images})
    with no_grad(), use_kernels("im2col"):
        ours = network.eval()(Tensor(images)).numpy()
    if not np.isfinite(ours).all():
        raise ValueError(f"export: {path} is written, but random images give infinity or NaN: the weights are damaged")
    return float(np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), 1e-30))
