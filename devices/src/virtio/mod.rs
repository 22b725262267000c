//! Virtio devices (Virtual I/O Device (VIRTIO) Version 1.2) over PCI.
//!
//! Requests are served a fixed virtual time after the driver's notification, so that completion does not depend on the host. Rings
//! are the guest's: a ring that breaks the rules puts the device into DEVICE_NEEDS_RESET and is not looked at again.

pub mod block;
pub mod console;
mod pci;
pub mod queue;
pub mod rng;

#[cfg(test)]
mod tests;

pub use block::Block;
pub use console::Console;
pub use pci::VirtioPci;
pub use queue::{Chain, Queue, RingError};
pub use rng::Rng;

use crate::wiring::Dma;

/// Nanoseconds from a notification to its service.
pub const LATENCY: u64 = 20_000;

/// Features of any device.
pub mod feature {
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// The part of a device that the transport does not know.
pub trait VirtioDevice {
    fn name(&self) -> &str;
    /// Virtio device id (Device Types).
    fn device_id(&self) -> u16;
    /// PCI class code, 24 bits.
    fn class(&self) -> u32;
    /// Device-specific features that are offered.
    fn features(&self) -> u64;
    /// Size of each queue.
    fn queues(&self) -> &[u16];
    /// The device configuration as it reads now.
    fn config(&self) -> Vec<u8>;
    fn config_write(&mut self, _offset: usize, _data: &[u8]) {}
    /// The driver has set DRIVER_OK with these features.
    fn activate(&mut self, _features: u64) {}
    /// Serve what waits in queue `index`. Whether the driver is to be told.
    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &dyn Dma) -> Result<bool, RingError>;
    /// Queues that something from outside may have work for, to be served now.
    fn poll(&mut self) -> &[usize] {
        &[]
    }
    fn reset(&mut self) {}
}
