//! What VMCB fields mean to people: the bits of each, and what #VMEXIT leaves undefined. See [`undervisor_core::describe`].

use undervisor_core::describe::{self, Layout, bit, number};

use crate::fields::{FIELDS, Field, Row, clean};
use crate::reason;

const INTERCEPT_3: Layout = &[
    bit(0, "INTR"),
    bit(1, "NMI"),
    bit(2, "SMI"),
    bit(3, "INIT"),
    bit(4, "VINTR"),
    bit(5, "CR0 writes other than TS and MP"),
    bit(6, "IDTR reads"),
    bit(7, "GDTR reads"),
    bit(8, "LDTR reads"),
    bit(9, "TR reads"),
    bit(10, "IDTR writes"),
    bit(11, "GDTR writes"),
    bit(12, "LDTR writes"),
    bit(13, "TR writes"),
    bit(14, "RDTSC"),
    bit(15, "RDPMC"),
    bit(16, "PUSHF"),
    bit(17, "POPF"),
    bit(18, "CPUID"),
    bit(19, "RSM"),
    bit(20, "IRET"),
    bit(21, "INT n"),
    bit(22, "INVD"),
    bit(23, "PAUSE"),
    bit(24, "HLT"),
    bit(25, "INVLPG"),
    bit(26, "INVLPGA"),
    bit(27, "IOIO_PROT"),
    bit(28, "MSR_PROT"),
    bit(29, "task switches"),
    bit(30, "FERR freeze"),
    bit(31, "shutdown events"),
];

const INTERCEPT_4: Layout = &[
    bit(0, "VMRUN"),
    bit(1, "VMMCALL"),
    bit(2, "VMLOAD"),
    bit(3, "VMSAVE"),
    bit(4, "STGI"),
    bit(5, "CLGI"),
    bit(6, "SKINIT"),
    bit(7, "RDTSCP"),
    bit(8, "ICEBP"),
    bit(9, "WBINVD"),
    bit(10, "MONITOR"),
    bit(11, "MWAIT"),
    bit(12, "MWAIT if armed"),
    bit(13, "XSETBV"),
    bit(14, "RDPRU"),
    bit(15, "EFER writes, after"),
    number(16, 16, "CR writes, after"),
];

const INTERCEPT_5: Layout = &[
    bit(0, "INVLPGB"),
    bit(1, "illegal INVLPGB"),
    bit(2, "INVPCID"),
    bit(3, "MCOMMIT"),
    bit(4, "TLBSYNC"),
    bit(5, "bus lock"),
    bit(6, "HLT if not virtually interrupted"),
];

const V_INTR: Layout = &[
    number(0, 8, "V_TPR"),
    bit(8, "V_IRQ"),
    bit(9, "VGIF value"),
    bit(11, "V_NMI"),
    bit(12, "V_NMI_MASK"),
    number(16, 4, "V_INTR_PRIO"),
    bit(20, "V_IGN_TPR"),
    bit(24, "V_INTR_MASKING"),
    bit(25, "VGIF enable"),
    bit(26, "V_NMI enable"),
    bit(30, "x2AVIC enable"),
    bit(31, "AVIC enable"),
];

const NESTED: Layout = &[
    bit(0, "NP_ENABLE"),
    bit(1, "SEV enable"),
    bit(2, "SEV-ES enable"),
    bit(3, "GMET enable"),
    bit(4, "SSSCheckEn"),
    bit(5, "virtual transparent encryption"),
    bit(6, "read-only guest page tables"),
    bit(7, "INVLPGB/TLBSYNC enable"),
];

const EVENT: Layout = &[number(0, 8, "vector"), number(8, 3, "type"), bit(11, "error code valid"), bit(31, "valid")];

const CLEAN: Layout = &[
    bit(0, "I: intercepts, TSC offset, pause filter"),
    bit(1, "IOPM: permission-map addresses"),
    bit(2, "ASID"),
    bit(3, "TPR: virtual interrupts"),
    bit(4, "NP: nested paging"),
    bit(5, "CRx: CR0, CR3, CR4, EFER"),
    bit(6, "DRx: DR6, DR7"),
    bit(7, "DT: GDTR, IDTR"),
    bit(8, "SEG: CS, DS, SS, ES, CPL"),
    bit(9, "CR2"),
    bit(10, "LBR"),
    bit(11, "AVIC"),
    bit(12, "CET"),
];

/// Segment attributes as the VMCB packs them (APM vol. 2, Segment State in the VMCB).
pub const ATTRIBUTES: Layout = &[
    number(0, 4, "type"),
    bit(4, "S: code or data"),
    number(5, 2, "DPL"),
    bit(7, "P"),
    bit(8, "AVL"),
    bit(9, "L"),
    bit(10, "D/B"),
    bit(11, "G"),
];

const EXTENSIONS: Layout = &[bit(0, "LBR virtualization"), bit(1, "virtual VMLOAD/VMSAVE"), bit(2, "IBS virtualization")];
const SHADOW: Layout = &[bit(0, "INTERRUPT_SHADOW"), bit(1, "GUEST_INTERRUPT_MASK")];

const EXCEPTIONS: Layout = &[
    bit(0, "#DE"),
    bit(1, "#DB"),
    bit(2, "NMI"),
    bit(3, "#BP"),
    bit(4, "#OF"),
    bit(5, "#BR"),
    bit(6, "#UD"),
    bit(7, "#NM"),
    bit(8, "#DF"),
    bit(10, "#TS"),
    bit(11, "#NP"),
    bit(12, "#SS"),
    bit(13, "#GP"),
    bit(14, "#PF"),
    bit(16, "#MF"),
    bit(17, "#AC"),
    bit(18, "#MC"),
    bit(19, "#XF"),
    bit(21, "#CP"),
    bit(30, "#SX"),
];

/// EXITINFO1 of IOIO.
pub const IO: Layout = &[
    bit(0, "IN"),
    bit(2, "string"),
    bit(3, "REP"),
    bit(4, "8 bits"),
    bit(5, "16 bits"),
    bit(6, "32 bits"),
    bit(7, "16-bit address"),
    bit(8, "32-bit address"),
    bit(9, "64-bit address"),
    number(10, 3, "segment"),
    number(16, 16, "port"),
];

/// EXITINFO1 of a nested page fault.
pub const NESTED_FAULT: Layout = &[
    bit(0, "P: a present entry forbade it"),
    bit(1, "W: a write"),
    bit(2, "U: a user-mode access"),
    bit(3, "RSVD: a reserved bit is set in an entry"),
    bit(4, "I: an instruction fetch"),
    bit(6, "SS: a shadow-stack access"),
    bit(32, "at the translation of the final address"),
    bit(33, "at the translation of a guest paging structure"),
    bit(37, "supervisor shadow stack"),
];

/// The bits of EXITINFO1.
pub fn exit_info_1(code: u64) -> Layout {
    match code {
        reason::IOIO => IO,
        reason::NPF => NESTED_FAULT,
        reason::EXCEPTION_0..0x60 => describe::error_code((code - reason::EXCEPTION_0) as u8),
        _ => &[],
    }
}

/// The row of a field.
pub fn row(f: Field) -> Option<&'static Row> {
    FIELDS.iter().find(|r| r.field == f)
}

/// The row of the field at a byte offset of a VMCB.
pub fn row_at(offset: u64) -> Option<&'static Row> {
    FIELDS.iter().find(|r| (r.field.offset as u64..r.field.offset as u64 + r.field.size as u64).contains(&offset))
}

/// The bits of a field; empty: it is one number.
pub fn layout(f: Field) -> Layout {
    use Field as F;
    match f {
        F::INTERCEPT_EXCEPTIONS => EXCEPTIONS,
        F::INTERCEPT_3 => INTERCEPT_3,
        F::INTERCEPT_4 => INTERCEPT_4,
        F::INTERCEPT_5 => INTERCEPT_5,
        F::V_INTR_CONTROL => V_INTR,
        F::INTERRUPT_SHADOW => SHADOW,
        F::NESTED_CONTROL => NESTED,
        F::EVENTINJ | F::EXITINTINFO => EVENT,
        F::CLEAN_BITS => CLEAN,
        F::VIRTUAL_EXTENSIONS => EXTENSIONS,
        F::CR0 => describe::CR0,
        F::CR3 | F::N_CR3 => describe::CR3,
        F::CR4 => describe::CR4,
        F::EFER => describe::EFER,
        F::RFLAGS => describe::RFLAGS,
        F::DR6 => describe::DR6,
        F::DR7 => describe::DR7,
        F::DBGCTL => describe::DEBUGCTL,
        F::G_PAT => describe::PAT,
        _ => match row(f) {
            Some(r) if r.name.ends_with("_ATTRIBUTES") => ATTRIBUTES,
            Some(r) if r.name.ends_with("_SELECTOR") => describe::SELECTOR,
            _ => &[],
        },
    }
}

/// Names of the clean groups in `bits`.
pub fn clean_names(bits: u32) -> Vec<&'static str> {
    describe::decode((bits & clean::ALL) as u64, CLEAN).iter().map(|p| p.part.name).collect()
}

/// Whether an exit with this code leaves a field of the VMCB undefined (APM vol. 2, Appendix C: SVM Intercept Exit Codes).
pub fn undefined_after_exit(code: u64, interrupted: u64, f: Field) -> bool {
    let first = matches!(
        code,
        0x00..=0x3f | 0x4b..=0x4e | 0x51 | 0x55 | 0x5e | reason::SMI
            | reason::SWINT
            | reason::INVLPG
            | reason::IOIO
            | reason::MSR
            | reason::TASK_SWITCH
            | reason::INVPCID
            | reason::XSETBV
            | reason::BUS_LOCK
            | reason::NPF
            | reason::AVIC_INCOMPLETE_IPI
            | reason::AVIC_NOACCEL
    );
    let second = matches!(
        code,
        0x4e | reason::IOIO
            | reason::TASK_SWITCH
            | reason::NPF
            | reason::AVIC_INCOMPLETE_IPI
            | reason::AVIC_NOACCEL
            | reason::BUS_LOCK
            | reason::INVPCID
    );
    match f {
        Field::EXITINFO1 => !first,
        Field::EXITINFO2 => !second,
        Field::EXITINTINFO_ERROR => interrupted >> 31 & 1 == 0 || interrupted >> 11 & 1 == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_ordered_and_apart() {
        for r in FIELDS {
            for pair in layout(r.field).windows(2) {
                assert!(pair[0].at + pair[0].bits <= pair[1].at, "{}: {} and {}", r.name, pair[0].name, pair[1].name);
            }
        }
    }

    #[test]
    fn fields_are_found_by_offset() {
        assert_eq!(row_at(0x4cb).map(|r| r.name), Some("CPL"));
        assert_eq!(row_at(0x413).map(|r| r.name), Some("CS_ATTRIBUTES"));
        assert!(row_at(0x300).is_none());
    }
}
