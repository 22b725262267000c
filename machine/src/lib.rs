//! A computer to embed: processors, memory, devices, a virtual clock, and loaders for what it boots.
//!
//! [`MachineConfig`] describes it, [`Machine::run`] runs it, [`Host`] is how the embedding program takes part. Everything is
//! deterministic: the same configuration and the same input at the same virtual times give the same run.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod board;
pub mod config;
mod digest;
pub mod error;
pub mod host;
pub mod load;
pub mod machine;
pub mod memory;
pub mod mp_table;
mod platform;
pub mod smbios;
pub mod stop;
#[cfg(test)]
mod tests;

pub use config::{Boot, Image, Kernel, MachineConfig, Module};
pub use error::{LoadError, MachineError};
pub use host::{Host, Idle, NoHost};
pub use machine::{Machine, Progress};
pub use memory::Ram;
pub use stop::{StopReason, status};
pub use undervisor_core::Model;
pub use undervisor_devices::chardev::{BufferBackend, CharBackend, NullBackend, WriteBackend};
pub use undervisor_devices::pci::PciDevice;
