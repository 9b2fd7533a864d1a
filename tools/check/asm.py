"""Checks that the hot loops of the compiled kernels keep their vectors in registers.

    python tools/check/asm.py BUILD_DIR [OBJDUMP]

For x86-64 and AArch64, of which another objdump may be wanted (aarch64-linux-gnu-objdump).

Disassembles every kernel object, finds its innermost loops and sorts the hot ones:

* scores, values: the register tile in each of the two products (tile.h, fused_softmax.h);
* fused softmax: the loop around it in which scores become weights (fused_softmax.h), not innermost;
* softmax, row softmax: exp over a tile (softmax.h) and over one row (decode.h);
* dot, axpy, one axpy: keys and values in decoding (decode_products.h), for two query rows and one;
* interleaved dot, interleaved axpy: the same for three and four (decode_interleaved.h).

Every object must have every one of them in its full size, and none may spill a whole vector
register. Prints the largest loop of each sort, the worst if there are several: inlining makes many.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SIMD = Path(__file__).resolve().parents[2] / "csrc" / "simd"


class Machine(NamedTuple):
    """How an instruction set looks in a listing: patterns for the start of an instruction."""

    fma: str
    exp: str  # the end of every exp: a shift to the exponent
    memory: str  # moves a whole vector, or takes one from memory
    store: str
    stack: str  # a memory operand there
    framed_stack: str  # the same in functions with a frame pointer
    frame: str  # what sets that
    aside: str  # not in a hot loop: see hot_loops


def x86(register: str) -> Machine:
    # Loads that widen 16-bit numbers or broadcast are no spills.
    stack = r"(?!vpmovzx|vcvtph2ps|vbroadcast).*\(%r{}p[,)]"
    narrow = register == "xmm"
    return Machine(
        fma=r"mulp[sd]" if narrow else rf"vfn?m(add|sub)\d+p[sd].*%{register}",
        exp=r"vscalefp|v?psll[dq] \$0x(17|34),",
        memory=rf".*\(.*%{register}|.*%{register}.*\(",
        store=rf"v?mov\w+ %{register}\d+,",
        stack=stack.format("s"),
        framed_stack=stack.format("[sb]"),
        frame=r"mov %rsp,%rbp$",
        aside=r"(bnd )?(call|j)" if narrow else r"(bnd )?call",
    )


def arm64(fma: str, aside: str) -> Machine:
    return Machine(
        fma=rf"{fma} v",
        exp=r"shl v\d+\.(4s|2d), v\d+\.(4s|2d), #(23|52)$",
        memory=r"(ld|st)u?[rp] q|(ld|st)1r? \{v",
        store=r"st",
        stack=r".*\[sp",
        framed_stack=r".*\[(sp|x29)",
        frame=r"mov x29, sp$",
        aside=aside,
    )


MACHINES = {
    "x86-64": {"avx512": x86("zmm"), "avx2": x86("ymm"), "generic": x86("xmm")},
    "aarch64": {
        "neon": arm64("fml[as]", aside="bl "),
        "generic": arm64("fmul", aside=r"(bl?|b\.\w+|[ct]bn?z) "),
    },
}

# By the function a loop is in: those of the sources, and those that they may be inlined into.
PRODUCTS = {
    "score_product": "scores",
    "fused_softmax_product": "scores",
    "value_product": "values",
    **{f"dot_{rows}": "dot" for rows in (1, 2)},
    "axpy_1": "one axpy",
    "axpy_2": "axpy",
    **{f"dot_interleaved_{rows}": "interleaved dot" for rows in (3, 4)},
    **{f"axpy_{rows}": "interleaved axpy" for rows in (3, 4)},
}
FUSED = {"fused_softmax_product": "fused softmax"}
EXPS = {"softmax_step": "softmax", "run_piece": "softmax"}
EXPS |= dict.fromkeys(("weigh_keys", "weigh_runs", "decode_keys"), "row softmax")

# Known accesses. In the softmax stores in one loop, a sum for each column: with a maximum each and
# the coefficients they do not fit 16 registers. In float64 on AVX2, a sum waits some 10 cycles for
# itself in a loop of 20, and a loop of its own for every column would have no fewer instructions.
# Of the 8 sums of two keys 2 are in memory where products need registers before they are added.
ALLOWED = (
    {("f64_avx2", "softmax"): 3}
    | {(f"{dtype}_generic", "softmax"): 2 for dtype in ("f32", "f64", "f16", "bf16")}
    | {(f"{dtype}_generic", "interleaved dot"): 4 for dtype in ("f32", "f64")}
)


class Instruction(NamedTuple):
    address: int
    text: str

    @property
    def target(self) -> int | None:
        jump = re.match(r"(?:(?:bnd )?j\w+|b|b\.\w+|[ct]bn?z .*,) ([0-9a-f]+) <", self.text)
        return int(jump[1], 16) if jump else None

    @property
    def goes_on(self) -> bool:
        return not re.match(r"(bnd |notrack |rep )?(jmp|ret|ud2)|(b|br|udf) ", self.text)


class Loop(NamedTuple):
    sort: str
    function: str
    address: int
    size: int  # FMAs, or exps where there are any
    instructions: int
    fmas: int
    loads: int
    stack_loads: int
    stack_stores: int


def disassembly(objdump: str, path: Path) -> str:
    command = [objdump, "-d", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def functions(text: str) -> dict[str, list[Instruction]]:
    found: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if name := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            code = found.setdefault(name[1], [])
        elif instruction := re.match(r" +([0-9a-f]+):\t(.+)", line):
            code.append(Instruction(int(instruction[1], 16), " ".join(instruction[2].split())))
    return found


def reached(start: int, ways: dict[int, list[int]]) -> set[int]:
    seen, todo = {start}, [start]
    while todo:
        new = set(ways[todo.pop()]) - seen
        seen |= new
        todo += new
    return seen


def loops_of(code: list[Instruction]) -> tuple[list[list[Instruction]], list[list[Instruction]]]:
    """The innermost loops, and those around others.

    A loop is what lies on a way from the target of a backward jump to the jump. A jump back from
    code that was moved out of the way is no loop: no way leads there."""
    at = {x.address: i for i, x in enumerate(code)}
    targets = [None if x.target is None else at.get(x.target) for x in code]
    ends = {head: i for i, head in enumerate(targets) if head is not None and head <= i}
    bodies = []
    for head, end in ends.items():
        span = range(head, end + 1)
        after: dict[int, list[int]] = {i: [] for i in span}
        before: dict[int, list[int]] = {i: [] for i in span}
        for i in span:
            for j in (targets[i], i + 1 if code[i].goes_on else None):
                if j is not None and j in span:
                    after[i].append(j)
                    before[j].append(i)
        onward = reached(head, after)
        if end in onward:
            bodies.append(onward & reached(end, before))
    inner = [body for body in bodies if not any(other < body for other in bodies)]
    outer = [body for body in bodies if body not in inner]
    return tuple([[code[i] for i in sorted(body)] for body in sort] for sort in (inner, outer))


def hot_loops(text: str, machine: Machine) -> list[Loop]:
    """Incomplete vectors go through an array on the stack, which is no spill. So no loops that call
    memcpy or, on generic vectors, have jumps within (element by element)."""
    found = []
    for name, code in functions(text).items():
        # Without a frame pointer, its register is one like any other.
        framed = any(re.match(machine.frame, x.text) for x in code)
        stack = machine.framed_stack if framed else machine.stack
        plain_name = name.split(".")[0]
        inner, outer = loops_of(code)
        for loop in inner + (outer if plain_name in FUSED else []):
            lines = [x.text for x in loop]
            fmas = sum(bool(re.match(machine.fma, x)) for x in lines)
            exps = sum(bool(re.match(machine.exp, x)) for x in lines)
            if loop in outer:
                sort = FUSED[plain_name] if exps else None
            else:
                sort = (EXPS if exps else PRODUCTS).get(plain_name)
                sort = None if any(re.match(machine.aside, x) for x in lines[:-1]) else sort
            if not sort or not fmas:
                continue
            memory = [x for x in lines if re.match(machine.memory, x)]
            stores = [x for x in memory if re.match(machine.store, x)]
            on_stack = sum(bool(re.match(stack, x)) for x in memory)
            spilled = sum(bool(re.match(stack, x)) for x in stores)
            numbers = len(loop), fmas, len(memory) - len(stores), on_stack - spilled, spilled
            found.append(Loop(sort, name, loop[0].address, exps or fmas, *numbers))
    return found


def full_sizes(variant: str) -> dict[str, int]:
    """What one turn of the largest loop of each sort does; unrolled, a multiple of it."""
    dtype, isa = variant.split("_")
    text = (SIMD / f"{isa}.h").read_text()
    names = "MR", "NV", "DECODE_KEYS", "DECODE_COLUMNS"
    rows, vectors, keys, columns = (
        int(re.findall(rf"#define AF_{name} (\d+)", text)[0]) for name in names
    )
    sizes = {"scores": rows * vectors, "values": rows * vectors, "softmax": vectors}
    if "#define AF_FUSED_SOFTMAX 1" in text:
        sizes["fused softmax"] = rows * vectors
    if isa != "generic":
        sizes["row softmax"] = 1
    if (
        isa == "generic" and dtype != "f32"
    ):  # built for size: this loop has 1, others are as they come
        sizes["softmax"] = 1
    else:
        sizes |= {"dot": 2 * keys * columns, "axpy": 2 * columns, "one axpy": 2 * columns}
        sizes |= {"interleaved dot": 2 * 2 * 4, "interleaved axpy": 2 * 4}
    return sizes


def check(variant: str, sizes: dict[str, int], loops: list[Loop]) -> list[str]:
    problems = []
    exps = {*EXPS.values(), *FUSED.values()}
    for sort, size in sizes.items():
        if not any(loop.sort == sort and loop.size % size == 0 for loop in loops):
            problems.append(f"{variant}: {sort}: no loop of {size} found")
    for loop in loops:
        # What an exp only loads is constant: coefficients and maxima that do not fit the registers,
        # as cheap on the stack as elsewhere. The other loops are sized to need nothing from there.
        spills = loop.stack_stores + (0 if loop.sort in exps else loop.stack_loads)
        allowed = ALLOWED.get((variant, loop.sort), 0)
        if loop.sort == "fused softmax":
            # Around the tile: exps come while accumulators fill the registers.
            allowed = 2 * sizes.get("fused softmax", 0)
        if loop.sort in sizes and spills > allowed:
            where = f"{loop.function} at {loop.address:x}"
            problems.append(f"{variant}: {loop.sort}: {spills} stack accesses in {where}")
    return problems


def main() -> int:
    problems = []
    objdump = sys.argv[2] if len(sys.argv) > 2 else "objdump"
    objects = sorted(Path(sys.argv[1]).rglob("kernels.c.o"))
    if not objects:
        problems.append(f"no objects below {sys.argv[1]}")
    row = "{:13}{:17}{:26}" + "{:>7}" * 8
    titles = "loops", "instr", "FMAs", "loads", "stack", "stores", "FMA/in"
    print(row.format("object", "loop", "function", "at", *titles))
    for path in objects:
        variant = re.findall(r"kernels_(\w+_\w+)\.dir", str(path))[0]
        sizes = full_sizes(variant)
        text = disassembly(objdump, path)
        machine = next(name for name in MACHINES if name in text[: text.index("\n\n")])
        loops = hot_loops(text, MACHINES[machine][variant.split("_")[1]])
        problems += check(variant, sizes, loops)
        for sort in sizes:
            same = [loop for loop in loops if loop.sort == sort]
            if same:
                x = max(same, key=lambda x: (x.size, x.stack_stores, x.stack_loads, x.instructions))
                numbers = x.instructions, x.fmas, x.loads, x.stack_loads, x.stack_stores
                ratio = f"{x.fmas / x.instructions:.2f}"
                place = x.function[:25], f"{x.address:x}"
                print(row.format(variant, sort, *place, len(same), *numbers, ratio))
    for problem in problems:
        print(problem)
    print(f"{len(objects)} kernel objects: {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
