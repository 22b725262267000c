//! What a #VMEXIT costs: a guest that does CPUID in a loop under a hypervisor that looks at the exit code, moves RIP on to nRIP, keeps
//! the VMCB clean bits and runs it again. `cargo run --release -p undervisor-cpu --example svm_round_trip [-- npt] [-- full]`
//! (`full`: VMLOAD and VMSAVE each time, as KVM does).

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use iced_x86::code_asm::*;
use undervisor_core::{Cr0, Cr4, Efer, Model, SegReg, Segment, TableReg};
use undervisor_cpu::observe::{NoSink, Observer, want};
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};
use undervisor_svm::Field;
use undervisor_svm::fields::clean;

const TABLES: u64 = 0x10000;
const NESTED: u64 = 0x14000;
const VMCB: u64 = 0x20000;
const HOST_CODE: u64 = 0x1000;
const GUEST_CODE: u64 = 0x4000;

fn place(cpu: &Cpu, at: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<(), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    code(&mut a)?;
    let _ = cpu.shared.memory.write_bytes(at, &a.assemble(at)?);
    Ok(())
}

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
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP;
    s.cr3 = TABLES;
    s.cr4 = Cr4::PAE;
    s.efer = Efer::LME | Efer::LMA | Efer::SVME;
    s.msrs.tsc_ratio = 1 << 32;
    for r in SegReg::ALL {
        let (selector, access) = if r == SegReg::Cs { (8, 0xa09b) } else { (16, 0xc093) };
        s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
    }
    s.gdtr = TableReg { base: 0x9000, limit: 0xff };
    s.set_rip(HOST_CODE);
    s.set_gpr(4, 0x7000);
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
    if let Some(refused) = cpu.virt.svm.refused {
        println!("refused: {refused}");
    }
    Ok(())
}
