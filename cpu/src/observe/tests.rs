//! Small hypervisors with one mistake each, under both vendors, and the same without it.

use std::cell::RefCell;
use std::rc::Rc;

use iced_x86::code_asm::*;
use undervisor_core::{Cr0, Cr4, Efer, Model, SegReg, Segment, TableReg};
use undervisor_mmu::{GuestMemory, NullBus};
use undervisor_svm::Field as V;
use undervisor_svm::fields::clean;
use undervisor_vmx::capabilities::REVISION;
use undervisor_vmx::controls::{entry, exit, pin, primary, secondary};
use undervisor_vmx::{Field as F, Memory};

use super::*;

const TABLES: u64 = 0x10000;
/// Second-level tables: 4 KiB pages for the first 2 MiB.
const SECOND: u64 = 0x20000;
const VMXON_REGION: u64 = 0x30000;
/// VMCS or VMCB.
const REGION: u64 = 0x31000;
const MSR_MAP: u64 = 0x40000;
const IO_MAP: u64 = 0x44000;
const HOST_CODE: u64 = 0x1000;
const EXIT_CODE: u64 = 0x2000;
const GUEST_CODE: u64 = 0x4000;
const FIELDS: u64 = 0x50000;

type Code<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What the sink got.
#[derive(Clone, Default)]
struct Caught {
    incidents: Rc<RefCell<Vec<Incident>>>,
    findings: Rc<RefCell<Vec<Finding>>>,
    records: Rc<RefCell<Vec<Record>>>,
}

impl Sink for Caught {
    fn records(&mut self, records: &[Record]) {
        self.records.borrow_mut().extend_from_slice(records);
    }
    fn incident(&mut self, incident: &Incident) {
        self.incidents.borrow_mut().push(incident.clone());
    }
    fn finding(&mut self, finding: &Finding) {
        self.findings.borrow_mut().push(finding.clone());
    }
}

impl Caught {
    fn found(&self, lint: Lint) -> Vec<String> {
        self.findings.borrow().iter().filter(|f| f.lint == lint).map(|f| f.text.clone()).collect()
    }
}

fn processor(amd: bool, id: usize, shared: Rc<Shared>) -> Box<Cpu> {
    let model = if amd { Model::max_amd() } else { Model::default() };
    let mut cpu = Cpu::new(id, shared, Rc::new(model));
    let s = &mut cpu.state;
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP;
    s.cr3 = TABLES;
    s.cr4 = if amd { Cr4::PAE } else { Cr4::PAE | Cr4::VMXE };
    s.efer = Efer::LME | Efer::LMA | if amd { Efer::SVME } else { Efer::empty() };
    for r in SegReg::ALL {
        let (selector, access) = if r == SegReg::Cs { (8, 0xa09b) } else { (16, 0xc093) };
        s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
    }
    s.tr = Segment { selector: 24, access: 0x8b, limit: 0x67, base: 0x8000 };
    s.gdtr = TableReg { base: 0x9000, limit: 0xff };
    s.msrs.feature_control = 5;
    s.msrs.tsc_ratio = 1 << 32;
    s.set_rip(HOST_CODE);
    s.set_gpr(4, 0x7000);
    cpu.mode_changed();
    cpu
}

fn memory(amd: bool) -> Rc<Shared> {
    let shared = Shared::new(GuestMemory::new(2 << 20, 2 << 20, &[]).expect("memory"));
    shared.write_u64(TABLES, (TABLES + 0x1000) | 7);
    shared.write_u64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    shared.write_u64(TABLES + 0x2000, 0x87);
    for (i, base) in [SECOND, SECOND + 0x1000, SECOND + 0x2000].into_iter().enumerate() {
        shared.write_u64(base, SECOND + 0x1000 * (i as u64 + 1) | 7);
    }
    for i in 0..512 {
        shared.write_u64(SECOND + 0x3000 + 8 * i, i << 12 | if amd { 0x67 } else { 0x37 });
    }
    shared.write_u32(VMXON_REGION, REVISION);
    shared.write_u32(REGION, REVISION);
    shared.write_u64(0x500, VMXON_REGION);
    shared.write_u64(0x508, REGION);
    let _ = shared.memory.write_bytes(MSR_MAP, &[0xff; 0x3000]);
    let _ = shared.memory.write_bytes(IO_MAP, &[0xff; 0x3000]);
    shared
}

fn place(shared: &Shared, at: u64, code: Code<'_>) {
    let mut a = CodeAssembler::new(64).expect("assembler");
    code(&mut a).expect("code");
    shared.write_bytes(at, &a.assemble(at).expect("assemble")).expect("RAM");
}

/// VMWRITE of every field that a 64-bit guest needs, from a table, as hypervisors do; `changes` come last, each by code of its own.
fn vmx_setup(a: &mut CodeAssembler, shared: &Shared, changes: &[(F, u64)]) -> Result<(), IcedError> {
    let cr0_value = (Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP).bits();
    let cr4_value = (Cr4::PAE | Cr4::VMXE).bits();
    let secondary = (secondary::EPT | secondary::VPID) as u64;
    let mut fields = vec![
        (F::PIN_BASED_CONTROLS, pin::DEFAULT1 as u64),
        (
            F::PRIMARY_CONTROLS,
            (primary::TRUE_DEFAULT1 | primary::SECONDARY_CONTROLS | primary::UNCONDITIONAL_IO_EXITING) as u64,
        ),
        (F::SECONDARY_CONTROLS, secondary),
        (F::VPID, 1),
        (F::EPT_POINTER, SECOND | 0x1e),
        (F::EXIT_CONTROLS, (exit::TRUE_DEFAULT1 | exit::HOST_ADDRESS_SPACE_SIZE) as u64),
        (F::ENTRY_CONTROLS, (entry::TRUE_DEFAULT1 | entry::IA32E_MODE_GUEST) as u64),
        (F::VMCS_LINK_POINTER, u64::MAX),
        (F::HOST_CR0, cr0_value),
        (F::HOST_CR3, TABLES),
        (F::HOST_CR4, cr4_value),
        (F::HOST_CS_SELECTOR, 8),
        (F::HOST_SS_SELECTOR, 16),
        (F::HOST_TR_SELECTOR, 24),
        (F::HOST_TR_BASE, 0x8000),
        (F::HOST_RSP, 0x7000),
        (F::HOST_RIP, EXIT_CODE),
        (F::GUEST_CR0, cr0_value),
        (F::GUEST_CR3, TABLES),
        (F::GUEST_CR4, cr4_value),
        (F::GUEST_RFLAGS, 2),
        (F::GUEST_RIP, GUEST_CODE),
        (F::GUEST_RSP, 0x6000),
        (F::GUEST_DR7, 0x400),
        (F::GUEST_LDTR_ACCESS, 0x10000),
        (F::GUEST_TR_ACCESS, 0x8b),
        (F::GUEST_TR_LIMIT, 0x67),
    ];
    for n in 0..6u8 {
        fields.push((F::GUEST_ES_SELECTOR.plus(n), if n == 1 { 8 } else { 16 }));
        fields.push((F::GUEST_ES_ACCESS.plus(n), if n == 1 { 0xa09b } else { 0xc093 }));
        fields.push((F::GUEST_ES_LIMIT.plus(n), 0xffff_ffff));
    }
    for (i, (f, value)) in fields.iter().enumerate() {
        shared.write_u64(FIELDS + 16 * i as u64, f.row().map_or(0, |r| r.encoding as u64));
        shared.write_u64(FIELDS + 16 * i as u64 + 8, *value);
    }
    a.vmxon(qword_ptr(0x500))?;
    a.vmclear(qword_ptr(0x508))?;
    a.vmptrld(qword_ptr(0x508))?;
    a.mov(rbx, FIELDS)?;
    a.mov(ecx, fields.len() as u32)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(rdx, qword_ptr(rbx))?;
    a.vmwrite(rdx, qword_ptr(rbx + 8))?;
    a.add(rbx, 16)?;
    a.dec(ecx)?;
    a.jnz(top)?;
    for (f, value) in changes {
        a.mov(rdx, f.row().map_or(0, |r| r.encoding as u64))?;
        a.mov(rax, *value)?;
        a.vmwrite(rdx, rax)?;
    }
    Ok(())
}

fn svm_setup(shared: &Shared) {
    let put = |f: V, value: u64| {
        let _ = shared.memory.write_bytes(REGION + f.offset as u64, &value.to_le_bytes()[..f.size as usize]);
    };
    for (f, value) in [
        (V::EFER, (Efer::LME | Efer::LMA | Efer::SVME).bits()),
        (V::CR0, (Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET | Cr0::WP).bits()),
        (V::CR3, TABLES),
        (V::CR4, Cr4::PAE.bits()),
        (V::RFLAGS, 2),
        (V::RIP, GUEST_CODE),
        (V::RSP, 0x6000),
        (V::CS_SELECTOR, 8),
        (V::CS_ATTRIBUTES, 0xa9b),
        (V::CS_LIMIT, 0xffff_ffff),
        (V::DS_ATTRIBUTES, 0xc93),
        (V::SS_ATTRIBUTES, 0xc93),
        (V::ES_ATTRIBUTES, 0xc93),
        (V::G_PAT, 0x0007_0406_0007_0406),
        (V::GUEST_ASID, 1),
        (V::INTERCEPT_4, 3),
        (V::INTERCEPT_3, 1 << 18 | 1 << 27 | 1 << 28 | 1 << 31),
        (V::MSRPM_BASE_PA, MSR_MAP),
        (V::IOPM_BASE_PA, IO_MAP),
        (V::NESTED_CONTROL, 1),
        (V::N_CR3, SECOND),
    ] {
        put(f, value);
    }
}

struct Ran {
    cpu: Box<Cpu>,
    caught: Caught,
}

fn run(amd: bool, wants: u32, shared: Rc<Shared>, most: u64) -> Ran {
    let caught = Caught::default();
    let mut cpu = processor(amd, 0, shared);
    let mut observer = Observer::new(wants, caught.clone());
    if amd {
        observer.watch.push(REGION);
    }
    let observer = Rc::new(RefCell::new(observer));
    cpu.observe(Some(observer.clone()));
    cpu.run(&mut NullBus, most);
    observer.borrow_mut().flush();
    Ran { cpu, caught }
}

/// A VMX hypervisor: set-up with `changes`, VMLAUNCH; at exits `handler`.
fn vmx(wants: u32, changes: &[(F, u64)], guest: Code<'_>, handler: Code<'_>) -> Ran {
    let shared = memory(false);
    place(&shared, GUEST_CODE, guest);
    place(&shared, EXIT_CODE, handler);
    let s = shared.clone();
    place(&shared, HOST_CODE, &|a| {
        vmx_setup(a, &s, changes)?;
        a.vmlaunch()?;
        a.hlt()
    });
    run(false, wants, shared, 1000)
}

/// An SVM hypervisor: `before` runs with RAX = the VMCB, then VMRUN, then `after`.
fn svm(wants: u32, before: Code<'_>, guest: Code<'_>, after: Code<'_>) -> Ran {
    let shared = memory(true);
    svm_setup(&shared);
    place(&shared, GUEST_CODE, guest);
    place(&shared, HOST_CODE, &|a| {
        a.mov(rax, REGION)?;
        before(a)?;
        a.vmrun()?;
        after(a)?;
        a.hlt()
    });
    run(true, wants, shared, 1000)
}

fn nothing(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}
fn cpuid(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cpuid()
}
fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.hlt()
}

/// Set a field of the VMCB in code.
fn put32(a: &mut CodeAssembler, f: V, value: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(rax + f.offset as i32), value as i32)
}

// ---- explanations ----------------------------------------------------------------------------------------------------------

#[test]
fn a_failed_vm_entry_names_its_writer() {
    let ran = vmx(want::EXPLAIN, &[(F::GUEST_RFLAGS, 0)], &cpuid, &halt);
    let incidents = ran.caught.incidents.borrow();
    assert_eq!(incidents.len(), 1);
    let i = &incidents[0];
    let What::Check { name, number, .. } = i.what else { panic!("{:?}", i.what) };
    assert_eq!((name, number), ("rflags-reserved", 0x8000_0021));
    assert_eq!((i.level, i.fields[0].name, i.fields[0].value), (1, "GUEST_RFLAGS", 0));
    let Written::By(w) = i.fields[0].written else { panic!("{:?}", i.fields[0].written) };
    // The VMWRITE before VMLAUNCH, three bytes of it.
    assert_eq!((w.rip, w.value, w.level), (i.rip - 3, 0, 1));
    assert_eq!(i.remedies, [Remedy { field: "GUEST_RFLAGS", bit: 1, bit_name: Some("always 1"), set: true }]);
    assert_eq!(&i.code[..3], [0x0f, 0x01, 0xc2]);
    assert!(!i.stack.is_empty());
}

#[test]
fn a_control_check_names_every_field_that_has_a_say() {
    let ran = vmx(want::EXPLAIN, &[(F::PIN_BASED_CONTROLS, (pin::DEFAULT1 | pin::VIRTUAL_NMIS) as u64)], &cpuid, &halt);
    let incidents = ran.caught.incidents.borrow();
    let What::Check { name, number, .. } = incidents[0].what else { panic!() };
    assert_eq!((name, number), ("virtual-nmis-need-nmi-exiting", 7));
    assert!(incidents[0].fields[0].allowed.is_some());
    assert_eq!(incidents[0].remedies.len(), 2);
}

#[test]
fn what_an_exit_saved_is_not_called_written() {
    // The handler resumes with a bad activity state; RIP's value is the exit's.
    let ran = vmx(want::EXPLAIN, &[], &cpuid, &|a| {
        a.mov(rdx, 0x4826u64)?;
        a.mov(rax, 9u64)?;
        a.vmwrite(rdx, rax)?;
        a.vmresume()
    });
    let incidents = ran.caught.incidents.borrow();
    let What::Check { name, .. } = incidents[0].what else { panic!() };
    assert_eq!(name, "activity");
    let observer = ran.cpu.observer.clone().expect("an observer");
    let observer = observer.borrow();
    assert!(matches!(ran.cpu.vmcs_written(F::GUEST_RIP), Written::SavedByExit(e) if e.reason == 10));
    assert!(matches!(ran.cpu.vmcs_written(F::HOST_RIP), Written::By(_)));
    // Failed entries go on for ever here: each cause is told once, and counted.
    assert_eq!(incidents.len(), 1);
    assert!(observer.causes().any(|(name, _, n)| name == "activity" && n > 3));
}

#[test]
fn vmfail_names_the_instruction_and_its_operand() {
    let shared = memory(false);
    place(&shared, HOST_CODE, &|a| {
        a.vmxon(qword_ptr(0x500))?;
        a.vmlaunch()?;
        a.vmptrld(qword_ptr(0x500))?;
        a.vmptrld(qword_ptr(0x508))?;
        a.mov(rdx, 0x5555u64)?;
        a.vmread(rax, rdx)?;
        a.vmresume()?;
        a.hlt()
    });
    let ran = run(false, want::EXPLAIN, shared, 100);
    let told: Vec<_> = ran
        .caught
        .incidents
        .borrow()
        .iter()
        .map(|i| match i.what {
            What::VmFail { instruction, number, operand } => (instruction, number, operand),
            _ => panic!("{:?}", i.what),
        })
        .collect();
    assert_eq!(
        told,
        [
            ("VMLAUNCH", None, None),
            // Without a current VMCS this is VMfailInvalid; the error that it stands for is told all the same.
            ("VMPTRLD", Some(10), Some(VMXON_REGION)),
            ("VMREAD", Some(12), Some(0x5555)),
            ("VMRESUME", Some(5), None),
        ]
    );
}

#[test]
fn a_refused_vmrun_names_its_writer() {
    let ran = svm(want::EXPLAIN | want::VMCB_WRITES, &|a| put32(a, V::GUEST_ASID, 0), &cpuid, &nothing);
    let incidents = ran.caught.incidents.borrow();
    assert_eq!(incidents.len(), 1);
    let i = &incidents[0];
    let What::Check { name, number, .. } = i.what else { panic!() };
    assert_eq!((name, number, i.level), ("ASID", u64::MAX, 1));
    let Written::By(w) = i.fields[0].written else { panic!("{:?}", i.fields[0].written) };
    assert_eq!((w.rip, w.value, w.level), (HOST_CODE + 10, 0, 1));
    assert_eq!(i.structure, Some(REGION));
    assert_eq!(ran.cpu.counters.vm_entries, 0);
}

/// A guest without an IDT divides by zero.
fn triple(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(ecx, ecx)?;
    a.div(ecx)
}

#[test]
fn triple_faults_show_their_chain() {
    let check = |ran: &Ran, level: u8| {
        let incidents = ran.caught.incidents.borrow();
        let i = incidents.iter().find(|i| matches!(i.what, What::TripleFault { .. })).expect("a triple fault");
        let What::TripleFault { chain, exits } = &i.what else { panic!() };
        assert_eq!((i.level, *exits), (level, level == 2));
        // #DE without a gate is #GP, and that #DF, and that the end.
        assert_eq!(chain.iter().map(|l| l.event.vector).collect::<Vec<_>>(), [0, 8]);
        assert_eq!(chain[0].fault.vector, 13);
    };
    check(&vmx(want::EXPLAIN, &[], &triple, &halt), 2);
    check(&svm(want::EXPLAIN, &nothing, &triple, &nothing), 2);
    for amd in [false, true] {
        let shared = memory(amd);
        place(&shared, HOST_CODE, &triple);
        check(&run(amd, want::EXPLAIN, shared, 100), 1);
    }
}

// ---- the trace --------------------------------------------------------------------------------------------------------------

#[test]
fn traces_tell_both_levels() {
    let intel = vmx(want::TRACE, &[], &cpuid, &|a| {
        a.mov(rdx, 0x4402u64)?;
        a.vmread(rax, rdx)?;
        a.mov(ecx, 0x10u32)?;
        a.rdmsr()?;
        a.out(0x80, al)?;
        a.hlt()
    });
    let kinds = |ran: &Ran| -> Vec<(Kind, u8)> {
        ran.caught.records.borrow().iter().filter(|r| r.kind != Kind::Vmwrite).map(|r| (r.kind, r.level)).collect()
    };
    assert_eq!(
        kinds(&intel),
        [(Kind::Entry, 2), (Kind::Code, 2), (Kind::Exit, 2), (Kind::Vmread, 1), (Kind::Rdmsr, 1), (Kind::Out, 1)]
    );
    let records = intel.caught.records.borrow();
    let exit = records.iter().find(|r| r.kind == Kind::Exit).expect("an exit");
    assert_eq!((exit.code, exit.rip, exit.structure), (10, GUEST_CODE, REGION));
    let amd = svm(want::TRACE, &|a| put32(a, V::TLB_CONTROL, 1), &cpuid, &nothing);
    assert_eq!(kinds(&amd), [(Kind::Entry, 2), (Kind::Flush, 2), (Kind::Code, 2), (Kind::Exit, 2)]);
    let records = amd.caught.records.borrow();
    let write = records.iter().find(|r| r.kind == Kind::Vmwrite).expect("a store to the VMCB");
    assert_eq!((write.code, write.a, write.level), (V::TLB_CONTROL.offset as u64, 1, 1));
}

#[test]
fn watching_changes_nothing() {
    let digest = |ran: &Ran| (ran.cpu.now(), ran.cpu.state.regs, ran.cpu.state.rflags(), ran.cpu.counters.vm_exits);
    for wants in [want::TRACE, want::EXPLAIN, want::STATISTICS, want::LINT, u32::MAX] {
        assert_eq!(digest(&vmx(0, &[], &cpuid, &halt)), digest(&vmx(wants, &[], &cpuid, &halt)));
        let before: Code<'_> = &|a| put32(a, V::TLB_CONTROL, 1);
        assert_eq!(digest(&svm(0, before, &cpuid, &nothing)), digest(&svm(wants, before, &cpuid, &nothing)));
    }
}

#[test]
fn statistics_add_up() {
    let ran = vmx(want::STATISTICS, &[], &cpuid, &|a| {
        a.nop()?;
        a.vmresume()
    });
    let observer = ran.cpu.observer.clone().expect("an observer");
    let s = observer.borrow();
    let exits = s.statistics.exits();
    assert_eq!(exits.len(), 1);
    let (key, sum) = exits[0];
    assert_eq!((key.reason, key.level, sum.count), (10, 2, ran.cpu.counters.vm_exits));
    assert_eq!(s.statistics.guest_rips(), [(2, GUEST_CODE, sum.count)]);
    assert_eq!(s.statistics.handlers()[0].0, EXIT_CODE + 1);
    assert!(sum.host >= sum.count - 1);
}

// ---- lints ------------------------------------------------------------------------------------------------------------------

/// A guest that loads from 0x60000 again and again, with an exit in between.
fn loads(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbx, 0x60000u64)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(rsi, qword_ptr(rbx))?;
    a.cpuid()?;
    a.mov(rbx, 0x60000u64)?;
    a.jmp(top)
}

/// A guest that calls a RET at 0x60000 again and again, with an exit in between; there is one at 0x61000 too.
fn calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(byte_ptr(0x60000u64), 0xc3)?;
    a.mov(byte_ptr(0x61000u64), 0xc3)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(rbx, 0x60000u64)?;
    a.call(rbx)?;
    a.cpuid()?;
    a.jmp(top)
}

#[test]
fn lint_stale_translation_of_data() {
    lint_stale_translation(&loads);
}

#[test]
fn lint_stale_translation_of_code() {
    lint_stale_translation(&calls);
}

fn lint_stale_translation(guest: Code<'_>) {
    let remap = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.mov(rdx, 0x61037u64)?;
        a.mov(qword_ptr(SECOND + 0x3000 + 8 * 0x60), rdx)
    };
    let next = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.mov(rdx, 0x681eu64)?;
        a.vmread(rcx, rdx)?;
        a.add(rcx, 2)?;
        a.vmwrite(rdx, rcx)?;
        a.vmresume()
    };
    let bad = vmx(want::LINT, &[], guest, &|a| {
        remap(a)?;
        next(a)
    });
    assert_eq!(bad.caught.found(Lint::StaleTranslation).len(), 1, "{:?}", bad.caught.findings.borrow());
    // The descriptor: EPTP, zero.
    let good = vmx(want::LINT, &[], guest, &|a| {
        remap(a)?;
        a.mov(rdx, SECOND | 0x1e)?;
        a.mov(qword_ptr(0x600), rdx)?;
        a.mov(rdx, 0u64)?;
        a.mov(qword_ptr(0x608), rdx)?;
        a.mov(rdx, 1u64)?;
        a.invept(rdx, xmmword_ptr(0x600))?;
        next(a)
    });
    assert!(good.caught.found(Lint::StaleTranslation).is_empty());
    let amd = |flush: u32| {
        svm(want::LINT, &nothing, guest, &|a| {
            a.mov(rdx, 0x61067u64)?;
            a.mov(qword_ptr(SECOND + 0x3000 + 8 * 0x60), rdx)?;
            a.mov(rcx, qword_ptr(rax + V::NRIP.offset as i32))?;
            a.mov(qword_ptr(rax + V::RIP.offset as i32), rcx)?;
            a.mov(byte_ptr(rax + V::TLB_CONTROL.offset as i32), flush as i32)?;
            a.vmrun()
        })
    };
    assert_eq!(amd(0).caught.found(Lint::StaleTranslation).len(), 1);
    assert!(amd(1).caught.found(Lint::StaleTranslation).is_empty());
}

/// VMXON, and a current VMCS; `clear`: no longer an active one.
fn activate(a: &mut CodeAssembler, clear: bool) -> Result<(), IcedError> {
    a.vmxon(qword_ptr(0x500))?;
    a.vmptrld(qword_ptr(0x508))?;
    if clear { a.vmclear(qword_ptr(0x508)) } else { Ok(()) }
}

#[test]
fn lint_vmcs_active_elsewhere() {
    let both = |clear: bool| {
        let shared = memory(false);
        place(&shared, HOST_CODE, &|a| {
            activate(a, clear)?;
            a.hlt()
        });
        let caught = Caught::default();
        let observer = Rc::new(RefCell::new(Observer::new(want::LINT, caught.clone())));
        for id in 0..2 {
            let mut cpu = processor(false, id, shared.clone());
            cpu.observe(Some(observer.clone()));
            cpu.run(&mut NullBus, 50);
        }
        caught.found(Lint::VmcsActiveElsewhere).len()
    };
    assert_eq!(both(false), 1);
    assert_eq!(both(true), 0);
}

#[test]
fn lint_direct_vmcs_write() {
    let write = |clear: bool| {
        let shared = memory(false);
        place(&shared, HOST_CODE, &|a| {
            activate(a, clear)?;
            a.mov(dword_ptr(REGION + 0x20), 1)?;
            a.hlt()
        });
        run(false, want::LINT, shared, 50).caught.found(Lint::DirectVmcsWrite).len()
    };
    assert_eq!(write(false), 1);
    assert_eq!(write(true), 0);
}

#[test]
fn lint_clean_bit() {
    let second = |bits: u32| {
        svm(want::LINT, &nothing, &cpuid, &|a| {
            put32(a, V::CR3, TABLES as u32 | 8)?;
            put32(a, V::CLEAN_BITS, bits)?;
            a.vmrun()
        })
    };
    let ran = second(clean::ALL);
    let bad = ran.caught.found(Lint::CleanBit);
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(bad[0].contains("CR3"), "{bad:?}");
    assert!(matches!(ran.caught.findings.borrow()[0].written, Some(Written::By(_))));
    assert!(second(clean::ALL & !clean::CR).caught.found(Lint::CleanBit).is_empty());
}

#[test]
fn lint_undefined_exit_field() {
    let read = |field: u64| {
        vmx(want::LINT, &[], &cpuid, &|a| {
            a.mov(rdx, field)?;
            a.vmread(rax, rdx)?;
            a.hlt()
        })
    };
    // GUEST_PHYSICAL_ADDRESS after CPUID; the instruction length is defined.
    assert_eq!(read(0x2400).caught.found(Lint::UndefinedExitField).len(), 1);
    assert!(read(0x440c).caught.found(Lint::UndefinedExitField).is_empty());
    let load = |f: V| svm(want::LINT, &nothing, &cpuid, &|a| a.mov(rcx, qword_ptr(rax + f.offset as i32)));
    assert_eq!(load(V::EXITINFO1).caught.found(Lint::UndefinedExitField).len(), 1);
    assert!(load(V::EXITCODE).caught.found(Lint::UndefinedExitField).is_empty());
}

#[test]
fn lint_host_state_unmapped() {
    let with_rsp = |value: u64| vmx(want::LINT | want::EXPLAIN, &[(F::HOST_RSP, value)], &cpuid, &halt).caught;
    let bad = with_rsp(0x4000_0000);
    assert_eq!(bad.found(Lint::HostStateUnmapped).len(), 1);
    assert!(matches!(bad.findings.borrow()[0].written, Some(Written::By(_))));
    assert!(with_rsp(0x7000).found(Lint::HostStateUnmapped).is_empty());
    let amd = |value: u64| svm(want::LINT, &|a| a.mov(rsp, value), &cpuid, &nothing).caught;
    assert_eq!(amd(0x4000_0000).found(Lint::HostStateUnmapped).len(), 1);
    assert!(amd(0x7000).found(Lint::HostStateUnmapped).is_empty());
}

#[test]
fn lint_holes() {
    let bitmaps = (primary::TRUE_DEFAULT1 | primary::SECONDARY_CONTROLS | primary::MSR_BITMAPS | primary::IO_BITMAPS) as u64;
    let intel = |msr_byte: (u64, u8), io_byte: (u64, u8)| {
        let shared = memory(false);
        let _ = shared.memory.write::<u8>(MSR_MAP + msr_byte.0, msr_byte.1);
        let _ = shared.memory.write::<u8>(IO_MAP + io_byte.0, io_byte.1);
        place(&shared, GUEST_CODE, &cpuid);
        place(&shared, EXIT_CODE, &halt);
        let s = shared.clone();
        place(&shared, HOST_CODE, &|a| {
            let maps = [
                (F::PRIMARY_CONTROLS, bitmaps),
                (F::MSR_BITMAPS, MSR_MAP),
                (F::IO_BITMAP_A, IO_MAP),
                (F::IO_BITMAP_B, IO_MAP + 0x1000),
            ];
            vmx_setup(a, &s, &maps)?;
            a.vmlaunch()?;
            a.hlt()
        });
        let caught = run(false, want::LINT, shared, 1000).caught;
        (caught.found(Lint::MsrHole), caught.found(Lint::IoHole))
    };
    // Writes of 0xc0000080: byte 0xc10 of the bitmap, bit 0. Port 0xcf9: bit 1 of byte 0x19f.
    let (msrs, ports) = intel((0xc10, 0xfe), (0x19f, 0xfd));
    assert_eq!((msrs.len(), ports.len()), (1, 1));
    assert!(msrs[0].contains("EFER") && ports[0].contains("0xcf9"));
    let (msrs, ports) = intel((0xc10, 0xff), (0x19f, 0xff));
    assert!(msrs.is_empty() && ports.is_empty());
    let amd = |msr_byte: (u64, u8)| {
        let shared = memory(true);
        svm_setup(&shared);
        let _ = shared.memory.write::<u8>(MSR_MAP + msr_byte.0, msr_byte.1);
        place(&shared, GUEST_CODE, &cpuid);
        place(&shared, HOST_CODE, &|a| {
            a.mov(rax, REGION)?;
            a.vmrun()?;
            a.hlt()
        });
        run(true, want::LINT, shared, 100).caught.found(Lint::MsrHole)
    };
    // Writes of 0x1b: bit 0x37.
    assert_eq!(amd((6, 0x7f)).len(), 1);
    assert!(amd((6, 0xff)).is_empty());
}

#[test]
fn writers_stay_with_their_vmcs() {
    // A wrong field is written, the VMCS cleared, and loaded again before the entry.
    let shared = memory(false);
    let s = shared.clone();
    place(&shared, HOST_CODE, &|a| {
        vmx_setup(a, &s, &[(F::GUEST_RFLAGS, 0)])?;
        a.vmclear(qword_ptr(0x508))?;
        a.vmptrld(qword_ptr(0x508))?;
        a.vmlaunch()?;
        a.hlt()
    });
    let ran = run(false, want::EXPLAIN, shared, 1000);
    let incidents = ran.caught.incidents.borrow();
    assert!(
        matches!(incidents[0].fields[0].written, Written::By(w) if w.value == 0 && w.rip < incidents[0].rip),
        "{:?}",
        incidents[0]
    );
}

#[test]
fn instructions_without_their_set_up_are_explained() {
    let told = |amd: bool, change: fn(&mut Cpu), code: Code<'_>| -> (&'static str, u8, Vec<&'static str>) {
        let shared = memory(amd);
        place(&shared, HOST_CODE, code);
        let caught = Caught::default();
        let mut cpu = processor(amd, 0, shared);
        change(&mut cpu);
        cpu.mode_changed();
        cpu.observe(Some(Rc::new(RefCell::new(Observer::new(want::EXPLAIN, caught.clone())))));
        cpu.run(&mut NullBus, 20);
        let incidents = caught.incidents.borrow();
        match &incidents[0].what {
            What::Refused { instruction, vector, why } => (*instruction, *vector, why.clone()),
            other => panic!("{other:?}"),
        }
    };
    let (instruction, vector, why) = told(false, |c| c.state.msrs.feature_control = 0, &|a| a.vmxon(qword_ptr(0x500)));
    assert_eq!((instruction, vector), ("VMXON", 13));
    assert!(why.len() == 1 && why[0].contains("not locked"), "{why:?}");
    let (instruction, vector, why) = told(false, |_| {}, &|a| a.vmptrld(qword_ptr(0x508)));
    assert_eq!((instruction, vector, why.len()), ("VMPTRLD", 6, 1));
    let (instruction, vector, why) = told(true, |c| c.state.efer -= Efer::SVME, &|a| a.vmrun());
    assert_eq!((instruction, vector), ("VMRUN", 6));
    assert!(why[0].contains("SVME"), "{why:?}");
}
