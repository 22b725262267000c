//! What a counter adds up (SDM vol. 3, Pre-defined Architectural Performance Events; AMD's Processor Programming Reference, Core
//! Performance Monitor Counters).

use undervisor_core::Vendor;
use undervisor_core::performance::{GENERAL, select};

use crate::time::TSC_MULTIPLE;

/// Clock cycles that an instruction takes: the core's clock is the TSC's.
pub const CYCLES: u64 = TSC_MULTIPLE;

/// Events that can be counted. The machine has neither caches nor a pipeline: all others do not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum What {
    #[default]
    Nothing,
    Cycles,
    Instructions,
    Branches,
    Mispredictions,
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
}

impl Totals {
    pub fn since(self, before: Totals) -> Totals {
        Totals {
            time: self.time.saturating_sub(before.time),
            instructions: self.instructions.saturating_sub(before.instructions),
            branches: self.branches - before.branches,
            mispredictions: self.mispredictions - before.mispredictions,
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
                (0xc4, 0) => What::Branches,
                (0xc5, 0) => What::Mispredictions,
                _ => What::Nothing,
            },
            Vendor::Amd => match event {
                0x76 => What::Cycles,
                0xc0 => What::Instructions,
                0xc2 => What::Branches,
                0xc3 => What::Mispredictions,
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
        };
        match self.form {
            Form::Each => events,
            Form::Without => cycles.saturating_sub(events),
            Form::Always => cycles,
            Form::Never => 0,
        }
    }

    /// The most that a unit of time can add.
    pub fn rate(self) -> u64 {
        match (self.form, self.what) {
            (Form::Never, _) | (Form::Each, What::Nothing) => 0,
            (Form::Each, What::Cycles) | (Form::Without | Form::Always, _) => CYCLES,
            (Form::Each, _) => 1,
        }
    }

    /// Whether branches must be watched for it.
    pub fn of_branches(self) -> bool {
        matches!(self.what, What::Branches | What::Mispredictions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_edges() {
        let all = Totals { time: 10, instructions: 8, branches: 3, mispredictions: 1 };
        let count = |value| Tally::of_select(Vendor::Intel, value).count(&all);
        assert_eq!((count(0x3c), count(0x13c), count(0xc0), count(0xc4), count(0xc5), count(0x4f2e)), (20, 20, 8, 3, 1, 0));
        let mask = |n: u64| n << 24;
        assert_eq!((count(0xc0 | mask(1)), count(0xc0 | mask(2))), (8, 0));
        assert_eq!((count(0xc0 | mask(1) | select::INVERT), count(0xc0 | mask(16) | select::INVERT)), (12, 20));
        assert_eq!((count(0xc4 | mask(1) | select::EDGE), count(0x3c | mask(1) | select::EDGE)), (3, 0));
        // INV without a counter mask is ignored.
        assert_eq!(count(0xc0 | select::INVERT), 8);
        assert_eq!(Tally::of_select(Vendor::Amd, 0x1_0000_0076).what, What::Nothing);
    }
}
