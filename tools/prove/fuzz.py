"""Fuzzes the C library with libFuzzer, the address and the undefined behaviour sanitizer of clang.

    python tools/prove/fuzz.py [--seconds N] [--isas ...] [--dtypes ...] [--corpus DIR]
                               [--input FILE]

tools/drivers/fuzz.c makes a legal call of any bytes: every kind of call, option, dtype and layout.
Each instruction set computes it with 1, 2, 3 and 5 threads. All must have the same bits, and agree
with a plain computation in double (tools/drivers/plain.c) within what any order of summation may
be off; so instruction sets are compared by way of it. Arrays end where their memory does.

The sources are a copy in which work is cut into parts hundreds of times smaller (SMALL below), so
that calls of a few thousand pairs have teams, splits, waves and stretches. Ends with 1 on a
finding, which is printed and whose input is kept beside the corpus; --input runs that input again.
--plant makes a mistake in a copy on purpose, which must be found: of the AVX2 kernels `mask`, masks
that are off by one lane, or `tail`, tails that are right but read past the end; of all kernels
`columns`, values in columns that are taken twice, or `lots`, head groups with the values of others;
`joined`, batch rows that are computed as heads of one and share its keys.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from c_library import CALLS, DTYPES, Library, Patch, find, variants

SMALL = [
    Patch("driver/passes.c", "PARALLEL_FLOPS = 4e6;", "PARALLEL_FLOPS = 0;"),
    Patch("driver/passes.c", "SHARE_FLOPS = 2e7,", "SHARE_FLOPS = 1e4,"),
    Patch(
        "driver/passes.c", "PARTIAL_BYTES = (size_t)1 << 20;", "PARTIAL_BYTES = (size_t)1 << 12;"
    ),
    Patch("driver/passes.c", "IMPORTANCE_ROWS = 1 << 16,", "IMPORTANCE_ROWS = 100,"),
    Patch("driver/passes.c", "threads << 21;", "threads << 11;"),
    Patch("driver/select.c", "LEAST_SAMPLE = 256,", "LEAST_SAMPLE = 16,"),
    Patch("driver/select.c", "SPARE_ROOM = 4096,", "SPARE_ROOM = 20,"),
    Patch("driver/select.c", "MOST_SAMPLED = 8192 ", "MOST_SAMPLED = 200 "),
    Patch("driver/select.c", "STRIP = 1 << 18 ", "STRIP = 50 "),
    Patch("driver/queue.h", "AF_QUEUED_CALLS = 256 ", "AF_QUEUED_CALLS = 3 "),
    Patch("driver/global_tokens.c", "MOST_WAITING = 1 << 22 ", "MOST_WAITING = 1 << 11 "),
    Patch("driver/short_rows.c", "SHORT_KEYS = 64,", "SHORT_KEYS = 8,"),
    Patch("driver/columns.c", "TASK_ROWS = 2048 ", "TASK_ROWS = 100 "),
    Patch("kernel/columns.h", "COPY_ROWS = 512 ", "COPY_ROWS = 32 "),
    Patch("plan/plan.h", "AF_COLUMN_KEYS = 8192 ", "AF_COLUMN_KEYS = 256 "),
    Patch("plan/plan.c", "COLUMN_UNITS = 64 ", "COLUMN_UNITS = 2 "),
    Patch("kernel/block.h", "SHARED_SUMS = (32 << 10)", "SHARED_SUMS = (8 << 10)"),
    Patch("kernel/decode_columns.h", "VALUE_COLUMN_KEYS = 256 ", "VALUE_COLUMN_KEYS = 64 "),
    Patch("driver/topk.c", "ROW_PAIRS = 1 << 21 ", "ROW_PAIRS = 1 << 10 "),
    Patch("driver/backward.c", "PANEL_BYTES = 4 << 20 ", "PANEL_BYTES = 1 << 16 "),
    Patch("plan/backward.c", "BLOCK_KEYS = 128 ", "BLOCK_KEYS = 32 "),
    Patch("plan/backward.c", "LEAST_RANGE = 512,", "LEAST_RANGE = 64,"),
    Patch("plan/backward.c", "PANEL_ROWS = 768 ", "PANEL_ROWS = 96 "),
    Patch(
        "plan/plan.c",
        "FORWARD_KEYS = 128, NARROW_KEYS = AF_TILE_KEYS,",
        "FORWARD_KEYS = 64, NARROW_KEYS = 64,",
    ),
    Patch("plan/plan.c", "WIDE_HEAD = 512,", "WIDE_HEAD = 24,"),
    Patch("plan/plan.c", "DECODE_MOST_KEYS = 1024 ", "DECODE_MOST_KEYS = 128 "),
    Patch("plan/plan.c", "LEAST_UNITS = 8,", "LEAST_UNITS = 2,"),
    Patch("plan/plan.c", "BRIEF_BYTES = 1 << 15,", "BRIEF_BYTES = 1 << 11,"),
    Patch("plan/plan.c", "BRIEF_IN_TURN = 1 << 13,", "BRIEF_IN_TURN = 1 << 10,"),
    Patch("plan/plan.c", "BRIEF_BLOCKS = 8,", "BRIEF_BLOCKS = 2,"),
    Patch("plan/plan.c", "BRIEF_LOTS = 8,", "BRIEF_LOTS = 3,"),
    Patch("plan/plan.c", "BRIEF_UNIT_BYTES = 1 << 18 ", "BRIEF_UNIT_BYTES = 1 << 13 "),
    Patch("plan/plan.c", "DECODE_SPLIT_BYTES = 1 << 20,", "DECODE_SPLIT_BYTES = 1 << 12,"),
    Patch("plan/plan.c", "af_max(256, DECODE_SPLIT", "af_max(64, DECODE_SPLIT"),
    Patch("plan/plan.c", "FORWARD_SPLIT_KEYS = 2048,", "FORWARD_SPLIT_KEYS = 128,"),
    Patch("plan/plan.c", "FORWARD_SPLIT_WORK = 1 << 22,", "FORWARD_SPLIT_WORK = 1 << 13,"),
    Patch("plan/plan.c", "af_max(1024, work / width)", "af_max(64, work / width)"),
    Patch("plan/plan.c", "SPARSE_SPLIT_WORK = 1 << 25 ", "SPARSE_SPLIT_WORK = 1 << 14 "),
    Patch("plan/plan.c", "WEIGHTS_CHUNK = 8192,", "WEIGHTS_CHUNK = 128,"),
    Patch("plan/plan.c", "IMPORTANCE_CHUNK = 1024,", "IMPORTANCE_CHUNK = 128,"),
    Patch("plan/plan.c", "IMPORTANCE_LEAST = 128,", "IMPORTANCE_LEAST = 64,"),
]
PLANTS = {
    "mask": Patch("simd/avx2.h", "vm_bits(*word >> c * VL)", "vm_bits(*word << 1 >> c * VL)"),
    "tail": Patch(
        "simd/avx2.h",
        "OP(maskload)(p, AS_INT(vm_first(n)))",
        "OP(and)(OP(loadu)(p), vm_first(n))",
    ),
    "columns": Patch("kernel/decode_columns.h", "value.at += VALUE_COLUMN_KEYS", "value.at += VL"),
    "joined": Patch("driver/joined_batch.c", "joined->Hk *= call->B;", ""),
    "lots": Patch(
        "kernel/decode.h",
        "run->s.values->first = first_row(&call->operands.value, vis->b, vis->hk);",
        "",
    ),
}
LENGTH, SEEDS = 80, 200  # bytes of an input: all that a call is drawn from; inputs to begin with
CHECKS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
# clang 16 takes more than 10 GB for one kernel with -fsanitize=undefined, gcc 12 300 MB. Traps, as
# gcc's messages need a runtime of their own; the place is in the stack that is printed.
KERNEL_CHECKS = [*CHECKS, "-fsanitize-undefined-trap-on-error", "-fsanitize-coverage=trace-pc"]


def build(work: Path, isas: list[str], dtypes: list[str], patches: list[Patch]) -> Path:
    flags = [*CHECKS, "-fno-sanitize-recover=undefined", "-fopenmp", "-fsanitize=fuzzer-no-link"]
    flags.append("-DAF_FIXED_TEAM")
    flags.append("-DFUZZ_DTYPES=" + ",".join(f"AF_{d.upper()}" for d in dtypes))
    only = [(v.isa, v.dtype) for v in variants()[0] if v.isa in isas and v.dtype in dtypes]
    library = Library(
        work,
        find("clang-16", "clang"),
        flags,
        only=only,
        patches=patches,
        kernels=(find("gcc"), KERNEL_CHECKS),
    )
    drivers = ["fuzz.c", "plain.c", "plain_row.c", "plain_gradients.c", *CALLS]
    return library.link(
        "fuzz", drivers, ["-fsanitize=fuzzer", "-Wl,--wrap=__sanitizer_cov_trace_pc"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long (default 60)")
    known = list(dict.fromkeys(v.isa for v in variants()[0]))
    parser.add_argument(
        "--isas", nargs="+", choices=known, default=known, help="fewer build sooner; with generic"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--corpus", type=Path, help="keep inputs that reach new code here")
    parser.add_argument("--input", type=Path, help="run this input only")
    parser.add_argument("--work", type=Path, help="keep the build here, and use one that is there")
    parser.add_argument("--plant", choices=PLANTS, help="make a mistake on purpose")
    arguments = parser.parse_args()
    patches = [*SMALL, PLANTS[arguments.plant]] if arguments.plant else SMALL
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attnfast-fuzz-") as name:
        work = (arguments.work or Path(name)).resolve()
        program = work / "fuzz"
        if not program.exists():
            program = build(work, arguments.isas, arguments.dtypes, patches)
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        corpus = (arguments.corpus or Path(name) / "corpus").resolve()
        corpus.mkdir(parents=True, exist_ok=True)
        chance = random.Random(1)
        for k in range(SEEDS):  # from nothing, libFuzzer would draw calls without options for long
            (corpus / f"seed{k}").write_bytes(chance.randbytes(LENGTH))
        kept = corpus.parent if arguments.corpus else Path(tempfile.gettempdir())
        what: list[str | Path] = [corpus, f"-max_total_time={arguments.seconds}"]
        what += [
            f"-max_len={LENGTH}",
            "-len_control=0",
            "-timeout=600",  # of the clock: a busy machine takes a minute for some
            "-print_final_stats=1",
            f"-artifact_prefix={kept}/",
        ]
        if arguments.input:
            what = [arguments.input]
        # gcc 12 stores whole AVX-512 vectors to the fake frames of stack_use_after_return, which
        # are not aligned for that, and dies.
        options = "detect_leaks=1:detect_stack_use_after_return=0"
        environment = {**os.environ, "KMP_BLOCKTIME": "0", "ASAN_OPTIONS": options}
        done = subprocess.run(
            [program, *what],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    said = done.stdout.splitlines()
    noise = re.compile(r"#\d+\s+(NEW|REDUCE|RELOAD|INITED)")
    print("\n".join([line for line in said if not noise.match(line)][-80:]))
    print(f"exit code {done.returncode}")
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
