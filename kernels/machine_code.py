"""What NVIDIA machine code does wrong, found without a GPU: reads of registers that nothing has written, slow loops.

Both checks read what `cuobjdump --dump-sass` prints. That of registers follows vector registers (R), uniform registers
(UR) and predicates (P, UP) along the control flow. A read is reported only where it must be wrong: if the instruction
is executed at all, then on no path from the entry of the kernel to its first execution has anything written the
register. So a register that only a later turn of a loop writes counts as unset in the first.

Whatever is not known is taken so that no alarm is false:

- A predicated write counts as a write, and every branch may be taken.
- An opcode that is not in the tables below may write the registers it names and the 127 behind each, and reads none.
- `BRX` and `JMX` may go anywhere, `RET` to behind every call, and an external call may write everything.
- Of operands whose width the opcode does not tell, such as those of conversions and atomics, one register is read.
- An instruction that writes a part of a register and keeps the rest in place does not read it: `PRMT` that replaces
  bytes, and `LOP3` that sets or clears one bit, which is how ptxas keeps predicates in a register.

So the check cannot see a register that is set on some paths and not on others, a wrong value, a wrong order of
asynchronous operations (`HGMMA`, loads, barriers), shared memory that nothing has written, or a read of predicates as
a whole (`P2R`). A function that is called through its address would need its calling convention; every function of a
listing is taken for a kernel.

Source of the opcodes: the tables of instructions in NVIDIA's "CUDA Binary Utilities"; of the widths: listings of
ptxas 12.8 to 13.4.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_SCHEDULING = re.compile(r"\s+[&?].*$")
"""What Blackwell's listings have behind the operands: barriers to wait for and cycles to stall."""
_GUARD = re.compile(r"@!?(U?P[T\d])\s+")
_REGISTER = re.compile(r"(?<![\w.])(UR|UP|R|P)(\d+)(?!\w)(\.64)?")
_PREDICATE = re.compile(r"U?P[RT\d]$")
_LABEL = re.compile(r"(?:^|\s)0x([0-9a-f]+)$")
_FIRST_BIT = {"R": 0, "UR": 256, "P": 384, "UP": 400}
_EVERYTHING = (1 << 416) - 1
_PREDICATES = 0xFFFF << _FIRST_BIT["P"]


def _opcodes(text: str) -> frozenset[str]:
    """Words of `text`."""
    return frozenset(text.split())


_WITHOUT_DESTINATION = _opcodes(
    """ARRIVES BAR BPT BRA BREAK BRX BSSY BSYNC CALL CCTL CCTLL DEPBAR ERRBAR EXIT FENCE JMP JMX KILL LDGDEPBAR LDGSTS
    MEMBAR NANOSLEEP NOP RED REDG RET ST STG STL STS STSM WARPGROUP WARPSYNC YIELD"""
)
_WITH_DESTINATION = _opcodes(
    """ATOM ATOMG ATOMS BMSK BREV CS2R DADD DFMA DMUL DSETP ELECT F2F F2FP F2I F2IP FADD FADD2 FCHK FFMA FFMA2 FLO FMNMX
    FMNMX3 FMUL FMUL2 FSEL FSET FSETP FSWZADD HADD2 HFMA2 HGMMA HMMA HMNMX2 HMUL2 HSET2 HSETP2 I2F I2FP I2I I2IP IABS
    IADD IADD3 IDP IMAD IMMA IMNMX ISETP LD LDC LDCU LDG LDL LDS LDSM LEA LEPC LOP3 MATCH MOV MOVM MUFU P2R PLOP3 POPC
    PRMT PSETP R2P R2UR REDUX S2R S2UR SEL SGXT SHF SHFL UBMSK UBREV UCLEA UFADD UFFMA UFLO UFMNMX UFMUL UFSEL UFSETP
    UI2F UI2FP UF2I UF2F UF2FP UIABS UIADD3 UIMAD UIMNMX UISETP ULDC ULEA ULOP3 UMOV UP2UR UPLOP3 UPOPC UPRMT UPSETP
    USEL USGXT USHF UVIADD UVIADDMNMX UVIMNMX VABSDIFF VABSDIFF4 VIADD VIADDMNMX VIMNMX VIMNMX3 VOTE VOTEU"""
)
_TWO_PREDICATES_FIRST = _opcodes("DSETP FSETP HSETP2 ISETP PLOP3 PSETP UFSETP UISETP UPLOP3 UPSETP")
_DOUBLES = _opcodes("DADD DFMA DMUL DSETP FADD2 FFMA2 FMUL2")
_CONVERSIONS = _opcodes("F2F F2I I2F I2I UF2F UF2I UI2F")
_MEMORY = _opcodes("ATOM ATOMG ATOMS LD LDC LDCU LDG LDL LDS RED REDG ST STG STL STS ULDC")
_LOADS_AND_STORES = _MEMORY - {"ATOM", "ATOMG", "ATOMS", "RED", "REDG"}
_EXCHANGES = _opcodes("ATOMS BAR LDGSTS LDS LDSM REDUX SHFL STS STSM")
"""With these, threads of a program give each other values or wait for each other."""
_HMMA_OPERANDS = {"16816": (4, 2), "1688": (2, 1)}
"""Registers of A and B, by the shape; of others one is read."""


@dataclass(frozen=True, slots=True)
class UnsetRegister:
    """A read of a register that nothing has written."""

    function: str
    address: int
    """Of the instruction, in bytes from the beginning of the function."""
    register: str
    """For example UR10."""
    instruction: str

    def __str__(self) -> str:
        return f"{self.register} at {self.address:#x}"


@dataclass(frozen=True, slots=True)
class _Instruction:
    """What matters of one: its registers as bits, and where it goes."""

    address: int
    text: str
    guarded: bool
    """It has a predicate, so may do nothing."""
    opcode: str
    operands: tuple[str, ...]
    reads: int
    writes: int


# -- operands


def _bits(kind: str, first: int, count: int = 1) -> int:
    """The registers from number `first` on."""
    last = {"R": 255, "UR": 127, "P": 7, "UP": 7}[kind]
    return sum(1 << (_FIRST_BIT[kind] + number) for number in range(first, min(first + count, last)))


@functools.lru_cache(1 << 16)  # operands repeat; parsing them is most of the work
def _named(operand: str, count: int) -> int:
    """Registers of an operand: `count` where it is one alone, in an address as many as that has."""
    if "gdesc" in operand:
        return 0  # `_matrix_operands` knows them
    found = 0
    for match in _REGISTER.finditer(operand):
        kind, number, pair = match[1], int(match[2]), match[3]
        alone = "[" not in operand and kind in ("R", "UR")
        descriptor = operand[: match.start()].endswith("desc[")
        found |= _bits(kind, number, max(count if alone else 1, 2 if pair or descriptor else 1))
    return found


def _size(parts: list[str]) -> int:
    """Registers of a value, by the suffixes of the opcode."""
    return 8 if "256" in parts else 4 if "128" in parts else 2 if "64" in parts else 1


def _destination_count(base: str, parts: list[str]) -> int:
    """Registers that the destination has, or may have."""
    if base in ("HGMMA", "HMMA", "IMMA"):
        return _sums_count(base, parts)
    if base in _CONVERSIONS:
        return 2 if any(part.endswith("64") for part in parts) else 1
    if base == "LDSM":
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    if base in _DOUBLES or "WIDE" in parts or (base == "CS2R" and "32" not in parts):
        return 1 if base == "DSETP" else 2
    return _size(parts)


def _source_count(base: str, parts: list[str], index: int, operand: str) -> int:
    """Registers that source number `index` certainly has; addresses know their own."""
    if base in _DOUBLES or (base == "RET" and index == 0):
        return 1 if operand.endswith(".F32") else 2  # `.F32`: one number for both halves of a pair
    if base == "STSM":
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    if base in _LOADS_AND_STORES:
        return min(_size(parts), 4)
    if "WIDE" in parts:
        return 2 if index == 2 else 1
    plain = base in ("IADD", "IADD3", "MOV", "SEL", "UIADD3", "UMOV", "USEL")
    return 2 if plain and "64" in parts else 1


def _sums_count(base: str, parts: list[str]) -> int:
    """Registers that a thread has of the sums of a matrix product, or may have."""
    halves = parts[1:2] == ["F16"]
    if base != "HGMMA":
        return 2 if halves else 4
    return int(parts[0].split("x")[1]) // (4 if halves else 2)


def _matrix_operands(base: str, parts: list[str], sources: list[str]) -> int:
    """What a matrix product reads: A, B and, unless a predicate switches them off, the sums so far."""
    if base == "HMMA":
        counts = *_HMMA_OPERANDS.get(parts[0] if "TF32" not in parts else "", (1, 1)), _sums_count(base, parts)
        return _union(_named(source, count) for source, count in zip(sources, counts, strict=False))
    if base == "IMMA":
        return _union(_named(source, 1) for source in sources)
    found, plain = 0, [source for source in sources if source.startswith("R") and source != "RZ"]
    if matrix := next((int(match[1]) for s in sources if (match := re.search(r"gdesc\[UR(\d+)\]", s))), None):
        from_registers = sources[0] in plain  # then only the second descriptor is there
        found |= _bits("UR", matrix + 2, 2) if from_registers else _bits("UR", matrix, 4)
        if from_registers:
            found |= _named(plain.pop(0), 4)
    predicates = [source for source in sources if _PREDICATE.match(source)]
    if plain and not predicates:
        found |= _named(plain[0], _sums_count(base, parts))
    return found | _union(_named(each, 1) for each in predicates)


def _union(masks: Iterable[int]) -> int:
    """All bits of `masks`."""
    found = 0
    for mask in masks:
        found |= mask
    return found


def _split(base: str, operands: list[str]) -> tuple[list[str], list[str]]:
    """Destinations and sources of an instruction that has a destination."""
    if base in _TWO_PREDICATES_FIRST:
        return operands[:2], operands[2:]
    count = 0
    while count < len(operands) and _PREDICATE.match(operands[count]):
        count += 1
    count += 1  # the register, unless all are predicates
    while count < len(operands) and _PREDICATE.match(operands[count]) and base not in ("P2R", "UP2UR"):
        count += 1  # carries
    if count >= len(operands):  # a vote of predicates for a predicate
        count = 1
    return operands[:count], operands[count:]


def _effects(opcode: str, operands: list[str]) -> tuple[int, int]:
    """Registers that an instruction certainly reads and those that it may write."""
    base, *parts = opcode.split(".")
    if base == "CALL" and _address(operands) is None:
        return 0, _EVERYTHING
    if base in _WITHOUT_DESTINATION:
        return _union(_named(each, _source_count(base, parts, n, each)) for n, each in enumerate(operands)), 0
    if base not in _WITH_DESTINATION:
        return 0, _union(_named(each.replace("gdesc", ""), 128) for each in operands)
    destinations, sources = _split(base, operands)
    if "ENL2" in parts:  # 32 bytes in two destinations of four registers
        destinations, sources = operands[:2], operands[2:]
    writes = _union(_named(each, _destination_count(base, parts)) for each in destinations)
    if base == "R2P":
        writes |= _PREDICATES
    if base in ("HGMMA", "HMMA", "IMMA"):
        return _matrix_operands(base, parts, sources), writes
    values, kept = [each for each in sources if not _PREDICATE.match(each)], _kept(opcode, operands)
    counted = ((each, _source_count(base, parts, n, each)) for n, each in enumerate(values) if each not in kept)
    reads = _union(_named(each, count) for each, count in counted)
    return reads | _union(_named(each, 1) for each in sources if each not in values), writes


def _kept(opcode: str, operands: list[str]) -> set[str]:
    """Source operands of which nothing is used but what stays in place in the destination."""
    if opcode == "PRMT" and len(operands) == 4 and operands[2].startswith("0x"):
        return {each for each, first in ((operands[1], 0), (operands[3], 4)) if not _takes_bytes(operands, each, first)}
    if opcode == "LOP3.LUT" and operands[0] == operands[1] and operands[3] == "RZ" and operands[2].startswith("0x"):
        mask, table = int(operands[2], 16), operands[4]
        if (table, (mask ^ 0xFFFFFFFF).bit_count()) == ("0xc0", 1) or (table, mask.bit_count()) == ("0xfc", 1):
            return {operands[0]}
    return set()


def _takes_bytes(operands: list[str], source: str, first: int) -> bool:
    """Whether a `PRMT` puts a byte of `source`, whose bytes have the numbers from `first` on, into another place."""
    chosen = [int(operands[2], 16) >> 4 * place & 15 for place in range(4)]
    return any(
        first <= number % 8 < first + 4 and not (source == operands[0] and number == first + place)
        for place, number in enumerate(chosen)
    )


# -- control flow


def _instructions(text: str) -> Iterator[_Instruction]:
    """The instructions of one function of a listing."""
    for address, line in _LINE.findall(text):
        written = _SCHEDULING.sub("", line)
        guard = _GUARD.match(written)
        opcode, _, rest = written[guard.end() if guard else 0 :].partition(" ")
        operands = [each.strip(" -~|!").replace(".reuse", "") for each in rest.split(",")] if rest else []
        reads, writes = _effects(opcode, operands)
        reads |= _named(guard[1], 1) if guard else 0
        yield _Instruction(int(address, 16), written, bool(guard), opcode, tuple(operands), reads, writes)


def _successors(code: list[_Instruction]) -> list[list[int]]:
    """Where each instruction may go, as indices."""
    index = {each.address: number for number, each in enumerate(code)}
    behind_calls = [n + 1 for n, each in enumerate(code[:-1]) if each.opcode.startswith("CALL")]
    syncs: dict[str, list[int]] = {}
    for each in code:
        if each.opcode.startswith("BSSY"):
            syncs.setdefault(each.operands[0], []).append(_target(each, index))
    return [_goes_to(number, code, index, behind_calls, syncs) for number in range(len(code))]


def _address(operands: Sequence[str]) -> int | None:
    """The address that the last operand is; none where it is something else."""
    match = _LABEL.search(operands[-1]) if operands else None
    return int(match[1], 16) if match else None


def _target(instruction: _Instruction, index: dict[int, int]) -> int:
    """Index of the instruction whose address is the last operand."""
    address = _address(instruction.operands)
    if address not in index:
        raise ValueError(f"{instruction.text}: its target is not in the listing")
    return index[address]


def _goes_to(
    number: int, code: list[_Instruction], index: dict[int, int], behind_calls: list[int], syncs: dict[str, list[int]]
) -> list[int]:
    """The successors of instruction `number`."""
    instruction = code[number]
    base, operands = instruction.opcode.partition(".")[0], instruction.operands
    following = [number + 1] if number + 1 < len(code) else []
    if base in ("BRX", "JMX"):
        return list(range(len(code)))
    if base in ("EXIT", "KILL", "RET"):
        return (behind_calls if base == "RET" else []) + (following if instruction.guarded or base == "KILL" else [])
    if base == "BSYNC":
        return following + syncs.get(operands[-1], [])
    if base == "CALL":
        return following if _address(operands) is None else [_target(instruction, index)]
    if base in ("BRA", "JMP"):
        always = not instruction.guarded and len(operands) == 1
        return [_target(instruction, index)] + ([] if always else following)
    if instruction.opcode.startswith("WARPSYNC.COLLECTIVE"):  # others have a mask of threads
        return [_target(instruction, index), *following]
    return following


# -- dataflow


def _set_before(
    code: list[_Instruction], goes: list[list[int]], stop: int | None, *, certain: bool
) -> list[int | None]:
    """Registers set before each instruction: on every path (`certain`) or on any; none where no path goes.

    Args:
        code: the instructions.
        goes: their successors.
        stop: one that no path goes beyond; where it has a predicate, one that writes nothing.
        certain: see above.
    """
    before: list[int | None] = [None] * len(code)
    before[0] = 0
    waiting = [0]
    while waiting:
        number = waiting.pop()
        instruction, own = code[number], before[number] or 0
        if number == stop and not instruction.guarded:
            continue
        after = own | (0 if number == stop else instruction.writes)
        for successor in goes[number]:
            known = before[successor]
            joined = after if known is None else known & after if certain else known | after
            if joined != known:
                before[successor] = joined
                waiting.append(successor)
    return before


def _register_names(mask: int) -> list[str]:
    """What the bits of `mask` are called."""
    names = []
    for number in (number for number in range(mask.bit_length()) if mask >> number & 1):
        first, kind = max((first, kind) for kind, first in _FIRST_BIT.items() if first <= number)
        names.append(f"{kind}{number - first}")
    return names


def _unset_in(function: str, text: str) -> list[UnsetRegister]:
    """The reads of one function."""
    code = list(_instructions(text))
    if not code:
        return []
    goes, found = _successors(code), []
    for number, known in enumerate(_set_before(code, goes, None, certain=True)):
        instruction = code[number]
        if known is None or not instruction.reads & ~known:
            continue  # of nearly all instructions
        possible = _set_before(code, goes, number, certain=False)[number] or 0
        found += [
            UnsetRegister(function, instruction.address, register, instruction.text)
            for register in _register_names(instruction.reads & ~known & ~possible)
        ]
    return found


def unset_registers(listing: str) -> list[UnsetRegister]:
    """Reads of registers that nothing has written, in the order of their addresses.

    Args:
        listing: what `cuobjdump --dump-sass` prints; addresses of branches are numbers there, not labels.

    Raises:
        ValueError: a branch to an address that the listing does not have.
    """
    _, *parts = re.split(r"^\s*Function : (\S+)$", listing, flags=re.MULTILINE)
    return [each for name, text in zip(parts[::2], parts[1::2], strict=True) for each in _unset_in(name, text)]


def _reached(start: int, goes: Sequence[Sequence[int]]) -> set[int]:
    """Instructions that paths from `start` come to, itself included."""
    found, waiting = {start}, [start]
    while waiting:
        new = set(goes[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


def _in_loops(code: list[_Instruction]) -> set[int]:
    """Instructions from which a path leads back to them.

    A call goes on behind it. `BSYNC` goes on behind its own `BSSY` region, never back to that of an earlier one.
    """
    goes = _successors(code)
    for number, each in enumerate(code):
        base = each.opcode.partition(".")[0]
        if base in ("CALL", "RET"):
            goes[number] = [number + 1] if base == "CALL" and number + 1 < len(code) else []
        elif base == "BSYNC":
            goes[number] = [successor for successor in goes[number] if successor > number]
    comes: list[list[int]] = [[] for _ in code]
    for number, to in enumerate(goes):
        for successor in to:
            comes[successor].append(number)
    backward = [(number, first) for number, to in enumerate(goes) for first in to if first <= number]
    return {each for last, first in backward for each in _reached(first, goes) & _reached(last, comes)}


def exchanges_in_loops(listing: str) -> int:
    """How many instructions in loops make threads exchange values or wait: shuffles, shared memory, barriers.

    A reduction of a tensor that is larger than the caches needs them once, behind its loop; inside, they keep loads
    from being under way.

    Args:
        listing: as for `unset_registers`.
    """
    functions = re.split(r"^\s*Function : \S+$", listing, flags=re.MULTILINE)[1:]
    codes = [list(_instructions(text)) for text in functions]
    return sum(code[n].opcode.partition(".")[0] in _EXCHANGES for code in codes for n in _in_loops(code))


def unknown_opcodes(listing: str) -> set[str]:
    """Opcodes of a listing, without suffixes, of which the check knows no operands."""
    found = {_GUARD.sub("", written).split()[0].partition(".")[0] for _, written in _LINE.findall(listing)}
    return found - _WITHOUT_DESTINATION - _WITH_DESTINATION
