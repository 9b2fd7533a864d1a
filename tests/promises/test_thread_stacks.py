"""Kernels fit small stacks: 128 KiB is what musl gives a thread, and what OMP_STACKSIZE may say.

Every kind of call, dtype and instruction set, once on the main thread and then on threads with such
stacks, OpenMP's and Python's own. A frame that is too large kills the process.
"""

import pytest

import attnfast
from support.arrays import DTYPE_IDS
from support.scripts import START, run_python

EACH_ISA = pytest.mark.parametrize("isa", attnfast.available_isas())

CALLS = """
import ml_dtypes

def cases(dtype):
    def arrays(*shape, lk=None):
        q, k, v = qkv(*shape, dtype=np.float32)
        return [a.astype(dtype) for a in (q, k[..., :lk, :], v[..., :lk, :])]

    rng = np.random.default_rng(1)
    length = 160
    q, k, v = arrays(1, 4, length, 64)
    square = (length, length)
    mask, bias = rng.random(square) < 0.7, rng.standard_normal(square).astype(np.float32)
    every = {"return_lse": True, "return_weights": True}
    spoiled = v.copy()
    spoiled[..., 7, :] = np.nan
    hole = np.arange(length) != 7
    wide, grouped = arrays(1, 2, 130, 1030), arrays(1, 8, 100, 64)
    long, one = arrays(1, 2, 5000, 16), arrays(1, 4, 4000, 130)
    a = attnfast
    yield "plain", lambda n: a.attention(q, k, v, **every, num_threads=n)
    yield "scores", lambda n: a.attention(
        q, k, v, mask=mask, bias=bias, softcap=3.0, alibi_slopes=np.ones(4), sink_logits=np.ones(4),
        is_causal=True, kv_lengths=[90], **every, num_threads=n)
    yield "careful", lambda n: a.attention(q, k, spoiled, mask=hole, num_threads=n)
    yield "grouped", lambda n: a.attention(
        grouped[0], *(x[:, :2] for x in grouped[1:]), window_size=9, num_threads=n)
    yield "wide", lambda n: a.attention(*wide, num_threads=n)
    yield "split", lambda n: a.attention(long[0][:, :, :20], *long[1:], num_threads=n)
    yield "decode", lambda n: a.attention(one[0][:, :, :1], *one[1:], **every, num_threads=n)
    yield "decode careful", lambda n: a.attention(
        q[:, :, :2], k, spoiled, mask=hole, num_threads=n)
    pages = [x.reshape(10, 4, 16, 64) for x in (k, v)]
    small = [a.quantize(x)[0] for x in (k, v)]
    for few, x in (("", q), ("few ", q[:, :, :2])):
        own = {"mask": mask[:x.shape[2]], **every}
        yield f"{few}pages", lambda n, x=x, own=own: a.attention(
            x, *pages, block_table=np.arange(10)[::-1], num_threads=n, **own)
        if dtype != np.float64:
            yield f"{few}bytes", lambda n, x=x, own=own: a.attention(
                x, *small, key_scale=0.02, value_scale=np.ones((length, 4)), num_threads=n, **own)
        yield f"{few}pages of keys", lambda n, x=x: [
            a.attention_weights(
                x, pages[0], block_table=np.arange(10)[::-1], stage=s, num_threads=n)
            for s in ("scores", "weights")]
        yield f"{few}packed pages", lambda n, x=x: a.attention_varlen(
            x[0].swapaxes(0, 1), *pages, [0, 1, x.shape[2]], [0, 33, 150],
            block_table=[np.arange(10)[::-1]] * 2, num_threads=n)
        if dtype != np.float64:
            yield f"{few}bytes of keys", lambda n, x=x: [
                a.attention_topk(
                    x, small[0], k, key_scale=np.ones((length, 4)), num_threads=n).weights
                for k in (9, 99)] + [
                a.key_importance(x, small[0], key_scale=np.ones((length, 4)), num_threads=n)]
    yield "stages", lambda n: [
        a.attention_weights(q, k, softcap=2.0, bias=bias, stage=s, num_threads=n)
        for s in ("scores", "capped", "biased")]
    yield "block mask", lambda n: a.attention(
        q, k, v, mask=a.BlockMask(np.eye(5, dtype=bool), 32), num_threads=n)
    yield "dilation", lambda n: a.local_attention(
        q, k, v, 20, dilation=[1, 2, 1, 3], mask=mask, **every, num_threads=n)
    yield "global", lambda n: a.local_attention(q, k, v, 9, global_tokens=[0, 80], num_threads=n)
    yield "centers", lambda n: a.local_attention(
        q, k, v, 40, centers=np.linspace(150, 0, length), sigma=20.0, **every, num_threads=n)
    yield "additive", lambda n: a.additive_attention(
        q, k, v, score_bias=np.ones(64), **every, num_threads=n)
    yield "wild additive", lambda n: a.additive_attention(9 * q, 9 * k, v, num_threads=n)
    yield "few additive", lambda n: a.additive_attention(
        long[0][:, :, :2], *long[1:], num_threads=n)
    def trained(name, arrays, *more, wanted=(), **options):
        forward, backward = getattr(a, name), getattr(a, f"{name}_backward")
        output, lse, _ = forward(*arrays, *more, return_lse=True, num_threads=1, **options)
        loss = output, *arrays, output, lse, *more
        wanted = ("query", "key", "value", *wanted)
        return lambda n: backward(*loss, wanted=wanted, num_threads=n, **options)

    yield "gradients", trained("attention", (q, k, v), dropout=0.3)
    yield "gradients of scores", trained(
        "attention", (q, k, v), mask=mask, bias=bias, softcap=3.0, alibi_slopes=np.ones(4),
        sink_logits=np.ones(4), is_causal=True, wanted=("bias", "alibi_slopes", "sink_logits"))
    yield "careful gradients", trained("attention", (q, k, spoiled), mask=hole)
    yield "gradients of additive", trained(
        "additive_attention", (q, k, v), np.ones(64), score_bias=np.ones(64),
        wanted=("score_weight", "score_bias"))
    yield "gradients of few additive", trained(
        "additive_attention", (long[0][:, :, :2], *long[1:]), np.ones(16))
    wild = 9 * q, 9 * k, v
    yield "gradients of wild additive", trained("additive_attention", wild, np.ones(64))
    yield "gradients of dilation", trained(
        "local_attention", (q, k, v), 9, dilation=[1, 2, 1, 3], mask=mask)
    yield "gradients of global tokens", trained(
        "local_attention", (q, k, v), 9, global_tokens=[0, 80], dropout=0.3)
    yield "gradients of centers", trained(
        "local_attention", (q, k, v), 40, centers=np.linspace(150, 0, length), sigma=20.0,
        wanted=("centers",))
    yield "gradients of ranges", trained("attention", (long[0][:, :, :900], *long[1:]))
    yield "gradients of a block mask", trained(
        "attention", (q, k, v), mask=a.BlockMask(np.eye(5, dtype=bool), 32))
    yield "top", lambda n: a.attention_topk(q, k, 64, num_threads=n)
    yield "split top", lambda n: a.attention_topk(long[0][:, :, :20], long[1], 5, num_threads=n)
    yield "long top", lambda n: a.attention_topk(q, k, 100, num_threads=n)
    yield "importance", lambda n: a.key_importance(q, k, is_causal=True, num_threads=n)
    yield "rotated", lambda n: a.rotate(q, np.arange(length), interleaved=True, num_threads=n)
    tables = [np.ones((length, 32))] * 2
    yield "rotated by tables", lambda n: a.rotate(
        q, np.arange(length), cos_sin=tables, num_threads=n)
    rows = [x[0].swapaxes(0, 1) for x in (q, k, v)]
    yield "packed gradients", trained("attention_varlen", rows, *[[0, 30, 90, length]] * 2)
    yield "packed", lambda n: a.attention_varlen(
        *rows, [0, 30, 90, length], [0, 30, 90, length], return_lse=True, num_threads=n)

def tasks():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else None

def result(call, n):
    x = call(n)
    parts = x if isinstance(x, (tuple, list)) else (x,)
    return [None if part is None else part.tobytes() for part in parts]

"""


@pytest.mark.quick
@EACH_ISA
def test_every_kernel_on_a_stack_of_128_kib(isa, tmp_path):
    script = f"""
every = [each for name in {DTYPE_IDS} for each in cases(np.dtype(getattr(ml_dtypes, name, name)))]
expected = [result(call, 1) for _, call in every]
done, most = [], 0

def on_a_small_stack(name, call, bits, n):
    global most
    done.append((name, n, result(call, n) == bits))
    most = max(most, tasks() or 0)

before = tasks()
threading.stack_size(128 * 1024)
for (name, call), bits in zip(every, expected):
    for n in (1, 4):
        # A thread of its own for each call: where the machine is busy its next may have fewer.
        thread = threading.Thread(target=on_a_small_stack, args=(name, call, bits, n))
        thread.start()
        thread.join()
assert len(done) == 2 * len(every) and all(same for *_, same in done), done
assert before is None or most >= before + 4, "no team of 4"
"""
    run_python(
        START + CALLS + script, tmp_path, timeout=180, OMP_STACKSIZE="128k", ATTNFAST_ISA=isa
    )
