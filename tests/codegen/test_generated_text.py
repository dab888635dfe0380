"""The generated text: golden files, determinism, and what the machine code of a target may contain.

After a wanted change, write the golden files anew with `python -m tests.codegen.test_generated_text`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm import Loader, assembly, compile_text, generate
from lazyc.codegen.llvm import loader as loader_module
from lazyc.codegen.llvm.loader import undefined_symbols
from lazyc.codegen.target import Target
from lazyc.errors import CodeNotLoaded
from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, Load, LoopNest
from lazyc.ir.types import DType
from tests.codegen.harness import Body, pointwise, row_major
from tests.codegen.test_reductions import layernorm_nest, reduce_nest, softmax_nest

_EXPECTED = Path(__file__).parent / "expected"
_MAPS = Path("/proc/self/maps")
_MACHINE = Target("avx512", "x86_64-unknown-linux-gnu", "x86-64", "+avx512f", 64, (32768, 1 << 20))


def bias_nest() -> LoopNest:
    """out[i, j] = relu(x[i, j] + bias[i]): a broadcast scalar stays outside of the vector loop."""
    i, j = Axis("i", 6), Axis("j", 100)
    body = Body()
    x = body.add(Load, DType.F32, 0, row_major((i, j)))
    bias = body.add(Load, DType.F32, 1, axis_index(i))
    total = body.add(Compute, DType.F32, "add", (x, bias))
    body.store(2, row_major((i, j)), body.add(Compute, DType.F32, "maximum", (total, bias)))
    buffers = tuple(BufferParam(DType.F32, r, n) for r, n in (("in", 600), ("in", 6), ("out", 600)))
    return LoopNest((i, j), (body.stage(),), buffers)  # type: ignore[arg-type]


GOLDEN = {
    "bias": bias_nest(),
    "row_sum": reduce_nest("sum", DType.F32, 4, 80, True, "inner"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    assert generate(GOLDEN[name], name, _MACHINE).text == (_EXPECTED / f"{name}.ll").read_text()


_PRINT_ALL = """
from tests.codegen.test_generated_text import nests, _MACHINE
from lazyc.codegen.llvm import generate
print("".join(generate(n, "k", _MACHINE).text for n in nests()))
"""


def nests() -> list[LoopNest]:
    return [
        *GOLDEN.values(),
        softmax_nest(7, 100, "inner"),
        layernorm_nest(5, 70, "outer", True),
        pointwise("mod", [torch.int64] * 2, torch.int64, 50),
    ]


def test_generation_is_deterministic() -> None:
    """The same text again, and in processes whose hashes differ."""
    here = "".join(generate(n, "k", _MACHINE).text for n in nests())
    assert here == "".join(generate(n, "k", _MACHINE).text for n in nests())
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", _PRINT_ALL],
            cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert there.stdout.rstrip("\n") == here.rstrip("\n")


_REGISTERS = {"avx512": ("zmm",), "avx2": ("ymm",), "baseline": ("xmm",)}
_FORBIDDEN = {"avx512": (), "avx2": ("zmm", "%k1"), "baseline": ("zmm", "ymm", "%k1")}


def test_machine_code_keeps_to_its_target(target: Target) -> None:
    if not target.is_x86:
        return
    for nest in nests():
        text = assembly(generate(nest, "k", target).text, target)
        assert all(f"%{name}" in text or name in text for name in _REGISTERS[target.name])
        assert not any(name in text for name in _FORBIDDEN[target.name])
    if target.name == "baseline":  # SSE2: no instruction with a VEX prefix
        assert not re.search(r"^\s+v[a-z]+ps\b", text, re.MULTILINE)


def test_a_plain_loop_is_tight(target: Target) -> None:
    """Two loads, an addition and a store a vector; no mask, no address arithmetic but the counter."""
    if target.name != "avx512":
        return
    text = assembly(
        generate(pointwise("add", [torch.float32] * 2, torch.float32, 1 << 16), "k", target).text,
        target,
    )
    loop = re.search(r"^(\.L\w+):\n((?:(?!^\.L).*\n)*?)\s+jl\s+\1\n", text, re.MULTILINE)
    assert loop is not None
    assert len(loop[2].splitlines()) <= 8
    assert "{%k" not in loop[2]


def test_half_types_need_no_library(target: Target) -> None:
    """Conversions of f16 are instructions or integer code, never a call that may not resolve."""
    for source, to in ((torch.float16, torch.float32), (torch.float32, torch.float16)):
        code = generate(pointwise("cast", [source], to, 100), "k", target)
        assert not list(undefined_symbols(compile_text(code.text, target)))


def test_loader_names_a_missing_function(target: Target) -> None:
    text = "declare void @no_such_function()\ndefine void @f() {\n  call void @no_such_function()\n  ret void\n}\n"
    with pytest.raises(CodegenError, match="no_such_function"):
        Loader(target).add([compile_text(text, target)])


def test_loader_refuses_what_is_no_object_file(target: Target) -> None:
    with pytest.raises(CodegenError, match="ELF"):
        Loader(target).add([b"not an object file"])
    with pytest.raises(CodegenError, match="defines 'nothing'"):
        Loader(target).address("nothing")


def test_invalid_text_is_an_error(target: Target) -> None:
    with pytest.raises(CodegenError, match="invalid"):
        compile_text("define void @f() { ret i32 0 }", target)


if __name__ == "__main__":
    for _name, _nest in GOLDEN.items():
        (_EXPECTED / f"{_name}.ll").write_text(generate(_nest, _name, _MACHINE).text)


def test_loader_leaves_memory_maps_to_the_process(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of the Linux kernel LLVM would end the process, or leave code unexecutable."""
    limit = tmp_path / "max_map_count"
    limit.write_text("100\n")
    monkeypatch.setattr(loader_module, "_MAX_MAPS", limit)
    monkeypatch.setattr(loader_module, "_memory_maps", loader_module._MemoryMaps())
    code = compile_text("define void @f() {\n  ret void\n}\n", target)
    loader = Loader(target)
    for _ in range(2):
        with pytest.raises(CodeNotLoaded, match="of 100 memory maps"):
            loader.add([code])
    limit.write_text("65530\n")
    loader.add([code])
    assert loader.address("f")


NEAR_THE_LIMIT = """
import ctypes, mmap
from pathlib import Path
from lazyc.codegen.llvm.compile import compile_text
from lazyc.codegen.llvm.loader import Loader
from lazyc.codegen.target import host_target
from lazyc.errors import CodeNotLoaded

target = host_target()
code = compile_text("define void @f() {\\n  ret void\\n}\\n", target)
loaders = [Loader(target) for _ in range(16)]
for loader in loaders:
    loader.add([code])
limit = int(Path("/proc/sys/vm/max_map_count").read_text())
if limit > 200_000:
    print("refused, by a limit too high to be met here")
    raise SystemExit
used = Path("/proc/self/maps").read_bytes().count(b"\\n")
count = limit - used - 2100
block = mmap.mmap(-1, count * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(block))
libc = ctypes.CDLL(None)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for k in range(0, count, 2):  # every second page a map of its own
    libc.mprotect(start + k * mmap.PAGESIZE, mmap.PAGESIZE, mmap.PROT_READ)
for k in range(2000):
    try:
        for loader in loaders:
            loader.add([compile_text(f"define void @f{k}() {{\\n  ret void\\n}}\\n", target)])
            ctypes.CFUNCTYPE(None)(loader.address(f"f{k}"))()
    except CodeNotLoaded as error:
        print("refused", error)
        break
"""


def test_loaders_stop_before_the_kernels_limit() -> None:
    """Several Loaders in a process that has nearly all the memory maps that it may have."""
    done = subprocess.run(
        [sys.executable, "-c", NEAR_THE_LIMIT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused")


FAR_APART = """
import ctypes
from lazyc.codegen.llvm.compile import compile_text
from lazyc.codegen.llvm.loader import Loader
from lazyc.codegen.target import host_target

target = host_target()
code = compile_text('''
define void @f(ptr %x, ptr %y) {
  %v = load <4 x float>, ptr %x, align 4
  %w = fmul <4 x float> %v, <float 2.0, float 3.0, float 5.0, float 7.0>
  store <4 x float> %w, ptr %y, align 4
  ret void
}
''', target)
loader = Loader(target)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PRIVATE_ANONYMOUS_NORESERVE = 0x4022
PAGE, FAR = 4096, 4 << 30

def reserve(nbytes):
    address = libc.mmap(None, nbytes, 0, PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    assert address != ctypes.c_void_p(-1).value
    return address

gap = reserve(FAR)
while reserve(PAGE) > gap:  # no free page above it
    pass
libc.munmap(gap + FAR - PAGE, PAGE)  # one: the next lies below the gap
loader.add([code])
x, y = (ctypes.c_float * 4)(1, 1, 1, 1), (ctypes.c_float * 4)()
ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(loader.address("f"))(
    ctypes.addressof(x), ctypes.addressof(y)
)
print(list(y))
"""


def test_code_lies_near_its_constants() -> None:
    """Where the next free page is gigabytes away: code reaches 2 GiB."""
    done = subprocess.run(
        [sys.executable, "-c", FAR_APART], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[2.0, 3.0, 5.0, 7.0]\n"


def test_objects_loaded_together_share_pages(target: Target) -> None:
    def maps_of(names: list[str], together: bool) -> int:
        loader = Loader(target)
        before = _MAPS.read_text().count("\n")
        texts = [f"define void @{name}() {{\n  ret void\n}}\n" for name in names]
        objects = [compile_text(text, target) for text in texts]
        for part in [objects] if together else [[o] for o in objects]:
            loader.add(part)
        assert all(loader.address(name) for name in names)
        loaders.append(loader)
        return _MAPS.read_text().count("\n") - before

    loaders: list[Loader] = []
    names = [f"f{k}" for k in range(64)]
    assert maps_of(names, together=True) * 8 < maps_of(names, together=False)
