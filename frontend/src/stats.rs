//! What `--stats` and Ctrl-A S print.

use std::fmt::Write;
use std::time::Duration;

use undervisor_machine::Machine;

/// A count with three or four digits and a unit.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.1} k", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.3} %", 100.0 * part as f64 / whole as f64) }
}

/// The summary of a run. `slept`: host time for which the guest waited in real time.
pub fn summary(machine: &Machine, elapsed: Duration, slept: Duration) -> String {
    let p = machine.progress();
    let busy = elapsed.saturating_sub(slept).as_secs_f64();
    let sum = |f: fn(&undervisor_cpu::cpu::Counters) -> u64| machine.cpus().iter().map(|c| f(&c.counters)).sum::<u64>();
    let misses = sum(|c| c.tlb_misses);
    let blocks = sum(|c| c.jump_cache_misses);
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<24} {value}");
    };
    row("instructions", format!("{} ({})", p.instructions, count(p.instructions)));
    row("host seconds", format!("{:.3} (asleep {:.3})", elapsed.as_secs_f64(), slept.as_secs_f64()));
    row("MIPS", format!("{:.1}", if busy > 0.0 { p.instructions as f64 / busy / 1e6 } else { 0.0 }));
    row("guest seconds", format!("{:.3} (halted {:.3})", p.time as f64 / 1e9, p.idle as f64 / 1e9));
    row(
        "TLB",
        format!(
            "{} misses, {} of instructions hit; {} slow loads, {} slow stores, {} flushes",
            count(misses),
            percent(p.instructions.saturating_sub(misses), p.instructions),
            count(sum(|c| c.slow_loads)),
            count(sum(|c| c.slow_stores)),
            count(sum(|c| c.space_flushes)),
        ),
    );
    let decoded = sum(|c| c.blocks_decoded);
    row(
        "op cache",
        format!(
            "{} blocks decoded, {} dropped; {} look-ups past the jump cache, {} hit",
            count(decoded),
            count(sum(|c| c.blocks_invalidated)),
            count(blocks),
            percent(blocks.saturating_sub(decoded), blocks),
        ),
    );
    row(
        "events",
        format!(
            "{} interrupts taken, {} exceptions; {} device interrupts routed",
            count(sum(|c| c.interrupts)),
            count(sum(|c| c.exceptions)),
            count(p.device_interrupts),
        ),
    );
    row("virtualization", format!("{} VM entries, {} VM exits", count(sum(|c| c.vm_entries)), count(sum(|c| c.vm_exits))));
    row("unclaimed accesses", count(machine.board().unclaimed()));
    if machine.cpus().len() > 1 {
        for cpu in machine.cpus() {
            row(&format!("processor {}", cpu.id), format!("{} instructions", count(cpu.retired())));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_are_short() {
        assert_eq!(super::count(999), "999");
        assert_eq!(super::count(123_456), "123.5 k");
        assert_eq!(super::count(3_600_000_000), "3600.0 M");
        assert_eq!(super::percent(1, 0), "-");
    }
}
