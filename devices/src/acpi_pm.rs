//! ACPI power management: PM1 event and control blocks, PM timer, GPE0, and what powers off (ACPI Specification, ACPI
//! Hardware Specification; ICH9, Power Management I/O Registers). Ports are offsets from [`BASE`].

use crate::wiring::IrqLine;
use crate::{NEVER, Time};

/// Port of the register block.
pub const BASE: u16 = 0x600;
/// Ports in the block.
pub const PORTS: u16 = 0x80;
pub const PM1_STATUS: u16 = 0;
pub const PM1_ENABLE: u16 = 2;
pub const PM1_CONTROL: u16 = 4;
pub const PM_TIMER: u16 = 8;
pub const GPE0: u16 = 0x20;
pub const GPE0_LENGTH: u16 = 16;
/// SMI command port and the values that switch ACPI mode on and off.
pub const SMI_COMMAND: u16 = 0xb2;
pub const ACPI_ENABLE: u8 = 2;
pub const ACPI_DISABLE: u8 = 3;
/// SLP_TYP of S5, as in the DSDT's `_S5`.
pub const SLEEP_TYPE_S5: u16 = 0;
/// SLP_TYP of S3, as in the DSDT's `_S3`.
pub const SLEEP_TYPE_S3: u16 = 1;
/// Interrupt of the power management block.
pub const SCI: u8 = 9;

/// PM timer frequency in hertz.
pub const TIMER_FREQUENCY: u64 = 3_579_545;

const TMR_STS: u16 = 1 << 0;
const PWRBTN_STS: u16 = 1 << 8;
const RTC_STS: u16 = 1 << 10;
const WAK_STS: u16 = 1 << 15;
const STATUS_BITS: u16 = 0x8d31;
const ENABLE_BITS: u16 = 0x0721;
const SCI_EN: u16 = 1;
const SLP_EN: u16 = 1 << 13;

/// What the guest wants of the power supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Off,
    Reset,
    /// Sleep in S3: all is lost but memory.
    Suspend,
}

/// The block.
pub struct AcpiPm {
    sci: IrqLine,
    status: u16,
    enable: u16,
    control: u16,
    gpe: [u8; GPE0_LENGTH as usize],
    wanted: Option<Power>,
    /// Timer bit 23 changes that have been counted into TMR_STS.
    carries: u64,
    smi_command: u8,
    smi_status: u8,
}

fn ticks(now: Time) -> u64 {
    (now as u128 * TIMER_FREQUENCY as u128 / 1_000_000_000) as u64
}

impl AcpiPm {
    pub fn new(sci: IrqLine) -> AcpiPm {
        AcpiPm {
            sci,
            status: 0,
            enable: 0,
            control: SCI_EN,
            gpe: [0; GPE0_LENGTH as usize],
            wanted: None,
            carries: 0,
            smi_command: 0,
            smi_status: 0,
        }
    }

    pub fn reset(&mut self, now: Time) {
        (self.status, self.enable, self.control) = (0, 0, SCI_EN);
        self.gpe = [0; GPE0_LENGTH as usize];
        self.carries = ticks(now) >> 23;
        self.update();
    }

    /// A request that the guest made since the last call.
    pub fn take_power(&mut self) -> Option<Power> {
        self.wanted.take()
    }

    /// Press the power button.
    pub fn press_power_button(&mut self) {
        self.status |= PWRBTN_STS;
        self.update();
    }

    /// In S3: whether an enabled event ends the sleep. `alarm`: the clock's alarm has gone off.
    pub fn wakes(&mut self, alarm: bool) -> bool {
        if alarm {
            self.status |= RTC_STS;
        }
        self.status & self.enable & (RTC_STS | PWRBTN_STS) != 0
    }

    /// Reset at the end of a sleep, whose cause stays to be seen.
    pub fn wake(&mut self, now: Time) {
        let cause = self.status & (RTC_STS | PWRBTN_STS);
        self.reset(now);
        self.status = cause | WAK_STS;
        self.update();
    }

    fn update(&mut self) {
        let half = GPE0_LENGTH as usize / 2;
        let gpe = (0..half).any(|i| self.gpe[i] & self.gpe[half + i] != 0);
        self.sci.set(self.control & SCI_EN != 0 && (self.status & self.enable != 0 || gpe));
    }

    fn catch_up(&mut self, now: Time) {
        let carries = ticks(now) >> 23;
        if carries != self.carries {
            self.carries = carries;
            self.status |= TMR_STS;
            self.update();
        }
    }

    /// When bit 23 of the timer next changes, if that interrupts.
    pub fn deadline(&self) -> Time {
        if self.enable & TMR_STS == 0 || self.control & SCI_EN == 0 {
            return NEVER;
        }
        ((((self.carries + 1) << 23) as u128 * 1_000_000_000).div_ceil(TIMER_FREQUENCY as u128)) as u64
    }

    pub fn tick(&mut self, now: Time) {
        self.catch_up(now);
    }

    fn byte(&self, now: Time, offset: u16) -> u8 {
        let half = |v: u16| v.to_le_bytes()[(offset & 1) as usize];
        match offset {
            0 | 1 => half(self.status),
            2 | 3 => half(self.enable),
            4 | 5 => half(self.control),
            8..12 => ((ticks(now) & 0xff_ffff) >> (8 * (offset - 8))) as u8,
            0x20..0x30 => self.gpe[offset as usize - 0x20],
            _ => 0,
        }
    }

    /// Read 1, 2 or 4 bytes at an offset from [`BASE`].
    pub fn read(&mut self, now: Time, offset: u16, size: usize) -> u32 {
        self.catch_up(now);
        (0..size as u16).fold(0, |v, i| v | (self.byte(now, offset + i) as u32) << (8 * i))
    }

    /// Write 1, 2 or 4 bytes.
    pub fn write(&mut self, now: Time, offset: u16, size: usize, value: u32) {
        self.catch_up(now);
        for i in 0..size as u16 {
            self.write_byte(offset + i, (value >> (8 * i)) as u8);
        }
        self.update();
    }

    fn write_byte(&mut self, offset: u16, value: u8) {
        let shift = 8 * (offset & 1);
        let wide = (value as u16) << shift;
        let mask = 0xff << shift;
        match offset {
            // Status bits are cleared by writing ones.
            0 | 1 => self.status &= !(wide & STATUS_BITS),
            2 | 3 => self.enable = (self.enable & !mask) | (wide & ENABLE_BITS),
            4 | 5 => {
                self.control = (self.control & !mask) | (wide & 0x1c07 & mask) | (self.control & SCI_EN);
                if wide & SLP_EN != 0 {
                    match self.control >> 10 & 7 {
                        SLEEP_TYPE_S5 => self.wanted = Some(Power::Off),
                        SLEEP_TYPE_S3 => self.wanted = Some(Power::Suspend),
                        _ => {}
                    }
                }
            }
            0x20..0x28 => self.gpe[offset as usize - 0x20] &= !value,
            0x28..0x30 => self.gpe[offset as usize - 0x20] = value,
            _ => {}
        }
    }

    /// Ports 0xb2 (SMI command) and 0xb3 (its status).
    pub fn read_smi(&self, port: u16) -> u8 {
        if port & 1 == 0 { self.smi_command } else { self.smi_status }
    }

    /// ACPI mode is always on, so the commands only answer that it is.
    pub fn write_smi(&mut self, port: u16, value: u8) {
        if port & 1 == 0 {
            self.smi_command = value;
            match value {
                ACPI_ENABLE => self.control |= SCI_EN,
                ACPI_DISABLE => self.control &= !SCI_EN,
                _ => {}
            }
            self.update();
        } else {
            self.smi_status = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Signal, Wiring};

    #[test]
    fn s5_powers_off_and_other_types_do_not() {
        let mut pm = AcpiPm::new(IrqLine::unconnected());
        pm.write(0, PM1_CONTROL, 2, (SLP_EN | 3 << 10) as u32);
        assert_eq!(pm.take_power(), None);
        pm.write(0, PM1_CONTROL, 2, (SLP_EN | SLEEP_TYPE_S5 << 10) as u32);
        assert_eq!(pm.take_power(), Some(Power::Off));
        assert_eq!(pm.read(0, PM1_CONTROL, 2) & 1, 1);
    }

    #[test]
    fn power_button_raises_sci_until_cleared() {
        let w = Wiring::new();
        let mut pm = AcpiPm::new(w.line(SCI));
        pm.write(0, PM1_ENABLE, 2, PWRBTN_STS as u32);
        pm.press_power_button();
        assert_eq!(w.take(), [Signal::Pin { pin: SCI, level: true }]);
        assert_eq!(pm.read(0, PM1_STATUS, 2), PWRBTN_STS as u32);
        pm.write(0, PM1_STATUS, 2, PWRBTN_STS as u32);
        assert_eq!(w.take(), [Signal::Pin { pin: SCI, level: false }]);
    }

    #[test]
    fn timer_runs_at_its_frequency_and_its_carry_interrupts() {
        let w = Wiring::new();
        let mut pm = AcpiPm::new(w.line(SCI));
        assert_eq!(pm.read(1_000_000_000, PM_TIMER, 4), TIMER_FREQUENCY as u32);
        pm.write(0, PM1_ENABLE, 2, TMR_STS as u32);
        let at = pm.deadline();
        assert!((2_343_000_000..2_344_000_000).contains(&at), "{at}");
        pm.tick(at - 1);
        assert!(w.is_empty());
        pm.tick(at);
        assert_eq!(w.take(), [Signal::Pin { pin: SCI, level: true }]);
    }

    #[test]
    fn sleeps_in_s3_until_an_enabled_event() {
        let mut pm = AcpiPm::new(IrqLine::unconnected());
        pm.write(0, PM1_CONTROL, 2, (SLP_EN | SLEEP_TYPE_S3 << 10) as u32);
        assert_eq!(pm.take_power(), Some(Power::Suspend));
        assert!(!pm.wakes(false) && !pm.wakes(true), "not enabled");
        pm.write(0, PM1_ENABLE, 2, RTC_STS as u32);
        assert!(pm.wakes(false), "the alarm of before");
        pm.wake(5);
        assert_eq!(pm.read(5, PM1_STATUS, 2), (RTC_STS | WAK_STS) as u32);
        assert_eq!(pm.read(5, PM1_ENABLE, 2), 0);
    }
}
