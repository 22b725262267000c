//! `undervisor explain`: what numbers mean, without a machine. The other explanations use the same words.

use std::fmt::Write as _;

use undervisor_core::Vector;
use undervisor_core::describe::{self, Layout, decode};
use undervisor_svm::reason as svm;
use undervisor_vmx::describe as vmx_describe;
use undervisor_vmx::fields::FIELDS;
use undervisor_vmx::reason as vmx;

use crate::error::Failure;
use crate::options::{DemoVendor, ExplainOptions};

/// Short name of an exit reason or code.
pub fn reason_name(amd: bool, code: u64) -> String {
    if amd {
        return match code {
            0x00..=0x0f => format!("CR{} read", code),
            0x10..=0x1f => format!("CR{} write", code - 0x10),
            0x20..=0x2f => format!("DR{} read", code - 0x20),
            0x30..=0x3f => format!("DR{} write", code - 0x30),
            0x40..=0x5f => format!("exception {}", Vector::name((code - 0x40) as u8)),
            _ => svm::name(code).to_owned(),
        };
    }
    let basic = code as u32 & 0xffff;
    let name = vmx::name(basic);
    if code >> 31 & 1 != 0 && !name.starts_with("entry failure") { format!("entry failure: {name}") } else { name.to_owned() }
}

/// `0x80000021: VM-entry failure …`.
pub fn reason(amd: bool, code: u64) -> String {
    if amd { format!("{code:#x}: {}", reason_name(true, code)) } else { format!("{code:#x}: {}", reason_name(false, code)) }
}

/// `7: VM entry with invalid control field(s)`.
pub fn instruction_error(number: u32) -> String {
    format!("{number}: {}", vmx_describe::instruction_error(number).unwrap_or("not defined"))
}

/// Name of a VMCS field by encoding.
pub fn field(encoding: u64) -> Option<&'static str> {
    FIELDS.iter().find(|r| r.encoding as u64 == encoding & !1).map(|r| r.name)
}

/// An MSR with its name.
pub fn msr(number: u32) -> String {
    let name = match number {
        0xc000_0080 => "IA32_EFER",
        0x10 => "IA32_TIME_STAMP_COUNTER",
        0x1b => "IA32_APIC_BASE",
        0x33 => "MEMORY_CTRL",
        0x3a => "IA32_FEATURE_CONTROL",
        0x48 => "IA32_SPEC_CTRL",
        0xcf => "IA32_CORE_CAPABILITIES",
        0xe1 => "IA32_UMWAIT_CONTROL",
        0x174 => "IA32_SYSENTER_CS",
        0x175 => "IA32_SYSENTER_ESP",
        0x176 => "IA32_SYSENTER_EIP",
        0x1a0 => "IA32_MISC_ENABLE",
        0x1d9 => "IA32_DEBUGCTL",
        0x277 => "IA32_PAT",
        0x480..=0x493 => "an IA32_VMX capability MSR",
        0x6e0 => "IA32_TSC_DEADLINE",
        0x186..=0x18d => "an IA32_PERFEVTSEL",
        0x309..=0x30b => "an IA32_FIXED_CTR",
        0x345 => "IA32_PERF_CAPABILITIES",
        0x38d => "IA32_FIXED_CTR_CTRL",
        0x38e => "IA32_PERF_GLOBAL_STATUS",
        0x38f => "IA32_PERF_GLOBAL_CTRL",
        0x390 => "IA32_PERF_GLOBAL_STATUS_RESET",
        0xc1..=0xc8 | 0x4c1..=0x4c8 => "an IA32_PMC",
        0xc000_0300..=0xc000_0302 => "a PerfCntrGlobal register",
        0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b => "a performance counter's register",
        0x800..=0x8ff => "an x2APIC register",
        0xda0 => "IA32_XSS",
        0xc000_0081 => "IA32_STAR",
        0xc000_0082 => "IA32_LSTAR",
        0xc000_0083 => "IA32_CSTAR",
        0xc000_0084 => "IA32_FMASK",
        0xc000_0100 => "IA32_FS_BASE",
        0xc000_0101 => "IA32_GS_BASE",
        0xc000_0102 => "IA32_KERNEL_GS_BASE",
        0xc000_0103 => "IA32_TSC_AUX",
        0xc001_0114 => "VM_CR",
        0xc001_0117 => "VM_HSAVE_PA",
        _ => return format!("MSR {number:#x}"),
    };
    format!("{name} ({number:#x})")
}

fn bits(out: &mut String, value: u64, layout: Layout) {
    for piece in decode(value, layout) {
        let _ = writeln!(out, "  {piece}");
    }
}

/// What an exit reason asks of its reader.
fn vmx_reason_help(basic: u32) -> &'static str {
    use vmx::basic as b;
    match basic {
        b::INVALID_GUEST_STATE => {
            "A check of the guest-state area failed (SDM vol. 3, Checks on the Guest State Area). Host state has been loaded; \
             nothing of the guest ran.\nExit qualification: 2 PDPTE loading, 3 injection of an NMI while MOV SS blocks, 4 VMCS \
             link pointer, else 0.\nRun the guest under undervisor with --explain (the default): it names the check, the field and \
             who wrote it."
        }
        b::MSR_LOAD => {
            "An entry of the VM-entry MSR-load area could not be loaded (SDM vol. 3, Loading MSRs). The exit qualification is its \
             number, from 1."
        }
        b::MACHINE_CHECK => "A machine check came during VM entry.",
        b::TRIPLE_FAULT => {
            "The guest met a third fault: an exception, one in delivering it, and one in delivering #DF. Look at its IDT, its \
             stack and what the first exception was."
        }
        b::EPT_VIOLATION => {
            "The EPT tables do not allow the access (SDM vol. 3, EPT Violations). Exit qualification: bits 2:0 read, write, fetch; \
             5:3 what the entry allowed; 7 the linear address is valid; 8 it was the access itself, not a page walk."
        }
        b::EPT_MISCONFIGURATION => {
            "An EPT entry holds an impossible combination: writable without readable, execute-only where not supported, a \
             reserved bit, or a bad memory type (SDM vol. 3, EPT Misconfigurations)."
        }
        b::EXCEPTION_OR_NMI => {
            "VM-exit interruption information says which: vector 7:0, type 10:8, error code valid 11, valid 31."
        }
        _ => "",
    }
}

fn vmx_reason(code: u64) -> String {
    let mut out = format!("VMX exit reason {}\n", reason(false, code));
    if code >> 31 & 1 != 0 {
        out.push_str("  bit 31: VM entry failed; bits 15:0 say how (SDM vol. 3, VM-Entry Failures During or After Loading Guest State)\n");
    }
    for (bit, what) in
        [(27, "the exit was in enclave mode"), (28, "an MTF VM exit is pending"), (29, "the exit was from VMX root operation")]
    {
        if code >> bit & 1 != 0 {
            let _ = writeln!(out, "  bit {bit}: {what}");
        }
    }
    let basic = code as u32 & 0xffff;
    let _ = writeln!(out, "  basic exit reason {basic} ({basic:#x}): {}", vmx::name(basic));
    for line in vmx_reason_help(basic).lines() {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn svm_reason_help(code: u64) -> &'static str {
    match code {
        svm::INVALID => {
            "VMRUN found the VMCB inconsistent (APM vol. 2, Canonicalization and Consistency Checks). Nothing of the guest ran.\nRun \
             the guest under undervisor with --explain replay: it names the check, the field and who wrote it."
        }
        svm::NPF => {
            "The nested page tables do not allow the access. EXITINFO1 is the error code (bit 0 present, 1 write, 2 user, 3 \
             reserved, 4 fetch, 32 at the final address, 33 at a guest page table), EXITINFO2 the guest-physical address."
        }
        svm::SHUTDOWN => {
            "The guest met a third fault: an exception, one in delivering it, and one in delivering #DF. Its state in the VMCB is \
             undefined."
        }
        svm::IOIO => "EXITINFO1: port 31:16, size 6:4, REP 3, string 2, IN 0. EXITINFO2: RIP of the next instruction.",
        svm::MSR => "EXITINFO1: 0 RDMSR, 1 WRMSR. The MSR is in the guest's ECX.",
        0x4e => "EXITINFO1: error code, EXITINFO2: faulting linear address.",
        _ => "",
    }
}

fn svm_reason(code: u64) -> String {
    let mut out = format!("SVM exit code {}\n", reason(true, code));
    if (0x40..0x60).contains(&code) {
        let _ = writeln!(out, "  the exception's intercept (INTERCEPT_EXCEPTIONS bit {}) is set", code - 0x40);
    }
    for line in svm_reason_help(code).lines() {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn exception(vector: u8, code: Option<u32>) -> String {
    let mut out = format!("vector {vector}: {}\n", exception_name(vector));
    if let Some(code) = code {
        let layout = describe::error_code(vector);
        let _ = writeln!(
            out,
            "error code {code:#x}{}",
            if layout.is_empty() { " (this exception pushes zero or none)" } else { "" }
        );
        bits(&mut out, code as u64, layout);
        if vector == Vector::PF {
            for (bit, zero) in [(0, "no translation: a not-present entry"), (1, "a read"), (2, "a supervisor-mode access")] {
                if code >> bit & 1 == 0 {
                    let _ = writeln!(out, "  bit {bit} clear: {zero}");
                }
            }
        }
    }
    out
}

fn exception_name(vector: u8) -> String {
    let text = match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "BOUND range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault (error code 0)",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating-point exception",
        20 => "virtualization exception",
        21 => "control protection",
        30 => "security exception (AMD)",
        32..=255 => return "an interrupt".into(),
        _ => return "reserved".into(),
    };
    format!("{}, {text}", Vector::name(vector))
}

/// `undervisor explain`.
pub fn run(o: &ExplainOptions) -> Result<u8, Failure> {
    let mut out = String::new();
    let mut part = |text: String| {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&text);
    };
    if let Some(code) = o.reason {
        match o.vendor {
            Some(DemoVendor::Intel) => part(vmx_reason(code)),
            Some(DemoVendor::Amd) => part(svm_reason(code)),
            None => {
                // Bit 31 is VMX's own; an all-ones code and NPF are SVM's.
                let vmx_known = vmx::name(code as u32 & 0xffff) != "?" && code >> 32 == 0 && code & 0x47ff_0000 == 0;
                if vmx_known {
                    part(vmx_reason(code));
                }
                if svm::name(code) != "unknown" {
                    part(svm_reason(code));
                }
                if !vmx_known && svm::name(code) == "unknown" {
                    part(format!("{code:#x} is neither a VMX exit reason nor an SVM exit code\n"));
                }
            }
        }
    }
    if let Some(number) = o.error {
        let mut text = format!("VM-instruction error {}\n", instruction_error(number));
        let advice = vmx_describe::instruction_advice(number);
        if !advice.is_empty() {
            let _ = writeln!(text, "  {advice}");
        }
        text.push_str("  (SDM vol. 3, VM-Instruction Error Numbers)\n");
        part(text);
    }
    if let Some(vector) = o.exception {
        part(exception(vector, o.error_code));
    }
    if let Some((name, value)) = &o.field {
        part(field_value(name, *value)?);
    }
    if out.is_empty() {
        return Err(Failure::Option {
            option: "reason",
            value: String::new(),
            why: "give a number to explain: --reason, --error, --exception or --field".into(),
        });
    }
    print!("{out}");
    Ok(0)
}

fn field_value(name: &str, value: u64) -> Result<String, Failure> {
    let wanted = name.to_ascii_uppercase();
    let encoding = wanted.strip_prefix("0X").and_then(|h| u64::from_str_radix(h, 16).ok());
    let mut out = String::new();
    for f in undervisor_vmx::Field::all() {
        let Some(row) = f.row() else { continue };
        if row.name == wanted || encoding == Some(row.encoding as u64) {
            let _ = writeln!(out, "VMCS field {} (encoding {:#x}) = {value:#x}", row.name, row.encoding);
            bits(&mut out, value, vmx_describe::layout(f));
        }
    }
    for row in undervisor_svm::fields::FIELDS {
        if row.name == wanted {
            let _ = writeln!(out, "VMCB field {} (offset {:#x}) = {value:#x}", row.name, row.field.offset);
            bits(&mut out, value, undervisor_svm::describe::layout(row.field));
        }
    }
    if out.is_empty() {
        return Err(Failure::Option {
            option: "field",
            value: name.to_owned(),
            why: "no VMCS or VMCB field has this name".into(),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_both_vendors() {
        let text = vmx_reason(0x8000_0021);
        assert!(text.contains("bit 31") && text.contains("guest state") && text.contains("33"), "{text}");
        assert!(svm_reason(0x4e).contains("#PF"));
        assert!(svm_reason(u64::MAX).contains("Consistency"));
        assert!(exception(14, Some(3)).contains("a write"));
        assert!(instruction_error(7).contains("invalid control"));
        assert_eq!(field(0x681f & !1), Some("GUEST_RIP"));
    }

    #[test]
    fn fields_bit_by_bit() {
        let text = field_value("guest_rflags", 0x202).unwrap();
        assert!(text.contains("IF (9)"), "{text}");
        assert!(field_value("0x4016", 0x8000_0b0e).unwrap().contains("vector"));
        assert!(field_value("nonsense", 0).is_err());
    }
}
