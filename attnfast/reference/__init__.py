"""Exact attention in plain NumPy: slow, float64, and the meaning of every argument.

    score[i, j]  = scale * sum_d query[i, d] * key[j, d]
    capped       = softcap * tanh(score / softcap)
    biased       = capped + bias[i, j] - slope * |p_i - j|,   -inf where query i may not see key j
    weight[i, j] = exp(biased[i, j]) / (exp(sink) + sum_k exp(biased[i, k]))
    output[i]    = sum_j weight[i, j] * value[j]

``p_i = i + q_offset`` is the place of query ``i`` on the key axis. The kernels are tested against
these functions, so everything is written out: all scores exist in memory at once, grouped heads are
repeated, and arguments are taken to be legal (the public functions check them). Masks and biases
broadcast as NumPy arrays do, also those that the public functions refuse as ambiguous.

``compute_dtype`` is the dtype of every intermediate and of the results. float64 is the truth;
float32 is what plain NumPy attention in single precision gives, by which the rounding of the
kernels is judged.

>>> import numpy as np
>>> from attnfast import attention, reference
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 50, 8), dtype=np.float32)
>>> exact = reference.attention(q, k, v, window_size=3)
>>> np.allclose(attention(q, k, v, window_size=3), exact, atol=1e-6)
True

Read `scores.py` (who sees whom, and the score of a pair) and `softmax.py` (weights and output)
first; `stored.py` says what pages of keys and values stand for, `family.py` holds what is made of
all this, `dropout.py` the generator of dropped weights, `gradients.py` and `family_gradients.py`
the derivatives, `rotary.py` rotary embedding.
"""

from .family import (
    additive_attention,
    attention_topk,
    attention_varlen,
    key_importance,
    local_attention,
    merge_attention,
)
from .family_gradients import (
    additive_attention_backward,
    attention_varlen_backward,
    local_attention_backward,
    merge_attention_backward,
)
from .gradients import AttentionGradients, attention_backward
from .rotary import rotate
from .softmax import STAGES, attention, attention_weights

__all__ = [
    "STAGES",
    "AttentionGradients",
    "additive_attention",
    "additive_attention_backward",
    "attention",
    "attention_backward",
    "attention_topk",
    "attention_varlen",
    "attention_varlen_backward",
    "attention_weights",
    "key_importance",
    "local_attention",
    "local_attention_backward",
    "merge_attention",
    "merge_attention_backward",
    "rotate",
]


def __dir__() -> list[str]:
    return __all__
