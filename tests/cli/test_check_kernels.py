"""``lazyc check-kernels``: what it finds, and what it says of what it cannot check."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.gpu_models import MODELS
from lazyc.cli.main import app
from lazyc.codegen.base import KernelCode, LaunchRef, Products
from lazyc.codegen.cuda import nvrtc
from lazyc.codegen.gpu_target import gpu_target
from lazyc.config import Config
from lazyc.errors import ConfigError
from lazyc.ir.types import DType
from lazyc.kernel_check import (
    CheckedModel,
    Collected,
    Facts,
    check_kernels,
    collect_kernels,
    problems,
)

MODEL = """
import torch
import lazyc
def mlp():
    model = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.GELU())
    return model.bfloat16(), (torch.randn(256, 128).bfloat16(),)
class Attention(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
def attention():
    return Attention(), tuple(
        torch.randn(2, 2, 128, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
class Int8Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randint(-128, 128, (256, 512), dtype=torch.int8))
        lazyc.sparse.prune_24(self.weight)
    def forward(self, x):
        return torch._int_mm(x, self.weight.t()).float() / 512
def sparse():
    return Int8Linear(), (torch.randint(-128, 128, (64, 512), dtype=torch.int8),)
def blocks():
    model = torch.nn.Linear(512, 256).bfloat16().eval()
    lazyc.sparse.to_block_sparse(model, (32, 32), 0.75)
    return model, (torch.randn(64, 512).bfloat16(),)
def wrong():
    return torch.nn.Linear(2, 2)
MODELS = {"mlp": mlp, "attention": attention}
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LAZYC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "models_to_check.py"
    path.write_text(MODEL)
    return str(path)


def test_a_model_of_a_script(script: str) -> None:
    """Inference and training of a layer, and of attention, on three architectures; found again on
    disk."""
    for _ in range(2):
        result = CliRunner().invoke(app, ["check-kernels", script, "--jobs", "1"])
        assert result.exit_code == 0, result.output
        for kind, count in (("contraction bf16", 3), ("attention bf16", 4)):
            rows = [line.split("│") for line in result.output.splitlines() if kind in line]
            assert [int(row[2]) for row in rows] == [count] * 3, result.output
            cores = {row[1].strip(): row[-2] for row in rows}
            assert cores.keys() == {"sm_80", "sm_90", "sm_100"}
            for name, text in cores.items():
                assert f"{count} {gpu_target(name).tensor_cores}" in text
        assert result.output.rstrip().endswith("compiled, 0 with problems")
    assert len(list((Path(os.environ["LAZYC_CACHE_DIR"]) / "v1" / "checks").rglob("*"))) > 6


@pytest.mark.skipif(nvrtc.version() is None, reason="NVRTC is not installed")
def test_a_sparse_kernel_beside_the_dense_one(script: str) -> None:
    args = ["check-kernels", f"{script}:sparse", "--no-training", "--jobs", "1"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    for kind, core in (("2:4 contraction i8", "1 mma.sp"), (" contraction i8", "mma")):
        rows = [line for line in result.output.splitlines() if kind in line]
        assert len(rows) >= 3 and all(core in row for row in rows), result.output


def test_block_sparse_weights_are_checked(script: str) -> None:
    args = ["check-kernels", f"{script}:blocks", "--arch", "sm_90", "--no-training", "--jobs", "1"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    (row,) = (line for line in result.output.splitlines() if "block-sparse contraction" in line)
    assert "1 mma" in row


def test_a_row_for_each_kernel(script: str) -> None:
    args = ["check-kernels", f"{script}:mlp", "--arch", "sm_90", "--no-training", "--all"]
    result = CliRunner().invoke(app, [*args, "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert result.output.count("contraction bf16") == 1 and "aten.addmm" in result.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_of_mine", "cannot import"),
        ("{}:nothing", "no function 'nothing'"),
        ("{}:wrong", "must return a model and its inputs"),
    ],
)
def test_what_cannot_be_checked_is_named(script: str, name: str, message: str) -> None:
    result = CliRunner().invoke(app, ["check-kernels", name.format(script)])
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)


GOOD = Facts(128, 0, 65536, (32, 128), (128,), ("wgmma",))
PRODUCTS = Products("contraction", DType.BF16, 128, 128, 64, True)


@pytest.mark.parametrize(
    ("change", "products", "found"),
    [
        ({}, PRODUCTS, ""),
        ({"spilled_bytes": 8}, PRODUCTS, "spilled"),
        ({"spilled_bytes": 8}, None, "spilled"),
        ({"shared_bytes": 1 << 20}, None, "shared memory"),
        ({"tensor_cores": ()}, PRODUCTS, "no wgmma instruction"),
        ({"tensor_cores": ("mma",)}, PRODUCTS, "no wgmma instruction"),
        ({"tensor_cores": ("mma",)}, replace(PRODUCTS, rows=32), ""),
        ({"tensor_cores": ()}, replace(PRODUCTS, dtype=DType.F32), ""),
        ({"tensor_cores": ("tcgen05",)}, replace(PRODUCTS, dtype=DType.F32), "cut"),
        ({"copy_bits": (32, 128)}, PRODUCTS, "loaded by 32, 128 bits"),
        ({"copy_bits": (32, 128)}, replace(PRODUCTS, aligned=False), ""),
        ({"copy_bits": (32, 128)}, replace(PRODUCTS, others=True), ""),
        ({"copy_bits": (32, 64)}, replace(PRODUCTS, others=True), "loaded by 32, 64 bits"),
        ({"copy_bits": (), "load_bits": ()}, PRODUCTS, "loaded by"),
        ({"copy_bits": (64, 128)}, replace(PRODUCTS, load_bits=64), ""),
        ({"copy_bits": (32, 128)}, replace(PRODUCTS, load_bits=64), "loaded by 32, 128 bits"),
    ],
)
def test_what_is_a_problem(change: dict, products: Products | None, found: str) -> None:
    code = KernelCode(LaunchRef("k", 1, 1, (), 8), "", (), products)
    text = "; ".join(problems(code, replace(GOOD, **change), gpu_target("sm_90")))
    assert found in text and bool(found) == bool(text)


TARGETS = [gpu_target(name) for name in ("sm_80", "sm_90", "sm_100")]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_of_a_model(name: str, train: bool) -> None:
    """Of each of the twelve models, for three architectures. Tests find on disk what others have checked."""
    module, inputs = MODELS[name]()
    collected = Collected()
    collect_kernels(CheckedModel(name, module, inputs), TARGETS, train, collected)
    assert not collected.eager, "what is left to eager has no kernel to check"
    found = collected.kernels.values()
    kinds = {f.kind for f in found}
    assert {"contraction", "loop"} <= kinds
    assert ("attention" in kinds) is (name not in ("resnet", "convnext"))
    checked = check_kernels(collected.kernels, TARGETS, Config.from_env(), jobs=1)
    assert len(checked) == sum(len(f.targets) for f in found)
    assert {c.target.name for c in checked} == {t.name for t in TARGETS}
    rows = [(c.target.name, c.kernel.comment, c.problems) for c in checked if c.problems]
    assert not rows


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_twelve_models() -> None:
    """The command that does the same in one go."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "lazyc.cli.main", "check-kernels", "bench.gpu_models"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=3500)
    assert done.returncode == 0, done.stdout
