//! Entropy device (VIRTIO 1.2, Entropy Device). Seeded: the same seed gives the same bytes.

use super::VirtioDevice;
use super::queue::{Queue, RingError, scatter, total};
use crate::wiring::Dma;

/// Most bytes for one request.
const MOST: u64 = 4096;

pub struct Rng {
    seed: u64,
    state: u64,
}

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng { seed, state: seed }
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        "virtio-rng"
    }
    fn device_id(&self) -> u16 {
        4
    }
    fn class(&self) -> u32 {
        0x00_ff00
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> &[u16] {
        &[64]
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn serve(&mut self, _: usize, queue: &mut Queue, memory: &dyn Dma) -> Result<bool, RingError> {
        let mut any = false;
        while let Some(chain) = queue.pop(memory)? {
            let length = total(&chain.writable).min(MOST) as usize;
            let bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(length).collect();
            let written = scatter(memory, &chain.writable, &bytes)?;
            queue.push(memory, chain.head, written as u32)?;
            any = true;
        }
        Ok(any)
    }
    fn reset(&mut self) {
        self.state = self.seed;
    }
}
