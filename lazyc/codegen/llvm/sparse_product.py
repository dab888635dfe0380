"""What the kernels of products with sparse weights share: arguments, module, cost."""

from __future__ import annotations

from lazyc.codegen.base import KernelCode, KernelRef
from lazyc.codegen.llvm.emitter import Emitter
from lazyc.codegen.target import Target
from lazyc.ir.sparse import SparseProduct

_SIGNATURE = "ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error"
_GRAIN_CYCLES = 30_000  # about 10 us


def open_kernel(target: Target) -> Emitter:
    """An Emitter in the body of a kernel, where ``%a``, ``%w`` and ``%c`` are the product's buffers and
    ``%begin`` to ``%end`` its work items."""
    b = Emitter(target)
    for k, name in enumerate(("a", "w", "c")):
        b.void(f"%{name}.at = getelementptr ptr, ptr %buffers, i64 {k}")
        b.void(f"%{name} = load ptr, ptr %{name}.at")
    return b


def close_kernel(b: Emitter, product: SparseProduct, symbol: str, item_cycles: float) -> KernelCode:
    """The kernel of which ``b`` has the body; ``item_cycles``: about what a work item takes."""
    b.void("ret void")
    lines = [
        f'target triple = "{b.target.triple}"',
        f"define void @{symbol}({_SIGNATURE}) nounwind {{",
        "entry:",
        *b.allocas,
        *b.scopes[0].lines,
        "}",
        *b.definitions.values(),
        *b.declares.values(),
    ]
    ref = KernelRef(symbol, product.items, max(1, int(_GRAIN_CYCLES / item_cycles)))
    return KernelCode(ref, "\n".join(lines) + "\n")
