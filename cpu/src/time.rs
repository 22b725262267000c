//! The time-stamp counter, a multiple of virtual time.

use crate::cpu::Cpu;

/// TSC ticks for each instruction (nominal nanosecond): a 2 GHz counter.
pub const TSC_MULTIPLE: u64 = 2;

impl Cpu {
    /// The processor's own TSC; what a guest of a hypervisor reads may be offset and scaled on top.
    pub fn tsc(&self) -> u64 {
        self.now().wrapping_mul(TSC_MULTIPLE).wrapping_add(self.state.tsc_offset)
    }

    /// Make the TSC read `value` now.
    pub fn set_tsc(&mut self, value: u64) {
        self.state.tsc_offset = value.wrapping_sub(self.now().wrapping_mul(TSC_MULTIPLE));
        self.tsc_moved();
    }

    /// The virtual time at which the TSC reaches `tsc`, rounded up; the present if it is already there.
    pub fn time_of_tsc(&self, tsc: u64) -> u64 {
        time_of_tsc(tsc, self.now(), self.state.tsc_offset)
    }

    /// `state.tsc_offset` was changed: an armed TSC deadline now falls at another time.
    pub fn tsc_moved(&mut self) {
        let (now, offset) = (self.now(), self.state.tsc_offset);
        self.apic.move_tsc_deadline(|tsc| time_of_tsc(tsc, now, offset));
        self.apic_settle();
    }
}

fn time_of_tsc(tsc: u64, now: u64, offset: u64) -> u64 {
    let current = now.wrapping_mul(TSC_MULTIPLE).wrapping_add(offset);
    match tsc.checked_sub(current) {
        Some(ahead) => now.saturating_add(ahead.div_ceil(TSC_MULTIPLE)),
        None => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        assert_eq!(time_of_tsc(1001, 0, 0), 501);
        assert_eq!(time_of_tsc(1000, 100, 0), 500);
        assert_eq!(time_of_tsc(10, 100, 0), 100);
        // A TSC set back to 0 at time 100.
        let offset = 0u64.wrapping_sub(200);
        assert_eq!(time_of_tsc(50, 100, offset), 125);
    }
}
