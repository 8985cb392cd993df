"""The stand-in for CuPy has no function, method or parameter that CuPy has not. CuPy can be imported without a GPU."""

import inspect
import re

import pytest
import standin


@pytest.fixture(scope="module")
def real():
    return pytest.importorskip("cupy", reason="needs CuPy, to compare its names: pip install 'tinyres[cuda13]'")


def parameters(function):
    """Names of parameters that are used; those of Cython's methods are in the first line of their docstring."""
    try:
        named = inspect.signature(function).parameters.values()
        return {p.name for p in named if p.kind is not p.POSITIONAL_ONLY}
    except (TypeError, ValueError):
        line = (function.__doc__ or "").splitlines()[0]
        return set(re.findall(r"[(,] *\*?(?:\w+ )*(\w+)(?==|,|\)| *=)", line))


def test_names_and_parameters_are_cupys(real):
    missing = [name for name in (*standin.FUNCTIONS, *standin.UFUNCS) if not hasattr(real, name)]
    missing += [name for name in (*standin.METHODS, *standin.PROPERTIES) if not hasattr(real.ndarray, name)]
    missing += [f"ndarray.__{name}__" for name in standin.OPERATORS if not hasattr(real.ndarray, f"__{name}__")]
    assert not missing
    for name in standin.UFUNCS:
        assert isinstance(getattr(real, name), real.ufunc) and hasattr(real.add, "at")
    strange = {}
    methods = {name: getattr(standin.ndarray, name) for name in standin.METHODS}
    for ours, theirs in ((standin.FUNCTIONS, real), (methods, real.ndarray)):
        for name, function in ours.items():
            found = parameters(function) - parameters(getattr(theirs, name))
            if found:
                strange[name] = found, parameters(getattr(theirs, name))
    assert not strange


def test_flags_are_cupys(real):
    from cupy._core.flags import Flags

    assert {"c_contiguous", "f_contiguous", "owndata"} <= set(dir(Flags))
    assert not hasattr(real.ndarray, "__index__") and not hasattr(standin.ndarray, "__index__")
