//! The PC around the processors, one file a device.
//!
//! Rules: a device keeps no host time and no randomness; it is told the virtual time (nanoseconds since power-on) of each access
//! and of each tick. `deadline` says when it next wants a tick. Interrupts leave through [`wiring`].
#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod chardev;
pub mod debug;
pub mod disk;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod uart;
pub mod virtio;
pub mod wiring;

pub use wiring::{Dma, DmaError, DmaExt, DmaMemory, IrqLine, MessageSender, Signal, Wiring};

/// Virtual time: nanoseconds since power-on.
pub type Time = u64;

/// No deadline.
pub const NEVER: Time = u64::MAX;
