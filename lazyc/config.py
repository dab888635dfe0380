"""Every option of lazyc, and the only place that reads the environment.

An option is a field of ``Config``: its name is the key in ``torch.compile(options={...})``, its
metadata carries the environment variable, the documentation, the allowed values, and whether it
changes generated code (then it is a part of the cache key). A ``Config`` is frozen and is passed to
whoever needs it; nothing looks options up.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from lazyc.errors import ConfigError, LazycWarning

Value = bool | int | str
AttentionKernel: TypeAlias = Literal["auto", "flash", "memory-efficient", "math"]

# Passes that may be left out: each makes code faster, and none is needed for a right result.
OPTIONAL_PASSES = (
    "fold_norm", "lower_convolutions", "attention_sinks", "split_batches", "padding", "split_products",
    "score_sums", "split_reductions", "half_products", "layout", "row_tiles",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Option:
    """One option: what the documentation, the parser and the cache key need to know of it."""

    name: str
    type: type[Value]
    default: Value
    env: str
    doc: str
    affects_code: bool
    choices: tuple[Value, ...] = ()
    minimum: int | None = None
    pattern: str = ""
    names: tuple[str, ...] = ()  # those that a comma-separated list may hold

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.type is bool:
            return "1 or 0 (also true/false, yes/no, on/off)"
        if self.choices:
            return "one of " + ", ".join(repr(c) for c in self.choices)
        if self.type is int:
            return "an integer" if self.minimum is None else f"an integer >= {self.minimum}"
        if self.names:
            return f"names separated by commas, of {', '.join(self.names)}"
        if self.pattern:
            return f"a string that matches {self.pattern}"
        return "a string"

    def parse(self, value: object, where: str) -> Value:
        """``value`` (text from the environment, or what a caller passed) as this option's type.

        ``where`` names its origin in the ConfigError that a bad value raises.
        """
        parsed = _convert(self.type, value)
        if (
            parsed is None
            or (self.choices and parsed not in self.choices)
            or (self.minimum is not None and cast(int, parsed) < self.minimum)
            or (self.pattern and not re.fullmatch(self.pattern, cast(str, parsed)))
            or (self.names and not {*_split(cast(str, parsed))} <= {*self.names})
        ):
            raise ConfigError(f"{where}={value!r}: must be {self.allowed}.")
        return parsed


_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}


def _split(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _convert(type_: type[Value], value: object) -> Value | None:
    """``value`` as ``type_``, or None when it is none."""
    if type_ is bool:
        if isinstance(value, bool):
            return value
        return _WORDS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
    if type_ is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        try:
            return int(value.strip()) if isinstance(value, str) else None
        except ValueError:
            return None
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return os.fspath(value) if isinstance(value, str | Path) else None


def _option(
    default: Value,
    env: str,
    doc: str,
    *,
    affects_code: bool = False,
    choices: tuple[Value, ...] = (),
    minimum: int | None = None,
    pattern: str = "",
    names: tuple[str, ...] = (),
) -> Any:
    rest = {"env": env, "doc": doc, "affects_code": affects_code, "choices": choices}
    limits = {"minimum": minimum, "pattern": pattern, "names": names}
    return dataclasses.field(default=default, metadata={**rest, **limits})


@dataclass(frozen=True, slots=True)
class Config:
    """The options of one compilation. ``Config()`` has the defaults."""

    strict: bool = _option(
        False, "LAZYC_STRICT",
        "A bug inside lazyc raises CompilerBug; otherwise the graph runs in eager with a warning.",
    )  # fmt: skip
    verify: bool = _option(
        False, "LAZYC_VERIFY",
        "Verify the IR after every pass (slower compilation; a broken pass is named at once).",
    )  # fmt: skip
    target: str = _option(
        # Not affects_code: the target that it resolves to is a part of the key of its own.
        "", "LAZYC_TARGET",
        "What to generate code for. Empty: the best instruction set that this machine has. "
        "`triton-interpret`: the kernels of a GPU, run slowly on tensors of the CPU, for tests. `cuda:sm_90`, ...:"
        " compiles kernels for that GPU into the disk cache; the model runs in eager. Tensors on a GPU are for that"
        " GPU in any case.",
        choices=(
            "", "avx512", "avx2", "baseline", "triton-interpret", "cuda:sm_80", "cuda:sm_86",
            "cuda:sm_89", "cuda:sm_90", "cuda:sm_100", "cuda:sm_120",
        ),
    )  # fmt: skip
    fusion: bool = _option(
        True, "LAZYC_FUSION",
        "Fuse operators into common kernels. Off: one kernel an operator, to bisect an error.",
        affects_code=True,
    )  # fmt: skip
    attention: str = _option(
        "auto", "LAZYC_ATTENTION",
        "How attention is computed. `math`: with stored scores; `memory-efficient`: on the CPU by blocks of rows,"
        " wherever that can be; `flash`: on a GPU without scores in memory, wherever that can be, on the CPU by torch's"
        " kernel for its own operator, other attention as with `auto`. `auto`: on a GPU `flash` where scores fill a"
        " tile, on the CPU what is fastest: stored where the caches hold the scores, else by blocks of rows, and"
        " torch's kernel for its operator over long sequences. On a GPU `memory-efficient` is the same as `flash`.",
        affects_code=True,
        choices=get_args(AttentionKernel),
    )  # fmt: skip
    pack_weights: bool = _option(
        True, "LAZYC_PACK_WEIGHTS",
        "Keep between calls of inference graphs what is made of weights alone: matrices packed for the product,"
        " weights padded, reordered, cast, scaled or compressed. It is made anew when a weight changed. Costs memory:"
        " one more copy of those weights. On a GPU: compressed ones alone, unless `keep_gpu_weights` is set.",
        affects_code=True,
    )  # fmt: skip
    keep_gpu_weights: bool = _option(
        False, "LAZYC_KEEP_GPU_WEIGHTS",
        "With `pack_weights`, keep on GPUs too what is made of weights. For weights that are not edited through"
        " `.data` between calls: such an edit is not noticed there, and gives results of the old weights"
        " (docs/gpu.md).",
        affects_code=True,
    )  # fmt: skip
    gemm: str = _option(
        "auto", "LAZYC_GEMM",
        "What multiplies f32 matrices on the CPU. `library`: torch's BLAS;"
        " `generated`: kernels of lazyc's own (AVX2 or AVX-512); `auto`: these where the library has none made for"
        " this CPU.",
        affects_code=True,
        choices=("auto", "library", "generated"),
    )  # fmt: skip
    disable_passes: str = _option(
        "", "LAZYC_DISABLE_PASSES",
        "Passes to leave out, as `padding,layout`, to bisect an error or to see what one is worth; results are"
        " right without them. `layout` off stores values row-major where nothing binds them.",
        affects_code=True,
        names=OPTIONAL_PASSES,
    )  # fmt: skip
    shapes: str = _option(
        "symbolic", "LAZYC_SHAPES",
        "What becomes of a size that Dynamo says changes. `static`: code for each size; `symbolic`: one code"
        " for all; `bucket`: code for sizes rounded up, which is exact and wastes some work."
        " `lazyc.mark_dim` chooses for one dim.",
        choices=("static", "symbolic", "bucket"),
    )  # fmt: skip
    buckets: str = _option(
        "", "LAZYC_BUCKETS",
        "The sizes that `bucket` rounds up to, as `64,128,256`; empty: powers of two and 3/4 of them. A"
        " larger size is served by code for all sizes.",
        pattern=r"([1-9]\d*(,[1-9]\d*)*)?",
    )  # fmt: skip
    on_new_shape: str = _option(
        "compile", "LAZYC_ON_NEW_SHAPE",
        "What serves a call of a compiled function with a shape that needs other code: `compile` now;"
        " `eager`; `background`: eager until another thread has compiled it; `error`: raise.",
        choices=("compile", "eager", "background", "error"),
    )  # fmt: skip
    lazy: bool = _option(
        False, "LAZYC_LAZY",
        "Compiled regions of a function that graph breaks cut return tensors that wait; when a value is"
        " read, all regions that it needs run as one program. Inference only.",
    )  # fmt: skip
    lazy_max_operators: int = _option(
        10000, "LAZYC_LAZY_MAX_OPERATORS",
        "Most operators that may wait with `lazy`; beyond it what waits is run.",
        minimum=1,
    )  # fmt: skip
    lazy_max_mb: int = _option(
        4096, "LAZYC_LAZY_MAX_MB",
        "Most MiB of results that may wait with `lazy`; beyond it what waits is run.",
        minimum=1,
    )  # fmt: skip
    cuda_graphs: bool = _option(
        False, "LAZYC_CUDA_GRAPHS",
        "Replay the kernels of a program of fixed sizes on a GPU from a CUDA graph, after three calls. Inputs"
        " that move and all results are copied.",
    )  # fmt: skip
    autotune: bool = _option(
        False, "LAZYC_AUTOTUNE",
        "Time the kernels of a program on its GPU in the first call, by several tiles and blocks; later calls, and"
        " later processes through the disk cache, have the fastest, whose sums may round otherwise. Off: tiles and"
        " blocks by rules.",
    )  # fmt: skip
    autotune_seconds: int = _option(
        60, "LAZYC_AUTOTUNE_SECONDS",
        "Most seconds that `autotune` takes for one program, compiling included. A kernel without its turn keeps"
        " what the rules say, and has another chance in a later process.",
        minimum=1,
    )  # fmt: skip
    output_pool_mb: int = _option(
        512, "LAZYC_OUTPUT_POOL_MB",
        "Most memory in MiB kept warm for the outputs of later calls; 0 keeps none.",
        minimum=0,
    )  # fmt: skip
    disk_cache: bool = _option(
        True, "LAZYC_DISK_CACHE",
        "Keep compiled code on disk for later processes.",
    )  # fmt: skip
    cache_dir: str = _option(
        "", "LAZYC_CACHE_DIR",
        "Folder of the disk cache; empty: `$XDG_CACHE_HOME/lazyc`, else `~/.cache/lazyc`.",
    )  # fmt: skip
    cache_size_mb: int = _option(
        1024, "LAZYC_CACHE_SIZE_MB",
        "Size limit of the disk cache in MiB; beyond it the longest unused entries are removed.",
        minimum=1,
    )  # fmt: skip
    debug: int = _option(
        0, "LAZYC_DEBUG",
        "0: silent. 1: one line for each compilation (with what the cache has not), flush and fallback, and a summary at exit."
        " 2: also cache lookups, passes and what they decided of layout and padding, and kernels. 3: also the IR after"
        " every pass, and the code.",
        choices=(0, 1, 2, 3),
    )  # fmt: skip
    debug_file: str = _option(
        "", "LAZYC_DEBUG_FILE",
        "File that debug output is appended to; empty: stderr.",
    )  # fmt: skip
    trace: str = _option(
        "", "LAZYC_TRACE",
        "Folder for every event, the IR after each pass, and the code of each kernel. Programs are then"
        " compiled anew, not taken from the cache.",
    )  # fmt: skip

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """The options that the environment sets; an empty variable counts as unset.

        Raises ConfigError for a bad value; warns of a ``LAZYC_`` variable that means nothing.
        """
        known = {o.env: o for o in OPTIONS.values()}
        found: dict[str, Value] = {}
        for variable, text in environ.items():
            if not variable.startswith("LAZYC_") or not text:
                continue
            if variable in known:
                option = known[variable]
                found[option.name] = option.parse(text, variable)
            else:
                message = f"{variable} is no option of lazyc{_suggest(variable, known)}; ignored."
                warnings.warn(message, LazycWarning, stacklevel=2)
        found["cache_dir"] = str(_cache_dir(str(found.get("cache_dir", "")), environ))
        return cls(**found)  # type: ignore[arg-type]  # parse() returned each field's own type

    def with_options(self, options: Mapping[str, object]) -> Config:
        """This Config with ``torch.compile(options={...})`` on top.

        Raises ConfigError for a bad value, and for an unknown option with the nearest known name.
        """
        changed: dict[str, Value] = {}
        for name, value in options.items():
            option = OPTIONS.get(name)
            if option is None:
                raise ConfigError(
                    f"unknown option {name!r}{_suggest(name, OPTIONS)}. "
                    f"Options of lazyc: {', '.join(OPTIONS)}."
                )
            changed[name] = option.parse(value, f"option {name}")
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]  # as in from_env

    def code_key(self) -> str:
        """The options that change generated code, as text for the cache key."""
        return " ".join(
            f"{o.name}={getattr(self, o.name)!r}" for o in OPTIONS.values() if o.affects_code
        )

    @property
    def disabled_passes(self) -> frozenset[str]:
        """``disable_passes`` as names."""
        return frozenset(_split(self.disable_passes))

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """``buckets`` as numbers, ascending."""
        return tuple(sorted({int(b) for b in self.buckets.split(",") if b}))

    @property
    def cache_path(self) -> Path:
        """Folder of the disk cache (it need not exist)."""
        return _cache_dir(self.cache_dir, os.environ)


def _cache_dir(setting: str, environ: Mapping[str, str]) -> Path:
    """The cache folder as the XDG Base Directory Specification places it (relative: ignored)."""
    if setting:
        return Path(setting).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path("~/.cache").expanduser()
    return home / "lazyc"


def _suggest(name: str, names: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _options() -> dict[str, Option]:
    types: dict[str, type[Value]] = {"bool": bool, "int": int, "str": str}
    return {
        f.name: Option(f.name, types[cast(str, f.type)], cast(Value, f.default), **f.metadata)
        for f in dataclasses.fields(Config)
    }


OPTIONS: Mapping[str, Option] = _options()
