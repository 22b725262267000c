//! Checks on guest control registers, debug registers and MSRs.

use super::{Check, Context, Outcome, Table, ia32e, pat_valid};
use crate::capabilities::Capabilities;
use crate::controls::entry;
use crate::fields::{Field, Groups};

const fn row(name: &'static str, field: Field, rule: &'static str, test: fn(&Context<'_>, Field) -> bool) -> Check {
    Check { name, field, rule, qualification: 0, test }
}

pub static REGISTERS: Table = Table {
    section: "Checks on Guest Control Registers, Debug Registers, and MSRs",
    outcome: Outcome::InvalidGuestState,
    groups: Groups::REGISTERS,
    checks: &[
        row(
            "guest-cr0",
            Field::GUEST_CR0,
            "fixed bits as IA32_VMX_CR0_FIXED0 and _FIXED1 say; PE and PG free if unrestricted",
            |c, f| Capabilities::cr0_allowed(c.vmcs.get(f), c.vmcs.unrestricted()),
        ),
        row("guest-cr0-paging", Field::GUEST_CR0, "PG needs PE", |c, f| c.vmcs.get(f) & 0x8000_0001 != 0x8000_0000),
        row("guest-cr4", Field::GUEST_CR4, "fixed bits as IA32_VMX_CR4_FIXED0 and _FIXED1 say", |c, f| {
            c.capabilities.cr4_allowed(c.vmcs.get(f))
        }),
        row("guest-cr4-cet", Field::GUEST_CR4, "CET needs CR0.WP", |c, f| {
            c.vmcs.get(f) & 1 << 23 == 0 || c.vmcs.get(Field::GUEST_CR0) & 1 << 16 != 0
        }),
        row("guest-debugctl", Field::GUEST_DEBUGCTL, "if loaded: reserved bits zero", |c, f| {
            !c.vmcs.entry_control(entry::LOAD_DEBUG_CONTROLS) || c.vmcs.get(f) & !c.capabilities.limits.debugctl_allowed == 0
        }),
        row("guest-ia32e-paging", Field::GUEST_CR0, "an IA-32e-mode guest has PG set", |c, f| {
            !ia32e(c) || c.vmcs.get(f) & 1 << 31 != 0
        }),
        row("guest-ia32e-pae", Field::GUEST_CR4, "an IA-32e-mode guest has PAE set", |c, f| {
            !ia32e(c) || c.vmcs.get(f) & 1 << 5 != 0
        }),
        row("guest-pcide", Field::GUEST_CR4, "PCIDE only in an IA-32e-mode guest", |c, f| {
            ia32e(c) || c.vmcs.get(f) & 1 << 17 == 0
        }),
        row("guest-cr3", Field::GUEST_CR3, "within the physical-address width", |c, f| c.capabilities.physical(c.vmcs.get(f))),
        row("guest-dr7", Field::GUEST_DR7, "if loaded: bits 63:32 zero", |c, f| {
            !c.vmcs.entry_control(entry::LOAD_DEBUG_CONTROLS) || c.vmcs.get(f) >> 32 == 0
        }),
        row("guest-sysenter-esp", Field::GUEST_SYSENTER_ESP, "canonical", |c, f| c.capabilities.canonical(c.vmcs.get(f))),
        row("guest-sysenter-eip", Field::GUEST_SYSENTER_EIP, "canonical", |c, f| c.capabilities.canonical(c.vmcs.get(f))),
        row("guest-perf-global-ctrl", Field::GUEST_PERF_GLOBAL_CTRL, "if loaded: reserved bits zero", |c, f| {
            !c.vmcs.entry_control(entry::LOAD_PERF_GLOBAL_CTRL)
                || c.vmcs.get(f) & !c.capabilities.limits.perf_global_ctrl_allowed == 0
        }),
        row("guest-pat", Field::GUEST_PAT, "if loaded: each byte a memory type (0, 1, 4 to 7)", |c, f| {
            !c.vmcs.entry_control(entry::LOAD_PAT) || pat_valid(c.vmcs.get(f))
        }),
        row("guest-efer-reserved", Field::GUEST_EFER, "if loaded: reserved bits zero", |c, f| {
            !c.vmcs.entry_control(entry::LOAD_EFER) || c.vmcs.get(f) & !c.capabilities.limits.efer_allowed == 0
        }),
        row("guest-efer-lma", Field::GUEST_EFER, "if loaded: LMA equals the IA-32e-mode-guest control", |c, f| {
            !c.vmcs.entry_control(entry::LOAD_EFER) || (c.vmcs.get(f) & 1 << 10 != 0) == ia32e(c)
        }),
        row("guest-efer-lme", Field::GUEST_EFER, "if loaded, and CR0.PG is set: LME equals LMA", |c, f| {
            !c.vmcs.entry_control(entry::LOAD_EFER)
                || c.vmcs.get(Field::GUEST_CR0) & 1 << 31 == 0
                || (c.vmcs.get(f) & 1 << 8 != 0) == ia32e(c)
        }),
        row("guest-bndcfgs", Field::GUEST_BNDCFGS, "if loaded: bits 11:2 zero, bits 63:12 canonical", |c, f| {
            let v = c.vmcs.get(f);
            !c.vmcs.entry_control(entry::LOAD_BNDCFGS) || v & 0xffc == 0 && c.capabilities.canonical(v & !0xfff)
        }),
    ],
};
