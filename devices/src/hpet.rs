//! High precision event timer: three timers, 64-bit counter (IA-PC HPET Specification 1.0a).

use crate::wiring::{IrqLine, MessageSender, Wiring};
use crate::{NEVER, Time};

/// Address of the registers.
pub const BASE: u64 = 0xfed0_0000;
/// Bytes of register space.
pub const SIZE: u64 = 0x400;
/// Nanoseconds of a counter tick.
const TICK: u64 = 10;
/// Event timer block ID, as in the ACPI table.
pub const BLOCK_ID: u32 = 0x8086_a201;

const TIMERS: usize = 3;
/// I/O APIC inputs that any timer may use, when legacy routing is off.
const ROUTES: u64 = 0x00f0_0000;

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;

const T_LEVEL: u64 = 1 << 1;
const T_ENABLE: u64 = 1 << 2;
const T_PERIODIC: u64 = 1 << 3;
const T_PERIODIC_CAP: u64 = 1 << 4;
const T_64_CAP: u64 = 1 << 5;
const T_SET: u64 = 1 << 6;
const T_32: u64 = 1 << 8;
const T_FSB: u64 = 1 << 14;
const T_FSB_CAP: u64 = 1 << 15;
const T_WRITABLE: u64 = T_LEVEL | T_ENABLE | T_PERIODIC | T_SET | T_32 | 0x3e00 | T_FSB;

#[derive(Debug)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    fsb: u64,
    /// Counter value, not wrapped, at which it next fires.
    next: Option<u64>,
    line: Option<IrqLine>,
}

impl Timer {
    /// Whether its line is up, and still the one of `pin`.
    fn raised(&self, pin: Option<u8>) -> bool {
        self.line.as_ref().is_some_and(|l| l.level() && Some(l.pin()) == pin)
    }

    fn new() -> Timer {
        Timer {
            config: T_PERIODIC_CAP | T_64_CAP | T_FSB_CAP | ROUTES << 32,
            comparator: u64::MAX,
            period: 0,
            fsb: 0,
            next: None,
            line: None,
        }
    }
    fn mask(&self) -> u64 {
        if self.config & T_32 != 0 { 0xffff_ffff } else { u64::MAX }
    }
    fn periodic(&self) -> bool {
        self.config & T_PERIODIC != 0
    }

    /// Work out `next` from the comparator.
    fn arm(&mut self, counter: u64) {
        let delta = self.comparator.wrapping_sub(counter) & self.mask();
        let delta = if delta == 0 && self.mask() != u64::MAX { 1 << 32 } else { delta };
        self.next = counter.checked_add(delta).filter(|_| delta != 0);
    }
}

/// The timer block.
pub struct Hpet {
    wiring: Wiring,
    messages: MessageSender,
    config: u64,
    status: u64,
    /// Counter at `since`, or while stopped.
    held: u64,
    since: Time,
    timers: [Timer; TIMERS],
}

impl Hpet {
    pub fn new(wiring: &Wiring) -> Hpet {
        Hpet {
            wiring: wiring.clone(),
            messages: wiring.messages(),
            config: 0,
            status: 0,
            held: 0,
            since: 0,
            timers: [Timer::new(), Timer::new(), Timer::new()],
        }
    }

    pub fn reset(&mut self) {
        let wiring = self.wiring.clone();
        *self = Hpet::new(&wiring);
    }

    /// Whether it stands in for the 8254 (IRQ 0) and the RTC (IRQ 8).
    pub fn legacy_replacement(&self) -> bool {
        self.config & (ENABLE | LEGACY) == ENABLE | LEGACY
    }

    fn running(&self) -> bool {
        self.config & ENABLE != 0
    }
    fn counter(&self, now: Time) -> u64 {
        if self.running() { self.held.wrapping_add(now.saturating_sub(self.since) / TICK) } else { self.held }
    }

    /// The pin that timer `n` drives, in [`Wiring`]'s numbering (I/O APIC input 2 is ISA IRQ 0).
    fn pin(&self, n: usize) -> Option<u8> {
        if self.config & LEGACY != 0 && n < 2 {
            return Some(if n == 0 { 0 } else { 8 });
        }
        let route = self.timers[n].config >> 9 & 0x1f;
        (ROUTES & 1 << route != 0).then_some(route as u8)
    }

    fn set_line(&mut self, n: usize, level: bool) {
        let pin = self.pin(n);
        let timer = &mut self.timers[n];
        if timer.line.as_ref().map(IrqLine::pin) != pin {
            timer.line = pin.map(|p| self.wiring.line(p));
        }
        if let Some(line) = &mut timer.line {
            line.set(level);
        }
    }

    fn update_levels(&mut self) {
        for n in 0..TIMERS {
            let c = self.timers[n].config;
            let on = c & (T_ENABLE | T_FSB) == T_ENABLE && self.running();
            let up = if c & T_LEVEL != 0 { self.status & 1 << n != 0 } else { self.timers[n].raised(self.pin(n)) };
            self.set_line(n, on && up);
        }
    }

    fn fire(&mut self, n: usize) {
        let c = self.timers[n].config;
        if c & T_LEVEL != 0 {
            self.status |= 1 << n;
        }
        if c & T_ENABLE == 0 {
            return;
        }
        if c & T_FSB != 0 {
            self.messages.send(self.timers[n].fsb >> 32, self.timers[n].fsb as u32);
        } else if c & T_LEVEL != 0 {
            self.set_line(n, true);
        } else {
            // An edge. The line stays up until the next: the 8259s forget a request whose line falls before they are asked for it.
            self.set_line(n, false);
            self.set_line(n, true);
        }
    }

    pub fn deadline(&self) -> Time {
        if !self.running() {
            return NEVER;
        }
        let next = |t: &Timer| {
            let due = t.next.filter(|_| t.config & (T_ENABLE | T_LEVEL) != 0)?;
            due.checked_sub(self.held)?.checked_mul(TICK)?.checked_add(self.since)
        };
        self.timers.iter().filter_map(next).min().unwrap_or(NEVER)
    }

    pub fn tick(&mut self, now: Time) {
        if !self.running() {
            return;
        }
        let counter = self.counter(now);
        for n in 0..TIMERS {
            let timer = &mut self.timers[n];
            let Some(due) = timer.next.filter(|d| *d <= counter) else { continue };
            if timer.periodic() && timer.period != 0 {
                // Periods that were missed coincide.
                let steps = (counter - due) / timer.period + 1;
                let advance = steps.saturating_mul(timer.period);
                timer.next = due.checked_add(advance);
                timer.comparator = timer.comparator.wrapping_add(advance) & timer.mask();
            } else {
                timer.next = if timer.mask() == u64::MAX { None } else { due.checked_add(1 << 32) };
            }
            self.fire(n);
        }
    }

    fn register(&self, now: Time, offset: u64) -> u64 {
        match offset {
            0 => (TICK * 1_000_000) << 32 | BLOCK_ID as u64,
            0x10 => self.config,
            0x20 => self.status,
            0xf0 => self.counter(now),
            0x100.. => {
                let n = (offset as usize - 0x100) / 0x20;
                match (self.timers.get(n), offset & 0x18) {
                    (Some(t), 0) => t.config,
                    (Some(t), 8) => t.comparator,
                    (Some(t), 0x10) => t.fsb,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Read at an offset from the base.
    pub fn read(&mut self, now: Time, offset: u64, size: usize) -> u64 {
        let value = self.register(now, offset & !7) >> (8 * (offset & 7));
        value & (u64::MAX >> (64 - 8 * size.clamp(1, 8)))
    }

    /// Write at an offset from the base. Narrow writes keep the rest of the register.
    pub fn write(&mut self, now: Time, offset: u64, size: usize, value: u64) {
        self.tick(now);
        let at = offset & !7;
        let shift = 8 * (offset & 7);
        let mask = (u64::MAX >> (64 - 8 * size.clamp(1, 8))) << shift;
        let merge = |old: u64| (old & !mask) | (value << shift & mask);
        match at {
            0x10 => self.write_config(now, merge(self.config) & 3),
            0x20 => self.status &= !(value << shift & mask),
            0xf0 if !self.running() => self.held = merge(self.held),
            0x100.. => self.write_timer(now, at, merge),
            _ => {}
        }
        self.update_levels();
    }

    fn write_config(&mut self, now: Time, value: u64) {
        let counter = self.counter(now);
        let starts = value & ENABLE != 0 && !self.running();
        self.config = value;
        self.held = counter;
        self.since = now;
        if starts {
            self.timers.iter_mut().for_each(|t| t.arm(counter));
        }
    }

    fn write_timer(&mut self, now: Time, at: u64, merge: impl Fn(u64) -> u64) {
        let counter = self.counter(now);
        let running = self.running();
        let Some(t) = self.timers.get_mut((at as usize - 0x100) / 0x20) else { return };
        match at & 0x18 {
            0 => {
                let old = t.config;
                t.config = (old & !T_WRITABLE) | (merge(old) & T_WRITABLE);
                if t.config & T_32 != 0 {
                    t.comparator &= 0xffff_ffff;
                    t.period &= 0xffff_ffff;
                }
                // Software may have turned the timer on or changed its width: look at the comparator again.
                if (old ^ t.config) & (T_ENABLE | T_32 | T_PERIODIC) != 0 && running {
                    t.arm(counter);
                }
            }
            8 => {
                let set = !t.periodic() || t.config & T_SET != 0;
                let value = merge(if set { t.comparator } else { t.period }) & t.mask();
                if set {
                    t.comparator = value;
                    t.config &= !T_SET;
                    if running {
                        t.arm(counter);
                    }
                }
                t.period = value;
            }
            0x10 => t.fsb = merge(t.fsb),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::Signal;

    fn hpet() -> (Hpet, Wiring) {
        let w = Wiring::new();
        (Hpet::new(&w), w)
    }
    fn edges(w: &Wiring, pin: u8) -> usize {
        w.take().iter().filter(|s| **s == Signal::Pin { pin, level: true }).count()
    }

    #[test]
    fn counter_runs_only_when_enabled() {
        let (mut h, _) = hpet();
        assert_eq!(h.read(0, 4, 4), 10_000_000);
        assert_eq!(h.read(5000, 0xf0, 8), 0);
        h.write(5000, 0xf0, 8, 7);
        h.write(5000, 0x10, 8, ENABLE);
        assert_eq!(h.read(6000, 0xf0, 8), 107);
        h.write(6000, 0x10, 8, 0);
        assert_eq!(h.read(9000, 0xf0, 4), 107);
    }

    #[test]
    fn one_shot_by_legacy_routing() {
        let (mut h, w) = hpet();
        h.write(0, 0x10, 8, ENABLE | LEGACY);
        assert!(h.legacy_replacement());
        h.write(0, 0x100, 4, T_ENABLE | T_32);
        h.write(0, 0x108, 4, 1000);
        assert_eq!(h.deadline(), 10_000);
        h.tick(9_990);
        assert_eq!(edges(&w, 0), 0);
        h.tick(10_000);
        assert_eq!(edges(&w, 0), 1);
        // Again only after a wrap of 32 bits.
        assert_eq!(h.deadline(), ((1u64 << 32) + 1000) * 10);
    }

    #[test]
    fn periodic_with_the_set_bit() {
        let (mut h, w) = hpet();
        h.write(0, 0x10, 8, ENABLE | LEGACY);
        h.write(0, 0x100, 4, T_ENABLE | T_PERIODIC | T_SET);
        h.write(0, 0x108, 8, 500);
        h.write(0, 0x108, 8, 100);
        let mut times = Vec::new();
        for _ in 0..3 {
            let at = h.deadline();
            h.tick(at);
            times.push(at);
        }
        assert_eq!(times, [5000, 6000, 7000]);
        assert_eq!(edges(&w, 0), 3);
        assert_eq!(h.read(7000, 0x108, 8), 800);
    }

    /// As the 8259s want it: what fires while they are not asked is still there when they are.
    #[test]
    fn an_edge_stays_up() {
        let (mut h, w) = hpet();
        h.write(0, 0x10, 8, ENABLE | LEGACY);
        h.write(0, 0x100, 8, T_ENABLE);
        h.write(0, 0x108, 8, 10);
        h.tick(20 * TICK);
        assert_eq!(w.take(), [Signal::Pin { pin: 0, level: true }]);
        h.write(21 * TICK, 0x108, 8, 30);
        assert_eq!(w.take(), []);
        h.tick(40 * TICK);
        assert_eq!(w.take(), [Signal::Pin { pin: 0, level: false }, Signal::Pin { pin: 0, level: true }]);
        h.write(41 * TICK, 0x100, 8, 0);
        assert_eq!(w.take(), [Signal::Pin { pin: 0, level: false }]);
    }

    #[test]
    fn level_holds_until_status_is_cleared() {
        let (mut h, w) = hpet();
        h.write(0, 0x140, 4, T_ENABLE | T_LEVEL | 20 << 9);
        h.write(0, 0x148, 8, 10);
        h.write(0, 0x10, 8, ENABLE);
        h.tick(100);
        assert_eq!(w.take(), [Signal::Pin { pin: 20, level: true }]);
        assert_eq!(h.read(100, 0x20, 4), 4);
        h.write(100, 0x20, 4, 4);
        assert_eq!(w.take(), [Signal::Pin { pin: 20, level: false }]);
    }

    #[test]
    fn fsb_sends_its_message() {
        let (mut h, w) = hpet();
        h.write(0, 0x130, 8, 0xfee0_1000 << 32 | 0x41);
        h.write(0, 0x120, 4, T_ENABLE | T_FSB);
        h.write(0, 0x128, 8, 10);
        h.write(0, 0x10, 8, ENABLE);
        h.tick(h.deadline());
        assert_eq!(w.take(), [Signal::Message { address: 0xfee0_1000, data: 0x41 }]);
    }
}
