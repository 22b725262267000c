//! What a counter adds up (SDM vol. 3, Pre-defined Architectural Performance Events; AMD's Processor Programming Reference, Core
//! Performance Monitor Counters).

use undervisor_core::Vendor;
use undervisor_core::performance::{GENERAL, select};

use super::caches::{Counts, Requests};
use crate::time::TSC_MULTIPLE;

/// Clock cycles that an instruction takes: the core's clock is the TSC's.
pub const CYCLES: u64 = TSC_MULTIPLE;

/// Events that can be counted. The machine has no pipeline: all others do not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum What {
    #[default]
    Nothing,
    Cycles,
    Instructions,
    Branches,
    Mispredictions,
    Requests(Requests),
}

/// How an event and the counter mask, INV and E of its select make a count. An instruction takes two cycles, so that events other
/// than cycles come at most every other cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// The event itself.
    #[default]
    Each,
    /// Cycles in which it does not occur.
    Without,
    /// All cycles.
    Always,
    Never,
}

/// What one counter adds up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub what: What,
    pub form: Form,
}

/// How much of everything there has been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Virtual time in which this processor ran.
    pub time: u64,
    pub instructions: u64,
    pub branches: u64,
    pub mispredictions: u64,
    pub requests: Counts,
}

impl Totals {
    pub fn since(self, before: Totals) -> Totals {
        Totals {
            time: self.time.saturating_sub(before.time),
            instructions: self.instructions.saturating_sub(before.instructions),
            branches: self.branches - before.branches,
            mispredictions: self.mispredictions - before.mispredictions,
            requests: self.requests.since(before.requests),
        }
    }
}

impl Tally {
    /// What a general counter's select asks for.
    pub fn of_select(vendor: Vendor, value: u64) -> Tally {
        let (event, unit) = (select::event(value), select::unit_mask(value));
        let what = match vendor {
            Vendor::Intel => match (event & 0xff, unit) {
                // Reference cycles (unit mask 1) are of the same clock.
                (0x3c, 0 | 1) => What::Cycles,
                (0xc0, 0) => What::Instructions,
                (0x2e, 0x4f) => What::Requests(Requests::LAST_LEVEL),
                (0x2e, 0x41) => What::Requests(Requests::LAST_LEVEL_MISSES),
                (0xc4, 0) => What::Branches,
                (0xc5, 0) => What::Mispredictions,
                _ => What::Nothing,
            },
            Vendor::Amd => match event {
                0x76 => What::Cycles,
                0xc0 => What::Instructions,
                0xc2 => What::Branches,
                0xc3 => What::Mispredictions,
                0x60 => requests_to_second_level(unit),
                0x64 => answers_of_second_level(unit),
                _ => What::Nothing,
            },
        };
        let steady = matches!(what, What::Cycles | What::Nothing);
        let form = match (select::counter_mask(value), value & select::INVERT != 0) {
            // Edges of a condition that never changes; of one that holds in the first cycle of an instruction, there is one each time.
            (mask, _) if value & select::EDGE != 0 => {
                if steady || mask > 1 {
                    Form::Never
                } else {
                    Form::Each
                }
            }
            (0, _) | (1, false) => Form::Each,
            (1, true) => Form::Without,
            (_, false) => Form::Never,
            (_, true) => Form::Always,
        };
        Tally { what, form }
    }

    /// What a fixed-function counter counts: instructions, core cycles, reference cycles.
    pub fn of_fixed(index: usize) -> Tally {
        let what = if index == GENERAL { What::Instructions } else { What::Cycles };
        Tally { what, form: Form::Each }
    }

    /// The count of so many events.
    pub fn count(self, t: &Totals) -> u64 {
        let cycles = t.time * CYCLES;
        let events = match self.what {
            What::Nothing => 0,
            What::Cycles => cycles,
            What::Instructions => t.instructions,
            What::Branches => t.branches,
            What::Mispredictions => t.mispredictions,
            What::Requests(r) => r.count(&t.requests),
        };
        match self.form {
            Form::Each => events,
            Form::Without => cycles.saturating_sub(events),
            Form::Always => cycles,
            Form::Never => 0,
        }
    }

    /// The most that a unit of time can add. Of requests to caches, of which an instruction can make many, see `alarms`.
    pub fn rate(self) -> u64 {
        match (self.form, self.what) {
            (Form::Never, _) | (Form::Each, What::Nothing | What::Requests(_)) => 0,
            (Form::Each, What::Cycles) | (Form::Without | Form::Always, _) => CYCLES,
            (Form::Each, _) => 1,
        }
    }

    /// Whether branches must be watched for it.
    pub fn of_branches(self) -> bool {
        matches!(self.what, What::Branches | What::Mispredictions)
    }

    /// The requests to caches that it counts.
    pub fn of_caches(self) -> Option<Requests> {
        match self.what {
            What::Requests(r) => Some(r),
            _ => None,
        }
    }
}

/// AMD's event 060H, Requests to L2 Group 1: reads for loads (unit mask bit 7) and for stores (bit 6). The others are of code, which is not
/// watched, of sharing and of prefetches, which do not happen.
fn requests_to_second_level(unit: u32) -> What {
    chosen(unit, &[(7, Requests::LOADS), (6, Requests::STORES)])
}

/// AMD's event 064H, Core to L2 Cacheable Request Access Status: loads that hit (bit 6), stores that hit (bit 4), either that missed (bit 3).
fn answers_of_second_level(unit: u32) -> What {
    chosen(unit, &[(6, Requests::LOAD_HITS), (4, Requests::STORE_HITS), (3, Requests::LAST_LEVEL)])
}

fn chosen(unit: u32, bits: &[(u32, Requests)]) -> What {
    let all = bits.iter().filter(|(bit, _)| unit >> bit & 1 != 0).fold(Requests::default(), |all, (_, r)| all.and(*r));
    if all.is_empty() { What::Nothing } else { What::Requests(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_edges() {
        let all = Totals { time: 10, instructions: 8, branches: 3, mispredictions: 1, requests: Counts::default() };
        let count = |value| Tally::of_select(Vendor::Intel, value).count(&all);
        assert_eq!((count(0x3c), count(0x13c), count(0xc0), count(0xc4), count(0xc5), count(0x4f2e)), (20, 20, 8, 3, 1, 0));
        let mask = |n: u64| n << 24;
        assert_eq!((count(0xc0 | mask(1)), count(0xc0 | mask(2))), (8, 0));
        assert_eq!((count(0xc0 | mask(1) | select::INVERT), count(0xc0 | mask(16) | select::INVERT)), (12, 20));
        assert_eq!((count(0xc4 | mask(1) | select::EDGE), count(0x3c | mask(1) | select::EDGE)), (3, 0));
        // INV without a counter mask is ignored.
        assert_eq!(count(0xc0 | select::INVERT), 8);
        assert_eq!(Tally::of_select(Vendor::Amd, 0x1_0000_0076).what, What::Nothing);
        // What Linux takes for cache references and misses on AMD's processors.
        let amd = |value| Tally::of_select(Vendor::Amd, value).what;
        assert_eq!(amd(0xff60), What::Requests(Requests::LOADS.and(Requests::STORES)));
        assert_eq!((amd(0x0964), amd(0x0164)), (What::Requests(Requests::LAST_LEVEL), What::Nothing));
    }
}
