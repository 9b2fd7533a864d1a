"""One sequence of 1,000,000 tokens over the processes of a dask cluster, each holding a part.

python examples/long_sequence.py
python examples/long_sequence.py --tokens 200000 --window 1024 --workers 4
python examples/long_sequence.py --scheduler tcp://10.0.0.1:8786
"""

import argparse
import time

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, wait

import attnfast
from attnfast.dask import attention, attention_backward

HEAD_DIM = 64


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=62_500, help="tokens of a chunk")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--window", type=int, default=256, help="tokens seen on either side")
    parser.add_argument("--workers", type=int, default=2, help="processes of a cluster here")
    parser.add_argument("--scheduler", help="address of a cluster that runs already")
    options = parser.parse_args()
    if min(options.tokens, options.chunk, options.heads, options.workers) < 1 or options.window < 0:
        parser.error("all numbers must be at least 1, and --window at least 0")
    return options


def run(options: argparse.Namespace) -> None:
    shape = (3, options.heads, options.tokens, HEAD_DIM)
    chunks = (3, options.heads, min(options.chunk, options.tokens), HEAD_DIM)
    random = da.random.default_rng(0)  # query, key and value of a token are in the same chunk
    x = random.standard_normal(shape, dtype=np.float32, chunks=chunks).persist()
    q, k, v = (part.persist() for part in x)
    wait([q, k, v])
    size = 3 * q.nbytes / 1e9
    print(f"{options.tokens:,} tokens in {q.numblocks[1]} chunks; q, k, v are {size:.1f} GB")

    window = options.window
    began = time.perf_counter()
    result = attention(q, k, v, window_size=window, return_lse=True)
    output, lse = result.output.persist(), result.lse.persist()
    wait([output, lse])
    seconds = time.perf_counter() - began
    print(f"window of {window}: {seconds:.1f} s, {options.tokens / seconds:,.0f} tokens/s")

    began = time.perf_counter()
    grads = attention_backward(output, q, k, v, output, lse, window_size=window)
    norms = [float(x) for x in da.compute(*(abs(x).max() for x in grads[:3]))]
    seconds = time.perf_counter() - began
    print(f"gradients: {seconds:.1f} s, largest " + " ".join(f"{x:.2g}" for x in norms))

    began = time.perf_counter()
    last = q[:, -16:].rechunk(-1)
    over_all = attention(last, k, v).compute()
    print(f"the last {last.shape[1]} tokens over all keys: {time.perf_counter() - began:.1f} s")

    place = options.tokens // 2  # rows beside a border of chunks, computed here from a copy
    rows = slice(max(0, place - 8), min(options.tokens, place + 8))
    keys = slice(max(0, rows.start - window), min(options.tokens, rows.stop + window))
    near = [x.compute() for x in (q[:, rows], k[:, keys], v[:, keys])]
    alone = attnfast.attention(*near, window_size=window, q_offset=rows.start - keys.start)
    error = abs(alone - output[:, rows].compute()).max()
    error = max(error, abs(over_all - whole_rows(last, k, v)).max())
    print(f"largest difference to calls without dask: {error:.1e}")


def whole_rows(last: da.Array, k: da.Array, v: da.Array) -> np.ndarray:
    """The same rows, from all keys at once."""
    return attnfast.attention(last.compute(), k.compute(), v.compute())


def main() -> None:
    options = parse()
    if options.scheduler:
        with Client(options.scheduler):
            run(options)
        return
    with (
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        Client(cluster),
    ):
        run(options)


if __name__ == "__main__":
    main()
