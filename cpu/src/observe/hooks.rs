//! What the seams call. Everything here is cold: nobody calls it while `Cpu::observing` is zero.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use undervisor_core::{Cr4, Efer, Event, EventKind, Exception};
use undervisor_svm::checks::Check as SvmCheck;
use undervisor_svm::fields::Row;
use undervisor_vmx::checks::state::NO_VMCS;
use undervisor_vmx::checks::{Context, Failure, remedy};
use undervisor_vmx::controls::{feature_control, interruption};
use undervisor_vmx::reason::basic;
use undervisor_vmx::{ExitInformation, Field, Memory};

use super::incident::{FieldPicture, Link, Remedy, What};
use super::provenance::{ExitMark, Write, Written};
use super::record::{Kind, NO_STRUCTURE, Record};
use super::statistics::ExitKey;
use super::want;
use crate::cpu::Cpu;
use crate::paging::{NestedCause, NestedFault};

/// Who has stores to VMCBs watched.
const WATCHES_VMCB: u32 = want::VMCB_WRITES | want::VMWRITE | want::LINT;
/// Fields besides the named one that an explanation shows.
const OTHER_FIELDS: usize = 4;

impl Cpu {
    /// RIP of the instruction in flight, or of the boundary.
    #[allow(unsafe_code)]
    pub(super) fn observed_rip(&self) -> u64 {
        if self.current.is_null() { self.state.rip() } else { self.instruction_rip }
    }

    /// The instruction at `rip`, decoded anew.
    pub(super) fn observed_instruction(&self, rip: u64) -> Instruction {
        let mut bytes = [0; 15];
        let n = self.view().bytes(&self.shared.memory, self.linear_ip(rip), &mut bytes);
        let options = if self.is_amd() { DecoderOptions::AMD } else { DecoderOptions::NONE };
        Decoder::with_ip(self.mode.bits(), &bytes[..n], rip, options).decode()
    }

    /// Address of the VMCS or VMCB that is in use.
    pub(super) fn structure(&self) -> u64 {
        if self.is_amd() { self.virt.svm.vmcb.address().unwrap_or(NO_STRUCTURE) } else { self.virt.vmx.current }
    }

    fn record(&self, kind: Kind, rip: u64, code: u64, a: u64, b: u64, c: u64) -> Record {
        let structure = if self.virt.guest || !matches!(kind, Kind::In | Kind::Out | Kind::Rdmsr | Kind::Wrmsr) {
            self.structure()
        } else {
            NO_STRUCTURE
        };
        Record {
            now: self.now(),
            rip,
            structure,
            code,
            a,
            b,
            c,
            kind,
            cpu: self.id as u8,
            level: self.level_number(),
            amd: self.is_amd(),
        }
    }

    fn trace(&self, record: Record) {
        if let Some(o) = &self.observer {
            o.borrow_mut().push(record);
        }
    }

    /// Put the bytes of the instruction at `rip` into the trace, the first time.
    fn trace_code(&self, rip: u64) {
        let Some(o) = &self.observer else { return };
        if !o.borrow_mut().is_new(rip, self.level_number()) {
            return;
        }
        let mut bytes = [0; 16];
        let n = self.view().bytes(&self.shared.memory, self.linear_ip(rip), &mut bytes[..15]);
        if n > 0 {
            let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| bytes[i + k]));
            let bits = self.mode.bits() as u64;
            self.trace(self.record(Kind::Code, rip, n as u64, word(0), word(8), bits));
        }
    }

    // ---- exits and entries --------------------------------------------------------------------------------------------------

    fn exited(&mut self, reason: u64, rip: u64, numbers: [u64; 3]) {
        let structure = self.structure();
        if self.observing & want::EXITS != 0 {
            self.trace_code(rip);
            self.trace(self.record(Kind::Exit, rip, reason, numbers[0], numbers[1], numbers[2]));
        }
        let now = self.now();
        let Some(o) = &self.observer else { return };
        let o = &mut *o.borrow_mut();
        if self.observing & want::STATISTICS != 0 {
            o.statistics.exit(self.id, now, ExitKey { reason, level: 2, structure }, rip);
        }
    }

    /// A VM exit is about to be recorded.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_vmx_exit(&mut self, i: &ExitInformation, rip: u64) {
        let mark = ExitMark { now: self.now(), reason: i.reason as u64, cpu: self.id as u8 };
        if let Some(writes) = &mut self.virt.vmx.writes {
            writes.exited(mark);
        }
        if self.observing & (want::EXITS | want::STATISTICS) != 0 {
            let numbers = [i.qualification, i.guest_physical_address, i.interruption_information as u64];
            self.exited(i.reason as u64, rip, numbers);
        }
    }

    /// A #VMEXIT is about to be recorded.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_svm_exit(
        &mut self,
        exit: &undervisor_svm::exit::ExitInformation,
        rip: u64,
        delivering: Option<&Event>,
    ) {
        if self.observing & (want::EXITS | want::STATISTICS) != 0 {
            let event = delivering.map_or(0, |e| undervisor_svm::exit::interrupted(e).0);
            self.exited(exit.code, rip, [exit.info1, exit.info2, event as u64]);
        }
        if self.observing & WATCHES_VMCB == 0 {
            return;
        }
        let mark = ExitMark { now: self.now(), reason: exit.code, cpu: self.id as u8 };
        let index = self.virt.svm.vmcb.address().and_then(|a| self.shared.memory.page_index(a));
        if let (Some(o), Some(index)) = (&self.observer, index) {
            o.borrow_mut().provenance.vmcb_exit(index, mark);
        }
    }

    /// A guest has been entered: its state is loaded. `now` and `from`: time and RIP of the instruction that did it.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_entry(&mut self, now: u64, how: u64, from: u64, injected: u64) {
        if self.observing & want::ENTRIES != 0 {
            let mut record = self.record(Kind::Entry, self.state.rip(), how, from, injected, 0);
            record.level = 2;
            record.now = now;
            self.trace(record);
        }
        if self.observing & want::STATISTICS != 0
            && let Some(o) = &self.observer
        {
            o.borrow_mut().statistics.entry(self.id, now, from);
        }
    }

    // ---- failures -----------------------------------------------------------------------------------------------------------

    /// Where the value of a field of the current VMCS comes from.
    pub(super) fn vmcs_written(&self, field: Field) -> Written {
        self.virt.vmx.writes.as_ref().map_or(Written::NotWatched, |w| w.of(field))
    }

    /// The current VMCS is about to be `next` (or none, [`NO_VMCS`]).
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_vmcs_switch(&mut self, next: u64) {
        let Some(o) = &self.observer else { return };
        let provenance = &mut o.borrow_mut().provenance;
        let x = &mut self.virt.vmx;
        if let Some(writes) = x.writes.take() {
            provenance.put(x.current, writes);
        }
        if next != NO_VMCS {
            x.writes = Some(provenance.take(next));
        }
    }

    /// VMWRITE to the current VMCS by its handler of its own.
    #[inline(never)]
    pub(crate) fn note_vmwrite(&mut self, op: crate::op::OpRef, field: Field, value: u64) {
        let rip = self.state.rip().wrapping_add(op.offset as u64);
        let mut write = self.write_mark(rip, value);
        write.now += op.index as u64;
        if let Some(writes) = &mut self.virt.vmx.writes {
            writes.wrote(field, write);
        }
    }

    fn vmcs_picture(&mut self, field: Field) -> FieldPicture {
        use undervisor_vmx::describe;
        let value = self.virt.vmx.vmcs.get(field);
        let written = self.vmcs_written(field);
        FieldPicture {
            name: field.row().map_or("?", |r| r.name),
            value,
            layout: describe::layout(field),
            meaning: describe::value_name(field, value),
            written,
            memory: None,
            allowed: describe::allowed(field, &self.vmx_capabilities()),
        }
    }

    /// A VM-entry check failed. The state is still that before the instruction.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_vmx_refused(&mut self, failure: &Failure, number: u64) {
        let rip = self.observed_rip();
        if self.observing & want::ENTRIES != 0 {
            self.trace(self.record(Kind::EntryFailure, rip, number, rip, 0, 0));
        }
        let what = What::Check {
            name: failure.check.name,
            section: failure.table.section,
            rule: failure.check.rule,
            number,
            qualification: failure.check.qualification,
        };
        let current = self.virt.vmx.current;
        let failure = *failure;
        self.report(what, rip, Some(current), |cpu| {
            let shared = cpu.shared.clone();
            let capabilities = cpu.vmx_capabilities();
            let memory: &dyn Memory = &*shared;
            let vmcs = &cpu.virt.vmx.vmcs;
            let context = Context { vmcs, capabilities: &capabilities, state: &cpu.state, memory, current };
            let found = remedy::remedies(&failure, &context);
            let mut fields = vec![failure.check.field];
            for r in &found {
                if !fields.contains(&r.field) && fields.len() <= OTHER_FIELDS {
                    fields.push(r.field);
                }
            }
            let remedies = found
                .iter()
                .filter(|r| fields.contains(&r.field))
                .map(|r| Remedy {
                    field: r.field.row().map_or("?", |row| row.name),
                    bit: r.bit,
                    bit_name: undervisor_core::describe::name_of(r.bit, undervisor_vmx::describe::layout(r.field)),
                    set: r.set,
                })
                .collect();
            (fields.into_iter().map(|f| cpu.vmcs_picture(f)).collect(), remedies)
        });
    }

    /// Entry `n` (from 1) of the VM-entry MSR-load area could not be loaded.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_msr_load_failed(&mut self, n: u64, area: u64, rip: u64) {
        let shared = self.shared.clone();
        let address = area + 16 * n.saturating_sub(1);
        let what =
            What::MsrLoad { entry: n, msr: shared.read_u64(address) as u32, value: shared.read_u64(address + 8), address };
        let current = self.virt.vmx.current;
        self.report(what, rip, Some(current), |cpu| {
            let fields = [Field::ENTRY_MSR_LOAD_ADDRESS, Field::ENTRY_MSR_LOAD_COUNT];
            (fields.into_iter().map(|f| cpu.vmcs_picture(f)).collect(), Vec::new())
        });
    }

    /// VMfailInvalid or VMfailValid, but for what [`Cpu::observe_vmx_refused`] tells.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_vm_fail(&mut self, number: Option<u32>) {
        let rip = self.observed_rip();
        let insn = self.observed_instruction(rip);
        let instruction = vmx_instruction(insn.mnemonic());
        let register = |cpu: &Cpu, r: iced_x86::Register| cpu.gpr(r);
        let operand = match insn.mnemonic() {
            Mnemonic::Vmread => Some(register(self, insn.op1_register())),
            Mnemonic::Vmwrite => Some(register(self, insn.op0_register())),
            Mnemonic::Invept | Mnemonic::Invvpid => Some(register(self, insn.op0_register())),
            Mnemonic::Vmptrld | Mnemonic::Vmclear | Mnemonic::Vmxon if insn.op0_kind() == OpKind::Memory => {
                let at = insn.virtual_address(0, 0, |r, _, _| Some(if r.is_segment_register() { 0 } else { self.gpr(r) }));
                let mut bytes = [0; 8];
                at.filter(|&at| self.view().bytes(&self.shared.memory, at, &mut bytes) == 8).map(|_| u64::from_le_bytes(bytes))
            }
            _ => None,
        };
        let current = self.virt.vmx.current;
        let structure = (current != NO_VMCS).then_some(current);
        self.report(What::VmFail { instruction, number, operand }, rip, structure, |_| (Vec::new(), Vec::new()));
    }

    /// Level 1 met #UD or #GP: if at an instruction of its hypervisor, say what that lacks.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_refused_instruction(&mut self, vector: u8) {
        let rip = self.state.rip();
        let insn = self.observed_instruction(rip);
        let s = &self.state;
        let mut why = Vec::new();
        let instruction = match insn.mnemonic() {
            Mnemonic::Vmxon => {
                if !self.vmx_model() {
                    why.push("the processor model has no VMX (CPUID.1:ECX.VMX, bit 5)");
                }
                if !s.cr4.contains(Cr4::VMXE) {
                    why.push("CR4.VMXE (bit 13) is clear");
                }
                let control = s.msrs.feature_control;
                if control & feature_control::LOCK == 0 {
                    why.push("IA32_FEATURE_CONTROL (0x3a) is not locked: set its bits 0 and 2 first");
                } else if control & feature_control::VMXON_OUTSIDE_SMX == 0 {
                    why.push("IA32_FEATURE_CONTROL (0x3a) is locked with bit 2, VMX outside SMX, clear");
                }
                if !undervisor_vmx::Capabilities::cr0_allowed(s.cr0.bits(), false) {
                    why.push("CR0 lacks PE, NE or PG, which IA32_VMX_CR0_FIXED0 demands");
                }
                "VMXON"
            }
            m @ (Mnemonic::Vmclear | Mnemonic::Vmptrld | Mnemonic::Vmptrst | Mnemonic::Vmread | Mnemonic::Vmwrite)
            | m @ (Mnemonic::Vmlaunch | Mnemonic::Vmresume | Mnemonic::Vmxoff | Mnemonic::Invept | Mnemonic::Invvpid) => {
                if !self.virt.vmx.on {
                    why.push("the processor is not in VMX operation: VMXON comes first");
                }
                vmx_instruction(m)
            }
            m @ (Mnemonic::Vmrun
            | Mnemonic::Vmload
            | Mnemonic::Vmsave
            | Mnemonic::Stgi
            | Mnemonic::Clgi
            | Mnemonic::Invlpga) => {
                if !s.efer.contains(Efer::SVME) {
                    why.push("EFER.SVME (bit 12) is clear");
                }
                if matches!(m, Mnemonic::Vmrun | Mnemonic::Vmload | Mnemonic::Vmsave) {
                    let address = s.gpr(undervisor_core::regs::RAX);
                    if address & 0xfff != 0 {
                        why.push("the VMCB's address in rAX is not 4 KiB-aligned");
                    } else if address >> self.model.physical_bits != 0 {
                        why.push("the VMCB's address in rAX lies beyond the physical-address width");
                    }
                }
                svm_instruction(m)
            }
            _ => return,
        };
        if !s.protected() || s.virtual_8086() {
            why.push("the processor is in real or virtual-8086 mode");
        } else if s.long_mode() && !s.mode64() && !self.is_amd() {
            why.push("the processor is in compatibility mode");
        }
        if s.cpl != 0 {
            why.push("CPL is not 0");
        }
        self.report(What::Refused { instruction, vector, why }, rip, None, |_| (Vec::new(), Vec::new()));
    }

    /// VMX abort.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_abort(&mut self, indicator: u32) {
        let (rip, current) = (self.state.rip(), self.virt.vmx.current);
        let amd = self.is_amd();
        self.report(What::Abort { indicator }, rip, (!amd).then_some(current), |cpu| {
            if amd {
                return (Vec::new(), Vec::new());
            }
            let fields = match indicator {
                undervisor_vmx::reason::abort::HOST_PDPTES => [Field::HOST_CR3, Field::HOST_CR4],
                undervisor_vmx::reason::abort::SAVING_GUEST_MSRS => {
                    [Field::EXIT_MSR_STORE_ADDRESS, Field::EXIT_MSR_STORE_COUNT]
                }
                _ => [Field::EXIT_MSR_LOAD_ADDRESS, Field::EXIT_MSR_LOAD_COUNT],
            };
            (fields.into_iter().map(|f| cpu.vmcs_picture(f)).collect(), Vec::new())
        });
    }

    fn vmcb_picture(&mut self, row: &Row) -> FieldPicture {
        let field = row.field;
        let vmcb = &self.virt.svm.vmcb;
        let value = vmcb.get(field);
        let address = vmcb.address();
        let index = address.and_then(|a| self.shared.memory.page_index(a));
        let written = match &self.observer {
            Some(o) => o.borrow().provenance.of_vmcb(index, field),
            None => Written::NotWatched,
        };
        let memory = address
            .and_then(|a| self.shared.memory.read::<u64>(a + (field.offset as u64 & !7)))
            .map(|word| word >> (8 * (field.offset as u32 % 8)) & (u64::MAX >> (64 - 8 * field.size as u32)))
            .filter(|&m| m != value);
        let limits = self.svm_limits();
        let allowed = match field {
            undervisor_svm::Field::CR4 => Some((0, limits.cr4.bits(), "the processor model")),
            undervisor_svm::Field::EFER => {
                use undervisor_core::Efer;
                Some((Efer::SVME.bits(), (limits.efer | Efer::LMA | Efer::SVME).bits(), "the processor model"))
            }
            _ => None,
        };
        let layout = undervisor_svm::describe::layout(field);
        FieldPicture { name: row.name, value, layout, meaning: None, written, memory, allowed }
    }

    /// VMRUN found the guest's PDPTEs invalid. The host's state is in force.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_svm_pdptes(&mut self, address: Option<u64>, rip: u64) {
        let _ = address;
        self.observe_svm_refused(None, rip);
    }

    /// A consistency check of VMRUN failed (`None`: the PDPTEs). The host's state is in force.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_svm_refused(&mut self, failed: Option<&'static SvmCheck>, rip: u64) {
        use undervisor_svm::{checks, describe};
        if self.observing & want::ENTRIES != 0 {
            self.trace(self.record(Kind::EntryFailure, rip, undervisor_svm::reason::INVALID, rip, 0, 0));
        }
        let what = What::Check {
            name: failed.map_or("PDPTEs", |c| c.name),
            section: failed.map_or("Nested Paging: Legacy PAE Mode", |_| "Canonicalization and Consistency Checks"),
            rule: failed.map_or("with PAE paging, no PDPTE that is present sets a reserved bit", |c| c.rule),
            number: undervisor_svm::reason::INVALID,
            qualification: 0,
        };
        let address = self.virt.svm.vmcb.address();
        self.report(what, rip, address, |cpu| {
            let (mut fields, mut remedies) = (vec![failed.map_or(undervisor_svm::Field::CR3, |c| c.field)], Vec::new());
            if let Some(check) = failed {
                let limits = cpu.svm_limits();
                let found = checks::remedies(check, &cpu.virt.svm.vmcb, &limits, cpu.state.cr0);
                for r in &found {
                    if !fields.contains(&r.field) && fields.len() <= OTHER_FIELDS {
                        fields.push(r.field);
                    }
                }
                remedies = found
                    .iter()
                    .filter(|r| fields.contains(&r.field))
                    .map(|r| Remedy {
                        field: describe::row(r.field).map_or("?", |row| row.name),
                        bit: r.bit,
                        bit_name: undervisor_core::describe::name_of(r.bit, describe::layout(r.field)),
                        set: r.set,
                    })
                    .collect();
            }
            let rows = fields.into_iter().filter_map(describe::row);
            (rows.map(|row| cpu.vmcb_picture(row)).collect(), remedies)
        });
    }

    /// `fault` came up while `event` was being delivered.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_fault(&mut self, event: &Event, fault: Exception, first: bool) {
        let size = if self.state.long_mode() {
            16
        } else if self.state.protected() {
            8
        } else {
            4
        };
        let at = self.state.idtr.base.wrapping_add(event.vector as u64 * size as u64);
        let mut gate = [0; 16];
        let gate_bytes = self.view().bytes(&self.shared.memory, at, &mut gate[..size]);
        let link = Link { event: *event, fault, rip: self.state.rip(), gate, gate_bytes };
        if let Some(o) = &self.observer {
            let o = &mut *o.borrow_mut();
            if first {
                o.chain.clear();
            }
            if o.chain.len() < 8 {
                o.chain.push(link);
            }
        }
    }

    /// A third fault: the level that runs is about to shut down.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_triple_fault(&mut self) {
        let Some(o) = &self.observer else { return };
        let chain = o.borrow().chain.clone();
        let (rip, exits) = (self.state.rip(), self.virt.guest);
        let structure = exits.then(|| self.structure());
        self.report(What::TripleFault { chain, exits }, rip, structure, |_| (Vec::new(), Vec::new()));
    }

    // ---- fields -------------------------------------------------------------------------------------------------------------

    /// VMREAD or VMWRITE of a field, or of its high half, of the VMCS at `region`.
    fn trace_field(&mut self, kind: Kind, rip: u64, region: u64, (field, high): (Field, bool), value: u64) {
        let encoding = field.row().map_or(0, |r| r.encoding as u64) | u64::from(high);
        let mut record = self.record(kind, rip, encoding, value, 0, 0);
        record.structure = region;
        self.trace(record);
    }

    /// VMREAD. `region`: its VMCS.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_vmread(&mut self, region: u64, field: Field, high: bool, value: u64) {
        let rip = self.observed_rip();
        if self.observing & want::VMREAD != 0 {
            self.trace_field(Kind::Vmread, rip, region, (field, high), value);
        }
        if self.observing & want::LINT != 0 && !self.virt.guest {
            self.lint_vmread(field, rip);
        }
    }

    /// VMWRITE.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_vmwrite(&mut self, region: u64, field: Field, high: bool, value: u64) {
        let rip = self.observed_rip();
        if self.observing & want::VMWRITE != 0 {
            self.trace_field(Kind::Vmwrite, rip, region, (field, high), value);
        }
        if self.observing & want::EXPLAIN != 0 {
            let write = self.write_mark(rip, value);
            let x = &mut self.virt.vmx;
            match &mut x.writes {
                Some(writes) if region == x.current => writes.wrote(field, write),
                _ => {
                    if let Some(o) = &self.observer {
                        o.borrow_mut().provenance.vmwrite(region, field, write);
                    }
                }
            }
        }
    }

    fn write_mark(&self, rip: u64, value: u64) -> Write {
        Write { rip, now: self.now(), value, level: self.level_number(), cpu: self.id as u8 }
    }

    /// A store to RAM by the slow path.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_store(&mut self, index: usize, offset: usize, data: &[u8]) {
        let Some(o) = &self.observer else { return };
        if !o.borrow().provenance.watched(index) {
            return;
        }
        let rip = self.observed_rip();
        let mut bytes = [0; 8];
        let n = data.len().min(8);
        bytes[..n].copy_from_slice(&data[..n]);
        let value = u64::from_le_bytes(bytes);
        let write = self.write_mark(rip, value);
        let page = o.borrow_mut().provenance.store(index, offset, data.len(), write);
        let Some(page) = page else { return };
        if self.observing & want::VMWRITE != 0 && self.is_amd() {
            let mut record = self.record(Kind::Vmwrite, rip, offset as u64, value, data.len() as u64, 0);
            record.structure = page;
            self.trace(record);
        }
        if self.observing & want::LINT != 0 {
            self.lint_store(page, offset, rip);
        }
    }

    /// A load from RAM by the slow path.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_load(&mut self, index: usize, offset: usize) {
        let watched = self.observer.as_ref().is_some_and(|o| o.borrow().provenance.watched(index));
        if watched && self.is_amd() && !self.virt.guest {
            self.lint_vmcb_load(index, offset);
        }
    }

    /// VMRUN is about to read its VMCB.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_vmrun(&mut self, address: u64) {
        let lint = self.observing & want::LINT != 0;
        if self.observing & WATCHES_VMCB != 0 {
            let known = match (&self.observer, self.shared.memory.page_index(address)) {
                (Some(o), Some(index)) => o.borrow().provenance.watched(index),
                _ => true,
            };
            if !known {
                self.observe_page(address, lint);
            }
        }
        if lint {
            self.lint_vmrun(address);
        }
    }

    // ---- the rest -----------------------------------------------------------------------------------------------------------

    /// An event has been delivered.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_delivered(&mut self, event: &Event, rip: u64) {
        let record = match event.kind {
            EventKind::HardwareException => {
                let code = event.error_code;
                let coded = u64::from(code.is_some());
                self.record(Kind::Exception, rip, event.vector as u64, code.unwrap_or(0) as u64, event.payload, coded)
            }
            kind => self.record(Kind::Interrupt, rip, event.vector as u64, kind as u64, 0, 0),
        };
        self.trace(record);
    }

    /// RDMSR or WRMSR has been done.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_msr(&mut self, msr: u32, value: u64, write: bool) {
        let kind = if write { Kind::Wrmsr } else { Kind::Rdmsr };
        self.trace(self.record(kind, self.observed_rip(), msr as u64, value, 0, 0));
    }

    /// A port has been read or written.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_port(&mut self, port: u16, size: usize, value: u32, write: bool) {
        let kind = if write { Kind::Out } else { Kind::In };
        self.trace(self.record(kind, self.observed_rip(), port as u64, value as u64, size as u64, 0));
    }

    /// Second-level translation failed.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_nested_fault(&mut self, fault: &NestedFault) {
        let (address, misconfigured) = match &fault.cause {
            NestedCause::Ept(exit) => (exit.request.address, matches!(exit.fault, undervisor_mmu::EptFault::Misconfiguration)),
            NestedCause::Npt(exit) => (exit.guest_physical, false),
        };
        let bits = u64::from(fault.access.write) | u64::from(fault.access.fetch) << 1 | u64::from(misconfigured) << 2;
        let linear = fault.linear.unwrap_or(u64::MAX);
        self.trace(self.record(Kind::NestedFault, self.observed_rip(), address, linear, bits, 0));
    }

    /// A flush of translations by a hypervisor.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe_flush(&mut self, what: u64, kind: u64, operand: u64) {
        self.trace(self.record(Kind::Flush, self.observed_rip(), what, kind, operand, 0));
    }
}

fn svm_instruction(m: Mnemonic) -> &'static str {
    match m {
        Mnemonic::Vmrun => "VMRUN",
        Mnemonic::Vmload => "VMLOAD",
        Mnemonic::Vmsave => "VMSAVE",
        Mnemonic::Stgi => "STGI",
        Mnemonic::Clgi => "CLGI",
        _ => "INVLPGA",
    }
}

fn vmx_instruction(m: Mnemonic) -> &'static str {
    match m {
        Mnemonic::Vmxon => "VMXON",
        Mnemonic::Vmxoff => "VMXOFF",
        Mnemonic::Vmclear => "VMCLEAR",
        Mnemonic::Vmptrld => "VMPTRLD",
        Mnemonic::Vmptrst => "VMPTRST",
        Mnemonic::Vmread => "VMREAD",
        Mnemonic::Vmwrite => "VMWRITE",
        Mnemonic::Vmlaunch => "VMLAUNCH",
        Mnemonic::Vmresume => "VMRESUME",
        Mnemonic::Vmcall => "VMCALL",
        Mnemonic::Invept => "INVEPT",
        Mnemonic::Invvpid => "INVVPID",
        _ => "a VMX instruction",
    }
}

/// Whether an exit is one that a hypervisor did not ask for: its guest shut down.
pub fn is_shutdown(amd: bool, reason: u64) -> bool {
    if amd { reason == undervisor_svm::reason::SHUTDOWN } else { reason as u32 & 0xffff == basic::TRIPLE_FAULT }
}

/// The event that VM entry injects, if any.
pub fn injected(info: u32) -> u64 {
    if info & interruption::VALID != 0 { info as u64 } else { 0 }
}
