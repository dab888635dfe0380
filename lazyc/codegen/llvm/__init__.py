"""The CPU code generator: LoopNests to LLVM IR text, object code and loaded functions."""

from lazyc.codegen.llvm.compile import assembly, compile_text
from lazyc.codegen.llvm.generator import LlvmGenerator
from lazyc.codegen.llvm.kernel import generate
from lazyc.codegen.llvm.loader import Loader
from lazyc.codegen.llvm.pointwise import has_code

__all__ = ["LlvmGenerator", "Loader", "assembly", "compile_text", "generate", "has_code"]
