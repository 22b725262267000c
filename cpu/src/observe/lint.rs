//! Mistakes that hardware lets pass, most of the time: what a hypervisor relies on although the manual does not promise it.

use std::collections::BTreeMap;

use undervisor_core::{Cr0, Cr4, Efer, SvmFeatures};
use undervisor_mmu::{PAGE_MASK, TlbEntry};
use undervisor_svm::controls::extensions;
use undervisor_svm::fields::{FIELDS, clean};
use undervisor_svm::{Field as SvmField, bitmaps as svm_bitmaps, reason as svm_reason};
use undervisor_vmx::controls::{entry, exit, primary};
use undervisor_vmx::{Field, bitmaps, describe};

use super::look::{Mapping, View};
use super::provenance::Written;
use super::want;
use crate::cpu::Cpu;
use crate::paging::Access;

/// What can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lint {
    StaleTranslation,
    VmcsActiveElsewhere,
    DirectVmcsWrite,
    CleanBit,
    UndefinedExitField,
    HostStateUnmapped,
    MsrHole,
    IoHole,
}

impl Lint {
    /// Name, for messages and for choosing.
    pub fn name(self) -> &'static str {
        match self {
            Lint::StaleTranslation => "stale-translation",
            Lint::VmcsActiveElsewhere => "vmcs-active-elsewhere",
            Lint::DirectVmcsWrite => "direct-vmcs-write",
            Lint::CleanBit => "clean-bit",
            Lint::UndefinedExitField => "undefined-exit-field",
            Lint::HostStateUnmapped => "host-state-unmapped",
            Lint::MsrHole => "msr-hole",
            Lint::IoHole => "io-hole",
        }
    }

    /// What the manual says.
    pub fn rule(self, amd: bool) -> &'static str {
        match (self, amd) {
            (Lint::StaleTranslation, false) => {
                "SDM vol. 3, Invalidating Cached Translation Information: after a change that takes a right away, use INVEPT, \
                 INVVPID or INVLPG before the next use"
            }
            (Lint::StaleTranslation, true) => {
                "APM vol. 2, TLB Control; TLB Management: after a change that takes a right away, flush with TLB_CONTROL, INVLPGA \
                 or a new ASID"
            }
            (Lint::VmcsActiveElsewhere, _) => {
                "SDM vol. 3, Software Use of Virtual-Machine Control Structures: a VMCS must not be active on more than one \
                 processor; VMCLEAR it on the old one first"
            }
            (Lint::DirectVmcsWrite, _) => {
                "SDM vol. 3, Software Access to the Virtual-Machine Control Structure: ordinary writes to an active VMCS region \
                 have unpredictable effects"
            }
            (Lint::CleanBit, _) => {
                "APM vol. 2, VMCB Clean Bits: a bit may be set only if no field of its group has changed since the last #VMEXIT"
            }
            (Lint::UndefinedExitField, false) => {
                "SDM vol. 3, Recording VM-Exit Information and Updating VM-Entry Control Fields: undefined for other exits"
            }
            (Lint::UndefinedExitField, true) => "APM vol. 2, Appendix C: this exit code does not define it",
            (Lint::HostStateUnmapped, false) => "SDM vol. 3, Loading Host RIP, RSP, and RFLAGS: the next VM exit would fault",
            (Lint::HostStateUnmapped, true) => "APM vol. 2, #VMEXIT: the host's next push would fault",
            (Lint::MsrHole, false) => "SDM vol. 3, MSR-Bitmap Address: a clear bit lets the guest write the real register",
            (Lint::MsrHole, true) => "APM vol. 2, MSR Intercepts: a clear bit lets the guest write the real register",
            (Lint::IoHole, _) => "I/O bitmaps: a clear bit lets the guest use the machine's real port",
        }
    }
}

/// A lint that was tripped.
#[derive(Clone, Debug)]
pub struct Finding {
    pub lint: Lint,
    pub cpu: usize,
    pub level: u8,
    pub now: u64,
    pub rip: u64,
    pub amd: bool,
    /// What was found.
    pub text: String,
    /// Who wrote the value concerned, if that is known.
    pub written: Option<Written>,
}

/// A translation in the TLB that the tables no longer give.
#[derive(Clone, Copy)]
struct Stale {
    space: u64,
    linear: u64,
    kept: Kept,
    /// What the tables say now.
    now: Option<u64>,
}

/// Where a translation was taken out of.
#[derive(Clone, Copy)]
enum Kept {
    /// The TLB, by its bank.
    Data(usize, TlbEntry),
    /// The translations of instruction fetches: the privilege (1: user), and the physical page.
    Fetch(usize, u64),
}

/// What the lints remember.
#[derive(Default)]
pub(super) struct State {
    /// Active VMCSs, and the processor on which each is active.
    active: BTreeMap<u64, usize>,
    /// Findings by lint and place.
    found: BTreeMap<(Lint, u64, u64), u64>,
    stale: Vec<Stale>,
}

/// Stale translations remembered.
const MOST_STALE: usize = 4096;

impl State {
    pub(super) fn counts(&self) -> impl Iterator<Item = (Lint, u64)> + '_ {
        let mut counts = BTreeMap::new();
        for (key, n) in &self.found {
            *counts.entry(key.0).or_insert(0) += n;
        }
        counts.into_iter()
    }
}

/// MSRs that a guest must not write unseen.
const EFER: u32 = 0xc000_0080;
const DEBUGCTL: u32 = 0x1d9;
const APIC_BASE: u32 = 0x1b;
/// Ports with which a guest could reset the machine or rearrange its buses: keyboard controller, fast A20 and reset, PCI
/// configuration (0xcf9 is the reset register).
const PORTS: [(u16, &str); 4] =
    [(0x64, "keyboard controller"), (0x92, "fast reset"), (0xcf9, "reset control"), (0xcfc, "PCI configuration")];

impl Cpu {
    fn found(&mut self, lint: Lint, place: (u64, u64), rip: u64, written: Option<Written>, text: impl FnOnce() -> String) {
        let Some(o) = &self.observer else { return };
        let mut o = o.borrow_mut();
        let count = o.lints.found.entry((lint, place.0, place.1)).or_default();
        *count += 1;
        if *count == 1 {
            let finding = Finding {
                lint,
                cpu: self.id,
                // What is wrong at an entry is the hypervisor's; only a translation is used by the guest itself.
                level: if lint == Lint::StaleTranslation { self.level_number() } else { 1 },
                now: self.now(),
                rip,
                amd: self.is_amd(),
                text: text(),
                written,
            };
            o.flush();
            o.sink.finding(&finding);
        }
    }

    /// VMPTRLD of a valid VMCS.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_vmptrld(&mut self, pointer: u64) {
        let (rip, id) = (self.observed_rip(), self.id);
        let before = self.observer.as_ref().and_then(|o| o.borrow_mut().lints.active.insert(pointer, id));
        self.observe_page(pointer, false);
        if let Some(other) = before.filter(|&o| o != id) {
            self.found(Lint::VmcsActiveElsewhere, (pointer, rip), rip, None, || {
                format!("VMPTRLD of the VMCS at {pointer:#x}, which is active on processor {other}")
            });
        }
    }

    /// VMCLEAR.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_vmclear(&mut self, pointer: u64) {
        if let Some(o) = &self.observer {
            o.borrow_mut().lints.active.remove(&pointer);
        }
    }

    /// VMXOFF: what was active on this processor no longer is.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_vmxoff(&mut self) {
        let id = self.id;
        if let Some(o) = &self.observer {
            o.borrow_mut().lints.active.retain(|_, cpu| *cpu != id);
        }
    }

    pub(super) fn lint_store(&mut self, page: u64, offset: usize, rip: u64) {
        let active = self.observer.as_ref().and_then(|o| o.borrow().lints.active.get(&page).copied());
        if let Some(cpu) = active {
            self.found(Lint::DirectVmcsWrite, (page, rip), rip, None, || {
                format!("a store to offset {offset:#x} of the VMCS region at {page:#x}, which is active on processor {cpu}")
            });
        }
    }

    pub(super) fn lint_vmread(&mut self, field: Field, rip: u64) {
        let v = &self.virt.vmx.vmcs;
        if describe::undefined_after_exit(v, field) && v.launched {
            let reason = v.get32(Field::EXIT_REASON);
            self.found(Lint::UndefinedExitField, (field.0 as u64, reason as u64), rip, None, || {
                let name = undervisor_vmx::reason::name(reason & 0xffff);
                format!("VMREAD of {field:?} after an exit for {name} (reason {reason:#x}), which leaves it undefined")
            });
        }
    }

    pub(super) fn lint_vmcb_load(&mut self, index: usize, offset: usize) {
        let vmcb = &self.virt.svm.vmcb;
        if vmcb.address().and_then(|a| self.shared.memory.page_index(a)) != Some(index) {
            return;
        }
        let code = vmcb.get(SvmField::EXITCODE);
        let Some(row) = undervisor_svm::describe::row_at(offset as u64) else { return };
        if undervisor_svm::describe::undefined_after_exit(code, vmcb.get(SvmField::EXITINTINFO), row.field) {
            let rip = self.observed_rip();
            self.found(Lint::UndefinedExitField, (offset as u64, code), rip, None, || {
                let name = svm_reason::name(code);
                format!("a load of {} after an exit for {name} (code {code:#x}), which leaves it undefined", row.name)
            });
        }
    }

    /// Whether code (or with `write` a stack) can be at `linear`; if not, why.
    fn unmapped(&self, view: &View, linear: u64, write: bool) -> Option<&'static str> {
        match view.linear(&self.shared.memory, linear) {
            None => Some("is not mapped"),
            Some(m) if self.shared.memory.page_index(m.physical).is_none() => Some("is mapped outside RAM"),
            Some(m) if write && !m.writable => Some("is mapped read-only"),
            Some(m) if !write && !m.executable => Some("is mapped execute-disable"),
            Some(_) => None,
        }
    }

    /// A guest has been entered by VMX; its state is in force.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_vmx_entry(&mut self, rip: u64) {
        let v = &self.virt.vmx.vmcs;
        let efer = if v.exit_control(exit::HOST_ADDRESS_SPACE_SIZE) { Efer::LMA.bits() } else { 0 };
        let cr4 = v.get(Field::HOST_CR4) | if efer != 0 { Cr4::PAE.bits() } else { 0 };
        let cr0 = v.get(Field::HOST_CR0) | Cr0::PG.bits();
        let view = View::of(cr0, v.get(Field::HOST_CR3), cr4, efer, &self.shared.memory);
        let (host_rip, host_rsp) = (v.get(Field::HOST_RIP), v.get(Field::HOST_RSP));
        for (field, address, write) in [(Field::HOST_RIP, host_rip, false), (Field::HOST_RSP, host_rsp.wrapping_sub(8), true)] {
            if let Some(why) = self.unmapped(&view, address, write) {
                let written = (self.observing & want::EXPLAIN != 0).then(|| self.vmcs_written(field));
                let value = self.virt.vmx.vmcs.get(field);
                self.found(Lint::HostStateUnmapped, (field.0 as u64, value), rip, written, || {
                    format!("{field:?} = {value:#x} {why} by the page tables at HOST_CR3")
                });
            }
        }
        let shared = self.shared.clone();
        let v = &self.virt.vmx.vmcs;
        let kept = |e, x| v.entry_control(e) && v.exit_control(x);
        let mut holes = Vec::new();
        if v.primary(primary::MSR_BITMAPS) {
            let efer_kept = kept(entry::LOAD_EFER, exit::SAVE_EFER) && v.exit_control(exit::LOAD_EFER);
            let debugctl_kept = kept(entry::LOAD_DEBUG_CONTROLS, exit::SAVE_DEBUG_CONTROLS);
            for (msr, name, kept) in [
                (EFER, "IA32_EFER", efer_kept),
                (DEBUGCTL, "IA32_DEBUGCTL", debugctl_kept),
                (APIC_BASE, "IA32_APIC_BASE", false),
            ] {
                if !kept && !bitmaps::msr_exits(v, &*shared, msr, true) {
                    holes.push((msr, name));
                }
            }
        }
        let bitmap = v.get(Field::MSR_BITMAPS);
        let mut ports = Vec::new();
        for (port, name) in PORTS {
            if !bitmaps::io_exits(v, &*shared, port, 1) {
                ports.push((port, name));
            }
        }
        self.holes(bitmap, &holes, &ports, rip);
        self.lint_translations();
    }

    fn holes(&mut self, bitmap: u64, msrs: &[(u32, &'static str)], ports: &[(u16, &'static str)], rip: u64) {
        for &(msr, name) in msrs {
            self.found(Lint::MsrHole, (bitmap, msr as u64), rip, None, || {
                format!("the MSR bitmap at {bitmap:#x} lets the guest write {name} ({msr:#x}) without an exit")
            });
        }
        for &(port, name) in ports {
            self.found(Lint::IoHole, (port as u64, 0), rip, None, || {
                format!("the guest can use port {port:#x} ({name}) without an exit")
            });
        }
    }

    /// VMRUN, before the VMCB is read; the host's state is in force.
    pub(super) fn lint_vmrun(&mut self, address: u64) {
        let rip = self.observed_rip();
        let shared = self.shared.clone();
        let memory = &shared.memory;
        if self.model.svm.contains(SvmFeatures::VMCB_CLEAN) {
            let stale = self.virt.svm.vmcb.stale(memory, address);
            for group in (0..12).map(|b| 1u32 << b).filter(|g| stale & g != 0) {
                let changed = FIELDS.iter().find_map(|row| {
                    let f = row.field;
                    let word = memory.read::<u64>(address + (f.offset as u64 & !7))?;
                    let value = word >> (8 * (f.offset as u32 % 8)) & (u64::MAX >> (64 - 8 * f.size as u32));
                    let cached = self.virt.svm.vmcb.get(f);
                    (f.group == group && value != cached).then_some((row, value, cached))
                });
                let Some((row, value, cached)) = changed else { continue };
                let index = memory.page_index(address);
                let written = self.observer.as_ref().map(|o| o.borrow().provenance.of_vmcb(index, row.field));
                let names = undervisor_svm::describe::clean_names(group & clean::ALL).join(", ");
                self.found(Lint::CleanBit, (group as u64, row.field.offset as u64), rip, written, || {
                    format!(
                        "the clean bit \"{names}\" is set, but {} was changed from {cached:#x} to {value:#x}: VMRUN goes on with \
                         the old value",
                        row.name
                    )
                });
            }
        }
        let rsp = self.stack_pointer();
        if let Some(why) = self.unmapped(&self.view(), rsp.wrapping_sub(8), true) {
            self.found(Lint::HostStateUnmapped, (rsp, 0), rip, None, || format!("the host's RSP = {rsp:#x} {why}"));
        }
    }

    /// A guest has been entered by VMRUN.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_svm_entry(&mut self, rip: u64) {
        let shared = self.shared.clone();
        let memory = &shared.memory;
        let v = &self.virt.svm.vmcb;
        let on = |code: u64| v.get(SvmField::INTERCEPT_3) >> (code - svm_reason::INTR) & 1 != 0;
        let (msrpm, iopm) = (v.get(SvmField::MSRPM_BASE_PA), v.get(SvmField::IOPM_BASE_PA));
        let lbr = self.model.svm.contains(SvmFeatures::LBR_VIRTUALIZATION)
            && v.get(SvmField::VIRTUAL_EXTENSIONS) & extensions::LBR != 0;
        let (msr_on, io_on) = (on(svm_reason::MSR), on(svm_reason::IOIO));
        let msrs: Vec<_> = [(EFER, "EFER", false), (DEBUGCTL, "DEBUGCTL", lbr), (APIC_BASE, "APIC_BASE", false)]
            .into_iter()
            .filter(|&(msr, _, kept)| !(kept || msr_on && svm_bitmaps::msr_intercepted(memory, msrpm, msr, true)))
            .map(|(msr, name, _)| (msr, name))
            .collect();
        let ports: Vec<_> =
            PORTS.into_iter().filter(|&(port, _)| !(io_on && svm_bitmaps::io_intercepted(memory, iopm, port, 1))).collect();
        self.holes(msrpm, &msrs, &ports, rip);
        self.lint_translations();
    }

    /// Take out of the TLB what the tables of the guest just entered no longer say, and remember it: only its use is a mistake.
    fn lint_translations(&mut self) {
        let view = self.view();
        let shared = self.shared.clone();
        let space = self.space;
        let mut stale = Vec::new();
        let mut note = |linear, kept, now: Option<Mapping>| {
            stale.push(Stale { space, linear, kept, now: now.map(|m| m.physical & PAGE_MASK) });
        };
        for (bank, linear, entry) in self.tlb.in_guest_space(space) {
            let now = view.linear(&shared.memory, linear);
            let good = now.is_some_and(|m| {
                m.physical & PAGE_MASK == entry.physical && (m.writable || entry.write == undervisor_mmu::tlb::NEVER)
            });
            if !good {
                note(linear, Kept::Data(bank, entry), now);
            }
        }
        for (user, linear, physical) in self.translations.fetches_in(space) {
            let now = view.linear(&shared.memory, linear);
            if !now.is_some_and(|m| m.physical & PAGE_MASK == physical && m.executable) {
                note(linear, Kept::Fetch(user, physical), now);
            }
        }
        for s in &stale {
            match s.kept {
                Kept::Data(bank, _) => *self.tlb.entry(bank, s.linear) = TlbEntry::EMPTY,
                Kept::Fetch(user, _) => {
                    self.translations.set_fetch(user, s.linear, space, None);
                    self.jumps.drop_page(s.linear);
                }
            }
        }
        if let Some(o) = &self.observer {
            let o = &mut *o.borrow_mut();
            o.lints.stale.retain(|old| old.space != space || !stale.iter().any(|s| s.linear == old.linear));
            let room = MOST_STALE.saturating_sub(o.lints.stale.len());
            o.lints.stale.extend(stale.into_iter().take(room));
        }
    }

    /// A page is being forgotten by INVLPG and its kin.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_page_flushed(&mut self, linear: u64) {
        if let Some(o) = &self.observer {
            o.borrow_mut().lints.stale.retain(|s| s.linear >> 22 != linear >> 22);
        }
    }

    /// An access that the TLB does not answer: if only because a stale entry was taken out, that entry comes back, and its use is
    /// told. The address it leads to.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_stale_use(&mut self, bank: usize, linear: u64, access: Access) -> Option<u64> {
        let stale = self.take_stale(linear, |kept| matches!(kept, Kept::Data(b, _) if b == bank))?;
        let Kept::Data(_, entry) = stale.kept else { return None };
        if access.write && entry.write == undervisor_mmu::tlb::NEVER {
            return None;
        }
        *self.tlb.entry(bank, linear) = entry;
        self.stale_used(&stale, linear, entry.physical, "may no longer be written");
        Some(entry.physical | linear & 0xfff)
    }

    /// Likewise for an instruction fetch.
    #[cold]
    #[inline(never)]
    pub(crate) fn lint_stale_fetch(&mut self, user: usize, linear: u64) -> Option<u64> {
        let stale = self.take_stale(linear, |kept| matches!(kept, Kept::Fetch(u, _) if u == user))?;
        let Kept::Fetch(_, physical) = stale.kept else { return None };
        self.translations.set_fetch(user, linear, self.space, Some(physical));
        self.stale_used(&stale, linear, physical, "no longer let instructions be fetched there");
        Some(physical | linear & 0xfff)
    }

    fn take_stale(&mut self, linear: u64, wanted: impl Fn(Kept) -> bool) -> Option<Stale> {
        let (space, page) = (self.space, linear & PAGE_MASK);
        let lints = &mut self.observer.as_ref()?.borrow_mut().lints;
        let at = lints.stale.iter().position(|s| s.space == space && s.linear == page && wanted(s.kept))?;
        Some(lints.stale.swap_remove(at))
    }

    /// Tell that the translation of `linear` to the page `old` is used. `less`: what the tables say if they lead there still.
    fn stale_used(&mut self, stale: &Stale, linear: u64, old: u64, less: &str) {
        let rip = self.observed_rip();
        self.found(Lint::StaleTranslation, (stale.linear, old), rip, None, || {
            let now = match stale.now {
                None => "no longer map it".to_owned(),
                Some(now) if now == old => less.to_owned(),
                Some(now) => format!("now lead to {now:#x}"),
            };
            format!(
                "the guest uses a translation of {linear:#x} to the page {old:#x}, but its tables {now}: a flush is missing"
            )
        });
    }
}
