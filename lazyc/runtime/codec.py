"""Codecs: how a value of one kind is written as JSON and read back, exactly or not at all.

``encode`` raises NotCacheable for a value of another kind, ``decode`` CacheCorrupt for other data.
A closed set of value kinds goes through here; nothing is looked up by a name found in the data
except in the tables of this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from lazyc.errors import CacheCorrupt, NotCacheable
from lazyc.ir.types import DType
from lazyc.runtime.dims import decode_dim, encode_dim


@dataclass(frozen=True, slots=True)
class Codec:
    """``cls`` is the dataclass that a record is of."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    cls: type | None = None


def _plain(type_: type) -> Codec:
    """A value that JSON has as it is; only of exactly this type (a bool is no int here)."""

    def encode(value: Any) -> Any:
        if type(value) is not type_:
            raise NotCacheable(f"expected {type_.__name__}, got {value!r}")
        return value

    def decode(data: Any) -> Any:
        if type(data) is not type_:
            raise CacheCorrupt(f"expected {type_.__name__}, got {data!r}")
        return data

    return Codec(encode, decode)


INT = _plain(int)
BOOL = _plain(bool)
STR = _plain(str)
DIM = Codec(encode_dim, decode_dim)


def _table(values: Mapping[str, Any]) -> Codec:
    """One of a fixed set of objects, by name."""
    names = {value: name for name, value in values.items()}

    def encode(value: Any) -> str:
        if value not in names:
            raise NotCacheable(f"{value!r} has no form on disk")
        return names[value]

    def decode(data: Any) -> Any:
        if not isinstance(data, str) or data not in values:
            raise CacheCorrupt(f"{data!r} is none of {', '.join(values)}")
        return values[data]

    return Codec(encode, decode)


def one_of(*names: str) -> Codec:
    return _table({n: n for n in names})


def _torch_objects(kind: type) -> Codec:
    return _table({str(v): v for v in vars(torch).values() if isinstance(v, kind)})


DTYPE = _table({d.value: d for d in DType})
TORCH_DTYPE = _torch_objects(torch.dtype)
LAYOUT = _torch_objects(torch.layout)
MEMORY_FORMAT = _torch_objects(torch.memory_format)


def _decode_float(data: Any) -> float:
    if not isinstance(data, str):
        raise CacheCorrupt(f"expected a hexadecimal float, got {data!r}")
    return float.fromhex(data)


# Hexadecimal text keeps every bit of a number and has -0.0, inf and nan, which JSON has not.
FLOAT = Codec(float.hex, _decode_float)

_COMPLEX = Codec(
    lambda value: [value.real.hex(), value.imag.hex()],
    lambda data: complex(*(_decode_float(x) for x in _items(data))),
)


def optional(codec: Codec) -> Codec:
    return Codec(
        lambda value: None if value is None else codec.encode(value),
        lambda data: None if data is None else codec.decode(data),
    )


def _items(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise CacheCorrupt(f"expected a list, got {data!r}")
    return data


def sequence(codec: Codec) -> Codec:
    """A tuple of any length, as a list."""
    return Codec(
        lambda value: [codec.encode(x) for x in value],
        lambda data: tuple(codec.decode(x) for x in _items(data)),
    )


SHAPE = sequence(DIM)


def pair(first: Codec, second: Codec) -> Codec:
    def decode(data: Any) -> Any:
        if len(_items(data)) != 2:
            raise CacheCorrupt(f"expected a pair, got {data!r}")
        return first.decode(data[0]), second.decode(data[1])

    return Codec(lambda value: [first.encode(value[0]), second.encode(value[1])], decode)


def record(cls: type, **fields: Codec) -> Codec:
    """A dataclass as a list of its fields, in order. ``fields`` names every one of them."""
    names = tuple(f.name for f in dataclasses.fields(cls))
    assert names == tuple(fields), f"{cls.__name__} has fields {names}, its record {tuple(fields)}"
    codecs = tuple(fields.values())

    def encode(value: Any) -> list[Any]:
        if type(value) is not cls:
            raise NotCacheable(f"expected {cls.__name__}, got {value!r}")
        return [c.encode(getattr(value, n)) for n, c in zip(names, codecs, strict=True)]

    def decode(data: Any) -> Any:
        if len(_items(data)) != len(codecs):
            raise CacheCorrupt(f"{cls.__name__} of {len(data)} fields")
        return cls(*(c.decode(x) for c, x in zip(codecs, data, strict=True)))

    return Codec(encode, decode, cls)


def union(records: Mapping[str, Codec]) -> Codec:
    """One of several records, as [tag, fields]."""
    tags = {c.cls: tag for tag, c in records.items()}

    def encode(value: Any) -> list[Any]:
        tag = tags.get(type(value))
        if tag is None:
            raise NotCacheable(f"{value!r} has no form on disk")
        return [tag, records[tag].encode(value)]

    def decode(data: Any) -> Any:
        match data:
            case [str(tag), body] if tag in records:
                return records[tag].decode(body)
            case _:
                raise CacheCorrupt(f"expected one of {', '.join(records)}, got {data!r}")

    return Codec(encode, decode)


def template(records: Mapping[str, Codec]) -> Codec:
    """An argument of an eager call: nested tuples of Python scalars, torch's named objects, dims,
    and the given records. Strings, ints, bools and None stand for themselves, the rest has tags.
    """
    leaves: list[tuple[str, type, Codec]] = [
        ("float", float, FLOAT),
        ("complex", complex, _COMPLEX),
        ("dtype", torch.dtype, TORCH_DTYPE),
        ("layout", torch.layout, LAYOUT),
        ("memory_format", torch.memory_format, MEMORY_FORMAT),
        ("device", torch.device, Codec(str, lambda data: torch.device(STR.decode(data)))),
        ("dim", sympy.Expr, DIM),
        *((tag, c.cls, c) for tag, c in records.items() if c.cls is not None),
    ]
    by_tag = {tag: codec for tag, _, codec in leaves}

    def encode(value: Any) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is tuple:
            return ["tuple", *(encode(x) for x in value)]
        for tag, cls, codec in leaves:
            if isinstance(value, cls):
                return [tag, codec.encode(value)]
        raise NotCacheable(f"an argument of type {type(value).__name__} has no form on disk")

    def decode(data: Any) -> Any:
        match data:
            case None | bool() | int() | str():
                return data
            case ["tuple", *items]:
                return tuple(decode(x) for x in items)
            case [str(tag), body] if tag in by_tag:
                return by_tag[tag].decode(body)
            case _:
                raise CacheCorrupt(f"not an argument: {data!r}")

    return Codec(encode, decode)
