//! What VMCS fields mean to people: the bits of each, and what is left undefined by which exit. See
//! [`undervisor_core::describe`].

use undervisor_core::describe::{self, Layout, bit, number};

use crate::capabilities::Capabilities;
use crate::controls::interruption;
use crate::fields::{Field, FieldType, Width};
use crate::reason::{ENTRY_FAILURE, basic, error};
use crate::vmcs::Vmcs;

const PIN: Layout = &[
    bit(0, "external-interrupt exiting"),
    number(1, 2, "default1"),
    bit(3, "NMI exiting"),
    bit(4, "default1"),
    bit(5, "virtual NMIs"),
    bit(6, "activate VMX-preemption timer"),
    bit(7, "process posted interrupts"),
];

const PRIMARY: Layout = &[
    bit(1, "default1"),
    bit(2, "interrupt-window exiting"),
    bit(3, "use TSC offsetting"),
    number(4, 3, "default1"),
    bit(7, "HLT exiting"),
    bit(8, "default1"),
    bit(9, "INVLPG exiting"),
    bit(10, "MWAIT exiting"),
    bit(11, "RDPMC exiting"),
    bit(12, "RDTSC exiting"),
    number(13, 2, "default1"),
    bit(15, "CR3-load exiting"),
    bit(16, "CR3-store exiting"),
    bit(17, "activate tertiary controls"),
    bit(19, "CR8-load exiting"),
    bit(20, "CR8-store exiting"),
    bit(21, "use TPR shadow"),
    bit(22, "NMI-window exiting"),
    bit(23, "MOV-DR exiting"),
    bit(24, "unconditional I/O exiting"),
    bit(25, "use I/O bitmaps"),
    bit(26, "default1"),
    bit(27, "monitor trap flag"),
    bit(28, "use MSR bitmaps"),
    bit(29, "MONITOR exiting"),
    bit(30, "PAUSE exiting"),
    bit(31, "activate secondary controls"),
];

const SECONDARY: Layout = &[
    bit(0, "virtualize APIC accesses"),
    bit(1, "enable EPT"),
    bit(2, "descriptor-table exiting"),
    bit(3, "enable RDTSCP"),
    bit(4, "virtualize x2APIC mode"),
    bit(5, "enable VPID"),
    bit(6, "WBINVD exiting"),
    bit(7, "unrestricted guest"),
    bit(8, "APIC-register virtualization"),
    bit(9, "virtual-interrupt delivery"),
    bit(10, "PAUSE-loop exiting"),
    bit(11, "RDRAND exiting"),
    bit(12, "enable INVPCID"),
    bit(13, "enable VM functions"),
    bit(14, "VMCS shadowing"),
    bit(15, "enable ENCLS exiting"),
    bit(16, "RDSEED exiting"),
    bit(17, "enable PML"),
    bit(18, "EPT-violation #VE"),
    bit(19, "conceal VMX from PT"),
    bit(20, "enable XSAVES/XRSTORS"),
    bit(22, "mode-based execute control for EPT"),
    bit(23, "sub-page write permissions for EPT"),
    bit(24, "Intel PT uses guest physical addresses"),
    bit(25, "use TSC scaling"),
    bit(26, "enable user wait and pause"),
    bit(27, "enable PCONFIG"),
    bit(28, "enable ENCLV exiting"),
    bit(30, "VMM bus-lock detection"),
    bit(31, "instruction timeout"),
];

const TERTIARY: Layout = &[
    bit(0, "LOADIWKEY exiting"),
    bit(1, "enable HLAT"),
    bit(2, "EPT paging-write control"),
    bit(3, "guest-paging verification"),
    bit(4, "IPI virtualization"),
    bit(7, "virtualize IA32_SPEC_CTRL"),
];

const EXIT: Layout = &[
    number(0, 2, "default1"),
    bit(2, "save debug controls"),
    number(3, 6, "default1"),
    bit(9, "host address-space size"),
    number(10, 2, "default1"),
    bit(12, "load IA32_PERF_GLOBAL_CTRL"),
    number(13, 2, "default1"),
    bit(15, "acknowledge interrupt on exit"),
    number(16, 2, "default1"),
    bit(18, "save IA32_PAT"),
    bit(19, "load IA32_PAT"),
    bit(20, "save IA32_EFER"),
    bit(21, "load IA32_EFER"),
    bit(22, "save VMX-preemption timer value"),
    bit(23, "clear IA32_BNDCFGS"),
    bit(24, "conceal VMX from PT"),
    bit(25, "clear IA32_RTIT_CTL"),
    bit(28, "load CET state"),
    bit(29, "load PKRS"),
    bit(30, "save IA32_PERF_GLOBAL_CTRL"),
];

const ENTRY: Layout = &[
    number(0, 2, "default1"),
    bit(2, "load debug controls"),
    number(3, 6, "default1"),
    bit(9, "IA-32e mode guest"),
    bit(10, "entry to SMM"),
    bit(11, "deactivate dual-monitor treatment"),
    bit(12, "default1"),
    bit(13, "load IA32_PERF_GLOBAL_CTRL"),
    bit(14, "load IA32_PAT"),
    bit(15, "load IA32_EFER"),
    bit(16, "load IA32_BNDCFGS"),
    bit(17, "conceal VMX from PT"),
    bit(18, "load IA32_RTIT_CTL"),
    bit(20, "load CET state"),
    bit(22, "load PKRS"),
];

/// Segment access rights (SDM vol. 3, Format of Access Rights).
pub const ACCESS: Layout = &[
    number(0, 4, "type"),
    bit(4, "S: code or data"),
    number(5, 2, "DPL"),
    bit(7, "P"),
    bit(12, "AVL"),
    bit(13, "L"),
    bit(14, "D/B"),
    bit(15, "G"),
    bit(16, "unusable"),
];

const INTERRUPTION: Layout = &[
    number(0, 8, "vector"),
    number(8, 3, "type"),
    bit(11, "error code valid"),
    bit(12, "NMI unblocking due to IRET"),
    bit(31, "valid"),
];

const INTERRUPTIBILITY: Layout = &[
    bit(0, "blocking by STI"),
    bit(1, "blocking by MOV SS"),
    bit(2, "blocking by SMI"),
    bit(3, "blocking by NMI"),
    bit(4, "enclave interruption"),
];

const PENDING_DEBUG: Layout = &[
    bit(0, "B0"),
    bit(1, "B1"),
    bit(2, "B2"),
    bit(3, "B3"),
    bit(11, "BLD"),
    bit(12, "enabled breakpoint"),
    bit(14, "BS"),
    bit(16, "RTM"),
];

const EPTP: Layout = &[
    number(0, 3, "memory type"),
    number(3, 3, "page-walk length minus 1"),
    bit(6, "accessed and dirty flags"),
    bit(7, "supervisor shadow stack"),
    number(12, 40, "EPT PML4 table"),
];

const EXCEPTIONS: Layout = &[
    bit(0, "#DE"),
    bit(1, "#DB"),
    bit(2, "NMI"),
    bit(3, "#BP"),
    bit(4, "#OF"),
    bit(5, "#BR"),
    bit(6, "#UD"),
    bit(7, "#NM"),
    bit(8, "#DF"),
    bit(10, "#TS"),
    bit(11, "#NP"),
    bit(12, "#SS"),
    bit(13, "#GP"),
    bit(14, "#PF"),
    bit(16, "#MF"),
    bit(17, "#AC"),
    bit(18, "#MC"),
    bit(19, "#XM"),
    bit(20, "#VE"),
    bit(21, "#CP"),
];

const REASON: Layout = &[
    number(0, 16, "basic exit reason"),
    bit(26, "bus lock"),
    bit(27, "enclave mode"),
    bit(28, "pending MTF VM exit"),
    bit(29, "exit from VMX root operation"),
    bit(31, "VM-entry failure"),
];

/// Exit qualification of an EPT violation (SDM vol. 3, Exit Qualification for EPT Violations).
pub const EPT_VIOLATION: Layout = &[
    bit(0, "read"),
    bit(1, "write"),
    bit(2, "fetch"),
    bit(3, "readable"),
    bit(4, "writable"),
    bit(5, "executable"),
    bit(6, "executable in user mode"),
    bit(7, "linear address valid"),
    bit(8, "access to the translation, not to a paging structure"),
    bit(9, "user-mode linear address"),
    bit(10, "writable linear address"),
    bit(11, "execute-disable linear address"),
    bit(12, "NMI unblocking due to IRET"),
];

/// Exit qualification of a control-register access.
pub const CR_ACCESS: Layout = &[
    number(0, 4, "control register"),
    number(4, 2, "access type"),
    bit(6, "LMSW from memory"),
    number(8, 4, "register"),
    number(16, 16, "LMSW source"),
];

/// Exit qualification of an I/O instruction.
pub const IO: Layout = &[
    number(0, 3, "size minus 1"),
    bit(3, "IN"),
    bit(4, "string"),
    bit(5, "REP"),
    bit(6, "immediate operand"),
    number(16, 16, "port"),
];

/// Exit qualification of an instruction timeout.
const TIMEOUT: Layout = &[bit(0, "VM context invalid"), bit(12, "NMI unblocking due to IRET")];

const TASK: Layout = &[number(0, 16, "TSS selector"), number(30, 2, "source")];
const APIC_ACCESS: Layout = &[number(0, 12, "offset"), number(12, 4, "access type")];

/// The bits of an exit qualification.
pub fn qualification(basic_reason: u32) -> Layout {
    match basic_reason {
        basic::EPT_VIOLATION => EPT_VIOLATION,
        basic::CR_ACCESS => CR_ACCESS,
        basic::IO => IO,
        basic::TASK_SWITCH => TASK,
        basic::APIC_ACCESS => APIC_ACCESS,
        basic::INSTRUCTION_TIMEOUT => TIMEOUT,
        _ => &[],
    }
}

/// The bits of a field; empty: it is one number.
pub fn layout(f: Field) -> Layout {
    use Field as F;
    match f {
        F::PIN_BASED_CONTROLS => PIN,
        F::PRIMARY_CONTROLS => PRIMARY,
        F::SECONDARY_CONTROLS => SECONDARY,
        F::TERTIARY_CONTROLS => TERTIARY,
        F::EXIT_CONTROLS => EXIT,
        F::ENTRY_CONTROLS => ENTRY,
        F::EXCEPTION_BITMAP => EXCEPTIONS,
        F::EXIT_REASON => REASON,
        F::ENTRY_INTERRUPTION_INFORMATION | F::EXIT_INTERRUPTION_INFORMATION | F::IDT_VECTORING_INFORMATION => INTERRUPTION,
        F::GUEST_INTERRUPTIBILITY => INTERRUPTIBILITY,
        F::GUEST_PENDING_DEBUG => PENDING_DEBUG,
        F::EPT_POINTER => EPTP,
        F::GUEST_CR0 | F::HOST_CR0 | F::CR0_MASK | F::CR0_READ_SHADOW => describe::CR0,
        F::GUEST_CR3 | F::HOST_CR3 => describe::CR3,
        F::GUEST_CR4 | F::HOST_CR4 | F::CR4_MASK | F::CR4_READ_SHADOW => describe::CR4,
        F::GUEST_EFER | F::HOST_EFER => describe::EFER,
        F::GUEST_PAT | F::HOST_PAT => describe::PAT,
        F::GUEST_RFLAGS => describe::RFLAGS,
        F::GUEST_DR7 => describe::DR7,
        F::GUEST_DEBUGCTL => describe::DEBUGCTL,
        _ => {
            let Some(row) = f.row() else { return &[] };
            let state = matches!(row.field_type(), FieldType::Guest | FieldType::Host);
            if row.name.ends_with("_ACCESS") && row.field_type() == FieldType::Guest {
                ACCESS
            } else if state && row.width() == Width::W16 && row.name.ends_with("_SELECTOR") {
                describe::SELECTOR
            } else {
                &[]
            }
        }
    }
}

/// For a control field: the bits that must be one and those that may be, by the capability MSR of this name.
pub fn allowed(f: Field, c: &Capabilities) -> Option<(u64, u64, &'static str)> {
    let of = |a: crate::capabilities::Allowed, name| Some((a.must as u64, a.may as u64, name));
    match f {
        Field::PIN_BASED_CONTROLS => of(c.pin, "IA32_VMX_TRUE_PINBASED_CTLS"),
        Field::PRIMARY_CONTROLS => of(c.primary, "IA32_VMX_TRUE_PROCBASED_CTLS"),
        Field::SECONDARY_CONTROLS => of(c.secondary, "IA32_VMX_PROCBASED_CTLS2"),
        Field::EXIT_CONTROLS => of(c.exit, "IA32_VMX_TRUE_EXIT_CTLS"),
        Field::ENTRY_CONTROLS => of(c.entry, "IA32_VMX_TRUE_ENTRY_CTLS"),
        Field::TERTIARY_CONTROLS => Some((0, c.tertiary, "IA32_VMX_PROCBASED_CTLS3")),
        Field::GUEST_CR4 | Field::HOST_CR4 => {
            Some((Capabilities::CR4_FIXED0, c.limits.cr4_allowed, "IA32_VMX_CR4_FIXED0 and IA32_VMX_CR4_FIXED1"))
        }
        Field::GUEST_CR0 | Field::HOST_CR0 => {
            Some((Capabilities::CR0_FIXED0, Capabilities::CR0_FIXED1, "IA32_VMX_CR0_FIXED0 and IA32_VMX_CR0_FIXED1"))
        }
        Field::GUEST_EFER | Field::HOST_EFER => Some((0, c.limits.efer_allowed, "the processor model")),
        _ => None,
    }
}

/// What a number in this field is called, where the field holds one of a list.
pub fn value_name(f: Field, value: u64) -> Option<&'static str> {
    if f == Field::GUEST_ACTIVITY {
        return ["active", "HLT", "shutdown", "wait-for-SIPI"].get(value as usize).copied();
    }
    None
}

/// Name of an event's type in interruption information.
pub fn event_kind(kind: u32) -> &'static str {
    match kind {
        interruption::EXTERNAL => "external interrupt",
        interruption::NMI => "NMI",
        interruption::HARDWARE_EXCEPTION => "hardware exception",
        interruption::SOFTWARE => "software interrupt",
        interruption::PRIVILEGED_SOFTWARE_EXCEPTION => "privileged software exception",
        interruption::SOFTWARE_EXCEPTION => "software exception",
        interruption::OTHER => "other event (MTF)",
        _ => "reserved",
    }
}

/// What a VM-instruction error number means (SDM vol. 3, VM-Instruction Error Numbers).
pub fn instruction_error(number: u32) -> Option<&'static str> {
    Some(match number {
        error::VMCALL_IN_ROOT => "VMCALL executed in VMX root operation",
        error::VMCLEAR_ADDRESS => "VMCLEAR with invalid physical address",
        error::VMCLEAR_VMXON_POINTER => "VMCLEAR with VMXON pointer",
        error::VMLAUNCH_NOT_CLEAR => "VMLAUNCH with non-clear VMCS",
        error::VMRESUME_NOT_LAUNCHED => "VMRESUME with non-launched VMCS",
        6 => "VMRESUME after VMXOFF",
        error::ENTRY_CONTROLS => "VM entry with invalid control field(s)",
        error::ENTRY_HOST_STATE => "VM entry with invalid host-state field(s)",
        error::VMPTRLD_ADDRESS => "VMPTRLD with invalid physical address",
        error::VMPTRLD_VMXON_POINTER => "VMPTRLD with VMXON pointer",
        error::VMPTRLD_REVISION => "VMPTRLD with incorrect VMCS revision identifier",
        error::UNSUPPORTED_FIELD => "VMREAD/VMWRITE from/to unsupported VMCS component",
        error::READ_ONLY_FIELD => "VMWRITE to read-only VMCS component",
        error::VMXON_IN_ROOT => "VMXON executed in VMX root operation",
        16 => "VM entry with invalid executive-VMCS pointer",
        17 => "VM entry with non-launched executive VMCS",
        18 => "VM entry with executive-VMCS pointer not VMXON pointer",
        19 => "VMCALL with non-clear VMCS",
        20 => "VMCALL with invalid VM-exit control fields",
        22 => "VMCALL with incorrect MSEG revision identifier",
        23 => "VMXOFF under dual-monitor treatment of SMIs and SMM",
        24 => "VMCALL with invalid SMM-monitor features",
        25 => "VM entry with invalid VM-execution control fields in executive VMCS",
        error::ENTRY_BLOCKED_BY_MOV_SS => "VM entry with events blocked by MOV SS",
        error::INVALIDATION_OPERAND => "Invalid operand to INVEPT/INVVPID",
        _ => return None,
    })
}

/// What to do about a VM-instruction error.
pub fn instruction_advice(number: u32) -> &'static str {
    match number {
        error::VMLAUNCH_NOT_CLEAR => "its launch state is \"launched\": use VMRESUME, or VMCLEAR it first",
        error::VMRESUME_NOT_LAUNCHED => "its launch state is \"clear\": the first entry after VMCLEAR must be VMLAUNCH",
        error::VMCLEAR_ADDRESS | error::VMPTRLD_ADDRESS => {
            "the pointer must be 4 KiB-aligned, with no bit set beyond the physical-address width"
        }
        error::VMPTRLD_REVISION => {
            "bits 30:0 of the region's first word must be IA32_VMX_BASIC[30:0], bit 31 set only for a shadow VMCS"
        }
        error::UNSUPPORTED_FIELD => "no such field on this processor model: its VMX capability MSRs say which controls exist",
        error::READ_ONLY_FIELD => "VM-exit information fields are read-only unless IA32_VMX_MISC[29] is set",
        error::ENTRY_BLOCKED_BY_MOV_SS => "the instruction before the VM entry was MOV SS or POP SS: put another one between",
        error::VMCALL_IN_ROOT => "VMCALL is for guests; this ran in VMX root operation",
        error::VMXON_IN_ROOT => "the processor is in VMX operation already",
        error::VMCLEAR_VMXON_POINTER | error::VMPTRLD_VMXON_POINTER => "the VMXON region cannot be a VMCS",
        error::INVALIDATION_OPERAND => {
            "the type is not supported (IA32_VMX_EPT_VPID_CAP), or the descriptor's EPTP, VPID or linear address is invalid"
        }
        error::ENTRY_CONTROLS | error::ENTRY_HOST_STATE => "a check on the VMCS failed: the explanation names it",
        _ => "",
    }
}

/// Whether the last exit, as recorded in `v`, left this exit-information field undefined (SDM vol. 3, Recording VM-Exit
/// Information and Updating VM-Entry Control Fields).
pub fn undefined_after_exit(v: &Vmcs, f: Field) -> bool {
    let reason = v.get32(Field::EXIT_REASON);
    let basic_reason = reason & 0xffff;
    let info = v.get32(Field::EXIT_INTERRUPTION_INFORMATION);
    let vectoring = v.get32(Field::IDT_VECTORING_INFORMATION);
    let failed = reason & ENTRY_FAILURE != 0;
    match f {
        Field::EXIT_INTERRUPTION_ERROR_CODE => {
            failed || info & interruption::VALID == 0 || info & interruption::ERROR_CODE == 0
        }
        Field::IDT_VECTORING_ERROR_CODE => {
            failed || vectoring & interruption::VALID == 0 || vectoring & interruption::ERROR_CODE == 0
        }
        Field::GUEST_PHYSICAL_ADDRESS => {
            failed || !matches!(basic_reason, basic::EPT_VIOLATION | basic::EPT_MISCONFIGURATION | basic::PML_FULL)
        }
        Field::GUEST_LINEAR_ADDRESS => {
            let q = v.get(Field::EXIT_QUALIFICATION);
            failed
                || match basic_reason {
                    basic::EPT_VIOLATION => q >> 7 & 1 == 0,
                    basic::IO => q >> 4 & 1 == 0,
                    basic::CR_ACCESS => q >> 4 & 3 != 3 || q >> 6 & 1 == 0,
                    basic::PML_FULL => false,
                    _ => true,
                }
        }
        Field::EXIT_INSTRUCTION_LENGTH => {
            let by_event = |i: u32| {
                i & interruption::VALID != 0 && interruption::kind(i) >= interruption::SOFTWARE && interruption::kind(i) <= 6
            };
            failed
                || match basic_reason {
                    basic::EXCEPTION_OR_NMI => !by_event(info) && !by_event(vectoring),
                    basic::EPT_MISCONFIGURATION
                    | basic::PREEMPTION_TIMER
                    | basic::EXTERNAL_INTERRUPT
                    | basic::TRIPLE_FAULT
                    | basic::INIT
                    | basic::SIPI
                    | basic::INTERRUPT_WINDOW
                    | basic::NMI_WINDOW
                    | basic::MONITOR_TRAP_FLAG
                    | basic::TPR_BELOW_THRESHOLD
                    | basic::VIRTUALIZED_EOI
                    | basic::APIC_WRITE
                    | basic::BUS_LOCK
                    | basic::INSTRUCTION_TIMEOUT
                    | basic::PML_FULL => !by_event(vectoring),
                    // EPT violations and APIC accesses: only in the delivery of an event, says the manual; processors fill it in
                    // for instructions too, and hypervisors rely on it.
                    _ => false,
                }
        }
        Field::EXIT_INSTRUCTION_INFORMATION => {
            failed
                || !matches!(
                    basic_reason,
                    basic::VMCLEAR
                        | basic::VMPTRLD
                        | basic::VMPTRST
                        | basic::VMREAD
                        | basic::VMWRITE
                        | basic::VMXON
                        | basic::INVEPT
                        | basic::INVVPID
                        | basic::INVPCID
                        | basic::GDTR_IDTR
                        | basic::LDTR_TR
                        | basic::IO
                        | basic::RDRAND
                        | basic::RDSEED
                        | basic::XSAVES
                        | basic::XRSTORS
                        | basic::TPAUSE
                        | basic::UMWAIT
                )
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_ordered_and_apart() {
        for f in Field::all() {
            for pair in layout(f).windows(2) {
                assert!(pair[0].at + pair[0].bits <= pair[1].at, "{f:?}: {} and {}", pair[0].name, pair[1].name);
            }
        }
    }

    #[test]
    fn what_an_exit_leaves_undefined() {
        let mut v = Vmcs::default();
        v.put(Field::EXIT_REASON, basic::CPUID as u64);
        assert!(undefined_after_exit(&v, Field::GUEST_PHYSICAL_ADDRESS));
        assert!(!undefined_after_exit(&v, Field::EXIT_INSTRUCTION_LENGTH));
        v.put(Field::EXIT_REASON, basic::EPT_VIOLATION as u64);
        assert!(!undefined_after_exit(&v, Field::GUEST_PHYSICAL_ADDRESS));
        assert!(undefined_after_exit(&v, Field::GUEST_LINEAR_ADDRESS));
        v.put(Field::EXIT_QUALIFICATION, 1 << 7);
        assert!(!undefined_after_exit(&v, Field::GUEST_LINEAR_ADDRESS));
    }
}
