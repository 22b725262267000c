//! How devices reach the rest of the computer: interrupt lines, message-signalled interrupts, memory.
//!
//! A device holds the handles it was given when it was plugged in. What it does with them is queued in order in one
//! [`Wiring`] and taken out by the machine after each access and each tick, so that devices never call into each other.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use thiserror::Error;

/// Something that a device did to the rest of the computer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The wired-OR level of an interrupt pin changed. Pins are global system interrupts: 0–15 the ISA IRQs, 16–23 PCI.
    Pin { pin: u8, level: bool },
    /// A write to the interrupt message space (SDM vol. 3, Message Address Register Format).
    Message { address: u64, data: u32 },
}

/// Interrupt pins of a computer.
pub const PINS: usize = 24;

#[derive(Default)]
struct Inner {
    queue: RefCell<Vec<Signal>>,
    /// How many outputs hold each pin up.
    holders: [Cell<u32>; PINS],
    deadline_moved: Cell<bool>,
}

/// All interrupt wires of a computer.
#[derive(Clone, Default)]
pub struct Wiring(Rc<Inner>);

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("queued", &self.0.queue.borrow().len()).finish()
    }
}

impl Wiring {
    pub fn new() -> Wiring {
        Wiring::default()
    }

    /// A new output that can hold `pin` up. Outputs of the same pin are wired together: it is up while any is.
    pub fn line(&self, pin: u8) -> IrqLine {
        IrqLine { wiring: self.clone(), pin: pin % PINS as u8, level: false }
    }

    /// A sender of message-signalled interrupts.
    pub fn messages(&self) -> MessageSender {
        MessageSender(self.clone())
    }

    /// Whether signals wait.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.queue.borrow().is_empty()
    }

    /// Take what was signalled since the last call, oldest first.
    pub fn take(&self) -> Vec<Signal> {
        std::mem::take(&mut self.0.queue.borrow_mut())
    }

    /// Say that some device's next deadline may have changed outside an access to it.
    pub fn deadline_moved(&self) {
        self.0.deadline_moved.set(true);
    }

    /// Whether [`Wiring::deadline_moved`] was called since the last call of this.
    pub fn take_deadline_moved(&self) -> bool {
        self.0.deadline_moved.take()
    }

    fn push(&self, signal: Signal) {
        self.0.queue.borrow_mut().push(signal);
    }
}

/// One device's output to an interrupt pin.
#[derive(Debug)]
pub struct IrqLine {
    wiring: Wiring,
    pin: u8,
    level: bool,
}

impl IrqLine {
    /// Not connected to anything.
    pub fn unconnected() -> IrqLine {
        Wiring::new().line(0)
    }

    pub fn pin(&self) -> u8 {
        self.pin
    }
    pub fn level(&self) -> bool {
        self.level
    }

    /// Drive the output.
    pub fn set(&mut self, level: bool) {
        if level == self.level {
            return;
        }
        self.level = level;
        let holders = &self.wiring.0.holders[self.pin as usize];
        let before = holders.get();
        let after = if level { before + 1 } else { before.saturating_sub(1) };
        holders.set(after);
        if (before > 0) != (after > 0) {
            self.wiring.push(Signal::Pin { pin: self.pin, level: after > 0 });
        }
    }

    /// Up and down again: one edge.
    pub fn pulse(&mut self) {
        self.set(false);
        self.set(true);
        self.set(false);
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// Sends message-signalled interrupts.
#[derive(Clone, Debug)]
pub struct MessageSender(Wiring);

impl MessageSender {
    /// Write `data` to an address in the interrupt message range.
    pub fn send(&self, address: u64, data: u32) {
        self.0.push(Signal::Message { address, data });
    }
}

/// A device's access to memory failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("device access to guest-physical {address:#x}+{length:#x}: not RAM")]
pub struct DmaError {
    pub address: u64,
    pub length: u64,
}

/// Guest memory as bus masters see it. Writes are seen by translated code.
pub trait Dma {
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DmaError>;
    /// Nothing is written if any byte of the range is not RAM.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), DmaError>;
}

/// Shared handle to guest memory.
pub type DmaMemory = Rc<dyn Dma>;

/// Little-endian words of guest memory.
pub trait DmaExt: Dma {
    fn read_u16(&self, address: u64) -> Result<u16, DmaError> {
        let mut b = [0; 2];
        self.read(address, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }
    fn read_u32(&self, address: u64) -> Result<u32, DmaError> {
        let mut b = [0; 4];
        self.read(address, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }
    fn read_u64(&self, address: u64) -> Result<u64, DmaError> {
        let mut b = [0; 8];
        self.read(address, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }
    fn write_u16(&self, address: u64, value: u16) -> Result<(), DmaError> {
        self.write(address, &value.to_le_bytes())
    }
    fn write_u32(&self, address: u64, value: u32) -> Result<(), DmaError> {
        self.write(address, &value.to_le_bytes())
    }
    fn write_u64(&self, address: u64, value: u64) -> Result<(), DmaError> {
        self.write(address, &value.to_le_bytes())
    }
}
impl<T: Dma + ?Sized> DmaExt for T {}

/// Plain bytes from guest-physical 0 on, for tests of devices.
#[derive(Debug, Default)]
pub struct TestMemory(pub RefCell<Vec<u8>>);

impl TestMemory {
    pub fn new(size: usize) -> Rc<TestMemory> {
        Rc::new(TestMemory(RefCell::new(vec![0; size])))
    }
}

impl Dma for TestMemory {
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DmaError> {
        let error = DmaError { address, length: out.len() as u64 };
        let memory = self.0.borrow();
        let start = usize::try_from(address).map_err(|_| error)?;
        let end = start.checked_add(out.len()).ok_or(error)?;
        out.copy_from_slice(memory.get(start..end).ok_or(error)?);
        Ok(())
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<(), DmaError> {
        let error = DmaError { address, length: data.len() as u64 };
        let mut memory = self.0.borrow_mut();
        let start = usize::try_from(address).map_err(|_| error)?;
        let end = start.checked_add(data.len()).ok_or(error)?;
        memory.get_mut(start..end).ok_or(error)?.copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_pin_is_up_while_anyone_holds_it() {
        let w = Wiring::new();
        let (mut a, mut b) = (w.line(17), w.line(17));
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(w.take(), [Signal::Pin { pin: 17, level: true }]);
        b.set(false);
        assert_eq!(w.take(), [Signal::Pin { pin: 17, level: false }]);
    }

    #[test]
    fn a_dropped_line_lets_go() {
        let w = Wiring::new();
        let mut a = w.line(3);
        a.set(true);
        drop(a);
        assert_eq!(w.take(), [Signal::Pin { pin: 3, level: true }, Signal::Pin { pin: 3, level: false }]);
    }

    #[test]
    fn test_memory_refuses_what_is_outside() {
        let m = TestMemory::new(16);
        assert!(m.write(12, &[1, 2, 3, 4]).is_ok());
        assert_eq!(m.read_u32(12), Ok(0x0403_0201));
        assert!(m.read_u64(12).is_err());
        assert!(m.read_u64(u64::MAX).is_err());
    }
}
