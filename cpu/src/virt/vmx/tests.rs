//! Small hypervisors with small guests.

use std::rc::Rc;

use iced_x86::code_asm::*;
use undervisor_core::{Cr0, Cr4, Efer, Model, SegReg, Segment, TableReg};
use undervisor_mmu::{GuestMemory, NullBus};
use undervisor_vmx::capabilities::REVISION;
use undervisor_vmx::controls::{primary, secondary};
use undervisor_vmx::reason::basic;
use undervisor_vmx::sample::{Start, fields};
use undervisor_vmx::{Field, Memory};

use crate::cpu::{Cpu, Shared};

const TABLES: u64 = 0x10000;
const EPT_TABLES: u64 = 0x20000;
const VMXON_REGION: u64 = 0x30000;
const REGION: u64 = 0x31000;
const BITMAP: u64 = 0x32000;
const HOST_CODE: u64 = 0x1000;
const EXIT_CODE: u64 = 0x2000;
const RESUME_CODE: u64 = 0x3000;
const HANDLER: u64 = 0x5000;
const GUEST_IDT: u64 = 0xa000;
const GUEST_CODE: u64 = 0x4000;

/// A processor in long mode with identity paging, VMXE on and FEATURE_CONTROL locked.
fn processor() -> Box<Cpu> {
    let memory = GuestMemory::new(1 << 20, 1 << 20, &[]).expect("memory");
    let shared = Shared::new(memory);
    shared.write_u64(TABLES, TABLES + 0x1000 | 7);
    shared.write_u64(TABLES + 0x1000, TABLES + 0x2000 | 7);
    shared.write_u64(TABLES + 0x2000, 0x87);
    // EPT: 4 KiB pages.
    shared.write_u64(EPT_TABLES, EPT_TABLES + 0x1000 | 7);
    shared.write_u64(EPT_TABLES + 0x1000, EPT_TABLES + 0x2000 | 7);
    shared.write_u64(EPT_TABLES + 0x2000, EPT_TABLES + 0x3000 | 7);
    for i in 0..256 {
        shared.write_u64(EPT_TABLES + 0x3000 + 8 * i, i << 12 | 0x37);
    }
    shared.write_u32(VMXON_REGION, REVISION);
    shared.write_u32(REGION, REVISION);
    let mut cpu = Cpu::new(0, shared, Rc::new(Model::default()));
    let s = &mut cpu.state;
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP;
    s.cr3 = TABLES;
    s.cr4 = Cr4::PAE | Cr4::VMXE;
    s.efer = Efer::LME | Efer::LMA;
    for r in SegReg::ALL {
        let access = if r == SegReg::Cs { 0xa09b } else { 0xc093 };
        let selector = if r == SegReg::Cs { 8 } else { 16 };
        s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
    }
    s.tr = Segment { selector: 24, access: 0x8b, limit: 0x67, base: 0x8000 };
    s.gdtr = TableReg { base: 0x9000, limit: 0xff };
    s.msrs.feature_control = 5;
    s.set_rip(HOST_CODE);
    s.set_gpr(4, 0x7000);
    cpu.mode_changed();
    cpu
}

fn place(cpu: &Cpu, at: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut a = CodeAssembler::new(64).expect("assembler");
    code(&mut a).expect("code");
    let bytes = a.assemble(at).expect("assemble");
    cpu.shared.memory.write_bytes(at, &bytes).expect("RAM");
}

/// Fields of a 64-bit guest that runs at `GUEST_CODE` on the host's page tables.
fn prepare(cpu: &mut Cpu) {
    let (host, guest) = (Start { rip: EXIT_CODE, rsp: 0x7000 }, Start { rip: GUEST_CODE, rsp: 0x6000 });
    for (f, x) in fields(&cpu.state, host, guest) {
        cpu.virt.vmx.vmcs.set(f, x);
    }
}

/// Through VMXON, VMCLEAR, VMPTRLD; then VMLAUNCH into `guest`. `set` changes the VMCS before.
fn launch(set: impl FnOnce(&mut Cpu), guest: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Box<Cpu> {
    let mut cpu = processor();
    cpu.shared.write_u64(0x500, VMXON_REGION);
    cpu.shared.write_u64(0x508, REGION);
    place(&cpu, HOST_CODE, |a| {
        a.vmxon(qword_ptr(0x500))?;
        a.vmclear(qword_ptr(0x508))?;
        a.vmptrld(qword_ptr(0x508))?;
        a.nop()
    });
    place(&cpu, EXIT_CODE, |a| {
        a.nop()?;
        let mut l = a.create_label();
        a.set_label(&mut l)?;
        a.jmp(l)
    });
    place(&cpu, GUEST_CODE, guest);
    cpu.run(&mut NullBus, 4);
    assert_eq!(cpu.virt.vmx.current, REGION, "CF/ZF {:#x}", cpu.state.rflags());
    prepare(&mut cpu);
    set(&mut cpu);
    place(&cpu, cpu.state.rip(), |a| a.vmlaunch());
    let now = cpu.now();
    cpu.run(&mut NullBus, now + 40);
    cpu
}

fn field(cpu: &Cpu, f: Field) -> u64 {
    cpu.virt.vmx.vmcs.get(f)
}

/// The guest has exited for this reason.
fn exited(cpu: &Cpu, reason: u32) {
    assert!(!cpu.virt.guest, "still in the guest");
    let refusal = cpu.virt.vmx.refusal;
    assert_eq!(field(cpu, Field::EXIT_REASON), reason as u64, "error {} {refusal:?}", field(cpu, Field::INSTRUCTION_ERROR));
    assert!((EXIT_CODE..EXIT_CODE + 0x20).contains(&cpu.state.rip()), "{:#x}", cpu.state.rip());
}

#[test]
fn cpuid_exits() {
    let cpu = launch(
        |_| {},
        |a| {
            a.mov(rbx, 7u64)?;
            a.cpuid()
        },
    );
    exited(&cpu, basic::CPUID);
    assert_eq!(field(&cpu, Field::GUEST_RIP), GUEST_CODE + 10);
    assert_eq!(field(&cpu, Field::EXIT_INSTRUCTION_LENGTH), 2);
    assert_eq!(cpu.state.gpr(3), 7);
    assert_eq!((cpu.counters.vm_entries, cpu.counters.vm_exits), (1, 1));
}

/// The fault that the delivery of a fault runs into is intercepted before it makes a double or triple fault.
#[test]
fn a_fault_in_delivery_exits_as_itself() {
    let divide = |a: &mut CodeAssembler| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    };
    let cpu = launch(|c| c.virt.vmx.vmcs.set(Field::EXCEPTION_BITMAP, 1 << 13), divide);
    exited(&cpu, basic::EXCEPTION_OR_NMI);
    assert_eq!(field(&cpu, Field::EXIT_INTERRUPTION_INFORMATION), 1 << 31 | 1 << 11 | 3 << 8 | 13);
    assert_eq!(field(&cpu, Field::EXIT_INTERRUPTION_ERROR_CODE), 3);
    assert_eq!(field(&cpu, Field::IDT_VECTORING_INFORMATION), 1 << 31 | 3 << 8);
    let cpu = launch(|_| {}, divide);
    exited(&cpu, basic::TRIPLE_FAULT);
}

/// STI with RFLAGS.TF set: the trap exits with blocking by STI, and is not pending as well; a hypervisor that only clears the blocking
/// steps on.
#[test]
fn a_trap_after_sti_exits_once() {
    let mut cpu = launch(
        |c| {
            c.virt.vmx.vmcs.set(Field::EXCEPTION_BITMAP, 1 << 1);
            c.virt.vmx.vmcs.set(Field::GUEST_RFLAGS, 0x102);
        },
        |a| {
            a.sti()?;
            a.nop()?;
            a.nop()
        },
    );
    let trapped = |cpu: &Cpu| {
        exited(cpu, basic::EXCEPTION_OR_NMI);
        assert_eq!((field(cpu, Field::EXIT_QUALIFICATION), field(cpu, Field::GUEST_PENDING_DEBUG)), (1 << 14, 0));
    };
    trapped(&cpu);
    assert_eq!((field(&cpu, Field::GUEST_RIP), field(&cpu, Field::GUEST_INTERRUPTIBILITY)), (GUEST_CODE + 1, 1));
    cpu.virt.vmx.vmcs.set(Field::GUEST_INTERRUPTIBILITY, 0);
    place(&cpu, RESUME_CODE, |a| a.vmresume());
    cpu.state.set_rip(RESUME_CODE);
    let now = cpu.now();
    cpu.run(&mut NullBus, now + 40);
    trapped(&cpu);
    assert_eq!((field(&cpu, Field::GUEST_RIP), cpu.counters.vm_entries), (GUEST_CODE + 2, 2));
}

/// What was pending after MOV SS is lost when the entry delivers an exception, an interrupt or an ICEBP, and follows a software interrupt.
#[test]
fn pending_debug_exceptions_and_vectoring_entries() {
    // Types with a vector: ICEBP, #DB, NMI, external, INT3.
    for (information, follows) in [(0x501u64, false), (0x301, false), (0x202, false), (0x021, false), (0x603, true)] {
        let cpu = launch(
            |c| {
                for vector in [1u64, 2, 3, 0x21] {
                    c.shared.write_u64(GUEST_IDT + 16 * vector, HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32);
                    c.shared.write_u64(GUEST_IDT + 16 * vector + 8, 0);
                }
                c.shared.write_u64(0x9008, 0x00af_9b00_0000_ffff);
                place(c, HANDLER, |a| a.vmcall());
                let v = &mut c.virt.vmx.vmcs;
                for (f, value) in [
                    (Field::EXCEPTION_BITMAP, 1 << 1),
                    (Field::GUEST_RFLAGS, 0x102 | if information == 0x021 { 0x200 } else { 0 }),
                    (Field::GUEST_IDTR_BASE, GUEST_IDT),
                    (Field::GUEST_IDTR_LIMIT, 0xfff),
                    (Field::GUEST_GDTR_BASE, 0x9000),
                    (Field::GUEST_GDTR_LIMIT, 0xff),
                    (Field::GUEST_INTERRUPTIBILITY, if information >= 0x300 { 2 } else { 0 }),
                    (Field::GUEST_PENDING_DEBUG, 1 << 14),
                    (Field::ENTRY_INTERRUPTION_INFORMATION, 1 << 31 | information),
                    (Field::ENTRY_INSTRUCTION_LENGTH, 1),
                ] {
                    v.set(f, value);
                }
            },
            |a| a.nop(),
        );
        exited(&cpu, if follows { basic::EXCEPTION_OR_NMI } else { basic::VMCALL });
        assert_eq!(field(&cpu, Field::GUEST_RIP), HANDLER, "{information:#x}");
    }
}

#[test]
fn control_check_fails_the_entry() {
    let cpu = launch(|c| c.virt.vmx.vmcs.set(Field::CR3_TARGET_COUNT, 9), |a| a.cpuid());
    assert_eq!(field(&cpu, Field::INSTRUCTION_ERROR), 7);
    assert_eq!(cpu.counters.vm_entries, 0);
    let cpu = launch(|c| c.virt.vmx.vmcs.set(Field::GUEST_RFLAGS, 0), |a| a.cpuid());
    exited(&cpu, basic::INVALID_GUEST_STATE | 1 << 31);
}

#[test]
fn io_exit_reports_the_port() {
    let cpu = launch(
        |c| c.virt.vmx.vmcs.set(Field::PRIMARY_CONTROLS, (primary::TRUE_DEFAULT1 | primary::UNCONDITIONAL_IO_EXITING) as u64),
        |a| {
            a.nop()?;
            a.out(0x80, eax)
        },
    );
    exited(&cpu, basic::IO);
    assert_eq!(field(&cpu, Field::EXIT_QUALIFICATION), 0x80 << 16 | 1 << 6 | 3);
    assert_eq!(field(&cpu, Field::GUEST_RIP), GUEST_CODE + 1);
}

/// EPT with the tables of [`EPT_TABLES`], and a VPID.
fn with_ept(c: &mut Cpu) {
    let v = &mut c.virt.vmx.vmcs;
    v.set(Field::PRIMARY_CONTROLS, (primary::TRUE_DEFAULT1 | primary::SECONDARY_CONTROLS) as u64);
    v.set(Field::SECONDARY_CONTROLS, (secondary::EPT | secondary::VPID) as u64);
    v.set(Field::VPID, 1);
    v.set(Field::EPT_POINTER, EPT_TABLES | 0x1e);
}

#[test]
fn ept_violation_of_a_store() {
    let cpu = launch(
        |c| {
            with_ept(c);
            // Page 0x50000 is read-only.
            c.shared.write_u64(EPT_TABLES + 0x3000 + 8 * 0x50, 0x50000 | 0x31);
        },
        |a| {
            a.mov(rax, 0x50008u64)?;
            a.mov(rcx, qword_ptr(rax))?;
            a.mov(qword_ptr(rax), rcx)?;
            a.cpuid()
        },
    );
    exited(&cpu, basic::EPT_VIOLATION);
    let q = field(&cpu, Field::EXIT_QUALIFICATION);
    assert_eq!(q & 0x1ff, 0x18a, "{q:#x}");
    assert_eq!(field(&cpu, Field::GUEST_PHYSICAL_ADDRESS), 0x50008);
    assert_eq!(field(&cpu, Field::GUEST_LINEAR_ADDRESS), 0x50008);
    assert_eq!(field(&cpu, Field::GUEST_RIP), GUEST_CODE + 13);
}

#[test]
fn vmread_and_vmwrite_exit_with_information() {
    let cpu = launch(|_| {}, |a| a.vmread(qword_ptr(rdi + rsi * 4 + 0x10), r9));
    exited(&cpu, basic::VMREAD);
    // Scaling 2, 64-bit addresses, DS, index RSI, base RDI, Reg2 R9.
    assert_eq!(field(&cpu, Field::EXIT_INSTRUCTION_INFORMATION), 2 | 2 << 7 | 3 << 15 | 6 << 18 | 7 << 23 | 9 << 28);
    assert_eq!(field(&cpu, Field::EXIT_QUALIFICATION), 0x10);
}

#[test]
fn round_trip_keeps_state() {
    let mut cpu = launch(
        |_| {},
        |a| {
            a.cpuid()?;
            a.mov(rax, 5u64)?;
            a.vmcall()
        },
    );
    exited(&cpu, basic::CPUID);
    let before = cpu.virt.vmx.vmcs.clone();
    // Back to the same CPUID: the same exit with the same state.
    place(&cpu, 0x3000, |a| a.vmresume());
    cpu.state.set_rip(0x3000);
    let now = cpu.now();
    cpu.run(&mut NullBus, now + 10);
    exited(&cpu, basic::CPUID);
    for f in Field::all() {
        assert_eq!(before.get(f), field(&cpu, f), "{f:?}");
    }
    let next = field(&cpu, Field::GUEST_RIP) + field(&cpu, Field::EXIT_INSTRUCTION_LENGTH);
    cpu.virt.vmx.vmcs.set(Field::GUEST_RIP, next);
    cpu.state.set_rip(0x3000);
    let now = cpu.now();
    cpu.run(&mut NullBus, now + 10);
    exited(&cpu, basic::VMCALL);
    assert_eq!(cpu.state.gpr(0), 5);
}

/// The vector is the qualification (SDM vol. 3, Basic VM-Exit Information).
#[test]
fn a_sipi_exits() {
    let mut cpu = launch(|c| c.virt.vmx.vmcs.set(Field::GUEST_ACTIVITY, 3), |a| a.nop());
    assert!(cpu.virt.guest);
    cpu.signal_sipi(0x9a);
    let now = cpu.now();
    cpu.run(&mut NullBus, now + 10);
    exited(&cpu, basic::SIPI);
    assert_eq!(field(&cpu, Field::EXIT_QUALIFICATION), 0x9a);
    assert_eq!((field(&cpu, Field::GUEST_ACTIVITY), field(&cpu, Field::GUEST_RIP)), (3, GUEST_CODE));
}

#[test]
fn msr_and_cr_intercepts_need_their_bits() {
    let cpu = launch(
        |c| {
            let v = &mut c.virt.vmx.vmcs;
            v.set(Field::PRIMARY_CONTROLS, (primary::TRUE_DEFAULT1 | primary::MSR_BITMAPS) as u64);
            v.set(Field::MSR_BITMAPS, BITMAP);
            v.set(Field::CR0_MASK, 8);
            v.set(Field::CR0_READ_SHADOW, 8);
        },
        |a| a.cpuid(),
    );
    exited(&cpu, basic::CPUID);
    let mut cpu = cpu;
    cpu.virt.guest = true;
    assert_eq!(cpu.virt_read_cr(0, 0x8000_0031), 0x8000_0039);
    cpu.state.cr0 = Cr0::from_bits_retain(0x8000_0031);
    assert_eq!(cpu.virt_write_cr(0, 0x8000_0039), 0x8000_0031);
}

/// "Load" and "save IA32_PERF_GLOBAL_CTRL": the counter counts in the guest only.
#[test]
fn counters_of_the_guest() {
    use undervisor_core::msr;
    use undervisor_core::performance::select;
    use undervisor_vmx::controls::{entry, exit};
    let run = |model: Model, save: bool| {
        let mut cpu = launch(
            |cpu| {
                cpu.model = Rc::new(model);
                cpu.virt.vmx.capabilities = None;
                cpu.write_msr(msr::IA32_PERFEVTSEL0, 0xc0 | select::OS | select::ENABLE).unwrap();
                cpu.write_msr(msr::IA32_PERF_GLOBAL_CTRL, 0).unwrap();
                let v = &mut cpu.virt.vmx.vmcs;
                v.set(Field::PRIMARY_CONTROLS, (primary::TRUE_DEFAULT1 | primary::MSR_BITMAPS) as u64);
                v.set(Field::MSR_BITMAPS, BITMAP);
                v.set(Field::ENTRY_CONTROLS, v.get(Field::ENTRY_CONTROLS) | entry::LOAD_PERF_GLOBAL_CTRL as u64);
                let more = exit::LOAD_PERF_GLOBAL_CTRL | if save { exit::SAVE_PERF_GLOBAL_CTRL } else { 0 };
                v.set(Field::EXIT_CONTROLS, v.get(Field::EXIT_CONTROLS) | more as u64);
                v.set(Field::GUEST_PERF_GLOBAL_CTRL, 1);
                v.set(Field::HOST_PERF_GLOBAL_CTRL, 2);
            },
            |a| {
                (0..5).try_for_each(|_| a.nop())?;
                a.mov(ecx, msr::IA32_PERF_GLOBAL_CTRL)?;
                a.mov(eax, 9)?;
                a.xor(edx, edx)?;
                a.wrmsr()?;
                a.cpuid()
            },
        );
        let counted = cpu.read_msr(msr::IA32_A_PMC0).unwrap();
        (cpu, counted)
    };
    let (mut cpu, counted) = run(Model::max_intel(), true);
    exited(&cpu, basic::CPUID);
    // VMLAUNCH and nine instructions of the guest.
    assert_eq!(counted, 10);
    assert_eq!(cpu.read_msr(msr::IA32_PERF_GLOBAL_CTRL), Ok(2));
    assert_eq!(field(&cpu, Field::GUEST_PERF_GLOBAL_CTRL), 9);
    let (cpu, counted) = run(Model::default(), false);
    exited(&cpu, basic::CPUID);
    assert_eq!((counted, field(&cpu, Field::GUEST_PERF_GLOBAL_CTRL)), (10, 1));
    // A Skylake cannot save it.
    let (cpu, _) = run(Model::default(), true);
    assert_eq!(cpu.virt.vmx.refusal.unwrap().check.name, "exit-reserved");
}

/// Straight on from exits to the hypervisor, or by way of the run loop: the same at every instruction.
#[test]
fn chained_exits_are_the_stepped_ones() {
    let start = || {
        let cpu = launch(
            |_| {},
            |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.add(rsi, 3)?;
                a.cpuid()?;
                a.jmp(top)
            },
        );
        place(&cpu, EXIT_CODE, |a| {
            a.mov(edx, 0x681e)?;
            a.vmread(rcx, rdx)?;
            a.add(rcx, 2)?;
            a.vmwrite(rdx, rcx)?;
            a.vmresume()
        });
        let mut cpu = cpu;
        cpu.shared.code().written(cpu.shared.memory.page_index(EXIT_CODE).expect("RAM"), 0, 4096);
        cpu.state.set_rip(EXIT_CODE);
        cpu
    };
    let (mut chained, mut stepped) = (start(), start());
    let from = chained.now();
    for count in [1, 7, 64, 500, 2000] {
        chained.run(&mut NullBus, from + count);
        while stepped.now() < from + count {
            let next = stepped.now() + 1;
            stepped.run(&mut NullBus, next);
        }
        assert_eq!(chained.now(), stepped.now());
        assert_eq!(chained.state.regs[..17], stepped.state.regs[..17], "after {count}");
        assert_eq!(chained.virt.guest, stepped.virt.guest, "after {count}");
        assert_eq!(chained.counters.vm_exits, stepped.counters.vm_exits, "after {count}");
    }
    assert!(chained.counters.vm_exits > 200);
}

/// What an entry remembers of the controls does not outlive a VMWRITE to them.
#[test]
fn a_new_ept_pointer_is_the_next_entrys() {
    let mut cpu = launch(with_ept, |a| a.cpuid());
    exited(&cpu, basic::CPUID);
    place(&cpu, 0x3000, |a| a.vmresume());
    let resume = |cpu: &mut Cpu| {
        cpu.state.set_rip(0x3000);
        let now = cpu.now();
        cpu.run(&mut NullBus, now + 10);
    };
    // An empty table.
    cpu.virt.vmx.vmcs.set(Field::EPT_POINTER, 0x40000 | 0x1e);
    cpu.virt.vmx.vmcs.set(Field::HOST_FS_BASE, 0x1234_5000);
    cpu.virt.vmx.vmcs.set(Field::HOST_FS_SELECTOR, 16);
    resume(&mut cpu);
    exited(&cpu, basic::EPT_VIOLATION);
    assert_eq!(cpu.state.segment(SegReg::Fs).base, 0x1234_5000);
    cpu.virt.vmx.vmcs.set(Field::EPT_POINTER, EPT_TABLES | 0x1e);
    resume(&mut cpu);
    exited(&cpu, basic::CPUID);
    cpu.virt.vmx.vmcs.set(Field::SECONDARY_CONTROLS, secondary::VPID as u64);
    cpu.virt.vmx.vmcs.set(Field::VPID, 2);
    cpu.virt.vmx.vmcs.set(Field::EPT_POINTER, 0x40000 | 0x1e);
    resume(&mut cpu);
    exited(&cpu, basic::CPUID);
}

#[test]
fn a20m_mode_and_vmx_operation_exclude_each_other() {
    let vmxon = |cpu: &mut Cpu| {
        cpu.shared.write_u64(0x500, VMXON_REGION);
        place(cpu, HOST_CODE, |a| {
            a.vmxon(qword_ptr(0x500))?;
            a.vmxoff()?;
            a.hlt()
        });
    };
    let mut cpu = processor();
    vmxon(&mut cpu);
    cpu.set_a20(false);
    assert!(cpu.run_undelivered(&mut NullBus, 1).is_err());
    assert_eq!((cpu.exception, cpu.virt.vmx.on), (undervisor_core::Exception::GP0, false));
    // The pin is blocked from VMXON to VMXOFF.
    let mut cpu = processor();
    vmxon(&mut cpu);
    cpu.virt.vmx.on = true;
    cpu.set_a20(false);
    assert!(!cpu.translations.a20.masks);
    cpu.virt.vmx.on = false;
    cpu.a20_changed();
    assert!(cpu.translations.a20.masks);
}

/// The richest model instead of the usual one.
fn maximal(cpu: &mut Cpu) {
    cpu.model = Rc::new(Model::max_intel());
    cpu.virt.vmx.capabilities = None;
}

/// A guest whose TSC runs at twice the rate waits half as long.
#[test]
fn tpause_waits_in_ticks_of_the_guest() {
    let cpu = launch(
        |c| {
            maximal(c);
            let v = &mut c.virt.vmx.vmcs;
            v.set(Field::PRIMARY_CONTROLS, v.get(Field::PRIMARY_CONTROLS) | primary::TSC_OFFSETTING as u64);
            v.set(Field::PRIMARY_CONTROLS, v.get(Field::PRIMARY_CONTROLS) | primary::SECONDARY_CONTROLS as u64);
            v.set(Field::SECONDARY_CONTROLS, (secondary::USER_WAIT_PAUSE | secondary::TSC_SCALING) as u64);
            v.set(Field::TSC_OFFSET, 1_000_000);
            v.set(Field::TSC_MULTIPLIER, 2 << 48);
        },
        |a| {
            a.rdtsc()?;
            a.add(eax, 4000)?;
            a.xor(ecx, ecx)?;
            a.tpause(ecx)?;
            a.cpuid()
        },
    );
    assert!(cpu.virt.guest);
    // 4000 ticks of the guest are 2000 of the processor's, and those 1000 units of time from the RDTSC on.
    let wait = cpu.next_deadline() - cpu.now();
    assert!((985..=1000).contains(&wait), "{wait}");
}

/// With an interrupt window to be told of, a wait that masked interrupts would end is none; and exits disarm the monitor.
#[test]
fn mwait_does_not_wait_for_what_the_hypervisor_waits_for() {
    let guest = |a: &mut CodeAssembler| {
        a.mov(eax, 0x5000)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.monitor()?;
        a.xor(eax, eax)?;
        a.inc(ecx)?;
        a.mwait()?;
        a.cpuid()
    };
    let cpu = launch(
        |c| {
            let v = &mut c.virt.vmx.vmcs;
            v.set(Field::PRIMARY_CONTROLS, v.get(Field::PRIMARY_CONTROLS) | primary::INTERRUPT_WINDOW_EXITING as u64);
        },
        guest,
    );
    exited(&cpu, basic::CPUID);
    assert!(!cpu.monitor.armed);
    assert!(launch(|_| {}, guest).virt.guest);
}

/// MOV DR exits before CPL and CR4.DE are looked at.
#[test]
fn mov_dr_exits_before_it_faults() {
    let cpu = launch(
        |c| {
            let v = &mut c.virt.vmx.vmcs;
            v.set(Field::PRIMARY_CONTROLS, v.get(Field::PRIMARY_CONTROLS) | primary::MOV_DR_EXITING as u64);
            v.set(Field::GUEST_CR4, v.get(Field::GUEST_CR4) | 8);
            // MOV RBX, DR4 at CPL 3.
            v.set(Field::GUEST_CS_SELECTOR, 11);
            v.set(Field::GUEST_SS_SELECTOR, 19);
            v.set(Field::GUEST_CS_ACCESS, 0xa0fb);
            v.set(Field::GUEST_SS_ACCESS, 0xc0f3);
        },
        |a| a.db(&[0x0f, 0x21, 0xe3]),
    );
    exited(&cpu, basic::MOV_DR);
    assert_eq!(field(&cpu, Field::EXIT_QUALIFICATION), 4 | 1 << 4 | 3 << 8);
}

/// Writes of the guest go to the shadow whole, and to the register through the mask, which can hide what would be refused.
#[test]
fn spec_ctrl_is_written_through_its_mask() {
    use undervisor_vmx::controls::tertiary;
    let run = |value: u32| {
        launch(
            |c| {
                maximal(c);
                c.state.msrs.spec_ctrl = 1;
                let v = &mut c.virt.vmx.vmcs;
                v.set(Field::PRIMARY_CONTROLS, v.get(Field::PRIMARY_CONTROLS) | primary::TERTIARY_CONTROLS as u64);
                v.set(Field::PRIMARY_CONTROLS, v.get(Field::PRIMARY_CONTROLS) | primary::MSR_BITMAPS as u64);
                v.set(Field::MSR_BITMAPS, BITMAP);
                v.set(Field::TERTIARY_CONTROLS, tertiary::VIRTUALIZE_SPEC_CTRL);
                v.set(Field::SPEC_CTRL_MASK, 1 | 1 << 9);
                v.set(Field::EXCEPTION_BITMAP, 1 << 13);
            },
            |a| {
                a.mov(ecx, 0x48)?;
                a.xor(edx, edx)?;
                a.mov(eax, value)?;
                a.wrmsr()?;
                a.cpuid()
            },
        )
    };
    let cpu = run(4 | 1 << 9);
    exited(&cpu, basic::CPUID);
    assert_eq!((cpu.state.msrs.spec_ctrl, field(&cpu, Field::SPEC_CTRL_SHADOW)), (5, 4 | 1 << 9));
    let cpu = run(1 << 8);
    exited(&cpu, basic::EXCEPTION_OR_NMI);
    assert_eq!((cpu.state.msrs.spec_ctrl, field(&cpu, Field::SPEC_CTRL_SHADOW)), (1, 0));
}
