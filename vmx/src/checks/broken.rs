//! For every entry check a VMCS that breaks just it: the tests run them through the checks, the test suite through VMLAUNCH.

use crate::controls::{entry, exit, interruption, pin, primary, secondary, tertiary};
use crate::fields::Field;
use crate::vmcs::Vmcs;

/// Addresses that a case may need.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The current VMCS.
    pub current: u64,
    /// A region with the revision of an ordinary VMCS.
    pub other_region: u64,
    /// A page of zeros: PDPTEs that are not present, and no VMCS region.
    pub pae_tables: u64,
    /// A virtual-APIC page, all zero.
    pub virtual_apic: u64,
}

/// What the processor is about to enter with.
pub struct World {
    /// A VMCS that passes, of a 64-bit guest without optional controls; then broken.
    pub vmcs: Vmcs,
    pub places: Places,
    /// Whether the processor is in IA-32e mode.
    pub long_mode: bool,
    /// Quadwords of memory to change: address, value.
    pub pokes: Vec<(u64, u64)>,
}

impl World {
    pub fn new(vmcs: Vmcs, places: Places) -> World {
        World { vmcs, places, long_mode: true, pokes: Vec::new() }
    }

    fn set(&mut self, f: Field, value: u64) {
        self.vmcs.set(f, value);
    }
    fn or(&mut self, f: Field, bits: u64) {
        self.vmcs.set(f, self.vmcs.get(f) | bits);
    }
    fn clear(&mut self, f: Field, bits: u64) {
        self.vmcs.set(f, self.vmcs.get(f) & !bits);
    }
    fn pin(&mut self, bits: u32) {
        self.or(Field::PIN_BASED_CONTROLS, bits as u64);
    }
    fn primary(&mut self, bits: u32) {
        self.or(Field::PRIMARY_CONTROLS, bits as u64);
    }
    fn secondary(&mut self, bits: u32) {
        self.primary(primary::SECONDARY_CONTROLS);
        self.or(Field::SECONDARY_CONTROLS, bits as u64);
    }
    fn tertiary(&mut self, bits: u64) {
        self.primary(primary::TERTIARY_CONTROLS);
        self.or(Field::TERTIARY_CONTROLS, bits);
    }
    pub(super) fn ept(&mut self) {
        self.secondary(secondary::EPT);
        self.set(Field::EPT_POINTER, 0x1e);
    }
    fn tpr_shadow(&mut self) {
        self.primary(primary::TPR_SHADOW);
        self.set(Field::VIRTUAL_APIC_ADDRESS, self.places.virtual_apic);
    }
    fn delivery(&mut self) {
        self.tpr_shadow();
        self.pin(pin::EXTERNAL_INTERRUPT_EXITING);
        self.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY);
    }
    pub(super) fn posted(&mut self) {
        self.delivery();
        self.pin(pin::POSTED_INTERRUPTS);
        self.or(Field::EXIT_CONTROLS, exit::ACKNOWLEDGE_INTERRUPT as u64);
    }
    fn inject(&mut self, kind: u32, vector: u8) {
        self.set(Field::ENTRY_INTERRUPTION_INFORMATION, (interruption::VALID | kind << 8 | vector as u32) as u64);
        self.set(Field::ENTRY_INSTRUCTION_LENGTH, 2);
    }
    /// A 32-bit guest of the 64-bit host, with PAE paging.
    pub(super) fn legacy_guest(&mut self) {
        self.clear(Field::ENTRY_CONTROLS, entry::IA32E_MODE_GUEST as u64);
        self.set(Field::GUEST_CS_ACCESS, 0xc09b);
        self.set(Field::GUEST_EFER, 0);
        self.set(Field::GUEST_CR3, self.places.pae_tables);
    }
    pub(super) fn legacy_host(&mut self) {
        self.legacy_guest();
        self.long_mode = false;
        self.clear(Field::EXIT_CONTROLS, exit::HOST_ADDRESS_SPACE_SIZE as u64);
        self.set(Field::HOST_EFER, 0);
    }
    pub(super) fn v86(&mut self) {
        self.legacy_guest();
        self.or(Field::GUEST_RFLAGS, 1 << 17);
        for n in 0..6 {
            self.set(Field::GUEST_ES_ACCESS.plus(n), 0xf3);
            self.set(Field::GUEST_ES_LIMIT.plus(n), 0xffff);
        }
    }
    fn link(&mut self, to: u64) {
        self.set(Field::VMCS_LINK_POINTER, to);
    }
}

pub type Break = fn(&mut World);
const BEYOND: u64 = 1 << 50;
const NON_CANONICAL: u64 = 1 << 47;

/// (check, how to break it), in the manual's order.
#[rustfmt::skip]
pub const CASES: &[(&str, Break)] = &[
    ("pin-reserved", |w| w.set(Field::PIN_BASED_CONTROLS, 0)),
    ("primary-reserved", |w| w.clear(Field::PRIMARY_CONTROLS, 1 << 1)),
    ("secondary-reserved", |w| w.secondary(1 << 29)),
    ("tertiary-reserved", |w| w.tertiary(1 << 63)),
    ("cr3-target-count", |w| w.set(Field::CR3_TARGET_COUNT, 5)),
    ("io-bitmap-a", |w| { w.primary(primary::IO_BITMAPS); w.set(Field::IO_BITMAP_A, 1); }),
    ("io-bitmap-b", |w| { w.primary(primary::IO_BITMAPS); w.set(Field::IO_BITMAP_B, BEYOND); }),
    ("msr-bitmaps", |w| { w.primary(primary::MSR_BITMAPS); w.set(Field::MSR_BITMAPS, 0x800); }),
    ("virtual-apic-address", |w| { w.tpr_shadow(); w.set(Field::VIRTUAL_APIC_ADDRESS, 8); }),
    ("tpr-threshold-reserved", |w| { w.tpr_shadow(); w.set(Field::TPR_THRESHOLD, 0x10); }),
    ("tpr-threshold-vtpr", |w| { w.tpr_shadow(); w.set(Field::TPR_THRESHOLD, 1); }),
    ("x2apic-needs-tpr-shadow", |w| w.secondary(secondary::VIRTUALIZE_X2APIC)),
    ("registers-need-tpr-shadow", |w| w.secondary(secondary::APIC_REGISTER_VIRTUALIZATION)),
    ("delivery-needs-tpr-shadow", |w| { w.pin(1); w.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY); }),
    ("ipi-needs-tpr-shadow", |w| w.tertiary(tertiary::IPI_VIRTUALIZATION)),
    ("virtual-nmis-need-nmi-exiting", |w| w.pin(pin::VIRTUAL_NMIS)),
    ("nmi-window-needs-virtual-nmis", |w| w.primary(primary::NMI_WINDOW_EXITING)),
    ("apic-access-address", |w| { w.secondary(secondary::VIRTUALIZE_APIC_ACCESSES); w.set(Field::APIC_ACCESS_ADDRESS, 1); }),
    ("x2apic-or-apic-accesses", |w| { w.tpr_shadow(); w.secondary(secondary::VIRTUALIZE_APIC_ACCESSES | secondary::VIRTUALIZE_X2APIC); }),
    ("delivery-needs-interrupt-exiting", |w| { w.delivery(); w.clear(Field::PIN_BASED_CONTROLS, 1); }),
    ("posted-needs-delivery", |w| { w.posted(); w.clear(Field::SECONDARY_CONTROLS, secondary::VIRTUAL_INTERRUPT_DELIVERY as u64); }),
    ("posted-needs-acknowledge", |w| { w.posted(); w.clear(Field::EXIT_CONTROLS, exit::ACKNOWLEDGE_INTERRUPT as u64); }),
    ("notification-vector", |w| { w.posted(); w.set(Field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0x100); }),
    ("posted-descriptor", |w| { w.posted(); w.set(Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, 0x20); }),
    ("vpid", |w| w.secondary(secondary::VPID)),
    ("eptp", |w| { w.ept(); w.set(Field::EPT_POINTER, 0x16); }),
    ("pml-needs-ept", |w| w.secondary(secondary::PML)),
    ("pml-address", |w| { w.ept(); w.secondary(secondary::PML); w.set(Field::PML_ADDRESS, 2); }),
    ("unrestricted-needs-ept", |w| w.secondary(secondary::UNRESTRICTED_GUEST)),
    ("mode-based-execute-needs-ept", |w| w.secondary(secondary::MODE_BASED_EXECUTE)),
    ("ipi-table-address", |w| { w.tpr_shadow(); w.tertiary(tertiary::IPI_VIRTUALIZATION); w.set(Field::PID_POINTER_TABLE_ADDRESS, 4); }),
    ("ipi-table-end", |w| { w.tpr_shadow(); w.tertiary(tertiary::IPI_VIRTUALIZATION); w.set(Field::PID_POINTER_TABLE_ADDRESS, (1 << 46) - 8); w.set(Field::LAST_PID_POINTER_INDEX, 1); }),
    ("vm-functions-reserved", |w| { w.secondary(secondary::VM_FUNCTIONS); w.set(Field::VM_FUNCTION_CONTROLS, 2); }),
    ("eptp-switching-needs-ept", |w| { w.secondary(secondary::VM_FUNCTIONS); w.set(Field::VM_FUNCTION_CONTROLS, 1); }),
    ("eptp-list-address", |w| { w.ept(); w.secondary(secondary::VM_FUNCTIONS); w.set(Field::VM_FUNCTION_CONTROLS, 1); w.set(Field::EPTP_LIST_ADDRESS, 1); }),
    ("vmread-bitmap", |w| { w.secondary(secondary::VMCS_SHADOWING); w.set(Field::VMREAD_BITMAP, 1); }),
    ("vmwrite-bitmap", |w| { w.secondary(secondary::VMCS_SHADOWING); w.set(Field::VMWRITE_BITMAP, 1); }),
    ("virtualization-exception-address", |w| { w.secondary(secondary::EPT_VIOLATION_VE); w.set(Field::VIRTUALIZATION_EXCEPTION_ADDRESS, 1); }),
    ("tsc-multiplier", |w| w.secondary(secondary::TSC_SCALING)),
    ("exit-reserved", |w| w.set(Field::EXIT_CONTROLS, 0)),
    ("save-timer-needs-timer", |w| w.or(Field::EXIT_CONTROLS, exit::SAVE_PREEMPTION_TIMER as u64)),
    ("exit-msr-store", |w| { w.set(Field::EXIT_MSR_STORE_COUNT, 1); w.set(Field::EXIT_MSR_STORE_ADDRESS, 8); }),
    ("exit-msr-load", |w| { w.set(Field::EXIT_MSR_LOAD_COUNT, 2); w.set(Field::EXIT_MSR_LOAD_ADDRESS, (1 << 46) - 16); }),
    ("entry-reserved", |w| w.or(Field::ENTRY_CONTROLS, entry::ENTRY_TO_SMM as u64)),
    ("event-type", |w| w.inject(1, 0x20)),
    ("event-vector", |w| w.inject(interruption::NMI, 3)),
    ("event-error-code-bit", |w| w.inject(interruption::HARDWARE_EXCEPTION, 13)),
    ("event-reserved", |w| { w.inject(interruption::NMI, 2); w.or(Field::ENTRY_INTERRUPTION_INFORMATION, 1 << 12); }),
    ("event-error-code", |w| { w.inject(interruption::HARDWARE_EXCEPTION, 13); w.or(Field::ENTRY_INTERRUPTION_INFORMATION, interruption::ERROR_CODE as u64); w.set(Field::ENTRY_EXCEPTION_ERROR_CODE, 1 << 16); }),
    ("event-instruction-length", |w| { w.inject(interruption::SOFTWARE, 0x80); w.set(Field::ENTRY_INSTRUCTION_LENGTH, 0); }),
    ("entry-msr-load", |w| { w.set(Field::ENTRY_MSR_LOAD_COUNT, 1); w.set(Field::ENTRY_MSR_LOAD_ADDRESS, BEYOND); }),
    ("host-cr0", |w| w.clear(Field::HOST_CR0, 1 << 5)),
    ("host-cr4", |w| w.clear(Field::HOST_CR4, 1 << 13)),
    ("host-cr3", |w| w.set(Field::HOST_CR3, BEYOND)),
    ("host-sysenter-esp", |w| w.set(Field::HOST_SYSENTER_ESP, NON_CANONICAL)),
    ("host-sysenter-eip", |w| w.set(Field::HOST_SYSENTER_EIP, NON_CANONICAL)),
    ("host-perf-global-ctrl", |w| { w.or(Field::EXIT_CONTROLS, exit::LOAD_PERF_GLOBAL_CTRL as u64); w.set(Field::HOST_PERF_GLOBAL_CTRL, 1 << 60); }),
    ("host-pat", |w| { w.or(Field::EXIT_CONTROLS, exit::LOAD_PAT as u64); w.set(Field::HOST_PAT, 2); }),
    ("host-efer-reserved", |w| { w.or(Field::EXIT_CONTROLS, exit::LOAD_EFER as u64); w.or(Field::HOST_EFER, 2); }),
    ("host-efer-mode", |w| { w.or(Field::EXIT_CONTROLS, exit::LOAD_EFER as u64); w.set(Field::HOST_EFER, 0x400); }),
    ("host-es-selector", |w| w.set(Field::HOST_ES_SELECTOR, 1)),
    ("host-cs-selector", |w| w.set(Field::HOST_CS_SELECTOR, 12)),
    ("host-ss-selector", |w| w.set(Field::HOST_SS_SELECTOR, 3)),
    ("host-ds-selector", |w| w.set(Field::HOST_DS_SELECTOR, 1)),
    ("host-fs-selector", |w| w.set(Field::HOST_FS_SELECTOR, 2)),
    ("host-gs-selector", |w| w.set(Field::HOST_GS_SELECTOR, 4)),
    ("host-tr-selector", |w| w.set(Field::HOST_TR_SELECTOR, 28)),
    ("host-cs-null", |w| w.set(Field::HOST_CS_SELECTOR, 0)),
    ("host-tr-null", |w| w.set(Field::HOST_TR_SELECTOR, 0)),
    ("host-ss-null", |w| { w.legacy_host(); w.set(Field::HOST_SS_SELECTOR, 0); }),
    ("host-fs-base", |w| w.set(Field::HOST_FS_BASE, NON_CANONICAL)),
    ("host-gs-base", |w| w.set(Field::HOST_GS_BASE, NON_CANONICAL)),
    ("host-gdtr-base", |w| w.set(Field::HOST_GDTR_BASE, NON_CANONICAL)),
    ("host-idtr-base", |w| w.set(Field::HOST_IDTR_BASE, NON_CANONICAL)),
    ("host-tr-base", |w| w.set(Field::HOST_TR_BASE, NON_CANONICAL)),
    ("size-legacy-guest", |w| w.long_mode = false),
    ("size-legacy-host", |w| { w.legacy_guest(); w.long_mode = false; }),
    ("size-long-host", |w| { w.legacy_host(); w.long_mode = true; }),
    ("size-32-pcide", |w| { w.legacy_host(); w.or(Field::HOST_CR4, 1 << 17); }),
    ("size-32-rip", |w| { w.legacy_host(); w.set(Field::HOST_RIP, 1 << 32); }),
    ("size-64-pae", |w| w.clear(Field::HOST_CR4, 1 << 5)),
    ("size-64-rip", |w| w.set(Field::HOST_RIP, NON_CANONICAL)),
    ("guest-cr0", |w| w.clear(Field::GUEST_CR0, 1 << 5)),
    ("guest-cr0-paging", |w| { w.ept(); w.secondary(secondary::UNRESTRICTED_GUEST); w.clear(Field::GUEST_CR0, 1); }),
    ("guest-cr4", |w| w.or(Field::GUEST_CR4, 1 << 40)),
    ("guest-debugctl", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_DEBUG_CONTROLS as u64); w.set(Field::GUEST_DEBUGCTL, 1 << 20); }),
    ("guest-ia32e-paging", |w| { w.ept(); w.secondary(secondary::UNRESTRICTED_GUEST); w.clear(Field::GUEST_CR0, 1 << 31); }),
    ("guest-ia32e-pae", |w| w.clear(Field::GUEST_CR4, 1 << 5)),
    ("guest-pcide", |w| { w.legacy_guest(); w.or(Field::GUEST_CR4, 1 << 17); }),
    ("guest-cr3", |w| w.set(Field::GUEST_CR3, BEYOND)),
    ("guest-dr7", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_DEBUG_CONTROLS as u64); w.set(Field::GUEST_DR7, 1 << 32); }),
    ("guest-sysenter-esp", |w| w.set(Field::GUEST_SYSENTER_ESP, NON_CANONICAL)),
    ("guest-sysenter-eip", |w| w.set(Field::GUEST_SYSENTER_EIP, NON_CANONICAL)),
    ("guest-perf-global-ctrl", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_PERF_GLOBAL_CTRL as u64); w.set(Field::GUEST_PERF_GLOBAL_CTRL, 1 << 60); }),
    ("guest-pat", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_PAT as u64); w.set(Field::GUEST_PAT, 3 << 8); }),
    ("guest-efer-reserved", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_EFER as u64); w.or(Field::GUEST_EFER, 2); }),
    ("guest-efer-lma", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_EFER as u64); w.clear(Field::GUEST_EFER, 1 << 10); }),
    ("guest-efer-lme", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_EFER as u64); w.clear(Field::GUEST_EFER, 1 << 8); }),
    ("guest-bndcfgs", |w| { w.or(Field::ENTRY_CONTROLS, entry::LOAD_BNDCFGS as u64); w.set(Field::GUEST_BNDCFGS, 4); }),
    ("tr-selector-ti", |w| w.set(Field::GUEST_TR_SELECTOR, 4)),
    ("ldtr-selector-ti", |w| w.set(Field::GUEST_LDTR_SELECTOR, 4)),
    ("ss-selector-rpl", |w| w.set(Field::GUEST_SS_SELECTOR, 1)),
    ("v86-cs-base", |w| { w.v86(); w.set(Field::GUEST_CS_BASE, 0x10); }),
    ("v86-ss-base", |w| { w.v86(); w.set(Field::GUEST_SS_BASE, 0x10); }),
    ("v86-ds-base", |w| { w.v86(); w.set(Field::GUEST_DS_BASE, 0x10); }),
    ("v86-es-base", |w| { w.v86(); w.set(Field::GUEST_ES_BASE, 0x10); }),
    ("v86-fs-base", |w| { w.v86(); w.set(Field::GUEST_FS_BASE, 0x10); }),
    ("v86-gs-base", |w| { w.v86(); w.set(Field::GUEST_GS_BASE, 0x10); }),
    ("tr-base", |w| w.set(Field::GUEST_TR_BASE, NON_CANONICAL)),
    ("fs-base", |w| w.set(Field::GUEST_FS_BASE, NON_CANONICAL)),
    ("gs-base", |w| w.set(Field::GUEST_GS_BASE, NON_CANONICAL)),
    ("ldtr-base", |w| w.set(Field::GUEST_LDTR_BASE, NON_CANONICAL)),
    ("cs-base", |w| w.set(Field::GUEST_CS_BASE, 1 << 32)),
    ("ss-base", |w| w.set(Field::GUEST_SS_BASE, 1 << 32)),
    ("ds-base", |w| w.set(Field::GUEST_DS_BASE, 1 << 32)),
    ("es-base", |w| w.set(Field::GUEST_ES_BASE, 1 << 32)),
    ("v86-cs-limit", |w| { w.v86(); w.set(Field::GUEST_CS_LIMIT, 0); }),
    ("v86-ss-limit", |w| { w.v86(); w.set(Field::GUEST_SS_LIMIT, 0); }),
    ("v86-ds-limit", |w| { w.v86(); w.set(Field::GUEST_DS_LIMIT, 0); }),
    ("v86-es-limit", |w| { w.v86(); w.set(Field::GUEST_ES_LIMIT, 0); }),
    ("v86-fs-limit", |w| { w.v86(); w.set(Field::GUEST_FS_LIMIT, 0); }),
    ("v86-gs-limit", |w| { w.v86(); w.set(Field::GUEST_GS_LIMIT, 0); }),
    ("v86-cs-access", |w| { w.v86(); w.set(Field::GUEST_CS_ACCESS, 0x93); }),
    ("v86-ss-access", |w| { w.v86(); w.set(Field::GUEST_SS_ACCESS, 0x93); }),
    ("v86-ds-access", |w| { w.v86(); w.set(Field::GUEST_DS_ACCESS, 0x93); }),
    ("v86-es-access", |w| { w.v86(); w.set(Field::GUEST_ES_ACCESS, 0x93); }),
    ("v86-fs-access", |w| { w.v86(); w.set(Field::GUEST_FS_ACCESS, 0x93); }),
    ("v86-gs-access", |w| { w.v86(); w.set(Field::GUEST_GS_ACCESS, 0x93); }),
    ("cs-type", |w| w.set(Field::GUEST_CS_ACCESS, 0xa093)),
    ("ss-type", |w| w.set(Field::GUEST_SS_ACCESS, 0xc091)),
    ("ds-type", |w| w.set(Field::GUEST_DS_ACCESS, 0xc092)),
    ("es-type", |w| w.set(Field::GUEST_ES_ACCESS, 0xc099)),
    ("fs-type", |w| w.set(Field::GUEST_FS_ACCESS, 0xc092)),
    ("gs-type", |w| w.set(Field::GUEST_GS_ACCESS, 0xc092)),
    ("cs-s", |w| w.clear(Field::GUEST_CS_ACCESS, 0x10)),
    ("ss-s", |w| w.clear(Field::GUEST_SS_ACCESS, 0x10)),
    ("ds-s", |w| w.clear(Field::GUEST_DS_ACCESS, 0x10)),
    ("es-s", |w| w.clear(Field::GUEST_ES_ACCESS, 0x10)),
    ("fs-s", |w| w.clear(Field::GUEST_FS_ACCESS, 0x10)),
    ("gs-s", |w| w.clear(Field::GUEST_GS_ACCESS, 0x10)),
    ("cs-dpl", |w| w.or(Field::GUEST_CS_ACCESS, 0x60)),
    ("ss-dpl-rpl", |w| { w.or(Field::GUEST_SS_ACCESS, 0x60); w.or(Field::GUEST_CS_ACCESS, 0x60); }),
    ("ss-dpl-real", |w| { w.ept(); w.secondary(secondary::UNRESTRICTED_GUEST); w.legacy_guest(); w.set(Field::GUEST_CR0, 0x30);
        w.or(Field::GUEST_SS_ACCESS, 0x60); w.or(Field::GUEST_CS_ACCESS, 0x60); }),
    ("ds-dpl", |w| w.or(Field::GUEST_DS_SELECTOR, 3)),
    ("es-dpl", |w| w.or(Field::GUEST_ES_SELECTOR, 3)),
    ("fs-dpl", |w| w.or(Field::GUEST_FS_SELECTOR, 3)),
    ("gs-dpl", |w| w.or(Field::GUEST_GS_SELECTOR, 3)),
    ("cs-present", |w| w.clear(Field::GUEST_CS_ACCESS, 0x80)),
    ("ss-present", |w| w.clear(Field::GUEST_SS_ACCESS, 0x80)),
    ("ds-present", |w| w.clear(Field::GUEST_DS_ACCESS, 0x80)),
    ("es-present", |w| w.clear(Field::GUEST_ES_ACCESS, 0x80)),
    ("fs-present", |w| w.clear(Field::GUEST_FS_ACCESS, 0x80)),
    ("gs-present", |w| w.clear(Field::GUEST_GS_ACCESS, 0x80)),
    ("cs-reserved", |w| w.or(Field::GUEST_CS_ACCESS, 1 << 8)),
    ("ss-reserved", |w| w.or(Field::GUEST_SS_ACCESS, 1 << 11)),
    ("ds-reserved", |w| w.or(Field::GUEST_DS_ACCESS, 1 << 17)),
    ("es-reserved", |w| w.or(Field::GUEST_ES_ACCESS, 1 << 31)),
    ("fs-reserved", |w| w.or(Field::GUEST_FS_ACCESS, 1 << 9)),
    ("gs-reserved", |w| w.or(Field::GUEST_GS_ACCESS, 1 << 10)),
    ("cs-default-size", |w| w.or(Field::GUEST_CS_ACCESS, 1 << 14)),
    ("cs-granularity", |w| w.clear(Field::GUEST_CS_ACCESS, 1 << 15)),
    ("ss-granularity", |w| w.set(Field::GUEST_SS_LIMIT, 0xffff_f000)),
    ("ds-granularity", |w| w.set(Field::GUEST_DS_LIMIT, 0)),
    ("es-granularity", |w| w.clear(Field::GUEST_ES_ACCESS, 1 << 15)),
    ("fs-granularity", |w| w.clear(Field::GUEST_FS_ACCESS, 1 << 15)),
    ("gs-granularity", |w| w.clear(Field::GUEST_GS_ACCESS, 1 << 15)),
    ("tr-type", |w| w.set(Field::GUEST_TR_ACCESS, 0x89)),
    ("tr-s", |w| w.or(Field::GUEST_TR_ACCESS, 0x10)),
    ("tr-present", |w| w.clear(Field::GUEST_TR_ACCESS, 0x80)),
    ("tr-reserved", |w| w.or(Field::GUEST_TR_ACCESS, 1 << 8)),
    ("tr-granularity", |w| w.or(Field::GUEST_TR_ACCESS, 1 << 15)),
    ("tr-usable", |w| w.or(Field::GUEST_TR_ACCESS, 1 << 16)),
    ("ldtr-type", |w| w.set(Field::GUEST_LDTR_ACCESS, 0x83)),
    ("ldtr-s", |w| w.or(Field::GUEST_LDTR_ACCESS, 0x10)),
    ("ldtr-present", |w| w.clear(Field::GUEST_LDTR_ACCESS, 0x80)),
    ("ldtr-reserved", |w| w.or(Field::GUEST_LDTR_ACCESS, 1 << 8)),
    ("ldtr-granularity", |w| w.or(Field::GUEST_LDTR_ACCESS, 1 << 15)),
    ("gdtr-base", |w| w.set(Field::GUEST_GDTR_BASE, NON_CANONICAL)),
    ("idtr-base", |w| w.set(Field::GUEST_IDTR_BASE, NON_CANONICAL)),
    ("gdtr-limit", |w| w.set(Field::GUEST_GDTR_LIMIT, 0x10000)),
    ("idtr-limit", |w| w.set(Field::GUEST_IDTR_LIMIT, 0x10000)),
    ("rip-high", |w| { w.legacy_guest(); w.set(Field::GUEST_RIP, 1 << 32); }),
    ("rip-width", |w| w.set(Field::GUEST_RIP, 1 << 48)),
    ("rflags-reserved", |w| w.set(Field::GUEST_RFLAGS, 0)),
    ("rflags-if", |w| w.inject(interruption::EXTERNAL, 0x20)),
    ("activity", |w| w.set(Field::GUEST_ACTIVITY, 4)),
    ("activity-hlt-dpl", |w| { w.set(Field::GUEST_ACTIVITY, 1);
        for s in [Field::GUEST_CS_SELECTOR, Field::GUEST_SS_SELECTOR] { w.set(s, 3); }
        for n in 0..6 { w.or(Field::GUEST_ES_ACCESS.plus(n), 0x60); } }),
    ("activity-shadow", |w| { w.or(Field::GUEST_RFLAGS, 1 << 9); w.set(Field::GUEST_INTERRUPTIBILITY, 1); w.set(Field::GUEST_ACTIVITY, 2); }),
    ("activity-event", |w| { w.set(Field::GUEST_ACTIVITY, 3); w.inject(interruption::NMI, 2); }),
    ("interruptibility-reserved", |w| w.set(Field::GUEST_INTERRUPTIBILITY, 1 << 5)),
    ("interruptibility-both", |w| { w.or(Field::GUEST_RFLAGS, 1 << 9); w.set(Field::GUEST_INTERRUPTIBILITY, 3); }),
    ("interruptibility-if", |w| w.set(Field::GUEST_INTERRUPTIBILITY, 1)),
    ("interruptibility-external", |w| { w.inject(interruption::EXTERNAL, 0x20); w.or(Field::GUEST_RFLAGS, 1 << 9); w.set(Field::GUEST_INTERRUPTIBILITY, 2); }),
    ("interruptibility-nmi", |w| { w.inject(interruption::NMI, 2); w.set(Field::GUEST_INTERRUPTIBILITY, 2); }),
    ("interruptibility-smi", |w| w.set(Field::GUEST_INTERRUPTIBILITY, 4)),
    ("interruptibility-virtual-nmi", |w| { w.pin(pin::NMI_EXITING | pin::VIRTUAL_NMIS); w.inject(interruption::NMI, 2); w.set(Field::GUEST_INTERRUPTIBILITY, 8); }),
    ("pending-debug-reserved", |w| w.set(Field::GUEST_PENDING_DEBUG, 1 << 4)),
    ("pending-debug-step", |w| { w.or(Field::GUEST_RFLAGS, 1 << 8); w.set(Field::GUEST_INTERRUPTIBILITY, 2); }),
    ("link-pointer-address", |w| w.link(0x10)),
    ("link-pointer-revision", |w| w.link(w.places.pae_tables)),
    ("link-pointer-shadow", |w| { w.secondary(secondary::VMCS_SHADOWING); w.link(w.places.other_region); }),
    ("link-pointer-current", |w| w.link(w.places.current)),
    ("pdptes", |w| { w.legacy_guest(); w.pokes.push((w.places.pae_tables + 24, 3)); }),
];

/// Checks that no VMCS of this model can break alone: another check of the same VMCS comes first.
pub const COVERED_ELSEWHERE: &[(&str, &str)] = &[
    ("entry-smm", "entry-reserved"),
    ("host-cr4-cet", "host-cr4"),
    ("guest-cr4-cet", "guest-cr4"),
    ("size-32-guest", "size-legacy-guest"),
    ("rflags-vm", "v86-es-access"),
];

/// How an entry ends that fails a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documented {
    /// VMfailValid with this VM-instruction error.
    Error(u32),
    /// A VM exit for invalid guest state, with this qualification.
    Exit(u64),
}

/// What the manual says of a case's check (SDM vol. 3, Checks on VMX Controls and Host-State Area; VM-Entry Failures During or After
/// Loading Guest State).
pub fn documented(name: &str) -> Documented {
    let at = |wanted: &str| CASES.iter().position(|c| c.0 == wanted);
    match name {
        _ if at(name) <= at("entry-msr-load") => Documented::Error(7),
        _ if at(name) <= at("size-64-rip") => Documented::Error(8),
        "pdptes" => Documented::Exit(2),
        _ if name.starts_with("link-pointer") => Documented::Exit(4),
        _ => Documented::Exit(0),
    }
}
