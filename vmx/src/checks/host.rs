//! Checks on the host-state area.

use super::{Check, Context, Outcome, Table, pat_valid};
use crate::capabilities::Capabilities;
use crate::controls::{entry, exit};
use crate::fields::{Field, Groups};

const fn row(name: &'static str, field: Field, rule: &'static str, test: fn(&Context<'_>, Field) -> bool) -> Check {
    Check { name, field, rule, qualification: 0, test }
}

const fn canonical(name: &'static str, field: Field) -> Check {
    row(name, field, "canonical", |c, f| c.capabilities.canonical(c.vmcs.get(f)))
}

/// A selector without RPL and TI.
const fn selector(name: &'static str, field: Field) -> Check {
    row(name, field, "RPL and TI flag zero", |c, f| c.vmcs.get(f) & 7 == 0)
}

pub static REGISTERS: Table = Table {
    section: "Checks on Host Control Registers, MSRs, and SSP",
    outcome: Outcome::InvalidHostState,
    groups: Groups::HOST,
    checks: &[
        row("host-cr0", Field::HOST_CR0, "fixed bits as IA32_VMX_CR0_FIXED0 and _FIXED1 say", |c, f| {
            Capabilities::cr0_allowed(c.vmcs.get(f), false)
        }),
        row("host-cr4", Field::HOST_CR4, "fixed bits as IA32_VMX_CR4_FIXED0 and _FIXED1 say", |c, f| {
            c.capabilities.cr4_allowed(c.vmcs.get(f))
        }),
        row("host-cr4-cet", Field::HOST_CR4, "CET needs CR0.WP", |c, f| {
            c.vmcs.get(f) & 1 << 23 == 0 || c.vmcs.get(Field::HOST_CR0) & 1 << 16 != 0
        }),
        row("host-cr3", Field::HOST_CR3, "within the physical-address width", |c, f| c.capabilities.physical(c.vmcs.get(f))),
        canonical("host-sysenter-esp", Field::HOST_SYSENTER_ESP),
        canonical("host-sysenter-eip", Field::HOST_SYSENTER_EIP),
        row("host-perf-global-ctrl", Field::HOST_PERF_GLOBAL_CTRL, "if loaded: reserved bits zero", |c, f| {
            !c.vmcs.exit_control(exit::LOAD_PERF_GLOBAL_CTRL)
                || c.vmcs.get(f) & !c.capabilities.limits.perf_global_ctrl_allowed == 0
        }),
        row("host-pat", Field::HOST_PAT, "if loaded: each byte a memory type (0, 1, 4 to 7)", |c, f| {
            !c.vmcs.exit_control(exit::LOAD_PAT) || pat_valid(c.vmcs.get(f))
        }),
        row("host-efer-reserved", Field::HOST_EFER, "if loaded: reserved bits zero", |c, f| {
            !c.vmcs.exit_control(exit::LOAD_EFER) || c.vmcs.get(f) & !c.capabilities.limits.efer_allowed == 0
        }),
        row("host-efer-mode", Field::HOST_EFER, "if loaded: LMA and LME equal the host address-space size", |c, f| {
            let size = c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE);
            let efer = c.vmcs.get(f);
            !c.vmcs.exit_control(exit::LOAD_EFER) || (efer & 1 << 8 != 0) == size && (efer & 1 << 10 != 0) == size
        }),
    ],
};

pub static SEGMENTS: Table = Table {
    section: "Checks on Host Segment and Descriptor-Table Registers",
    outcome: Outcome::InvalidHostState,
    groups: Groups::HOST,
    checks: &[
        selector("host-es-selector", Field::HOST_ES_SELECTOR),
        selector("host-cs-selector", Field::HOST_CS_SELECTOR),
        selector("host-ss-selector", Field::HOST_SS_SELECTOR),
        selector("host-ds-selector", Field::HOST_DS_SELECTOR),
        selector("host-fs-selector", Field::HOST_FS_SELECTOR),
        selector("host-gs-selector", Field::HOST_GS_SELECTOR),
        selector("host-tr-selector", Field::HOST_TR_SELECTOR),
        row("host-cs-null", Field::HOST_CS_SELECTOR, "not 0", |c, f| c.vmcs.get(f) != 0),
        row("host-tr-null", Field::HOST_TR_SELECTOR, "not 0", |c, f| c.vmcs.get(f) != 0),
        row("host-ss-null", Field::HOST_SS_SELECTOR, "not 0 for a 32-bit host", |c, f| {
            c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) || c.vmcs.get(f) != 0
        }),
        canonical("host-fs-base", Field::HOST_FS_BASE),
        canonical("host-gs-base", Field::HOST_GS_BASE),
        canonical("host-gdtr-base", Field::HOST_GDTR_BASE),
        canonical("host-idtr-base", Field::HOST_IDTR_BASE),
        canonical("host-tr-base", Field::HOST_TR_BASE),
    ],
};

pub static ADDRESS_SPACE: Table = Table {
    section: "Checks Related to Address-Space Size",
    outcome: Outcome::InvalidHostState,
    groups: Groups::HOST,
    checks: &[
        row("size-legacy-guest", Field::ENTRY_CONTROLS, "outside IA-32e mode: no IA-32e-mode guest", |c, _| {
            c.state.long_mode() || !c.vmcs.entry_control(entry::IA32E_MODE_GUEST)
        }),
        row("size-legacy-host", Field::EXIT_CONTROLS, "outside IA-32e mode: no 64-bit host", |c, _| {
            c.state.long_mode() || !c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE)
        }),
        row("size-long-host", Field::EXIT_CONTROLS, "in IA-32e mode: a 64-bit host", |c, _| {
            !c.state.long_mode() || c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE)
        }),
        row("size-32-guest", Field::ENTRY_CONTROLS, "a 32-bit host has no IA-32e-mode guest", |c, _| {
            c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) || !c.vmcs.entry_control(entry::IA32E_MODE_GUEST)
        }),
        row("size-32-pcide", Field::HOST_CR4, "PCIDE zero for a 32-bit host", |c, f| {
            c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) || c.vmcs.get(f) & 1 << 17 == 0
        }),
        row("size-32-rip", Field::HOST_RIP, "bits 63:32 zero for a 32-bit host", |c, f| {
            c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) || c.vmcs.get(f) >> 32 == 0
        }),
        row("size-64-pae", Field::HOST_CR4, "PAE set for a 64-bit host", |c, f| {
            !c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) || c.vmcs.get(f) & 1 << 5 != 0
        }),
        row("size-64-rip", Field::HOST_RIP, "canonical for a 64-bit host", |c, f| {
            !c.vmcs.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) || c.capabilities.canonical(c.vmcs.get(f))
        }),
    ],
};
