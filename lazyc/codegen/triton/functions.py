"""Device functions that generated kernels call: Triton functions, compiled or interpreted.

They use builtins of the language only, never its standard library (``tl.sum``), which can be either
compiled or interpreted in one process but not both.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime.jit import JITFunction

DEVICE_FUNCTIONS: dict[str, DeviceFunction] = {}


class DeviceFunction(JITFunction):
    """A function of the device. Called from Python, as the interpreter does, it runs its body."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


def _device(fn: Callable[..., Any]) -> DeviceFunction:
    found = DEVICE_FUNCTIONS[fn.__name__] = DeviceFunction(fn)
    return found


# --- index arithmetic -----------------------------------------------------------------------------


@_device
def floor_index(x, y):
    """``floor(x / y)`` of integers, y > 0."""
    return x // y - ((x % y) < 0).to(x.dtype)


@_device
def mod_index(x, y):
    """``x mod y`` with 0 <= result < y, y > 0."""
    return x % y + tl.where(x % y < 0, y, 0)


# --- combining two values, also as the function of a reduction or a scan --------------------------


@_device
def add(x, y):
    return x + y


@_device
def multiply(x, y):
    return x * y


@_device
def largest(x, y):
    """nan if either is nan."""
    return tl.where((x > y) | (x != x), x, y)


@_device
def least(x, y):
    """nan if either is nan."""
    return tl.where((x < y) | (x != x), x, y)


@_device
def largest_or_nan(x, y):
    """As ``largest``, in one instruction."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@_device
def largest_number(x, y):
    """The other one if one is nan."""
    return tl.where((x > y) | (y != y), x, y)


@_device
def least_number(x, y):
    """The other one if one is nan."""
    return tl.where((x < y) | (y != y), x, y)


# --- numbers --------------------------------------------------------------------------------------


@_device
def sign(x):
    """1, -1 or 0 (0 for nan, as in torch)."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@_device
def unsigned_sign(x):
    return (x > 0).to(x.dtype)


@_device
def modulo(rest, y):
    """torch.remainder from C's: the sign of y."""
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


@_device
def floor_quotient(x, y, ratio, rest, signed_zero):
    """torch's floor division, from the exact remainder: floor(x / y) may be one too high.

    ``ratio`` is x / y, ``rest`` C's remainder, ``signed_zero`` a zero with the sign of ``ratio``."""
    quotient = (x - rest) / y
    quotient = tl.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1, quotient)
    whole = tl.floor(quotient)
    whole = tl.where(quotient - whole > 0.5, whole + 1, whole)
    whole = tl.where(quotient == 0, signed_zero, whole)
    return tl.where(y == 0, ratio, whole)


@_device
def float_to_int(x, low, high):
    """A float in [low, high) truncated; ``low`` for any other, as x86 has it."""
    return tl.where((x >= low) & (x < high), x, low)


# --- integers -------------------------------------------------------------------------------------


@_device
def divisor(x, y):
    """y where the hardware may divide x by it, else 1: not 0, nor -1 (the least integer traps)."""
    return tl.where((y == 0) | (y == -1), 1, y)


@_device
def quotient(x, y):
    """Truncated; 0 for y = 0; the least integer over -1 wraps."""
    return tl.where(y == 0, 0, tl.where(y == -1, 0 - x, x // tl.where((y == 0) | (y == -1), 1, y)))


@_device
def rest(x, y):
    """The sign of x; 0 for y = 0."""
    return x % tl.where((y == 0) | (y == -1), 1, y)


@_device
def floor_of(x, y, quotient, rest):
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1, quotient)


@_device
def unsigned_quotient(x, y):
    return tl.where(y == 0, 0, x // tl.where(y == 0, 1, y))


@_device
def unsigned_rest(x, y):
    return tl.where(y == 0, 0, x % tl.where(y == 0, 1, y))


@_device
def shift_left(x, amount, bits: tl.constexpr):
    """An amount outside the width shifts everything out."""
    inside = (amount >= 0) & (amount < bits)
    return tl.where(inside, x << tl.where(inside, amount, 0), 0)


@_device
def shift_right(x, amount, bits: tl.constexpr):
    """Arithmetic; an amount outside the width leaves the sign."""
    inside = (amount >= 0) & (amount < bits)
    return x >> tl.where(inside, amount, bits - 1)


@_device
def shift_right_unsigned(x, amount, bits: tl.constexpr):
    inside = amount < bits
    return tl.where(inside, x >> tl.where(inside, amount, 0), 0)


@_device
def power(x, exponent, bits: tl.constexpr):
    """``x ** exponent`` by squaring, wrapping, for exponents that are not negative."""
    result = x * 0 + 1
    base = x + exponent * 0
    left = exponent + x * 0
    for _ in range(bits):
        result = tl.where((left & 1) != 0, result * base, result)
        base = base * base
        left = left >> 1
    return result


@_device
def signed_power(x, exponent, positive):
    """``positive``, but for a negative exponent 0 except where x is 1 or -1, as in torch."""
    odd = (exponent & 1) != 0
    flipped = tl.where(x == 1, 1, tl.where(x == -1, tl.where(odd, -1, 1), 0))
    return tl.where(exponent < 0, flipped.to(positive.dtype), positive)


# --- random numbers -------------------------------------------------------------------------------


@_device
def philox(seed, counter, word: tl.constexpr):
    """Word 0 or 1 of Philox-4x32-10 at ``counter`` (Salmon et al., "Parallel random numbers: as easy
    as 1, 2, 3", SC 2011), as uint32. The seed is int64, the counter int32 or int64. Straight code: Triton
    loads ahead in innermost loops only."""
    c0 = counter.to(tl.uint64).to(tl.uint32)
    c1 = (counter.to(tl.uint64) >> 32).to(tl.uint32) if counter.dtype == tl.int64 else c0 * 0
    c2 = c0 * 0
    c3 = c0 * 0
    k0 = seed.to(tl.uint64).to(tl.uint32)
    k1 = (seed.to(tl.uint64) >> 32).to(tl.uint32)
    for _ in tl.static_range(10):  # pyright: ignore[reportGeneralTypeIssues] - no Python runs it
        low0 = c0.to(tl.uint64) * 0xD2511F53
        low1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (low1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (low0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = low1.to(tl.uint32)
        c3 = low0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0 if word == 0 else c1
