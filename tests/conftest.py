"""Every test that reaches a kernel runs once per instruction set that this CPU has."""

import gc
import importlib.util
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import attnfast
from attnfast import config

# Keras's own default needs TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "numpy")

# The same examples in every run: a red test is a defect, never the luck of the draw. To look
# further, `pytest --hypothesis-profile=explore` draws new ones, ten times as many; `few` is for
# sanitizers, emulators and `pytest -m quick`.
common = settings(
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
settings.register_profile("default", common, derandomize=True, max_examples=100)
settings.register_profile("explore", common, max_examples=1000)
settings.register_profile("few", common, derandomize=True, max_examples=10)
settings.load_profile("default")


def pytest_configure(config):
    """`pytest -m quick` draws few calls: modules ask for their number when they are imported."""
    if config.option.markexpr == "quick":
        settings.load_profile("few")


def pytest_collection_finish():
    """What is collected stays to the end: the garbage collector need not look at it again."""
    gc.freeze()


@pytest.fixture(params=attnfast.available_isas())
def isa(request):
    """Run the test with this instruction set."""
    config.use_isa(request.param)
    yield request.param
    config.use_isa(None)


@pytest.fixture
def each_isa():
    """Calls a function once per instruction set, for tests that ask much of the reference."""

    def run(function):
        for name in attnfast.available_isas():
            config.use_isa(name)
            try:
                function()
            except AssertionError as error:
                error.add_note(f"instruction set {name}")
                raise

    yield run
    config.use_isa(None)


@pytest.fixture
def rng():
    return np.random.default_rng(20170612)
