//! 16550A serial port (National Semiconductor PC16550D data sheet).
//!
//! Transmission takes no virtual time: what is written is with the backend at once, so THR is always empty. A line speed
//! would only make guests wait.

use std::collections::VecDeque;

use crate::chardev::CharBackend;
use crate::wiring::IrqLine;

const FIFO_SIZE: usize = 16;

/// IER: received data available, THR empty, line status, modem status.
const IER_RDI: u8 = 1;
const IER_THRI: u8 = 2;
const IER_RLSI: u8 = 4;
const IER_MSI: u8 = 8;

const LSR_DR: u8 = 1 << 0;
const LSR_OE: u8 = 1 << 1;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

/// MSR lines with a terminal attached: CTS, DSR, DCD.
const MSR_ATTACHED: u8 = 0xb0;

/// Reads of LSR in a row, with nothing else between, that count as polling for input.
const POLLING: u8 = 8;

/// One serial port of eight registers.
pub struct Uart {
    irq: IrqLine,
    backend: Box<dyn CharBackend>,
    receive: VecDeque<u8>,
    ier: u8,
    lcr: u8,
    mcr: u8,
    fcr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// THR-empty interrupt pending.
    thr_pending: bool,
    /// Modem lines as last read, for the delta bits.
    msr_lines: u8,
    msr_delta: u8,
    lsr_reads: u8,
}

impl Uart {
    pub fn new(irq: IrqLine, backend: Box<dyn CharBackend>) -> Uart {
        Uart {
            irq,
            backend,
            receive: VecDeque::with_capacity(FIFO_SIZE),
            ier: 0,
            lcr: 0,
            mcr: 0,
            fcr: 0,
            scratch: 0,
            divisor: 12,
            overrun: false,
            thr_pending: false,
            msr_lines: MSR_ATTACHED,
            msr_delta: 0,
            lsr_reads: 0,
        }
    }

    /// Back to power-on values; the backend stays.
    pub fn reset(&mut self) {
        (self.ier, self.lcr, self.mcr, self.fcr, self.divisor) = (0, 0, 0, 0, 12);
        (self.overrun, self.thr_pending, self.msr_lines, self.msr_delta) = (false, false, MSR_ATTACHED, 0);
        self.receive.clear();
        self.update_irq();
    }

    fn depth(&self) -> usize {
        if self.fcr & 1 != 0 { FIFO_SIZE } else { 1 }
    }

    fn accept(&mut self, byte: u8) {
        if self.receive.len() >= self.depth() {
            self.overrun = true;
            if self.depth() == 1 {
                self.receive.clear();
                self.receive.push_back(byte);
            }
        } else {
            self.receive.push_back(byte);
        }
    }

    /// Take input from the backend while there is room and the guest listens for interrupts. (A guest whose driver is not yet
    /// up clears the FIFO when it comes up; input taken before that would be lost.)
    pub fn poll(&mut self) {
        if self.ier & IER_RDI != 0 && self.mcr & MCR_LOOP == 0 {
            self.pull();
        }
    }

    /// Push the backend's buffered output out.
    pub fn flush(&mut self) {
        self.backend.flush();
    }

    fn pull(&mut self) {
        while self.receive.len() < self.depth() {
            let Some(byte) = self.backend.read() else { break };
            self.receive.push_back(byte);
        }
        self.update_irq();
    }

    /// Interrupt identification without the FIFO bits, by priority; 1 = none.
    fn iir(&self) -> u8 {
        if self.ier & IER_RLSI != 0 && self.overrun {
            return 6;
        }
        if self.ier & IER_RDI != 0 && !self.receive.is_empty() {
            let trigger = match (self.fcr & 1, self.fcr >> 6) {
                (0, _) | (_, 0) => 1,
                (_, 1) => 4,
                (_, 2) => 8,
                _ => 14,
            };
            // Below the trigger level: character timeout.
            return if self.receive.len() >= trigger { 4 } else { 0xc };
        }
        if self.ier & IER_THRI != 0 && self.thr_pending {
            return 2;
        }
        if self.ier & IER_MSI != 0 && self.msr_delta != 0 {
            return 0;
        }
        1
    }

    fn update_irq(&mut self) {
        // OUT2 gates the interrupt on a PC.
        let up = self.iir() != 1 && (self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2);
        self.irq.set(up);
    }

    fn lines(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_ATTACHED;
        }
        let bit = |from: u8, to: u8| if self.mcr & from != 0 { to } else { 0 };
        bit(MCR_RTS, 0x10) | bit(MCR_DTR, 0x20) | bit(MCR_OUT1, 0x40) | bit(MCR_OUT2, 0x80)
    }

    fn update_modem(&mut self) {
        let new = self.lines();
        let changed = (new ^ self.msr_lines) >> 4;
        // The ring indicator's delta is its trailing edge only.
        let ring_ended = self.msr_lines & 0x40 != 0 && new & 0x40 == 0;
        self.msr_delta |= (changed & 0xb) | if ring_ended { 4 } else { 0 };
        self.msr_lines = new;
    }

    pub fn read(&mut self, register: u16) -> u8 {
        let dlab = self.lcr & 0x80 != 0;
        if register != 5 {
            self.lsr_reads = 0;
        }
        let value = match register & 7 {
            0 if dlab => self.divisor as u8,
            1 if dlab => (self.divisor >> 8) as u8,
            0 => {
                let byte = self.receive.pop_front().unwrap_or(0);
                if self.receive.is_empty() {
                    self.poll();
                }
                byte
            }
            1 => self.ier,
            2 => {
                let iir = self.iir();
                if iir == 2 {
                    self.thr_pending = false;
                }
                iir | if self.fcr & 1 != 0 { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                self.lsr_reads = self.lsr_reads.saturating_add(1);
                if self.lsr_reads >= POLLING && self.mcr & MCR_LOOP == 0 {
                    self.pull();
                }
                let mut lsr = LSR_THRE | LSR_TEMT;
                if !self.receive.is_empty() {
                    lsr |= LSR_DR;
                }
                if std::mem::take(&mut self.overrun) {
                    lsr |= LSR_OE;
                }
                lsr
            }
            6 => self.msr_lines | std::mem::take(&mut self.msr_delta),
            _ => self.scratch,
        };
        self.update_irq();
        value
    }

    pub fn write(&mut self, register: u16, value: u8) {
        let dlab = self.lcr & 0x80 != 0;
        self.lsr_reads = 0;
        match register & 7 {
            0 if dlab => self.divisor = (self.divisor & 0xff00) | value as u16,
            1 if dlab => self.divisor = (self.divisor & 0xff) | (value as u16) << 8,
            0 => {
                if self.mcr & MCR_LOOP != 0 {
                    self.accept(value);
                } else {
                    self.backend.write(value);
                }
                self.thr_pending = true;
            }
            1 => {
                // Enabling THRI with THR empty raises the interrupt.
                if value & IER_THRI != 0 && self.ier & IER_THRI == 0 {
                    self.thr_pending = true;
                }
                self.ier = value & 0xf;
                self.poll();
            }
            2 => {
                if (value ^ self.fcr) & 1 != 0 || value & 2 != 0 {
                    self.receive.clear();
                }
                if value & 4 != 0 {
                    self.thr_pending = true;
                }
                self.fcr = if value & 1 != 0 { value & 0xc9 } else { 0 };
            }
            3 => self.lcr = value,
            4 => {
                self.mcr = value & 0x1f;
                self.update_modem();
                self.poll();
            }
            5 | 6 => {}
            _ => self.scratch = value,
        }
        self.update_irq();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::BufferBackend;
    use crate::wiring::{Signal, Wiring};

    fn uart() -> (Uart, BufferBackend, Wiring) {
        let (wiring, backend) = (Wiring::new(), BufferBackend::new());
        let mut u = Uart::new(wiring.line(4), Box::new(backend.clone()));
        u.write(4, MCR_OUT2 | MCR_DTR | MCR_RTS);
        (u, backend, wiring)
    }

    #[test]
    fn what_is_written_reaches_the_backend() {
        let (mut u, b, _) = uart();
        b"hello".iter().for_each(|&c| u.write(0, c));
        assert_eq!(b.output(), b"hello");
        assert_eq!(u.read(5), LSR_THRE | LSR_TEMT);
    }

    #[test]
    fn thr_empty_interrupt_comes_back_when_enabled_again() {
        let (mut u, _, w) = uart();
        u.write(1, IER_THRI);
        assert_eq!(w.take(), [Signal::Pin { pin: 4, level: true }]);
        assert_eq!(u.read(2) & 0xf, 2);
        assert_eq!(u.read(2) & 0xf, 1);
        u.write(1, 0);
        u.write(1, IER_THRI);
        assert_eq!(u.read(2) & 0xf, 2);
    }

    #[test]
    fn input_waits_until_the_driver_listens() {
        let (mut u, b, w) = uart();
        b.feed(b"ab");
        u.poll();
        assert_eq!(u.read(5) & LSR_DR, 0);
        u.write(2, 1);
        u.write(1, IER_RDI);
        assert_eq!(w.take(), [Signal::Pin { pin: 4, level: true }]);
        assert_eq!(u.read(2), 0xc4);
        assert_eq!((u.read(0), u.read(0)), (b'a', b'b'));
        assert_eq!(w.take(), [Signal::Pin { pin: 4, level: false }]);
    }

    #[test]
    fn a_polling_guest_gets_its_input() {
        let (mut u, b, _) = uart();
        b.feed(b"x");
        assert!((0..20).any(|_| u.read(5) & LSR_DR != 0));
        assert_eq!(u.read(0), b'x');
    }

    #[test]
    fn loopback_turns_modem_outputs_into_inputs_and_data_back() {
        let (mut u, b, _) = uart();
        u.write(4, MCR_LOOP | MCR_RTS | MCR_OUT2);
        assert_eq!(u.read(6) & 0xf0, 0x90);
        u.write(0, 0x5a);
        assert_eq!(u.read(0), 0x5a);
        assert!(b.output().is_empty());
    }

    #[test]
    fn without_fifo_a_second_byte_overruns() {
        let (mut u, _, _) = uart();
        u.write(4, MCR_LOOP);
        u.write(0, 1);
        u.write(0, 2);
        assert_eq!(u.read(5) & LSR_OE, LSR_OE);
        assert_eq!(u.read(5) & LSR_OE, 0);
        assert_eq!(u.read(0), 2);
    }

    #[test]
    fn divisor_latch_and_scratch() {
        let (mut u, _, _) = uart();
        u.write(3, 0x83);
        u.write(0, 0x34);
        u.write(1, 0x12);
        assert_eq!((u.read(0), u.read(1)), (0x34, 0x12));
        u.write(3, 3);
        u.write(7, 0xa5);
        assert_eq!(u.read(7), 0xa5);
        assert_eq!(u.read(1), 0);
    }
}
