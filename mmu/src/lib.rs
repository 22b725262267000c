//! Guest-physical memory, MMIO dispatch, the page walkers and the software TLB.

pub mod bus;
pub mod memory;
pub mod tlb;

pub use bus::{Bus, NullBus, Wish};
pub use memory::{GuestMemory, MemoryError, Word};
pub use tlb::{AddressSpaces, Bank, SpaceKey, Tlb, TlbEntry};

/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 4096;
pub const PAGE_MASK: u64 = !(PAGE_SIZE - 1);
