//! The pair of 8259A interrupt controllers (Intel 8259A data sheet; edge/level registers of the ICH9).

/// One 8259A.
#[derive(Clone, Debug, Default)]
struct Chip {
    /// Input levels.
    lines: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    /// Edge/level control register: set bits are level-triggered.
    elcr: u8,
    vector_base: u8,
    /// Input with the highest priority.
    top: u8,
    /// What has been received of an initialization sequence: 0 = initialized, else the next ICW.
    next_icw: u8,
    icw4_wanted: bool,
    single: bool,
    /// ICW1.LTIM: all inputs level-triggered.
    all_level: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_isr: bool,
    poll: bool,
    master: bool,
}

impl Chip {
    fn level_triggered(&self, bit: u8) -> bool {
        self.all_level || self.elcr & bit != 0
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let rose = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if self.level_triggered(bit) {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if rose {
            self.irr |= bit;
        } else if !level {
            // An edge-triggered input must stay up until it is acknowledged.
            self.irr &= !bit;
        }
    }

    /// Distance of an input from the one of highest priority.
    fn rank(&self, mask: u8) -> u8 {
        (0..8).find(|i| mask & 1 << ((self.top + i) & 7) != 0).unwrap_or(8)
    }

    /// The input to be served now.
    fn pending(&self) -> Option<u8> {
        let request = self.rank(self.irr & !self.imr);
        if request == 8 {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && self.master {
            // Requests of the slave's other inputs are let through.
            in_service &= !(1 << 2);
        }
        let serving = self.rank(in_service);
        (request < serving || self.special_mask && request != serving).then(|| (self.top + request) & 7)
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if !self.level_triggered(bit) {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.top = (input + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1
            self.next_icw = 2;
            self.icw4_wanted = value & 1 != 0;
            self.single = value & 2 != 0;
            self.all_level = value & 8 != 0;
            (self.imr, self.isr, self.irr, self.top) = (0, 0, 0, 0);
            self.irr = if self.all_level { self.lines } else { self.lines & self.elcr };
            (self.special_mask, self.read_isr, self.poll) = (false, false, false);
            if !self.icw4_wanted {
                (self.auto_eoi, self.special_fully_nested) = (false, false);
            }
        } else if value & 8 != 0 {
            // OCW3
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        let highest = {
            let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
            match self.rank(candidates) {
                8 => None,
                rank => Some((self.top + rank) & 7),
            }
        };
        match value >> 5 {
            // Rotate in automatic EOI mode: clear, set.
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            // Non-specific EOI, and with rotation.
            n @ (1 | 5) => {
                if let Some(input) = highest {
                    self.isr &= !(1 << input);
                    if n == 5 {
                        self.top = (input + 1) & 7;
                    }
                }
            }
            // Specific EOI, and with rotation.
            3 => self.isr &= !(1 << level),
            7 => {
                self.isr &= !(1 << level);
                self.top = (level + 1) & 7;
            }
            6 => self.top = (level + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.next_icw {
            2 => {
                self.vector_base = value & 0xf8;
                self.next_icw = match (self.single, self.icw4_wanted) {
                    (false, _) => 3,
                    (true, true) => 4,
                    (true, false) => 0,
                };
            }
            // Cascade wiring is fixed on a PC.
            3 => self.next_icw = if self.icw4_wanted { 4 } else { 0 },
            4 => {
                self.auto_eoi = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.next_icw = 0;
            }
            _ => self.imr = value,
        }
    }
}

/// Master (inputs 0–7) and slave (8–15, cascaded into input 2).
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Default for Pic {
    fn default() -> Pic {
        Pic::new()
    }
}

impl Pic {
    pub fn new() -> Pic {
        // Masked until someone initializes them: undefined on the chips, and what firmware leaves.
        let chip = Chip { imr: 0xff, ..Chip::default() };
        Pic { master: Chip { master: true, ..chip.clone() }, slave: chip }
    }

    /// Platform reset: input levels persist.
    pub fn reset(&mut self) {
        let lines = (self.master.lines, self.slave.lines);
        *self = Pic::new();
        (self.master.lines, self.slave.lines) = (lines.0 & !4, lines.1);
    }

    /// Drive input 0–15. Input 2 is the cascade and cannot be driven.
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        match irq {
            2 => {}
            0..8 => self.master.set_line(irq, level),
            8..16 => self.slave.set_line(irq - 8, level),
            _ => {}
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let up = self.slave.pending().is_some();
        self.master.set_line(2, up);
    }

    /// The INTR output.
    pub fn intr(&self) -> bool {
        self.master.pending().is_some()
    }

    /// INTA cycle: the vector, and the interrupt is in service. With nothing pending: the spurious vector, IRQ 7.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending() else {
            return self.master.vector_base | 7;
        };
        self.master.acknowledge(input);
        if input != 2 {
            return self.master.vector_base | input;
        }
        let vector = match self.slave.pending() {
            Some(input) => {
                self.slave.acknowledge(input);
                self.slave.vector_base | input
            }
            None => self.slave.vector_base | 7,
        };
        // The slave may have more: a new edge on the cascade.
        self.master.set_line(2, false);
        self.cascade();
        vector
    }

    /// Ports 0x20, 0x21, 0xa0, 0xa1.
    pub fn read(&mut self, port: u16) -> u8 {
        let chip = if port & 0x80 == 0 { &mut self.master } else { &mut self.slave };
        let value = if std::mem::take(&mut chip.poll) {
            // Poll command: the read is the acknowledge.
            match chip.pending() {
                Some(input) => {
                    chip.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            }
        } else if port & 1 != 0 {
            chip.imr
        } else if chip.read_isr {
            chip.isr
        } else {
            chip.irr
        };
        self.cascade();
        value
    }

    pub fn write(&mut self, port: u16, value: u8) {
        let chip = if port & 0x80 == 0 { &mut self.master } else { &mut self.slave };
        if port & 1 != 0 {
            chip.write_data(value);
        } else {
            chip.write_command(value);
            if value & 0x10 != 0 && port & 0x80 == 0 {
                // ICW1 forgets edges, also that of the cascade.
                self.master.lines &= !4;
            }
        }
        self.cascade();
    }

    /// Edge/level control registers, ports 0x4d0 and 0x4d1.
    pub fn read_elcr(&self, port: u16) -> u8 {
        if port & 1 == 0 { self.master.elcr } else { self.slave.elcr }
    }

    /// IRQs 0, 1, 2, 8 and 13 are always edge-triggered.
    pub fn write_elcr(&mut self, port: u16, value: u8) {
        if port & 1 == 0 {
            self.master.elcr = value & 0xf8;
        } else {
            self.slave.elcr = value & 0xde;
        }
        for chip in [&mut self.master, &mut self.slave] {
            chip.irr = (chip.irr & !chip.elcr) | (chip.lines & chip.elcr);
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Pic {
        let mut p = Pic::new();
        for (base, icw2, icw3) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            p.write(base, 0x11);
            p.write(base + 1, icw2);
            p.write(base + 1, icw3);
            p.write(base + 1, 1);
            p.write(base + 1, 0);
        }
        p
    }

    #[test]
    fn priorities_nest_and_eoi_lets_the_next_through() {
        let mut p = ready();
        p.set_irq(4, true);
        assert_eq!(p.acknowledge(), 0x24);
        p.set_irq(6, true);
        assert!(!p.intr());
        p.set_irq(1, true);
        assert_eq!(p.acknowledge(), 0x21);
        p.write(0x20, 0x20);
        assert!(!p.intr());
        p.write(0x20, 0x20);
        assert_eq!(p.acknowledge(), 0x26);
    }

    #[test]
    fn slave_goes_through_the_cascade() {
        let mut p = ready();
        p.set_irq(8, true);
        p.set_irq(12, true);
        assert_eq!(p.acknowledge(), 0x28);
        assert!(!p.intr());
        p.write(0xa0, 0x20);
        p.write(0x20, 0x20);
        assert_eq!(p.acknowledge(), 0x2c);
    }

    #[test]
    fn edge_needs_a_new_edge_level_does_not() {
        let mut p = ready();
        p.set_irq(5, true);
        p.acknowledge();
        p.write(0x20, 0x20);
        assert!(!p.intr());
        p.set_irq(5, false);
        p.set_irq(5, true);
        assert!(p.intr());
        p.set_irq(5, false);
        assert!(!p.intr());
        p.write_elcr(0x4d0, 0xff);
        assert_eq!(p.read_elcr(0x4d0), 0xf8);
        p.set_irq(5, true);
        p.acknowledge();
        p.write(0x20, 0x65);
        assert!(p.intr());
    }

    #[test]
    fn mask_spurious_and_registers() {
        let mut p = ready();
        p.write(0x21, 0xfb);
        p.set_irq(3, true);
        assert!(!p.intr());
        assert_eq!(p.acknowledge(), 0x27);
        assert_eq!(p.read(0x20), 8);
        p.write(0x21, 0);
        p.acknowledge();
        p.write(0x20, 0x0b);
        assert_eq!(p.read(0x20), 8);
        p.write(0x20, 0x0a);
        assert_eq!(p.read(0x20), 0);
        assert_eq!(p.read(0x21), 0);
    }

    #[test]
    fn rotation_and_special_mask() {
        let mut p = ready();
        p.write(0x20, 0xc3); // lowest priority: 3
        p.set_irq(3, true);
        p.set_irq(4, true);
        assert_eq!(p.acknowledge(), 0x24);
        p.write(0x20, 0xa0); // rotate on non-specific EOI: 4 becomes lowest
        assert_eq!(p.acknowledge(), 0x23);
        p.write(0x20, 0x68); // special mask
        p.write(0x21, 0x08);
        p.set_irq(4, false);
        p.set_irq(4, true);
        assert_eq!(p.acknowledge(), 0x24);
    }

    #[test]
    fn auto_eoi_leaves_nothing_in_service() {
        let mut p = ready();
        p.write(0x20, 0x11);
        p.write(0x21, 0x20);
        p.write(0x21, 4);
        p.write(0x21, 3);
        p.set_irq(0, true);
        assert_eq!(p.acknowledge(), 0x20);
        p.write(0x20, 0x0b);
        assert_eq!(p.read(0x20), 0);
    }

    #[test]
    fn poll_command_acknowledges() {
        let mut p = ready();
        p.set_irq(5, true);
        p.write(0x20, 0x0c);
        assert_eq!(p.read(0x20), 0x85);
        assert!(!p.intr());
        p.write(0x20, 0x0c);
        assert_eq!(p.read(0x20), 0);
    }
}
