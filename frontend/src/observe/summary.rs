//! Statistics in words.

use std::fmt::Write as _;
use std::time::Duration;

use undervisor_core::Vendor;
use undervisor_cpu::observe::{Observer, Statistics};
use undervisor_machine::Machine;

use super::codes;
use super::symbols::Symbols;
use crate::stats::count;

/// Rows of a table.
const ROWS: usize = 20;
/// Rows of the tables of RIPs.
const RIPS: usize = 8;

fn each(total: Duration, n: u64) -> String {
    if n == 0 { "-".into() } else { format!("{}", total.as_nanos() / n as u128) }
}

/// Exits by reason and level, where they come from, what it costs to handle them.
pub fn statistics(s: &Statistics, machine: &Machine, symbols: &Symbols) -> String {
    let exits = s.exits();
    let amd = machine.cpus().first().is_some_and(|c| c.model.vendor == Vendor::Amd);
    let walks: u64 = machine.cpus().iter().map(|c| c.counters.nested_walks).sum();
    let misses: u64 = machine.cpus().iter().map(|c| c.counters.tlb_misses).sum();
    let mut out = String::new();
    let _ =
        writeln!(out, "{:<24} {} after TLB misses of data, {} under a second level", "page walks", count(misses), count(walks));
    if exits.is_empty() {
        return out;
    }
    let _ = writeln!(
        out,
        "{:<30} {:>5} {:>12} {:>10} {:>12} {:>12} {:>9} {:>9}",
        "exit",
        "level",
        if amd { "VMCB" } else { "VMCS" },
        "count",
        "insns in L2",
        "insns in L1",
        "ns in L2",
        "ns in L1"
    );
    for (key, sum) in exits.iter().take(ROWS) {
        let _ = writeln!(
            out,
            "{:<30} {:>5} {:>12} {:>10} {:>12.1} {:>12.1} {:>9} {:>9}",
            codes::reason_name(amd, key.reason),
            key.level,
            format!("{:#x}", key.structure),
            count(sum.count),
            sum.guest as f64 / sum.count as f64,
            sum.host as f64 / sum.count as f64,
            each(sum.guest_time, sum.count),
            each(sum.host_time, sum.count),
        );
    }
    if exits.len() > ROWS {
        let _ = writeln!(out, "  and {} more kinds", exits.len() - ROWS);
    }
    let rips = s.guest_rips();
    let _ = writeln!(out, "hottest exits by guest RIP ({} places)", rips.len());
    for (level, rip, n) in rips.iter().take(RIPS) {
        let _ = writeln!(out, "  L{level} {rip:#x}{}: {}", symbols.suffix(*level, *rip), count(*n));
    }
    let handlers = s.handlers();
    let _ = writeln!(out, "hottest handlers by the L1 RIP that re-enters ({} places)", handlers.len());
    for (rip, n, spent) in handlers.iter().take(RIPS) {
        let _ = writeln!(
            out,
            "  L1 {rip:#x}{}: {} entries, {} instructions since their exits",
            symbols.suffix(1, *rip),
            count(*n),
            count(*spent)
        );
    }
    out
}

/// How often things failed, if they did more than once or more than one did.
pub fn counts(o: &Observer, symbols: &Symbols) -> String {
    let mut out = String::new();
    for (name, rip, n) in o.causes() {
        if n > 1 {
            let _ = writeln!(out, "undervisor: {name} at {rip:#x}{}: {} times in all", symbols.suffix(1, rip), count(n));
        }
    }
    for (lint, n) in o.lint_counts() {
        let _ = writeln!(
            out,
            "undervisor: lint {}: {}",
            lint.name(),
            if n == 1 { "once".into() } else { format!("{} times", count(n)) }
        );
    }
    out.pop();
    out
}
