//! A test in undervisor: 64-bit code at CPL 3 with identity-mapped pages.

use std::rc::Rc;

use undervisor_core::{Cr0, Cr4, Efer, Model, SegReg, Segment};
use undervisor_cpu::{Cpu, Shared, Stop};
use undervisor_mmu::{GuestMemory, NullBus};

use super::state::{Outcome, State, place};

const RAM: u64 = 4 << 20;
/// Page tables.
const TABLES: u64 = 0x30_0000;

/// The processor under test.
pub struct Guest {
    cpu: Box<Cpu>,
    bus: NullBus,
}

impl Guest {
    /// A processor of the host's vendor.
    pub fn new(amd: bool) -> Guest {
        let memory = GuestMemory::new(RAM, RAM, &[]).expect("4 MiB for a guest");
        for i in 0..2 {
            // 2 MiB pages: present, writable, user.
            _ = memory.write(TABLES + 0x2000 + 8 * i, i << 21 | 0xe7u64);
        }
        _ = memory.write(TABLES, TABLES + 0x1000 | 0x27u64);
        _ = memory.write(TABLES + 0x1000, TABLES + 0x2000 | 0x27u64);
        let model = if amd { Model::max_amd() } else { Model::max_intel() };
        let mut cpu = Cpu::new(0, Shared::new(memory), Rc::new(model));
        let s = &mut cpu.state;
        s.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG;
        s.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        s.efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
        s.cr3 = TABLES;
        s.xcr0 = 7;
        let segment = |selector, access| Segment { selector, access, limit: u32::MAX, base: 0 };
        for r in SegReg::ALL {
            let value = match r {
                SegReg::Cs => segment(place::CS, 0xa0fb),
                SegReg::Ss => segment(place::SS, 0xc0f3),
                _ => segment(0, 0xc0f3),
            };
            s.set_segment(r, value);
        }
        s.cpl = 3;
        cpu.mode_changed();
        Guest { cpu, bus: NullBus }
    }

    /// Run `code` (which must end in an undefined instruction) from `start` on `data`.
    pub fn run(&mut self, code: &[u8], start: &State, data: &mut [u8]) -> Outcome {
        let cpu = &mut self.cpu;
        _ = cpu.shared.write_bytes(place::TEST, code);
        _ = cpu.shared.write_bytes(place::DATA, data);
        let s = &mut cpu.state;
        s.regs[..16].copy_from_slice(&start.regs);
        s.set_rip(place::TEST);
        s.set_rflags(start.rflags);
        for (v, y) in s.vec.iter_mut().zip(&start.ymm) {
            v[..4].copy_from_slice(y);
        }
        s.mxcsr = start.mxcsr;
        s.x87 = start.x87;
        cpu.mode_changed();
        let result = cpu.run_undelivered(&mut self.bus, 64);
        _ = cpu.shared.memory.read_bytes(place::DATA, data);
        let s = &cpu.state;
        let mut regs = [0; 16];
        regs.copy_from_slice(&s.regs[..16]);
        let mut ymm = [[0; 4]; 16];
        for (y, v) in ymm.iter_mut().zip(&s.vec) {
            y.copy_from_slice(&v[..4]);
        }
        let state = State { regs, rip: s.rip(), rflags: s.rflags(), ymm, mxcsr: s.mxcsr, x87: s.x87 };
        let fault = match result {
            Err(Stop::Exception) => Some((cpu.exception.vector, cpu.exception.error_code.unwrap_or(0))),
            _ => None,
        };
        Outcome { state, fault }
    }
}
