//! For this crate's unit tests: a bare processor, one instruction at a time, without event delivery.

use std::rc::Rc;

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use undervisor_core::{Cr0, Efer, Model, SegReg, Segment, Vendor};
use undervisor_mmu::GuestMemory;

use crate::cpu::{Cpu, Exec, Shared, Stop};
use crate::exec;
use crate::hot::wrap;

/// A processor of `bits` (16: real mode, 32: flat protected mode, 64) at CPL 0, paging off (in 64-bit mode too, which no real
/// processor allows but the address translation does), 1 MiB of RAM, RIP 0x1000, RSP 0x8000.
pub fn processor(bits: u32) -> Box<Cpu> {
    let memory = GuestMemory::new(1 << 20, 1 << 20, &[]).expect("a small guest memory");
    let mut cpu = Cpu::new(0, Shared::new(memory), Rc::new(Model::default()));
    let s = &mut cpu.state;
    if bits != 16 {
        s.cr0 |= Cr0::PE;
        let flat = |selector, access| Segment { selector, access, limit: u32::MAX, base: 0 };
        let code = if bits == 64 { 0xa09b } else { 0xc09b };
        if bits == 64 {
            s.efer = Efer::LME | Efer::LMA;
        }
        for r in SegReg::ALL {
            s.set_segment(r, if r == SegReg::Cs { flat(8, code) } else { flat(16, 0xc093) });
        }
    } else {
        s.set_segment(SegReg::Cs, Segment::real(0, 0x9b, 0xffff));
    }
    s.set_rip(0x1000);
    s.set_gpr(4, 0x8000);
    cpu.mode_changed();
    cpu
}

/// Turn into an AMD processor.
pub fn make_amd(cpu: &mut Cpu) {
    let mut model = (*cpu.model).clone();
    model.vendor = Vendor::Amd;
    cpu.model = Rc::new(model);
}

/// Run the one instruction that `bytes` encode at the current RIP, as the dispatcher would.
pub fn step(cpu: &mut Cpu, bytes: &[u8]) -> Exec {
    let options = if cpu.model.vendor == Vendor::Amd { DecoderOptions::AMD } else { DecoderOptions::NONE };
    let insn = Decoder::with_ip(cpu.mode.bits(), bytes, 0, options).decode();
    let rip = cpu.state.rip();
    cpu.instruction_rip = rip;
    let row = exec::lookup(&insn).unwrap_or(exec::Row::ends(exec::undefined));
    let ends = row.ends || insn.flow_control() != FlowControl::Next;
    let next = wrap(cpu.mode, rip.wrapping_add(bytes.len() as u64));
    if ends {
        cpu.state.set_rip(next);
    }
    let result = (row.function)(cpu, &insn);
    match result {
        Ok(()) if !ends => cpu.state.set_rip(next),
        Err(stop) if stop != Stop::Exit => cpu.state.set_rip(rip),
        _ => {}
    }
    result
}

/// The vector and error code of a fault that `bytes` must raise.
pub fn fault(cpu: &mut Cpu, bytes: &[u8]) -> (u8, Option<u32>) {
    assert_eq!(step(cpu, bytes), Err(Stop::Exception), "{bytes:x?} does not fault");
    (cpu.exception.vector, cpu.exception.error_code)
}
