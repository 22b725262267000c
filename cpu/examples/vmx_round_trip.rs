//! What a VM exit costs: a guest that does CPUID in a loop under a hypervisor that reads the reason, RIP and length, moves
//! RIP on and resumes. `cargo run --release -p undervisor-cpu --example vmx_round_trip [-- ept] [explain] [exits] [stats] [lint]`, the latter with an observer on.

mod round_trip;

use std::rc::Rc;

use iced_x86::code_asm::*;
use undervisor_core::{Cr4, Model, Segment};
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};
use undervisor_vmx::capabilities::REVISION;
use undervisor_vmx::controls::{primary, secondary};
use undervisor_vmx::sample::{Start, fields};
use undervisor_vmx::{Field as F, Memory};

use round_trip::{long_mode, measure, place};

const TABLES: u64 = 0x10000;
const EPT_TABLES: u64 = 0x20000;
const VMXON_REGION: u64 = 0x30000;
const REGION: u64 = 0x31000;
const HOST_CODE: u64 = 0x1000;
const EXIT_CODE: u64 = 0x2000;
const GUEST_CODE: u64 = 0x4000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ept = std::env::args().any(|a| a == "ept");
    let shared = Shared::new(GuestMemory::new(1 << 20, 1 << 20, &[])?);
    shared.write_u64(TABLES, (TABLES + 0x1000) | 7);
    shared.write_u64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    shared.write_u64(TABLES + 0x2000, 0x87);
    shared.write_u64(EPT_TABLES, (EPT_TABLES + 0x1000) | 7);
    shared.write_u64(EPT_TABLES + 0x1000, (EPT_TABLES + 0x2000) | 7);
    shared.write_u64(EPT_TABLES + 0x2000, 0xb7);
    shared.write_u32(VMXON_REGION, REVISION);
    shared.write_u32(REGION, REVISION);
    let mut cpu = Cpu::new(0, shared, Rc::new(Model::default()));
    let s = &mut cpu.state;
    long_mode(s, TABLES, HOST_CODE);
    s.cr4 |= Cr4::VMXE;
    s.tr = Segment { selector: 24, access: 0x8b, limit: 0x67, base: 0x8000 };
    s.msrs.feature_control = 5;
    let s = s.clone();
    cpu.mode_changed();
    cpu.shared.write_u64(0x500, VMXON_REGION);
    cpu.shared.write_u64(0x508, REGION);
    place(&cpu, HOST_CODE, |a| {
        a.vmxon(qword_ptr(0x500))?;
        a.vmclear(qword_ptr(0x508))?;
        a.vmptrld(qword_ptr(0x508))?;
        a.nop()
    })?;
    place(&cpu, EXIT_CODE, |a| {
        a.mov(rdx, 0x4402u64)?;
        a.vmread(rax, rdx)?;
        a.mov(rdx, 0x681eu64)?;
        a.vmread(rcx, rdx)?;
        a.mov(rdx, 0x440cu64)?;
        a.vmread(rbx, rdx)?;
        a.add(rcx, rbx)?;
        a.mov(rdx, 0x681eu64)?;
        a.vmwrite(rdx, rcx)?;
        a.vmresume()
    })?;
    place(&cpu, GUEST_CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.cpuid()?;
        a.jmp(top)
    })?;
    cpu.run(&mut NullBus, 4);
    let controls = [
        (F::PRIMARY_CONTROLS, (primary::TRUE_DEFAULT1 | primary::SECONDARY_CONTROLS) as u64),
        (F::SECONDARY_CONTROLS, (secondary::VPID | if ept { secondary::EPT } else { 0 }) as u64),
        (F::VPID, 1),
        (F::EPT_POINTER, EPT_TABLES | 0x1e),
    ];
    let (host, guest) = (Start { rip: EXIT_CODE, rsp: 0x7000 }, Start { rip: GUEST_CODE, rsp: 0x6000 });
    for (f, x) in fields(&s, host, guest).into_iter().chain(controls) {
        cpu.virt.vmx.vmcs.set(f, x);
    }
    let rip = cpu.state.rip();
    place(&cpu, rip, |a| a.vmlaunch())?;
    measure(&mut cpu);
    if let Some(refusal) = cpu.virt.vmx.refusal {
        println!("{refusal}");
    }
    Ok(())
}
