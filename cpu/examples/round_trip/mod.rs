//! What the round-trip examples share.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use iced_x86::code_asm::*;
use undervisor_core::{CpuState, Cr0, Cr4, Efer, SegReg, Segment, TableReg};
use undervisor_cpu::Cpu;
use undervisor_cpu::observe::{NoSink, Observer, want};
use undervisor_mmu::NullBus;

/// Assemble 64-bit code at an address.
pub fn place(cpu: &Cpu, at: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<(), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    code(&mut a)?;
    let _ = cpu.shared.memory.write_bytes(at, &a.assemble(at)?);
    Ok(())
}

/// 64-bit mode at CPL 0 with flat segments on the page tables at `tables`, about to run from `rip`.
pub fn long_mode(s: &mut CpuState, tables: u64, rip: u64) {
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP;
    s.cr3 = tables;
    s.cr4 = Cr4::PAE;
    s.efer = Efer::LME | Efer::LMA;
    for r in SegReg::ALL {
        let (selector, access) = if r == SegReg::Cs { (8, 0xa09b) } else { (16, 0xc093) };
        s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
    }
    s.gdtr = TableReg { base: 0x9000, limit: 0xff };
    s.set_rip(rip);
    s.set_gpr(4, 0x7000);
}

/// Run the prepared hypervisor, with the observer that the command line names, and print what an exit costs.
pub fn measure(cpu: &mut Cpu) {
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
}
