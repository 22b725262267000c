//! Keyboard controller with a keyboard and a mouse that answer but are never touched (IBM PS/2 Hardware Interface Technical
//! Reference; ICH9, Keyboard Controller).

use std::collections::VecDeque;

use crate::wiring::IrqLine;

const STATUS_OBF: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_AUX: u8 = 1 << 5;

const CCB_KEYBOARD_IRQ: u8 = 1 << 0;
const CCB_AUX_IRQ: u8 = 1 << 1;
const CCB_SYSTEM: u8 = 1 << 2;
const CCB_KEYBOARD_OFF: u8 = 1 << 4;
const CCB_AUX_OFF: u8 = 1 << 5;

/// Most bytes that wait for the guest.
const QUEUE: usize = 64;

/// What a write to the data port goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Keyboard,
    CommandByte,
    OutputPort,
    KeyboardOutput,
    AuxOutput,
    Aux,
}

/// Effects outside the controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    pub reset: bool,
    /// New state of the A20 gate.
    pub a20: Option<bool>,
}

/// The controller.
pub struct I8042 {
    keyboard_irq: IrqLine,
    aux_irq: IrqLine,
    command_byte: u8,
    next: Next,
    last_was_command: bool,
    /// Bytes for the guest; true: from the mouse.
    output: VecDeque<(u8, bool)>,
    /// A keyboard or mouse command that waits for its argument.
    keyboard_argument: Option<u8>,
    aux_argument: Option<u8>,
    scan_set: u8,
    a20: bool,
}

impl I8042 {
    pub fn new(keyboard_irq: IrqLine, aux_irq: IrqLine) -> I8042 {
        I8042 {
            keyboard_irq,
            aux_irq,
            command_byte: CCB_SYSTEM,
            next: Next::Keyboard,
            last_was_command: false,
            output: VecDeque::new(),
            keyboard_argument: None,
            aux_argument: None,
            scan_set: 2,
            a20: true,
        }
    }

    pub fn reset(&mut self) {
        self.command_byte = CCB_SYSTEM;
        self.next = Next::Keyboard;
        self.output.clear();
        (self.keyboard_argument, self.aux_argument) = (None, None);
        self.scan_set = 2;
        self.a20 = true;
        self.update();
    }

    /// The A20 gate was moved by someone else.
    pub fn set_a20(&mut self, open: bool) {
        self.a20 = open;
    }

    fn push(&mut self, byte: u8, aux: bool) {
        if self.output.len() < QUEUE {
            self.output.push_back((byte, aux));
        }
    }

    fn update(&mut self) {
        let front = self.output.front().map(|f| f.1);
        self.keyboard_irq.set(front == Some(false) && self.command_byte & CCB_KEYBOARD_IRQ != 0);
        self.aux_irq.set(front == Some(true) && self.command_byte & CCB_AUX_IRQ != 0);
    }

    /// Ports 0x60 and 0x64.
    pub fn read(&mut self, port: u16) -> u8 {
        if port & 4 != 0 {
            let mut status = STATUS_UNLOCKED | (self.command_byte & CCB_SYSTEM & STATUS_SYSTEM);
            if let Some((_, aux)) = self.output.front() {
                status |= STATUS_OBF | if *aux { STATUS_AUX } else { 0 };
            }
            return status | if self.last_was_command { STATUS_COMMAND } else { 0 };
        }
        let byte = self.output.pop_front().map_or(0, |o| o.0);
        // The next byte is a new edge.
        self.keyboard_irq.set(false);
        self.aux_irq.set(false);
        self.update();
        byte
    }

    pub fn write(&mut self, port: u16, value: u8) -> Effects {
        self.last_was_command = port & 4 != 0;
        let effects = if port & 4 != 0 { self.command(value) } else { self.data(value) };
        self.update();
        effects
    }

    fn command(&mut self, value: u8) -> Effects {
        let mut effects = Effects::default();
        self.next = Next::Keyboard;
        match value {
            0x20..=0x3f => {
                let byte = if value == 0x20 { self.command_byte } else { 0 };
                self.push(byte, false);
            }
            0x60 => self.next = Next::CommandByte,
            0xa7 => self.command_byte |= CCB_AUX_OFF,
            0xa8 => self.command_byte &= !CCB_AUX_OFF,
            0xa9 | 0xab => self.push(0, false),
            0xaa => {
                self.output.clear();
                self.command_byte |= CCB_SYSTEM;
                self.push(0x55, false);
            }
            0xad => self.command_byte |= CCB_KEYBOARD_OFF,
            0xae => self.command_byte &= !CCB_KEYBOARD_OFF,
            0xc0 => self.push(0x80, false),
            0xd0 => {
                let port = 1 | if self.a20 { 2 } else { 0 } | if self.output.is_empty() { 0 } else { 0x10 };
                self.push(port, false);
            }
            0xd1 => self.next = Next::OutputPort,
            0xd2 => self.next = Next::KeyboardOutput,
            0xd3 => self.next = Next::AuxOutput,
            0xd4 => self.next = Next::Aux,
            0xdd | 0xdf => effects.a20 = Some(value == 0xdf),
            // Pulse output lines: bit 0 low is reset.
            0xf0..=0xff => effects.reset = value & 1 == 0,
            _ => {}
        }
        self.a20 = effects.a20.unwrap_or(self.a20);
        effects
    }

    fn data(&mut self, value: u8) -> Effects {
        let mut effects = Effects::default();
        match std::mem::replace(&mut self.next, Next::Keyboard) {
            Next::Keyboard => self.keyboard(value),
            Next::CommandByte => self.command_byte = value,
            Next::OutputPort => {
                self.a20 = value & 2 != 0;
                effects = Effects { reset: value & 1 == 0, a20: Some(self.a20) };
            }
            Next::KeyboardOutput => self.push(value, false),
            Next::AuxOutput => self.push(value, true),
            Next::Aux => self.aux(value),
        }
        effects
    }

    fn keyboard(&mut self, value: u8) {
        // Sending to the keyboard switches its clock on.
        self.command_byte &= !CCB_KEYBOARD_OFF;
        if let Some(command) = self.keyboard_argument.take() {
            self.push(0xfa, false);
            if command == 0xf0 {
                if value == 0 {
                    self.push(self.scan_set, false);
                } else {
                    self.scan_set = value.min(3);
                }
            }
            return;
        }
        match value {
            0xed | 0xf0 | 0xf3 => {
                self.keyboard_argument = Some(value);
                self.push(0xfa, false);
            }
            0xee => self.push(0xee, false),
            0xf2 => [0xfa, 0xab, 0x83].into_iter().for_each(|b| self.push(b, false)),
            0xf4..=0xf6 => self.push(0xfa, false),
            0xff => [0xfa, 0xaa].into_iter().for_each(|b| self.push(b, false)),
            _ => self.push(0xfe, false),
        }
    }

    fn aux(&mut self, value: u8) {
        self.command_byte &= !CCB_AUX_OFF;
        if self.aux_argument.take().is_some() {
            self.push(0xfa, true);
            return;
        }
        match value {
            0xe8 | 0xf3 => {
                self.aux_argument = Some(value);
                self.push(0xfa, true);
            }
            0xe9 => [0xfa, 0, 2, 100].into_iter().for_each(|b| self.push(b, true)),
            0xeb => [0xfa, 8, 0, 0].into_iter().for_each(|b| self.push(b, true)),
            0xf2 => [0xfa, 0].into_iter().for_each(|b| self.push(b, true)),
            0xff => [0xfa, 0xaa, 0].into_iter().for_each(|b| self.push(b, true)),
            0xe6 | 0xe7 | 0xea | 0xec | 0xee | 0xf0 | 0xf4..=0xf6 => self.push(0xfa, true),
            _ => self.push(0xfe, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Signal, Wiring};

    fn answers(c: &mut I8042) -> Vec<u8> {
        let mut out = Vec::new();
        while c.read(0x64) & STATUS_OBF != 0 {
            out.push(c.read(0x60));
        }
        out
    }

    fn new() -> I8042 {
        I8042::new(IrqLine::unconnected(), IrqLine::unconnected())
    }

    #[test]
    fn self_tests_pass() {
        let mut c = new();
        for (command, answer) in [(0xaa, 0x55), (0xab, 0), (0xa9, 0)] {
            c.write(0x64, command);
            assert_eq!(answers(&mut c), [answer]);
        }
    }

    #[test]
    fn keyboard_and_mouse_identify_themselves() {
        let mut c = new();
        c.write(0x60, 0xf2);
        assert_eq!(answers(&mut c), [0xfa, 0xab, 0x83]);
        c.write(0x64, 0xd4);
        c.write(0x60, 0xff);
        assert_eq!(c.read(0x64) & STATUS_AUX, STATUS_AUX);
        assert_eq!(answers(&mut c), [0xfa, 0xaa, 0]);
    }

    #[test]
    fn reset_and_a20() {
        let mut c = new();
        assert!(c.write(0x64, 0xfe).reset);
        assert!(!c.write(0x64, 0xff).reset);
        c.write(0x64, 0xd1);
        assert_eq!(c.write(0x60, 0xdd), Effects { reset: false, a20: Some(false) });
        assert_eq!(c.write(0x64, 0xdf).a20, Some(true));
    }

    #[test]
    fn every_byte_is_an_edge_and_the_command_byte_gates_it() {
        let w = Wiring::new();
        let mut c = I8042::new(w.line(1), w.line(12));
        c.write(0x60, 0xff);
        assert!(w.is_empty());
        c.write(0x64, 0x60);
        c.write(0x60, 0x45);
        assert_eq!(w.take(), [Signal::Pin { pin: 1, level: true }]);
        c.read(0x60);
        assert_eq!(w.take(), [Signal::Pin { pin: 1, level: false }, Signal::Pin { pin: 1, level: true }]);
    }

    #[test]
    fn a_guest_that_never_reads_cannot_grow_the_queue() {
        let mut c = new();
        (0..10_000).for_each(|_| {
            c.write(0x60, 0xff);
        });
        assert!(c.output.len() <= QUEUE);
    }
}
