"""The texts of HLO modules, to be compared."""

import hashlib
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{")
_INSTRUCTION = re.compile(
    r"\s+(?P<root>ROOT )?%?(?P<name>\S+) = (?P<shape>.*?) "
    r"(?P<opcode>[a-z][\w-]*)\((?P<rest>.*)"
)
# Some versions print that an all-reduce is over replicas, some do not.
_IGNORED = re.compile(
    r", (metadata|parameter_replication)=\{[^}]*\}|/\*index=\d+\*/"
    r"|, mode=cross_replica"
)
_NAME = re.compile(r"%([\w.-]+)")


def canonical(text):
    """What an HLO module computes, and how.

    Modules for which it is the same have the same instructions on the same
    data, whatever these are called and in whichever order they stand. Not seen
    are: instructions that nothing reads or that are there twice, copies,
    reshapes to the same shape, tuples that are taken apart again, and what is
    aliased.

    Args:
      text: the text of the module.

    Returns:
      The instructions by their digests, which are of themselves and of all
      that they read; the result's comes first.
    """
    made, computations = {}, {}
    for line in map(str.rstrip, text.splitlines()):
        if start := _COMPUTATION.fullmatch(line):
            computation, names = start[1], dict(computations)
        elif found := _INSTRUCTION.fullmatch(line):
            shape, rest = (
                _IGNORED.sub("", found[i]) for i in ("shape", "rest")
            )
            read = [names[name] for name in _NAME.findall(rest)]
            rest = _NAME.sub("%", rest) + "".join(f" {d}" for d in read)
            new = _Instruction(shape, found["opcode"], rest, read)
            digest = new.handed_on(made) or new.digest()
            made.setdefault(digest, new)
            names[found["name"]] = digest
            if found["root"]:
                computations[computation] = result = digest
    # The entry computation is the last one.
    needed, left = {}, [result]
    while left:
        digest = left.pop()
        if digest not in needed:
            needed[digest] = made[digest].text()
            left += made[digest].read
    return needed


class _Instruction(NamedTuple):
    shape: str
    opcode: str
    rest: str
    read: list[str]

    def text(self):
        return f"{self.shape} {self.opcode}({self.rest}"

    def digest(self):
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]

    def handed_on(self, made):
        """The digest of what it only hands on, if it does that."""
        if self.opcode in ("copy", "reshape"):
            if made[self.read[0]].shape == self.shape:
                return self.read[0]
        elif self.opcode == "get-tuple-element":
            source = made[self.read[0]]
            if source.opcode == "tuple":
                index = re.search(r"index=(\d+)", self.rest)[1]
                return source.read[int(index)]
        return None
