//! VMRUN (APM vol. 2, VMRUN Instruction).

use undervisor_core::{Cr4, Efer, Event, EventKind, Rflags, SvmFeatures};
use undervisor_mmu::{Limits as PagingLimits, Npt, Paging, PagingMode};
use undervisor_svm::checks::check;
use undervisor_svm::controls::{event, extensions, nested, tlb, v_intr};
use undervisor_svm::entry::load_guest;
use undervisor_svm::exit::{ExitInformation, record};
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::observe::want;
use crate::paging::Nested;

impl Cpu {
    /// VMRUN, privilege and address already checked; `state.rip()` is the next instruction's.
    pub(super) fn svm_vmrun(&mut self, address: u64) -> Exec {
        let limits = self.svm_limits();
        let features = limits.features;
        let shared = self.shared.clone();
        let memory = &shared.memory;
        let (from, now) = (self.svm_rip(), self.now());
        if self.observing & (want::VMCB_WRITES | want::VMWRITE | want::LINT) != 0 {
            self.observe_vmrun(address);
        }
        let seam = &mut self.virt.svm;
        seam.vmcb.load(memory, address, features.contains(SvmFeatures::VMCB_CLEAN));
        seam.host.save(&self.state);
        self.count();
        let seam = &mut self.virt.svm;
        if let Err(failed) = check(&mut seam.vmcb, &limits, self.state.cr0) {
            seam.refused = Some(failed.name);
            if self.observing != 0 {
                self.observe_svm_refused(Some(failed), from);
            }
            self.svm_refuse();
            return Ok(());
        }
        load_guest(&seam.vmcb, &mut self.state, &limits);
        let v = &seam.vmcb;
        let asid = v.get(Field::GUEST_ASID) as u32;
        match v.get(Field::TLB_CONTROL) {
            tlb::NOTHING => {}
            tlb::FLUSH_ALL => self.spaces.forget(|_| true),
            _ => self.spaces.forget(|k| k.tag == asid),
        }
        if features.contains(SvmFeatures::LBR_VIRTUALIZATION) && v.get(Field::VIRTUAL_EXTENSIONS) & extensions::LBR != 0 {
            let m = &mut self.state.msrs;
            let [from, to, exception_from, exception_to] = m.last_branch;
            seam.host.lbr = [m.debugctl, from, to, exception_from, exception_to];
            m.debugctl = v.get(Field::DBGCTL) & 0x3f;
            m.last_branch = [Field::BR_FROM, Field::BR_TO, Field::LASTEXCPFROM, Field::LASTEXCPTO].map(|f| v.get(f));
        }
        if features.contains(SvmFeatures::VIRTUAL_SPEC_CTRL) {
            seam.host.spec_ctrl = std::mem::replace(&mut self.state.msrs.spec_ctrl, v.get(Field::SPEC_CTRL));
        }
        let np = features.contains(SvmFeatures::NPT) && v.get(Field::NESTED_CONTROL) & nested::NP_ENABLE != 0;
        self.translations.nested = Nested::None;
        self.translations.guest = true;
        self.translations.tag = asid;
        if np {
            seam.host.pat = std::mem::replace(&mut self.state.msrs.pat, v.get(Field::G_PAT));
            let gmet = features.contains(SvmFeatures::GUEST_MODE_EXECUTE_TRAP)
                && v.get(Field::NESTED_CONTROL) & nested::GMET_ENABLE != 0;
            let paging_limits = self.translations.limits();
            let check = features.contains(SvmFeatures::SUPERVISOR_SHADOW_STACK)
                && v.get(Field::NESTED_CONTROL) & nested::SSS_ENABLE != 0;
            nested_paging(&mut seam.npt, self.translations.host_paging(), v.get(Field::N_CR3), gmet, &paging_limits);
            // "If the host is in legacy non-PAE mode or EFER.NXE is 0, attempts to enable it are ignored."
            let p = &seam.npt.paging;
            seam.npt.shadow_stack_check = check && p.nxe && p.mode != PagingMode::Bits32;
            self.translations.nested = Nested::Npt(seam.npt);
        } else if self.load_pdptes(self.state.cr3, self.state.cr0, self.state.cr4).is_err() {
            self.virt.svm.refused = Some("PDPTEs");
            self.svm_leave_guest();
            let address = self.virt.svm.vmcb.address();
            self.svm_refuse();
            if self.observing != 0 {
                self.observe_svm_pdptes(address, from);
            }
            return Ok(());
        }
        let seam = &mut self.virt.svm;
        seam.gif = true;
        seam.pause_left = seam.vmcb.get(Field::PAUSE_FILTER_COUNT) as u16;
        seam.pause_at = 0;
        seam.bus_locks = features.contains(SvmFeatures::BUS_LOCK_THRESHOLD) && seam.vmcb.intercepts(reason::BUS_LOCK);
        self.virt.guest = true;
        self.svm_avic_enter();
        self.counters.vm_entries += 1;
        self.current = std::ptr::null();
        self.suppress_trap();
        self.mode_changed();
        let mut bits = if self.svm_watching() { attention::VIRT } else { 0 };
        if self.state.shadow.sti {
            bits |= attention::SHADOW;
        }
        if self.state.flag(Rflags::TF)
            || self.state.flag(Rflags::RF)
            || self.state.dr7 & 0xff != 0
            || self.state.msrs.debugctl & 1 != 0
        {
            bits |= attention::DEBUG;
        }
        if bits != 0 {
            self.attend(bits);
        }
        self.look_for_events();
        if self.observing & (want::TRACE | want::STATISTICS | want::LINT) != 0 {
            let info = self.virt.svm.vmcb.get(Field::EVENTINJ) as u32;
            self.observe_entry(now, 2, from, crate::observe::injected(info));
            if self.observing & want::LINT != 0 {
                self.lint_svm_entry(from);
            }
            let control = self.virt.svm.vmcb.get(Field::TLB_CONTROL);
            if self.observing & want::FLUSHES != 0 && control != tlb::NOTHING {
                self.observe_flush(3, control, asid as u64);
            }
        }
        self.svm_inject()
    }

    /// VMEXIT_INVALID: nothing of the guest was loaded that stays, and its VMCB keeps its state.
    fn svm_refuse(&mut self) {
        let shared = self.shared.clone();
        let seam = &mut self.virt.svm;
        record(&mut seam.vmcb, &ExitInformation::new(reason::INVALID), None);
        seam.vmcb.store_exit(&shared.memory);
        seam.vmcb.forget();
        seam.gif = false;
        seam.host.load(&mut self.state);
        self.counters.vm_exits += 1;
        self.mode_changed();
        self.debug_entry_failed(|cpu| format!("VMEXIT_INVALID: check {}", cpu.virt.svm.refused.unwrap_or("?")));
    }

    /// Event injection (APM vol. 2, Event Injection).
    fn svm_inject(&mut self) -> Exec {
        let v = &self.virt.svm.vmcb;
        let info = v.get(Field::EVENTINJ) as u32;
        if info & event::VALID == 0 {
            return Ok(());
        }
        let vector = event::vector(info);
        let kind = match event::kind(info) {
            event::INTR => EventKind::External,
            event::NMI => EventKind::Nmi,
            event::SOFTWARE => EventKind::Software,
            // INT3 and INTO.
            _ if matches!(vector, 3 | 4) => EventKind::SoftwareException,
            _ => EventKind::HardwareException,
        };
        let mut event = Event {
            kind,
            vector: if kind == EventKind::Nmi { 2 } else { vector },
            error_code: (info & event::ERROR_CODE != 0 && event::kind(info) == event::EXCEPTION)
                .then(|| v.get(Field::EVENTINJ_ERROR) as u32),
            payload: if vector == 14 { self.state.cr2 } else { 0 },
            instruction_length: 0,
        };
        // "The rIP pushed for software interrupts and exceptions is nRIP" where the processor has it.
        if matches!(kind, EventKind::Software | EventKind::SoftwareException) && self.svm_has(SvmFeatures::NRIP_SAVE) {
            let next = v.get(Field::NRIP);
            match next.wrapping_sub(self.state.rip()) {
                length @ 0..=15 => event.instruction_length = length as u8,
                _ => self.state.set_rip(next),
            }
        }
        if kind == EventKind::Nmi && self.svm_virtual_nmi() {
            self.svm_set_control(v_intr::NMI_MASK, true);
        }
        match self.inject(event) {
            // The exit of its delivery has already happened; VMRUN itself is complete.
            Err(Stop::Exit) => Ok(()),
            other => other,
        }
    }
}

/// Bring the nested paging of the last VMRUN up to date with what this one asks for: the host's mode, nCR3 as its root.
fn nested_paging(npt: &mut Npt, host: &Paging, n_cr3: u64, gmet: bool, limits: &PagingLimits) {
    let root = match host.mode {
        PagingMode::Level4 | PagingMode::Level5 => n_cr3 & 0x000f_ffff_ffff_f000,
        PagingMode::Pae => n_cr3 & 0xffff_ffe0,
        _ => n_cr3 & 0xffff_f000,
    };
    let p = &mut npt.paging;
    npt.guest_mode_execute_trap = gmet;
    if p.mode == host.mode && p.nxe == host.nxe && p.pse == host.pse && p.smep == host.smep {
        p.root = root;
        return;
    }
    *p = Paging::nested(host, root, limits);
}

impl Cpu {
    /// Whether SVM has something to look for at instruction boundaries of this guest.
    pub(super) fn svm_watching(&self) -> bool {
        let bits = v_intr::IRQ | v_intr::NMI | v_intr::AVIC_ENABLE;
        self.svm_control(bits)
    }

    /// Back from a guest: what surrounds it is the host's again.
    pub(super) fn svm_leave_guest(&mut self) {
        let features = self.model.svm;
        let v = &mut self.virt.svm.vmcb;
        let host = &self.virt.svm.host;
        let m = &mut self.state.msrs;
        if features.contains(SvmFeatures::LBR_VIRTUALIZATION) && v.get(Field::VIRTUAL_EXTENSIONS) & extensions::LBR != 0 {
            v.set(Field::DBGCTL, m.debugctl);
            let fields = [Field::BR_FROM, Field::BR_TO, Field::LASTEXCPFROM, Field::LASTEXCPTO];
            for (f, value) in fields.into_iter().zip(m.last_branch) {
                v.set(f, value);
            }
            m.debugctl = host.lbr[0];
            m.last_branch.copy_from_slice(&host.lbr[1..]);
        }
        if features.contains(SvmFeatures::VIRTUAL_SPEC_CTRL) {
            v.set(Field::SPEC_CTRL, m.spec_ctrl);
            m.spec_ctrl = host.spec_ctrl;
        }
        if matches!(self.translations.nested, Nested::Npt(_)) {
            v.set(Field::G_PAT, m.pat);
            m.pat = host.pat;
        }
        self.virt.guest = false;
        self.virt.svm.bus_locks = false;
        self.svm_avic_leave();
        self.translations.nested = Nested::None;
        self.translations.guest = false;
        self.translations.tag = 0;
    }

    /// Load the host's PDPTEs if it uses PAE paging: #VMEXIT reads them anew.
    pub(super) fn svm_host_pdptes(&mut self) -> Exec {
        let s = &self.state;
        if s.efer.contains(Efer::LMA) || !s.cr4.contains(Cr4::PAE) {
            return Ok(());
        }
        self.load_pdptes(s.cr3, s.cr0, s.cr4)
    }
}
