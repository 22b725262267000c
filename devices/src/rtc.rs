//! CMOS real-time clock and its battery-backed memory (Motorola MC146818A data sheet; ICH9, RTC Registers).
//!
//! The time is a function of virtual time: seconds since 1970 at power-on plus what has passed since.

use crate::wiring::IrqLine;
use crate::{NEVER, Time};

const SECOND: u64 = 1_000_000_000;
/// How long before the end of a second an update counts as in progress.
const UPDATE: u64 = 2_228_000;

const REG_A: u8 = 10;
const REG_B: u8 = 11;
const REG_C: u8 = 12;
const REG_D: u8 = 13;
/// Century, where the FADT says it is.
pub const CENTURY: u8 = 0x32;

const B_DST: u8 = 1 << 0;
const B_24H: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;
const B_UIE: u8 = 1 << 4;
const B_AIE: u8 = 1 << 5;
const B_PIE: u8 = 1 << 6;
const B_SET: u8 = 1 << 7;
const C_UF: u8 = 1 << 4;
const C_AF: u8 = 1 << 5;
const C_PF: u8 = 1 << 6;

/// A broken-down time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 = Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    year: u32,
}

impl Date {
    /// From seconds since 1970-01-01 (proleptic Gregorian).
    fn from_seconds(t: u64) -> Date {
        let days = t / 86_400;
        let rest = t % 86_400;
        // Days since 0000-03-01, in eras of 400 years.
        let z = days + 719_468;
        let era = z / 146_097;
        let doe = z % 146_097;
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Date {
            second: (rest % 60) as u8,
            minute: (rest / 60 % 60) as u8,
            hour: (rest / 3600) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            day: (doy - (153 * mp + 2) / 5 + 1) as u8,
            month: month as u8,
            year: (yoe + era * 400 + (month <= 2) as u64) as u32,
        }
    }

    fn to_seconds(self) -> u64 {
        let month = self.month.clamp(1, 12) as u64;
        let y = self.year as u64 - (month <= 2) as u64;
        let mp = (month + 9) % 12;
        let doy = (153 * mp + 2) / 5 + self.day.max(1) as u64 - 1;
        let days = (y / 400) * 146_097 + (y % 400) * 365 + (y % 400) / 4 - (y % 400) / 100 + doy;
        days.saturating_sub(719_468) * 86_400 + self.hour as u64 * 3600 + self.minute as u64 * 60 + self.second as u64
    }
}

/// The clock.
pub struct Rtc {
    irq: IrqLine,
    index: u8,
    memory: [u8; 128],
    /// Seconds since 1970 at virtual time 0.
    epoch: u64,
    /// The registers while SET holds the clock.
    frozen: Option<Date>,
    /// Seconds and periods that have been looked at.
    seen_seconds: u64,
    seen_periods: u64,
    /// The HPET has taken IRQ 8 over.
    disconnected: bool,
}

impl Rtc {
    /// `epoch`: seconds since 1970 at power-on.
    pub fn new(irq: IrqLine, epoch: u64) -> Rtc {
        let mut memory = [0; 128];
        memory[REG_A as usize] = 0x26;
        memory[REG_B as usize] = B_24H;
        memory[REG_D as usize] = 0x80;
        Rtc { irq, index: 0, memory, epoch, frozen: None, seen_seconds: 0, seen_periods: 0, disconnected: false }
    }

    /// Fill in the memory sizes where firmware expects them, and the processor count where QEMU puts it.
    pub fn set_sizes(&mut self, low: u64, high: u64, cpus: u32) {
        let mut put = |at: usize, v: u64, n: usize| self.memory[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
        put(0x15, 640, 2);
        let extended = (low.saturating_sub(1 << 20) >> 10).min(0xffff);
        put(0x17, extended, 2);
        put(0x30, extended, 2);
        put(0x34, (low.saturating_sub(16 << 20) >> 16).min(0xffff), 2);
        put(0x5b, high >> 16, 3);
        put(0x5f, cpus.saturating_sub(1) as u64, 1);
        // Equipment: FPU, no floppy; boot from the first disk.
        put(0x14, 2, 1);
        put(0x3d, 2, 1);
    }

    /// Platform reset: time and memory are battery-backed; the interrupt enables are not.
    pub fn reset(&mut self) {
        self.memory[REG_B as usize] &= !(B_UIE | B_AIE | B_PIE);
        self.memory[REG_C as usize] = 0;
        self.disconnected = false;
        self.irq.set(false);
    }

    /// The alarm has gone off, and its interrupt is on: what wakes a sleeping computer.
    pub fn alarm(&self) -> bool {
        self.memory[REG_C as usize] & self.b() & B_AIE != 0
    }

    /// The HPET's legacy replacement routing takes IRQ 8 away, or gives it back.
    pub fn disconnect(&mut self, disconnected: bool) {
        self.disconnected = disconnected;
        self.update_irq();
    }

    fn b(&self) -> u8 {
        self.memory[REG_B as usize]
    }

    /// Nanoseconds between periodic interrupts; `None`: off.
    fn period(&self) -> Option<u64> {
        let rate = match self.memory[REG_A as usize] & 0xf {
            0 => return None,
            n @ 1..=2 => n + 7,
            n => n,
        };
        Some(SECOND * (1 << (rate - 1)) / 32_768)
    }

    fn date(&self, now: Time) -> Date {
        self.frozen.unwrap_or_else(|| Date::from_seconds(self.epoch + now / SECOND))
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b() & B_BINARY != 0 { value } else { value / 10 << 4 | value % 10 }
    }
    fn decode(&self, value: u8) -> u8 {
        if self.b() & B_BINARY != 0 { value } else { (value >> 4).wrapping_mul(10).wrapping_add(value & 15) }
    }
    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b() & B_24H != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }
    fn decode_hour(&self, value: u8) -> u8 {
        if self.b() & B_24H != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// Bring flags up to `now`.
    fn catch_up(&mut self, now: Time) {
        if let Some(period) = self.period() {
            let n = now / period;
            if n > self.seen_periods {
                self.memory[REG_C as usize] |= C_PF;
            }
            self.seen_periods = n;
        }
        let seconds = now / SECOND;
        if seconds > self.seen_seconds && self.frozen.is_none() {
            self.memory[REG_C as usize] |= C_UF;
            // Alarms of the seconds that have passed; a day covers every possible match.
            let from = self.seen_seconds.max(seconds.saturating_sub(86_400)) + 1;
            if self.memory[REG_C as usize] & C_AF == 0 && (from..=seconds).any(|s| self.alarm_matches(s)) {
                self.memory[REG_C as usize] |= C_AF;
            }
        }
        self.seen_seconds = seconds;
        self.update_irq();
    }

    fn alarm_matches(&self, second: u64) -> bool {
        let d = Date::from_seconds(self.epoch + second);
        let fits = |at: usize, value: u8| self.memory[at] >= 0xc0 || self.memory[at] == value;
        fits(1, self.encode(d.second)) && fits(3, self.encode(d.minute)) && fits(5, self.encode_hour(d.hour))
    }

    fn update_irq(&mut self) {
        let c = self.memory[REG_C as usize];
        let up = c & self.b() & (B_UIE | B_AIE | B_PIE) != 0;
        self.irq.set(up && !self.disconnected);
    }

    pub fn deadline(&self, now: Time) -> Time {
        let b = self.b();
        let c = self.memory[REG_C as usize];
        let mut next = NEVER;
        if b & B_PIE != 0
            && c & C_PF == 0
            && let Some(p) = self.period()
        {
            next = (now / p + 1) * p;
        }
        if b & B_UIE != 0 && c & C_UF == 0 || b & B_AIE != 0 && c & C_AF == 0 {
            next = next.min((now / SECOND + 1) * SECOND);
        }
        next
    }

    pub fn tick(&mut self, now: Time) {
        self.catch_up(now);
    }

    /// Ports 0x70 and 0x71.
    pub fn read(&mut self, now: Time, port: u16) -> u8 {
        if port & 1 == 0 {
            return 0xff;
        }
        self.catch_up(now);
        let d = self.date(now);
        match self.index {
            0 => self.encode(d.second),
            2 => self.encode(d.minute),
            4 => self.encode_hour(d.hour),
            6 => self.encode(d.weekday),
            7 => self.encode(d.day),
            8 => self.encode(d.month),
            9 => self.encode((d.year % 100) as u8),
            CENTURY => self.encode((d.year / 100) as u8),
            REG_A => {
                let updating = self.frozen.is_none() && now % SECOND >= SECOND - UPDATE;
                self.memory[REG_A as usize] & 0x7f | if updating { 0x80 } else { 0 }
            }
            REG_C => {
                let c = std::mem::take(&mut self.memory[REG_C as usize]);
                let irq = if c & self.b() & (B_UIE | B_AIE | B_PIE) != 0 { 0x80 } else { 0 };
                self.update_irq();
                c | irq
            }
            n => self.memory[n as usize & 0x7f],
        }
    }

    pub fn write(&mut self, now: Time, port: u16, value: u8) {
        if port & 1 == 0 {
            // Bit 7 masks NMI; nothing here raises one through this gate.
            self.index = value & 0x7f;
            return;
        }
        self.catch_up(now);
        match self.index {
            0 | 2 | 4 | 6 | 7 | 8 | 9 | CENTURY => self.write_time(now, value),
            REG_A => {
                self.memory[REG_A as usize] = value & 0x7f;
                self.seen_periods = self.period().map_or(0, |p| now / p);
            }
            REG_B => {
                let was = self.b();
                self.memory[REG_B as usize] = value & !B_DST;
                if value & B_SET != 0 && was & B_SET == 0 {
                    self.frozen = Some(Date::from_seconds(self.epoch + now / SECOND));
                } else if value & B_SET == 0
                    && let Some(date) = self.frozen.take()
                {
                    self.set_date(now, date);
                }
            }
            REG_C | REG_D => {}
            n => self.memory[n as usize & 0x7f] = value,
        }
        self.update_irq();
    }

    fn write_time(&mut self, now: Time, value: u8) {
        let mut d = self.date(now);
        let v = self.decode(value);
        match self.index {
            0 => d.second = v,
            2 => d.minute = v,
            4 => d.hour = self.decode_hour(value),
            6 => d.weekday = v,
            7 => d.day = v,
            8 => d.month = v,
            9 => d.year = d.year / 100 * 100 + v as u32 % 100,
            _ => d.year = v as u32 * 100 + d.year % 100,
        }
        if self.frozen.is_some() {
            self.frozen = Some(d);
        } else {
            self.set_date(now, d);
        }
    }

    fn set_date(&mut self, now: Time, date: Date) {
        self.epoch = date.to_seconds().saturating_sub(now / SECOND);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Signal, Wiring};

    /// 2024-02-29 23:59:58, a Thursday.
    const LEAP: u64 = 1_709_251_198;

    fn get(r: &mut Rtc, now: Time, reg: u8) -> u8 {
        r.write(now, 0x70, reg);
        r.read(now, 0x71)
    }
    fn put(r: &mut Rtc, now: Time, reg: u8, value: u8) {
        r.write(now, 0x70, reg);
        r.write(now, 0x71, value);
    }

    #[test]
    fn dates_go_both_ways() {
        for t in [0, 951_782_400, LEAP, 4_102_444_799, 1_700_000_000] {
            assert_eq!(Date::from_seconds(t).to_seconds(), t);
        }
        let d = Date::from_seconds(LEAP);
        assert_eq!((d.year, d.month, d.day, d.hour, d.minute, d.second, d.weekday), (2024, 2, 29, 23, 59, 58, 5));
    }

    #[test]
    fn time_passes_and_is_bcd() {
        let mut r = Rtc::new(IrqLine::unconnected(), LEAP);
        assert_eq!(get(&mut r, 0, 0), 0x58);
        assert_eq!(get(&mut r, 0, 9), 0x24);
        assert_eq!(get(&mut r, 0, CENTURY), 0x20);
        assert_eq!(get(&mut r, 2 * SECOND, 7), 1);
        assert_eq!(get(&mut r, 2 * SECOND, 8), 3);
        assert_eq!(get(&mut r, SECOND - 1, REG_A), 0xa6);
        assert_eq!(get(&mut r, SECOND + 1, REG_A), 0x26);
    }

    #[test]
    fn set_freezes_and_moves_the_clock() {
        let mut r = Rtc::new(IrqLine::unconnected(), LEAP);
        put(&mut r, 0, REG_B, B_SET | B_24H | B_BINARY);
        put(&mut r, 0, 4, 12);
        put(&mut r, 0, 9, 30);
        assert_eq!(get(&mut r, 5 * SECOND, 0), 58);
        put(&mut r, 5 * SECOND, REG_B, B_24H | B_BINARY);
        assert_eq!(get(&mut r, 6 * SECOND, 0), 59);
        assert_eq!((get(&mut r, 6 * SECOND, 4), get(&mut r, 6 * SECOND, 9)), (12, 30));
    }

    #[test]
    fn twelve_hour_mode() {
        let mut r = Rtc::new(IrqLine::unconnected(), LEAP);
        put(&mut r, 0, REG_B, 0);
        assert_eq!(get(&mut r, 0, 4), 0x91);
        put(&mut r, 0, 4, 0x12);
        put(&mut r, 0, REG_B, B_24H);
        assert_eq!(get(&mut r, 0, 4), 0);
    }

    #[test]
    fn periodic_update_and_alarm_interrupts() {
        let w = Wiring::new();
        let mut r = Rtc::new(w.line(8), LEAP);
        put(&mut r, 0, REG_B, B_24H | B_PIE);
        let at = r.deadline(0);
        assert_eq!(at, SECOND / 1024);
        r.tick(at);
        assert_eq!(w.take(), [Signal::Pin { pin: 8, level: true }]);
        assert_eq!(get(&mut r, at, REG_C), 0xc0);
        assert_eq!(w.take(), [Signal::Pin { pin: 8, level: false }]);
        put(&mut r, at, REG_B, B_24H | B_AIE);
        for (reg, v) in [(1, 0x01), (3, 0xff), (5, 0xff)] {
            put(&mut r, at, reg, v);
        }
        r.tick(2 * SECOND);
        assert!(w.is_empty());
        r.tick(3 * SECOND);
        assert_eq!(w.take(), [Signal::Pin { pin: 8, level: true }]);
        assert_eq!(get(&mut r, 3 * SECOND, REG_C) & 0xb0, 0xb0);
    }
}
