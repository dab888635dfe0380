"""What every code generator hands over: the source of one kernel, how to split its work, loaded code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from lazyc.codegen.product_costs import ProductCosts
from lazyc.errors import LazycError
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelSource
from lazyc.ir.sparse import Sparsity
from lazyc.ir.tiled_product import Tile
from lazyc.ir.types import Dim, DType


class CodegenError(LazycError):
    """A code generator met something that it has no code for; the message names it."""


@dataclass(frozen=True, slots=True)
class KernelRef:
    """What a Program needs to know of a kernel of the CPU, without its code.

    ``items``, an expression over the nest's symbols, is into how many work items the kernel is cut.
    They are independent: they may run in any order and on any thread. How the outer axes are cut into
    items is the generator's affair, but for the first ``ordered`` of them: items go along these point by
    point, the last of them fastest, with as many items at each point. ``grain`` is the least number of
    items worth a thread of its own, by a cost estimate.
    """

    symbol: str
    items: Dim
    grain: int
    ordered: int = 0


@dataclass(frozen=True, slots=True)
class LaunchRef:
    """What a Program needs to know of a kernel that is launched on a grid, without its code.

    The grid has ``programs`` programs of ``warps`` warps (of 32 threads); each runs ``points`` outer
    points. ``stages``: iterations of a loop whose loads are in flight at one time. The ``sizes`` are
    arguments of the kernel; they and ``programs`` are expressions over the nest's symbols.
    ``alternatives``: how many other tiles or blocks there are to try for it.
    """

    symbol: str
    programs: Dim
    points: int
    sizes: tuple[Dim, ...]
    warps: int
    stages: int = 2
    alternatives: int = 0


Ref: TypeAlias = KernelRef | LaunchRef


@dataclass(frozen=True, slots=True)
class Products:
    """The products of tiles in a kernel, for who judges its machine code (``lazyc check-kernels``).

    ``kind``: "contraction", "2:4 contraction" or "block-sparse contraction"
    (of which one factor is compressed), "attention", or "sum of scores". A tile is
    ``rows`` by ``columns`` by ``depth`` elements of ``dtype``. ``aligned``: factors can be loaded by the
    widest vectors that there are. ``others``: with them things are loaded that are no factors, such as
    masks, by whatever width. ``load_bits``: of the narrowest vectors that aligned factors may be loaded by.
    """

    kind: str
    dtype: DType
    rows: int
    columns: int
    depth: int
    aligned: bool
    others: bool = False
    load_bits: int = 128


@dataclass(frozen=True, slots=True)
class KernelCode:
    """The source text of one kernel.

    On the CPU, the compiled kernel is a C function
    ``void symbol(void** buffers, int64_t* sizes, int64_t begin, int64_t end, int64_t* error)``:

    * it runs the work items ``begin <= item < end``;
    * ``buffers`` holds one address for each param of the nest that is not scratch, in order;
    * ``sizes`` holds the values of the nest's symbols, in order;
    * ``error`` is OR-ed (atomically) with the ``ERROR_*`` bits of ``ir.loops``.

    A kernel that is launched is a function of Triton's ``symbol`` of

    * one pointer for each param of the nest, in order, to elements of type ``params``; for a scratch param
      memory of its ``numel`` elements for each of ``points * programs`` outer points;
    * the ``sizes``, as 64-bit integers;
    * a pointer to the error word (i32), OR-ed as above. On a GPU it is null: a kernel that has an error
      to report faults, and CUDA tells of it as of an assertion of eager's kernels that fails.

    ``products``: what it multiplies on tiles, if anything. ``is_cuda``: the text is CUDA C++,
    whose kernel of the same arguments wants ``shared_bytes`` of dynamic shared memory for a block.
    ``choice``: its tiles or blocks in words.
    """

    ref: Ref
    text: str
    params: tuple[DType, ...] = ()
    products: Products | None = None
    is_cuda: bool = False
    shared_bytes: int = 0
    choice: str = ""


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """Compiled code in this process: its address, and how its work splits (see ``KernelRef``)."""

    address: int
    items: Dim
    grain: int
    ordered: int = 0


# (programs, what the pointers point to, sizes, error word)
Launch: TypeAlias = Callable[[int, Sequence[torch.Tensor], Sequence[int], torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class LaunchedKernel:
    """A kernel that Python launches; fields as in ``LaunchRef``."""

    launch: Launch
    programs: Dim
    points: int
    sizes: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class DeviceKernel:
    """A kernel in the memory of a GPU, which the native driver launches.

    ``launcher``: address of CUDA's ``cuLaunchKernel``; ``function``: the kernel's ``CUfunction``;
    ``threads`` of a block, and bytes of its dynamic shared memory. The rest as in ``LaunchRef``.
    """

    launcher: int
    function: int
    threads: int
    shared_bytes: int
    programs: Dim
    points: int
    sizes: tuple[Dim, ...]
    symbol: str = ""
    alternatives: int = 0


Kernel: TypeAlias = LoadedKernel | LaunchedKernel | DeviceKernel


class Generator(Protocol):
    """Makes the kernels of one target: text, object code, loaded code.

    ``key`` is everything that the code depends on, as text for the cache key; ``keeps_code`` whether
    object code may be loaded in another process; ``suffix`` names files with its text;
    ``has_products`` whether kernels may hold matrix products (``passes.products_as_loops``);
    ``sparse_products`` the kinds of weights for whose products it has kernels (SparseProduct) that
    are worth their while;
    ``product_tile`` the tile of its kernels for products with weights that are kept packed, None where
    it has none, and ``prefers_library`` whether a library is likely to be faster than these;
    ``sees_edits`` whether a change of a weight that advances no version counter is noticed there, because its
    memory can be looked at before each call;
    ``product_costs`` what products cost there (a part of the key, as it decides what is padded).
    """

    @property
    def key(self) -> str: ...

    @property
    def keeps_code(self) -> bool: ...

    @property
    def has_products(self) -> bool: ...

    @property
    def sparse_products(self) -> frozenset[tuple[Sparsity, DType]]: ...

    @property
    def product_tile(self) -> Tile | None: ...

    @property
    def prefers_library(self) -> bool: ...

    @property
    def sees_edits(self) -> bool: ...

    @property
    def product_costs(self) -> ProductCosts: ...

    @property
    def suffix(self) -> str: ...

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        """The source of a kernel. Raises CodegenError for what it has no code for."""
        ...

    def compile(self, code: KernelCode) -> bytes:
        """Object code."""
        ...

    def load(self, objects: Mapping[Ref, bytes]) -> Mapping[str, Kernel]:
        """Loads object code of ``compile``, all or none of it; the kernels by symbol."""
        ...


class TunableGenerator(Generator, Protocol):
    """A Generator whose kernels can be had with other tiles or blocks, for a device to time them."""

    def alternatives(self, nest: LoopNest, symbol: str) -> Sequence[KernelCode]:
        """The kernel of a nest by other choices, the likely fastest first, with symbols of their own."""
        ...

    def compile_alternative(self, code: KernelCode) -> bytes | None:
        """Object code as of ``compile``; None for what is not worth a try, such as code that spills registers.
        Raises whatever the compiler does."""
        ...
