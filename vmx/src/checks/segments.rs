//! Checks on guest segment and descriptor-table registers. Rules that hold for several registers are one function; the
//! field in the row says for which.

use super::{Check, Context, Outcome, Table, ia32e, virtual_8086};
use crate::fields::{Field, Groups};

const fn row(name: &'static str, field: Field, rule: &'static str, test: fn(&Context<'_>, Field) -> bool) -> Check {
    Check { name, field, rule, qualification: 0, test }
}

/// Registers in VMCS order.
const CS: u8 = 1;
const SS: u8 = 2;
const LDTR: u8 = 6;

const fn access_field(register: u8) -> Field {
    Field::GUEST_ES_ACCESS.plus(register)
}
fn access(c: &Context<'_>, register: u8) -> u64 {
    c.vmcs.get(access_field(register))
}
fn usable(c: &Context<'_>, register: u8) -> bool {
    access(c, register) >> 16 & 1 == 0
}
fn dpl(a: u64) -> u64 {
    a >> 5 & 3
}
fn protected(c: &Context<'_>) -> bool {
    c.vmcs.get(Field::GUEST_CR0) & 1 != 0
}

/// Register that an access-rights field belongs to.
fn of_access(f: Field) -> u8 {
    f.0 - Field::GUEST_ES_ACCESS.0
}
/// CS is always checked; the others while usable.
fn checked(c: &Context<'_>, register: u8) -> bool {
    register == CS || usable(c, register)
}
/// Outside virtual-8086 mode, for a register that is checked.
fn ordinary(c: &Context<'_>, register: u8) -> bool {
    !virtual_8086(c) && checked(c, register)
}

const fn v86_base(name: &'static str, f: Field) -> Check {
    row(name, f, "in virtual-8086 mode: the selector × 16", |c, f| {
        let register = f.0 - Field::GUEST_ES_BASE.0;
        !virtual_8086(c) || c.vmcs.get(f) == c.vmcs.get(Field::GUEST_ES_SELECTOR.plus(register)) << 4
    })
}
const fn v86_limit(name: &'static str, f: Field) -> Check {
    row(name, f, "in virtual-8086 mode: 0xffff", |c, f| !virtual_8086(c) || c.vmcs.get(f) == 0xffff)
}
const fn v86_access(name: &'static str, f: Field) -> Check {
    row(name, f, "in virtual-8086 mode: 0xf3", |c, f| !virtual_8086(c) || c.vmcs.get(f) == 0xf3)
}
const fn high_base(name: &'static str, f: Field) -> Check {
    row(name, f, "bits 63:32 zero while usable", |c, f| {
        let register = f.0 - Field::GUEST_ES_BASE.0;
        !checked(c, register) || c.vmcs.get(f) >> 32 == 0
    })
}
const fn canonical(name: &'static str, f: Field) -> Check {
    row(name, f, "canonical", |c, f| c.capabilities.canonical(c.vmcs.get(f)))
}
const fn data_type(name: &'static str, f: Field) -> Check {
    row(name, f, "while usable: accessed, and readable if code", |c, f| {
        let a = c.vmcs.get(f);
        !ordinary(c, of_access(f)) || a & 1 != 0 && (a & 8 == 0 || a & 2 != 0)
    })
}
const fn code_or_data(name: &'static str, f: Field) -> Check {
    row(name, f, "S flag set", |c, f| !ordinary(c, of_access(f)) || c.vmcs.get(f) & 0x10 != 0)
}
const fn data_dpl(name: &'static str, f: Field) -> Check {
    row(name, f, "DPL not below the selector's RPL, for data and non-conforming code, unless unrestricted", |c, f| {
        let register = of_access(f);
        let a = c.vmcs.get(f);
        !ordinary(c, register)
            || c.vmcs.unrestricted()
            || a & 0xf >= 12
            || dpl(a) >= c.vmcs.get(Field::GUEST_ES_SELECTOR.plus(register)) & 3
    })
}
const fn present(name: &'static str, f: Field) -> Check {
    row(name, f, "P flag set", |c, f| !ordinary(c, of_access(f)) || c.vmcs.get(f) & 0x80 != 0)
}
const fn reserved(name: &'static str, f: Field) -> Check {
    row(name, f, "bits 11:8 and 31:17 zero", |c, f| !ordinary(c, of_access(f)) || c.vmcs.get(f) & 0xfffe_0f00 == 0)
}
const fn granularity(name: &'static str, f: Field) -> Check {
    row(name, f, "G clear if the limit's bits 11:0 are not all ones, set if bits 31:20 are not all zero", |c, f| {
        !ordinary(c, of_access(f)) || granularity_valid(c, f)
    })
}
fn granularity_valid(c: &Context<'_>, f: Field) -> bool {
    let limit = c.vmcs.get(Field::GUEST_ES_LIMIT.plus(of_access(f)));
    let g = c.vmcs.get(f) & 1 << 15 != 0;
    (limit & 0xfff == 0xfff || !g) && (limit >> 20 == 0 || g)
}

pub static SEGMENTS: Table = Table {
    section: "Checks on Guest Segment Registers",
    outcome: Outcome::InvalidGuestState,
    groups: Groups::SEGMENTS,
    checks: &[
        row("tr-selector-ti", Field::GUEST_TR_SELECTOR, "TI flag zero", |c, f| c.vmcs.get(f) & 4 == 0),
        row("ldtr-selector-ti", Field::GUEST_LDTR_SELECTOR, "TI flag zero while usable", |c, f| {
            !usable(c, LDTR) || c.vmcs.get(f) & 4 == 0
        }),
        row(
            "ss-selector-rpl",
            Field::GUEST_SS_SELECTOR,
            "RPL equal to that of CS, unless virtual-8086 or unrestricted",
            |c, f| virtual_8086(c) || c.vmcs.unrestricted() || c.vmcs.get(f) & 3 == c.vmcs.get(Field::GUEST_CS_SELECTOR) & 3,
        ),
        v86_base("v86-cs-base", Field::GUEST_CS_BASE),
        v86_base("v86-ss-base", Field::GUEST_SS_BASE),
        v86_base("v86-ds-base", Field::GUEST_DS_BASE),
        v86_base("v86-es-base", Field::GUEST_ES_BASE),
        v86_base("v86-fs-base", Field::GUEST_FS_BASE),
        v86_base("v86-gs-base", Field::GUEST_GS_BASE),
        canonical("tr-base", Field::GUEST_TR_BASE),
        canonical("fs-base", Field::GUEST_FS_BASE),
        canonical("gs-base", Field::GUEST_GS_BASE),
        row("ldtr-base", Field::GUEST_LDTR_BASE, "canonical while usable", |c, f| {
            !usable(c, LDTR) || c.capabilities.canonical(c.vmcs.get(f))
        }),
        high_base("cs-base", Field::GUEST_CS_BASE),
        high_base("ss-base", Field::GUEST_SS_BASE),
        high_base("ds-base", Field::GUEST_DS_BASE),
        high_base("es-base", Field::GUEST_ES_BASE),
        v86_limit("v86-cs-limit", Field::GUEST_CS_LIMIT),
        v86_limit("v86-ss-limit", Field::GUEST_SS_LIMIT),
        v86_limit("v86-ds-limit", Field::GUEST_DS_LIMIT),
        v86_limit("v86-es-limit", Field::GUEST_ES_LIMIT),
        v86_limit("v86-fs-limit", Field::GUEST_FS_LIMIT),
        v86_limit("v86-gs-limit", Field::GUEST_GS_LIMIT),
        v86_access("v86-cs-access", Field::GUEST_CS_ACCESS),
        v86_access("v86-ss-access", Field::GUEST_SS_ACCESS),
        v86_access("v86-ds-access", Field::GUEST_DS_ACCESS),
        v86_access("v86-es-access", Field::GUEST_ES_ACCESS),
        v86_access("v86-fs-access", Field::GUEST_FS_ACCESS),
        v86_access("v86-gs-access", Field::GUEST_GS_ACCESS),
        row("cs-type", Field::GUEST_CS_ACCESS, "type 9, 11, 13 or 15, or 3 if unrestricted", |c, f| {
            !ordinary(c, CS)
                || match c.vmcs.get(f) & 0xf {
                    9 | 11 | 13 | 15 => true,
                    3 => c.vmcs.unrestricted(),
                    _ => false,
                }
        }),
        row("ss-type", Field::GUEST_SS_ACCESS, "type 3 or 7 while usable", |c, f| {
            !ordinary(c, SS) || matches!(c.vmcs.get(f) & 0xf, 3 | 7)
        }),
        data_type("ds-type", Field::GUEST_DS_ACCESS),
        data_type("es-type", Field::GUEST_ES_ACCESS),
        data_type("fs-type", Field::GUEST_FS_ACCESS),
        data_type("gs-type", Field::GUEST_GS_ACCESS),
        code_or_data("cs-s", Field::GUEST_CS_ACCESS),
        code_or_data("ss-s", Field::GUEST_SS_ACCESS),
        code_or_data("ds-s", Field::GUEST_DS_ACCESS),
        code_or_data("es-s", Field::GUEST_ES_ACCESS),
        code_or_data("fs-s", Field::GUEST_FS_ACCESS),
        code_or_data("gs-s", Field::GUEST_GS_ACCESS),
        row(
            "cs-dpl",
            Field::GUEST_CS_ACCESS,
            "DPL 0 for type 3, equal to that of SS for 9 and 11, not above it for 13 and 15",
            |c, f| {
                let a = c.vmcs.get(f);
                let ss = dpl(access(c, SS));
                !ordinary(c, CS)
                    || match a & 0xf {
                        3 => dpl(a) == 0,
                        9 | 11 => dpl(a) == ss,
                        _ => dpl(a) <= ss,
                    }
            },
        ),
        row("ss-dpl-rpl", Field::GUEST_SS_ACCESS, "DPL equal to the selector's RPL, unless unrestricted", |c, f| {
            virtual_8086(c) || c.vmcs.unrestricted() || dpl(c.vmcs.get(f)) == c.vmcs.get(Field::GUEST_SS_SELECTOR) & 3
        }),
        row("ss-dpl-real", Field::GUEST_SS_ACCESS, "DPL 0 if CS has type 3 or CR0.PE is clear", |c, f| {
            virtual_8086(c) || (access(c, CS) & 0xf != 3 && protected(c)) || dpl(c.vmcs.get(f)) == 0
        }),
        data_dpl("ds-dpl", Field::GUEST_DS_ACCESS),
        data_dpl("es-dpl", Field::GUEST_ES_ACCESS),
        data_dpl("fs-dpl", Field::GUEST_FS_ACCESS),
        data_dpl("gs-dpl", Field::GUEST_GS_ACCESS),
        present("cs-present", Field::GUEST_CS_ACCESS),
        present("ss-present", Field::GUEST_SS_ACCESS),
        present("ds-present", Field::GUEST_DS_ACCESS),
        present("es-present", Field::GUEST_ES_ACCESS),
        present("fs-present", Field::GUEST_FS_ACCESS),
        present("gs-present", Field::GUEST_GS_ACCESS),
        reserved("cs-reserved", Field::GUEST_CS_ACCESS),
        reserved("ss-reserved", Field::GUEST_SS_ACCESS),
        reserved("ds-reserved", Field::GUEST_DS_ACCESS),
        reserved("es-reserved", Field::GUEST_ES_ACCESS),
        reserved("fs-reserved", Field::GUEST_FS_ACCESS),
        reserved("gs-reserved", Field::GUEST_GS_ACCESS),
        row("cs-default-size", Field::GUEST_CS_ACCESS, "D clear if L is set in an IA-32e-mode guest", |c, f| {
            !ordinary(c, CS) || !ia32e(c) || c.vmcs.get(f) & (1 << 13 | 1 << 14) != (1 << 13 | 1 << 14)
        }),
        granularity("cs-granularity", Field::GUEST_CS_ACCESS),
        granularity("ss-granularity", Field::GUEST_SS_ACCESS),
        granularity("ds-granularity", Field::GUEST_DS_ACCESS),
        granularity("es-granularity", Field::GUEST_ES_ACCESS),
        granularity("fs-granularity", Field::GUEST_FS_ACCESS),
        granularity("gs-granularity", Field::GUEST_GS_ACCESS),
        row("tr-type", Field::GUEST_TR_ACCESS, "a busy TSS: 11, or 3 outside IA-32e mode", |c, f| match c.vmcs.get(f) & 0xf {
            11 => true,
            3 => !ia32e(c),
            _ => false,
        }),
        row("tr-s", Field::GUEST_TR_ACCESS, "S flag zero", |c, f| c.vmcs.get(f) & 0x10 == 0),
        row("tr-present", Field::GUEST_TR_ACCESS, "P flag set", |c, f| c.vmcs.get(f) & 0x80 != 0),
        row("tr-reserved", Field::GUEST_TR_ACCESS, "bits 11:8 and 31:17 zero", |c, f| c.vmcs.get(f) & 0xfffe_0f00 == 0),
        row("tr-granularity", Field::GUEST_TR_ACCESS, "G as the limit demands", granularity_valid),
        row("tr-usable", Field::GUEST_TR_ACCESS, "usable", |c, f| c.vmcs.get(f) & 1 << 16 == 0),
        row("ldtr-type", Field::GUEST_LDTR_ACCESS, "type 2 while usable", |c, f| !usable(c, LDTR) || c.vmcs.get(f) & 0xf == 2),
        row("ldtr-s", Field::GUEST_LDTR_ACCESS, "S flag zero while usable", |c, f| {
            !usable(c, LDTR) || c.vmcs.get(f) & 0x10 == 0
        }),
        row("ldtr-present", Field::GUEST_LDTR_ACCESS, "P flag set while usable", |c, f| {
            !usable(c, LDTR) || c.vmcs.get(f) & 0x80 != 0
        }),
        row("ldtr-reserved", Field::GUEST_LDTR_ACCESS, "bits 11:8 and 31:17 zero while usable", |c, f| {
            !usable(c, LDTR) || c.vmcs.get(f) & 0xfffe_0f00 == 0
        }),
        row("ldtr-granularity", Field::GUEST_LDTR_ACCESS, "G as the limit demands, while usable", |c, f| {
            !usable(c, LDTR) || granularity_valid(c, f)
        }),
    ],
};

pub static DESCRIPTOR_TABLES: Table = Table {
    section: "Checks on Guest Descriptor-Table Registers",
    outcome: Outcome::InvalidGuestState,
    groups: Groups::SEGMENTS,
    checks: &[
        canonical("gdtr-base", Field::GUEST_GDTR_BASE),
        canonical("idtr-base", Field::GUEST_IDTR_BASE),
        row("gdtr-limit", Field::GUEST_GDTR_LIMIT, "bits 31:16 zero", |c, f| c.vmcs.get(f) >> 16 == 0),
        row("idtr-limit", Field::GUEST_IDTR_LIMIT, "bits 31:16 zero", |c, f| c.vmcs.get(f) >> 16 == 0),
    ],
};
