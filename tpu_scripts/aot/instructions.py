"""Reads one line of a computation of optimized HLO."""

import collections
import dataclasses
import math
import re

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
CONTROL = {"async-start", "call", "conditional", "while"}

# They name a buffer, or a part of one, and move nothing.
_NAMES = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_NAMING_TARGETS = {"AllocateBuffer", "ConcatBitcast"}
_COPIES = ("copy", "copy-start", "slice-start")
_REGISTER = 4096  # bytes
_BITS = {"pred": 8, "token": 0}  # the others have them in their names

_LINE = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:branch_computations|true_computation|false_computation|body|to_apply"
    r"|calls)=(\{[^}]*\}|%\S+?)(?:,|$)"
)


class Array(collections.namedtuple("Array", "dtype dimensions layout")):
    """An array in the text of a shape."""

    @property
    def elements(self) -> int:
        sizes = self.dimensions.replace("<=", "").split(",")  # at most
        return math.prod(int(size) for size in sizes if size)

    @property
    def size(self) -> int:
        """In bytes, without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return -(-self.elements * bits // 8)

    @property
    def is_small(self) -> bool:
        """Whether it is a scalar, or fits into a register of the chip's."""
        return self.elements <= 1 or (self.on_chip and self.size <= _REGISTER)

    @property
    def on_chip(self) -> bool:
        return re.search(r"S\([1-9]", self.layout) is not None


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: its name.
      opcode: what it does.
      arrays: its results; of what starts a transfer the operands, too.
      operands: the names of what it reads.
      called: the computations that it calls.
      is_root: whether its results are those of the computation.
      text: what follows the operands.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    is_root: bool
    text: str

    @property
    def moves(self) -> bool:
        """Whether it runs by itself, and is more than a name."""
        if self.opcode == "custom-call":
            return self.target not in _NAMING_TARGETS
        free = self.opcode in _NAMES or self.opcode in CONTROL
        return not free and "-done" not in self.opcode

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def collective(self) -> str | None:
        """The kind of collective that it is or begins."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def kind(self) -> str:
        """The kind of kernel that it is, if it moves something."""
        if self.collective:
            return "collectives"
        if self.opcode == "fusion":
            return "fusions"
        if all(array.is_small for array in self.arrays):
            return "scalar operations"
        if self.opcode in _COPIES:
            return "copies"
        if self.opcode == "custom-call":
            return "custom calls"
        return "other operations"

    def written(self) -> list[int]:
        """The sizes of its results in HBM, in bytes."""
        return [array.size for array in self.arrays if not array.on_chip]


def read(line: str) -> Instruction | None:
    """Returns the instruction of a line, None if it has none."""
    if not (match := _LINE.match(line)):
        return None
    root, name, text = match.groups()
    shape, text = _shape(text)
    opcode, _, text = text.partition("(")
    operands, text = _closed(text)
    called = [
        part.strip(" %{}")
        for group in _CALLED.findall(text)
        for part in group.split(",")
    ]
    return Instruction(
        name=name,
        opcode=opcode.strip(),
        arrays=tuple(Array(*found) for found in _ARRAY.findall(shape)),
        operands=tuple(re.findall(r"%([^\s,()]+)", operands)),
        called=tuple(called),
        is_root=root is not None,
        text=text,
    )


def _shape(text: str) -> tuple[str, str]:
    """Splits into the shape, which may be a tuple, and what follows it."""
    if text.startswith("("):
        return _closed(text[1:])
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closed(text: str) -> tuple[str, str]:
    """What is before the parenthesis that closes, and what is after it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    raise ValueError(f"HLO that does not close: {text!r}")
