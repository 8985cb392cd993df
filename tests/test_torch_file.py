"""PyTorch's own files are read, in both formats, and nothing in them is ever executed."""

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from torch_files import (
    ORDERED,
    Build,
    Call,
    Global,
    Persistent,
    Raw,
    code,
    files_of,
    legacy_file,
    pickled,
    storage,
    zip_file,
)
from torch_files import tensor as stored

import tinyres
from tinyres import models, random, weights
from tinyres.torch_file import is_torch_file, read_torch_file

HERE = Path("given.pt")
FORMATS = ["zip", "legacy"]


def read(content):
    assert is_torch_file(content)
    return read_torch_file(HERE, content)


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype and array.shape == wanted[name].shape, name
        assert np.array_equal(array, wanted[name]), name
        assert array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative


def network_state():
    random.manual_seed(0)
    return models.build("resnet8", option="B").state_dict()


# --- files that PyTorch wrote -----------------------------------------------------------------------------------------


def saved(torch, value, kind, protocol=2):
    out = io.BytesIO()
    torch.save(value, out, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
    return out.getvalue()


def as_arrays(state):
    return {name: (value.float() if str(value.dtype) == "torch.bfloat16" else value).detach().numpy()
            for name, value in state.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_of_tensor_that_pytorch_saves_is_read(torch, kind, protocol):
    base = torch.randn(4, 6, 3, 5)
    state = {
        "whole": base, "view": base[1:3, ::2], "transposed": base.permute(3, 0, 2, 1), "row": base[2, 1],
        "channels last": base.contiguous(memory_format=torch.channels_last), "wide": torch.randn(1, 3).expand(5, 3),
        "scalar": torch.tensor(7), "true": torch.tensor(True), "scalar bfloat16": torch.tensor(1.5).bfloat16(),
        "transposed bfloat16": base.bfloat16().permute(3, 0, 2, 1), "transposed bool": (base[0, 0] > 0).T,
        "empty": torch.zeros(0, 3), "none of a view": base[:0], "half": base[0].half(),
        "bfloat16": torch.tensor([1.0, -0.0, 3.0e38, float("nan"), float("inf"), 1e-40]).bfloat16()[:3],
        "double": base.double(), "bool": torch.tensor([True, False, True]), "parameter": torch.nn.Parameter(base[0, 0]),
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8,
                                                               torch.uint8)},
    }
    state |= {str(dtype): torch.arange(5).to(dtype) for dtype in (torch.uint16, torch.uint32, torch.uint64)}
    same(read(saved(torch, state, kind, protocol)), as_arrays(state))
    same(read(saved(torch, OrderedDict(state), kind, protocol)), as_arrays(state))


@pytest.mark.parametrize("kind", FORMATS)
def test_bfloat16_keeps_its_special_values(torch, kind):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, -0.0, 1.0078125]).bfloat16()
    found = read(saved(torch, {"a": values}, kind))["a"]
    assert found.tobytes() == values.float().numpy().tobytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_state_dict_is_found_in_a_checkpoint(torch, kind):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = network.state_dict()
    for checkpoint in ({"epoch": 3, "best": torch.tensor(0.5), "state_dict": state,
                        "optimizer": optimizer.state_dict()},
                       {"args": {"lr": 0.1, "device": torch.device("cpu"), "size": torch.Size([3, 2])}, "net": state},
                       {"a": {"b": {"model": state}}}, {"model": state, "again": {"the same": state}}):
        same(read(saved(torch, checkpoint, kind)), as_arrays(state))
    with pytest.raises(weights.WeightsError, match=r"2 state dicts, expected one: 'ema', 'model'\. Save one of them"):
        read(saved(torch, {"model": state, "ema": dict(state)}, kind))
    with pytest.raises(weights.WeightsError, match="which is no part of a state dict"):
        read(saved(torch, network, kind))
    for other, words in ((state["0.weight"], "holds a tensor"), ([state], "holds a list"), ({}, "its keys are none"),
                         ({"epoch": 3, 5: state}, "its keys are 'epoch'")):
        with pytest.raises(weights.WeightsError, match=words):
            read(saved(torch, other, kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_pytorch_reads_the_files_of_these_tests(torch, kind):
    """Else they would show only that reader and writer agree."""
    state = network_state()
    content = files_of(state)[FORMATS.index(kind)]
    same({name: value.numpy() for name, value in torch.load(io.BytesIO(content), weights_only=True).items()}, state)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_negated_view_is_refused(torch, kind):
    with pytest.raises(weights.WeightsError, match="resolve_neg"):
        read(saved(torch, {"a": torch.complex(torch.ones(3), torch.ones(3)).conj().imag}, kind))


def test_a_file_without_checksums_is_refused(torch):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        content = saved(torch, {"a": torch.ones(3)}, "zip")
    finally:
        torch.serialization.set_crc32_options(before)
    with pytest.raises(weights.WeightsError, match=r"written without checksums.*Convert it once"):
        read(content)


def test_programs_are_refused(torch, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "w.pt"))
    with pytest.raises(weights.WeightsError, match="program of TorchScript"):
        weights.read(tmp_path / "w.pt")


# --- the same without PyTorch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_loaded_from_it(tmp_path, kind):
    state = network_state()
    path = tmp_path / "w.pth"
    path.write_bytes(files_of({f"module.{name}": array for name, array in state.items()})[FORMATS.index(kind)])
    model = models.build("resnet8", option="B")
    source = weights.load(model, path)
    same(model.state_dict(), state)
    assert (source.format, source.architecture.name) == ("wrapped", "resnet8")


def test_views_share_a_storage():
    numbers = np.arange(24, dtype=np.float32)
    entries = {"all": stored(storage("0", "f4", 24), (24,)),
               "part": stored(storage("0", "f4", 24), (2, 3), (1, 4), 5),
               "one": stored(storage("0", "f4", 24), (), (), 7),
               "repeated": stored(storage("0", "f4", 24), (3, 2), (0, 1), 1),
               "odd strides": stored(storage("0", "f4", 24), (1, 2), (2**61, 23), 0)}
    found = read(zip_file(entries, {"0": numbers.tobytes()}))
    same(found, {"all": numbers, "part": numbers[np.array([[5, 9, 13], [6, 10, 14]])], "one": numbers[7],
                 "repeated": numbers[np.array([[1, 2]] * 3)], "odd strides": numbers[np.array([[0, 23]])]})
    found["all"][:] = 0
    assert found["one"] == 7


def test_a_view_of_a_storage_in_the_legacy_format():
    view = storage("0", "f4", 10, ("1", 4, 3))
    content = legacy_file({"a": stored(view, (2,), (1,), 1)}, {"0": (10, np.arange(10, dtype="f4").tobytes())})
    same(read(content), {"a": np.array([5, 6], "f4")})
    for broken in (("1", 4, 7), ("1", -1, 3), ("1", 4), "1"):
        with pytest.raises(weights.WeightsError, match="a storage is"):
            read(legacy_file({"a": stored(storage("0", "f4", 10, broken), (2,))}, {"0": (10, bytes(40))}))
    with pytest.raises(weights.WeightsError, match="beyond its storage of 3 elements"):
        read(legacy_file({"a": stored(view, (4,))}, {"0": (10, bytes(40))}))


def test_a_view_of_bytes_that_are_of_another_type():
    def content(begin):
        arguments = (storage("0", "u1", 16, ("1", begin, 9)), 1, (3,), (1,), False, None, Global("torch", "uint16"))
        entry = Call(Global("torch._utils", "_rebuild_tensor_v3"), arguments)
        return legacy_file({"a": entry}, {"0": (16, np.arange(8, dtype="u2").tobytes())})

    same(read(content(4)), {"a": np.array([3, 4, 5], "u2")})
    with pytest.raises(weights.WeightsError, match="begins within one of its elements"):
        read(content(5))


@pytest.mark.parametrize("kind", ["f4", "f2", "i8", "bf", "u1"])
def test_a_big_endian_archive_is_turned_round(kind):
    values = np.array([1.0, 2.5, -3.0])
    wanted = values.astype({"bf": "f4"}.get(kind, kind) if kind != "u1" else "i4").astype({"bf": "f4"}.get(kind, kind))
    raw = (wanted.view("u4") >> 16).astype(">u2") if kind == "bf" else wanted.astype(f">{kind}")
    entries = {"a": stored(storage("0", kind, 3), (3,))}
    same(read(zip_file(entries, {"0": raw.tobytes()}, byteorder="big")), {"a": wanted})
    little = raw.astype(raw.dtype.newbyteorder("<")).tobytes()
    same(read(zip_file(entries, {"0": little}, byteorder="")), {"a": wanted})
    with pytest.raises(weights.WeightsError, match="byte order is b'middle'"):
        read(zip_file(entries, {"0": little}, byteorder="middle"))


def test_python_2_gave_an_ordered_dict_its_items():
    pairs = [["a", stored(storage("0", "f4", 2), (2,))], ["b", stored(storage("0", "f4", 2), (1,))]]
    content = zip_file(Build(Call(ORDERED, (pairs,)), {"_metadata": Call(ORDERED, ())}), {"0": bytes(8)})
    assert list(read(content)) == ["a", "b"]


# --- hostile files ----------------------------------------------------------------------------------------------------

ONE = storage("0", "f4", 4)
GOOD = stored(ONE, (4,))


def both(value, count=4, content=bytes(16)):
    """The value in both formats."""
    return [zip_file(value, {"0": content}), legacy_file(value, {"0": (count, content)})]


def refused(content, words):
    """It is refused with these words, and quickly."""
    began = time.process_time()
    with pytest.raises(weights.WeightsError, match=words) as error:
        read(content)
    assert time.process_time() - began < 5
    assert str(HERE) in str(error.value) and len(str(error.value)) < 3000


def refused_in_little_memory(content, words):
    tracemalloc.start()
    try:
        refused(content, words)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(content) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_code_in_it_is_not_run(tmp_path):
    target = tmp_path / "written"
    for value in (Call(Global("pathlib", "Path.touch"), (Call(Global("pathlib", "Path"), (str(target),)),)),
                  Call(Global("os", "system"), (f"touch {target}",)),
                  Call(Global("builtins", "open"), (str(target), "w"))):
        content = pickled(value, 4).replace(b"cpathlib\nPath.touch\n", code("pathlib") + code("Path.touch") + b"\x93")
        pickle.loads(content)  # it would be, elsewhere: the attack works
        assert target.exists()
        target.unlink()
        for protocol in (2, 4):
            hostile = bytes([0x80, protocol]) + content[2:]
            for given in (zip_file(hostile, {}), legacy_file({}, {}).replace(pickled({}), hostile),
                          zip_file({"a": GOOD, "b": value}, {"0": bytes(16)}), hostile + legacy_file({}, {})[:40]):
                with pytest.raises(weights.WeightsError, match="pickle"):
                    read_torch_file(HERE, given)
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(weights.WeightsError, match="is a PyTorch pickle"):
            weights.read(tmp_path / "w")
    assert not target.exists()


def test_no_machine_that_runs_pickles_is_in_the_package():
    folder = Path(tinyres.__file__).parent
    paths = {path.resolve() for path in [*folder.rglob("*.py"), *(folder / "kernels").rglob("*.py")]}
    assert len(paths) > 100
    for path in sorted(paths):
        if path.name == "code_cache.py":  # Numba's machine code, which this package itself wrote into the user's cache
            continue
        text = path.read_text(encoding="utf-8")
        assert "import pickle\n" not in text and "Unpickler" not in text and "from pickle import" not in text, path
        assert "allow_pickle=True" not in text and "torch.load(" not in text.replace("torch.load(FILE", ""), path


@pytest.mark.parametrize("module, name", [
    ("os", "system"), ("builtins", "eval"), ("posix", "system"), ("torch", "load"), ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"), ("collections", "Counter"), ("numpy.core.multiarray", "_reconstruct"),
    ("torch.nn.modules.linear", "Linear"), ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("x" * 9999, "y"),
])
def test_other_globals_are_named(module, name):
    for content in both({"a": GOOD, "b": Global(module, name)}):
        refused(content, f"asks for '{module}.{name}"[:150])
        refused(content, r"weights_only=True\)")
    stacked = Raw(code(module) + code(name) + b"\x93")
    for content in both({"a": GOOD, "b": stacked}):
        refused(content, f"asks for '{module}.{name}"[:150])


@pytest.mark.parametrize("instructions, words", [
    (b"(ios\nsystem\n", "instruction INST"), (b"(cos\nsystem\nX\1\0\0\0xo", "asks for 'os.system'"),
    (b")\x81", "instruction NEWOBJ"), (b"\x82\1", "instruction EXT1"), (b"P1\n", "instruction PERSID"),
    (b"S'x'\n", "instruction STRING"), (b"\x8f", "instruction EMPTY_SET"), (b"2", "instruction DUP"),
    (b"\x96" + struct.pack("<Q", 2**62), "expected"), (b"X\xff\xff\xff\xff", "expected"), (b"\xff", "unknown"),
    (b"h\5", "never made"), (b"0", "instruction POP"), (b"NNR", "calls what is no function"), (b"tt" * 9, "no mark"),
    (b"R", "an empty stack"), (b"NNb", "sets attributes"), (b"NNa", "appends to what is no list"),
    (b"NNNs", "sets items of what is no dict"),
    (b"NQ", "object other than tensors"), (code(("module", 1, 2, 3, 4)) + b"Q", "object other than tensors"),
    (b"NN\x93", "by what is no text"), (code(Call(ORDERED, (5,))), "something else than a list"),
    (code(Call(ORDERED, ([5],))), "from no pairs"), (code(Call(ORDERED, (1, 2))), "with 2 arguments"),
    (code(ORDERED) + b"NR", "without a tuple"), (code(Call(Global("torch", "Size"), ([1] * 33,))), "no short tuple"),
    (code(Call(Global("torch", "FloatStorage"), (9,))), "calls what is no function"),
    (code(Call(Global("torch._utils", "_rebuild_parameter"), (5,))), "no tensor"),
    (code(storage("0", "f8", 4)) + code(ONE), "two types or sizes"),
    (code(Persistent(("storage", Global("torch", "Size"), "0", "cpu", 4))), "type that NumPy does not have"),
    (code(Persistent(("storage", Global("torch", "FloatStorage"), 0, "cpu", 4))), "no key"),
    (code(storage("1", "f4", -4)), "no number of elements"), (code(storage("1", "f4", 2**61)), "no number"),
])
def test_other_instructions_are_refused(instructions, words):
    """After the mark, since some of them take all there is."""
    for content in both({"a": GOOD, "b": Raw(b"(" + instructions)}):
        refused(content, words)


def typed(name):
    """A tensor that says itself of which type it is."""
    arguments = (ONE, 0, (4,), (1,), False, None, Global("torch", name))
    return Call(Global("torch._utils", "_rebuild_tensor_v3"), arguments)


@pytest.mark.parametrize("entry, words", [
    (stored(ONE, (5,)), "beyond its storage of 4"), (stored(ONE, (2,), (4,)), "beyond its storage"),
    (stored(ONE, (4,), (1,), 1), "beyond its storage"), (stored(ONE, (1,), (1,), 2**62), "can be"),
    (stored(ONE, (-1,), (1,)), "can be"), (stored(ONE, (4,), (-1,), 3), "can be"),
    (stored(ONE, (2,), ()), "same length"),
    (stored(ONE, (2.0,), (1,)), "can be"), (stored(ONE, (True,), (1,)), "can be"),
    (stored(ONE, (1,) * 33, (0,) * 33), "at most 32"),
    (stored(ONE, [4], [1]), "no shape and strides"), (stored(5, (4,)), "is no storage"),
    (stored(ONE, (2**40, 2**40), (0, 0)), "larger than any"), (stored(ONE, (2**61,), (0,)), "larger than any"),
    (stored(ONE, (2**30,), (0,)), r"4,294,967,296 bytes, expected at most 67,\d"), (stored(ONE, (0, 2**61)), "larger"),
    (stored(ONE, (4,), (1,), 0, {"neg": True}), "negated"), (stored(ONE, (9**4000,), (0,)), "can be"),
    (typed("float64"), "beyond its storage of 2"), (typed("float8_e5m2"), "asks for 'torch.float8_e5m2'"),
    (Call(Global("torch._tensor", "_rebuild_from_type_v2"), (ORDERED, Global("torch", "Tensor"), (), {})), "no funct"),
])
def test_tensors_that_cannot_be_are_refused_before_there_is_room_for_them(entry, words):
    for content in both({"a": entry}):
        refused_in_little_memory(content, words)


def test_many_views_of_one_storage_do_not_fill_the_memory():
    entries = {str(i): Raw(b"h\0") for i in range(3000)}
    value = {"first": Raw(code(stored(storage("0", "f4", 1 << 20), (1 << 20,))) + b"q\0"), **entries}
    refused_in_little_memory(zip_file(value, {"0": bytes(4 << 20)}), "take 12,587,106,304 bytes, expected at most")


def deep(instructions, times):
    return b"\x80\2" + instructions * times + b"."


@pytest.mark.parametrize("program, words", [
    (b"\x80\2" + b"]q\0" + b"(" * 100_000 + b".", "empty stack"), (deep(b"]", 600_000), "more than 500,000 instr"),
    (b"\x80\2)" + b"\x85" * 300_000 + b".", "holds a tuple"), (b"\x80\2N" + b"q\0h\0\x86" * 100_000 + b".", "a tuple"),
    (b"\x80\2]q\0" + b"h\0a" * 50_000 + b".", "holds a list"), (b"\x80\2}q\0" + b"X\1\0\0\0ah\0s.", "holds no tensors"),
    (b"\x80\2]q\0(" + b"N" * 50_000 + b"e" + code(ORDERED) + b"q\1" + b"h\1h\0\x85R" * 50_000 + b".", "no pairs"),
    (b"\x80\2}q\0(" + b"".join(code(i * (2**61 - 1)) + b"N" for i in range(60_000)) + b"u.", "its keys are none"),
    (b"\x80\2}(" + b"N" * 400_000 + b"u.", "its keys are none"),
])
def test_programs_that_fill_memory_or_take_long_do_neither(program, words):
    refused(zip_file(program, {}), words)


def test_long_lists_are_not_copied_again_and_again():
    pairs = [["k", None]] * 10_000
    program = b"\x80\2" + code(pairs) + b"q\0" + code(ORDERED) + b"q\1" + b"h\1h\0\x85R" * 100_000 + b"."
    refused(zip_file(program, {}), "holds no tensors")


def test_long_arguments_and_keys_are_not_copied_again_and_again():
    """Either would take a minute."""
    long, key = b"(" + b"N" * 200_000 + b"tq\0", code("k" * 20_000_000) + b"q\0"
    for name in ("device", "Size"):
        program = b"\x80\2" + long + code(Global("torch", name)) + b"q\1" + b"h\1h\0R" * 80_000 + b"."
        refused(zip_file(program, {}), "tuple of at most 32")
    program = b"\x80\2" + key + b"}(" + b"".join(code(str(i)) + b"}h\0}s" for i in range(50_000)) + b"u."
    refused(zip_file(program, {}), "holds no tensors")


def test_state_dicts_whose_names_look_alike_are_not_chosen_between():
    for value in ({"a": {"b": {"x": GOOD}}, "a.b": {"x": GOOD}}, {"": {"x": GOOD}, "x": GOOD},
                  {"k" * 300: {"x": GOOD}, "k" * 300 + "l": {"x": GOOD}}):
        for content in both(value):
            refused(content, "holds 2 state dicts")


@pytest.mark.parametrize("kind", FORMATS)
def test_wherever_a_file_ends_early_it_is_refused(kind):
    content = files_of({"a": np.arange(300, dtype="f4"), "b": np.arange(3)})[FORMATS.index(kind)]
    assert list(read(content)) == ["a", "b"]
    for end in {*range(4, len(content), 41), len(content) - 1, len(content) - 22, len(content) - 30}:
        cut = content[:end]
        if is_torch_file(cut):
            with pytest.raises(weights.WeightsError, match="cannot be read as a file of torch.save"):
                read(cut)


@pytest.mark.parametrize("change, words", [
    (lambda c: c.replace(np.float32(2).tobytes(), np.float32(3).tobytes()), "Bad CRC"),
    (lambda c: c.replace(b"archive/data/0", b"archive/data/1"), "'archive/data/0' is missing"),
])
def test_a_damaged_archive_is_refused(change, words):
    content = change(zip_file({"a": GOOD}, {"0": np.full(4, 2, "f4").tobytes()}))
    refused(content, words)


def test_members_are_unpacked_single_and_apart():
    refused(zip_file({"a": GOOD}, {"0": bytes(16)}, method=zipfile.ZIP_DEFLATED), "packed or encrypted")
    refused(zip_file({"a": GOOD}, {"0": bytes(12)}), "has 12 bytes, expected 16")
    refused(zip_file({"a": GOOD}, {"0": bytes(20)}), "has 20 bytes, expected 16")
    refused(zip_file({"a": GOOD}, {}), "'archive/data/0' is missing")
    refused(zip_file({"a": GOOD}, {"0": bytes(16)}, **{"other/data.pkl": b""}), "2 files data.pkl")
    overlapping = zip_file({"a": GOOD}, {"0": bytes(16)}, **{"data/1": bytes(16)})
    entry = overlapping.rindex(b"archive/data/1") - 4
    first = overlapping.index(b"archive/data/0") - 30
    refused(overlapping[:entry] + struct.pack("<I", first) + overlapping[entry + 4:], "overlap|differ")


@pytest.mark.parametrize("content, words", [
    (legacy_file({"a": GOOD}, {"0": (4, bytes(16))}, little_endian=False), "the other byte order"),
    (legacy_file({"a": GOOD}, {"0": (4, bytes(16))}, protocol=1002), "not those of protocol 1001"),
    (legacy_file({"a": GOOD}, {"0": (5, bytes(20))}), "has 5 elements, expected 4"),
    (legacy_file({"a": GOOD}, {"0": (2**62, bytes(16))}), "elements, expected 4"),
    (legacy_file({"a": GOOD}, {"0": (4, bytes(12))}), "beyond the end"),
    (legacy_file({"a": GOOD}, {"0": (4, bytes(16))}, keys=["0", "0"]), "or one twice"),
    (legacy_file({"a": GOOD}, {"0": (4, bytes(16))}, keys=["1"]), "that no tensor has"),
    (legacy_file({"a": GOOD}, {"0": (4, bytes(16))}, keys=[]), "'0' is missing"),
    (legacy_file({"a": GOOD}, {"0": (4, bytes(16))}, keys=None)[:15], "its pickle|exhausted"),
])
def test_a_damaged_legacy_file_is_refused(content, words):
    refused(content, words)
