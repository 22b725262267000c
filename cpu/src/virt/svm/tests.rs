//! Guests in machine code under a VMCB, on a bare AMD processor.

use std::rc::Rc;

use iced_x86::code_asm::*;
use proptest::prelude::*;
use undervisor_core::{Cr0, Cr4, Efer, Model, SegReg, Segment, SvmFeatures, regs};
use undervisor_mmu::{GuestMemory, NullBus};
use undervisor_svm::controls::v_intr;
use undervisor_svm::fields::{FIELDS, clean};
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Shared};

const RAM: u64 = 1 << 20;
/// PML4, PDPT, PD (2 MiB pages, user, writable): linear is physical.
const TABLES: u64 = 0x1_0000;
const NESTED: u64 = 0x1_4000;
const VMCB: u64 = 0x2_0000;
const IOPM: u64 = 0x2_1000;
const MSRPM: u64 = 0x2_4000;
const HOST: u64 = 0x3_0000;
const GUEST: u64 = 0x4_0000;
const GUEST_IDT: u64 = 0x5_0000;
const GDT: u64 = 0x5_8000;

/// A processor in 64-bit mode about to run `HLT` after VMRUN, and a VMCB for a 64-bit guest at GUEST.
struct Rig {
    cpu: Box<Cpu>,
}

impl Rig {
    fn new(guest: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Rig {
        Rig::of(Model::max_amd(), guest)
    }

    fn of(model: Model, guest: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Rig {
        let memory = GuestMemory::new(RAM, RAM, &[]).expect("a small guest memory");
        for base in [TABLES, NESTED] {
            for (at, e) in [(0u64, base + 0x1007), (0x1000, base + 0x2007), (0x2000, 0xe7)] {
                memory.write::<u64>(base + at, e).expect("RAM");
            }
        }
        for (at, d) in [(8u64, 0x00af_9b00_0000_ffffu64), (16, 0x00cf_9300_0000_ffff)] {
            memory.write::<u64>(GDT + at, d).expect("RAM");
        }
        let mut cpu = Cpu::new(0, Shared::new(memory), Rc::new(model));
        let mut host = CodeAssembler::new(64).expect("an assembler");
        host.vmrun().expect("VMRUN");
        host.hlt().expect("HLT");
        let code = host.assemble(HOST).expect("code");
        cpu.shared.memory.write_bytes(HOST, &code).expect("RAM");
        let mut asm = CodeAssembler::new(64).expect("an assembler");
        guest(&mut asm).expect("guest code");
        let code = asm.assemble(GUEST).expect("code");
        cpu.shared.memory.write_bytes(GUEST, &code).expect("RAM");
        let s = &mut cpu.state;
        s.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::WP;
        s.cr3 = TABLES;
        s.cr4 = Cr4::PAE | Cr4::OSFXSR;
        s.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SVME | Efer::SCE;
        for r in SegReg::ALL {
            let access = if r == SegReg::Cs { 0xa09b } else { 0xc093 };
            let selector = if r == SegReg::Cs { 8 } else { 16 };
            s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
        }
        s.gdtr.base = GDT;
        s.gdtr.limit = 0x17;
        s.set_rip(HOST);
        s.set_gpr(regs::RSP, 0x7000);
        s.set_gpr(regs::RAX, VMCB);
        s.msrs.tsc_ratio = 1 << 32;
        cpu.mode_changed();
        let mut rig = Rig { cpu };
        for (f, value) in [
            (Field::EFER, rig.cpu.state.efer.bits()),
            (Field::CR0, rig.cpu.state.cr0.bits()),
            (Field::CR3, TABLES),
            (Field::CR4, (Cr4::PAE | Cr4::OSXSAVE).bits()),
            (Field::RFLAGS, 2),
            (Field::RIP, GUEST),
            (Field::RSP, 0x8000),
            (Field::RAX, 0x1234),
            (Field::CS_SELECTOR, 8),
            (Field::CS_ATTRIBUTES, 0xa9b),
            (Field::CS_LIMIT, 0xffff_ffff),
            (Field::GDTR_BASE, GDT),
            (Field::GDTR_LIMIT, 0x17),
            (Field::IDTR_BASE, GUEST_IDT),
            (Field::IDTR_LIMIT, 0xfff),
            (Field::DR7, 0x400),
            (Field::DR6, 0xffff_0ff0),
            (Field::G_PAT, 0x0007_0406_0007_0406),
            (Field::IOPM_BASE_PA, IOPM),
            (Field::MSRPM_BASE_PA, MSRPM),
            (Field::GUEST_ASID, 1),
            (Field::INTERCEPT_4, 3),
            (Field::INTERCEPT_3, 1 << 31),
        ] {
            rig.put(f, value);
        }
        for selector in [Field::ES_SELECTOR, Field::SS_SELECTOR, Field::DS_SELECTOR] {
            let at = VMCB + selector.offset as u64;
            rig.cpu.shared.memory.write::<u64>(at, 0xffff_ffff_0c93_0010).expect("RAM");
        }
        rig
    }

    fn put(&mut self, f: Field, value: u64) {
        let m = &self.cpu.shared.memory;
        let at = VMCB + f.offset as u64;
        match f.size {
            1 => m.write::<u8>(at, value as u8),
            2 => m.write::<u16>(at, value as u16),
            4 => m.write::<u32>(at, value as u32),
            _ => m.write::<u64>(at, value),
        }
        .expect("RAM");
    }

    fn get(&self, f: Field) -> u64 {
        let m = &self.cpu.shared.memory;
        m.read::<u64>(VMCB + f.offset as u64).expect("RAM") & (u64::MAX >> (64 - 8 * f.size as u32))
    }

    fn intercept(&mut self, code: u64) {
        let at = VMCB + code / 32 * 4;
        let m = &self.cpu.shared.memory;
        let old = m.read::<u32>(at).expect("RAM");
        m.write::<u32>(at, old | 1 << (code % 32)).expect("RAM");
    }

    fn nested(&mut self) {
        self.put(Field::NESTED_CONTROL, 1);
        self.put(Field::N_CR3, NESTED);
    }

    /// A handler at GUEST + 0x800 for a vector: VMMCALL.
    fn handler(&mut self, vector: u64) {
        let m = &self.cpu.shared.memory;
        let to = GUEST + 0x800;
        let low = to & 0xffff | 8 << 16 | 0x8e00 << 32 | (to >> 16 & 0xffff) << 48;
        m.write::<u64>(GUEST_IDT + vector * 16, low).expect("RAM");
        m.write::<u64>(GUEST_IDT + vector * 16 + 8, to >> 32).expect("RAM");
        m.write_bytes(to, &[0x0f, 0x01, 0xd9]).expect("RAM");
    }

    /// Run VMRUN and what follows until the host's HLT. Returns the exit code.
    fn run(&mut self) -> u64 {
        self.cpu.state.set_rip(HOST);
        self.cpu.state.activity = Default::default();
        self.cpu.state.set_gpr(regs::RAX, VMCB);
        let limit = self.cpu.now() + 2000;
        self.cpu.run(&mut NullBus, limit);
        assert!(!self.cpu.virt.guest, "no exit");
        self.get(Field::EXITCODE)
    }
}

#[test]
fn cpuid_exit_and_round_trip() {
    let mut r = Rig::new(|a| {
        a.mov(ebx, 7)?;
        a.cpuid()?;
        a.vmmcall()
    });
    r.intercept(reason::CPUID);
    assert_eq!(r.run(), reason::CPUID);
    assert_eq!(r.get(Field::RIP), GUEST + 5);
    assert_eq!(r.get(Field::NRIP), GUEST + 7);
    assert_eq!(r.get(Field::RAX), 0x1234);
    assert_eq!(r.cpu.state.gpr(3), 7);
    assert_eq!((r.cpu.state.gpr(regs::RAX), r.cpu.state.gpr(regs::RSP)), (VMCB, 0x7000));
    assert!(!r.cpu.virt.svm.gif);
    r.put(Field::RIP, GUEST + 7);
    r.put(Field::CLEAN_BITS, clean::ALL as u64);
    assert_eq!(r.run(), reason::VMMCALL);
    assert_eq!(r.get(Field::RIP), GUEST + 7);
}

#[test]
fn invalid_state_leaves_the_guest_alone() {
    let mut r = Rig::new(|a| a.vmmcall());
    r.put(Field::GUEST_ASID, 0);
    assert_eq!(r.run(), reason::INVALID);
    assert_eq!(r.cpu.virt.svm.refused, Some("ASID"));
    assert_eq!(r.get(Field::RIP), GUEST);
    r.put(Field::GUEST_ASID, 1);
    assert_eq!(r.run(), reason::VMMCALL);
}

/// Every instruction intercept with the code and information it must report.
#[test]
fn instruction_intercepts() {
    type Guest = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let mov = 1 << 63;
    let rows: &[(u64, u64, Guest)] = &[
        (reason::CPUID, 0, |a| a.cpuid()),
        (reason::HLT, 0, |a| a.hlt()),
        (reason::RDTSC, 0, |a| a.rdtsc()),
        (reason::RDTSCP, 0, |a| a.rdtscp()),
        (reason::RDPMC, 0, |a| a.rdpmc()),
        (reason::INVD, 0, |a| a.invd()),
        (reason::WBINVD, 0, |a| a.wbinvd()),
        (reason::PAUSE, 0, |a| a.pause()),
        (reason::PUSHF, 0, |a| a.pushfq()),
        (reason::POPF, 0, |a| a.popfq()),
        (reason::IRET, 0, |a| a.iretq()),
        (reason::SWINT, 0x80, |a| a.int(0x80)),
        (reason::ICEBP, 0, |a| a.int1()),
        (reason::EXCEPTION_0 + 3, 0, |a| a.int3()),
        (reason::EXCEPTION_0 + 6, 0, |a| a.ud2()),
        (reason::INVLPG, 0x5000, |a| a.invlpg(qword_ptr(0x5000))),
        (reason::INVLPGA, 0, |a| a.invlpga()),
        (reason::INVPCID, 0x6000, |a| {
            a.mov(ecx, 2)?;
            a.invpcid(rcx, xmmword_ptr(0x6000))
        }),
        (reason::XSETBV, 0, |a| {
            a.mov(eax, 1)?;
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.xsetbv()
        }),
        (reason::CR0_READ, mov | 3, |a| a.mov(rbx, cr0)),
        (reason::CR0_READ + 3, mov | 9, |a| a.mov(r9, cr3)),
        (reason::CR0_READ + 8, mov | 1, |a| a.mov(rcx, cr8)),
        (reason::CR0_WRITE + 3, mov | 2, |a| a.mov(cr3, rdx)),
        (reason::CR0_WRITE + 4, mov | 2, |a| {
            a.mov(rdx, cr4)?;
            a.mov(cr4, rdx)
        }),
        (reason::CR0_SEL_WRITE, mov | 2, |a| {
            a.mov(rdx, cr0)?;
            a.xor(edx, 1 << 16)?;
            a.mov(cr0, rdx)
        }),
        (reason::CR0_WRITE, 0, |a| a.clts()),
        (reason::CR0_SEL_WRITE, 0, |a| a.lmsw(dx)),
        (reason::CR0_READ, 0, |a| a.smsw(edx)),
        (reason::DR0_READ + 7, 6, |a| a.mov(rsi, dr7)),
        (reason::DR0_WRITE, 7, |a| a.mov(dr0, rdi)),
        (reason::GDTR_READ, 0, |a| a.sgdt(ptr(0x6000))),
        (reason::GDTR_WRITE, 0, |a| a.lgdt(ptr(0x6000))),
        (reason::IDTR_READ, 0, |a| a.sidt(ptr(0x6000))),
        (reason::IDTR_WRITE, 0, |a| a.lidt(ptr(0x6000))),
        (reason::TR_READ, 0, |a| a.str(eax)),
        (reason::TR_WRITE, 0, |a| a.ltr(ax)),
        (reason::LDTR_READ, 0, |a| a.sldt(eax)),
        (reason::LDTR_WRITE, 0, |a| a.lldt(ax)),
        (reason::MONITOR, 0, |a| {
            a.mov(eax, 0x6000)?;
            a.xor(ecx, ecx)?;
            a.monitor()
        }),
        (reason::MWAIT, 0, |a| {
            a.xor(ecx, ecx)?;
            a.mwait()
        }),
        (reason::VMSAVE, 0, |a| {
            a.mov(eax, 0x6000)?;
            a.vmsave()
        }),
        (reason::VMLOAD, 0, |a| {
            a.mov(eax, 0x6000)?;
            a.vmload()
        }),
        (reason::VMRUN, 0, |a| {
            a.mov(eax, 0x6000)?;
            a.vmrun()
        }),
        (reason::STGI, 0, |a| a.stgi()),
        (reason::CLGI, 0, |a| a.clgi()),
        (reason::MSR, 0, |a| {
            a.mov(ecx, 0x4000_0000)?;
            a.rdmsr()
        }),
        (reason::MSR, 1, |a| {
            a.mov(ecx, 0x4000_0000)?;
            a.wrmsr()
        }),
        (reason::IOIO, 0x80 << 16 | 0x210, |a| a.out(0x80, al)),
        (reason::IOIO, 0x71 << 16 | 0x211, |a| a.in_(al, 0x71)),
        (reason::IOIO, 0x3f8 << 16 | 3 << 10 | 0x22c, |a| {
            a.mov(edx, 0x3f8)?;
            a.mov(ecx, 1)?;
            a.rep().outsw()
        }),
    ];
    for &(code, info, guest) in rows {
        let mut r = Rig::new(guest);
        r.intercept(code);
        let m = &r.cpu.shared.memory;
        for page in 0..6u64 {
            m.write_bytes(IOPM + page * 0x1000, &[0xff; 0x1000]).expect("RAM");
        }
        assert_eq!(r.run(), code, "{}", reason::name(code));
        assert_eq!(r.get(Field::EXITINFO1), info, "{} information", reason::name(code));
        match code {
            reason::IOIO => assert_eq!(r.get(Field::EXITINFO2), r.get(Field::NRIP)),
            reason::INVPCID => assert_eq!(r.get(Field::EXITINFO2), 2),
            _ => {}
        }
        if code != reason::EXCEPTION_0 + 6 {
            assert!(r.get(Field::NRIP) > r.get(Field::RIP), "{} nRIP", reason::name(code));
        }
    }
}

#[test]
fn page_fault_intercept_reports_address_and_bytes() {
    let mut r = Rig::new(|a| a.mov(rax, qword_ptr(0x4000_0000)));
    r.intercept(reason::EXCEPTION_0 + 14);
    r.put(Field::CR2, 5);
    assert_eq!(r.run(), reason::EXCEPTION_0 + 14);
    assert_eq!((r.get(Field::EXITINFO1), r.get(Field::EXITINFO2), r.get(Field::CR2)), (0, 0x4000_0000, 5));
    assert_eq!(r.get(Field::INSTRUCTION_COUNT), 15);
    assert_eq!(r.cpu.shared.memory.read::<u16>(VMCB + 0xd1), r.cpu.shared.memory.read::<u16>(GUEST));
    // Other exits have no bytes.
    r.cpu.shared.write_bytes(GUEST, &[0x0f, 0x01, 0xd9]).expect("RAM");
    assert_eq!(r.run(), reason::VMMCALL);
    assert_eq!((r.get(Field::INSTRUCTION_COUNT), r.cpu.shared.memory.read::<u64>(VMCB + 0xd0)), (0, Some(0)));
}

#[test]
fn nested_page_faults() {
    let mut r = Rig::new(|a| {
        a.mov(qword_ptr(0x6000), rax)?;
        a.vmmcall()
    });
    r.nested();
    assert_eq!(r.run(), reason::VMMCALL);
    // Write to a read-only page, then a table that is not there.
    r.cpu.shared.memory.write::<u64>(NESTED + 0x2000, 0xe5).expect("RAM");
    r.put(Field::RIP, GUEST);
    r.put(Field::TLB_CONTROL, 1);
    assert_eq!(r.run(), reason::NPF);
    // The guest's own tables are the first that would be written.
    assert_eq!((r.get(Field::EXITINFO1), r.get(Field::EXITINFO2)), (0x2_0000_0007, TABLES));
    r.cpu.shared.memory.write::<u64>(NESTED + 0x2000, 0).expect("RAM");
    assert_eq!(r.run(), reason::NPF);
    assert_eq!((r.get(Field::EXITINFO1), r.get(Field::EXITINFO2)), (0x2_0000_0006, TABLES));
    r.cpu.shared.memory.write::<u64>(NESTED + 0x2000, 0xe7).expect("RAM");
    assert_eq!(r.run(), reason::VMMCALL);
}

/// DR7.GD makes a #DB of an access to a debug register before the intercept of that access is looked at.
#[test]
fn general_detect_comes_before_the_intercept() {
    let mut r = Rig::new(|a| a.mov(rax, dr0));
    r.intercept(reason::DR0_READ);
    r.intercept(reason::EXCEPTION_0 + 1);
    assert_eq!(r.run(), reason::DR0_READ);
    r.put(Field::DR7, 0x2400);
    assert_eq!(r.run(), reason::EXCEPTION_0 + 1);
    assert_eq!((r.get(Field::RIP), r.get(Field::DR6) & 1 << 13), (GUEST, 1 << 13));
}

#[test]
fn events_are_injected() {
    for (info, error) in [(1u64 << 31 | 0x30, false), (1 << 31 | 3 << 8 | 1 << 11 | 13, true), (1 << 31 | 2 << 8, false)] {
        let mut r = Rig::new(|a| a.nop());
        let vector = if info >> 8 & 7 == 2 { 2 } else { info & 0xff };
        r.handler(vector);
        r.put(Field::EVENTINJ, info);
        r.put(Field::EVENTINJ_ERROR, 0x55);
        assert_eq!(r.run(), reason::VMMCALL);
        assert_eq!(r.get(Field::RIP), GUEST + 0x800);
        assert_eq!(r.get(Field::EVENTINJ) >> 31, 0);
        let top = r.get(Field::RSP);
        assert_eq!(r.cpu.shared.memory.read::<u64>(top), Some(if error { 0x55 } else { GUEST }));
    }
}

#[test]
fn software_interrupts_return_to_next_rip() {
    let mut r = Rig::new(|a| a.int(0x80));
    r.handler(0x80);
    r.put(Field::EVENTINJ, 1 << 31 | 4 << 8 | 0x80);
    r.put(Field::NRIP, GUEST + 2);
    assert_eq!(r.run(), reason::VMMCALL);
    let top = r.get(Field::RSP);
    assert_eq!(r.cpu.shared.memory.read::<u64>(top), Some(GUEST + 2));
}

#[test]
fn an_exit_in_delivery_is_reported() {
    let mut r = Rig::new(|a| a.nop());
    r.put(Field::IDTR_LIMIT, 0);
    r.put(Field::EVENTINJ, 1 << 31 | 0x30);
    r.intercept(reason::EXCEPTION_0 + 13);
    assert_eq!(r.run(), reason::EXCEPTION_0 + 13);
    assert_eq!(r.get(Field::EXITINFO1), 0x30 * 8 + 3);
    assert_eq!(r.get(Field::EXITINTINFO), 1 << 31 | 0x30);
}

/// The fault that the delivery of a fault runs into is intercepted before it makes a double or triple fault.
#[test]
fn a_fault_in_delivery_exits_as_itself() {
    let mut r = Rig::new(|a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    });
    r.put(Field::IDTR_LIMIT, 0);
    r.intercept(reason::EXCEPTION_0 + 13);
    assert_eq!(r.run(), reason::EXCEPTION_0 + 13);
    assert_eq!(r.get(Field::EXITINFO1), 2, "the #GP names the gate; its source is internal");
    assert_eq!(r.get(Field::EXITINTINFO), 1 << 31 | 3 << 8);
}

#[test]
fn triple_fault_is_shutdown() {
    let mut r = Rig::new(|a| a.ud2());
    r.put(Field::IDTR_LIMIT, 0);
    assert_eq!(r.run(), reason::SHUTDOWN);
}

#[test]
fn virtual_interrupts() {
    let v = v_intr::IRQ | v_intr::MASKING | 5 << v_intr::PRIORITY_SHIFT;
    let mut r = Rig::new(|a| {
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.vmmcall()
    });
    r.handler(0x50);
    r.put(Field::V_INTR_CONTROL, v | 3);
    r.put(Field::V_INTR_VECTOR, 0x50);
    assert_eq!(r.run(), reason::VMMCALL);
    assert_eq!(r.get(Field::RIP), GUEST + 0x800);
    // After STI's shadow: at the second NOP.
    let top = r.get(Field::RSP);
    assert_eq!(r.cpu.shared.memory.read::<u64>(top), Some(GUEST + 3));
    assert_eq!(r.get(Field::V_INTR_CONTROL) & v_intr::IRQ, 0);
    // Masked by V_TPR.
    let mut r = Rig::new(|a| {
        a.sti()?;
        a.nop()?;
        a.mov(rax, cr8)?;
        a.vmmcall()
    });
    r.put(Field::V_INTR_CONTROL, v | 6);
    r.put(Field::V_INTR_VECTOR, 0x50);
    assert_eq!(r.run(), reason::VMMCALL);
    assert_eq!((r.get(Field::RIP), r.get(Field::RAX)), (GUEST + 6, 6));
    assert_ne!(r.get(Field::V_INTR_CONTROL) & v_intr::IRQ, 0);
    // The window.
    r.put(Field::V_INTR_CONTROL, v);
    r.put(Field::RIP, GUEST);
    r.put(Field::RFLAGS, 2);
    r.intercept(reason::VINTR);
    assert_eq!(r.run(), reason::VINTR);
    assert_eq!(r.get(Field::RIP), GUEST + 2);
}

#[test]
fn virtual_nmi_and_virtual_gif() {
    let mut r = Rig::new(|a| {
        a.stgi()?;
        a.nop()?;
        a.hlt()
    });
    r.handler(2);
    r.intercept(reason::NMI);
    r.intercept(reason::HLT);
    let bits = v_intr::NMI_ENABLE | v_intr::NMI | v_intr::GIF_ENABLE;
    r.put(Field::V_INTR_CONTROL, bits);
    assert_eq!(r.run(), reason::VMMCALL);
    let top = r.get(Field::RSP);
    assert_eq!(r.cpu.shared.memory.read::<u64>(top), Some(GUEST + 3));
    assert_eq!(r.get(Field::V_INTR_CONTROL) & !0xff, bits & !v_intr::NMI | v_intr::NMI_MASK | v_intr::GIF);
    r.put(Field::RIP, GUEST + 3);
    assert_eq!(r.run(), reason::HLT);
}

#[test]
fn an_nmi_exits_and_stays_pending_until_gif() {
    let mut r = Rig::new(|a| a.nop());
    r.intercept(reason::NMI);
    r.cpu.virt.svm.gif = false;
    r.cpu.signal_nmi();
    assert_eq!(r.run(), reason::NMI);
    assert!(r.cpu.signals.nmi && !r.cpu.virt.svm.gif);
}

/// An intercepted INIT exits; with VM_CR.R_INIT one becomes #SX, with error code 1.
#[test]
fn an_init_exits_or_becomes_sx() {
    let mut r = Rig::new(|a| a.nop());
    r.intercept(reason::INIT);
    r.cpu.virt.svm.gif = false;
    r.cpu.signal_init();
    assert_eq!(r.run(), reason::INIT);
    assert_eq!((r.get(Field::EXITINFO1), r.get(Field::EXITINFO2), r.get(Field::RIP)), (0, 0, GUEST));
    // It stays pending for the hypervisor (APM vol. 2, INIT Support).
    assert!(r.cpu.signals.init && !r.cpu.virt.svm.gif);
    let mut r = Rig::new(|a| a.nop());
    r.intercept(reason::EXCEPTION_0 + 30);
    r.cpu.state.msrs.vm_cr = 2;
    r.cpu.virt.svm.gif = false;
    r.cpu.signal_init();
    assert_eq!(r.run(), reason::EXCEPTION_0 + 30);
    assert_eq!((r.get(Field::EXITINFO1), r.get(Field::RIP)), (1, GUEST));
    assert!(!r.cpu.signals.init);
}

#[test]
fn an_smi_exits_and_stays_pending() {
    let mut r = Rig::new(|a| a.nop());
    r.intercept(reason::SMI);
    r.cpu.virt.svm.gif = false;
    r.cpu.signals.smi = true;
    r.cpu.attend(crate::cpu::attention::INTERRUPT);
    assert_eq!(r.run(), reason::SMI);
    assert_eq!((r.get(Field::EXITINFO1) & 1, r.get(Field::RIP)), (1, GUEST));
    assert!(r.cpu.signals.smi);
}

/// A physical NMI comes before a virtual one, whose mask is saved clear if its delivery exits.
#[test]
fn virtual_nmis_wait_for_physical_ones() {
    let mut r = Rig::new(|a| a.nop());
    r.handler(2);
    r.intercept(reason::NMI);
    r.put(Field::V_INTR_CONTROL, v_intr::NMI_ENABLE | v_intr::NMI);
    r.cpu.virt.svm.gif = false;
    r.cpu.signal_nmi();
    assert_eq!(r.run(), reason::NMI);
    let bits = v_intr::NMI | v_intr::NMI_MASK;
    assert_eq!((r.get(Field::V_INTR_CONTROL) & bits, r.get(Field::RIP)), (v_intr::NMI, GUEST));
    r.cpu.signals.nmi = false;
    r.put(Field::IDTR_LIMIT, 0);
    r.intercept(reason::EXCEPTION_0 + 13);
    assert_eq!(r.run(), reason::EXCEPTION_0 + 13);
    assert_eq!((r.get(Field::V_INTR_CONTROL) & bits, r.get(Field::EXITINTINFO)), (0, 1 << 31 | 2 << 8 | 2));
}

/// A guest that may clear the processor's GIF holds back its own virtual interrupts with it.
#[test]
fn virtual_interrupts_need_gif() {
    let mut r = Rig::new(|a| {
        a.clgi()?;
        a.sti()?;
        a.nop()?;
        a.vmmcall()
    });
    r.put(Field::V_INTR_CONTROL, v_intr::IRQ | v_intr::IGNORE_TPR);
    r.put(Field::V_INTR_VECTOR, 0x50);
    assert_eq!(r.run(), reason::VMMCALL);
    assert_eq!(r.get(Field::RIP), GUEST + 5);
}

/// APM vol. 2, SVM-Lock; SVM_KEY MSR; IGNNE MSR.
#[test]
fn svm_lock_and_its_key() {
    use undervisor_core::msr::AMD_VM_CR;
    const SVM_KEY: u32 = 0xc001_0118;
    let mut r = Rig::new(|a| a.nop());
    let c = &mut *r.cpu;
    c.write_msr(SVM_KEY, 0x1234_5678_9abc_def0).expect("a key");
    c.write_msr(AMD_VM_CR, 1 << 3).expect("LOCK");
    c.write_msr(AMD_VM_CR, 0).expect("no effect");
    c.write_msr(SVM_KEY, 1).expect("the wrong key");
    assert_eq!(c.read_msr(AMD_VM_CR), Ok(1 << 3));
    c.write_msr(SVM_KEY, 0x1234_5678_9abc_def0).expect("the key");
    assert_eq!((c.read_msr(AMD_VM_CR), c.read_msr(SVM_KEY)), (Ok(0), Ok(0)));
    // Without a key only a reset unlocks.
    c.write_msr(SVM_KEY, 0).expect("no key");
    c.write_msr(AMD_VM_CR, 1 << 3).expect("LOCK");
    c.write_msr(SVM_KEY, 0).expect("no effect");
    assert_eq!(c.read_msr(AMD_VM_CR), Ok(1 << 3));
    assert!(c.write_msr(0xc001_0115, 2).is_err() && c.write_msr(0xc001_0115, 1).is_ok());
    assert_eq!(c.read_msr(0xc001_0115), Ok(1));
}

/// STGI works without EFER.SVME where SVM can be locked, CLGI does not.
#[test]
fn stgi_without_svme() {
    for (name, stgi, lock, gif) in [("STGI", true, true, true), ("STGI", true, false, false), ("CLGI", false, true, false)] {
        let mut model = Model::max_amd();
        model.svm.set(SvmFeatures::SVM_LOCK, lock);
        let mut r = Rig::of(model, |a| a.nop());
        let mut host = CodeAssembler::new(64).expect("an assembler");
        if stgi { host.stgi() } else { host.clgi() }.expect(name);
        host.hlt().expect("HLT");
        let code = host.assemble(HOST).expect("code");
        r.cpu.shared.memory.write_bytes(HOST, &code).expect("RAM");
        r.cpu.state.efer -= Efer::SVME;
        r.cpu.virt.svm.gif = !stgi;
        let limit = r.cpu.now() + 2;
        r.cpu.run(&mut NullBus, limit);
        assert_eq!(r.cpu.virt.svm.gif, gif || !stgi, "{name}, lock: {lock}");
    }
}

/// INVLPGB reaches translations of this processor by address, PCID and ASID; MPERF and APERF are RDPRU's, too.
#[test]
fn broadcast_invalidation_and_rdpru() {
    const LINEAR: u64 = 0x20_0000;
    let mut r = Rig::new(|a| {
        a.mov(rbx, qword_ptr(LINEAR))?;
        a.mov(dword_ptr(TABLES + 0x2008), 0x40_0087)?;
        a.mov(rsi, qword_ptr(LINEAR))?;
        a.mov(rax, LINEAR | 9)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.invlpgb()?;
        a.tlbsync()?;
        a.mov(rdi, qword_ptr(LINEAR))?;
        a.mov(ecx, 1)?;
        a.rdpru()?;
        a.mov(r8, rax)?;
        a.vmmcall()
    });
    let m = &r.cpu.shared.memory;
    m.write::<u64>(TABLES + 0x2008, 0x87).expect("RAM");
    m.write::<u64>(0, 0x1111).expect("RAM");
    r.put(Field::NESTED_CONTROL, undervisor_svm::controls::nested::INVLPGB_ENABLE);
    assert_eq!(r.run(), reason::VMMCALL);
    let s = &r.cpu.state;
    assert_eq!((s.gpr(regs::RBX), s.gpr(regs::RSI)), (0x1111, 0x1111));
    // Beyond RAM.
    assert_eq!(s.gpr(regs::RDI), u64::MAX);
    assert_ne!(s.gpr(regs::R8), 0);
}

#[test]
fn pause_filter_counts() {
    let mut r = Rig::new(|a| {
        for _ in 0..6 {
            a.pause()?;
        }
        a.vmmcall()
    });
    r.intercept(reason::PAUSE);
    r.put(Field::PAUSE_FILTER_COUNT, 3);
    assert_eq!(r.run(), reason::PAUSE);
    assert_eq!(r.get(Field::RIP), GUEST + 6);
    // One that comes late reloads the count, and does not count itself.
    let mut r = Rig::new(|a| {
        a.pause()?;
        a.pause()?;
        (0..100).try_for_each(|_| a.nop())?;
        (0..4).try_for_each(|_| a.pause())?;
        a.vmmcall()
    });
    r.intercept(reason::PAUSE);
    r.put(Field::PAUSE_FILTER_COUNT, 2);
    r.put(Field::PAUSE_FILTER_THRESHOLD, 150);
    assert_eq!(r.run(), reason::PAUSE);
    assert_eq!(r.get(Field::RIP), GUEST + 4 + 100 + 6);
}

#[test]
fn tsc_is_scaled_and_offset() {
    let mut r = Rig::new(|a| {
        a.rdtsc()?;
        a.vmmcall()
    });
    r.cpu.state.msrs.tsc_ratio = 1 << 33;
    r.put(Field::TSC_OFFSET, 1 << 20);
    assert_eq!(r.run(), reason::VMMCALL);
    let seen = r.get(Field::RAX);
    assert!((1 << 20..(1 << 20) + 1000).contains(&seen), "{seen:#x}");
}

#[test]
fn vmload_and_vmsave_move_what_vmrun_does_not() {
    let mut r = Rig::new(|a| a.vmmcall());
    let mut host = CodeAssembler::new(64).expect("an assembler");
    host.vmload().expect("VMLOAD");
    host.vmsave().expect("VMSAVE");
    host.hlt().expect("HLT");
    let code = host.assemble(HOST).expect("code");
    r.cpu.shared.memory.write_bytes(HOST, &code).expect("RAM");
    r.put(Field::FS_BASE, 0x0000_9000_0000_0000);
    r.put(Field::KERNEL_GS_BASE, 0x1234);
    r.put(Field::LSTAR, 0x5678);
    r.put(Field::EXITCODE, 99);
    assert_eq!(r.run(), 99);
    assert_eq!(r.cpu.state.segment(SegReg::Fs).base, 0x0000_9000_0000_0000);
    assert_eq!(r.cpu.state.msrs.lstar, 0x5678);
    assert_eq!(r.cpu.state.msrs.kernel_gs_base, 0x1234);
}

/// What leaves a hot handler by its memory access leaves at its own instruction, wherever in the block that is.
#[test]
fn a_hot_instruction_exits_at_its_own_address() {
    type Guest = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    const AWAY: u64 = 0x4000_0000;
    let rows: &[(&str, Guest)] = &[
        ("CALL rel", |a| {
            let mut l = a.create_label();
            a.call(l)?;
            a.set_label(&mut l)?;
            a.nop()
        }),
        ("CALL [m]", |a| a.call(qword_ptr(rbx))),
        ("CALL r", |a| a.call(rax)),
        ("JMP [m]", |a| a.jmp(qword_ptr(rbx))),
        ("RET", |a| a.ret()),
        ("CMP and Jcc", |a| {
            let mut l = a.create_label();
            a.cmp(qword_ptr(rbx), rax)?;
            a.je(l)?;
            a.set_label(&mut l)?;
            a.nop()
        }),
        ("ADDPS", |a| a.addps(xmm0, xmmword_ptr(rbx))),
        ("PADDD", |a| a.paddd(xmm0, xmmword_ptr(rbx))),
        ("MOV", |a| a.mov(qword_ptr(rbx), rax)),
        ("PUSH", |a| a.push(rax)),
    ];
    for &(name, guest) in rows {
        for nested in [false, true] {
            let mut r = Rig::new(|a| {
                a.mov(rsp, AWAY + 0x800)?;
                a.mov(rbx, AWAY)?;
                a.nop()?;
                guest(a)
            });
            let mut code = CodeAssembler::new(64).expect("an assembler");
            code.mov(rsp, AWAY + 0x800).and_then(|()| code.mov(rbx, AWAY)).and_then(|()| code.nop()).expect("code");
            let before = code.assemble(GUEST).expect("code").len() as u64;
            if nested {
                r.nested();
                // Linear 1 GiB is physical 1 GiB, of which nested paging knows nothing.
                r.cpu.shared.memory.write::<u64>(TABLES + 0x1008, AWAY | 0xe7).expect("RAM");
            }
            r.put(Field::CR4, (Cr4::PAE | Cr4::OSFXSR).bits());
            r.intercept(reason::EXCEPTION_0 + 14);
            let code = if nested { reason::NPF } else { reason::EXCEPTION_0 + 14 };
            assert_eq!(r.run(), code, "{name}");
            assert_eq!(r.get(Field::RIP), GUEST + before, "{name}, nested: {nested}");
            assert_eq!(r.get(Field::EXITINFO2) & !0xfff, AWAY, "{name}, nested: {nested}");
        }
    }
}

/// An access that exits leaves registers and flags as they were before the instruction, which runs again later.
#[test]
fn an_exit_in_an_access_changes_no_register() {
    type Guest = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    const AWAY: u64 = 0x4000_0000;
    // RBX points to where nested paging knows nothing; so do RDI and the GDTR. The stack is good but for
    // ENTER, and RSI and RBP but for LODS and LEAVE.
    let rows: &[(&str, Guest)] = &[
        ("POP [m]", |a| a.pop(qword_ptr(rbx))),
        ("POP m16", |a| a.pop(word_ptr(rbx))),
        ("POP FS", |a| a.pop(fs)),
        ("PUSH [m]", |a| a.push(qword_ptr(rbx))),
        ("MOV FS, r", |a| a.mov(fs, cx)),
        ("LFS", |a| a.lfs(eax, fword_ptr(rsp + 4))),
        ("RETF", |a| a.db(&[0x48, 0xcb])),
        ("IRETQ", |a| a.iretq()),
        ("CALL FAR", |a| a.call(fword_ptr(rsp + 4))),
        ("MOVS", |a| a.movsq()),
        ("REP STOS", |a| a.rep().stosb()),
        ("LODS", |a| a.lodsq()),
        ("CMPS", |a| a.cmpsb()),
        ("SCAS", |a| a.scasb()),
        ("ADD [m], r", |a| a.add(qword_ptr(rbx), rax)),
        ("ADD r, [m]", |a| a.add(rax, qword_ptr(rbx))),
        ("XADD", |a| a.xadd(qword_ptr(rbx), rax)),
        ("XCHG", |a| a.xchg(qword_ptr(rbx), rax)),
        ("CMPXCHG", |a| a.lock().cmpxchg(qword_ptr(rbx), rcx)),
        ("CMPXCHG8B", |a| a.cmpxchg8b(qword_ptr(rbx))),
        ("CMPXCHG16B", |a| a.cmpxchg16b(xmmword_ptr(rbx))),
        ("SHL", |a| a.shl(qword_ptr(rbx), 1)),
        ("BTS", |a| a.bts(qword_ptr(rbx), rcx)),
        ("MUL", |a| a.mul(qword_ptr(rbx))),
        ("DIV", |a| a.div(qword_ptr(rbx))),
        ("ENTER", |a| a.enter(16, 0)),
        ("LEAVE", |a| a.leave()),
        ("FSTP", |a| a.fstp(qword_ptr(rbx))),
        ("FISTP", |a| a.fistp(dword_ptr(rbx))),
        ("FBSTP", |a| a.fbstp(tbyte_ptr(rbx))),
        ("FNSAVE", |a| a.fnsave(ptr(rbx))),
        ("FNSTENV", |a| a.fnstenv(ptr(rbx))),
    ];
    for &(name, guest) in rows {
        let mut r = Rig::new(|a| {
            a.fninit()?;
            a.fld1()?;
            guest(a)
        });
        r.nested();
        r.cpu.shared.memory.write::<u64>(TABLES + 0x1008, AWAY | 0xe7).expect("RAM");
        for (at, value) in [(0u64, 0x10u64), (8, 8), (16, 2), (24, 0x8000), (32, 0x10)] {
            r.cpu.shared.memory.write::<u64>(0x8000 + at, value).expect("RAM");
        }
        r.put(Field::CR4, (Cr4::PAE | Cr4::OSFXSR).bits());
        r.put(Field::GDTR_BASE, AWAY);
        let flags = 2 | 0x8d5;
        r.put(Field::RFLAGS, flags);
        let [stack, source, frame] = ["ENTER", "LODS", "LEAVE"].map(|bad| if name == bad { AWAY + 0x100 } else { 0x8000 });
        r.put(Field::RSP, stack);
        let named = [
            (regs::RBX, AWAY),
            (regs::RSI, source),
            (regs::RDI, AWAY + 64),
            (regs::RCX, 8),
            (regs::RDX, 3),
            (regs::RBP, frame),
        ];
        for (register, value) in named {
            r.cpu.state.set_gpr(register, value);
        }
        let code = r.run();
        assert_eq!(code, reason::NPF, "{name}");
        for (register, value) in named {
            assert_eq!(r.cpu.state.gpr(register), value, "{name}: register {register}");
        }
        assert_eq!((r.get(Field::RAX), r.get(Field::RSP), r.get(Field::RFLAGS)), (0x1234, stack, flags), "{name}");
        assert_eq!((r.get(Field::CS_SELECTOR), r.cpu.state.x87.status >> 11 & 7), (8, 7), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// Whatever a VMCB holds, the processor survives it, and comes back to the host with the host's state.
    #[test]
    fn random_vmcbs(changes in proptest::collection::vec((0..FIELDS.len(), any::<u64>(), any::<bool>()), 0..24)) {
        let mut r = Rig::new(|a| {
            a.cpuid()?;
            a.mov(rax, qword_ptr(0x6000))?;
            a.vmmcall()
        });
        for (i, value, small) in changes {
            r.put(FIELDS[i].field, if small { value & 0xff } else { value });
        }
        let limit = r.cpu.now() + 500;
        r.cpu.run(&mut NullBus, limit);
        if !r.cpu.virt.guest {
            prop_assert_eq!(r.cpu.state.cr3, TABLES);
            prop_assert_eq!(r.cpu.state.gpr(regs::RSP), 0x7000);
            prop_assert_eq!(r.cpu.state.rip() & !0xf, HOST);
        }
    }
}

/// Counters of the guest only, of the host only, and of both (APM vol. 2, Performance Event-Select Registers).
#[test]
fn counters_of_one_world() {
    use undervisor_core::msr::{AMD_PERF_CTR0, AMD_PERF_EVT_SEL0};
    use undervisor_core::performance::select;
    let counts = |svme: bool| {
        let mut r = Rig::new(|a| {
            (0..50).try_for_each(|_| a.nop())?;
            a.vmmcall()
        });
        let all = 0xc0 | select::OS | select::USR | select::ENABLE;
        for (i, worlds) in
            [0, select::GUEST_ONLY, select::HOST_ONLY, select::GUEST_ONLY | select::HOST_ONLY].into_iter().enumerate()
        {
            r.cpu.write_msr(AMD_PERF_EVT_SEL0 + i as u32, all | worlds).unwrap();
        }
        if svme {
            assert_eq!(r.run(), reason::VMMCALL);
        } else {
            r.cpu.state.efer -= Efer::SVME;
            r.cpu.performance_changed();
            r.cpu.state.set_rip(HOST + 3);
            let limit = r.cpu.now() + 100;
            r.cpu.run(&mut NullBus, limit);
        }
        [0, 1, 2, 3].map(|i| r.cpu.read_msr(AMD_PERF_CTR0 + i).unwrap())
    };
    // VMRUN counts as the guest's (or in both), HLT as the host's. VMMCALL exits and does not retire.
    assert_eq!(counts(true), [52, 51, 1, 52]);
    // Without SVM the bits mean nothing.
    assert_eq!(counts(false), [1; 4]);
}
