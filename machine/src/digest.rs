//! A digest of everything a guest can observe, to compare two runs.

use undervisor_core::CpuState;
use undervisor_devices::Dma;

use crate::machine::Machine;

/// Mixes words; not cryptographic.
struct Digest(u64);

impl Digest {
    fn word(&mut self, w: u64) {
        self.0 = (self.0 ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    fn bytes(&mut self, bytes: &[u8]) {
        for c in bytes.chunks(8) {
            let mut w = [0; 8];
            w[..c.len()].copy_from_slice(c);
            self.word(u64::from_le_bytes(w));
        }
    }

    fn processor(&mut self, s: &CpuState) {
        for i in 0..=16 {
            self.word(s.gpr(i));
        }
        self.word(s.rflags());
        let system = (s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.xcr0, s.pkru, s.mxcsr, s.pdpte, s.cpl);
        let tables = (&s.seg, s.ldtr, s.tr, s.gdtr, s.idtr, s.dr, s.dr6, s.dr7);
        let rest = (&s.x87, &s.msrs, s.activity, s.shadow, s.pending_debug, s.tsc_offset);
        self.bytes(format!("{system:?}{tables:?}{rest:?}").as_bytes());
        s.vec.iter().flatten().for_each(|w| self.word(*w));
    }
}

impl Machine {
    /// A digest of processors, memory and clock. Equal histories give equal digests, on every host.
    pub fn state_hash(&self) -> u64 {
        let mut d = Digest(0);
        let p = self.progress();
        [p.instructions, p.time, p.idle, p.device_interrupts].into_iter().for_each(|w| d.word(w));
        self.cpus().iter().for_each(|c| d.processor(&c.state));
        let mut page = [0; 4096];
        for (start, size) in self.ram().ranges() {
            for at in (start..start + size).step_by(page.len()) {
                // Ranges are whole pages of RAM.
                let _ = self.ram().read(at, &mut page);
                if page.iter().any(|b| *b != 0) {
                    d.word(at);
                    d.bytes(&page);
                }
            }
        }
        d.0
    }
}
