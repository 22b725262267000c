//! Caches, while a counter counts what they do. Every data access then takes the slow path, which tells this model of it; so memory that
//! is not watched has nothing to do with it.
//!
//! The machine has no caches. What the counters count are the requests that caches of the sizes that CPUID reports would have made, if
//! they saw no other accesses than these: data, of this processor, while it is counted. So the same run gives the same count.

use undervisor_core::Model;

use crate::cpu::Cpu;

/// Bytes in a line, as a power of two.
const LINE_BITS: u32 = 6;

/// What is counted, each a bit of [`Requests`] and a place in [`Counts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Happening {
    /// A load or store that the first level missed and the second hit.
    LoadHit,
    StoreHit,
    /// One that the second level missed: a reference to the last level.
    LoadMiss,
    StoreMiss,
    /// One that the last level missed.
    LastMiss,
}

/// A set of [`Happening`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests(u8);

impl Requests {
    /// To the second level.
    pub const LOADS: Requests = Requests::of(&[Happening::LoadHit, Happening::LoadMiss]);
    pub const STORES: Requests = Requests::of(&[Happening::StoreHit, Happening::StoreMiss]);
    /// Answered by it.
    pub const LOAD_HITS: Requests = Requests::of(&[Happening::LoadHit]);
    pub const STORE_HITS: Requests = Requests::of(&[Happening::StoreHit]);
    /// To the last level.
    pub const LAST_LEVEL: Requests = Requests::of(&[Happening::LoadMiss, Happening::StoreMiss]);
    /// Not answered by it.
    pub const LAST_LEVEL_MISSES: Requests = Requests::of(&[Happening::LastMiss]);

    const fn of(happenings: &[Happening]) -> Requests {
        let (mut bits, mut i) = (0, 0);
        while i < happenings.len() {
            bits |= 1 << happenings[i] as u8;
            i += 1;
        }
        Requests(bits)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These and those.
    #[must_use]
    pub fn and(self, other: Requests) -> Requests {
        Requests(self.0 | other.0)
    }

    /// How many of these there were.
    pub fn count(self, counts: &Counts) -> u64 {
        (0..).zip(counts.0).filter(|(i, _)| self.0 >> i & 1 != 0).map(|(_, n)| n).sum()
    }
}

/// How often each [`Happening`] happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; 5]);

impl Counts {
    pub fn since(self, before: Counts) -> Counts {
        Counts(std::array::from_fn(|i| self.0[i] - before.0[i]))
    }
}

/// One cache: sets of lines, each the most recently used first. A line is held as its number plus one; 0 is none.
struct Level {
    lines: Box<[u64]>,
    ways: usize,
}

impl Level {
    fn new(kib: u32, ways: u32) -> Level {
        Level { lines: vec![0; (kib as usize) << 10 >> LINE_BITS].into(), ways: ways as usize }
    }

    fn set(&mut self, line: u64) -> &mut [u64] {
        let sets = (self.lines.len() / self.ways).max(1) as u64;
        let first = (line % sets) as usize * self.ways;
        &mut self.lines[first..first + self.ways]
    }

    /// Whether the line is there; now it is.
    fn take(&mut self, line: u64) -> bool {
        let set = self.set(line);
        let found = set.iter().position(|l| *l == line + 1);
        let last = found.unwrap_or(set.len() - 1);
        set[..=last].rotate_right(1);
        set[0] = line + 1;
        found.is_some()
    }

    fn drop_line(&mut self, line: u64) {
        let set = self.set(line);
        if let Some(at) = set.iter().position(|l| *l == line + 1) {
            set[at] = 0;
        }
    }
}

/// Three levels of data cache.
pub struct Caches {
    first: Level,
    second: Level,
    last: Level,
    counts: Counts,
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caches").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Caches {
    pub fn new(model: &Model) -> Caches {
        let [first, second, last] = model.data_caches().map(|c| Level::new(c.kib, c.ways));
        Caches { first, second, last, counts: Counts::default() }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A line is loaded or stored to.
    fn access(&mut self, line: u64, write: bool) {
        if self.first.take(line) {
            return;
        }
        let hit = self.second.take(line);
        self.happened(match (hit, write) {
            (true, false) => Happening::LoadHit,
            (true, true) => Happening::StoreHit,
            (false, false) => Happening::LoadMiss,
            (false, true) => Happening::StoreMiss,
        });
        if !hit && !self.last.take(line) {
            self.happened(Happening::LastMiss);
            // The spatial prefetcher completes an aligned pair of lines (Intel 64 and IA-32 Architectures Optimization Reference
            // Manual, Data Prefetching), which is not a miss of the program's.
            self.last.take(line ^ 1);
        }
    }

    fn happened(&mut self, what: Happening) {
        self.counts.0[what as usize] += 1;
    }

    fn drop_line(&mut self, line: u64) {
        for level in [&mut self.first, &mut self.second, &mut self.last] {
            level.drop_line(line);
        }
    }
}

impl Cpu {
    /// `size` bytes of RAM are read or written, within a page; `place`: where they are among all RAM.
    #[cold]
    #[inline(never)]
    pub(crate) fn count_access(&mut self, place: u64, size: usize, write: bool) {
        let m = &mut self.performance;
        let Some(caches) = &mut m.caches else { return };
        for line in place >> LINE_BITS..=(place + size.max(1) as u64 - 1) >> LINE_BITS {
            caches.access(line, write);
        }
        let counts = caches.counts;
        if m.alarms.iter().any(|&(requests, at)| requests.count(&counts) >= at) {
            // An overflow that interrupts: see to it after this block.
            m.overflow_at = 0;
            self.attend(0);
        }
    }

    /// CLFLUSH, CLFLUSHOPT: the line is in no cache any more.
    pub(crate) fn drop_cached_line(&mut self, physical: u64) {
        if let Some(caches) = &mut self.performance.caches
            && let Some(page) = self.shared.memory.page_index(physical)
        {
            caches.drop_line(((page as u64) << 12 | physical & 0xfff) >> LINE_BITS);
        }
    }

    /// WBINVD, INVD: nothing is in any cache any more.
    pub(crate) fn drop_caches(&mut self) {
        if let Some(caches) = &mut self.performance.caches {
            let counts = caches.counts;
            **caches = Caches { counts, ..Caches::new(&self.model) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_goes_first() {
        // Two sets of two ways.
        let mut c = Level { lines: vec![0; 4].into(), ways: 2 };
        assert_eq!([0, 2, 0, 4, 0, 2, 1].map(|line| c.take(line)), [false, false, true, false, true, false, false]);
        c.drop_line(0);
        assert_eq!([2, 0].map(|line| c.take(line)), [true, false]);
    }

    #[test]
    fn levels_and_pairs() {
        let mut c = Caches::new(&Model::skylake_server());
        let mut all = |lines: &mut dyn Iterator<Item = u64>, write| {
            let before = c.counts;
            lines.for_each(|line| c.access(line, write));
            c.counts.since(before).0
        };
        // 64 KiB, twice: too much for the first level only. Then 2 MiB, too much for the second.
        assert_eq!(all(&mut (0..1024), false), [0, 0, 1024, 0, 512]);
        assert_eq!(all(&mut (0..1024), true), [0, 1024, 0, 0, 0]);
        assert_eq!(all(&mut (0..32768), false)[4], 16384 - 512);
        assert_eq!(all(&mut (0..32768), false), [0, 0, 32768, 0, 0]);
        assert_eq!(all(&mut [32767].into_iter(), true), [0; 5]);
    }
}
