"""``tools/check/asm.py``: that it finds loops and sees spills, on small listings."""

import importlib.util

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.quick


SCRIPT = ROOT / "tools" / "check" / "asm.py"
spec = importlib.util.spec_from_file_location("check_asm", SCRIPT)
asm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(asm)

SIZES = {"scores": 2}
AVX512, AVX2 = (asm.MACHINES["x86-64"][isa] for isa in ("avx512", "avx2"))
NEON = asm.MACHINES["aarch64"]["neon"]


def listing(*lines, function="score_product.constprop.0"):
    """Instructions at 0, 1, 2 ..., as objdump prints them."""
    head = f"0000000000000000 <{function}>:\n"
    return head + "".join(f"  {i:3x}:\t{line}\n" for i, line in enumerate(lines))


def jump(to, name="jne"):
    return f"{name:6} {to:x} <score_product+0x{to:x}>"


def loops_of(*lines):
    (code,) = asm.functions(listing(*lines)).values()
    return [[x.address for x in loop] for loop in asm.loops_of(code)[0]]


def test_inner_loop_of_two():
    assert loops_of("nop", "nop", "nop", jump(2), jump(1), "ret") == [[2, 3]]


def test_two_jumps_to_one_head_are_one_loop():
    assert loops_of("nop", "nop", jump(1), "nop", jump(1), "ret") == [[1, 2, 3, 4]]


def test_code_moved_out_of_the_way_is_no_loop():
    # 0 jumps to 4, which jumps back to 1; the loop at 2 is one all the same.
    assert loops_of(jump(4, "je"), "nop", jump(2), "ret", "nop", jump(1, "jmp")) == [[2]]


def test_code_moved_within_the_range_is_no_part_of_the_loop():
    assert loops_of("nop", jump(4, "jmp"), "nop", "ret", jump(0)) == [[0, 1, 4]]


@pytest.mark.parametrize(
    "access, spills",
    [
        ("vmovups 0x40(%rsi),%zmm3", 0),
        ("mov    0x40(%rsp),%rax", 0),
        ("vmovdqu 0x40(%rsp),%ymm3", 0),  # not a whole register
        ("vpmovzxwd 0x40(%rsp),%zmm3", 0),
        ("vmovups 0x40(%rsp),%zmm3", 1),
        ("vmovaps %zmm3,-0x40(%rsp)", 1),
        ("vaddps 0x40(%rsp),%zmm3,%zmm3", 1),
        ("vmovups 0x40(%rbp),%zmm3", 0),  # no frame pointer
        ("call   100 <memcpy>", None),
    ],
)
def test_spills_of_a_tile(access, spills):
    fma = "vfmadd231ps %zmm1,%zmm2,%zmm0"
    loops = asm.hot_loops(listing(fma, fma, access, jump(0), "ret"), AVX512)
    problems = asm.check("f32_avx512", SIZES, loops)
    if spills is None:
        assert problems == ["f32_avx512: scores: no loop of 2 found"]
    else:
        assert len(problems) == spills
        assert loops[0].stack_loads + loops[0].stack_stores == spills


@pytest.mark.parametrize(
    "access, spills",
    [
        ("ldr\tq3, [x1, #64]", 0),
        ("ldp\ts3, s4, [sp, #64]", 0),  # not a whole register
        ("ldr\tq3, [sp, #64]", 1),
        ("stp\tq5, q2, [sp, #80]", 1),
        ("st1\t{v3.4s}, [sp]", 1),
        ("ldr\tq3, [x29, #64]", 0),  # no frame pointer
        ("bl\t100 <memcpy>", None),
    ],
)
def test_spills_of_a_tile_on_arm64(access, spills):
    lines = ["fmla\tv3.4s, v2.4s, v1.s[0]", "fmla\tv4.4s, v2.4s, v1.4s", access]
    loops = asm.hot_loops(listing(*lines, jump(0, "b.ne"), "ret"), NEON)
    problems = asm.check("f32_neon", SIZES, loops)
    assert len(problems) == (1 if spills is None else spills)


@pytest.mark.parametrize("back", ["b.ne\t", "cbnz\tx3, ", "tbz\tw3, #4, ", "b\t"])
def test_jumps_on_arm64(back):
    jumps = f"{back}1 <score_product+0x1>"
    assert loops_of("nop", "nop", jumps, "ret") == [[1, 2]]


def test_frame_pointer():
    fma = "vfmadd231pd 0x40(%rbp),%zmm2,%zmm0"
    text = listing("mov    %rsp,%rbp", fma, fma, jump(1), "ret")
    assert len(asm.check("f64_avx512", SIZES, asm.hot_loops(text, AVX512))) == 1


def test_an_exp_may_load_constants_but_not_store():
    lines = ["vfmadd213ps 0x40(%rsp),%ymm2,%ymm0", "vpslld $0x17,%ymm1,%ymm1", jump(0), "ret"]
    for store, problems in ((), 0), (("vmovaps %ymm0,0x40(%rsp)",), 1):
        text = listing(*store, *lines, function="softmax_step")
        loops = asm.hot_loops(text, AVX2)
        assert len(asm.check("f32_avx2", {"softmax": 1}, loops)) == problems


def test_no_loops_no_pass():
    assert asm.check("f32_avx512", SIZES, asm.hot_loops(listing("ret"), AVX512))


@pytest.mark.parametrize("isa, tile", [("avx512", 24), ("avx2", 12), ("neon", 24), ("generic", 8)])
def test_full_sizes_are_those_of_the_sources(isa, tile):
    assert asm.full_sizes(f"f32_{isa}")["scores"] == tile
