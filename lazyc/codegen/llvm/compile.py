"""From LLVM IR text to object code, for this machine or a lesser one."""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm

from lazyc.codegen.base import CodegenError
from lazyc.codegen.target import Target


@cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def new_machine(target: Target) -> llvm.TargetMachine:
    """LLVM's code generator for a target (position-independent code), for an owner of its own."""
    _initialize()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small"
    )


_machine = cache(new_machine)


# A word of writable data in each object file: llvmlite's memory manager has objects share pages only where each has
# all three kinds of sections, and else takes three pages and three memory maps for each (see ``loader``).
_WRITABLE = """
@lazyc_writable = internal global i64 0
@llvm.used = appending global [1 x ptr] [ptr @lazyc_writable], section "llvm.metadata"
"""


def _optimized(text: str, target: Target) -> llvm.ModuleRef:
    machine = _machine(target)
    context = llvm.create_context()
    try:
        module = llvm.parse_assembly(text, context)
        module.verify()
    except RuntimeError as error:
        raise CodegenError(f"generated LLVM IR is invalid: {error}") from error
    # The text is vector code with loop-invariant code hoisted already: what is left is to inline the
    # math, turn stack slots into registers and tidy up. LLVM's own O2 takes ten times as long.
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    return module


def compile_text(text: str, target: Target) -> bytes:
    """The object file of a module. Raises CodegenError when LLVM rejects the text."""
    return _machine(target).emit_object(_optimized(text + _WRITABLE, target))


def assembly(text: str, target: Target) -> str:
    """The machine code of a module as text, for tests and for people."""
    return _machine(target).emit_assembly(_optimized(text, target))
