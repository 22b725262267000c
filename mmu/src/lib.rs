//! Guest-physical memory, MMIO dispatch, the page walkers and the software TLB.

pub mod bus;
pub mod ept;
pub mod memory;
pub mod npt;
pub mod tlb;
pub mod walk;

pub use bus::{Bus, NullBus, Wish};
pub use ept::{Ept, EptExit, EptFault, EptRequest, Pml};
pub use memory::{GuestMemory, LowRouting, MemoryError, Word};
pub use npt::{Npt, NptExit, NptRequest};
pub use tlb::{AddressSpaces, Bank, SpaceKey, Tlb, TlbEntry};
pub use walk::{A20Masked, Limits, Paging, PagingMode, PhysicalSpace, Plain, Request, Translation, WalkFault, walk};

/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 4096;
pub const PAGE_MASK: u64 = !(PAGE_SIZE - 1);
