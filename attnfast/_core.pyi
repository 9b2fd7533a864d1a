from collections.abc import Mapping

from numpy.typing import ArrayLike

from .options import Array, Window
from .result import AttentionResult, AttentionTopK

_C_API: object  # a capsule
DTYPES: tuple[str, ...]
DIFFERENTIABLE: tuple[str, ...]
OF_ADDITIVE: tuple[str, ...]
OF_LOCAL: tuple[str, ...]
QKV: tuple[str, ...]
STAGES: tuple[str, ...]
XLA_VERSIONS: tuple[tuple[int, int], ...]

def xla_handlers(version: tuple[int, int]) -> dict[str, object]: ...

# What the public function of the same name returns; or, with "return_blocks" among the options, the
# values of a Plan.
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, options: Mapping[str, object]
) -> Array | AttentionResult: ...
def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Window,
    options: Mapping[str, object],
) -> Array | AttentionResult: ...
def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None,
    options: Mapping[str, object],
) -> Array | AttentionResult: ...
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    options: Mapping[str, object],
) -> Array | AttentionResult: ...
def attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    options: Mapping[str, object],
) -> tuple[Array | None, ...]: ...
def local_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    window_size: Window,
    options: Mapping[str, object],
) -> tuple[Array | None, ...]: ...
def additive_attention_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    score_weight: ArrayLike | None,
    options: Mapping[str, object],
) -> tuple[Array | None, ...]: ...
def attention_varlen_backward(
    grad_output: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    options: Mapping[str, object],
) -> tuple[Array | None, ...]: ...
def attention_weights(query: ArrayLike, key: ArrayLike, options: Mapping[str, object]) -> Array: ...
def attention_topk(
    query: ArrayLike, key: ArrayLike, k: int, options: Mapping[str, object]
) -> AttentionTopK: ...
def key_importance(query: ArrayLike, key: ArrayLike, options: Mapping[str, object]) -> Array: ...
def rotate(
    x: ArrayLike,
    positions: ArrayLike,
    base: float,
    interleaved: bool,
    cos_sin: tuple[ArrayLike, ArrayLike] | None,
    out: Array | None,
    num_threads: int | None,
) -> Array: ...
def set_threads(num_threads: int | None) -> None: ...
def set_own_threads(num_threads: int) -> int: ...
def check_threads(num_threads: int | None) -> int: ...
def get_threads() -> int: ...
def available_isas() -> tuple[str, ...]: ...
def isa_in_use(dtype: str) -> str: ...
def cap_isa(name: str | None) -> bool: ...
def probe(name: str, x: Array) -> Array: ...
def probe_tile(a: Array, b: Array, c: Array | None = ...) -> Array: ...
def probe_visibility(
    lq: int,
    lk: int,
    window: tuple[int | None, int | None],
    blocks: ArrayLike,
    causal: bool = ...,
    q_offset: ArrayLike | None = ...,
    q_length: ArrayLike | None = ...,
    kv_length: ArrayLike | None = ...,
    kv_start: ArrayLike | None = ...,
    centers: ArrayLike | None = ...,
    query_order: ArrayLike | None = ...,
    key_position: ArrayLike | None = ...,
) -> tuple[Array, Array, Array]: ...
def query_lanes(dtype: str = ...) -> int: ...
def request_lines(choice: bool | None) -> None: ...
def look_up_bytes(wanted: bool) -> None: ...
def run_fma(rounds: int, dtype: str) -> float: ...
def run_read(a: Array) -> None: ...
def run_tile(a: Array, b: Array, c: Array, rounds: int) -> None: ...
def run_exp2(a: Array, result: Array, rounds: int) -> None: ...
def run_softmax(scores: Array, most: Array, total: Array, rounds: int) -> None: ...
