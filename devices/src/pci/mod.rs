//! PCI: what a function is, and the host bridge that finds functions by address.

mod chipset;
mod config;
mod host;
mod msi;
mod msix;

pub use config::{Bar, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace};
pub use host::PciHost;
pub use msi::Msi;
pub use msix::{Msix, RANGE as MSIX_RANGE};

use crate::wiring::{DmaMemory, IrqLine, MessageSender};

/// Bus, device, function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bdf {
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

/// What a function is given when it is plugged in.
pub struct Attachment {
    pub address: Bdf,
    /// Its INTx output, already swizzled to a global system interrupt.
    pub intx: IrqLine,
    pub messages: MessageSender,
    pub memory: DmaMemory,
}

/// Where a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    pub bar: u8,
    pub base: u64,
    pub size: u64,
    /// Port space instead of memory.
    pub io: bool,
}

/// A PCI function.
pub trait PciDevice {
    /// For messages and statistics.
    fn name(&self) -> &str;
    /// Called once, before anything else.
    fn attach(&mut self, attachment: Attachment);
    /// Read configuration space: naturally aligned, 1, 2 or 4 bytes. The first 256 bytes, or 4 KiB if the function is
    /// PCI Express; beyond: all ones.
    fn config_read(&mut self, offset: u16, size: usize) -> u32;
    fn config_write(&mut self, now: u64, offset: u16, size: usize, value: u32);
    /// Ranges that decode now (COMMAND considered). The host asks again after each configuration write.
    fn ranges(&self) -> Vec<BarRange>;
    fn bar_read(&mut self, now: u64, bar: u8, offset: u64, size: usize) -> u64;
    fn bar_write(&mut self, now: u64, bar: u8, offset: u64, size: usize, value: u64);
    /// Virtual time at which `tick` is wanted; `u64::MAX`: never.
    fn deadline(&self) -> u64 {
        u64::MAX
    }
    /// Virtual time has reached the deadline.
    fn tick(&mut self, _now: u64) {}
    /// A chance to take in what came from outside the machine (network, console).
    fn poll(&mut self, _now: u64) {}
    /// Platform reset.
    fn reset(&mut self) {}
}

/// Start of the memory-mapped configuration space (ECAM), one bus per MiB.
pub const ECAM_BASE: u64 = 0xb000_0000;
/// Buses that ECAM covers.
pub const ECAM_BUSES: u64 = 256;

/// Whether a guest-physical address is one of configuration space.
pub fn is_ecam(address: u64) -> bool {
    (ECAM_BASE..ECAM_BASE + (ECAM_BUSES << 20)).contains(&address)
}
