"""One installed build of attnfast that makes drawn calls, for same_bits.py.

    python -S tools/prove/same_bits_worker.py PATHS

PATHS (JSON) becomes the search path; without `site` (-S) no editable installation comes before it.
The process prints what the build has, reads what to do, and prints a line for each call, all in
JSON.
"""

import hashlib
import inspect
import json
import os
import pickle
import sys
import warnings
import zlib
from collections.abc import Iterable
from itertools import count
from typing import Any

CHUNK = 100  # most calls of one run of hypothesis, which keeps all that it has drawn

Field = tuple[str, Any]  # "output", "lse" ... or "error", and what it is


def digest(array: Any) -> str:
    """Of dtype, shape, order in memory and elements; all NaN are one."""
    import numpy as np

    strides = [s for s, n in zip(array.strides, array.shape, strict=True) if n > 1 and array.size]
    if array.dtype.kind not in "biu" and (nan := array != array).any():
        array = np.where(nan, np.array(np.nan, array.dtype), array)
    head = repr((array.dtype.name, array.dtype.str, array.shape, strides)).encode()
    return hashlib.blake2b(head + array.tobytes(), digest_size=8).hexdigest()


def flipped(array: Any) -> Any:
    """The array with the lowest bit of its first element changed."""
    import numpy as np

    changed = array.copy(order="K")
    element = changed.reshape(-1)[:1].copy()
    element.view(np.uint8)[0] ^= 1
    changed[(0,) * changed.ndim] = element[0]
    return changed


class Worker:
    """Makes the calls of a plan, in chunks of each function in turn."""

    def __init__(self, plan: dict[str, Any], answers: Any) -> None:
        self.plan, self.answers, self.plant = plan, answers, plan["plant"]

    def run(self) -> None:
        if self.plan["only"]:
            function, chunk, _ = self.plan["only"].split("/")
            self.chunk(function, int(chunk))
            return
        chunks = {function: -(-n // CHUNK) for function, n in self.plan["calls"].items()}
        for chunk in range(max(chunks.values())):
            for function, n in chunks.items():
                if chunk < n:
                    self.chunk(function, chunk)

    def chunk(self, function: str, chunk: int) -> None:
        """Draw up to CHUNK calls of a function: the same for the same plan."""
        from hypothesis import HealthCheck, Phase, given, seed, settings

        from support.family_draws import any_calls

        numbers = count()

        @seed(zlib.crc32(f"{self.plan['seed']} {function} {chunk}".encode()))
        @settings(
            max_examples=min(CHUNK, self.plan["calls"][function] - chunk * CHUNK),
            phases=[Phase.generate],
            derandomize=False,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(call=any_calls(function))
        def each(call: Any) -> None:
            self.call(f"{function}/{chunk}/{next(numbers)}", call)

        each()

    def call(self, name: str, call: Any) -> None:
        """Make a call on every instruction set, and print what came of it."""
        import numpy as np

        from attnfast import _core, config

        if self.plan["only"] not in (None, name):
            return
        known = self.plan["parameters"][call.function]
        call.arguments = {n: x for n, x in call.arguments.items() if n in known}
        text = " ".join(repr(call).split())
        checksum = zlib.crc32(text.encode())
        for argument in (x for n, x in call.arguments.items() if n != "out"):
            content = getattr(argument, "blocks", argument)
            # Objects are pointers, and a long double has bytes that mean nothing.
            exact = isinstance(content, np.ndarray) and content.dtype.kind in "bfiuV"
            if exact and content.dtype.itemsize <= 8:
                checksum = zlib.crc32(content.tobytes(), checksum)
        kept, outcomes = {}, {}
        for isa in self.plan["isas"]:
            (getattr(config, "use_isa", None) or _core.use_isa)(isa)
            kept[isa] = self.planted(name, outcome(call))
            outcomes[isa] = [
                (field, digest(x) if isinstance(x, np.ndarray) else repr(x))
                for field, x in kept[isa]
            ]
        if self.plan["only"]:
            with open(self.plan["keep"], "wb") as file:
                pickle.dump(kept, file)
        print(json.dumps([name, text, checksum, outcomes]), file=self.answers, flush=True)

    def planted(self, name: str, fields: list[Field]) -> list[Field]:
        """The outcome; with one bit flipped in the first array at or after the planned call."""
        import numpy as np

        if self.plant is None or int(name.rpartition("/")[2]) < self.plant:
            return fields
        for k, (field, x) in enumerate(fields):
            if isinstance(x, np.ndarray) and x.size and digest(x) != digest(flipped(x)):
                self.plant = None
                return [*fields[:k], (field, flipped(x)), *fields[k + 1 :]]
        return fields


def outcome(call: Any) -> list[Field]:
    """Everything that a call returns, and the error or warning it raises."""
    import numpy as np

    out = call.arguments.get("out")
    if isinstance(out, np.ndarray) and out.flags.writeable:
        out[...] = 7
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = call.run()
    except Exception as error:
        fields = [("error", type(error).__name__), ("message", str(error))]
    else:
        if isinstance(result, tuple):
            names = getattr(result, "_fields", range(len(result)))
            fields = [("type", type(result).__name__)]
            fields += [(str(n), x) for n, x in zip(names, result, strict=True)]
        else:
            fields = [("result", result)]
    return [*fields, ("out", np.asarray(out))] if isinstance(out, np.ndarray) else fields


def facts(functions: Iterable[str]) -> dict[str, Any]:
    """What the build has: folder, version, instruction sets, parameters of each function."""
    import attnfast

    def parameters(name: str) -> list[str]:
        own = list(inspect.signature(getattr(attnfast, name)).parameters)
        return own if name != "plan" else [*parameters("attention"), *own]  # of any call

    return {
        "folder": os.path.dirname(os.path.realpath(attnfast.__file__)),
        "version": attnfast.__version__,
        "isas": attnfast.available_isas(),
        "parameters": {name: parameters(name) for name in functions if hasattr(attnfast, name)},
    }


def main() -> None:
    sys.path[:] = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a build prints does not disturb the answers
    from support.family_draws import DRAWN

    print(json.dumps(facts(DRAWN)), file=answers, flush=True)
    Worker(json.loads(sys.stdin.readline()), answers).run()


if __name__ == "__main__":
    main()
