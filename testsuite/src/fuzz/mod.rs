//! What hostile bytes may not do: panic, hang, or reach beyond the guest's memory.
//!
//! Each target is a function of bytes. `fuzz/` has a cargo-fuzz target for each (`cargo +nightly fuzz run vmx`); [`smoke`] runs a
//! target on a fixed number of generated inputs on any toolchain, as `testsuite/tests/fuzz.rs` does.

mod guests;
mod images;
mod machine;
mod rings;

use crate::random::Random;

/// A target: its name, the function, and inputs that get far.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: [Target; 9] = [
    Target { name: "execute", run: machine::execute, seeds: machine::seeds },
    Target { name: "bzimage", run: images::kernel, seeds: images::bzimages },
    Target { name: "multiboot", run: images::kernel, seeds: images::multiboots },
    Target { name: "elf", run: images::kernel, seeds: images::elves },
    Target { name: "qcow2", run: images::qcow2, seeds: images::qcow2s },
    Target { name: "virtio_block", run: rings::block, seeds: rings::seeds },
    Target { name: "virtio_console", run: rings::console, seeds: rings::seeds },
    Target { name: "vmx", run: guests::vmx, seeds: guests::seeds },
    Target { name: "svm", run: guests::svm, seeds: guests::seeds },
];

/// Run the target called `name`.
pub fn run(name: &str, data: &[u8]) {
    if let Some(target) = TARGETS.iter().find(|t| t.name == name) {
        (target.run)(data);
    }
}

impl Random {
    fn byte(&mut self) -> u8 {
        match self.below(4) {
            0 => [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
            _ => (self.word() >> 32) as u8,
        }
    }

    /// A new input: a seed with some bytes changed, cut or repeated; now and then plain noise.
    pub fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if seeds.is_empty() || self.below(8) == 0 {
            let length = self.below(4096);
            return (0..length).map(|_| self.byte()).collect();
        }
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(12) {
            let at = self.below(data.len());
            match self.below(6) {
                0 if !data.is_empty() => data.truncate(at),
                1 => {
                    let run: Vec<u8> = (0..self.below(64)).map(|_| self.byte()).collect();
                    data.splice(at..at, run);
                }
                2 => {
                    let end = (at + 1 + self.below(8)).min(data.len());
                    data.drain(at..end);
                }
                _ => {
                    for byte in data.iter_mut().skip(at).take(1 + self.below(8)) {
                        *byte = match self.below(3) {
                            0 => *byte ^ 1 << self.below(8),
                            _ => self.byte(),
                        };
                    }
                }
            }
        }
        data
    }
}

/// Run a target on its seeds and on `cases` inputs made of them.
pub fn smoke(target: &Target, cases: usize) {
    let seeds = (target.seeds)();
    seeds.iter().for_each(|seed| (target.run)(seed));
    for case in 0..cases {
        let input = Random::new(case as u64 + 1).mutate(&seeds);
        (target.run)(&input);
    }
}

/// Input, taken from the front; zeroes when it has run out.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(&b, rest)| (b, rest));
        self.0 = rest;
        first
    }
    fn word(&mut self) -> u64 {
        (0..8).fold(0, |n, i| n | (self.byte() as u64) << (8 * i))
    }
    fn take(&mut self, most: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        front
    }
    fn done(&self) -> bool {
        self.0.is_empty()
    }
}
