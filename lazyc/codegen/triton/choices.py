"""Which tiles or blocks a kernel may have: those of the rules, and others that may be faster.

``choices`` makes a short list of them: the cost model (``cost_model.py``) ranks variants of what the rules
say. The first is what a kernel gets where nothing is measured. That is the rules' choice unless the model
clearly says otherwise, since it is rough and the rules' choices are checked by machine code. The others
are for a GPU to time (``runtime/tuning.py``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

from lazyc.codegen.base import CodegenError
from lazyc.codegen.gpu_target import Float32Products, GpuTarget
from lazyc.codegen.triton.attention import Attention
from lazyc.codegen.triton.blocks import Blocks, choose_blocks, power_of_two
from lazyc.codegen.triton.code import VECTOR_BYTES
from lazyc.codegen.triton.contraction import Contraction
from lazyc.codegen.triton.cost_model import Work, seconds
from lazyc.codegen.triton.live import words_at_once
from lazyc.codegen.triton.score_sums import ScoreSums
from lazyc.codegen.triton.tile_rules import (
    attention_tiles,
    contraction_tiles,
    score_sums_tiles,
    tile_depth,
)
from lazyc.codegen.triton.tiles import EXACT_ROWS, LEAST, WIDEST, Tiles, are_aligned, tile_size
from lazyc.ir import loops as L
from lazyc.ir.index import Axis
from lazyc.ir.types import Dim, DType, numel

Choice: TypeAlias = Tiles | Blocks
Form: TypeAlias = Attention | ScoreSums | Contraction | L.LoopNest  # what a nest is to generators

_MOST = 6  # variants of a choice: each is compiled, which takes a second or more
_OF_A_SHAPE = 2  # of them with as many rows and columns, or points
_CLEARLY = 4.0  # times as fast as the rules' choice is what the model prefers in spite of them
_GUESS = 1024  # for a size that is a symbol
_FIXED_REGISTERS = 40  # of a thread: addresses, masks, and what the compiler needs
_MOST_ELEMENTS = 64  # of a block of a loop, for a thread
_MOST_WARPS = 16
_SHAPES = (
    (256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (64, 32), (32, 64), (32, 32),
)  # fmt: skip


def form_of(nest: L.LoopNest) -> Form:
    """What a nest is: sums of scores, an attention, a contraction, or any other."""
    return ScoreSums.find(nest) or Attention.find(nest) or Contraction.find(nest) or nest


def rule_of(form: Form, float32: Float32Products = "ieee") -> Choice:
    """The choice of the rules, which know nothing of the target but how it multiplies f32."""
    match form:
        case Attention():
            return attention_tiles(form, float32)
        case ScoreSums():
            return score_sums_tiles(form, float32)
        case Contraction():
            return contraction_tiles(form, float32)
        case _:
            return choose_blocks(form)


def choices(form: Form, target: GpuTarget) -> tuple[Choice, ...]:
    """What a kernel may have, the likely fastest first behind the default; all fit a multiprocessor, as far as
    the model knows. Raises CodegenError where no tile does; blocks are kept then, as they only spill."""
    rule = rule_of(form, target.float32)
    variants, work = _ways(form, rule, target)
    ranked: list[tuple[float, Choice]] = []
    for variant in dict.fromkeys(variants):
        spent = seconds(work(variant), target) if variant != rule else None
        if spent is not None:
            ranked.append((spent, variant))
    ranked.sort(key=lambda pair: pair[0])  # stable: of equals that which was named first
    of_rule = seconds(work(rule), target)
    kept = _diverse(choice for _, choice in ranked)
    if of_rule is None and kept:
        return tuple(kept)
    if of_rule is None and isinstance(rule, Tiles):
        need = work(rule)
        raise CodegenError(
            f"no tile of a {type(form).__name__.lower()} fits {target.name}: {rule} needs "
            f"{need.shared_bytes} of {target.shared_bytes} bytes of shared memory and "
            f"{need.registers} of {target.thread_registers} registers of a thread"
        )
    if ranked and of_rule is not None and of_rule > _CLEARLY * ranked[0][0]:
        best = ranked[0][1]
        return (best, rule, *(c for c in kept if c != best))
    return (rule, *kept)


def _diverse(ranked: Iterable[Choice]) -> list[Choice]:
    """The first few, not all of them variants of one shape: those are much alike."""
    kept: list[Choice] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    for choice in ranked:
        shape = (choice.rows, choice.columns) if isinstance(choice, Tiles) else (choice.points,)
        if len(kept) < _MOST and shapes[shape] < _OF_A_SHAPE:
            shapes[shape] += 1
            kept.append(choice)
    return kept


def _ways(
    form: Form, rule: Choice, target: GpuTarget
) -> tuple[Iterator[Choice], Callable[[Any], Work]]:
    """Variants of a choice, and what the kernel does by each."""
    match form, rule:
        case Contraction(), Tiles():
            return _of_contraction(form, rule, target), _contraction_work(form, target)
        case Attention(), Tiles():
            return _of_attention(form, rule), _attention_work(form, target)
        case ScoreSums(), Tiles():
            return _of_score_sums(form, rule), _score_sums_work(form, target)
        case L.LoopNest(), Blocks():
            return _of_loops(form, rule), _loop_work(form, target)
    raise AssertionError(f"{type(rule).__name__} for {type(form).__name__}")


# --- contractions ---------------------------------------------------------------------------------


def _of_contraction(c: Contraction, rule: Tiles, target: GpuTarget) -> Iterator[Tiles]:
    """Other shapes and depths, each with other warps and stages. Exact products keep to tiles no larger than
    those of the rules, which were made for their registers and stay below EXACT_ROWS where they must; these hold
    factors that were computed, and would spill them in deeper tiles."""
    exact = c.narrow is None and target.float32 == "ieee"
    deepest = rule.depth if exact and rule.rows < EXACT_ROWS else 2 * rule.depth
    sides = [(rule.rows, rule.columns)]
    sides += ((tile_size(c.rows, y), tile_size(c.columns, x)) for y, x in _SHAPES)
    depths = [
        rule.depth,
        *(tile_depth(c, max(d, LEAST)) for d in (deepest, rule.depth // 2)),
    ]
    for (rows, columns), depth in itertools.product(dict.fromkeys(sides), dict.fromkeys(depths)):
        if exact and (rows > rule.rows or rows * columns > rule.rows * rule.columns):
            continue
        for warps, stages in itertools.product((4, 8), (3, 4, 2)):
            yield Tiles(rows, columns, depth, warps, stages)


def _contraction_work(c: Contraction, target: GpuTarget) -> Callable[[Tiles], Work]:
    batch, rows, columns, depth = (
        _known(numel(a.size for a in axes)) for axes in (c.batch, c.rows, c.columns, c.loop.axes)
    )
    dtype = c.narrow or DType.F32
    size = dtype.itemsize
    around = sum(len(s.body) for s in c.nest.stages) - len(c.loop.body)
    aligned = are_aligned(c.loop.body, (c.left, c.right), c.loop.axes)
    memory = _memory_bytes(c.nest)

    def work(t: Tiles) -> Work:
        threads = t.warps * target.warp
        steps = -(-depth // t.depth)
        factors = (t.rows + t.columns) * t.depth
        sums = t.rows * t.columns // threads
        own = sums // 4 if c.narrow or target.float32 == "tf32" else factors // threads
        return Work(
            programs=batch * -(-rows // t.rows) * -(-columns // t.columns),
            warps=t.warps,
            flops=2.0 * t.rows * t.columns * steps * t.depth,
            flops_per_second=_flops(dtype, t, target),
            nbytes=factors * steps * size + t.rows * t.columns * 4,
            load_bytes=VECTOR_BYTES if aligned else size,
            waits=1 + steps / t.stages,
            shared_bytes=factors * size * t.stages,
            registers=_FIXED_REGISTERS + sums + own + min(around, sums),
            memory_bytes=memory,
        )

    return work


def _flops(dtype: DType, t: Tiles, target: GpuTarget) -> float:
    """Operations a second. The instructions of four warps want tiles of 64 rows; those of a warp have about
    half their rate."""
    flops = target.product_costs.flops(dtype)
    assert flops is not None
    if dtype is DType.F32:
        return flops
    whole = target.tensor_cores == "mma" or (t.rows >= 64 and t.warps >= 4)
    return flops if whole else flops / 2


# --- attention ------------------------------------------------------------------------------------


def _of_attention(a: Attention, rule: Tiles) -> Iterator[Tiles]:
    """Other tiles of rows by keys, warps and stages."""
    ways = _of_dots(a.half is None, (a.rows, rule.rows), (a.loop.axes, rule.depth))
    for rows, keys, warps, stages in ways:
        yield Tiles(rows, rule.columns, keys, warps, stages)


def _of_dots(
    is_single: bool, down: tuple[Sequence[Axis], int], across: tuple[Sequence[Axis], int]
) -> Iterator[tuple[int, int, int, int]]:
    """Other sides of tiles of dots than those of the rules, which are given with their axes, warps and stages; in
    single precision none larger than the rules', which were made for its registers."""
    (rows, most_rows), (columns, most_columns) = down, across
    shapes = ((most_rows, most_columns), *_SHAPES, (32, 16), (16, 32), (16, 16))
    sides = ((tile_size(rows, y), tile_size(columns, x)) for y, x in shapes)
    for height, width in dict.fromkeys(sides):
        if is_single and (height > most_rows or width > most_columns):
            continue
        for warps, stages in itertools.product((4, 8), (1,) if is_single else (2, 3, 1)):
            yield height, width, warps, stages


def _attention_work(a: Attention, target: GpuTarget) -> Callable[[Tiles], Work]:
    batch, rows, columns, keys = (
        _known(numel(x.size for x in axes)) for axes in (a.batch, a.rows, a.columns, a.loop.axes)
    )
    dtype = a.half or DType.F32
    size = dtype.itemsize
    dots = [i for i in a.loop.body if isinstance(i, L.Dot)]
    widths = sum(tile_size(d.axes, WIDEST) for d in dots)
    memory = _memory_bytes(a.nest)

    def work(t: Tiles) -> Work:
        steps = -(-keys // t.depth)
        # A tile of scores for each dot, one of results for each sum; the factors of the rows stay.
        inside = t.rows * (t.depth * len(dots) + t.columns * len(a.products))
        across = widths + t.columns * len(a.products)
        stay, moving = t.rows * widths * size, t.depth * across * size
        return Work(
            programs=batch * -(-rows // t.rows) * -(-columns // t.columns),
            warps=t.warps,
            flops=2.0 * t.rows * t.depth * across * steps,
            flops_per_second=_flops(dtype, t, target),
            nbytes=moving * steps + stay + t.rows * t.columns * 4,
            load_bytes=VECTOR_BYTES,
            waits=1 + steps / t.stages,
            shared_bytes=moving * t.stages + stay,
            registers=_FIXED_REGISTERS + inside // (t.warps * target.warp),
            memory_bytes=memory,
        )

    return work


# --- sums of scores -------------------------------------------------------------------------------


def _of_score_sums(s: ScoreSums, rule: Tiles) -> Iterator[Tiles]:
    """Other tiles, warps and stages."""
    ways = _of_dots(s.half is None, (s.rows, rule.rows), (s.columns, rule.columns))
    for rows, columns, warps, stages in ways:
        yield Tiles(rows, columns, rule.depth, warps, stages)


def _score_sums_work(s: ScoreSums, target: GpuTarget) -> Callable[[Tiles], Work]:
    batch, rows, columns, steps = (
        _known(numel(x.size for x in axes)) for axes in (s.batch, s.rows, s.columns, s.loop.axes)
    )
    dtype = s.half or DType.F32
    widths = s.widths()
    memory = _memory_bytes(s.nest)

    def work(t: Tiles) -> Work:
        moving = (t.rows + t.columns) * sum(widths) * dtype.itemsize
        inside = t.rows * t.columns * (len(widths) + len(s.sums))
        return Work(
            programs=batch * -(-rows // t.rows) * -(-columns // t.columns),
            warps=t.warps,
            flops=2.0 * t.rows * t.columns * sum(widths) * steps,
            flops_per_second=_flops(dtype, t, target),
            nbytes=moving * steps + t.rows * t.columns * 4 * len(s.sums),
            load_bytes=VECTOR_BYTES,
            waits=1 + steps / t.stages,
            shared_bytes=moving * t.stages,
            registers=_FIXED_REGISTERS + inside // (t.warps * target.warp),
            memory_bytes=memory,
        )

    return work


# --- loops ----------------------------------------------------------------------------------------


def _of_loops(nest: L.LoopNest, rule: Blocks) -> Iterator[Blocks]:
    """More and fewer points, longer and shorter steps of loops, and for each other warps."""
    outer = power_of_two(_known(numel(a.size for a in nest.axes)))
    lengths = [power_of_two(_known(numel(a.size for a in s.axes))) for s in nest.stages]
    for more, longer in itertools.product((1.0, 2.0, 0.5, 4.0, 0.25), (1.0, 2.0, 0.5)):
        points = max(1, min(int(rule.points * more), outer))
        iterations = tuple(
            1 if n == 1 else max(1, min(int(n * longer), length))  # 1: it keeps its order
            for n, length in zip(rule.iterations, lengths, strict=True)
        )
        for warps in (rule.warps, rule.warps * 2, rule.warps // 2):
            elements = points * max(iterations, default=1) // (32 * warps) if warps else 0
            if 1 <= elements <= _MOST_ELEMENTS and warps <= _MOST_WARPS:
                yield Blocks(points, iterations, warps)


def _loop_work(nest: L.LoopNest, target: GpuTarget) -> Callable[[Blocks], Work]:
    outer = _known(numel(a.size for a in nest.axes))
    lengths = [_known(numel(a.size for a in s.axes)) for s in nest.stages]
    loads = [[i for i in s.body if isinstance(i, L.Load)] for s in nest.stages]
    size = max((i.dtype.itemsize for found in loads for i in found), default=4)
    live = 2 + max(map(len, loads), default=0)
    memory = _memory_bytes(nest)
    at_once = cache(partial(words_at_once, nest))

    def work(b: Blocks) -> Work:
        programs = -(-outer // b.points)
        elements = max(1, b.points * max(b.iterations, default=1) // (b.warps * target.warp))
        steps = [-(-n // count) for n, count in zip(lengths, b.iterations, strict=True)]
        done = (
            k * count * len(s.body)
            for k, count, s in zip(steps, b.iterations, nest.stages, strict=True)
        )
        # The compiler takes registers for all that it loads, and does with fewer where threads have no more.
        liked = _FIXED_REGISTERS // 2 + live * elements * size // 4
        needed = _FIXED_REGISTERS + int(elements * at_once(b.iterations))
        most = min(target.thread_registers, target.registers // (b.warps * target.warp))
        return Work(
            programs=programs,
            warps=b.warps,
            flops=float(b.points * sum(done)),
            flops_per_second=target.product_costs.single_flops,
            nbytes=memory / max(1, programs),
            load_bytes=min(VECTOR_BYTES, power_of_two(elements) * size),
            waits=float(sum(steps)),
            shared_bytes=0,
            registers=max(needed, min(liked, most)),
            memory_bytes=memory,
        )

    return work


def _memory_bytes(nest: L.LoopNest) -> float:
    kept = (b for b in nest.buffers if b.role != "scratch")
    return float(sum(_known(b.numel) * b.dtype.itemsize for b in kept))


def _known(size: Dim) -> int:
    return size if isinstance(size, int) else _GUESS
