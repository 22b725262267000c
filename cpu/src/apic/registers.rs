//! The register file, as MMIO (xAPIC) and as MSRs (x2APIC) show it (SDM vol. 3, Local APIC Register Address Map; x2APIC
//! Register Address Space).

use super::message::widen;
use super::*;

pub use undervisor_core::apic as reg;

/// Bits of an ICR that software writes; delivery status (12) is always idle.
pub const ICR_WRITABLE: u32 = 0x000c_cfff;

/// Which LVT entry lies at `offset`.
pub fn lvt_index(offset: u32) -> Option<usize> {
    match offset {
        reg::LVT_CMCI => Some(LVT_CMCI),
        reg::LVT_TIMER..=reg::LVT_ERROR => Some(((offset - reg::LVT_TIMER) >> 4) as usize),
        _ => None,
    }
}

/// Writable bits of an LVT entry.
pub fn lvt_writable(n: usize) -> u32 {
    match n {
        LVT_TIMER => 0x7_00ff,
        LVT_ERROR => 0x1_00ff,
        LVT_LINT0 | LVT_LINT1 => 0x1_a7ff,
        _ => 0x1_07ff,
    }
}

impl LocalApic {
    fn max_lvt(&self) -> usize {
        (self.version >> 16) as usize & 0xff
    }

    /// An LVT entry that the version register counts (CMCI is the seventh).
    fn lvt_at(&self, offset: u32) -> Option<usize> {
        lvt_index(offset).filter(|n| *n <= self.max_lvt().max(LVT_ERROR))
    }

    /// Registers that read the same in both modes; `None`: not such a register.
    fn read_common(&mut self, offset: u32, now: u64) -> Option<u32> {
        if offset & 15 != 0 {
            return None;
        }
        Some(match offset {
            reg::VERSION => self.version,
            reg::TPR => self.tpr as u32,
            reg::PPR => self.ppr() as u32,
            reg::LDR => self.ldr(),
            reg::SVR => self.svr,
            0x100..0x280 => {
                // Timer expiries that are due belong into IRR.
                self.poll(now);
                let set = [&self.isr, &self.tmr, &self.irr][(offset as usize - 0x100) / 0x80];
                set.0[(offset as usize & 0x7f) / 16]
            }
            reg::ESR => self.esr,
            reg::INITIAL_COUNT => self.timer.initial,
            reg::CURRENT_COUNT => self.current_count(now),
            reg::DIVIDE => self.timer.divide,
            _ => self.lvt[self.lvt_at(offset)?],
        })
    }

    /// Read a register of the page in xAPIC mode. Registers that do not exist read as zero and are an error.
    pub fn read(&mut self, offset: u32, now: u64) -> u32 {
        match offset {
            reg::ID => (self.xapic_id as u32) << 24,
            reg::DFR => self.dfr,
            reg::APR => self.arbitration_priority() as u32,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            reg::EOI | reg::RRD => 0,
            _ => self.read_common(offset, now).unwrap_or_else(|| {
                self.error(esr::ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Registers that are written the same way in both modes; `false`: not such a register.
    fn write_common(&mut self, offset: u32, value: u32, now: u64) -> bool {
        match offset {
            reg::TPR => self.write_tpr(value as u8),
            reg::EOI => self.end_of_interrupt(),
            reg::SVR => {
                self.poll(now);
                self.svr = value & 0x1ff;
                if !self.software_enabled() {
                    for lvt in &mut self.lvt {
                        *lvt |= LVT_MASK;
                    }
                }
                self.out.look = true;
            }
            reg::ESR => {
                self.esr = self.errors;
                self.errors = 0;
            }
            reg::INITIAL_COUNT => self.write_initial_count(value, now),
            reg::DIVIDE => self.write_divide(value, now),
            _ => match self.lvt_at(offset) {
                Some(n) => self.write_lvt(n, value, now),
                None => return false,
            },
        }
        true
    }

    fn write_lvt(&mut self, n: usize, value: u32, now: u64) {
        let mut value = value & lvt_writable(n);
        if !self.software_enabled() {
            value |= LVT_MASK;
        }
        if n == LVT_TIMER {
            if !self.has_tsc_deadline {
                value &= !(1 << 18);
            }
            self.write_lvt_timer(value, now);
            return;
        }
        self.lvt[n] = value;
        if (LVT_LINT0..=LVT_LINT1).contains(&n) && value & LVT_MASK == 0 {
            // A pin that is up when its entry opens is seen.
            self.out.look = true;
            let mode = DeliveryMode::from_bits(value >> 8);
            if self.pins[n - LVT_LINT0] && (mode == DeliveryMode::Fixed && value & 1 << 15 != 0) {
                self.fire(n);
            }
        }
    }

    /// Write a register of the page in xAPIC mode.
    pub fn write(&mut self, offset: u32, value: u32, now: u64) {
        match offset {
            reg::ID => self.xapic_id = (value >> 24) as u8,
            reg::VERSION | reg::APR | reg::PPR | reg::RRD | reg::CURRENT_COUNT => {}
            0x100..0x280 => {}
            reg::LDR => self.xapic_ldr = value & 0xff00_0000,
            reg::DFR => self.dfr = value | 0x0fff_ffff,
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | ((value & 0xff00_0000) as u64) << 32,
            reg::ICR => {
                self.icr = self.icr & !0xffff_ffff | (value & ICR_WRITABLE) as u64;
                let destination = widen((self.icr >> 56) as u8);
                self.send((value & ICR_WRITABLE) as u64 | (destination as u64) << 32);
            }
            _ => {
                if !self.write_common(offset, value, now) {
                    self.error(esr::ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// RDMSR of an x2APIC register; `None`: #GP. `msr` is 800H–8FFH, the APIC in x2APIC mode.
    pub fn read_msr(&mut self, msr: u32, now: u64) -> Option<u64> {
        let offset = (msr & 0xff) << 4;
        match offset {
            reg::ID => Some(self.id as u64),
            reg::ICR => Some(self.icr),
            // Write-only, or absent in this mode.
            reg::EOI | reg::SELF_IPI | reg::DFR | reg::ICR_HIGH | reg::APR | reg::RRD => None,
            _ => self.read_common(offset, now).map(u64::from),
        }
    }

    /// WRMSR of an x2APIC register; `None`: #GP, nothing written (SDM vol. 3, Reserved Bit Checking).
    pub fn write_msr(&mut self, msr: u32, value: u64, now: u64) -> Option<()> {
        let offset = (msr & 0xff) << 4;
        if offset == reg::ICR {
            if value & 0xfff3_2000 != 0 {
                return None;
            }
            self.icr = value & !(1 << 12);
            self.send(self.icr);
            return Some(());
        }
        let legal = match offset {
            reg::TPR => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => 0x1ff,
            reg::INITIAL_COUNT => 0xffff_ffff,
            reg::DIVIDE => 0xb,
            reg::SELF_IPI => 0xff,
            // Delivery status (12) and remote IRR (14) are read-only, not reserved.
            _ => {
                let n = self.lvt_at(offset)?;
                let read_only = if matches!(n, LVT_LINT0 | LVT_LINT1) { 0x5000 } else { 0x1000 };
                (lvt_writable(n) | read_only) as u64
            }
        };
        if value & !legal != 0 {
            return None;
        }
        if offset == reg::SELF_IPI {
            self.send(value | 1 << 18);
        } else {
            self.write_common(offset, value as u32, now);
        }
        Some(())
    }

    /// Send what the ICR says (`icr` has a 32-bit destination): the own share is accepted here, the rest goes out.
    fn send(&mut self, icr: u64) {
        let message = Message::from_icr(icr);
        match message.mode {
            // The manual calls lowest priority model specific for IPIs; it arbitrates over all, this processor included.
            DeliveryMode::Reserved | DeliveryMode::ExtInt => return,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if message.vector < 16 => {
                self.error(esr::SEND_ILLEGAL_VECTOR);
                return;
            }
            // INIT level de-assert: no effect since the Pentium 4.
            DeliveryMode::Init if message.level_triggered && !message.assert => return,
            _ => {}
        }
        if message.mode == DeliveryMode::LowestPriority && message.shorthand != Shorthand::Oneself {
            self.out.ipi = Some(icr);
            return;
        }
        let own = self.addressed(&message, self.id as usize);
        if own {
            self.accept(message.mode, message.vector, message.level_triggered);
        }
        // A physical destination that is this processor's, and the self shorthand, are nobody else's; but xAPIC ids, which can
        // be written, may be those of several.
        let private = message.shorthand == Shorthand::Oneself
            || own
                && self.x2apic()
                && message.shorthand == Shorthand::None
                && !message.logical
                && message.destination != message::BROADCAST;
        if !private {
            self.out.ipi = Some(icr);
        }
    }
}
