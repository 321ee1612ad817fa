"""Reads of unset registers: in listings of ptxas 12.8.93 (Triton 3.6), one of them miscompiled, and in small ones."""

import re
from pathlib import Path

import pytest

from speedyresnet.kernels.machine_code import exchanges_in_loops, unknown_opcodes, unset_registers

LISTINGS = Path(__file__).with_name("listings")
"""The weight gradient of `convolution_pool` for 8 channels and 16 filters in float16, compiled for sm_90."""
FAULTY, MENDED = ((LISTINGS / name).read_text() for name in ("faulty.sass", "mended.sass"))


def listing(*instructions):
    """As cuobjdump prints it: 16 bytes an instruction."""
    lines = [f"        /*{16 * place:04x}*/                   {each} ;" for place, each in enumerate(instructions)]
    return "\n".join(["\tcode for sm_90a", "\t\tFunction : kernel", *lines, ""])


def found_in(*instructions):
    return [str(each) for each in unset_registers(listing(*instructions))]


def test_the_known_fault_is_found_and_nothing_else():
    """A descriptor of shared memory from uniform registers that nothing has set; 0.2 relative error on an H100."""
    found = unset_registers(FAULTY)
    assert [(each.function, each.address, each.register) for each in found] == [
        ("convolution_pool_gradient_kernel", 0x40, "UR30"),
        ("convolution_pool_gradient_kernel", 0x80, "UR31"),
    ]
    assert found[0].instruction == "UIADD3 UR30, UP0, UR30, 0x20, URZ"
    assert unset_registers(MENDED) == []


def test_every_opcode_of_the_listings_is_known():
    assert unknown_opcodes(FAULTY + MENDED) == set()
    assert unknown_opcodes(listing("@P0 NEWTHING.64 R2, R4", "EXIT")) == {"NEWTHING"}


ENTRY = re.compile(r"^ +/\*([0-9a-f]{4})\*/ +(?:S2U?R|CS2R|ULDC\.64|LDC|UMOV|USHF[.\w]*|UIADD3[.\w]*|LDG\S*) (U?R\d+),")


def test_an_instruction_that_is_taken_out_leaves_a_register_unset():
    """Of the mended listing, one at a time: the only ones to write what they write."""
    lines, seen, missed = MENDED.splitlines(), 0, []
    for place, line in enumerate(lines):
        match = ENTRY.match(line)
        writers = match and [each for each in lines if re.search(rf"\*/ +(@!?U?P\d +)?[\w.]+ {match[2]}\b", each)]
        if not match or len(writers) > 1 or match[2] == "R1":  # the stack pointer, which nothing reads here
            continue
        seen += 1
        left = "\n".join([*lines[:place], re.sub(r"\*/.*", "*/ NOP ;", line), *lines[place + 1 :]])
        if match[2] not in {each.register for each in unset_registers(left)}:
            missed.append(line)
    assert seen > 20
    assert missed == []


R = ["S2R R0, SR_TID.X", "S2UR UR4, SR_CTAID.X"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (["IADD3 R2, R0, R1, RZ", "EXIT"], ["R1 at 0x20"]),
        (["IADD3 R0, R0, 0x1, RZ", "IADD3 R1, -R0.reuse, UR4, RZ", "EXIT"], []),
        (["UIADD3 UR5, UR4, UR6, URZ", "EXIT"], ["UR6 at 0x20"]),
        (["MOV R1, UR5", "EXIT", "MOV R2, R3"], ["UR5 at 0x20"]),  # nothing goes behind EXIT
        # Packed singles: a pair of registers, or one number for both halves.
        (["MOV R4, R0", "FADD2 R2, -R4.F32, 1", "EXIT"], []),
        (["MOV R4, R0", "FADD2 R2, R4.F32x2.HI_LO, 1", "EXIT"], ["R5 at 0x30"]),
        # Both ways of a branch: set on one of them, on neither.
        (["ISETP.GE.AND P0, PT, R0, 0x4, PT", "@P0 BRA 0x50", "MOV R5, 0x1", "MOV R6, R5", "EXIT"], []),
        (["ISETP.GE.AND P0, PT, R0, 0x4, PT", "@P0 BRA 0x50", "MOV R5, 0x1", "MOV R6, R7", "EXIT"], ["R7 at 0x50"]),
        (["BRA 0x40", "MOV R5, 0x1", "MOV R6, R5", "EXIT"], ["R5 at 0x40"]),  # its write is jumped over
        # A loop: a register that its first turn reads, one that the turn sets first, one that is set before it.
        (["IADD3 R5, R5, 0x1, RZ", "ISETP.LT.AND P0, PT, R5, R0, PT", "@P0 BRA 0x20", "EXIT"], ["R5 at 0x20"]),
        (["MOV R6, R7", "MOV R7, R0", "ISETP.LT.AND P0, PT, R7, R6, PT", "@P0 BRA 0x20", "EXIT"], ["R7 at 0x20"]),
        (["MOV R5, RZ", "IADD3 R5, R5, 0x1, RZ", "ISETP.LT.AND P0, PT, R5, R0, PT", "@P0 BRA 0x30", "EXIT"], []),
        (["BRA 0x40", "MOV R6, R7", "MOV R7, R0", "BRA 0x30"], []),  # the loop is entered in its middle
        # What has a predicate may not happen in the first turn, and what it writes counts as written.
        (["ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 MOV R6, R7", "MOV R7, R0", "PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0",
          "BRA 0x30"], []),
        (["ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 MOV R6, RZ", "@!P0 MOV R7, R6", "EXIT"], []),
        (["ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 IADD3 R5, R5, 0x1, RZ", "BRA 0x30"], ["R5 at 0x30"]),
        (["@P0 MOV R6, RZ", "EXIT"], ["P0 at 0x20"]),
        (["UISETP.NE.AND UP0, UPT, UR4, URZ, UPT", "BRA.U UP0, 0x50", "MOV R5, R6", "EXIT"], ["R6 at 0x40"]),
        (["@!UP1 UIADD3 UR5, UR4, 0x1, URZ", "EXIT"], ["UP1 at 0x20"]),
        (["UIADD3 UR5, UP0, UR4, 0x1, URZ", "UIADD3.X UR6, UR4, URZ, URZ, UP0, !UPT", "EXIT"], []),
        (["UIADD3 UR5, UP1, UR4, 0x1, URZ", "UIADD3.X UR6, UR4, URZ, URZ, UP0, !UPT", "EXIT"], ["UP0 at 0x30"]),
        (["IADD3 R4, P1, P2, R0, R0, R0", "IADD3.X R5, R0, R0, R0, P1, P2", "SEL R6, R5, R4, !P3", "EXIT"],
         ["P3 at 0x40"]),
        (["R2P PR, R0, 0x7f", "@P6 EXIT", "VOTE.ANY R2, PT, P5", "SHFL.BFLY PT, R3, R2, 0x1, 0x1f", "MOV R4, R3",
          "EXIT"], []),
        # Blackwell's listings have barriers and stalls behind the operands.
        (["ISETP.NE.AND P0, PT, R0, RZ, PT &req={0} ?WAIT13_END_GROUP", "@P0 BRA 0x40 &req={2,1,0} ?trans5",
          "STG.E [R0], R5 &req={1} &rd=0x2 ?WAIT2_END_GROUP", "EXIT ?WAIT5_END_GROUP"], ["R5 at 0x40"]),
        # Pairs and fours.
        (["LDC.64 R2, c[0x0][0x210]", "LDG.E.128 R4, desc[UR4][R2.64]", "EXIT"], ["UR5 at 0x30"]),
        (["LDC R2, c[0x0][0x210]", "ULDC.64 UR4, c[0x0][0x208]", "LDG.E R4, desc[UR4][R2.64+0x10]", "EXIT"],
         ["R3 at 0x40"]),
        (["LDS.64 R4, [R0+UR4]", "STS.64 [R0], R4", "STS.128 [R0], R4", "EXIT"], ["R6 at 0x40", "R7 at 0x40"]),
        (["LDS.128 R4, [R0]", "STS.128 [R0], R4", "MOV R3, R8", "EXIT"], ["R8 at 0x40"]),
        (["IMAD.WIDE R4, R0, 0x4, R6", "EXIT"], ["R6 at 0x20", "R7 at 0x20"]),
        (["IMAD.WIDE R4, R0, 0x4, RZ", "MOV R6, R5", "MOV R7, R6", "EXIT"], []),
        (["IMAD R4, R0, 0x4, RZ", "MOV R6, R5", "EXIT"], ["R5 at 0x30"]),
        (["CS2R R4, SRZ", "DADD R6, R4, R4", "DADD R8, R4, R10", "EXIT"], ["R10 at 0x40", "R11 at 0x40"]),
        (["CS2R.32 R4, SR_CLOCKLO", "MOV R6, R5", "EXIT"], ["R5 at 0x30"]),
        (["ULDC.64 UR6, c[0x0][0x208]", "UIADD3.64 UR8, UR6, UR10, URZ", "MOV R1, UR9", "EXIT"],
         ["UR10 at 0x30", "UR11 at 0x30"]),
        (["LDSM.16.M88.2 R4, [R0]", "STSM.16.M88.4 [R0], R4", "EXIT"], ["R6 at 0x30", "R7 at 0x30"]),
        (["LDSM.16.MT88.4 R4, [R0]", "MOVM.16.MT88 R8, R7", "MOV R9, R8", "EXIT"], []),
        # Matrix products: m16n8k16 of 4, 2 and 4 registers; 64 x 16 sums of float32 are 8 a thread.
        (["LDSM.16.M88.4 R4, [R0]", "LDSM.16.M88.2 R8, [R0]", "HMMA.16816.F32 R12, R4, R8, RZ", "STS.128 [R0], R12",
          "EXIT"], []),
        (["LDSM.16.M88.4 R4, [R0]", "HMMA.16816.F32 R12, R4, R7, R4", "MOV R1, R16", "EXIT"],
         ["R8 at 0x30", "R16 at 0x40"]),
        (["ULDC.64 UR6, c[0x0][0x0]", "HGMMA.64x16x16.F32 R8, gdesc[UR4], RZ, !UPT", "EXIT"], ["UR5 at 0x30"]),
        (["ULDC.64 UR4, c[0x0][0x0]", "HGMMA.64x16x16.F32 R8, gdesc[UR4], RZ, !UPT", "EXIT"],
         ["UR6 at 0x30", "UR7 at 0x30"]),
        (["LDS.128 R4, [R0]", "ULDC.64 UR8, c[0x0][0x0]", "HGMMA.64x16x16.F32 R8, R4, gdesc[UR6], RZ, !UPT, gsb0",
          "STS.128 [R0], R12", "MOV R1, R16", "EXIT"], ["R16 at 0x60"]),
        (["LDS.64 R4, [R0]", "ULDC.64 UR6, c[0x0][0x0]", "HGMMA.64x16x16.F32 R8, R4, gdesc[UR6], R8, gsb0", "EXIT"],
         [f"{register} at 0x40" for register in (*(f"R{number}" for number in range(6, 16)), "UR8", "UR9")]),
        # Parts of a register: two bytes are replaced, a bit is cleared; bytes that are moved are read.
        (["PRMT R5, R0, 0x7632, R5", "PRMT R6, RZ, 0x7610, R6", "LOP3.LUT R7, R7, 0x7fffffff, RZ, 0xc0, !PT", "EXIT"],
         []),
        (["PRMT R5, R0, 0x5432, R5", "PRMT R6, R6, 0x5410, R7", "LOP3.LUT R8, R8, 0xffff, RZ, 0xc0, !PT", "EXIT"],
         ["R5 at 0x20", "R7 at 0x30", "R8 at 0x40"]),
        # Calls, convergence, jumps to who knows where.
        (["MOV R2, 0x40", "CALL.REL.NOINC 0x60", "MOV R5, R4", "EXIT", "MOV R4, R0", "RET.REL.NODEC R2 0x0"],
         ["R3 at 0x70"]),
        (["CS2R R2, SRZ", "CALL.REL.NOINC 0x60", "MOV R5, R6", "EXIT", "MOV R4, R0", "RET.REL.NODEC R2 0x0"],
         ["R6 at 0x40"]),
        (["BSSY B0, 0x60", "BRA 0x50", "MOV R4, R0", "BSYNC B0", "MOV R5, R4", "EXIT"], ["R4 at 0x60"]),
        (["BSSY B0, 0x70", "BSYNC B0", "MOV R4, R0", "MOV R6, R0", "EXIT", "MOV R5, R8", "EXIT"], ["R8 at 0x70"]),
        (["WARPSYNC 0xffffffff", "WARPSYNC.ALL", "WARPSYNC.COLLECTIVE R0, 0x60", "EXIT", "MOV R5, R4", "EXIT"],
         ["R4 at 0x60"]),
        (["BRX R0 -0x20", "MOV R4, R0", "MOV R5, R4", "EXIT"], []),
        (["CALL.ABS.NOINC R0", "MOV R5, R4", "EXIT"], []),
        (["NEWTHING R4, [R9]", "MOV R5, R100", "MOV R6, R2", "EXIT"], ["R2 at 0x40"]),
    ],
)  # fmt: skip
def test_small_listings(code, expected):
    """Behind two instructions that set R0 and UR4."""
    assert found_in(*R, *code) == expected


def test_each_function_begins_with_nothing_set():
    second = listing("MOV R1, R0", "EXIT").replace("kernel", "other")
    found = unset_registers(listing("S2R R0, SR_TID.X", "EXIT") + second)
    assert [(each.function, str(each)) for each in found] == [("other", "R0 at 0x0")]
    assert unset_registers("") == []


def test_a_branch_to_nowhere_is_no_listing():
    with pytest.raises(ValueError, match="@P0 BRA 0x500: its target"):
        unset_registers(listing("ISETP.NE.AND P0, PT, RZ, RZ, PT", "@P0 BRA 0x500", "EXIT"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (["LDS R4, [R0]", "BAR.SYNC 0x0", "EXIT"], 0),
        (["LDS R4, [R0]", "@P0 BRA 0x0", "STS [R0], R4", "EXIT"], 1),  # behind the loop one more
        (["STS [R0], R4", "BAR.SYNC 0x0", "SHFL.BFLY R4, R5, 0x1, 0x1f", "LDG.E R6, [R2]", "BRA 0x10"], 2),
        # A part of the loop that stands behind everything, and one that only leads out of it.
        (["@P0 BRA 0x50", "MOV R4, R5", "@P1 BRA 0x70", "@P2 BRA 0x0", "EXIT", "ATOMS.ADD R4, [R0], R5", "BRA 0x10",
          "REDUX UR4, R4", "EXIT"], 1),
        (["NOP", "@P0 BRA 0x40", "LDS R4, [R0]", "EXIT", "STSM.16.M88.4 [R0], R4", "@P1 BRA 0x0", "EXIT"], 1),
        # Two calls of one function: from behind the first there is a way to it, but no loop.
        (["CALL.REL.NOINC 0x60", "BAR.SYNC 0x0", "CALL.REL.NOINC 0x60", "LDS R4, [R0]", "EXIT", "NOP", "MOV R4, R0",
          "RET.REL.NODEC R2 0x0"], 0),
        (["NOP", "EXIT", "BRA 0x20"], 0),
        # Two regions of the same barrier, one behind the other.
        (["BSSY B0, 0x20", "BSYNC B0", "BAR.SYNC 0x0", "BSSY B0, 0x50", "BSYNC B0", "EXIT"], 0),
    ],
)  # fmt: skip
def test_exchanges_between_threads_count_in_loops_only(code, expected):
    assert exchanges_in_loops(listing(*code)) == expected
    assert exchanges_in_loops(listing(*code) + listing(*code)) == 2 * expected
