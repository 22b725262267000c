//! Checks on guest RIP, RFLAGS and SSP, non-register state, and page-directory-pointer-table entries. They run at every
//! entry, unless a glance says that nothing is special.

use undervisor_core::{DEBUGCTL_BUS_LOCK_DETECT, Dr6, VmxFeatures};

use super::{Check, Context, Outcome, Table, event_injected, ia32e, pae, virtual_8086};
use crate::controls::{interruptibility, interruption, pin, secondary};
use crate::entry::pdptes;
use crate::fields::{Field, Groups};
use crate::vmcs::{SHADOW, revision_word};

const fn row(name: &'static str, field: Field, rule: &'static str, test: fn(&Context<'_>, Field) -> bool) -> Check {
    Check { name, field, rule, qualification: 0, test }
}

/// A link-pointer check: qualification 4.
const fn link(name: &'static str, rule: &'static str, test: fn(&Context<'_>, Field) -> bool) -> Check {
    Check { name, field: Field::VMCS_LINK_POINTER, rule, qualification: 4, test }
}

/// "No VMCS".
pub const NO_VMCS: u64 = u64::MAX;

const STI_OR_MOV_SS: u64 = interruptibility::STI | interruptibility::MOV_SS;
const ACTIVE: u64 = 0;
const HLT: u64 = 1;
const SHUTDOWN: u64 = 2;
const WAIT_FOR_SIPI: u64 = 3;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
/// Pending debug exceptions: single step.
const BS: u64 = 1 << 14;

pub static STATE: Table = Table {
    section: "Checks on Guest RIP, RFLAGS, and SSP; Checks on Guest Non-Register State; Checks on Guest \
              Page-Directory-Pointer-Table Entries",
    outcome: Outcome::InvalidGuestState,
    groups: Groups::ALL,
    checks: &[
        row("rip-high", Field::GUEST_RIP, "bits 63:32 zero outside 64-bit mode", |c, f| mode64(c) || c.vmcs.get(f) >> 32 == 0),
        row("rip-width", Field::GUEST_RIP, "bits beyond the linear-address width identical in 64-bit mode", |c, f| {
            let beyond = (c.vmcs.get(f) as i64) >> c.capabilities.limits.linear_address_bits;
            !mode64(c) || beyond == 0 || beyond == -1
        }),
        row("rflags-reserved", Field::GUEST_RFLAGS, "bits 63:22, 15, 5 and 3 zero, bit 1 set", |c, f| {
            c.vmcs.get(f) & 0xffff_ffff_ffc0_802a == 2
        }),
        row("rflags-vm", Field::GUEST_RFLAGS, "VM clear in an IA-32e-mode guest and in real mode", |c, _| {
            !virtual_8086(c) || !ia32e(c) && c.vmcs.get(Field::GUEST_CR0) & 1 != 0
        }),
        row("rflags-if", Field::GUEST_RFLAGS, "IF set if an external interrupt is injected", |c, f| {
            injected_kind(c) != Some(interruption::EXTERNAL) || c.vmcs.get(f) & IF != 0
        }),
        row("activity", Field::GUEST_ACTIVITY, "an activity state that IA32_VMX_MISC reports", |c, f| match c.vmcs.get(f) {
            ACTIVE => true,
            HLT => c.capabilities.has(VmxFeatures::ACTIVITY_HLT),
            SHUTDOWN => c.capabilities.has(VmxFeatures::ACTIVITY_SHUTDOWN),
            WAIT_FOR_SIPI => c.capabilities.has(VmxFeatures::ACTIVITY_WAIT_FOR_SIPI),
            _ => false,
        }),
        row("activity-hlt-dpl", Field::GUEST_ACTIVITY, "not HLT with an SS DPL other than 0", |c, f| {
            c.vmcs.get(f) != HLT || c.vmcs.get(Field::GUEST_SS_ACCESS) >> 5 & 3 == 0
        }),
        row("activity-shadow", Field::GUEST_ACTIVITY, "active while STI or MOV SS blocks", |c, f| {
            c.vmcs.get(Field::GUEST_INTERRUPTIBILITY) & STI_OR_MOV_SS == 0 || c.vmcs.get(f) == ACTIVE
        }),
        row("activity-event", Field::GUEST_ACTIVITY, "a state that the injected event is allowed in", |c, f| {
            let info = c.vmcs.get32(Field::ENTRY_INTERRUPTION_INFORMATION);
            let vector = interruption::vector(info);
            match (injected_kind(c), c.vmcs.get(f)) {
                (None, _) | (_, ACTIVE) => true,
                (Some(interruption::EXTERNAL | interruption::NMI), HLT) => true,
                (Some(interruption::HARDWARE_EXCEPTION), HLT) => vector == 1 || vector == 18,
                (Some(interruption::OTHER), HLT) => true,
                (Some(interruption::NMI), SHUTDOWN) => true,
                (Some(interruption::HARDWARE_EXCEPTION), SHUTDOWN) => vector == 18,
                _ => false,
            }
        }),
        row("interruptibility-reserved", Field::GUEST_INTERRUPTIBILITY, "bits 31:4 zero", |c, f| c.vmcs.get(f) & !0xf == 0),
        row("interruptibility-both", Field::GUEST_INTERRUPTIBILITY, "not blocking by both STI and MOV SS", |c, f| {
            c.vmcs.get(f) & STI_OR_MOV_SS != STI_OR_MOV_SS
        }),
        row("interruptibility-if", Field::GUEST_INTERRUPTIBILITY, "no blocking by STI with IF clear", |c, f| {
            c.vmcs.get(f) & interruptibility::STI == 0 || c.vmcs.get(Field::GUEST_RFLAGS) & IF != 0
        }),
        row(
            "interruptibility-external",
            Field::GUEST_INTERRUPTIBILITY,
            "no blocking if an external interrupt is injected",
            |c, f| injected_kind(c) != Some(interruption::EXTERNAL) || c.vmcs.get(f) & STI_OR_MOV_SS == 0,
        ),
        row("interruptibility-nmi", Field::GUEST_INTERRUPTIBILITY, "no blocking by MOV SS if an NMI is injected", |c, f| {
            injected_kind(c) != Some(interruption::NMI) || c.vmcs.get(f) & interruptibility::MOV_SS == 0
        }),
        row("interruptibility-smi", Field::GUEST_INTERRUPTIBILITY, "no blocking by SMI outside SMM", |c, f| {
            c.vmcs.get(f) & interruptibility::SMI == 0
        }),
        row(
            "interruptibility-virtual-nmi",
            Field::GUEST_INTERRUPTIBILITY,
            "no virtual-NMI blocking if a virtual NMI is injected",
            |c, f| {
                !c.vmcs.pin(pin::VIRTUAL_NMIS)
                    || injected_kind(c) != Some(interruption::NMI)
                    || c.vmcs.get(f) & interruptibility::NMI == 0
            },
        ),
        row(
            "pending-debug-reserved",
            Field::GUEST_PENDING_DEBUG,
            "bits 10:4, 13, 15 and 63:16 zero, and bit 11 (BLD) without OS bus-lock detection",
            |c, f| {
                // BLD can be pending where IA32_DEBUGCTL has its enable.
                let bld =
                    if c.capabilities.limits.debugctl_allowed & DEBUGCTL_BUS_LOCK_DETECT != 0 { Dr6::BLD.bits() } else { 0 };
                c.vmcs.get(f) & !(0x500f | bld) == 0
            },
        ),
        row(
            "pending-debug-step",
            Field::GUEST_PENDING_DEBUG,
            "BS set just if TF is set and BTF clear, while blocking by STI or MOV SS or in HLT",
            |c, f| {
                let blocked =
                    c.vmcs.get(Field::GUEST_INTERRUPTIBILITY) & STI_OR_MOV_SS != 0 || c.vmcs.get(Field::GUEST_ACTIVITY) == HLT;
                let stepping = c.vmcs.get(Field::GUEST_RFLAGS) & TF != 0 && c.vmcs.get(Field::GUEST_DEBUGCTL) & 2 == 0;
                !blocked || (c.vmcs.get(f) & BS != 0) == stepping
            },
        ),
        link("link-pointer-address", "page-aligned, within the physical-address width", |c, f| {
            no_link(c) || super::page(c, c.vmcs.get(f))
        }),
        link("link-pointer-revision", "the region's revision identifier is the processor's", |c, f| {
            no_link(c) || revision_word(c.memory, c.vmcs.get(f)) & !SHADOW == crate::capabilities::REVISION
        }),
        link("link-pointer-shadow", "the region's shadow indicator equals the VMCS-shadowing control", |c, f| {
            no_link(c) || (revision_word(c.memory, c.vmcs.get(f)) & SHADOW != 0) == c.vmcs.secondary(secondary::VMCS_SHADOWING)
        }),
        link("link-pointer-current", "not the current VMCS", |c, f| no_link(c) || c.vmcs.get(f) != c.current),
        Check {
            name: "pdptes",
            field: Field::GUEST_CR3,
            rule: "with PAE paging, no PDPTE that is present sets a reserved bit",
            qualification: 2,
            test: |c, _| !pae(c) || pdptes_valid(c),
        },
    ],
};

fn no_link(c: &Context<'_>) -> bool {
    c.vmcs.get(Field::VMCS_LINK_POINTER) == NO_VMCS
}

fn mode64(c: &Context<'_>) -> bool {
    ia32e(c) && c.vmcs.get(Field::GUEST_CS_ACCESS) & 1 << 13 != 0
}

fn injected_kind(c: &Context<'_>) -> Option<u32> {
    event_injected(c).then(|| interruption::kind(c.vmcs.get32(Field::ENTRY_INTERRUPTION_INFORMATION)))
}

fn pdptes_valid(c: &Context<'_>) -> bool {
    pdptes(c.vmcs, c.memory).iter().all(|&e| pdpte_valid(e, c.capabilities.limits.physical_address_bits))
}

/// Whether a PDPTE may be loaded: not present, or bits 2:1, 8:5 and those beyond the physical-address width zero.
pub fn pdpte_valid(entry: u64, physical_address_bits: u32) -> bool {
    entry & 1 == 0 || entry & (0x1e6 | u64::MAX << physical_address_bits) == 0
}

/// Whether every rule of [`STATE`] obviously holds: nothing is injected, blocked or pending, and no link pointer changed
/// (which dirties the controls). Paging structures are another matter.
pub fn plainly_valid(c: &Context<'_>) -> bool {
    let v = c.vmcs;
    let odd = v.get(Field::GUEST_INTERRUPTIBILITY) | v.get(Field::GUEST_ACTIVITY) | v.get(Field::GUEST_PENDING_DEBUG);
    odd == 0
        && !event_injected(c)
        && v.get(Field::GUEST_RFLAGS) & 0xffff_ffff_ffc2_802a == 2
        && if mode64(c) { matches!((v.get(Field::GUEST_RIP) as i64) >> 47, 0 | -1) } else { v.get(Field::GUEST_RIP) >> 32 == 0 }
        && no_link(c)
}
