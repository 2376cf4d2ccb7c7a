"""Reads the optimized HLO of a TPU program: what runs, and what it moves.

The compiler's own `bytes accessed` adds up all memories and, of a conditional,
takes the costlier branch. Here what stays on the chip, in a memory space
`S(n)`, does not count, and each branch has its own figure; conditionals that
one condition decides count together. A loop counts as one round.
"""

import collections
import re
from collections.abc import Iterator

from tpu_scripts.aot import instructions
from tpu_scripts.aot.instructions import CONTROL, Array, Instruction

_ALIAS = re.compile(r"\{(\d*)\}: \((\d+),")
_TRANSFERS = ("copy-start", "slice-start")


class Traffic(collections.namedtuple("Traffic", "least most")):
    """Bytes along the cheapest and the costliest branches.

    Of conditionals in branches the costliest ones count for both.
    """

    def __add__(self, other):
        return Traffic(self.least + other.least, self.most + other.most)


class Module:
    """An optimized HLO module.

    Attributes:
      text: its text.
      entry: the name of the computation that runs.
      aliases: the parameter that each result takes the buffer of.
      results: its results.
    """

    def __init__(self, text: str):
        self.text = text
        self._computations: dict[str, dict[str, Instruction]] = {}
        self.results: tuple[Array, ...] = ()
        head, *lines = text.splitlines()
        self.aliases = _aliases(head)
        for line in lines:
            if line.startswith(("%", "ENTRY ")):
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
                body = self._computations[name] = {}
                if line.startswith("ENTRY "):
                    self.entry = name
            elif instruction := instructions.read(line):
                body[instruction.name] = instruction
        for instruction in self._computations[self.entry].values():
            if instruction.is_root:
                self.results = instruction.arrays

    def running(self) -> Iterator[tuple[str, Instruction]]:
        """What runs: computations and their instructions, without fusions'."""
        pending, seen = [self.entry], set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            for instruction in self._computations[name].values():
                yield name, instruction
                if instruction.opcode in CONTROL:
                    pending += instruction.called

    def kernels(self) -> collections.Counter:
        """The number of kernels by kind.

        Of conditionals all branches count. "scalar operations" have results
        of one element, or of a register that stays on the chip, and are outside
        of any fusion.
        """
        return collections.Counter(
            instruction.kind
            for _, instruction in self.running()
            if instruction.moves
        )

    def collectives(self) -> dict[str, tuple[int, int]]:
        """For each kind of collective their number, and the bytes they send.

        A collective may be of many arrays.
        """
        found: dict[str, tuple[int, int]] = {}
        for name, instruction in self.running():
            if kind := instruction.collective:
                count, size = found.get(kind, (0, 0))
                size += sum(
                    array.size
                    for operand in instruction.operands
                    for array in self._computations[name][operand].arrays
                )
                found[kind] = count + 1, size
        return found

    def traffic(self) -> Traffic:
        """Bytes that the kernels read from and write to HBM."""
        return self._traffic(self.entry, collectives=False)

    def collective_traffic(self) -> Traffic:
        """Bytes that the collectives read from and write to HBM."""
        return self._traffic(self.entry, collectives=True)

    def touching(self, size: int) -> list[Instruction]:
        """The kernels with a buffer of at least `size` bytes in HBM."""
        return [
            instruction
            for name, instruction in self.running()
            if instruction.moves
            and not instruction.collective
            and max(self._buffers(name, instruction), default=0) >= size
        ]

    def reaching(self, elements: int) -> list[Instruction]:
        """The kernels with an array of at least as many, wherever it is."""

        def largest(name: str, kernel: Instruction) -> int:
            body = self._computations[name]
            known = [kernel, *(body[operand] for operand in kernel.operands)]
            return max(a.elements for one in known for a in one.arrays)

        return [
            instruction
            for name, instruction in self.running()
            if instruction.moves and largest(name, instruction) >= elements
        ]

    def _traffic(self, name: str, collectives: bool) -> Traffic:
        total = Traffic(0, 0)
        choices: dict[str, list[list[Traffic]]] = {}
        for instruction in self._computations[name].values():
            if instruction.opcode in CONTROL:
                branches = [
                    self._traffic(c, collectives) for c in instruction.called
                ]
                decider, opposite = self._decider(name, instruction)
                if opposite:
                    branches.reverse()
                choices.setdefault(decider, []).append(branches)
            elif (
                instruction.moves
                and (instruction.collective is not None) is collectives
            ):
                moved = sum(self._buffers(name, instruction))
                total += Traffic(moved, moved)
        for same in choices.values():
            ways = [sum(way, Traffic(0, 0)) for way in zip(*same, strict=True)]
            most = [way.most for way in ways]
            least = min(most) if len(ways) > 1 else ways[0].least
            total += Traffic(least, max(most))
        return total

    def _decider(self, name: str, control: Instruction) -> tuple[str, bool]:
        """What decides which branch is taken, here and maybe elsewhere, too.

        Returns:
          The name of an instruction, and whether it is the first of two
          branches that is taken where that is true. Of loops and calls their
          own name.
        """
        if control.opcode != "conditional" or len(control.called) != 2:
            return control.name, False
        body, found = self._computations[name], control.operands[0]
        opposite = any(array.dtype == "pred" for array in body[found].arrays)
        while body[found].opcode in ("convert", "not"):
            opposite ^= body[found].opcode == "not"
            found = body[found].operands[0]
        return found, opposite

    def _buffers(self, name: str, instruction: Instruction) -> list[int]:
        """Sizes of the HBM buffers that an instruction reads and writes."""
        if instruction.opcode in _TRANSFERS:
            # The source, whole, then the destination, then a flag.
            source, target, *_ = instruction.arrays
            ends = (source, target)
            return [target.size for array in ends if not array.on_chip]
        written = instruction.written()
        if instruction.opcode in (
            "all-gather-start",
            "collective-permute-start",
        ):
            return written  # the operands are in it
        body = self._computations[name]
        read = (body[operand].written() for operand in instruction.operands)
        return [*written, *(size for sizes in read for size in sizes)]


def _aliases(head: str) -> dict[int, int]:
    start = head.find("input_output_alias={")
    if start < 0:
        return {}
    end = head.find("entry_computation_layout", start)
    found = _ALIAS.findall(head[start:end])
    return {int(result or 0): int(taken) for result, taken in found}
