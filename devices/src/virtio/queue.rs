//! Split virtqueues (VIRTIO 1.2, Split Virtqueues), the device's side.

use thiserror::Error;

use crate::wiring::{Dma, DmaError, DmaExt};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Available-ring flag: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// Most descriptors of an indirect table.
const INDIRECT_LIMIT: u32 = 1024;

/// The driver broke a rule of the ring.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RingError {
    #[error(transparent)]
    Memory(#[from] DmaError),
    #[error("descriptor {0} is beyond the table")]
    BadIndex(u16),
    #[error("a descriptor chain is longer than its table")]
    Loop,
    #[error("a descriptor for reading follows one for writing")]
    Order,
    #[error("bad indirect descriptor")]
    BadIndirect,
    #[error("{0} requests made available at once; the queue has {1}")]
    TooMany(u16, u16),
    #[error("a request without what the device needs: {0}")]
    BadRequest(&'static str),
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub address: u64,
    pub length: u32,
}

/// A request: what the device reads, then what it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    pub readable: Vec<Piece>,
    pub writable: Vec<Piece>,
}

/// Bytes in some pieces.
pub fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|p| p.length as u64).sum()
}

/// The part `from .. from + length` of some pieces; shorter if they end before.
pub fn part(pieces: &[Piece], from: u64, length: u64) -> Vec<Piece> {
    let (mut skip, mut left) = (from, length);
    let mut out = Vec::new();
    for p in pieces {
        let len = p.length as u64;
        if skip >= len {
            skip -= len;
            continue;
        }
        let n = (len - skip).min(left);
        if n == 0 {
            break;
        }
        out.push(Piece { address: p.address.wrapping_add(skip), length: n as u32 });
        (skip, left) = (0, left - n);
    }
    out
}

/// Copy the first bytes of some pieces; how many there were.
pub fn gather(memory: &dyn Dma, pieces: &[Piece], out: &mut [u8]) -> Result<usize, RingError> {
    let mut done = 0;
    for p in pieces {
        let n = (p.length as usize).min(out.len() - done);
        memory.read(p.address, &mut out[done..done + n])?;
        done += n;
    }
    Ok(done)
}

/// Copy bytes into pieces; how many fitted.
pub fn scatter(memory: &dyn Dma, pieces: &[Piece], data: &[u8]) -> Result<usize, RingError> {
    let mut done = 0;
    for p in pieces {
        let n = (p.length as usize).min(data.len() - done);
        memory.write(p.address, &data[done..done + n])?;
        done += n;
    }
    Ok(done)
}

/// One virtqueue.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    pub max_size: u16,
    pub size: u16,
    pub enabled: bool,
    pub descriptors: u64,
    /// Driver area: the available ring.
    pub available: u64,
    /// Device area: the used ring.
    pub used: u64,
    pub vector: u16,
    pub event_idx: bool,
    pub indirect: bool,
    next_available: u16,
    next_used: u16,
    /// `next_used` at the last interrupt.
    signalled_used: u16,
    signalled: bool,
}

impl Queue {
    pub fn new(max_size: u16) -> Queue {
        Queue { max_size, size: max_size, vector: 0xffff, ..Queue::default() }
    }

    /// The next request, if one waits.
    pub fn pop(&mut self, memory: &dyn Dma) -> Result<Option<Chain>, RingError> {
        if !self.enabled || self.size == 0 {
            return Ok(None);
        }
        let index = memory.read_u16(self.available.wrapping_add(2))?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(RingError::TooMany(waiting, self.size));
        }
        if self.event_idx {
            // Ask for a notification with the next request.
            let at = self.used.wrapping_add(4 + 8 * self.size as u64);
            memory.write_u16(at, index)?;
        }
        if waiting == 0 {
            return Ok(None);
        }
        let slot = (self.next_available % self.size) as u64;
        let head = memory.read_u16(self.available.wrapping_add(4 + 2 * slot))?;
        let chain = self.walk(memory, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Put the last request back: it will be the next again.
    pub fn unpop(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    fn walk(&self, memory: &dyn Dma, head: u16) -> Result<Chain, RingError> {
        let mut chain = Chain { head, ..Chain::default() };
        let (mut table, mut count, mut inside) = (self.descriptors, self.size as u32, false);
        let mut index = head;
        let mut steps = 0;
        loop {
            if index as u32 >= count {
                return Err(RingError::BadIndex(index));
            }
            steps += 1;
            if steps > count {
                return Err(RingError::Loop);
            }
            let mut d = [0; 16];
            memory.read(table.wrapping_add(16 * index as u64), &mut d)?;
            let word = |at: usize| u32::from_le_bytes([d[at], d[at + 1], d[at + 2], d[at + 3]]);
            let address = word(0) as u64 | (word(4) as u64) << 32;
            let length = word(8);
            let (flags, next) = (word(12) as u16, (word(12) >> 16) as u16);
            if flags & INDIRECT != 0 {
                let entries = length / 16;
                let fits = length % 16 == 0 && (1..=INDIRECT_LIMIT).contains(&entries);
                if inside || !self.indirect || flags & NEXT != 0 || !fits {
                    return Err(RingError::BadIndirect);
                }
                (table, count, inside, index, steps) = (address, entries, true, 0, 0);
                continue;
            }
            if flags & WRITE != 0 {
                chain.writable.push(Piece { address, length });
            } else if chain.writable.is_empty() {
                chain.readable.push(Piece { address, length });
            } else {
                return Err(RingError::Order);
            }
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            index = next;
        }
    }

    /// Give a request back with the number of bytes written into it.
    pub fn push(&mut self, memory: &dyn Dma, head: u16, written: u32) -> Result<(), RingError> {
        let size = self.size.max(1);
        let at = self.used.wrapping_add(4 + 8 * (self.next_used % size) as u64);
        memory.write_u32(at, head as u32)?;
        memory.write_u32(at.wrapping_add(4), written)?;
        self.next_used = self.next_used.wrapping_add(1);
        memory.write_u16(self.used.wrapping_add(2), self.next_used)?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was pushed since the last one (Used Buffer Notification Suppression).
    pub fn wants_interrupt(&mut self, memory: &dyn Dma) -> Result<bool, RingError> {
        let (old, new) = (self.signalled_used, self.next_used);
        if old == new && self.signalled {
            return Ok(false);
        }
        self.signalled_used = new;
        let first = !std::mem::replace(&mut self.signalled, true);
        if self.event_idx {
            let event = memory.read_u16(self.available.wrapping_add(4 + 2 * self.size as u64))?;
            let passed = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
            return Ok(passed || (first && old != new));
        }
        Ok(memory.read_u16(self.available)? & NO_INTERRUPT == 0)
    }

    /// Requests taken and given back since reset, for tests.
    pub fn counts(&self) -> (u16, u16) {
        (self.next_available, self.next_used)
    }
}
