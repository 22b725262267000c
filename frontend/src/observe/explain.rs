//! Explanations in words: what failed, by which rule, who wrote the value.

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use undervisor_core::describe::{self, decode};
use undervisor_core::{CpuState, SegReg, Vector};
use undervisor_cpu::observe::{FieldPicture, Finding, Incident, Link, What, Written};

use super::codes;
use super::symbols::Symbols;

/// An address with its symbol and source line.
fn place(symbols: &Symbols, level: u8, address: u64) -> String {
    let mut text = format!("{address:#x}{}", symbols.suffix(level, address));
    if let Some(line) = symbols.line(level, address) {
        let _ = write!(text, " ({line})");
    }
    text
}

/// Where a value comes from.
pub fn written(w: &Written, symbols: &Symbols, amd: bool) -> String {
    match w {
        Written::By(w) => format!(
            "last written by level {}, {} of {:#x} at {}, instruction {}, processor {}",
            w.level,
            if amd { "a store" } else { "VMWRITE" },
            w.value,
            place(symbols, w.level, w.rip),
            w.now,
            w.cpu
        ),
        Written::SavedByExit(e) => format!(
            "saved by the processor at the VM exit of instruction {} ({}), processor {}",
            e.now,
            codes::reason_name(amd, e.reason),
            e.cpu
        ),
        Written::Never => "never written".into(),
        Written::BeforeWatch(since) => {
            format!("written before instruction {since}, when this VMCB was first watched (--explain replay tells by whom)")
        }
        Written::NotWatched => "stores to this VMCB were not watched (--explain replay tells who wrote it)".into(),
    }
}

/// One line that says what failed.
pub fn headline(i: &Incident, symbols: &Symbols) -> String {
    let what = match &i.what {
        What::Check { .. } if i.amd => "VMRUN refused its VMCB".to_owned(),
        What::Check { number, .. } if number & 0x8000_0000 != 0 => "VM entry failed on guest state".to_owned(),
        What::Check { .. } => "VM entry failed".to_owned(),
        What::MsrLoad { .. } => "VM entry failed loading MSRs".to_owned(),
        What::VmFail { instruction, number: Some(_), .. } => format!("{instruction} failed (VMfailValid)"),
        What::VmFail { instruction, number: None, .. } => format!("{instruction} failed (VMfailInvalid)"),
        What::TripleFault { exits: true, .. } => "triple fault in a guest".to_owned(),
        What::TripleFault { exits: false, .. } => "triple fault: the processor shuts down".to_owned(),
        What::Refused { instruction, vector, .. } => format!("{instruction} raised {}", Vector::name(*vector)),
        What::Abort { .. } if i.amd => "#VMEXIT failed: the processor shuts down".to_owned(),
        What::Abort { .. } => "VMX abort: the processor shuts down".to_owned(),
    };
    format!("{what} at {} (level {}, processor {}, instruction {})", place(symbols, i.level, i.rip), i.level, i.cpu, i.now)
}

fn field(out: &mut String, f: &FieldPicture, symbols: &Symbols, amd: bool) {
    let _ = write!(out, "    {} = {:#x}", f.name, f.value);
    if let Some(meaning) = f.meaning {
        let _ = write!(out, " ({meaning})");
    }
    if let Some(memory) = f.memory {
        let _ = write!(out, "; memory holds {memory:#x}, but its clean bit says that it has not changed");
    }
    out.push('\n');
    let pieces = decode(f.value, f.layout);
    if !pieces.is_empty() && !f.layout.is_empty() {
        let list: Vec<String> = pieces.iter().map(|p| p.to_string()).collect();
        let _ = writeln!(out, "      bits: {}", list.join(", "));
    } else if !f.layout.is_empty() {
        let _ = writeln!(out, "      bits: none is set");
    }
    if let Some((must, may, who)) = f.allowed {
        let name = |bits: u64| {
            let list: Vec<String> = (0..64u8)
                .filter(|b| bits >> b & 1 != 0)
                .map(|b| match describe::name_of(b, f.layout) {
                    Some(n) => format!("{n} ({b})"),
                    None => format!("{b}"),
                })
                .collect();
            list.join(", ")
        };
        let _ = writeln!(out, "      {who}: must be one {must:#x}, may be one {may:#x}");
        if must & !f.value != 0 {
            let _ = writeln!(out, "      missing: {}", name(must & !f.value));
        }
        if f.value & !may != 0 {
            let _ = writeln!(out, "      not allowed: {}", name(f.value & !may));
        }
    }
    let _ = writeln!(out, "      {}", written(&f.written, symbols, amd));
}

/// Remedies in one field that are worth a line each.
const MOST_BITS: usize = 6;

fn remedies(out: &mut String, i: &Incident) {
    for f in &i.fields {
        let bits: Vec<_> = i.remedies.iter().filter(|r| r.field == f.name).collect();
        if bits.is_empty() || bits.len() > MOST_BITS {
            continue;
        }
        let list: Vec<String> = bits
            .iter()
            .map(|r| {
                let name = r.bit_name.map(|n| format!(" ({n})")).unwrap_or_default();
                format!("bit {}{name} {}", r.bit, if r.set { "set" } else { "clear" })
            })
            .collect();
        let _ = writeln!(out, "  would pass with {}: {}", f.name, list.join(", or "));
    }
}

fn event_name(vector: u8, exception: bool) -> String {
    if exception && vector < 32 { Vector::name(vector).to_owned() } else { format!("vector {vector:#x}") }
}

fn error_code(vector: u8, code: u32) -> String {
    let pieces: Vec<String> = decode(code as u64, describe::error_code(vector)).iter().map(|p| p.to_string()).collect();
    if pieces.is_empty() { format!("{code:#x}") } else { format!("{code:#x}: {}", pieces.join("; ")) }
}

fn gate(l: &Link, s: &CpuState) -> String {
    let limit = s.idtr.limit as u64;
    let size = if s.long_mode() {
        16
    } else if s.protected() {
        8
    } else {
        4
    };
    let at = s.idtr.base.wrapping_add(l.event.vector as u64 * size);
    if l.event.vector as u64 * size + size - 1 > limit {
        return format!("its gate lies beyond the IDT's limit {limit:#x}");
    }
    if l.gate_bytes < size as usize {
        return format!("its gate at {at:#x} is not mapped");
    }
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| l.gate[i + k]));
    if size == 4 {
        return format!("its entry at {at:#x} leads to {:#x}:{:#x}", word(0) >> 16 & 0xffff, word(0) & 0xffff);
    }
    let low = word(0);
    let offset = low & 0xffff | low >> 32 & 0xffff_0000 | if size == 16 { (word(8) & 0xffff_ffff) << 32 } else { 0 };
    let (selector, kind, present) = (low >> 16 & 0xffff, low >> 40 & 0xf, low >> 47 & 1);
    let mut text = format!("its gate at {at:#x} is {selector:#x}:{offset:#x}, type {kind:#x}");
    if present == 0 {
        text.push_str(", not present");
    }
    if size == 16 && low >> 32 & 7 != 0 {
        let _ = write!(text, ", IST {}", low >> 32 & 7);
    }
    text
}

fn triple_fault(out: &mut String, chain: &[Link], s: &CpuState, symbols: &Symbols, level: u8) {
    for (n, l) in chain.iter().enumerate() {
        let exception = l.event.kind == undervisor_core::EventKind::HardwareException;
        let mut name = event_name(l.event.vector, exception);
        if let Some(code) = l.event.error_code {
            let _ = write!(name, " (error code {})", error_code(l.event.vector, code));
        }
        if exception && l.event.vector == Vector::PF {
            let _ = write!(name, " on {:#x}", l.event.payload);
        }
        let at = if n == 0 { format!(" at {}", place(symbols, level, l.rip)) } else { String::new() };
        let _ = writeln!(out, "  {}. {name}{at}; {}", n + 1, gate(l, s));
        let mut fault = event_name(l.fault.vector, true);
        if let Some(code) = l.fault.error_code {
            let _ = write!(fault, " (error code {})", error_code(l.fault.vector, code));
        }
        if l.fault.vector == Vector::PF {
            let _ = write!(fault, " on {:#x}", l.fault.payload);
        }
        let _ = writeln!(out, "     delivering it raised {fault}");
    }
    let _ = writeln!(out, "  a fault while delivering #DF shuts down (SDM vol. 3, Interrupt 8—Double Fault Exception)");
    let _ = writeln!(
        out,
        "  IDTR {:#x} limit {:#x}, GDTR {:#x} limit {:#x}, TR {:#x} base {:#x} limit {:#x}",
        s.idtr.base, s.idtr.limit, s.gdtr.base, s.gdtr.limit, s.tr.selector, s.tr.base, s.tr.limit
    );
}

fn picture(out: &mut String, i: &Incident, symbols: &Symbols) {
    let s = &*i.state;
    let _ = writeln!(out, "  level {} at the time, {}-bit code, CPL {}:", i.level, i.bits, s.cpl);
    const NAMES: [(&str, u8); 16] = [
        ("RAX", 0),
        ("RBX", 3),
        ("RCX", 1),
        ("RDX", 2),
        ("RSI", 6),
        ("RDI", 7),
        ("RBP", 5),
        ("RSP", 4),
        ("R8", 8),
        ("R9", 9),
        ("R10", 10),
        ("R11", 11),
        ("R12", 12),
        ("R13", 13),
        ("R14", 14),
        ("R15", 15),
    ];
    for row in NAMES.chunks(4) {
        let cells: Vec<String> = row.iter().map(|&(name, n)| format!("{name:<3} {:#018x}", s.gpr(n))).collect();
        let _ = writeln!(out, "    {}", cells.join("  "));
    }
    let flags: Vec<&str> = decode(s.rflags() & !2, describe::RFLAGS).iter().map(|p| p.part.name).collect();
    let _ = writeln!(out, "    RIP {:#018x}  RFLAGS {:#x} [{}]", i.rip, s.rflags(), flags.join(" "));
    let _ = writeln!(
        out,
        "    CR0 {:#x}  CR2 {:#x}  CR3 {:#x}  CR4 {:#x}  EFER {:#x}",
        s.cr0.bits(),
        s.cr2,
        s.cr3,
        s.cr4.bits(),
        s.efer.bits()
    );
    let segments: Vec<String> = [
        ("CS", SegReg::Cs),
        ("SS", SegReg::Ss),
        ("DS", SegReg::Ds),
        ("ES", SegReg::Es),
        ("FS", SegReg::Fs),
        ("GS", SegReg::Gs),
    ]
    .iter()
    .map(|&(name, r)| {
        let seg = s.segment(r);
        if seg.base == 0 {
            format!("{name} {:#x}", seg.selector)
        } else {
            format!("{name} {:#x} (base {:#x})", seg.selector, seg.base)
        }
    })
    .collect();
    let _ = writeln!(out, "    {}", segments.join("  "));
    if !i.code.is_empty() {
        let options = if i.amd { DecoderOptions::AMD } else { DecoderOptions::NONE };
        let mut decoder = Decoder::with_ip(i.bits, &i.code, i.rip, options);
        let mut formatter = FastFormatter::new();
        for n in 0..3 {
            if !decoder.can_decode() {
                break;
            }
            let insn = decoder.decode();
            if insn.is_invalid() {
                break;
            }
            let mut text = String::new();
            formatter.format(&insn, &mut text);
            let _ = writeln!(out, "    {} {:#x}: {text}", if n == 0 { "=>" } else { "  " }, insn.ip());
        }
    }
    if i.stack.is_empty() {
        let _ = writeln!(out, "    stack: not mapped at RSP {:#x}", s.gpr(4));
    }
    let width = i.bits as usize / 4 + 2;
    for row in i.stack.chunks(4) {
        let cells: Vec<String> = row.iter().map(|(_, v)| format!("{v:#0width$x}")).collect();
        let _ = writeln!(out, "    stack {:#x}: {}", row[0].0, cells.join(" "));
    }
    for (at, value) in &i.stack {
        if let Some((name, offset)) = symbols.find(i.level, *value) {
            let _ = writeln!(out, "    stack {at:#x} points into {name}+{offset:#x}");
        }
    }
}

/// The whole explanation.
pub fn incident(i: &Incident, symbols: &Symbols) -> String {
    let mut out = headline(i, symbols);
    out.push('\n');
    match &i.what {
        What::Check { name, section, rule, number, qualification } => {
            if i.amd {
                let _ = writeln!(out, "  #VMEXIT {}", codes::reason(true, *number));
                let _ = writeln!(out, "  check \"{name}\" (APM vol. 2, {section})");
            } else if number & 0x8000_0000 != 0 {
                let _ = writeln!(out, "  VM exit {}, exit qualification {qualification}", codes::reason(false, *number));
                let _ = writeln!(out, "  check {name} (SDM vol. 3, {section})");
            } else {
                let _ = writeln!(out, "  VM-instruction error {}", codes::instruction_error(*number as u32));
                let _ = writeln!(out, "  check {name} (SDM vol. 3, {section})");
            }
            let _ = writeln!(out, "  rule: {rule}");
        }
        What::MsrLoad { entry, msr, value, address } => {
            let _ = writeln!(out, "  VM exit {}, exit qualification {entry}", codes::reason(false, 0x8000_0022));
            let _ = writeln!(
                out,
                "  entry {entry} of the VM-entry MSR-load area (at {address:#x}): WRMSR of {value:#x} to {} would fault, or the \
                 manual excludes that MSR (SDM vol. 3, Loading MSRs)",
                codes::msr(*msr)
            );
        }
        What::VmFail { instruction, number, operand } => {
            match number {
                Some(n) => {
                    let _ = writeln!(out, "  VM-instruction error {}", codes::instruction_error(*n));
                    let advice = undervisor_vmx::describe::instruction_advice(*n);
                    if !advice.is_empty() {
                        let _ = writeln!(out, "  {advice}");
                    }
                }
                None => {
                    let why = match *instruction {
                        "VMXON" => "the VMXON region's address is not usable, or its first word is not IA32_VMX_BASIC[30:0]",
                        _ => "there is no current VMCS: VMPTRLD must come first (or a shadow VMCS is current)",
                    };
                    let _ = writeln!(out, "  VMfailInvalid: {why}");
                }
            }
            if let Some(operand) = operand {
                let name = if matches!(*instruction, "VMREAD" | "VMWRITE") { codes::field(*operand) } else { None };
                let name = name.map(|n| format!(" ({n})")).unwrap_or_default();
                let _ = writeln!(out, "  operand: {operand:#x}{name}");
            }
        }
        What::TripleFault { chain, .. } => triple_fault(&mut out, chain, &i.state, symbols, i.level),
        What::Refused { why, .. } => {
            for reason in why {
                let _ = writeln!(out, "  {reason}");
            }
        }
        What::Abort { .. } if i.amd => {
            out.push_str("  the host's PDPTEs in memory are invalid (APM vol. 2, #VMEXIT)\n");
        }
        What::Abort { indicator } => {
            let why = match *indicator {
                1 => "a failure saving guest MSRs to the VM-exit MSR-store area",
                2 => "the host's PDPTEs are invalid",
                4 => "a failure loading host MSRs from the VM-exit MSR-load area",
                _ => "?",
            };
            let _ = writeln!(out, "  VMX-abort indicator {indicator}: {why} (SDM vol. 3, VMX Aborts)");
        }
    }
    for (n, f) in i.fields.iter().enumerate() {
        if n == 1 {
            let _ = writeln!(out, "  fields that have a say:");
        }
        field(&mut out, f, symbols, i.amd);
    }
    remedies(&mut out, i);
    if let Some(structure) = i.structure.filter(|&s| s != u64::MAX) {
        let _ = writeln!(out, "  {} at {structure:#x}", if i.amd { "VMCB" } else { "current VMCS" });
    }
    picture(&mut out, i, symbols);
    out.pop();
    out
}

/// A lint's finding.
pub fn finding(f: &Finding, symbols: &Symbols) -> String {
    let mut out = format!(
        "lint {}: {}\n  at {} (level {}, processor {}, instruction {})\n  {}",
        f.lint.name(),
        f.text,
        place(symbols, f.level, f.rip),
        f.level,
        f.cpu,
        f.now,
        f.lint.rule(f.amd)
    );
    if let Some(w) = &f.written {
        let _ = write!(out, "\n  {}", written(w, symbols, f.amd));
    }
    out
}
