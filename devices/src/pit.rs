//! 8254 programmable interval timer and port 0x61 (Intel 8254 data sheet; ICH9, NMI Status and Control).
//!
//! Counters are functions of time: nothing ticks. Counter n was loaded at `start`; what it reads and what its output is
//! follow from how many input clocks have passed since.

use crate::wiring::IrqLine;
use crate::{NEVER, Time};

/// Input clock in hertz.
pub const FREQUENCY: u64 = 1_193_182;
const NANOS: u128 = 1_000_000_000;

/// Input clocks that have passed at `t`.
fn clocks(t: Time) -> u64 {
    (t as u128 * FREQUENCY as u128 / NANOS) as u64
}
/// First time at which `clocks` reads `n`.
fn time_of(n: u64) -> Time {
    (n as u128 * NANOS).div_ceil(FREQUENCY as u128) as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, Debug)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// Reload value; 0 stands for the largest.
    reload: u16,
    /// Clock at which counting from `reload` began; `None`: waiting for a count or a trigger.
    start: Option<u64>,
    /// Value held while the gate is low or before counting begins.
    held: u16,
    write_low: Option<u8>,
    read_high_next: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
    gate: bool,
    /// No count was loaded since the mode was set: output as the mode starts.
    null_count: bool,
    /// In modes 2 and 3: reload to use from the next period on.
    pending_reload: Option<u16>,
}

impl Counter {
    fn new() -> Counter {
        // Undefined at power-on; in this mode the output is high, so that programming it makes no edge.
        Counter {
            mode: 3,
            bcd: false,
            access: Access::Both,
            reload: 0,
            start: None,
            held: 0,
            write_low: None,
            read_high_next: false,
            latched: None,
            latched_status: None,
            gate: true,
            null_count: true,
            pending_reload: None,
        }
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// A register value as a number of clocks, 1 – modulus.
    fn length_of(&self, value: u16) -> u64 {
        let n = if self.bcd { (0..4).rev().fold(0, |n, i| n * 10 + (value >> (4 * i) & 0xf) as u64) } else { value as u64 };
        if n == 0 { self.modulus() } else { n }
    }

    fn period(&self) -> u64 {
        // Mode 2 and 3 with a count of 1 are not legal; keep them from dividing to nothing.
        match self.mode {
            2 | 3 => self.length_of(self.reload).max(2),
            _ => self.length_of(self.reload),
        }
    }

    fn to_register(&self, n: u64) -> u16 {
        let n = n % self.modulus();
        if self.bcd { (0..4).fold(0, |r, i| r | ((n / 10u64.pow(i) % 10) as u16) << (4 * i)) } else { n as u16 }
    }

    /// Let a new reload value take effect if its period has begun.
    fn settle(&mut self, clock: u64) {
        if let (Some(new), Some(start)) = (self.pending_reload, self.start) {
            let period = self.period();
            let passed = clock.saturating_sub(start);
            if passed >= period {
                self.start = Some(start + passed / period * period);
                self.reload = new;
                self.pending_reload = None;
                // `start` was aligned with the old period; that is the one the new count begins after only if it was the
                // first to end, which settling at each deadline and access makes so for the interrupting counter.
            }
        }
    }

    fn count(&self, clock: u64) -> u16 {
        let Some(start) = self.start else { return self.held };
        let passed = clock.saturating_sub(start);
        let n = self.length_of(self.reload);
        match self.mode {
            2 => self.to_register(self.period() - passed % self.period()),
            3 => {
                // Counts down by two, twice a period; odd counts: the high half is one clock longer.
                let p = passed % self.period();
                let high = self.period().div_ceil(2);
                let in_half = if p < high { p } else { p - high };
                let even = self.period() & !1;
                self.to_register(even.saturating_sub(2 * in_half).max(2))
            }
            _ => {
                let m = self.modulus();
                self.to_register((n + m - passed % m) % m)
            }
        }
    }

    fn output(&self, clock: u64) -> bool {
        let Some(start) = self.start else { return self.mode != 0 };
        let passed = clock.saturating_sub(start);
        let n = self.length_of(self.reload);
        match self.mode {
            0 => passed >= n,
            1 => passed >= n,
            2 => !self.gate || passed % self.period() != self.period() - 1,
            3 => !self.gate || passed % self.period() < self.period().div_ceil(2),
            // Strobes: low for one clock when the count runs out.
            _ => passed != n,
        }
    }

    /// First clock after `clock` at which the output changes.
    fn next_change(&self, clock: u64) -> Option<u64> {
        let start = self.start?;
        if !self.gate && matches!(self.mode, 0 | 2 | 3 | 4) {
            return None;
        }
        let n = self.length_of(self.reload);
        let next = |edges: [u64; 2], period: u64| {
            let base = clock.saturating_sub(start) / period * period + start;
            [base, base + period].iter().flat_map(|b| edges.map(|e| b + e)).filter(|&c| c > clock).min()
        };
        match self.mode {
            0 | 1 => (clock < start + n).then_some(start + n),
            2 => next([self.period() - 1, self.period()], self.period()),
            3 => next([self.period().div_ceil(2), self.period()], self.period()),
            _ => [start + n, start + n + 1].into_iter().find(|&c| c > clock),
        }
    }

    /// Whether the output rose after `from`, up to and including `to`, in a periodic mode.
    fn rose(&self, from: u64, to: u64) -> bool {
        let Some(start) = self.start else { return false };
        matches!(self.mode, 2 | 3)
            && self.gate
            && to.saturating_sub(start) / self.period() != from.saturating_sub(start) / self.period()
    }

    fn set_mode(&mut self, clock: u64, control: u8) {
        self.held = self.count(clock);
        self.bcd = control & 1 != 0;
        self.mode = match control >> 1 & 7 {
            m @ 0..=5 => m,
            m => m - 4,
        };
        self.access = match control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.start = None;
        self.null_count = true;
        self.write_low = None;
        self.read_high_next = false;
        self.pending_reload = None;
        (self.latched, self.latched_status) = (None, None);
    }

    fn write(&mut self, clock: u64, value: u8) {
        let full = match self.access {
            Access::Low => value as u16,
            Access::High => (value as u16) << 8,
            Access::Both => match self.write_low.take() {
                None => {
                    self.write_low = Some(value);
                    if self.mode == 0 {
                        // Writing the first byte stops the count.
                        self.held = self.count(clock);
                        self.start = None;
                    }
                    return;
                }
                Some(low) => low as u16 | (value as u16) << 8,
            },
        };
        self.null_count = false;
        match self.mode {
            2 | 3 if self.start.is_some() && self.gate => self.pending_reload = Some(full),
            1 | 5 => {
                // Takes effect at the next trigger.
                if self.start.is_some() {
                    self.pending_reload = Some(full);
                } else {
                    self.reload = full;
                }
            }
            _ => {
                self.reload = full;
                self.held = full;
                self.start = self.gate.then_some(clock + 1);
                if !self.gate && self.mode == 0 {
                    self.start = None;
                }
            }
        }
    }

    fn set_gate(&mut self, clock: u64, gate: bool) {
        if gate == self.gate {
            return;
        }
        let rising = gate;
        match self.mode {
            0 | 4 => {
                if rising {
                    // Go on from where it stopped.
                    if !self.null_count && self.start.is_none() {
                        let passed = self.length_of(self.reload).saturating_sub(self.length_of(self.held));
                        self.start = Some(clock.saturating_sub(passed));
                    }
                } else {
                    self.held = self.count(clock);
                    self.start = None;
                }
            }
            _ if rising => {
                if let Some(new) = self.pending_reload.take() {
                    self.reload = new;
                }
                if !self.null_count {
                    self.start = Some(clock + 1);
                }
            }
            2 | 3 => {
                self.held = self.count(clock);
                self.start = None;
            }
            _ => {}
        }
        self.gate = gate;
    }

    fn latch(&mut self, clock: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.count(clock));
        }
    }

    fn latch_status(&mut self, clock: u64) {
        if self.latched_status.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            let output = if self.output(clock) { 0x80 } else { 0 };
            let null = if self.null_count || self.pending_reload.is_some() { 0x40 } else { 0 };
            self.latched_status = Some(output | null | access << 4 | self.mode << 1 | self.bcd as u8);
        }
    }

    fn read(&mut self, clock: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.count(clock));
        let (high, done) = match self.access {
            Access::Low => (false, true),
            Access::High => (true, true),
            Access::Both => {
                let high = self.read_high_next;
                self.read_high_next = !high;
                (high, high)
            }
        };
        if done {
            self.latched = None;
        }
        if high { (value >> 8) as u8 } else { value as u8 }
    }
}

/// The timer with its three counters; counter 0 drives IRQ 0, counter 2 the speaker.
pub struct Pit {
    counters: [Counter; 3],
    irq: IrqLine,
    /// Port 0x61 as written: bit 0 gate of counter 2, bit 1 speaker data, bits 2, 3 NMI masks.
    speaker: u8,
    /// The HPET has taken IRQ 0 over.
    disconnected: bool,
    /// Clock of the last look.
    seen: u64,
}

impl Pit {
    pub fn new(irq: IrqLine) -> Pit {
        let mut pit =
            Pit { counters: [Counter::new(), Counter::new(), Counter::new()], irq, speaker: 0, disconnected: false, seen: 0 };
        pit.reset();
        pit
    }

    pub fn reset(&mut self) {
        self.counters = [Counter::new(), Counter::new(), Counter::new()];
        self.counters[2].gate = false;
        self.speaker = 0;
        self.disconnected = false;
        self.irq.set(true);
    }

    /// The HPET's legacy replacement routing takes IRQ 0 away, or gives it back.
    pub fn disconnect(&mut self, now: Time, disconnected: bool) {
        self.disconnected = disconnected;
        self.update(now);
    }

    fn update(&mut self, now: Time) {
        let clock = clocks(now);
        // Before a new count takes effect: an edge that has passed since the last look must not be lost.
        let rose = self.counters[0].rose(self.seen, clock);
        self.seen = clock;
        for c in &mut self.counters {
            c.settle(clock);
        }
        if rose {
            self.irq.set(false);
            self.irq.set(!self.disconnected);
        }
        let level = self.counters[0].output(clock);
        self.irq.set(level && !self.disconnected);
    }

    /// Ports 0x40–0x43.
    pub fn read(&mut self, now: Time, port: u16) -> u8 {
        self.update(now);
        match port & 3 {
            3 => 0,
            n => self.counters[n as usize].read(clocks(now)),
        }
    }

    pub fn write(&mut self, now: Time, port: u16, value: u8) {
        let clock = clocks(now);
        self.update(now);
        match port & 3 {
            3 => match value >> 6 {
                3 => {
                    // Read-back
                    for (i, c) in self.counters.iter_mut().enumerate().filter(|(i, _)| value & 2 << i != 0) {
                        let _ = i;
                        if value & 0x20 == 0 {
                            c.latch(clock);
                        }
                        if value & 0x10 == 0 {
                            c.latch_status(clock);
                        }
                    }
                }
                n if value & 0x30 == 0 => self.counters[n as usize].latch(clock),
                n => self.counters[n as usize].set_mode(clock, value),
            },
            n => self.counters[n as usize].write(clock, value),
        }
        self.update(now);
    }

    /// Port 0x61: bit 5 is counter 2's output, bit 4 toggles with the refresh clock (15 µs).
    pub fn read_speaker(&mut self, now: Time) -> u8 {
        self.update(now);
        let output = self.counters[2].output(clocks(now));
        let refresh = now / 15_085 & 1 != 0;
        self.speaker | if refresh { 0x10 } else { 0 } | if output { 0x20 } else { 0 }
    }

    pub fn write_speaker(&mut self, now: Time, value: u8) {
        self.update(now);
        self.speaker = value & 0xf;
        self.counters[2].set_gate(clocks(now), value & 1 != 0);
    }

    /// When counter 0's output next changes.
    pub fn deadline(&self, now: Time) -> Time {
        if self.disconnected {
            return NEVER;
        }
        self.counters[0].next_change(clocks(now)).map_or(NEVER, time_of)
    }

    /// Virtual time has passed.
    pub fn tick(&mut self, now: Time) {
        self.update(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Signal, Wiring};

    fn pit() -> (Pit, Wiring) {
        let w = Wiring::new();
        (Pit::new(w.line(0)), w)
    }

    fn load(p: &mut Pit, now: Time, counter: u16, control: u8, count: u16) {
        p.write(now, 3, control | (counter as u8) << 6);
        p.write(now, counter, count as u8);
        p.write(now, counter, (count >> 8) as u8);
    }

    fn latched(p: &mut Pit, now: Time, counter: u16) -> u16 {
        p.write(now, 3, (counter as u8) << 6);
        let low = p.read(now, counter);
        low as u16 | (p.read(now, counter) as u16) << 8
    }

    #[test]
    fn rate_generator_gives_one_edge_a_period() {
        let (mut p, w) = pit();
        load(&mut p, 0, 0, 0x34, 11932); // 100 Hz
        w.take();
        let mut now = 0;
        let mut rises = Vec::new();
        while rises.len() < 10 {
            now = p.deadline(now);
            p.tick(now);
            if w.take().contains(&Signal::Pin { pin: 0, level: true }) {
                rises.push(now);
            }
        }
        assert!((100_000_000..100_010_000).contains(&now), "{now}");
        assert!(rises.windows(2).all(|w| (9_999_000..10_001_000).contains(&(w[1] - w[0]))), "{rises:?}");
    }

    #[test]
    fn an_edge_is_not_lost_when_nobody_looked_in_time() {
        let (mut p, w) = pit();
        load(&mut p, 0, 0, 0x34, 1000);
        w.take();
        p.tick(time_of(1 + 1500));
        assert_eq!(w.take(), [Signal::Pin { pin: 0, level: false }, Signal::Pin { pin: 0, level: true }]);
        p.tick(time_of(1 + 1600));
        assert!(w.is_empty());
    }

    #[test]
    fn one_shot_rises_once() {
        let (mut p, w) = pit();
        load(&mut p, 0, 0, 0x30, 1193);
        w.take();
        let at = p.deadline(0);
        assert!((1_000_000..1_002_000).contains(&at));
        p.tick(at);
        assert_eq!(w.take(), [Signal::Pin { pin: 0, level: true }]);
        assert_eq!(p.deadline(at), NEVER);
    }

    #[test]
    fn counts_down_and_latches() {
        let (mut p, _) = pit();
        load(&mut p, 0, 0, 0x34, 10_000);
        let now = time_of(1 + 2500);
        assert_eq!(latched(&mut p, now, 0), 7500);
        // Unlatched low byte, then high.
        let low = p.read(now, 0) as u16;
        assert_eq!(low | (p.read(now, 0) as u16) << 8, 7500);
    }

    #[test]
    fn square_wave_is_high_for_the_first_half() {
        let (mut p, _) = pit();
        load(&mut p, 0, 2, 0x36, 1000);
        p.write_speaker(0, 1);
        assert_eq!(p.read_speaker(time_of(1 + 499)) & 0x20, 0x20);
        assert_eq!(p.read_speaker(time_of(1 + 501)) & 0x20, 0);
        assert_eq!(p.read_speaker(time_of(1 + 1001)) & 0x20, 0x20);
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let (mut p, _) = pit();
        load(&mut p, 0, 1, 0x34, 500);
        p.write(0, 3, 0xc4);
        assert_eq!(p.read(0, 1) & 0x3f, 0x34);
        assert_eq!(p.read(0, 1) as u16 | (p.read(0, 1) as u16) << 8, 500);
    }

    #[test]
    fn counter_two_stops_and_goes_with_its_gate() {
        let (mut p, _) = pit();
        p.write_speaker(0, 0);
        load(&mut p, 0, 2, 0x30, 0xffff);
        assert_eq!(latched(&mut p, 1_000_000, 2), 0xffff);
        p.write_speaker(1_000_000, 1);
        let c = latched(&mut p, 2_000_000, 2);
        assert!((0xffff - 1195..=0xffff - 1190).contains(&(c as i32)), "{c:#x}");
        assert_eq!(p.read_speaker(2_000_000) & 0x20, 0);
        assert_eq!(p.read_speaker(1_000_000 + time_of(0x10000)) & 0x20, 0x20);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let (mut p, _) = pit();
        load(&mut p, 0, 0, 0x35, 0x1000);
        assert_eq!(latched(&mut p, time_of(1 + 1), 0), 0x0999);
    }

    #[test]
    fn triggered_modes_wait_for_the_gate() {
        let (mut p, _) = pit();
        load(&mut p, 0, 2, 0x32, 100);
        assert_eq!(p.read_speaker(1_000_000) & 0x20, 0x20);
        p.write_speaker(1_000_000, 1);
        assert_eq!(p.read_speaker(1_000_000 + time_of(50)) & 0x20, 0);
        assert_eq!(p.read_speaker(1_000_000 + time_of(110)) & 0x20, 0x20);
    }

    #[test]
    fn a_new_rate_takes_effect_after_the_running_period() {
        let (mut p, _) = pit();
        load(&mut p, 0, 0, 0x34, 1000);
        p.write(0, 0, 100);
        p.write(0, 0, 0);
        assert_eq!(latched(&mut p, time_of(1 + 400), 0), 600);
        assert_eq!(latched(&mut p, time_of(1 + 1000 + 30), 0), 70);
    }
}
