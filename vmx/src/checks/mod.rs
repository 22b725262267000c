//! The checks of VM entry. Each is one row: a name, the field it reports, the manual's rule, and its test. A table is in the
//! manual's order, and the tables in the order in which VM entry goes through them; so the tables are the documentation too.
//!
//! A check is passed over while none of the fields that its table depends on has been written since it last passed.

pub mod broken;
pub mod controls;
mod guest;
mod host;
pub mod remedy;
mod segments;
pub mod state;

pub use controls::eptp_allowed;
pub use state::pdpte_valid;

use undervisor_core::CpuState;

use crate::capabilities::Capabilities;
use crate::controls::entry;
use crate::fields::{Field, Groups};
use crate::memory::Memory;
use crate::vmcs::Vmcs;

/// What a check may look at.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub vmcs: &'a Vmcs,
    pub capabilities: &'a Capabilities,
    /// The processor before the entry.
    pub state: &'a CpuState,
    pub memory: &'a dyn Memory,
    /// Address of the current VMCS.
    pub current: u64,
}

/// One check.
pub struct Check {
    pub name: &'static str,
    /// The field whose value the check reports.
    pub field: Field,
    /// What is allowed.
    pub rule: &'static str,
    /// Exit qualification of an entry failure that this check causes.
    pub qualification: u64,
    /// Whether the rule holds.
    pub test: fn(&Context<'_>, Field) -> bool,
}

/// What happens when a check of a table fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// VMfailValid(7).
    InvalidControl,
    /// VMfailValid(8).
    InvalidHostState,
    /// VM exit 33.
    InvalidGuestState,
}

/// The checks of one or more subsections of the manual.
pub struct Table {
    /// Title of the section, SDM vol. 3.
    pub section: &'static str,
    pub outcome: Outcome,
    /// Dirty groups that make it necessary. Controls always do.
    pub groups: u8,
    pub checks: &'static [Check],
}

/// Every check, in order.
pub static TABLES: [&Table; 10] = [
    &controls::EXECUTION,
    &controls::EXIT,
    &controls::ENTRY,
    &host::REGISTERS,
    &host::SEGMENTS,
    &host::ADDRESS_SPACE,
    &guest::REGISTERS,
    &segments::SEGMENTS,
    &segments::DESCRIPTOR_TABLES,
    &state::STATE,
];

/// Which check failed, on what.
#[derive(Clone, Copy)]
pub struct Failure {
    pub table: &'static Table,
    pub check: &'static Check,
    pub value: u64,
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?} is {:#x}; {}", self.check.name, self.check.field, self.value, self.check.rule)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} = {:#x}: {} (check {}; SDM vol. 3, {})",
            self.check.field.row().map_or("?", |r| r.name),
            self.value,
            self.check.rule,
            self.check.name,
            self.table.section
        )
    }
}

fn run(table: &'static Table, context: &Context<'_>) -> Result<(), Failure> {
    match table.checks.iter().find(|c| !(c.test)(context, c.field)) {
        None => Ok(()),
        Some(check) => Err(Failure { table, check, value: context.vmcs.get(check.field) }),
    }
}

/// The checks on controls and host state (SDM vol. 3, Checks on VMX Controls and Host-State Area).
pub fn controls_and_host(context: &Context<'_>) -> Result<(), Failure> {
    let dirty = context.vmcs.dirty;
    if dirty & Groups::CONTROLS != 0 {
        run(&controls::EXECUTION, context)?;
        run(&controls::EXIT, context)?;
    } else if controls::needs_memory(context) {
        // The TPR threshold is compared with memory, which changes behind our back.
        run(&controls::EXECUTION, context)?;
    }
    if dirty & Groups::CONTROLS != 0 || event_injected(context) {
        run(&controls::ENTRY, context)?;
    }
    if dirty & (Groups::CONTROLS | Groups::HOST) != 0 {
        run(&host::REGISTERS, context)?;
        run(&host::SEGMENTS, context)?;
    }
    // Depends on the mode of the processor, too.
    if dirty & (Groups::CONTROLS | Groups::HOST) != 0 || context.vmcs.passed_in_long_mode != context.state.long_mode() {
        run(&host::ADDRESS_SPACE, context)?;
    }
    Ok(())
}

/// The checks on guest state (SDM vol. 3, Checks on the Guest State Area).
pub fn guest_state(context: &Context<'_>) -> Result<(), Failure> {
    let dirty = context.vmcs.dirty;
    if dirty & (Groups::CONTROLS | Groups::REGISTERS) != 0 {
        run(&guest::REGISTERS, context)?;
    }
    if dirty & (Groups::CONTROLS | Groups::REGISTERS | Groups::SEGMENTS) != 0 || virtual_8086(context) {
        run(&segments::SEGMENTS, context)?;
        run(&segments::DESCRIPTOR_TABLES, context)?;
    }
    if dirty & Groups::CONTROLS == 0 && state::plainly_valid(context) && !pae(context) {
        return Ok(());
    }
    run(&state::STATE, context)
}

/// Valid bit of the VM-entry interruption information.
fn event_injected(c: &Context<'_>) -> bool {
    c.vmcs.get(Field::ENTRY_INTERRUPTION_INFORMATION) >> 31 & 1 != 0
}

/// RFLAGS.VM in the guest.
fn virtual_8086(c: &Context<'_>) -> bool {
    c.vmcs.get(Field::GUEST_RFLAGS) >> 17 & 1 != 0
}

fn ia32e(c: &Context<'_>) -> bool {
    c.vmcs.entry_control(entry::IA32E_MODE_GUEST)
}

/// The guest will use PAE paging.
pub fn pae(c: &Context<'_>) -> bool {
    let v = c.vmcs;
    v.get(Field::GUEST_CR0) >> 31 & 1 != 0 && v.get(Field::GUEST_CR4) >> 5 & 1 != 0 && !ia32e(c)
}

/// A page-aligned address within the physical-address width.
fn page(c: &Context<'_>, address: u64) -> bool {
    address & 0xfff == 0 && c.capabilities.physical(address)
}

/// An MSR area: 16-byte aligned, first and last byte within the physical-address width; nothing is asked of an empty one.
fn msr_area(c: &Context<'_>, address: Field, count: Field) -> bool {
    let n = c.vmcs.get(count);
    let at = c.vmcs.get(address);
    n == 0
        || at & 0xf == 0
            && c.capabilities.physical(at)
            && at.checked_add(n * 16 - 1).is_some_and(|last| c.capabilities.physical(last))
}

/// Whether each byte names a memory type that IA32_PAT may hold.
pub fn pat_valid(value: u64) -> bool {
    value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7))
}

#[cfg(test)]
mod tests;
