//! MSI (PCI Local Bus Specification 3.0, MSI Capability Structure): 64-bit addresses, per-vector masking.
//!
//! | offset | |
//! |---|---|
//! | 2 | message control: 0 enable, 3:1 multiple message capable, 6:4 multiple message enable, 7 64-bit, 8 per-vector masking |
//! | 4, 8 | message address |
//! | 12 | message data |
//! | 16, 20 | mask bits, pending bits |

use super::ConfigSpace;
use crate::wiring::MessageSender;

const CAPABILITY: u8 = 5;
const CONTROL: usize = 2;
const ADDRESS: usize = 4;
const DATA: usize = 12;
const MASK: usize = 16;
const PENDING: usize = 20;
/// Bytes after the id and the link.
const BODY: usize = 22;
const ENABLE: u8 = 1;
const ADDRESS_64: u16 = 1 << 7;
const PER_VECTOR_MASKING: u16 = 1 << 8;

/// Vectors of a function; the registers are all in its configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Msi {
    at: usize,
    /// log₂ of how many.
    log_vectors: u8,
}

impl Msi {
    /// Add the capability for 2^`log_vectors` vectors, 32 at most.
    pub fn new(config: &mut ConfigSpace, log_vectors: u8) -> Msi {
        let log_vectors = log_vectors.min(5);
        let mut body = [0; BODY];
        body[..2].copy_from_slice(&(ADDRESS_64 | PER_VECTOR_MASKING | (log_vectors as u16) << 1).to_le_bytes());
        let at = config.capability(CAPABILITY, &body);
        config.allow(at + CONTROL, &[ENABLE | if log_vectors > 0 { 0x70 } else { 0 }]);
        config.allow(at + ADDRESS, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        config.allow(at + DATA, &[0xff; 2]);
        let all = u32::MAX >> (32 - (1 << log_vectors));
        config.allow(at + MASK, &all.to_le_bytes());
        Msi { at, log_vectors }
    }

    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        config.byte(self.at + CONTROL) & ENABLE != 0
    }

    fn word(&self, config: &ConfigSpace, offset: usize) -> u32 {
        config.read((self.at + offset) as u16, 4)
    }

    fn send(&self, config: &ConfigSpace, vector: u8, messages: &MessageSender) {
        let address = self.word(config, ADDRESS) as u64 | (self.word(config, ADDRESS + 4) as u64) << 32;
        // The function's own part of the data is as wide as the vectors it was given.
        let own = (1 << (config.byte(self.at + CONTROL) >> 4 & 7).min(self.log_vectors)) - 1;
        let data = self.word(config, DATA) & 0xffff;
        messages.send(address, data & !own | vector as u32 & own);
    }

    fn set_pending(&self, config: &mut ConfigSpace, vectors: u32) {
        config.set(self.at + PENDING, &vectors.to_le_bytes());
    }

    /// Raise a vector: a message, or a pending bit while it is masked or the function may not master the bus.
    pub fn raise(&self, config: &mut ConfigSpace, vector: u8, messages: &MessageSender) {
        let pending = self.word(config, PENDING) | 1 << (vector & 31);
        self.set_pending(config, pending);
        self.settle(config, messages);
    }

    /// Send what became unmasked; call after writes to configuration space.
    pub fn settle(&self, config: &mut ConfigSpace, messages: &MessageSender) {
        if !self.enabled(config) || !config.masters() {
            return;
        }
        let masked = self.word(config, MASK);
        let pending = self.word(config, PENDING);
        for vector in (0..32).filter(|v| (pending & !masked) >> v & 1 != 0) {
            self.send(config, vector, messages);
        }
        self.set_pending(config, pending & masked);
    }
}

#[cfg(test)]
mod tests {
    use super::super::COMMAND_MASTER;
    use super::*;
    use crate::wiring::{Signal, Wiring};

    #[test]
    fn vectors_share_an_address_and_wait_while_masked() {
        let wiring = Wiring::new();
        let mut config = ConfigSpace::new(1, 2, 0, 0);
        let msi = Msi::new(&mut config, 2);
        let at = msi.at as u16;
        assert_eq!(config.read(at, 4) >> 16, 0x184);
        let message = |data| Signal::Message { address: 0x1_fee0_1000, data };
        config.write(at + 4, 4, 0xfee0_1003);
        config.write(at + 8, 4, 1);
        config.write(at + 12, 2, 0x4043);
        config.write(at + 16, 4, u32::MAX);
        assert_eq!(config.read(at + 16, 4), 0xf, "four vectors have four bits");
        config.write(at + 16, 4, 0b10);
        // Off, and then not a bus master.
        msi.raise(&mut config, 0, &wiring.messages());
        config.write(at + 2, 1, 0x21);
        msi.settle(&mut config, &wiring.messages());
        assert!(wiring.is_empty());
        config.write(4, 2, COMMAND_MASTER as u32);
        msi.settle(&mut config, &wiring.messages());
        assert_eq!((wiring.take(), config.read(at + 20, 4)), (vec![message(0x4040)], 0));
        msi.raise(&mut config, 1, &wiring.messages());
        msi.raise(&mut config, 1, &wiring.messages());
        msi.raise(&mut config, 3, &wiring.messages());
        assert_eq!((wiring.take(), config.read(at + 20, 4)), (vec![message(0x4043)], 0b10));
        // Software cannot write the pending bits.
        config.write(at + 20, 4, 0);
        config.write(at + 16, 4, 0);
        msi.settle(&mut config, &wiring.messages());
        assert_eq!((wiring.take(), config.read(at + 20, 4)), (vec![message(0x4041)], 0));
        // Given two vectors only.
        config.write(at + 2, 1, 0x11);
        msi.raise(&mut config, 2, &wiring.messages());
        assert_eq!(wiring.take(), [message(0x4042)]);
    }
}
