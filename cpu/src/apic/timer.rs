//! The APIC timer (SDM vol. 3, APIC Timer). It counts [`TIMER_HZ`] ticks a second of virtual time, one an instruction, divided
//! by the divide configuration register.

use super::LocalApic;

/// Ticks a second before the divider. One tick is one nominal nanosecond, that is one instruction.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// Mode bits 18:17 of the LVT timer register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl TimerMode {
    pub fn of(lvt: u32) -> TimerMode {
        [TimerMode::OneShot, TimerMode::Periodic, TimerMode::TscDeadline, TimerMode::Reserved][(lvt >> 17) as usize & 3]
    }
    fn counts(self) -> bool {
        matches!(self, TimerMode::OneShot | TimerMode::Periodic)
    }
}

/// Timer registers. While counting, `deadline` says when the count reaches zero; the current count follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timer {
    pub initial: u32,
    /// Divide configuration register, bits 3, 1, 0.
    pub divide: u32,
    /// Virtual time of the next expiry.
    pub deadline: Option<u64>,
    /// IA32_TSC_DEADLINE; 0: disarmed.
    pub tsc_deadline: u64,
}

impl Timer {
    /// What the divide configuration stands for: 2, 4, … 128, 1.
    pub fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn count(&self, now: u64) -> u32 {
        let left = self.deadline.map_or(0, |t| t.saturating_sub(now));
        left.div_ceil(self.divisor()) as u32
    }
}

impl LocalApic {
    fn timer_mode(&self) -> TimerMode {
        TimerMode::of(self.lvt[super::LVT_TIMER])
    }

    /// The current count register.
    pub(super) fn current_count(&mut self, now: u64) -> u32 {
        self.poll(now);
        if self.timer_mode().counts() { self.timer.count(now) } else { 0 }
    }

    pub(super) fn write_initial_count(&mut self, value: u32, now: u64) {
        self.poll(now);
        if !self.timer_mode().counts() {
            // Ignored in TSC-deadline mode.
            return;
        }
        self.timer.initial = value;
        self.timer.deadline = (value != 0).then(|| now + value as u64 * self.timer.divisor());
        self.out.look = true;
    }

    pub(super) fn write_divide(&mut self, value: u32, now: u64) {
        self.poll(now);
        let count = self.timer.count(now);
        self.timer.divide = value & 0xb;
        if self.timer_mode().counts() && self.timer.deadline.is_some() {
            self.timer.deadline = Some(now + count as u64 * self.timer.divisor());
            self.out.look = true;
        }
    }

    /// Replace the LVT timer register. Going to or from TSC-deadline mode disarms the timer; between one-shot and periodic
    /// the count runs on.
    pub(super) fn write_lvt_timer(&mut self, value: u32, now: u64) {
        self.poll(now);
        let before = self.timer_mode();
        self.lvt[super::LVT_TIMER] = value;
        if before.counts() != self.timer_mode().counts() {
            self.timer.initial = 0;
            self.timer.deadline = None;
            self.timer.tsc_deadline = 0;
        }
        self.out.look = true;
    }

    /// IA32_TSC_DEADLINE as it reads: 0 in the other modes and after expiry.
    pub fn tsc_deadline(&mut self, now: u64) -> u64 {
        self.poll(now);
        if self.timer_mode() == TimerMode::TscDeadline { self.timer.tsc_deadline } else { 0 }
    }

    /// Write IA32_TSC_DEADLINE: `time` is when the TSC reaches `value`. Ignored in the other modes; 0 disarms.
    pub fn write_tsc_deadline(&mut self, value: u64, time: u64, now: u64) {
        self.poll(now);
        if self.timer_mode() != TimerMode::TscDeadline {
            return;
        }
        self.timer.tsc_deadline = value;
        self.timer.deadline = (value != 0).then_some(time);
        self.out.look = true;
    }

    /// The TSC was written or its rate changed: the armed deadline now falls at `time(deadline)`.
    pub fn move_tsc_deadline(&mut self, time: impl Fn(u64) -> u64) {
        if self.timer_mode() == TimerMode::TscDeadline && self.timer.tsc_deadline != 0 {
            self.timer.deadline = Some(time(self.timer.tsc_deadline));
            self.out.look = true;
        }
    }

    /// The virtual time at which the timer next expires; `u64::MAX`: never. A masked timer counts too, but wakes nobody.
    pub fn next_deadline(&self) -> u64 {
        let masked = self.lvt[super::LVT_TIMER] & super::LVT_MASK != 0;
        match self.timer.deadline {
            Some(t) if !masked => t,
            _ => u64::MAX,
        }
    }

    /// Let the timer expire if its time has come.
    pub fn poll(&mut self, now: u64) {
        let Some(deadline) = self.timer.deadline.filter(|t| *t <= now) else {
            return;
        };
        match self.timer_mode() {
            TimerMode::Periodic => {
                // Expiries that were missed coincide: one bit in IRR stands for them all.
                let period = (self.timer.initial as u64 * self.timer.divisor()).max(1);
                self.timer.deadline = Some(deadline + ((now - deadline) / period + 1) * period);
            }
            _ => {
                self.timer.deadline = None;
                self.timer.tsc_deadline = 0;
            }
        }
        self.fire(super::LVT_TIMER);
    }
}
