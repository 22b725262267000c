//! AMD SVM as semantics: functions over the architectural state of `core` and guest memory, to be tested, fuzzed and read without
//! an interpreter. File for file the mirror of the vmx crate.
//!
//! [`fields`] is the VMCB field table, [`capabilities`] the MSRs, [`vmcb`] the VMCB as the processor caches it, [`checks`] the
//! VMRUN checks as a table, [`entry`] and [`exit`] the two transitions, [`apic`] AVIC. The instructions and the points at which a
//! guest exits are the processor's: the `virt` module of the cpu crate.
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
pub mod reason;
pub mod sample;
pub mod vmcb;

pub use capabilities::Limits;
pub use fields::Field;
pub use undervisor_core::SvmFeatures;
pub use vmcb::Vmcb;
