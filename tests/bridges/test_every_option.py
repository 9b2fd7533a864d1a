"""Every option that a bridge takes does there what it does in attnfast: none is forgotten."""

import importlib
import inspect

import numpy as np
import pytest

import attnfast

RNG = np.random.default_rng(4)
Q, K, V = RNG.standard_normal((3, 2, 4, 9, 8), dtype=np.float32)
# A value that changes the result, and the options that it needs beside it. A new option of
# attention needs a line here, as test_options_are_not_forgotten says.
OPTIONS = {
    "mask": (RNG.random((2, 1, 9, 9)) < 0.5, {}),
    "bias": (RNG.standard_normal((4, 9, 9)).astype(np.float32), {}),
    "is_causal": (True, {}),
    "window_size": ((2, 1), {}),
    "q_offset": (3, {"is_causal": True}),
    "q_lengths": ([9, 4], {}),
    "kv_lengths": ([9, 4], {}),
    "kv_starts": ([0, 4], {}),
    "scale": (0.8, {}),
    "softcap": (0.7, {}),
    "alibi_slopes": (np.array([1, 2, 3, 4], np.float32), {}),
    "sink_logits": (np.array([1, 2, 3, 4], np.float32), {}),
    "dropout": (0.3, {}),
    "dropout_seed": (5, {"dropout": 0.3}),
}
NOT_OF_THE_RESULT = {"query", "key", "value", "return_lse", "return_weights", "num_threads"}


CHUNKED = ("mask", "bias")  # what dask takes in chunks beside query, key and value


def as_arrays(name, module):
    """How a bridge is given arrays, and how its results become those of NumPy."""
    if name == "torch":
        return module.from_numpy, lambda x: x.numpy()
    if name == "jax":
        return module.numpy.asarray, np.asarray
    return importlib.import_module("dask.array").from_array, lambda x: x.compute()


def outcome(attention, options, give=np.asarray, take=np.asarray, only=tuple(OPTIONS)):
    """Output and lse of a call; arrays among the options are given as the operands are."""
    given = {
        n: give(x) if isinstance(x, np.ndarray) and n in only else x for n, x in options.items()
    }
    result = attention(*map(give, (Q, K, V)), **given, return_lse=True)
    return [take(x) for x in (result.output, result.lse)]


@pytest.mark.quick
@pytest.mark.parametrize("name", ["torch", "jax", "dask"])
def test_options_are_not_forgotten(name):
    module = pytest.importorskip(name)
    bridge = importlib.import_module(f"attnfast.{name}").attention
    give, take = as_arrays(name, module)
    taken = set(inspect.signature(bridge).parameters) - NOT_OF_THE_RESULT
    assert taken <= set(OPTIONS), "add a line to OPTIONS for each new option"
    for option in sorted(taken):
        value, beside = OPTIONS[option]
        options = {**beside, option: value}
        without = outcome(attnfast.attention, beside)
        expected = outcome(attnfast.attention, options)
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(without, expected, strict=True))
        found = outcome(bridge, options, give, take, CHUNKED if name == "dask" else tuple(OPTIONS))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=option)
