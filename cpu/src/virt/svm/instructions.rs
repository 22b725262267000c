//! SVM's instructions (APM vol. 3, System Instruction Reference).

use iced_x86::{Instruction, Mnemonic as M, Register};
use undervisor_core::{Efer, Intercept, SegReg, SvmFeatures, Vendor};
use undervisor_svm::controls::{extensions, v_intr};
use undervisor_svm::entry::{vmload, vmsave};
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Exec, attention};
use crate::exec::Row;
use crate::observe::want;
use crate::paging::{Access, Nested};

/// Rows of this group.
pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::ends(match insn.mnemonic() {
        M::Vmrun => run,
        M::Vmmcall => call,
        M::Vmload => load,
        M::Vmsave => save,
        M::Stgi => set_gif,
        M::Clgi => clear_gif,
        M::Invlpga => invalidate,
        M::Skinit => secure_init,
        _ => return None,
    }))
}

/// #UD without SVM, in real and virtual-8086 mode; #GP(0) above CPL 0.
fn privileged(cpu: &mut Cpu) -> Exec {
    let on = cpu.state.efer.contains(Efer::SVME);
    allowed(cpu, on)
}

fn allowed(cpu: &mut Cpu, on: bool) -> Exec {
    let s = &cpu.state;
    if !on || !s.protected() || s.virtual_8086() || cpu.model.vendor != Vendor::Amd {
        return Err(cpu.ud());
    }
    if s.cpl != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

/// rAX as an instruction's address size has it.
fn rax(cpu: &Cpu, insn: &Instruction) -> u64 {
    match insn.op0_register() {
        Register::None => cpu.gpr(Register::RAX),
        r => cpu.gpr(r),
    }
}

/// The VMCB address in rAX: 4 KiB-aligned and within physical memory, or #GP(0).
fn vmcb(cpu: &mut Cpu, insn: &Instruction) -> Exec<u64> {
    let address = rax(cpu, insn);
    if cpu.svm_limits().page(address) { Ok(address) } else { Err(cpu.gp(0)) }
}

fn run(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    privileged(cpu)?;
    let address = vmcb(cpu, insn)?;
    cpu.intercept(Intercept::SvmInstruction(0))?;
    if cpu.virt.guest {
        // VMRUN's own intercept is always set in a guest (a consistency check).
        return Err(cpu.ud());
    }
    cpu.svm_vmrun(address)
}

/// VMMCALL: an exit, a hypercall if the model has them, or #UD.
fn call(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.intercept(Intercept::Vmmcall)?;
    let answered = !cpu.virt.guest && cpu.model.vendor == Vendor::Amd && cpu.hypercall();
    if answered { Ok(()) } else { Err(cpu.ud()) }
}

/// The VMCB of VMLOAD and VMSAVE where it really lies: with virtual VMLOAD and VMSAVE the guest's address is translated.
fn load_save(cpu: &mut Cpu, insn: &Instruction, code: u64, write: bool) -> Exec<u64> {
    privileged(cpu)?;
    let address = vmcb(cpu, insn)?;
    cpu.intercept(Intercept::SvmInstruction((code - reason::VMRUN) as u8))?;
    let virtualized = cpu.virt.guest
        && cpu.svm_has(SvmFeatures::VIRTUAL_VMLOAD_VMSAVE)
        && cpu.virt.svm.vmcb.get(Field::VIRTUAL_EXTENSIONS) & extensions::VMLOAD_VMSAVE != 0;
    if !virtualized {
        return Ok(address);
    }
    // "Only recognized when the hypervisor is in 64-bit mode and nested paging is enabled", else the instruction exits.
    let host = &cpu.virt.svm.host;
    let mode64 = host.efer.contains(Efer::LMA) && host.segments[SegReg::Cs as usize].long();
    if !mode64 || !matches!(cpu.translations.nested, Nested::Npt(_)) {
        return Err(cpu.svm_exit_instruction(code, 0, 0));
    }
    cpu.translate_physical(address, if write { Access::WRITE } else { Access::READ })
}

fn load(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let address = load_save(cpu, insn, reason::VMLOAD, false)?;
    let limits = cpu.svm_limits();
    let shared = cpu.shared.clone();
    vmload(&shared.memory, address, &mut cpu.state, &limits);
    Ok(())
}

fn save(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let address = load_save(cpu, insn, reason::VMSAVE, true)?;
    let shared = cpu.shared.clone();
    vmsave(&shared.memory, address, &mut cpu.state);
    if let Some(index) = shared.memory.page_index(address)
        && shared.code().is_code(index)
    {
        shared.code().written(index, 0x440, 0x200);
    }
    Ok(())
}

fn set_gif(cpu: &mut Cpu, _: &Instruction) -> Exec {
    gif(cpu, true)
}

fn clear_gif(cpu: &mut Cpu, _: &Instruction) -> Exec {
    gif(cpu, false)
}

fn gif(cpu: &mut Cpu, on: bool) -> Exec {
    // "On processors that support SVM-Lock, SKINIT and STGI can be executed even if EFER.SVME is 0" (APM vol. 2, SVM-Lock).
    let enabled = cpu.state.efer.contains(Efer::SVME) || on && cpu.svm_has(SvmFeatures::SVM_LOCK);
    allowed(cpu, enabled)?;
    let code = if on { reason::STGI } else { reason::CLGI };
    cpu.intercept(Intercept::SvmInstruction((code - reason::VMRUN) as u8))?;
    if cpu.virt.guest && cpu.svm_virtual_gif() {
        cpu.svm_set_control(v_intr::GIF, on);
    } else {
        cpu.virt.svm.gif = on;
    }
    if on {
        if cpu.virt.guest {
            cpu.attend(attention::VIRT);
        }
        cpu.look_for_events();
    }
    Ok(())
}

/// INVLPGA: rAX linear address, ECX ASID.
fn invalidate(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    privileged(cpu)?;
    cpu.intercept(Intercept::Invlpga)?;
    let linear = rax(cpu, insn);
    let asid = cpu.gpr(Register::ECX) as u32;
    if cpu.observing & want::FLUSHES != 0 {
        cpu.observe_flush(2, asid as u64, linear);
    }
    cpu.flush_page_of(asid, linear);
    Ok(())
}

/// SKINIT: no model has a TPM behind it, so it does not exist, intercepted or not.
fn secure_init(cpu: &mut Cpu, _: &Instruction) -> Exec {
    Err(cpu.ud())
}
