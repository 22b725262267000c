//! Intel VMX as semantics: functions over the architectural state of `core` and a guest-memory trait, to be tested, fuzzed and
//! read without an interpreter.
//!
//! [`fields`] is the VMCS field table, [`capabilities`] the capability MSRs, [`vmcs`] the current VMCS and its region,
//! [`checks`] the VM-entry checks as a table, [`entry`] and [`exit`] the two transitions, [`apic`] APIC virtualization. The
//! instructions and the points at which a guest exits are the processor's: the `virt` module of the cpu crate.
#![forbid(unsafe_code)]

pub mod apic;
pub mod bitmaps;
pub mod capabilities;
pub mod checks;
pub mod controls;
pub mod describe;
pub mod entry;
pub mod exit;
pub mod fields;
pub mod memory;
pub mod msr_area;
pub mod reason;
pub mod sample;
pub mod vmcs;

pub use capabilities::{Capabilities, Limits};
pub use fields::Field;
pub use memory::Memory;
pub use reason::ExitInformation;
pub use undervisor_core::VmxFeatures;
pub use vmcs::Vmcs;
