//! Hypervisors whose control structures, tables and guests are made of the input: VMCS, EPT, MSR areas, bitmaps; VMCB, nested tables,
//! permission maps.

use std::rc::Rc;

use undervisor_core::{Cr0, Cr4, Efer, Model, SegReg, Segment, TableReg};
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};
use undervisor_svm::fields::FIELDS as VMCB_FIELDS;
use undervisor_vmx::capabilities::REVISION;
use undervisor_vmx::controls::{primary, secondary};
use undervisor_vmx::sample::{Start, fields};
use undervisor_vmx::{Field as F, Memory};

use super::Bytes;

const RAM: u64 = 1 << 20;
const HOST_CODE: u64 = 0x1000;
const EXIT_CODE: u64 = 0x2000;
const GUEST_CODE: u64 = 0x4000;
const TABLES: u64 = 0x1_0000;
/// EPT or nested tables: four pages.
const NESTED: u64 = 0x2_0000;
const VMXON_REGION: u64 = 0x3_0000;
/// VMCS region or VMCB.
const REGION: u64 = 0x3_1000;
/// Bitmaps, permission maps, MSR areas, APIC page, further structures.
const AREAS: u64 = 0x4_0000;
const INSTRUCTIONS: u64 = 4_000;

/// A processor in long mode on identity paging, about to run `code`.
fn processor(model: Model, code: &[u8], nested_flags: u64) -> Option<Box<Cpu>> {
    let shared = Shared::new(GuestMemory::new(RAM, RAM, &[]).ok()?);
    for (base, flags) in [(TABLES, 7), (NESTED, nested_flags & 7)] {
        shared.write_u64(base, base + 0x1000 | flags);
        shared.write_u64(base + 0x1000, base + 0x2000 | flags);
        shared.write_u64(base + 0x2000, base + 0x3000 | flags);
        for page in 0..RAM >> 12 {
            let flags = if base == TABLES { 7 } else { nested_flags };
            shared.write_u64(base + 0x3000 + 8 * page, page << 12 | flags);
        }
    }
    shared.write_bytes(HOST_CODE, code).ok()?;
    let mut cpu = Cpu::new(0, shared, Rc::new(model));
    let s = &mut cpu.state;
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP;
    s.cr3 = TABLES;
    s.efer = Efer::LME | Efer::LMA | Efer::NXE;
    s.cr4 = Cr4::PAE | Cr4::OSFXSR;
    for r in SegReg::ALL {
        let (selector, access) = if r == SegReg::Cs { (8, 0xa09b) } else { (16, 0xc093) };
        s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
    }
    s.tr = Segment { selector: 24, access: 0x8b, limit: 0x67, base: 0x8000 };
    s.gdtr = TableReg { base: 0x9000, limit: 0xff };
    s.msrs.feature_control = 5;
    s.msrs.tsc_ratio = 1 << 32;
    s.set_gpr(undervisor_core::regs::RSP, 0x7000);
    s.set_rip(HOST_CODE);
    Some(cpu)
}

/// Memory as the input has it: pieces with a place each. Gives what is left.
fn scatter(cpu: &Cpu, input: &mut Bytes<'_>) {
    for _ in 0..input.byte() & 15 {
        let place = input.byte();
        let page = match place & 7 {
            0 | 1 => NESTED + 0x1000 * (place >> 3 & 3) as u64,
            2 => TABLES + 0x1000 * (place >> 3 & 3) as u64,
            3 => REGION,
            _ => AREAS + 0x1000 * (place >> 3 & 15) as u64,
        };
        let at = page + 8 * (input.byte() as u64 | (input.byte() as u64 & 1) << 8);
        let count = input.byte() as usize & 31;
        let _ = cpu.shared.write_bytes(at, input.take(8 * count));
    }
}

/// Run; a guest's exits come back to the hypervisor, which resumes it.
fn run(cpu: &mut Cpu) {
    for _ in 0..200 {
        let now = cpu.now();
        if now >= INSTRUCTIONS {
            break;
        }
        cpu.run(&mut NullBus, INSTRUCTIONS);
        if cpu.now() == now {
            // Waits, or has shut down.
            cpu.advance_to(now + 1000);
            if cpu.state.activity == undervisor_core::Activity::Shutdown {
                break;
            }
        }
    }
}

/// Changes to fields, memory, guest code.
pub fn vmx(data: &[u8]) {
    let _ = vmx_runs(data);
}

/// The body of [`vmx`]; how many VM entries there were.
pub fn vmx_runs(data: &[u8]) -> Option<u64> {
    let mut input = Bytes(data);
    // vmxon [500h]; vmclear [508h]; vmptrld [508h]; nop
    let code = [
        0xf3, 0x0f, 0xc7, 0x34, 0x25, 0, 5, 0, 0, 0x66, 0x0f, 0xc7, 0x34, 0x25, 8, 5, 0, 0, 0x0f, 0xc7, 0x34, 0x25, 8, 5, 0, 0,
        0x90,
    ];
    let mut cpu = processor(Model::max_intel(), &code, 0x37)?;
    cpu.state.cr4 |= Cr4::VMXE;
    cpu.mode_changed();
    cpu.shared.write_u32(VMXON_REGION, REVISION);
    cpu.shared.write_u32(REGION, REVISION);
    cpu.shared.write_u64(0x500, VMXON_REGION);
    cpu.shared.write_u64(0x508, REGION);
    cpu.run(&mut NullBus, 4);
    // vmlaunch; and at each exit: vmresume; jmp to it.
    let at = cpu.state.rip();
    cpu.shared.write_bytes(at, &[0x0f, 0x01, 0xc2, 0xf4]).ok()?;
    cpu.shared.write_bytes(EXIT_CODE, &[0x0f, 0x01, 0xc3, 0xeb, 0xfb]).ok()?;
    let (host, guest) = (Start { rip: EXIT_CODE, rsp: 0x7000 }, Start { rip: GUEST_CODE, rsp: 0x6000 });
    let sample = fields(&cpu.state, host, guest);
    let v = &mut cpu.virt.vmx.vmcs;
    let own = [
        (F::PRIMARY_CONTROLS, (primary::TRUE_DEFAULT1 | primary::SECONDARY_CONTROLS) as u64),
        (F::SECONDARY_CONTROLS, secondary::EPT as u64),
        (F::EPT_POINTER, NESTED | 0x1e),
        (F::IO_BITMAP_A, AREAS),
        (F::IO_BITMAP_B, AREAS + 0x1000),
        (F::MSR_BITMAPS, AREAS + 0x2000),
        (F::VIRTUAL_APIC_ADDRESS, AREAS + 0x3000),
        (F::APIC_ACCESS_ADDRESS, AREAS + 0x4000),
        (F::ENTRY_MSR_LOAD_ADDRESS, AREAS + 0x5000),
        (F::EXIT_MSR_LOAD_ADDRESS, AREAS + 0x6000),
        (F::EXIT_MSR_STORE_ADDRESS, AREAS + 0x7000),
        (F::PML_ADDRESS, AREAS + 0x8000),
        (F::HOST_GDTR_BASE, 0x9000),
    ];
    for (f, x) in sample.into_iter().chain(own) {
        v.set(f, x);
    }
    for _ in 0..input.byte() & 15 {
        let f = F(input.byte() % F::COUNT as u8);
        let how = input.byte();
        let value = input.word();
        let old = v.get(f);
        v.set(f, if how & 1 == 0 { value } else { old ^ 1 << (how >> 1 & 63) });
    }
    scatter(&cpu, &mut input);
    let _ = cpu.shared.write_bytes(GUEST_CODE, input.0);
    run(&mut cpu);
    Some(cpu.counters.vm_entries)
}

/// Likewise.
pub fn svm(data: &[u8]) {
    let _ = svm_runs(data);
}

/// The body of [`svm`]; how many VMRUNs entered a guest.
pub fn svm_runs(data: &[u8]) -> Option<u64> {
    use undervisor_svm::Field;
    let mut input = Bytes(data);
    // vmload; vmrun; vmsave; jmp to it
    let code = [0x0f, 0x01, 0xda, 0x0f, 0x01, 0xd8, 0x0f, 0x01, 0xdb, 0xeb, 0xf5];
    let mut cpu = processor(Model::max_amd(), &code, 0x67)?;
    cpu.state.efer |= Efer::SVME | Efer::SCE;
    cpu.state.set_gpr(undervisor_core::regs::RAX, REGION);
    cpu.mode_changed();
    let shared = cpu.shared.clone();
    let put = |f: Field, value: u64| {
        let _ = shared.write_bytes(REGION + f.offset as u64, &value.to_le_bytes()[..f.size as usize]);
    };
    for (f, value) in [
        (Field::EFER, cpu.state.efer.bits()),
        (Field::CR0, cpu.state.cr0.bits()),
        (Field::CR3, TABLES),
        (Field::CR4, (Cr4::PAE | Cr4::OSXSAVE).bits()),
        (Field::RFLAGS, 2),
        (Field::RIP, GUEST_CODE),
        (Field::RSP, 0x6000),
        (Field::CS_SELECTOR, 8),
        (Field::CS_ATTRIBUTES, 0xa9b),
        (Field::CS_LIMIT, 0xffff_ffff),
        (Field::DR7, 0x400),
        (Field::DR6, 0xffff_0ff0),
        (Field::G_PAT, 0x0007_0406_0007_0406),
        (Field::IOPM_BASE_PA, AREAS),
        (Field::MSRPM_BASE_PA, AREAS + 0x3000),
        (Field::GUEST_ASID, 1),
        (Field::INTERCEPT_4, 3),
        (Field::INTERCEPT_3, 1 << 31),
        (Field::NESTED_CONTROL, 1),
        (Field::N_CR3, NESTED),
    ] {
        put(f, value);
    }
    for selector in [Field::ES_SELECTOR, Field::SS_SELECTOR, Field::DS_SELECTOR] {
        let _ = shared.write_bytes(REGION + selector.offset as u64, &0xffff_ffff_0c93_0010u64.to_le_bytes());
    }
    for _ in 0..input.byte() & 15 {
        let row = &VMCB_FIELDS[input.byte() as usize % VMCB_FIELDS.len()];
        put(row.field, input.word());
    }
    scatter(&cpu, &mut input);
    let _ = shared.write_bytes(GUEST_CODE, input.0);
    run(&mut cpu);
    Some(cpu.counters.vm_entries)
}

/// Guests that exit, with no changes and with a few.
pub fn seeds() -> Vec<Vec<u8>> {
    let code: [&[u8]; 5] = [
        &[0x0f, 0xa2, 0xeb, 0xfc],
        &[0xf4, 0x0f, 0x01, 0xc1, 0x0f, 0x01, 0xd9, 0xeb, 0xf7],
        &[0x0f, 0x32, 0x0f, 0x30, 0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0xe4, 0x80, 0xe6, 0x80, 0xeb, 0xf0],
        &[0x48, 0xa1, 0, 0, 0x20, 0, 0, 0, 0, 0, 0xeb, 0xf4],
        &[0xcc, 0x0f, 0x0b, 0xfb, 0xf4, 0x0f, 0xc7, 0xf0, 0x0f, 0x78, 0xc0],
    ];
    let mut out = Vec::new();
    for code in code {
        for changes in [
            &[0u8, 0][..],
            &[1, 60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 1, 4, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        ] {
            out.push([changes, code].concat());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise the fuzzing would prove little.
    #[test]
    fn unchanged_structures_enter_their_guest() {
        let input = [0, 0, 0x0f, 0xa2, 0xeb, 0xfc];
        assert!(vmx_runs(&input).is_some_and(|n| n > 100));
        let guest = [0, 0, 0x0f, 0x01, 0xd9, 0xeb, 0xfb];
        assert!(svm_runs(&guest).is_some_and(|n| n > 0));
    }
}
