//! Checks on VMX controls.

use undervisor_core::VmxFeatures;

use super::{Check, Context, Outcome, Table, msr_area, page};
use crate::capabilities::CR3_TARGETS;
use crate::controls::{entry, exit, interruption, pin, primary, secondary, tertiary};
use crate::fields::{Field, Groups};

const fn row(name: &'static str, field: Field, rule: &'static str, test: fn(&Context<'_>, Field) -> bool) -> Check {
    Check { name, field, rule, qualification: 0, test }
}

pub static EXECUTION: Table = Table {
    section: "VM-Execution Control Fields",
    outcome: Outcome::InvalidControl,
    groups: Groups::CONTROLS,
    checks: &[
        row("pin-reserved", Field::PIN_BASED_CONTROLS, "reserved bits as IA32_VMX_(TRUE_)PINBASED_CTLS says", |c, f| {
            c.capabilities.pin.permits(c.vmcs.get32(f))
        }),
        row("primary-reserved", Field::PRIMARY_CONTROLS, "reserved bits as IA32_VMX_(TRUE_)PROCBASED_CTLS says", |c, f| {
            c.capabilities.primary.permits(c.vmcs.get32(f))
        }),
        row(
            "secondary-reserved",
            Field::SECONDARY_CONTROLS,
            "if activated: reserved bits as IA32_VMX_PROCBASED_CTLS2 says",
            |c, f| !c.vmcs.primary(primary::SECONDARY_CONTROLS) || c.capabilities.secondary.permits(c.vmcs.get32(f)),
        ),
        row(
            "tertiary-reserved",
            Field::TERTIARY_CONTROLS,
            "if activated: reserved bits as IA32_VMX_PROCBASED_CTLS3 says",
            |c, f| !c.vmcs.primary(primary::TERTIARY_CONTROLS) || c.vmcs.get(f) & !c.capabilities.tertiary == 0,
        ),
        row("cr3-target-count", Field::CR3_TARGET_COUNT, "at most 4", |c, f| c.vmcs.get(f) <= CR3_TARGETS),
        row("io-bitmap-a", Field::IO_BITMAP_A, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.primary(primary::IO_BITMAPS) || page(c, c.vmcs.get(f))
        }),
        row("io-bitmap-b", Field::IO_BITMAP_B, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.primary(primary::IO_BITMAPS) || page(c, c.vmcs.get(f))
        }),
        row("msr-bitmaps", Field::MSR_BITMAPS, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.primary(primary::MSR_BITMAPS) || page(c, c.vmcs.get(f))
        }),
        row("virtual-apic-address", Field::VIRTUAL_APIC_ADDRESS, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.primary(primary::TPR_SHADOW) || page(c, c.vmcs.get(f))
        }),
        row("tpr-threshold-reserved", Field::TPR_THRESHOLD, "bits 31:4 zero without virtual-interrupt delivery", |c, f| {
            !c.vmcs.primary(primary::TPR_SHADOW)
                || c.vmcs.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY)
                || c.vmcs.get(f) & !0xf == 0
        }),
        row(
            "tpr-threshold-vtpr",
            Field::TPR_THRESHOLD,
            "bits 3:0 not above VTPR 7:4, without APIC-access virtualization and virtual-interrupt delivery",
            |c, f| !needs_memory(c) || c.vmcs.get(f) as u8 & 0xf <= vtpr(c) >> 4,
        ),
        row("x2apic-needs-tpr-shadow", Field::SECONDARY_CONTROLS, "virtualize x2APIC mode needs the TPR shadow", |c, _| {
            c.vmcs.primary(primary::TPR_SHADOW) || !c.vmcs.secondary(secondary::VIRTUALIZE_X2APIC)
        }),
        row(
            "registers-need-tpr-shadow",
            Field::SECONDARY_CONTROLS,
            "APIC-register virtualization needs the TPR shadow",
            |c, _| c.vmcs.primary(primary::TPR_SHADOW) || !c.vmcs.secondary(secondary::APIC_REGISTER_VIRTUALIZATION),
        ),
        row(
            "delivery-needs-tpr-shadow",
            Field::SECONDARY_CONTROLS,
            "virtual-interrupt delivery needs the TPR shadow",
            |c, _| c.vmcs.primary(primary::TPR_SHADOW) || !c.vmcs.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY),
        ),
        row("ipi-needs-tpr-shadow", Field::TERTIARY_CONTROLS, "IPI virtualization needs the TPR shadow", |c, _| {
            c.vmcs.primary(primary::TPR_SHADOW) || !c.vmcs.tertiary(tertiary::IPI_VIRTUALIZATION)
        }),
        row("virtual-nmis-need-nmi-exiting", Field::PIN_BASED_CONTROLS, "virtual NMIs need NMI exiting", |c, _| {
            c.vmcs.pin(pin::NMI_EXITING) || !c.vmcs.pin(pin::VIRTUAL_NMIS)
        }),
        row("nmi-window-needs-virtual-nmis", Field::PRIMARY_CONTROLS, "NMI-window exiting needs virtual NMIs", |c, _| {
            c.vmcs.pin(pin::VIRTUAL_NMIS) || !c.vmcs.primary(primary::NMI_WINDOW_EXITING)
        }),
        row("apic-access-address", Field::APIC_ACCESS_ADDRESS, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.secondary(secondary::VIRTUALIZE_APIC_ACCESSES) || page(c, c.vmcs.get(f))
        }),
        row(
            "x2apic-or-apic-accesses",
            Field::SECONDARY_CONTROLS,
            "virtualize x2APIC mode and APIC accesses exclude each other",
            |c, _| !(c.vmcs.secondary(secondary::VIRTUALIZE_X2APIC) && c.vmcs.secondary(secondary::VIRTUALIZE_APIC_ACCESSES)),
        ),
        row(
            "delivery-needs-interrupt-exiting",
            Field::SECONDARY_CONTROLS,
            "virtual-interrupt delivery needs external-interrupt exiting",
            |c, _| !c.vmcs.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY) || c.vmcs.pin(pin::EXTERNAL_INTERRUPT_EXITING),
        ),
        row("posted-needs-delivery", Field::PIN_BASED_CONTROLS, "posted interrupts need virtual-interrupt delivery", |c, _| {
            !posted(c) || c.vmcs.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY)
        }),
        row(
            "posted-needs-acknowledge",
            Field::EXIT_CONTROLS,
            "posted interrupts need acknowledge interrupt on exit",
            |c, _| !posted(c) || c.vmcs.exit_control(exit::ACKNOWLEDGE_INTERRUPT),
        ),
        row("notification-vector", Field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, "bits 15:8 zero", |c, f| {
            !posted(c) || c.vmcs.get(f) <= 0xff
        }),
        row(
            "posted-descriptor",
            Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
            "64-byte aligned, within the physical-address width",
            |c, f| !posted(c) || c.vmcs.get(f) & 0x3f == 0 && c.capabilities.physical(c.vmcs.get(f)),
        ),
        row("vpid", Field::VPID, "not 0", |c, f| !c.vmcs.secondary(secondary::VPID) || c.vmcs.get(f) != 0),
        row(
            "eptp",
            Field::EPT_POINTER,
            "a supported memory type, page-walk length and A/D setting; reserved bits zero",
            |c, f| !c.vmcs.ept() || eptp_valid(c, c.vmcs.get(f)),
        ),
        row("pml-needs-ept", Field::SECONDARY_CONTROLS, "page-modification logging needs EPT", |c, _| {
            !c.vmcs.secondary(secondary::PML) || c.vmcs.ept()
        }),
        row("pml-address", Field::PML_ADDRESS, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.secondary(secondary::PML) || page(c, c.vmcs.get(f))
        }),
        row("unrestricted-needs-ept", Field::SECONDARY_CONTROLS, "an unrestricted guest needs EPT", |c, _| {
            !c.vmcs.unrestricted() || c.vmcs.ept()
        }),
        row("mode-based-execute-needs-ept", Field::SECONDARY_CONTROLS, "mode-based execute control needs EPT", |c, _| {
            !c.vmcs.secondary(secondary::MODE_BASED_EXECUTE) || c.vmcs.ept()
        }),
        row(
            "ipi-table-address",
            Field::PID_POINTER_TABLE_ADDRESS,
            "8-byte aligned, within the physical-address width",
            |c, f| {
                !c.vmcs.tertiary(tertiary::IPI_VIRTUALIZATION)
                    || c.vmcs.get(f) & 7 == 0 && c.capabilities.physical(c.vmcs.get(f))
            },
        ),
        row(
            "ipi-table-end",
            Field::LAST_PID_POINTER_INDEX,
            "the table's last entry within the physical-address width",
            |c, f| {
                !c.vmcs.tertiary(tertiary::IPI_VIRTUALIZATION)
                    || c.vmcs
                        .get(Field::PID_POINTER_TABLE_ADDRESS)
                        .checked_add(8 * c.vmcs.get(f) + 7)
                        .is_some_and(|last| c.capabilities.physical(last))
            },
        ),
        row("vm-functions-reserved", Field::VM_FUNCTION_CONTROLS, "reserved bits as IA32_VMX_VMFUNC says", |c, f| {
            !c.vmcs.secondary(secondary::VM_FUNCTIONS) || c.vmcs.get(f) & !c.capabilities.vm_functions == 0
        }),
        row("eptp-switching-needs-ept", Field::VM_FUNCTION_CONTROLS, "EPTP switching needs EPT", |c, _| {
            !eptp_switching(c) || c.vmcs.ept()
        }),
        row("eptp-list-address", Field::EPTP_LIST_ADDRESS, "page-aligned, within the physical-address width", |c, f| {
            !eptp_switching(c) || page(c, c.vmcs.get(f))
        }),
        row("vmread-bitmap", Field::VMREAD_BITMAP, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.secondary(secondary::VMCS_SHADOWING) || page(c, c.vmcs.get(f))
        }),
        row("vmwrite-bitmap", Field::VMWRITE_BITMAP, "page-aligned, within the physical-address width", |c, f| {
            !c.vmcs.secondary(secondary::VMCS_SHADOWING) || page(c, c.vmcs.get(f))
        }),
        row(
            "virtualization-exception-address",
            Field::VIRTUALIZATION_EXCEPTION_ADDRESS,
            "page-aligned, within the physical-address width",
            |c, f| !c.vmcs.secondary(secondary::EPT_VIOLATION_VE) || page(c, c.vmcs.get(f)),
        ),
        row("tsc-multiplier", Field::TSC_MULTIPLIER, "not 0", |c, f| {
            !c.vmcs.secondary(secondary::TSC_SCALING) || c.vmcs.get(f) != 0
        }),
    ],
};

pub static EXIT: Table = Table {
    section: "VM-Exit Control Fields",
    outcome: Outcome::InvalidControl,
    groups: Groups::CONTROLS,
    checks: &[
        row("exit-reserved", Field::EXIT_CONTROLS, "reserved bits as IA32_VMX_(TRUE_)EXIT_CTLS says", |c, f| {
            c.capabilities.exit.permits(c.vmcs.get32(f))
        }),
        row("save-timer-needs-timer", Field::EXIT_CONTROLS, "saving the preemption timer needs the timer activated", |c, _| {
            c.vmcs.pin(pin::PREEMPTION_TIMER) || !c.vmcs.exit_control(exit::SAVE_PREEMPTION_TIMER)
        }),
        row(
            "exit-msr-store",
            Field::EXIT_MSR_STORE_ADDRESS,
            "16-byte aligned; the area within the physical-address width",
            |c, f| msr_area(c, f, Field::EXIT_MSR_STORE_COUNT),
        ),
        row(
            "exit-msr-load",
            Field::EXIT_MSR_LOAD_ADDRESS,
            "16-byte aligned; the area within the physical-address width",
            |c, f| msr_area(c, f, Field::EXIT_MSR_LOAD_COUNT),
        ),
    ],
};

pub static ENTRY: Table = Table {
    section: "VM-Entry Control Fields",
    outcome: Outcome::InvalidControl,
    groups: Groups::CONTROLS,
    checks: &[
        row("entry-reserved", Field::ENTRY_CONTROLS, "reserved bits as IA32_VMX_(TRUE_)ENTRY_CTLS says", |c, f| {
            c.capabilities.entry.permits(c.vmcs.get32(f))
        }),
        row(
            "event-type",
            Field::ENTRY_INTERRUPTION_INFORMATION,
            "type not 1; type 7 only with the monitor trap flag",
            |c, f| {
                injected(c, f).is_none_or(|i| match interruption::kind(i) {
                    1 => false,
                    interruption::OTHER => c.capabilities.has(VmxFeatures::MONITOR_TRAP_FLAG),
                    _ => true,
                })
            },
        ),
        row(
            "event-vector",
            Field::ENTRY_INTERRUPTION_INFORMATION,
            "NMI: vector 2; hardware exception: at most 31; other event: 0",
            |c, f| {
                injected(c, f).is_none_or(|i| {
                    let vector = interruption::vector(i);
                    match interruption::kind(i) {
                        interruption::NMI => vector == 2,
                        interruption::HARDWARE_EXCEPTION => vector <= 31,
                        interruption::OTHER => vector == 0,
                        _ => true,
                    }
                })
            },
        ),
        row(
            "event-error-code-bit",
            Field::ENTRY_INTERRUPTION_INFORMATION,
            "error code just for hardware exceptions that have one, and not into real mode",
            |c, f| injected(c, f).is_none_or(|i| error_code_bit_valid(c, i)),
        ),
        row("event-reserved", Field::ENTRY_INTERRUPTION_INFORMATION, "bits 30:12 zero", |c, f| {
            injected(c, f).is_none_or(|i| i & 0x7fff_f000 == 0)
        }),
        row("event-error-code", Field::ENTRY_EXCEPTION_ERROR_CODE, "bits 31:16 zero", |c, f| {
            injected(c, Field::ENTRY_INTERRUPTION_INFORMATION)
                .is_none_or(|i| i & interruption::ERROR_CODE == 0 || c.vmcs.get(f) >> 16 == 0)
        }),
        row(
            "event-instruction-length",
            Field::ENTRY_INSTRUCTION_LENGTH,
            "software events: 1 to 15, or 0 where supported",
            |c, f| {
                injected(c, Field::ENTRY_INTERRUPTION_INFORMATION).is_none_or(|i| {
                    !matches!(interruption::kind(i), 4..=6)
                        || match c.vmcs.get(f) {
                            0 => c.capabilities.has(VmxFeatures::INJECT_ZERO_LENGTH),
                            n => n <= 15,
                        }
                })
            },
        ),
        row(
            "entry-msr-load",
            Field::ENTRY_MSR_LOAD_ADDRESS,
            "16-byte aligned; the area within the physical-address width",
            |c, f| msr_area(c, f, Field::ENTRY_MSR_LOAD_COUNT),
        ),
        row(
            "entry-smm",
            Field::ENTRY_CONTROLS,
            "entry to SMM and deactivation of dual-monitor treatment only from SMM",
            |c, f| c.vmcs.get32(f) & (entry::ENTRY_TO_SMM | entry::DEACTIVATE_DUAL_MONITOR) == 0,
        ),
    ],
};

fn posted(c: &Context<'_>) -> bool {
    c.vmcs.pin(pin::POSTED_INTERRUPTS)
}

fn eptp_switching(c: &Context<'_>) -> bool {
    c.vmcs.secondary(secondary::VM_FUNCTIONS) && c.vmcs.get(Field::VM_FUNCTION_CONTROLS) & 1 != 0
}

/// Whether the execution controls must be compared with memory.
pub fn needs_memory(c: &Context<'_>) -> bool {
    c.vmcs.primary(primary::TPR_SHADOW)
        && !c.vmcs.secondary(secondary::VIRTUALIZE_APIC_ACCESSES)
        && !c.vmcs.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY)
}

fn vtpr(c: &Context<'_>) -> u8 {
    c.memory.read_u8(c.vmcs.get(Field::VIRTUAL_APIC_ADDRESS) + undervisor_core::apic::TPR as u64)
}

/// Whether an EPTP may be used (SDM vol. 3, Extended-Page-Table Pointer (EPTP)): 2:0 memory type, 5:3 page-walk length − 1,
/// 6 accessed and dirty flags, 11:7 reserved.
pub fn eptp_valid(c: &Context<'_>, eptp: u64) -> bool {
    eptp_allowed(c.capabilities, eptp)
}

/// See [`eptp_valid`]; for EPTP switching.
pub fn eptp_allowed(capabilities: &crate::Capabilities, eptp: u64) -> bool {
    let memory_type = match eptp & 7 {
        0 => 1 << 8,
        6 => 1 << 14,
        _ => return false,
    };
    let length = match eptp >> 3 & 7 {
        3 => 1 << 6,
        4 => 1 << 7,
        _ => return false,
    };
    capabilities.ept_vpid & memory_type != 0
        && capabilities.ept_vpid & length != 0
        && (eptp & 1 << 6 == 0 || capabilities.has(VmxFeatures::EPT_ACCESSED_DIRTY))
        && eptp & 0xf80 == 0
        && capabilities.physical(eptp)
}

/// The interruption information if it is valid.
fn injected(c: &Context<'_>, f: Field) -> Option<u32> {
    let i = c.vmcs.get32(f);
    (i & interruption::VALID != 0).then_some(i)
}

fn error_code_bit_valid(c: &Context<'_>, i: u32) -> bool {
    let set = i & interruption::ERROR_CODE != 0;
    let real_mode = c.vmcs.unrestricted() && c.vmcs.get(Field::GUEST_CR0) & 1 == 0;
    if real_mode || interruption::kind(i) != interruption::HARDWARE_EXCEPTION {
        return !set;
    }
    if c.capabilities.has(VmxFeatures::INJECT_ANY_ERROR_CODE) {
        return true;
    }
    set == matches!(interruption::vector(i), 8 | 10..=14 | 17)
}
