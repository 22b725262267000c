//! The `monitor` commands.

use std::fmt::Write;

use undervisor_core::{SegReg, Vendor};
use undervisor_cpu::Cpu;
use undervisor_cpu::debugger::CodePoint;
use undervisor_cpu::inspect::{Walk, walk_ept, walk_npt};
use undervisor_cpu::paging::Nested;
use undervisor_svm::fields::FIELDS as VMCB_FIELDS;
use undervisor_svm::reason as svm_reason;
use undervisor_vmx::checks::state::NO_VMCS;
use undervisor_vmx::fields::FIELDS as VMCS_FIELDS;
use undervisor_vmx::{Field as VmcsField, reason as vmx_reason};

use super::registers::MSRS;
use super::target::{Debuggee, Own, exit_name};

const HELP: &str = "\
level                        level of this processor: 1 hypervisor or no guest, 2 guest of its VMX or SVM
level 1|2|any                the debugger's breakpoints stop only at this level
break ADDR [level 1|2]       stop at a linear address, perhaps at one level only
break exit [REASON]          stop after VM exits (REASON: a number, or part of its name)
break entry-failure          stop when VMLAUNCH, VMRESUME or VMRUN fails, and say which check
break vmcs FIELD             stop after a VMWRITE to a field
break vmcb FIELD [VMCB]      stop after a store to a field of a VMCB (physical address; default: the one run last)
breaks, delete N|all         list these, remove them
vmcs [FIELD]                 the current VMCS (part of a name is enough)
vmcb [FIELD]                 the VMCB that ran last, as the processor caches it
exits                        VM exits since the debugger attached
walk LINEAR                  page tables of this level, and the second-level tables below them
ept GPA, npt GPA             second-level tables
msr N [VALUE]                read or write an MSR, by number or name
state                        segments, control registers, what blocks events
help                         this list
";

type Answer = Result<String, String>;

/// A number: hexadecimal with 0x, else decimal.
fn parse(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    }
    .map_err(|_| format!("{text}: not a number (hexadecimal needs 0x)"))
}

fn parse_level(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err(format!("{text}: a level is 1 or 2")),
    }
}

/// `name` in the style of the field tables.
fn canonical(name: &str) -> String {
    name.replace(['-', ' '], "_").to_ascii_uppercase()
}

fn vmcs_field(text: &str) -> Result<VmcsField, String> {
    let name = canonical(text);
    let encoding = parse(text).ok();
    VMCS_FIELDS
        .iter()
        .position(|row| row.name == name || encoding == Some(row.encoding as u64))
        .map(|i| VmcsField(i as u8))
        .ok_or_else(|| format!("{text}: no VMCS field; `monitor vmcs` lists them"))
}

impl Debuggee<'_> {
    /// Carry out a command; what it prints, or what is wrong with it.
    pub fn monitor(&mut self, command: &str) -> Answer {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            [] | ["help"] | ["?"] => Ok(HELP.into()),
            ["level"] => self.on(|cpu| Ok(describe_level(cpu))),
            ["level", "any"] => self.limit(None),
            ["level", n] => self.limit(Some(parse_level(n)?)),
            ["break", ref rest @ ..] => self.set_break(rest),
            ["breaks"] => Ok(self.list()),
            ["delete", which] => self.delete(which),
            ["vmcs"] => self.on(|cpu| vmcs(cpu, "")),
            ["vmcs", part] => self.on(|cpu| vmcs(cpu, &canonical(part))),
            ["vmcb"] => self.on(|cpu| vmcb(cpu, "")),
            ["vmcb", part] => self.on(|cpu| vmcb(cpu, &canonical(part))),
            ["exits"] => Ok(self.exits()),
            ["walk", at] => self.on(|cpu| walk(cpu, parse(at)?)),
            ["ept", at] => self.on(|cpu| ept(cpu, parse(at)?)),
            ["npt", at] => self.on(|cpu| npt(cpu, parse(at)?)),
            ["msr", n] => self.on(|cpu| msr(cpu, n, None)),
            ["msr", n, value] => self.on(|cpu| msr(cpu, n, Some(parse(value)?))),
            ["state"] => self.on(|cpu| Ok(state(cpu))),
            _ => Err(format!("{command}: unknown; `monitor help` lists the commands")),
        }
    }

    fn on(&mut self, f: impl FnOnce(&mut Cpu) -> Answer) -> Answer {
        f(self.cpu().ok_or("no such processor")?)
    }

    fn vendor(&self) -> Vendor {
        self.machine.cpus().first().map_or(Vendor::Intel, |c| c.model.vendor)
    }

    fn limit(&mut self, level: Option<u8>) -> Answer {
        self.level = level;
        self.apply();
        Ok(match level {
            Some(n) => format!("breakpoints of the debugger stop at level {n} only\n"),
            None => "breakpoints of the debugger stop at any level\n".into(),
        })
    }

    fn set_break(&mut self, words: &[&str]) -> Answer {
        let own = match *words {
            ["exit"] => Own::Exit(None),
            ["exit", ref reason @ ..] => Own::Exit(Some(self.exit_reason(&reason.join(" "))?)),
            ["entry-failure"] => Own::EntryFailure,
            ["vmcs", field] => Own::VmcsField(vmcs_field(field)?),
            ["vmcb", field] => self.vmcb_field(field, None)?,
            ["vmcb", field, at] => self.vmcb_field(field, Some(parse(at)?))?,
            [at] => Own::Code(CodePoint { linear: parse(at)?, level: None }),
            [at, "level", level] => Own::Code(CodePoint { linear: parse(at)?, level: Some(parse_level(level)?) }),
            _ => return Err("break what? `monitor help` lists the kinds".into()),
        };
        let number = self.next_own;
        self.next_own += 1;
        let line = self.describe(number, &own);
        self.own.push((number, own));
        self.apply();
        Ok(line)
    }

    fn vmcb_field(&mut self, name: &str, at: Option<u64>) -> Result<Own, String> {
        let wanted = canonical(name);
        let row = VMCB_FIELDS.iter().find(|r| r.name == wanted);
        let row = row.ok_or_else(|| format!("{name}: no VMCB field; `monitor vmcb` lists them"))?;
        let cached = self.cpu().and_then(|cpu| cpu.virt.svm.vmcb.address());
        let vmcb = at.or(cached).ok_or("no VMCB has run yet: give its physical address")?;
        Ok(Own::VmcbField(row.name, vmcb + row.field.offset as u64, row.field.size as u64))
    }

    /// An exit reason by number or by part of its name.
    fn exit_reason(&self, text: &str) -> Result<u64, String> {
        if let Ok(number) = parse(text) {
            return Ok(number);
        }
        let wanted = text.to_ascii_lowercase();
        let name = |code: u64| match self.vendor() {
            Vendor::Intel => vmx_reason::name(code as u32).to_ascii_lowercase(),
            Vendor::Amd => svm_reason::name(code).to_ascii_lowercase(),
        };
        let codes = || (0..0x100).chain(0x400..0x410);
        codes()
            .find(|&c| name(c) == wanted)
            .or_else(|| codes().find(|&c| name(c).contains(&wanted)))
            .ok_or_else(|| format!("{text}: no such exit"))
    }

    fn describe(&self, number: u32, own: &Own) -> String {
        let what = match own {
            Own::Code(CodePoint { linear, level: None }) => format!("at {linear:#x}"),
            Own::Code(CodePoint { linear, level: Some(level) }) => format!("at {linear:#x}, level {level} only"),
            Own::Exit(None) => "any VM exit".into(),
            Own::Exit(Some(reason)) => format!("VM exit {}", exit_name(self.vendor(), *reason)),
            Own::EntryFailure => "VM entry failure".into(),
            Own::VmcsField(field) => format!("VMWRITE to {field:?}"),
            Own::VmcbField(name, at, _) => format!("store to {name} at physical {at:#x}"),
        };
        format!("{number}: {what}\n")
    }

    fn list(&self) -> String {
        let mut out: String = self.own.iter().map(|(n, own)| self.describe(*n, own)).collect();
        if out.is_empty() {
            out.push_str("none\n");
        }
        out
    }

    fn delete(&mut self, which: &str) -> Answer {
        if which == "all" {
            self.own.clear();
        } else {
            let number = parse(which)?;
            let before = self.own.len();
            self.own.retain(|(n, _)| *n as u64 != number);
            if self.own.len() == before {
                return Err(format!("{which}: no such breakpoint"));
            }
        }
        self.apply();
        Ok(self.list())
    }

    fn exits(&self) -> String {
        let vendor = self.vendor();
        let mut out = String::new();
        for cpu in self.machine.cpus() {
            let c = &cpu.counters;
            let _ = writeln!(out, "cpu {}: {} VM entries, {} VM exits in all", cpu.id, c.vm_entries, c.vm_exits);
            for (&reason, count) in &cpu.debugger.exit_counts {
                let _ = writeln!(out, "  {count:>10}  {}", exit_name(vendor, reason));
            }
        }
        out
    }
}

fn describe_level(cpu: &Cpu) -> String {
    let what = match (cpu.level(), cpu.model.vendor) {
        (2, Vendor::Intel) => "VMX non-root operation".to_owned(),
        (2, Vendor::Amd) => "SVM guest".to_owned(),
        (_, Vendor::Intel) if cpu.virt.vmx.on => "VMX root operation".to_owned(),
        (_, Vendor::Intel) => "no VMX".to_owned(),
        (_, Vendor::Amd) => format!("SVM host, GIF {}", u8::from(cpu.virt.svm.gif)),
    };
    format!("level {}: {what}; CPL {}, {}-bit code\n", cpu.level(), cpu.state.cpl, cpu.mode.bits())
}

fn vmcs(cpu: &mut Cpu, part: &str) -> Answer {
    let x = &cpu.virt.vmx;
    if x.current == NO_VMCS {
        return Err("no current VMCS".into());
    }
    let launched = if x.vmcs.launched { "launched" } else { "clear" };
    let mut out = format!("VMCS at {:#x}, {launched}\n", x.current);
    let exists = cpu.vmx_capabilities();
    for field in VmcsField::all() {
        let Some(row) = field.row() else { continue };
        if row.name.contains(part) && exists.fields.find(row.encoding as u64).is_some() {
            let value = cpu.virt.vmx.vmcs.get(field);
            let _ = write!(out, "{:#06x} {:<40} {value:#x}", row.encoding, row.name);
            if field == VmcsField::EXIT_REASON {
                let _ = write!(out, "  {}", vmx_reason::name(value as u32 & 0xffff));
            }
            out.push('\n');
        }
    }
    Ok(out)
}

fn vmcb(cpu: &Cpu, part: &str) -> Answer {
    let v = &cpu.virt.svm.vmcb;
    let Some(at) = v.address() else {
        return Err("no VMCB is cached: none has run, or the last VMRUN was refused".into());
    };
    let mut out = format!("VMCB at {at:#x}, as cached\n");
    for row in VMCB_FIELDS.iter().filter(|row| row.name.contains(part)) {
        let value = v.get(row.field);
        let _ = write!(out, "{:#05x} {:<40} {value:#x}", row.field.offset, row.name);
        if row.name == "EXITCODE" {
            let _ = write!(out, "  {}", svm_reason::name(value));
        }
        out.push('\n');
    }
    Ok(out)
}

fn show(out: &mut String, walk: &Walk, space: &str) {
    for e in &walk.entries {
        let _ = writeln!(out, "  {:<10} at {:#x} = {:#018x}", e.name, e.address, e.value);
    }
    let _ = match &walk.end {
        Ok((to, bits)) if *bits < 40 => writeln!(out, "  {space} {to:#x}, page of {} KiB", (1u64 << bits) >> 10),
        Ok((to, _)) => writeln!(out, "  {space} {to:#x}"),
        Err(why) => writeln!(out, "  no translation: {why}"),
    };
}

fn walk(cpu: &Cpu, linear: u64) -> Answer {
    let mut out = format!("linear {linear:#x}, level {}, CR3 {:#x}\n", cpu.level(), cpu.state.cr3);
    let first = cpu.inspect_linear(linear);
    show(&mut out, &first, if cpu.level() == 2 { "guest-physical" } else { "physical" });
    if let Ok((address, _)) = first.end {
        second(cpu, address, &mut out);
    }
    Ok(out)
}

/// The second level of a walk, if one is in force.
fn second(cpu: &Cpu, address: u64, out: &mut String) {
    match &cpu.translations.nested {
        Nested::None => {}
        Nested::Ept(e) => {
            let walk = walk_ept(&cpu.shared.memory, e.root | (e.levels as u64).saturating_sub(1) << 3, address);
            show(out, &walk, "physical");
        }
        Nested::Npt(n) => show(out, &walk_npt(&cpu.shared.memory, &n.paging, address), "physical"),
    }
}

fn ept(cpu: &Cpu, address: u64) -> Answer {
    let v = &cpu.virt.vmx.vmcs;
    if cpu.virt.vmx.current == NO_VMCS || !v.ept() {
        return Err("the current VMCS does not use EPT".into());
    }
    let eptp = v.get(VmcsField::EPT_POINTER);
    let mut out = format!("guest-physical {address:#x}, EPTP {eptp:#x}\n");
    show(&mut out, &walk_ept(&cpu.shared.memory, eptp, address), "physical");
    Ok(out)
}

fn npt(cpu: &Cpu, address: u64) -> Answer {
    let root = cpu.virt.svm.vmcb.get(undervisor_svm::Field::N_CR3);
    let mut out = format!("guest-physical {address:#x}, nCR3 {root:#x}\n");
    let walk = match &cpu.translations.nested {
        Nested::Npt(n) => walk_npt(&cpu.shared.memory, &n.paging, address),
        _ if cpu.virt.svm.vmcb.address().is_none() || cpu.level() == 2 => {
            return Err("the VMCB that ran last does not use nested paging".into());
        }
        // The host's paging mode is the nested tables' too.
        _ => {
            let mut paging = *cpu.translations.paging();
            paging.root = root & 0x000f_ffff_ffff_f000;
            walk_npt(&cpu.shared.memory, &paging, address)
        }
    };
    show(&mut out, &walk, "physical");
    Ok(out)
}

fn msr(cpu: &mut Cpu, which: &str, value: Option<u64>) -> Answer {
    let name = which.to_ascii_lowercase();
    let number = match MSRS.iter().find(|m| m.0 == name.trim_start_matches("ia32_").trim_start_matches("msr_")) {
        Some(m) => m.1,
        None => u32::try_from(parse(which)?).map_err(|_| format!("{which}: MSR numbers have 32 bits"))?,
    };
    if let Some(value) = value {
        cpu.write_msr(number, value).map_err(|_| format!("WRMSR {number:#x} of {value:#x} is #GP"))?;
        cpu.mode_changed();
    }
    let read = cpu.read_msr(number).map_err(|_| format!("RDMSR {number:#x} is #GP"))?;
    Ok(format!("MSR {number:#x} = {read:#x}\n"))
}

fn state(cpu: &Cpu) -> String {
    let s = &cpu.state;
    let mut out = describe_level(cpu);
    let _ = writeln!(out, "rip {:#x} rsp {:#x} rflags {:#x}", s.rip(), s.gpr(undervisor_core::regs::RSP), s.rflags());
    let _ = writeln!(
        out,
        "cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
        s.cr0.bits(),
        s.cr2,
        s.cr3,
        s.cr4.bits(),
        s.efer.bits()
    );
    let names = ["es", "cs", "ss", "ds", "fs", "gs"];
    let segments = [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs];
    let rows = names.into_iter().zip(segments.map(|r| *s.segment(r))).chain([("ldtr", s.ldtr), ("tr", s.tr)]);
    for (name, seg) in rows {
        let _ = writeln!(
            out,
            "{name:<4} {:04x} base {:#x} limit {:#x} access {:#x}",
            seg.selector, seg.base, seg.limit, seg.access
        );
    }
    let _ = writeln!(
        out,
        "gdtr {:#x}/{:#x} idtr {:#x}/{:#x}; activity {:?}, {:?}",
        s.gdtr.base, s.gdtr.limit, s.idtr.base, s.idtr.limit, s.activity, s.shadow
    );
    out
}
