from numpy.typing import ArrayLike

from .options import Array, Mask, Offset, Window

DTYPES: tuple[str, ...]
STAGES: tuple[str, ...]

def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: Mask | None,
    bias: ArrayLike | None,
    is_causal: bool,
    window_size: Window,
    q_offset: Offset | None,
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: ArrayLike | None,
    sink_logits: ArrayLike | None,
    return_lse: bool,
    return_weights: bool,
    out: Array | None,
    num_threads: int | None,
    return_blocks: None = ...,
) -> tuple[Array, Array | None, Array | None]: ...
def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    stage: object,
    mask: Mask | None,
    bias: ArrayLike | None,
    is_causal: bool,
    window_size: Window,
    q_offset: Offset | None,
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: ArrayLike | None,
    sink_logits: ArrayLike | None,
    num_threads: int | None,
    return_blocks: None = ...,
) -> Array: ...
def local_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    window_size: Window,
    global_tokens: ArrayLike | None,
    dilation: ArrayLike,
    centers: ArrayLike | None,
    sigma: float | None,
    mask: Mask | None,
    bias: ArrayLike | None,
    is_causal: bool,
    q_offset: Offset | None,
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: ArrayLike | None,
    sink_logits: ArrayLike | None,
    return_lse: bool,
    return_weights: bool,
    out: Array | None,
    num_threads: int | None,
    return_blocks: None = ...,
) -> tuple[Array, Array | None, Array | None]: ...
def additive_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    score_weight: ArrayLike | None,
    score_bias: ArrayLike | None,
    mask: Mask | None,
    bias: ArrayLike | None,
    is_causal: bool,
    window_size: Window,
    q_offset: Offset | None,
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    softcap: float | None,
    alibi_slopes: ArrayLike | None,
    sink_logits: ArrayLike | None,
    return_lse: bool,
    return_weights: bool,
    out: Array | None,
    num_threads: int | None,
    return_blocks: None = ...,
) -> tuple[Array, Array | None, Array | None]: ...
def attention_topk(
    query: ArrayLike,
    key: ArrayLike,
    k: int,
    mask: Mask | None,
    bias: ArrayLike | None,
    is_causal: bool,
    window_size: Window,
    q_offset: Offset | None,
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: ArrayLike | None,
    sink_logits: ArrayLike | None,
    num_threads: int | None,
    return_blocks: None = ...,
) -> tuple[Array, Array]: ...
def key_importance(
    query: ArrayLike,
    key: ArrayLike,
    per_kv_head: bool,
    mask: Mask | None,
    bias: ArrayLike | None,
    is_causal: bool,
    window_size: Window,
    q_offset: Offset | None,
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: ArrayLike | None,
    sink_logits: ArrayLike | None,
    num_threads: int | None,
    return_blocks: None = ...,
) -> Array: ...
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_q: ArrayLike,
    cu_k: ArrayLike,
    is_causal: bool,
    window_size: Window,
    q_offset: Offset | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: ArrayLike | None,
    sink_logits: ArrayLike | None,
    return_lse: bool,
    out: Array | None,
    num_threads: int | None,
    return_blocks: None = ...,
) -> tuple[Array, Array | None]: ...
def set_threads(num_threads: int | None) -> None: ...
def set_own_threads(num_threads: int) -> int: ...
def check_threads(num_threads: int | None) -> int: ...
def get_threads() -> int: ...
def available_isas() -> tuple[str, ...]: ...
def isa_in_use(dtype: str) -> str: ...
def use_isa(name: str | None) -> None: ...
def probe_exp2(x: Array) -> Array: ...
def probe_tanh(x: Array) -> Array: ...
def probe_log2(x: Array) -> Array: ...
def probe_exp_twice(x: Array) -> Array: ...
def probe_exp_twice_fast(x: Array) -> Array: ...
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
    centers: ArrayLike | None = ...,
    query_order: ArrayLike | None = ...,
    key_position: ArrayLike | None = ...,
) -> tuple[Array, Array, Array]: ...
def query_lanes(dtype: str = ...) -> int: ...
def measure_fma_peak(num_threads: int, seconds: float, dtype: str = ...) -> float: ...
def measure_read_bandwidth(num_threads: int, nbytes: int, seconds: float) -> float: ...
def time_tile(k: int, seconds: float, dtype: str = ...) -> float: ...
def time_exp2(seconds: float, dtype: str = ...) -> float: ...
def time_softmax(seconds: float, dtype: str = ...) -> float: ...
