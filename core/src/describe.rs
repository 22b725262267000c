//! Layouts of registers as people read them: which bits of a value are called what. Explanations, dumps and the debugger use
//! them; nothing that a guest can observe does.

/// A named run of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Lowest bit.
    pub at: u8,
    /// Number of bits.
    pub bits: u8,
    pub name: &'static str,
}

/// The parts of a value, lowest first. Bits outside all of them are reserved.
pub type Layout = &'static [Part];

/// One bit.
pub const fn bit(at: u8, name: &'static str) -> Part {
    Part { at, bits: 1, name }
}

/// Several bits that are one number.
pub const fn number(at: u8, bits: u8, name: &'static str) -> Part {
    Part { at, bits, name }
}

/// A part of a value with what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub part: Part,
    pub value: u64,
}

/// What a value says: every part that is not zero; set bits outside all parts are called "reserved".
pub fn decode(value: u64, layout: &[Part]) -> Vec<Piece> {
    let mut known = 0u64;
    let mut out = Vec::new();
    for part in layout {
        let mask = mask(part.bits) << part.at;
        known |= mask;
        if value & mask != 0 {
            out.push(Piece { part: *part, value: (value & mask) >> part.at });
        }
    }
    let mut rest = value & !known;
    while rest != 0 {
        let at = rest.trailing_zeros() as u8;
        out.push(Piece { part: bit(at, "reserved"), value: 1 });
        rest &= rest - 1;
    }
    out.sort_by_key(|p| p.part.at);
    out
}

/// The part that a bit belongs to.
pub fn name_of(at: u8, layout: &[Part]) -> Option<&'static str> {
    layout.iter().find(|p| p.at <= at && at < p.at + p.bits).map(|p| p.name)
}

fn mask(bits: u8) -> u64 {
    u64::MAX >> (64 - bits.clamp(1, 64) as u32)
}

impl std::fmt::Display for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Part { at, bits, name } = self.part;
        if bits == 1 { write!(f, "{name} ({at})") } else { write!(f, "{name} ({}:{at}) = {:#x}", at + bits - 1, self.value) }
    }
}

/// CR0 (SDM vol. 3, Control Registers).
pub const CR0: Layout = &[
    bit(0, "PE"),
    bit(1, "MP"),
    bit(2, "EM"),
    bit(3, "TS"),
    bit(4, "ET"),
    bit(5, "NE"),
    bit(16, "WP"),
    bit(18, "AM"),
    bit(29, "NW"),
    bit(30, "CD"),
    bit(31, "PG"),
];

/// CR4.
pub const CR4: Layout = &[
    bit(0, "VME"),
    bit(1, "PVI"),
    bit(2, "TSD"),
    bit(3, "DE"),
    bit(4, "PSE"),
    bit(5, "PAE"),
    bit(6, "MCE"),
    bit(7, "PGE"),
    bit(8, "PCE"),
    bit(9, "OSFXSR"),
    bit(10, "OSXMMEXCPT"),
    bit(11, "UMIP"),
    bit(12, "LA57"),
    bit(13, "VMXE"),
    bit(14, "SMXE"),
    bit(16, "FSGSBASE"),
    bit(17, "PCIDE"),
    bit(18, "OSXSAVE"),
    bit(19, "KL"),
    bit(20, "SMEP"),
    bit(21, "SMAP"),
    bit(22, "PKE"),
    bit(23, "CET"),
    bit(24, "PKS"),
];

/// CR3 with 4-level paging.
pub const CR3: Layout = &[bit(3, "PWT"), bit(4, "PCD"), number(12, 40, "table")];

/// IA32_EFER.
pub const EFER: Layout = &[
    bit(0, "SCE"),
    bit(8, "LME"),
    bit(10, "LMA"),
    bit(11, "NXE"),
    bit(12, "SVME"),
    bit(13, "LMSLE"),
    bit(14, "FFXSR"),
    bit(15, "TCE"),
    bit(17, "MCOMMIT"),
    bit(21, "AUTOIBRS"),
];

/// RFLAGS.
pub const RFLAGS: Layout = &[
    bit(0, "CF"),
    bit(1, "always 1"),
    bit(2, "PF"),
    bit(4, "AF"),
    bit(6, "ZF"),
    bit(7, "SF"),
    bit(8, "TF"),
    bit(9, "IF"),
    bit(10, "DF"),
    bit(11, "OF"),
    number(12, 2, "IOPL"),
    bit(14, "NT"),
    bit(16, "RF"),
    bit(17, "VM"),
    bit(18, "AC"),
    bit(19, "VIF"),
    bit(20, "VIP"),
    bit(21, "ID"),
];

/// DR6.
pub const DR6: Layout = &[
    bit(0, "B0"),
    bit(1, "B1"),
    bit(2, "B2"),
    bit(3, "B3"),
    number(4, 7, "always 1"),
    bit(11, "no bus lock"),
    bit(13, "BD"),
    bit(14, "BS"),
    bit(15, "BT"),
    bit(16, "no RTM"),
    number(17, 15, "always 1"),
];

/// DR7.
pub const DR7: Layout = &[
    bit(0, "L0"),
    bit(1, "G0"),
    bit(2, "L1"),
    bit(3, "G1"),
    bit(4, "L2"),
    bit(5, "G2"),
    bit(6, "L3"),
    bit(7, "G3"),
    bit(8, "LE"),
    bit(9, "GE"),
    bit(10, "always 1"),
    bit(11, "RTM"),
    bit(13, "GD"),
    number(16, 2, "R/W0"),
    number(18, 2, "LEN0"),
    number(20, 2, "R/W1"),
    number(22, 2, "LEN1"),
    number(24, 2, "R/W2"),
    number(26, 2, "LEN2"),
    number(28, 2, "R/W3"),
    number(30, 2, "LEN3"),
];

/// IA32_DEBUGCTL.
pub const DEBUGCTL: Layout = &[
    bit(0, "LBR"),
    bit(1, "BTF"),
    bit(2, "BLD"),
    bit(6, "TR"),
    bit(7, "BTS"),
    bit(8, "BTINT"),
    bit(9, "BTS_OFF_OS"),
    bit(10, "BTS_OFF_USR"),
    bit(11, "FREEZE_LBRS_ON_PMI"),
    bit(12, "FREEZE_PERFMON_ON_PMI"),
    bit(14, "FREEZE_WHILE_SMM"),
    bit(15, "RTM"),
];

/// IA32_PAT.
pub const PAT: Layout = &[
    number(0, 8, "PA0"),
    number(8, 8, "PA1"),
    number(16, 8, "PA2"),
    number(24, 8, "PA3"),
    number(32, 8, "PA4"),
    number(40, 8, "PA5"),
    number(48, 8, "PA6"),
    number(56, 8, "PA7"),
];

/// A selector.
pub const SELECTOR: Layout = &[number(0, 2, "RPL"), bit(2, "TI (LDT)"), number(3, 13, "index")];

/// Error code of #PF (SDM vol. 3, Page-Fault Exception; bit 31 AMD's RMP).
pub const PAGE_FAULT: Layout = &[
    bit(0, "P: a present entry forbade it"),
    bit(1, "W: a write"),
    bit(2, "U: a user-mode access"),
    bit(3, "RSVD: a reserved bit is set in an entry"),
    bit(4, "I: an instruction fetch"),
    bit(5, "PK: protection keys forbade it"),
    bit(6, "SS: a shadow-stack access"),
    bit(15, "SGX"),
    bit(31, "RMP"),
];

/// Error code of #TS, #NP, #SS and #GP.
pub const SELECTOR_ERROR: Layout = &[
    bit(0, "EXT: while delivering an event"),
    bit(1, "IDT: the index is of a gate in the IDT"),
    bit(2, "TI: LDT"),
    number(3, 13, "index"),
];

/// The layout of an exception's error code.
pub fn error_code(vector: u8) -> Layout {
    match vector {
        14 => PAGE_FAULT,
        10..=13 => SELECTOR_ERROR,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_pieces() {
        let pieces = decode(0x8000_0011 | 1 << 6, CR0);
        let text: Vec<String> = pieces.iter().map(|p| p.to_string()).collect();
        assert_eq!(text, ["PE (0)", "ET (4)", "reserved (6)", "PG (31)"]);
        assert_eq!(decode(0x3002, RFLAGS)[1].to_string(), "IOPL (13:12) = 0x3");
        assert_eq!(name_of(13, RFLAGS), Some("IOPL"));
        assert_eq!(name_of(15, RFLAGS), None);
    }

    #[test]
    fn parts_are_ordered_and_apart() {
        for layout in [CR0, CR3, CR4, EFER, RFLAGS, DR6, DR7, DEBUGCTL, PAT, SELECTOR, PAGE_FAULT, SELECTOR_ERROR] {
            for pair in layout.windows(2) {
                assert!(pair[0].at + pair[0].bits <= pair[1].at, "{} and {}", pair[0].name, pair[1].name);
            }
        }
    }
}
