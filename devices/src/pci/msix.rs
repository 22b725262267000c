//! MSI-X (PCI Local Bus Specification 3.0, MSI-X Capability and Table Structures).

use super::ConfigSpace;
use crate::wiring::MessageSender;

const CAPABILITY: u8 = 0x11;
const ENABLE: u8 = 1 << 7;
const FUNCTION_MASK: u8 = 1 << 6;
const MASKED: u32 = 1;
/// Offset of the pending-bit array in the range that holds both.
pub const PBA: u64 = 0x800;
/// Bytes that table and pending bits take.
pub const RANGE: u32 = 0x1000;

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

const RESET: Entry = Entry { address: 0, data: 0, control: MASKED, pending: false };

/// Vectors of a function, in a range of [`RANGE`] bytes.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    at: usize,
}

impl Msix {
    /// Add the capability for `vectors` (at most 128) vectors, whose table is in `bar`.
    pub fn new(config: &mut ConfigSpace, bar: u8, vectors: u16) -> Msix {
        let vectors = vectors.clamp(1, 128);
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((bar as u32).to_le_bytes());
        body.extend((PBA as u32 | bar as u32).to_le_bytes());
        let at = config.capability(CAPABILITY, &body);
        config.allow(at + 3, &[ENABLE | FUNCTION_MASK]);
        Msix { entries: vec![RESET; vectors as usize], at }
    }

    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        config.byte(self.at + 3) & ENABLE != 0
    }

    fn open(&self, config: &ConfigSpace) -> bool {
        config.byte(self.at + 3) & (ENABLE | FUNCTION_MASK) == ENABLE && config.masters()
    }

    pub fn reset(&mut self) {
        self.entries.fill(RESET);
    }

    /// Raise a vector: a message, or a pending bit while it is masked or the function may not master the bus.
    pub fn raise(&mut self, config: &ConfigSpace, vector: u16, messages: &MessageSender) {
        let open = self.open(config);
        if let Some(e) = self.entries.get_mut(vector as usize) {
            if open && e.control & MASKED == 0 {
                messages.send(e.address, e.data);
            } else {
                e.pending = true;
            }
        }
    }

    /// Send what became unmasked; call after writes to the table or to configuration space.
    pub fn settle(&mut self, config: &ConfigSpace, messages: &MessageSender) {
        if self.open(config) {
            for e in self.entries.iter_mut().filter(|e| e.pending && e.control & MASKED == 0) {
                e.pending = false;
                messages.send(e.address, e.data);
            }
        }
    }

    pub fn read(&self, offset: u64, size: usize) -> u64 {
        let word = |at: u64| -> u32 {
            if at >= PBA {
                let first = (at - PBA) as usize * 8;
                return (0..32).filter(|i| self.entries.get(first + i).is_some_and(|e| e.pending)).fold(0, |v, i| v | 1 << i);
            }
            match self.entries.get(at as usize / 16) {
                None => 0,
                Some(e) => match at & 12 {
                    0 => e.address as u32,
                    4 => (e.address >> 32) as u32,
                    8 => e.data,
                    _ => e.control,
                },
            }
        };
        let at = offset & !3;
        let wide = word(at) as u64 | (word(at + 4) as u64) << 32;
        let shift = 8 * (offset & 3);
        let value = wide >> shift;
        if size >= 8 { value } else { value & ((1 << (8 * size)) - 1) }
    }

    /// Aligned 4- and 8-byte writes are defined; others are dropped.
    pub fn write(&mut self, offset: u64, size: usize, value: u64) {
        if size < 4 || !offset.is_multiple_of(4) || offset >= PBA {
            return;
        }
        for i in 0..size as u64 / 4 {
            let (at, word) = (offset + 4 * i, (value >> (32 * i)) as u32);
            if let Some(e) = self.entries.get_mut(at as usize / 16) {
                match at & 12 {
                    0 => e.address = e.address & !0xffff_ffff | (word & !3) as u64,
                    4 => e.address = e.address & 0xffff_ffff | (word as u64) << 32,
                    8 => e.data = word,
                    _ => e.control = word & MASKED,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Signal, Wiring};

    #[test]
    fn masked_vectors_wait() {
        let wiring = Wiring::new();
        let mut config = ConfigSpace::new(1, 2, 0, 0);
        let mut msix = Msix::new(&mut config, 1, 3);
        msix.write(16, 8, 0xfee0_1000);
        msix.write(24, 4, 0x41);
        msix.raise(&config, 1, &wiring.messages());
        assert!(wiring.is_empty());
        assert_eq!(msix.read(PBA, 8), 2);
        config.write(4, 2, super::super::COMMAND_MASTER as u32);
        config.write(msix.at as u16 + 3, 1, ENABLE as u32);
        msix.settle(&config, &wiring.messages());
        assert!(wiring.is_empty());
        msix.write(28, 4, 0);
        msix.settle(&config, &wiring.messages());
        assert_eq!(wiring.take(), [Signal::Message { address: 0xfee0_1000, data: 0x41 }]);
        assert_eq!(msix.read(PBA, 4), 0);
        // Out of the table: nothing happens.
        msix.raise(&config, 0xffff, &wiring.messages());
        msix.write(0x7f0, 8, u64::MAX);
        assert!(wiring.is_empty());
    }
}
