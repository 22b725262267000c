//! Many tests, what they found, and the report.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use iced_x86::{FastFormatter, Mnemonic};

use super::Options;
use super::compare::{Difference, differences};
use super::generate::{Generator, Test};
use super::guest::Guest;
use super::native::Native;
use super::state::{Outcome, place};

/// What happened to the tests of a mnemonic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub agree: u64,
    /// Of those, ended in the same fault.
    pub faulted: u64,
    pub differ: u64,
    /// Undervisor answers #UD, the host does not.
    pub missing: u64,
    /// The host answers #UD.
    pub host_lacks: u64,
}

/// A disagreement, made as short as it could be.
pub struct Mismatch {
    pub seed: u64,
    pub test: Test,
    pub differences: Vec<Difference>,
}

enum Verdict {
    Agree {
        faulted: bool,
    },
    Missing(Mnemonic),
    HostLacks(Mnemonic),
    Differ(Vec<Difference>),
    /// The host took a page fault: the test left its data.
    Stray,
}

/// Host and guest side by side.
pub struct Campaign {
    native: Native,
    guest: Guest,
    generator: Generator,
    /// By mnemonic; a sequence counts for each of its instructions.
    pub counts: BTreeMap<String, Count>,
    pub mismatches: Vec<Mismatch>,
    pub tests: u64,
    pub strays: u64,
}

fn name(m: Mnemonic) -> String {
    format!("{m:?}").to_lowercase()
}

/// Whether the host is AMD's.
fn host_is_amd() -> bool {
    #[allow(unused_unsafe)]
    let id = std::arch::x86_64::__cpuid(0);
    id.ebx == u32::from_le_bytes(*b"Auth")
}

impl Campaign {
    /// Fails if the host cannot run native tests.
    pub fn new(filter: &str) -> Result<Campaign, String> {
        Ok(Campaign {
            native: Native::new()?,
            guest: Guest::new(host_is_amd()),
            generator: Generator::new(filter),
            counts: BTreeMap::new(),
            mismatches: Vec::new(),
            tests: 0,
            strays: 0,
        })
    }

    fn execute(&mut self, test: &Test) -> (Outcome, Outcome, Vec<u8>, Vec<u8>) {
        let mut native_data = test.data.clone();
        let native = self.native.run(&test.bytes, &test.start, &mut native_data);
        let mut guest_data = test.data.clone();
        let mut code = test.bytes.clone();
        code.extend([0x0f, 0x0b]);
        let guest = self.guest.run(&code, &test.start, &mut guest_data);
        (native, guest, native_data, guest_data)
    }

    fn judge(&mut self, test: &Test) -> Verdict {
        let (native, guest, native_data, guest_data) = self.execute(test);
        let at = |rip| test.index_at(rip).map_or(Mnemonic::INVALID, |i| test.instructions[i].mnemonic());
        match native.fault {
            Some((6, _)) => return Verdict::HostLacks(at(native.state.rip)),
            Some((14, _)) => return Verdict::Stray,
            _ => {}
        }
        let end = place::TEST + test.bytes.len() as u64;
        if let Some((6, _)) = guest.fault
            && guest.state.rip != end
        {
            return Verdict::Missing(at(guest.state.rip));
        }
        let differences = differences(test, &native, &guest, &native_data, &guest_data);
        if differences.is_empty() { Verdict::Agree { faulted: native.fault.is_some() } } else { Verdict::Differ(differences) }
    }

    /// The test of one seed.
    pub fn step(&mut self, seed: u64, single: bool) {
        let Some(test) = self.generator.test(seed, single) else { return };
        self.tests += 1;
        match self.judge(&test) {
            Verdict::Agree { faulted } => {
                for i in &test.instructions {
                    let c = self.counts.entry(name(i.mnemonic())).or_default();
                    c.agree += 1;
                    c.faulted += faulted as u64;
                }
            }
            Verdict::Missing(m) => self.counts.entry(name(m)).or_default().missing += 1,
            Verdict::HostLacks(m) => self.counts.entry(name(m)).or_default().host_lacks += 1,
            Verdict::Stray => self.strays += 1,
            Verdict::Differ(found) => {
                let (test, differences) = self.shorten(test, found);
                for i in &test.instructions {
                    self.counts.entry(name(i.mnemonic())).or_default().differ += 1;
                }
                self.mismatches.push(Mismatch { seed, test, differences });
            }
        }
    }

    /// Leave out instructions as long as a disagreement remains.
    fn shorten(&mut self, mut test: Test, mut found: Vec<Difference>) -> (Test, Vec<Difference>) {
        let mut n = 0;
        while n < test.instructions.len() {
            if let Some(shorter) = test.without(n)
                && let Verdict::Differ(d) = self.judge(&shorter)
            {
                (test, found) = (shorter, d);
                continue;
            }
            n += 1;
        }
        (test, found)
    }

    /// Instruction forms that no test has exercised with agreement.
    pub fn uncovered(&self) -> Vec<String> {
        let mut names: Vec<String> = self.generator.codes().iter().map(|c| name(c.mnemonic())).collect();
        names.sort();
        names.dedup();
        names.retain(|n| self.counts.get(n).is_none_or(|c| c.agree == 0 && c.host_lacks == 0));
        names
    }
}

/// Print a mismatch in full.
pub fn print(m: &Mismatch) {
    println!("seed {}", m.seed);
    let mut formatter = FastFormatter::new();
    for (i, insn) in m.test.instructions.iter().enumerate() {
        let mut text = String::new();
        formatter.format(insn, &mut text);
        let bytes = &m.test.bytes[m.test.offsets[i]..m.test.offsets[i + 1]];
        let bytes: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        println!("    {bytes:24} {text}");
    }
    let s = &m.test.start;
    let mut used = std::collections::BTreeSet::new();
    for insn in &m.test.instructions {
        let mut factory = iced_x86::InstructionInfoFactory::new();
        for r in factory.info(insn).used_registers() {
            used.insert(r.register().full_register() as usize);
        }
        for r in factory.info(insn).used_memory() {
            used.insert(r.base() as usize);
        }
    }
    let names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
    for i in 0..16 {
        if used.contains(&(iced_x86::Register::RAX as usize + i)) {
            let name = names.get(i).map_or_else(|| format!("r{i}"), |n| n.to_string());
            println!("  in   {name} {:#x}", s.regs[i]);
        }
        let full = [iced_x86::Register::XMM0, iced_x86::Register::YMM0, iced_x86::Register::ZMM0];
        if full.iter().any(|&f| used.contains(&(f as usize + i))) {
            let y = s.ymm[i];
            println!("  in   ymm{i} {:016x}_{:016x}_{:016x}_{:016x}", y[3], y[2], y[1], y[0]);
        }
    }
    println!("  in   rflags {:#x} mxcsr {:#x}", s.rflags, s.mxcsr);
    let x87 = |i: &iced_x86::Instruction| i.code().op_code().op_kinds().iter().any(|k| format!("{k:?}").starts_with("st"));
    let is_x87 = |i: &iced_x86::Instruction| x87(i) || name(i.mnemonic()).starts_with('f');
    if m.test.instructions.iter().any(is_x87) {
        println!("  in   x87 control {:#x} status {:#x} tags {:#x}", s.x87.control, s.x87.status, s.x87.tags);
        let top = (s.x87.status >> 11 & 7) as usize;
        for i in 0..8 {
            let v = s.x87.st[(top + i) & 7];
            let tag = if s.x87.tags >> ((top + i) & 7) & 1 == 0 { " (empty)" } else { "" };
            println!("  in   st{i} = fpr{}  {:04x}_{:016x}{tag}", (top + i) & 7, v.sign_exponent, v.mantissa);
        }
    }
    if let Some(insn) = m.test.instructions.first()
        && insn.op_kinds().any(|k| k == iced_x86::OpKind::Memory)
        && m.test.instructions.len() == 1
    {
        let at = insn.virtual_address(
            (0..insn.op_count()).find(|&n| insn.op_kind(n) == iced_x86::OpKind::Memory).unwrap_or(0),
            0,
            |r, _, _| {
                if r.is_gpr() {
                    Some(s.regs[r.full_register().number()] & if r.size() == 4 { 0xffff_ffff } else { u64::MAX })
                } else {
                    Some(0)
                }
            },
        );
        if let Some(at) = at {
            let offset = at.wrapping_sub(place::DATA) as usize;
            if let Some(bytes) = m.test.data.get(offset..offset.saturating_add(32)) {
                let bytes: String = bytes.iter().rev().map(|b| format!("{b:02x}")).collect();
                println!("  in   [{at:#x}] {bytes}");
            }
        }
    }
    for (what, native, guest) in &m.differences {
        println!("  {what}: host {native}, undervisor {guest}");
    }
}

/// The command.
pub fn run(options: &Options) -> ExitCode {
    let mut campaign = match Campaign::new(&options.filter) {
        Ok(c) => c,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut seed = options.seed;
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    while Instant::now() < end {
        for _ in 0..64 {
            campaign.step(seed, options.single);
            seed += 1;
        }
        for m in campaign.mismatches.drain(..) {
            let last = m.test.instructions.last().map_or(Mnemonic::INVALID, |i| i.mnemonic());
            let n = shown.entry(name(last)).or_default();
            if *n < options.show {
                print(&m);
            }
            *n += 1;
        }
    }
    report(&campaign, options);
    if campaign.counts.values().any(|c| c.differ > 0) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report(c: &Campaign, options: &Options) {
    println!("{} tests, {} left their data", c.tests, c.strays);
    if options.coverage {
        for (n, k) in &c.counts {
            println!(
                "  {n:16} agree {:8} (faulted {:7}) differ {:6} missing {:6} host lacks {:6}",
                k.agree, k.faulted, k.differ, k.missing, k.host_lacks
            );
        }
    }
    let list = |what: &str, f: &dyn Fn(&Count) -> u64| {
        let names: Vec<String> = c.counts.iter().filter(|(_, k)| f(k) > 0).map(|(n, k)| format!("{n} ({})", f(k))).collect();
        if !names.is_empty() {
            println!("{what}: {}", names.join(", "));
        }
    };
    list("differ", &|k| k.differ);
    list("missing in undervisor", &|k| k.missing);
    list("not on this host", &|k| k.host_lacks);
    let only_faults: Vec<&str> =
        c.counts.iter().filter(|(_, k)| k.agree > 0 && k.agree == k.faulted).map(|(n, _)| n.as_str()).collect();
    if !only_faults.is_empty() {
        println!("only faulted: {}", only_faults.join(", "));
    }
    let uncovered = c.uncovered();
    if !uncovered.is_empty() {
        println!("not covered: {}", uncovered.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few seconds of the oracle. Where the host cannot run it there is nothing to test.
    #[test]
    fn host_and_undervisor_agree() {
        let Ok(mut campaign) = Campaign::new("") else { return };
        for seed in 1..4000 {
            campaign.step(seed, false);
        }
        campaign.mismatches.iter().take(5).for_each(print);
        assert!(campaign.mismatches.is_empty(), "{} of {} tests differ", campaign.mismatches.len(), campaign.tests);
        assert!(campaign.counts.values().map(|c| c.agree).sum::<u64>() > 1000, "hardly anything was tested");
    }

    /// The oracle notices when a register differs.
    #[test]
    fn differences_are_seen() {
        let Ok(mut campaign) = Campaign::new("add") else { return };
        let Some(test) = (1..100).find_map(|s| campaign.generator.test(s, true)) else { return };
        let (native, mut guest, native_data, guest_data) = campaign.execute(&test);
        guest.state.regs[0] ^= 1;
        assert!(!differences(&test, &native, &guest, &native_data, &guest_data).is_empty());
    }
}
