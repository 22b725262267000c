//! What a VM exit costs: a guest that does CPUID in a loop under a hypervisor that reads the reason, RIP and length, moves
//! RIP on and resumes. `cargo run --release -p undervisor-cpu --example vmx_round_trip [-- ept] [explain] [exits] [stats] [lint]`, the latter with an observer on.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use iced_x86::code_asm::*;
use undervisor_core::{Cr0, Cr4, Efer, Model, SegReg, Segment, TableReg};
use undervisor_cpu::observe::{NoSink, Observer, want};
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};
use undervisor_vmx::capabilities::REVISION;
use undervisor_vmx::controls::{entry, exit, pin, primary, secondary};
use undervisor_vmx::{Field as F, Memory};

const TABLES: u64 = 0x10000;
const EPT_TABLES: u64 = 0x20000;
const VMXON_REGION: u64 = 0x30000;
const REGION: u64 = 0x31000;
const HOST_CODE: u64 = 0x1000;
const EXIT_CODE: u64 = 0x2000;
const GUEST_CODE: u64 = 0x4000;

fn place(cpu: &Cpu, at: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<(), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    code(&mut a)?;
    let _ = cpu.shared.memory.write_bytes(at, &a.assemble(at)?);
    Ok(())
}

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
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP;
    s.cr3 = TABLES;
    s.cr4 = Cr4::PAE | Cr4::VMXE;
    s.efer = Efer::LME | Efer::LMA;
    for r in SegReg::ALL {
        let (selector, access) = if r == SegReg::Cs { (8, 0xa09b) } else { (16, 0xc093) };
        s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
    }
    s.tr = Segment { selector: 24, access: 0x8b, limit: 0x67, base: 0x8000 };
    s.gdtr = TableReg { base: 0x9000, limit: 0xff };
    s.msrs.feature_control = 5;
    s.set_rip(HOST_CODE);
    s.set_gpr(4, 0x7000);
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
    for (f, x) in [
        (F::PIN_BASED_CONTROLS, pin::DEFAULT1 as u64),
        (F::PRIMARY_CONTROLS, (primary::TRUE_DEFAULT1 | primary::SECONDARY_CONTROLS) as u64),
        (F::SECONDARY_CONTROLS, (secondary::VPID | if ept { secondary::EPT } else { 0 }) as u64),
        (F::VPID, 1),
        (F::EPT_POINTER, EPT_TABLES | 0x1e),
        (F::EXIT_CONTROLS, (exit::TRUE_DEFAULT1 | exit::HOST_ADDRESS_SPACE_SIZE) as u64),
        (F::ENTRY_CONTROLS, (entry::TRUE_DEFAULT1 | entry::IA32E_MODE_GUEST) as u64),
        (F::VMCS_LINK_POINTER, u64::MAX),
        (F::HOST_CR0, s.cr0.bits()),
        (F::HOST_CR3, s.cr3),
        (F::HOST_CR4, s.cr4.bits()),
        (F::HOST_CS_SELECTOR, 8),
        (F::HOST_SS_SELECTOR, 16),
        (F::HOST_TR_SELECTOR, 24),
        (F::HOST_TR_BASE, 0x8000),
        (F::HOST_RSP, 0x7000),
        (F::HOST_RIP, EXIT_CODE),
        (F::GUEST_CR0, s.cr0.bits()),
        (F::GUEST_CR3, s.cr3),
        (F::GUEST_CR4, s.cr4.bits()),
        (F::GUEST_RFLAGS, 2),
        (F::GUEST_RIP, GUEST_CODE),
        (F::GUEST_RSP, 0x6000),
        (F::GUEST_DR7, 0x400),
        (F::GUEST_LDTR_ACCESS, 0x10000),
        (F::GUEST_TR_ACCESS, 0x8b),
        (F::GUEST_TR_LIMIT, 0x67),
    ] {
        cpu.virt.vmx.vmcs.set(f, x);
    }
    for n in 0..6u8 {
        let seg = s.seg[n as usize];
        cpu.virt.vmx.vmcs.set(F::GUEST_ES_SELECTOR.plus(n), seg.selector as u64);
        cpu.virt.vmx.vmcs.set(F::GUEST_ES_ACCESS.plus(n), seg.access as u64);
        cpu.virt.vmx.vmcs.set(F::GUEST_ES_LIMIT.plus(n), seg.limit as u64);
    }
    let rip = cpu.state.rip();
    place(&cpu, rip, |a| a.vmlaunch())?;
    let wants = std::env::args().fold(0, |wants, a| {
        wants
            | match a.as_str() {
                "explain" => want::EXPLAIN,
                "vmcb-writes" => want::VMCB_WRITES,
                "exits" => want::EXITS,
                "stats" => want::STATISTICS,
                "lint" => want::LINT,
                _ => 0,
            }
    });
    if wants != 0 {
        cpu.observe(Some(Rc::new(RefCell::new(Observer::new(wants, NoSink)))));
    }
    let warm = cpu.now() + 100_000;
    cpu.run(&mut NullBus, warm);
    let before = cpu.counters.clone();
    let now = cpu.now();
    let start = Instant::now();
    cpu.run(&mut NullBus, now + 20_000_000);
    let time = start.elapsed();
    let exits = cpu.counters.vm_exits - before.vm_exits;
    println!(
        "{exits} exits, {:.1} instructions and {:.0} ns each; flushes {}, blocks decoded {}, TLB misses {}",
        20_000_000.0 / exits.max(1) as f64,
        time.as_nanos() as f64 / exits.max(1) as f64,
        cpu.counters.space_flushes - before.space_flushes,
        cpu.counters.blocks_decoded - before.blocks_decoded,
        cpu.counters.tlb_misses - before.tlb_misses
    );
    if let Some(refusal) = cpu.virt.vmx.refusal {
        println!("{refusal}");
    }
    Ok(())
}
