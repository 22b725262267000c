//! What a #VMEXIT costs: a guest that does CPUID in a loop under a hypervisor that looks at the exit code, moves RIP on to nRIP, keeps
//! the VMCB clean bits and runs it again. `cargo run --release -p undervisor-cpu --example svm_round_trip [-- npt] [-- full]`
//! (`full`: VMLOAD and VMSAVE each time, as KVM does).

mod round_trip;

use std::rc::Rc;

use iced_x86::code_asm::*;
use undervisor_core::{Efer, Model};
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::GuestMemory;
use undervisor_svm::Field;
use undervisor_svm::fields::clean;

use round_trip::{long_mode, measure, place};

const TABLES: u64 = 0x10000;
const NESTED: u64 = 0x14000;
const VMCB: u64 = 0x20000;
const HOST_CODE: u64 = 0x1000;
const GUEST_CODE: u64 = 0x4000;

fn put(cpu: &Cpu, f: Field, value: u64) {
    let at = VMCB + f.offset as u64;
    let bytes = value.to_le_bytes();
    let _ = cpu.shared.memory.write_bytes(at, &bytes[..f.size as usize]);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let has = |name: &str| std::env::args().any(|a| a == name);
    let (npt, full) = (has("npt"), has("full"));
    let memory = GuestMemory::new(1 << 20, 1 << 20, &[])?;
    for base in [TABLES, NESTED] {
        memory.write::<u64>(base, (base + 0x1000) | 7);
        memory.write::<u64>(base + 0x1000, (base + 0x2000) | 7);
        memory.write::<u64>(base + 0x2000, 0xe7);
    }
    let mut cpu = Cpu::new(0, Shared::new(memory), Rc::new(Model::epyc_milan()));
    let s = &mut cpu.state;
    long_mode(s, TABLES, HOST_CODE);
    s.efer |= Efer::SVME;
    s.msrs.tsc_ratio = 1 << 32;
    let s = s.clone();
    cpu.mode_changed();
    place(&cpu, HOST_CODE, |a| {
        let (mut top, mut done) = (a.create_label(), a.create_label());
        a.mov(rax, VMCB)?;
        a.set_label(&mut top)?;
        if full {
            a.vmload()?;
        }
        a.vmrun()?;
        if full {
            a.vmsave()?;
        }
        a.cmp(qword_ptr(rax + Field::EXITCODE.offset as u32), 0x72)?;
        a.jne(done)?;
        a.mov(rcx, qword_ptr(rax + Field::NRIP.offset as u32))?;
        a.mov(qword_ptr(rax + Field::RIP.offset as u32), rcx)?;
        a.mov(dword_ptr(rax + Field::CLEAN_BITS.offset as u32), clean::ALL)?;
        a.jmp(top)?;
        a.set_label(&mut done)?;
        a.hlt()
    })?;
    place(&cpu, GUEST_CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.cpuid()?;
        a.jmp(top)
    })?;
    for (f, value) in [
        (Field::EFER, s.efer.bits()),
        (Field::CR0, s.cr0.bits()),
        (Field::CR3, TABLES),
        (Field::CR4, s.cr4.bits()),
        (Field::RFLAGS, 2),
        (Field::RIP, GUEST_CODE),
        (Field::RSP, 0x6000),
        (Field::CS_ATTRIBUTES, 0xa9b),
        (Field::CS_LIMIT, 0xffff_ffff),
        (Field::DS_ATTRIBUTES, 0xc93),
        (Field::SS_ATTRIBUTES, 0xc93),
        (Field::ES_ATTRIBUTES, 0xc93),
        (Field::G_PAT, 0x0007_0406_0007_0406),
        (Field::GUEST_ASID, 1),
        (Field::INTERCEPT_4, 3),
        (Field::INTERCEPT_3, 1 << 18 | 1 << 31 | 1),
        (Field::NESTED_CONTROL, u64::from(npt)),
        (Field::N_CR3, NESTED),
    ] {
        put(&cpu, f, value);
    }
    measure(&mut cpu);
    if let Some(refused) = cpu.virt.svm.refused {
        println!("refused: {refused}");
    }
    Ok(())
}
