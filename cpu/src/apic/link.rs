//! The local APIC in its processor: MMIO, MSRs, CR8, messages, and what they set in motion.

use undervisor_core::{Activity, msr};

use super::message::lowest_priority;
use super::{BASE_ENABLE, DeliveryMode, LocalApic, Message};
use crate::cpu::{Cpu, Exec, attention};

/// Deliver a message in ICR layout (see `Bus::send_ipi`) to the processors that it addresses. `from`: the sender of an IPI, which
/// has had its share; `None`: an I/O APIC or a device.
pub fn route(cpus: &mut [Box<Cpu>], from: Option<usize>, icr: u64) {
    let message = Message::from_icr(icr);
    let sender = from.unwrap_or(usize::MAX);
    if message.mode == DeliveryMode::LowestPriority {
        let addressed = cpus.iter().map(|c| &c.apic).enumerate().filter(|(_, a)| a.addressed(&message, sender));
        if let Some(chosen) = lowest_priority(addressed) {
            cpus[chosen].receive(&message);
        }
        return;
    }
    for cpu in cpus.iter_mut().filter(|c| c.id != sender && c.apic.addressed(&message, sender)) {
        cpu.receive(&message);
    }
}

/// Vector of the message that stands for INVLPGB.
const BROADCAST_FLUSH: u8 = 1;

impl Cpu {
    /// Every other processor forgets its translations (INVLPGB).
    pub(crate) fn broadcast_flush(&mut self) {
        let from = self.id;
        let icr = 3 << 18 | 1 << 14 | (DeliveryMode::Reserved as u64) << 8 | BROADCAST_FLUSH as u64;
        self.bus().send_ipi(from, icr);
        self.bus_accessed();
    }
}

impl Cpu {
    /// Carry out what the last operations on the APIC ask: tell the computer about messages and EOIs, and have the run loop
    /// look again.
    pub fn apic_settle(&mut self) {
        let from = self.id;
        if let Some(icr) = self.apic.out.ipi.take() {
            self.bus().send_ipi(from, icr);
            self.bus_accessed();
        }
        if let Some(vector) = self.apic.out.eoi.take() {
            self.bus().eoi(vector);
            self.bus_accessed();
        }
        let out = &mut self.apic.out;
        let signals = &mut self.signals;
        signals.nmi |= std::mem::take(&mut out.nmi);
        signals.smi |= std::mem::take(&mut out.smi);
        if std::mem::take(&mut out.init) {
            signals.init = true;
            signals.sipi = None;
        }
        // A start-up IPI counts only for a processor that waits for one, or will once it has taken its INIT.
        if let Some(vector) = out.sipi.take()
            && (signals.init || self.state.activity == Activity::WaitForSipi)
        {
            signals.sipi = Some(vector);
        }
        if std::mem::take(&mut out.look) {
            self.attend(attention::INTERRUPT);
        }
    }

    /// Whether an external interrupt is requested, RFLAGS.IF and blocking apart: by the 8259 pair or by the APIC.
    pub fn interrupt_requested(&mut self) -> bool {
        self.external_requested() || self.apic.pending_vector().is_some()
    }

    /// The 8259 pair's request, through LINT0, directly, or as an ExtINT message.
    pub(crate) fn external_requested(&mut self) -> bool {
        self.apic.out.extint || (self.apic.extint_open() && self.bus().intr())
    }

    /// Acknowledge the interrupt that [`Cpu::interrupt_requested`] promised and give its vector. The 8259 pair comes first.
    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        if self.external_requested() {
            self.apic.out.extint = false;
            let now = self.now();
            let vector = self.bus().acknowledge_interrupt(now);
            self.bus_accessed();
            return Some(vector);
        }
        let vector = self.apic.pending_vector()?;
        self.apic.acknowledge(vector);
        Some(vector)
    }

    /// An interrupt message arrives that is addressed to this processor (see [`LocalApic::addressed`]).
    pub fn receive(&mut self, message: &Message) {
        if message.mode == DeliveryMode::Reserved {
            // What no APIC sends: an AVIC doorbell, to look at virtual interrupts; or INVLPGB.
            if message.vector == BROADCAST_FLUSH {
                self.flush_spaces(|_| true);
            } else {
                self.attend(attention::VIRT);
            }
            return;
        }
        self.apic.accept(message.mode, message.vector, message.level_triggered);
        self.apic_settle();
    }

    /// Let the APIC timer expire if it is due.
    pub fn apic_poll(&mut self) {
        let now = self.now();
        self.apic.poll(now);
        self.apic_settle();
    }

    /// CR8 := `class`, the upper half of the task priority register.
    pub fn write_task_priority(&mut self, class: u8) {
        self.apic.write_cr8(class & 15);
        self.apic_settle();
    }

    /// Whether `physical` lies in the APIC's register page.
    #[inline]
    pub fn in_apic_page(&self, physical: u64) -> bool {
        self.apic.page() == Some(physical & !0xfff)
    }

    /// Whether `physical` lies in the page that IA32_APIC_BASE names, whatever the mode. With the registers not there (x2APIC mode, or
    /// switched off) the page is a hole: it reads as ones and swallows stores.
    pub(crate) fn in_apic_hole(&self, physical: u64) -> bool {
        (self.apic.base ^ physical) & 0x000f_ffff_ffff_f000 == 0
    }

    /// Read the register page. Registers are 32 bits wide at 16-byte steps; the bytes between them read as zero.
    pub(crate) fn apic_mmio_read(&mut self, physical: u64, size: usize) -> u64 {
        if self.apic.page().is_none() {
            return u64::MAX >> (64 - 8 * size);
        }
        let now = self.now();
        let offset = physical as u32 & 0xff0;
        let byte = physical as u32 & 15;
        if byte > 3 {
            return 0;
        }
        let value = self.apic.read(offset, now) as u64 >> (8 * byte);
        self.apic_settle();
        value & (u64::MAX >> (64 - 8 * size))
    }

    /// Write the register page. Only aligned 32-bit stores (and the low half of 64-bit ones) count.
    pub(crate) fn apic_mmio_write(&mut self, physical: u64, size: usize, value: u64) {
        if size < 4 || physical & 15 != 0 || self.apic.page().is_none() {
            return;
        }
        let now = self.now();
        self.apic.write(physical as u32 & 0xff0, value as u32, now);
        self.apic_settle();
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register (800H–8FFH).
    pub fn apic_msr_read(&mut self, number: u32) -> Exec<u64> {
        let now = self.now();
        let value = match number {
            msr::IA32_APIC_BASE => Some(self.apic.base),
            msr::IA32_TSC_DEADLINE => Some(self.apic.tsc_deadline(now)).filter(|_| self.apic.has_tsc_deadline),
            _ if self.apic.x2apic() => self.apic.read_msr(number, now),
            _ => None,
        };
        self.apic_settle();
        value.ok_or_else(|| self.gp(0))
    }

    /// WRMSR likewise.
    pub fn apic_msr_write(&mut self, number: u32, value: u64) -> Exec {
        let now = self.now();
        let done = match number {
            msr::IA32_APIC_BASE => self.write_apic_base(value),
            msr::IA32_TSC_DEADLINE if self.apic.has_tsc_deadline => {
                let time = self.time_of_tsc(value);
                self.apic.write_tsc_deadline(value, time, now);
                Some(())
            }
            _ if self.apic.x2apic() => self.apic.write_msr(number, value, now),
            _ => None,
        };
        self.apic_settle();
        done.ok_or_else(|| self.gp(0))
    }

    fn write_apic_base(&mut self, value: u64) -> Option<()> {
        let before = self.apic.page();
        self.apic.write_base(value, self.physical_bits())?;
        if self.apic.page() != before {
            // Translations of either page may be cached as RAM, or be wanted as RAM again.
            self.tlb.clear();
        }
        Some(())
    }

    /// RESET or INIT as far as the APIC goes; INIT keeps the mode, the base and the id.
    pub fn apic_reset(&mut self, init: bool) {
        if init {
            self.apic.init();
        } else {
            let (id, version) = (self.apic.id, self.apic.version);
            let (x2apic, deadline) = (self.apic.has_x2apic, self.apic.has_tsc_deadline);
            self.apic = LocalApic::new(id);
            self.apic.version = version;
            self.apic.has_x2apic = x2apic;
            self.apic.has_tsc_deadline = deadline;
            self.tlb.clear();
        }
    }

    /// CPUID.1:EDX.APIC: clear while the APIC is switched off.
    pub fn apic_visible(&self) -> bool {
        self.apic.base & BASE_ENABLE != 0
    }
}
