//! What a test starts from and what it leaves.

use undervisor_core::X87;

/// Where things lie, natively and in the guest alike.
pub mod place {
    pub const CODE: u64 = 0x10_0000;
    /// The instructions under test.
    pub const TEST: u64 = CODE + 0x100;
    pub const DATA: u64 = 0x11_0000;
    pub const DATA_SIZE: usize = 0x4000;
    /// What pointers point near to.
    pub const MIDDLE: u64 = DATA + DATA_SIZE as u64 / 2;
    /// Selectors as Linux sets them for 64-bit programs.
    pub const CS: u16 = 0x33;
    pub const SS: u16 = 0x2b;
}

/// Registers that a user-mode instruction can touch.
#[derive(Clone, Debug)]
pub struct State {
    pub regs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub ymm: [[u64; 4]; 16],
    pub mxcsr: u32,
    pub x87: X87,
}

/// A state after the test, with the fault that ended it, if any.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: State,
    /// Vector and error code.
    pub fault: Option<(u8, u32)>,
}
