"""``attnfast.keras`` on its backends: `support.keras_checks` in a process for each, and errors."""

import importlib.util
import json
import subprocess
import sys

import pytest

from support.paths import TESTS
from support.scripts import run_python_raw

if importlib.util.find_spec("keras") is None:
    pytest.skip("keras is an optional extra", allow_module_level=True)

COMMON = (
    "values_equal_those_of_keras",
    "returned_scores_are_those_of_keras",
    "padding_has_no_influence",
    "empty_and_odd_shapes",
    "what_attnfast_cannot_do_is_done_by_keras",
    "bad_input_is_an_error_of_keras",
    "dropout_drops_its_share",
    "mixed_precision",
    "names_configuration_and_symbols",
    "predictions_are_those_of_keras",
    "models_are_saved_and_loaded",
    "subclasses_with_hooks_of_their_own",
    "grouped_heads_are_not_repeated",
    "examples_run",
)
TRAINING = (
    "fit_has_the_losses_of_keras",
    "fit_with_dropout_learns",
    "gradients_are_those_of_keras",
)
CHECKS = {
    "numpy": COMMON,
    "jax": COMMON + TRAINING,
    "torch": (*COMMON, *TRAINING, "compiled_layers", "other_devices"),
}


@pytest.fixture(scope="module")
def tracebacks(tmp_path_factory):
    """What a backend says of each check: an empty string if it passed."""
    found = {}

    def of(backend):
        if backend not in found:
            done = run_python_raw(
                "import sys, runpy, warnings\n"
                "warnings.simplefilter('ignore')\n"  # Keras's own, of layers that drop masks
                f"sys.path.insert(0, {str(TESTS)!r})\n"
                "runpy.run_module('support.keras_checks', run_name='__main__')",
                tmp_path_factory.mktemp(backend),
                timeout=900,
                KERAS_BACKEND=backend,
            )
            assert done.returncode == 0, done.stderr
            found[backend] = json.loads(done.stdout.splitlines()[-1])
        return found[backend]

    return of


@pytest.mark.parametrize(
    "backend, name", [(b, name) for b, names in CHECKS.items() for name in names]
)
def test_on_each_backend(backend, name, tracebacks):
    if backend != "numpy" and importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is an optional extra")
    found = tracebacks(backend)
    assert found.keys() == set(CHECKS[backend])
    assert not found[name], found[name]


STAND_IN = """
import sys, types, importlib.machinery
keras = types.ModuleType("keras")
keras.__spec__ = importlib.machinery.ModuleSpec("keras", None)
keras.__version__ = {version!r}
keras.backend = types.SimpleNamespace(backend=lambda: {backend!r})
sys.modules["keras"] = keras
import attnfast.keras
"""


@pytest.mark.parametrize(
    "version, backend, message",
    [
        ("3.11.3", "torch", "attnfast.keras needs Keras 3.12.0 or newer, got 3.11.3: pip install"),
        ("2.15.0", "tensorflow", "attnfast.keras needs Keras 3.12.0 or newer, got 2.15.0"),
        ("3.15.1", "tensorflow", "the Keras backends torch, jax and numpy, got tensorflow: set"),
    ],
)
def test_other_versions_and_backends_are_errors(version, backend, message, tmp_path):
    code = STAND_IN.format(version=version, backend=backend)
    done = run_python_raw(code, tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_without_keras(tmp_path):
    code = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'keras' else find(name, *a)\n"
        "import attnfast.keras"
    )
    done = run_python_raw(code, tmp_path)
    assert "which is not installed: pip install 'attnfast[keras]'" in done.stderr.splitlines()[-1]


def test_a_backend_that_is_not_there(tmp_path):
    code = "import sys\nsys.modules['jax'] = None\nimport attnfast.keras"
    done = run_python_raw(code, tmp_path, KERAS_BACKEND="jax")
    assert "set KERAS_BACKEND to one that is installed" in done.stderr.splitlines()[-1]


def test_keras_is_not_imported_by_attnfast():
    code = "import sys, attnfast, attnfast.layers; print('keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
