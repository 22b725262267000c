//! The VMX instructions (SDM vol. 3, VMX Instruction Reference).

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};
use undervisor_core::{Cr0, Rflags, Vendor};
use undervisor_vmx::checks::eptp_allowed;
use undervisor_vmx::checks::state::NO_VMCS;
use undervisor_vmx::controls::{feature_control, secondary};
use undervisor_vmx::reason::{basic, error};
use undervisor_vmx::vmcs::{SHADOW, clear_launch_state, is_information, revision_word, shadow_read, shadow_write};
use undervisor_vmx::{Capabilities, ExitInformation, Field, VmxFeatures, bitmaps, capabilities};

use super::operand::{displacement, operand_information, register};
use crate::cpu::{Cpu, Exec};
use crate::dispatch::next;
use crate::exec::Row;
use crate::hot::slow;
use crate::observe::want;
use crate::op::{Flow, Handler, OpRef};
use crate::operand::Gpr;

/// Rows of the VMX instructions.
pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::ends(match insn.mnemonic() {
        M::Vmxon => vmxon,
        M::Vmxoff => vmxoff,
        M::Vmclear => vmclear,
        M::Vmptrld => vmptrld,
        M::Vmptrst => vmptrst,
        // Nothing that the surroundings could see: these may stand in the middle of a block.
        M::Vmread => return Some(Row::new(vmread)),
        M::Vmwrite => return Some(Row::new(vmwrite)),
        M::Vmlaunch => vmlaunch,
        M::Vmresume => vmresume,
        M::Vmcall => vmcall,
        M::Vmfunc => vmfunc,
        M::Invept => invept,
        M::Invvpid => invvpid,
        _ => return None,
    }))
}

/// The handler that stands before the general form of VMREAD and VMWRITE, and its registers `a` and `b`.
pub fn hot_form(insn: &Instruction) -> Option<(Handler, u8, u8)> {
    let handler: Handler = match insn.code() {
        Code::Vmread_rm64_r64 => hot_vmread,
        Code::Vmwrite_r64_rm64 => hot_vmwrite,
        _ => return None,
    };
    let gpr = |n| (insn.op_kind(n) == OpKind::Register).then(|| Gpr::of(insn.op_register(n))).flatten();
    Some((handler, gpr(0)?.number, gpr(1)?.number))
}

impl Cpu {
    fn vmx_succeed(&mut self) {
        self.state.clear_status();
    }
    /// VMfailInvalid.
    pub(super) fn vmx_fail_invalid(&mut self) {
        if self.observing != 0 {
            self.observe_vm_fail(None);
        }
        self.vmx_fail_flags();
    }
    fn vmx_fail_flags(&mut self) {
        self.state.set_status(Rflags::STATUS.bits(), Rflags::CF.bits());
    }
    /// VMfail: VMfailValid with this error if there is a current VMCS.
    pub(super) fn vmx_fail(&mut self, number: u32) {
        if self.observing != 0 {
            self.observe_vm_fail(Some(number));
        }
        self.vmx_fail_checked(number);
    }
    /// VMfail whose cause the observer knows already.
    pub(super) fn vmx_fail_checked(&mut self, number: u32) {
        if self.virt.vmx.current == NO_VMCS {
            return self.vmx_fail_flags();
        }
        self.virt.vmx.vmcs.put(Field::INSTRUCTION_ERROR, number as u64);
        self.state.set_status(Rflags::STATUS.bits(), Rflags::ZF.bits());
    }

    /// Real mode, virtual-8086 mode and compatibility mode have no VMX instructions.
    fn vmx_mode_wrong(&self) -> bool {
        let s = &self.state;
        !s.protected() || s.virtual_8086() || (s.long_mode() && !s.mode64())
    }

    /// #UD outside VMX operation; in a guest, exit with the instruction's operand; then #GP(0) unless CPL is 0.
    fn vmx_admit(&mut self, insn: &Instruction, reason: u32, operand: Option<u32>) -> Exec {
        if !self.virt.vmx.on || self.vmx_mode_wrong() {
            return Err(self.ud());
        }
        if self.virt.guest {
            return Err(self.vmx_exit_with(insn, reason, operand));
        }
        self.vmx_supervisor()
    }

    fn vmx_supervisor(&mut self) -> Exec {
        if self.state.cpl != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// Exit with operand `n`; another register operand is Reg2.
    fn vmx_exit_with(&mut self, insn: &Instruction, reason: u32, operand: Option<u32>) -> crate::cpu::Stop {
        let mut info = ExitInformation::new(reason);
        if let Some(n) = operand {
            info.instruction_information = operand_information(self, insn, n);
            if insn.op_count() == 2 {
                info.instruction_information |= register(insn, 1 - n) << 28;
            }
            info.qualification = displacement(self, insn);
        }
        self.vmx_exit_instruction(info)
    }

    /// The 64-bit memory operand of VMXON, VMCLEAR and VMPTRLD.
    fn vmx_pointer(&mut self, insn: &Instruction) -> Exec<u64> {
        let linear = self.effective_linear(insn, 8, false)?;
        self.read_linear::<u64>(linear)
    }

    /// Whether a VMXON pointer or VMCS pointer may be used: page-aligned, within the physical-address width.
    fn vmx_pointer_valid(&mut self, pointer: u64) -> bool {
        pointer & 0xfff == 0 && self.vmx_capabilities().physical(pointer)
    }

    /// Write the current VMCS back to its region.
    fn vmx_write_back(&mut self) {
        let shared = self.shared.clone();
        let x = &self.virt.vmx;
        if x.current != NO_VMCS {
            x.vmcs.store(&*shared, x.current);
        }
    }
}

fn vmxon(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let capable = cpu.vmx_model() && cpu.state.cr4.contains(undervisor_core::Cr4::VMXE);
    if !capable || cpu.vmx_mode_wrong() || insn.op0_kind() != OpKind::Memory {
        return Err(cpu.ud());
    }
    if !cpu.virt.vmx.on {
        let control = cpu.state.msrs.feature_control;
        let enabled = control & feature_control::LOCK != 0 && control & feature_control::VMXON_OUTSIDE_SMX != 0;
        let cr4 = cpu.state.cr4.bits();
        let fixed = Capabilities::cr0_allowed(cpu.state.cr0.bits(), false) && cpu.vmx_capabilities().cr4_allowed(cr4);
        // In A20M mode it fails; once it has succeeded, the pin is blocked.
        if cpu.state.cpl != 0 || !fixed || !enabled || cpu.translations.a20.masks {
            return Err(cpu.gp(0));
        }
        let pointer = cpu.vmx_pointer(insn)?;
        let shared = cpu.shared.clone();
        if !cpu.vmx_pointer_valid(pointer) || revision_word(&*shared, pointer) != capabilities::REVISION {
            cpu.vmx_fail_invalid();
            return Ok(());
        }
        let x = &mut cpu.virt.vmx;
        x.on = true;
        x.vmxon = pointer;
        x.current = NO_VMCS;
        cpu.vmx_succeed();
        return Ok(());
    }
    if cpu.virt.guest {
        return Err(cpu.vmx_exit_with(insn, basic::VMXON, Some(0)));
    }
    cpu.vmx_supervisor()?;
    cpu.vmx_fail(error::VMXON_IN_ROOT);
    Ok(())
}

fn vmxoff(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vmx_admit(insn, basic::VMXOFF, None)?;
    cpu.vmx_write_back();
    if cpu.observing & want::LINT != 0 {
        cpu.lint_vmxoff();
    }
    if cpu.observing & want::EXPLAIN != 0 {
        cpu.observe_vmcs_switch(NO_VMCS);
    }
    let x = &mut cpu.virt.vmx;
    x.on = false;
    x.current = NO_VMCS;
    x.vmxon = NO_VMCS;
    cpu.vmx_succeed();
    cpu.a20_changed();
    // INIT signals that were blocked.
    cpu.attend(crate::cpu::attention::INTERRUPT);
    Ok(())
}

fn vmclear(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vmx_admit(insn, basic::VMCLEAR, Some(0))?;
    let pointer = cpu.vmx_pointer(insn)?;
    if !cpu.vmx_pointer_valid(pointer) {
        cpu.vmx_fail(error::VMCLEAR_ADDRESS);
    } else if pointer == cpu.virt.vmx.vmxon {
        cpu.vmx_fail(error::VMCLEAR_VMXON_POINTER);
    } else {
        let shared = cpu.shared.clone();
        if pointer == cpu.virt.vmx.current {
            cpu.virt.vmx.vmcs.launched = false;
            cpu.vmx_write_back();
            if cpu.observing & want::EXPLAIN != 0 {
                cpu.observe_vmcs_switch(NO_VMCS);
            }
            cpu.virt.vmx.current = NO_VMCS;
        } else {
            clear_launch_state(&*shared, pointer);
        }
        if cpu.observing & want::LINT != 0 {
            cpu.lint_vmclear(pointer);
        }
        cpu.vmx_succeed();
    }
    Ok(())
}

fn vmptrld(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vmx_admit(insn, basic::VMPTRLD, Some(0))?;
    let pointer = cpu.vmx_pointer(insn)?;
    if !cpu.vmx_pointer_valid(pointer) {
        cpu.vmx_fail(error::VMPTRLD_ADDRESS);
        return Ok(());
    }
    if pointer == cpu.virt.vmx.vmxon {
        cpu.vmx_fail(error::VMPTRLD_VMXON_POINTER);
        return Ok(());
    }
    let shared = cpu.shared.clone();
    let word = revision_word(&*shared, pointer);
    let shadowing = cpu.vmx_capabilities().has(VmxFeatures::VMCS_SHADOWING);
    if word & !SHADOW != capabilities::REVISION || (word & SHADOW != 0 && !shadowing) {
        cpu.vmx_fail(error::VMPTRLD_REVISION);
        return Ok(());
    }
    if pointer != cpu.virt.vmx.current {
        cpu.vmx_write_back();
        if cpu.observing & want::EXPLAIN != 0 {
            cpu.observe_vmcs_switch(pointer);
        }
        let x = &mut cpu.virt.vmx;
        x.vmcs.load(&*shared, pointer);
        x.current = pointer;
    }
    cpu.virt.vmx.current_is_shadow = word & SHADOW != 0;
    if cpu.observing & want::LINT != 0 {
        cpu.lint_vmptrld(pointer);
    }
    cpu.vmx_succeed();
    Ok(())
}

fn vmptrst(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vmx_admit(insn, basic::VMPTRST, Some(0))?;
    let linear = cpu.effective_linear(insn, 8, true)?;
    let current = cpu.virt.vmx.current;
    cpu.write_linear::<u64>(linear, current)?;
    cpu.vmx_succeed();
    Ok(())
}

/// Bits of VMREAD's and VMWRITE's register operands.
fn word_mask(cpu: &Cpu) -> u64 {
    if cpu.mode.is64() { u64::MAX } else { 0xffff_ffff }
}

/// Whether VMREAD or VMWRITE of `encoding` in a guest goes to the shadow VMCS.
fn shadowed(cpu: &mut Cpu, encoding: u64, write: bool) -> bool {
    let shared = cpu.shared.clone();
    let v = &cpu.virt.vmx.vmcs;
    v.secondary(secondary::VMCS_SHADOWING) && !bitmaps::shadow_exits(v, &*shared, encoding, write)
}

/// Who wants to hear of VMREAD, and of VMWRITE.
const READS: u32 = want::VMREAD | want::LINT;
const WRITES: u32 = want::VMWRITE | want::EXPLAIN;
/// Who wants more than a note of VMWRITE.
const TRACED_WRITES: u32 = want::VMWRITE;

fn vmread(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if cpu.observing & READS != 0 { observed(cpu, insn, false) } else { read_field(cpu, insn) }
}

fn vmwrite(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if cpu.observing & WRITES != 0 { observed(cpu, insn, true) } else { write_field(cpu, insn) }
}

/// VMREAD or VMWRITE while somebody watches.
#[cold]
#[inline(never)]
fn observed(cpu: &mut Cpu, insn: &Instruction, write: bool) -> Exec {
    // VMREAD may overwrite the register that names the field.
    let encoding = cpu.gpr(if write { insn.op0_register() } else { insn.op1_register() }) & word_mask(cpu);
    let guest = cpu.virt.guest;
    if write {
        write_field(cpu, insn)?
    } else {
        read_field(cpu, insn)?
    }
    if cpu.state.rflags() & (Rflags::CF | Rflags::ZF).bits() != 0 {
        return Ok(());
    }
    let Some((field, high)) = cpu.vmx_capabilities().fields.find(encoding) else { return Ok(()) };
    let x = &cpu.virt.vmx;
    let (region, value) = if guest {
        let region = x.vmcs.get(Field::VMCS_LINK_POINTER);
        (region, shadow_read(&*cpu.shared, region, field, high))
    } else {
        (x.current, x.vmcs.read(field, high))
    };
    if write {
        cpu.observe_vmwrite(region, field, high, value)
    } else {
        cpu.observe_vmread(region, field, high, value)
    }
    Ok(())
}

fn read_field(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if !cpu.virt.vmx.on || cpu.vmx_mode_wrong() {
        return Err(cpu.ud());
    }
    let mask = word_mask(cpu);
    let encoding = cpu.gpr(insn.op1_register()) & mask;
    let guest = cpu.virt.guest;
    if guest && !shadowed(cpu, encoding, false) {
        return Err(cpu.vmx_exit_with(insn, basic::VMREAD, Some(0)));
    }
    cpu.vmx_supervisor()?;
    let x = &cpu.virt.vmx;
    let region = if guest { x.vmcs.get(Field::VMCS_LINK_POINTER) } else { x.current };
    if region == NO_VMCS {
        cpu.vmx_fail_invalid();
        return Ok(());
    }
    let Some((field, high)) = cpu.vmx_capabilities().fields.find(encoding) else {
        cpu.vmx_fail(error::UNSUPPORTED_FIELD);
        return Ok(());
    };
    let value = if guest {
        let shared = cpu.shared.clone();
        shadow_read(&*shared, region, field, high)
    } else {
        cpu.virt.vmx.vmcs.read(field, high)
    };
    cpu.set_operand(insn, 0, value & mask)?;
    cpu.vmx_succeed();
    Ok(())
}

fn write_field(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if !cpu.virt.vmx.on || cpu.vmx_mode_wrong() {
        return Err(cpu.ud());
    }
    let mask = word_mask(cpu);
    let encoding = cpu.gpr(insn.op0_register()) & mask;
    let guest = cpu.virt.guest;
    if guest && !shadowed(cpu, encoding, true) {
        return Err(cpu.vmx_exit_with(insn, basic::VMWRITE, Some(1)));
    }
    cpu.vmx_supervisor()?;
    let x = &cpu.virt.vmx;
    let region = if guest { x.vmcs.get(Field::VMCS_LINK_POINTER) } else { x.current };
    let value = cpu.operand(insn, 1)? & mask;
    if region == NO_VMCS {
        cpu.vmx_fail_invalid();
        return Ok(());
    }
    let capabilities = cpu.vmx_capabilities();
    let Some((field, high)) = capabilities.fields.find(encoding) else {
        cpu.vmx_fail(error::UNSUPPORTED_FIELD);
        return Ok(());
    };
    if is_information(field) && !capabilities.has(VmxFeatures::VMWRITE_ANY_FIELD) {
        cpu.vmx_fail(error::READ_ONLY_FIELD);
        return Ok(());
    }
    if guest {
        let shared = cpu.shared.clone();
        shadow_write(&*shared, region, field, high, value);
    } else {
        cpu.virt.vmx.vmcs.write(field, high, value);
        if cpu.debugger.fields {
            cpu.debug_field_written(field);
        }
    }
    cpu.vmx_succeed();
    Ok(())
}

impl Cpu {
    /// Whether the model has VMX.
    pub fn vmx_model(&self) -> bool {
        self.model.has(undervisor_core::model::Feature::VMX)
    }
}

impl Cpu {
    /// Whether VMREAD and VMWRITE of register operands are nothing but a look into the current VMCS: root operation in 64-bit mode at
    /// CPL 0, with a current VMCS, and nobody who wants to hear of it (`watched`, of [`want`]).
    #[inline(always)]
    fn vmx_fields_plain(&self, watched: u32) -> bool {
        let x = &self.virt.vmx;
        // Outside VMX operation nothing is current.
        x.current != NO_VMCS
            && !self.virt.guest
            && self.state.cpl == 0
            && self.mode.is64()
            && !self.debugger.fields
            && self.observing & watched == 0
    }
}

/// VMREAD to a register: op registers `a` (destination) and `b` (encoding). What is out of the ordinary takes the general form.
pub fn hot_vmread(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.vmx_fields_plain(READS)
        && let Some(capabilities) = &cpu.virt.vmx.capabilities
        && let Some((field, high)) = capabilities.fields.find(cpu.state.regs[op.b as usize])
    {
        cpu.state.regs[op.a as usize] = cpu.virt.vmx.vmcs.read(field, high);
        cpu.state.clear_status();
        return next(cpu, op);
    }
    slow(cpu, op)
}

/// VMWRITE from a register: op registers `a` (encoding) and `b` (source).
pub fn hot_vmwrite(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.vmx_fields_plain(TRACED_WRITES)
        && let Some(capabilities) = &cpu.virt.vmx.capabilities
        && let Some((field, high)) = capabilities.fields.find(cpu.state.regs[op.a as usize])
        && !is_information(field)
    {
        let value = cpu.state.regs[op.b as usize];
        cpu.virt.vmx.vmcs.write(field, high, value);
        if cpu.observing & want::EXPLAIN != 0 {
            cpu.note_vmwrite(op, field, value);
        }
        cpu.state.clear_status();
        return next(cpu, op);
    }
    slow(cpu, op)
}

fn vmlaunch(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vmx_admit(insn, basic::VMLAUNCH, None)?;
    cpu.vmx_enter(true)
}

fn vmresume(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.vmx_admit(insn, basic::VMRESUME, None)?;
    cpu.vmx_enter(false)
}

fn vmcall(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if !cpu.virt.vmx.on {
        let answered = cpu.model.vendor == Vendor::Intel && cpu.hypercall();
        return if answered { Ok(()) } else { Err(cpu.ud()) };
    }
    if cpu.virt.guest {
        return Err(cpu.vmx_exit_with(insn, basic::VMCALL, None));
    }
    let compatibility = cpu.state.long_mode() && !cpu.state.mode64();
    if cpu.state.virtual_8086() || compatibility || !cpu.state.cr0.contains(Cr0::PE) {
        return Err(cpu.ud());
    }
    cpu.vmx_supervisor()?;
    cpu.vmx_fail(error::VMCALL_IN_ROOT);
    Ok(())
}

fn vmfunc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.vmx_function()
}

/// Type register and descriptor of INVEPT and INVVPID.
fn invalidation(cpu: &mut Cpu, insn: &Instruction) -> Exec<(u64, u64, u64)> {
    let kind = cpu.gpr(insn.op0_register()) & word_mask(cpu);
    let linear = cpu.effective_linear(insn, 16, false)?;
    let mut bytes = [[0; 8]; 2];
    cpu.read_bytes(linear, bytes.as_flattened_mut())?;
    Ok((kind, u64::from_le_bytes(bytes[0]), u64::from_le_bytes(bytes[1])))
}

fn invept(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let capabilities = cpu.vmx_capabilities();
    if !capabilities.has(VmxFeatures::EPT) {
        return Err(cpu.ud());
    }
    cpu.vmx_admit(insn, basic::INVEPT, Some(1))?;
    // Types are checked before the descriptor is read.
    let kind = cpu.gpr(insn.op0_register()) & word_mask(cpu);
    let supported = match kind {
        1 => capabilities.has(VmxFeatures::INVEPT_SINGLE),
        2 => capabilities.has(VmxFeatures::INVEPT_ALL),
        _ => false,
    };
    if !supported {
        cpu.vmx_fail(error::INVALIDATION_OPERAND);
        return Ok(());
    }
    let (_, eptp, _) = invalidation(cpu, insn)?;
    if cpu.observing & want::FLUSHES != 0 {
        cpu.observe_flush(0, kind, eptp);
    }
    if kind == 1 {
        if !eptp_allowed(&capabilities, eptp) {
            cpu.vmx_fail(error::INVALIDATION_OPERAND);
            return Ok(());
        }
        const ROOT: u64 = 0x000f_ffff_ffff_f000;
        cpu.flush_spaces(|k| k.nested != 0 && (k.nested ^ eptp) & ROOT == 0);
    } else {
        cpu.flush_spaces(|k| k.nested != 0);
    }
    cpu.vmx_succeed();
    Ok(())
}

fn invvpid(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let capabilities = cpu.vmx_capabilities();
    if !capabilities.has(VmxFeatures::VPID) {
        return Err(cpu.ud());
    }
    cpu.vmx_admit(insn, basic::INVVPID, Some(1))?;
    let kind = cpu.gpr(insn.op0_register()) & word_mask(cpu);
    let supported = match kind {
        0 => capabilities.has(VmxFeatures::INVVPID_ADDRESS),
        1 => capabilities.has(VmxFeatures::INVVPID_SINGLE),
        2 => capabilities.has(VmxFeatures::INVVPID_ALL),
        3 => capabilities.has(VmxFeatures::INVVPID_RETAIN_GLOBALS),
        _ => false,
    };
    if !supported {
        cpu.vmx_fail(error::INVALIDATION_OPERAND);
        return Ok(());
    }
    let (_, first, linear) = invalidation(cpu, insn)?;
    let vpid = first & 0xffff;
    if first >> 16 != 0 || (kind != 2 && vpid == 0) || (kind == 0 && !capabilities.canonical(linear)) {
        cpu.vmx_fail(error::INVALIDATION_OPERAND);
        return Ok(());
    }
    if cpu.observing & want::FLUSHES != 0 {
        cpu.observe_flush(1, kind, if kind == 0 { linear } else { vpid });
    }
    match kind {
        0 => cpu.flush_page(linear),
        2 => cpu.flush_spaces(|k| k.tag != 0),
        _ => cpu.flush_spaces(|k| k.tag as u64 == vpid),
    }
    cpu.vmx_succeed();
    Ok(())
}
