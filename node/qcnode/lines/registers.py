"""The register map: read from `registers.yaml`, and made into what PLC tools import.

`python -m qcnode.lines.registers` in the root of the checkout writes the files of
firmware_configs/plc and the table in docs/how-to/modbus.md anew; a test says when they no
longer are what the map says. Needs PyYAML, which the extra `modbus` brings.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml

from qcnode.errors import SettingsError

SIZES: Final = {"u16": 1, "u32": 2, "bits": 1}
BITS: Final = 16
WORD: Final = 0xFFFF
FOLDER: Final = "firmware_configs/plc"
GUIDE: Final = "docs/how-to/modbus.md"
_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9]{1,31}")
_TABLE: Final = ("<!-- registers -->\n", "<!-- end of registers -->\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bit:
    """One bit of a register."""

    name: str
    bit: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One value; `written_by_plc` is an input of the node."""

    name: str
    address: int
    type: str
    words: str
    written_by_plc: bool
    bits: tuple[Bit, ...] = ()

    @property
    def size(self) -> int:
        """Return how many registers of 16 bits it takes."""
        return SIZES[self.type]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterMap:
    """All registers, by address."""

    version: int
    registers: tuple[Register, ...]
    checksum: int

    def __getitem__(self, name: str) -> Register:
        """Return the register of this name."""
        return next(register for register in self.registers if register.name == name)

    def inputs(self) -> tuple[Register, ...]:
        """Return what the PLC writes."""
        return tuple(register for register in self.registers if register.written_by_plc)

    def outputs(self) -> tuple[Register, ...]:
        """Return what the node writes."""
        return tuple(register for register in self.registers if not register.written_by_plc)


def shipped() -> RegisterMap:
    """Return the map of this version."""
    return read_map(files("qcnode.lines").joinpath("registers.yaml").read_text("utf-8"))


def read_map(text: str) -> RegisterMap:
    """Read a map; raises `SettingsError` naming the register that cannot be."""
    raw = yaml.safe_load(text)
    found: list[Register] = []
    for side in ("inputs", "outputs"):
        found += [_register(one, written_by_plc=side == "inputs") for one in raw[side]]
    found.sort(key=lambda register: register.address)
    for before, after in pairwise(found):
        if before.address + before.size > after.address:
            raise SettingsError(
                f"registers.yaml: {before.name} and {after.name} overlap at {after.address}"
            )
    names = [name for register in found for name in _names(register)]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"registers.yaml: there are two of the name {name}")
    digest = hashlib.sha256(text.encode()).digest()
    return RegisterMap(
        version=raw["version"],
        registers=tuple(found),
        checksum=int.from_bytes(digest[:2], "big"),
    )


def _register(raw: dict[str, Any], *, written_by_plc: bool) -> Register:
    register = Register(
        name=raw["name"],
        address=raw["address"],
        type=raw["type"],
        words=raw["words"],
        written_by_plc=written_by_plc,
        bits=tuple(Bit(**bit) for bit in raw.get("bits", ())),
    )
    bits = [bit.bit for bit in register.bits]
    right = (
        all(_NAME.fullmatch(name) for name in _names(register))
        and register.type in SIZES
        and 0 <= register.address <= WORD
        and (register.type == "bits") == bool(bits)
        and len(set(bits)) == len(bits)
        and all(0 <= bit < BITS for bit in bits)
    )
    if not right:
        raise SettingsError(f"registers.yaml: {register.name}: name, address, type or bits")
    return register


def _names(register: Register) -> list[str]:
    return [register.name, *(bit.name for bit in register.bits)]


# -- what PLC tools import ----------------------------------------------------------------


def rendered(registers: RegisterMap) -> dict[str, str]:
    """Return every generated file by its path in the checkout."""
    return {
        f"{FOLDER}/modbus.csv": _csv(registers),
        f"{FOLDER}/GVL_QC.st": _structured_text(registers),
        f"{FOLDER}/s7_db.scl": _scl(registers),
        f"{FOLDER}/logix_tags.csv": _logix(registers),
    }


def table(registers: RegisterMap) -> str:
    """Return the table of the guide."""
    lines = ["| address | name | type | written by | |", "|---|---|---|---|---|"]
    for register in registers.registers:
        who = "PLC" if register.written_by_plc else "node"
        lines.append(
            f"| {register.address} | `{register.name}` | {register.type} | {who}"
            f" | {register.words} |"
        )
        lines += [
            f"| {register.address}.{bit.bit} | `{bit.name}` | bit | {who} | {bit.words} |"
            for bit in register.bits
        ]
    return "\n".join(lines) + "\n"


def in_guide(guide: str, registers: RegisterMap) -> str:
    """Return the guide with the table of this map."""
    head, _, rest = guide.partition(_TABLE[0])
    _, _, tail = rest.partition(_TABLE[1])
    return head + _TABLE[0] + table(registers) + _TABLE[1] + tail


def _csv(registers: RegisterMap) -> str:
    lines = ["name,register,address,bit,type,access,description"]
    for register in registers.registers:
        access = "RW" if register.written_by_plc else "R"
        number = 40_001 + register.address
        lines.append(
            f'{register.name},{number},{register.address},,{register.type},{access},"{register.words}"'
        )
        lines += [
            f'{register.name}.{bit.name},{number},{register.address},{bit.bit},bit,{access},"{bit.words}"'
            for bit in register.bits
        ]
    return "\n".join(lines) + "\n"


_HEAD: Final = "Made of node/qcnode/lines/registers.yaml; not to be changed by hand."


def _structured_text(registers: RegisterMap) -> str:
    lines = [f"(* {_HEAD} *)"]
    for name, ours in (("ST_QcToNode", True), ("ST_QcFromNode", False)):
        lines += ["", f"TYPE {name} :", "STRUCT"]
        for register in registers.registers:
            if register.written_by_plc == ours:
                lines += _st_members(register)
        lines += ["END_STRUCT", "END_TYPE"]
    lines += [
        "",
        "VAR_GLOBAL",
        "    QcToNode : ST_QcToNode;",
        "    QcFromNode : ST_QcFromNode;",
        "END_VAR",
    ]
    return "\n".join(lines) + "\n"


# Words of the language that are no names in it.
_ST_NAMES: Final = {"Action": "GateAction"}


def _st_members(register: Register) -> list[str]:
    kind = "UDINT" if register.type == "u32" else "UINT"
    kind = "WORD" if register.type == "bits" else kind
    bits = "".join(f" {bit.bit}={bit.name}" for bit in register.bits)
    words = f"{register.address}: {register.words}{';' + bits if bits else ''}"
    name = _ST_NAMES.get(register.name, register.name)
    return [f"    {name} : {kind}; (* {words} *)"]


def _scl(registers: RegisterMap) -> str:
    lines = [
        f"// {_HEAD}",
        'DATA_BLOCK "QcRegisters"',
        "{ S7_Optimized_Access := 'FALSE' }",
        "VERSION : 0.1",
        "NON_RETAIN",
        "   STRUCT",
    ]
    for register in registers.registers:
        kind = "UDInt" if register.type == "u32" else "UInt"
        kind = "Word" if register.type == "bits" else kind
        lines.append(f"      {register.name} : {kind};   // {register.address}: {register.words}")
    return "\n".join([*lines, "   END_STRUCT;", "BEGIN", "END_DATA_BLOCK"]) + "\n"


def _logix(registers: RegisterMap) -> str:
    lines = [f"remark,{_HEAD}", "TYPE,SCOPE,NAME,DESCRIPTION,DATATYPE,SPECIFIER,ATTRIBUTES"]
    for register in registers.registers:
        kind = "DINT" if register.type == "u32" else "INT"
        lines.append(f'TAG,,QC_{register.name},"{register.words}",{kind},,')
        lines += [
            f'ALIAS,,QC_{bit.name},"{bit.words}",,QC_{register.name}.{bit.bit},'
            for bit in register.bits
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write every generated file of the checkout this is run in."""
    registers = shipped()
    for path, text in rendered(registers).items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, "utf-8")
    guide = Path(GUIDE)
    guide.write_text(in_guide(guide.read_text("utf-8"), registers), "utf-8")


if __name__ == "__main__":
    main()
