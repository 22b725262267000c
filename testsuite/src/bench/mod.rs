//! `bench compare`: the same guests under undervisor, Bochs and QEMU's TCG, in turn and repeatedly; medians and ratios.
//!
//! A guest prints `@S name` when a workload begins and `@E name` when it ends on COM1; host time between the two is what counts, so
//! firmware and boot loaders do not.

pub(crate) mod emulators;
mod exits;
mod guests;
mod linux;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use undervisor_core::Model;

use guests::{Bare, Processor};

/// Speed measurements.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every workload under undervisor, Bochs and QEMU TCG and print medians and ratios
    Compare(Compare),
}

#[derive(Args)]
struct Compare {
    /// Rounds; each runs every workload once under every emulator
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only workloads whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Only these emulators (undervisor, bochs, qemu), comma-separated
    #[arg(long, value_delimiter = ',')]
    emulators: Vec<String>,
    /// A Linux kernel (bzImage) for the Linux workloads; without it they are skipped
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// A static busybox for the Linux workloads
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
}

/// What an emulator is to boot.
pub enum Guest {
    Bare(Bare),
    /// A hard disk, and what its boot sector loads as a multiboot kernel; for processors like this.
    Disk {
        disk: Vec<u8>,
        image: Vec<u8>,
        model: Box<Model>,
    },
    Linux(linux::Files),
}

/// A marker as it came out of COM1.
pub struct Mark {
    pub line: String,
    pub at: Instant,
}

/// Collects serial output and notes when each marker line ended.
pub struct Marks {
    line: Vec<u8>,
    pub marks: Vec<Mark>,
    /// Why no more came, if the guest did not say that it was done.
    pub ended: Option<String>,
}

impl Marks {
    fn new() -> Marks {
        Marks { line: Vec::new(), marks: Vec::new(), ended: None }
    }

    fn feed(&mut self, byte: u8) {
        if byte != b'\n' {
            self.line.push(byte);
            return;
        }
        let line = String::from_utf8_lossy(&self.line).trim().to_string();
        self.line.clear();
        if line.starts_with('@') {
            self.marks.push(Mark { line, at: Instant::now() });
        }
    }

    /// The guest says that it is done.
    pub fn complete(&self) -> bool {
        self.marks.last().is_some_and(|m| m.line == "@DONE" || m.line.starts_with("@FAIL"))
    }

    /// It has been reset and says the same again.
    fn again(&self) -> bool {
        matches!(&self.marks[..], [first, .., last] if last.line == first.line)
    }

    fn done(&self) -> bool {
        self.complete() || self.again()
    }

    /// What the guest says has failed.
    fn failure(&self) -> Option<&str> {
        self.marks.iter().map(|m| m.line.as_str()).find(|l| l.starts_with("@FAIL"))
    }

    /// Host seconds between the markers of each workload.
    fn times(&self, start: Instant) -> BTreeMap<String, f64> {
        let mut open: BTreeMap<&str, Instant> = BTreeMap::new();
        let mut out = BTreeMap::new();
        for m in &self.marks {
            if let Some(name) = m.line.strip_prefix("@S ") {
                open.insert(name, m.at);
            } else if let Some(name) = m.line.strip_prefix("@E ") {
                let from = open.get(name).copied().unwrap_or(start);
                out.insert(name.to_string(), (m.at - from).as_secs_f64());
            }
        }
        out
    }
}

/// Carry out `bench`.
pub fn run(options: &Options) -> ExitCode {
    let Command::Compare(options) = &options.command;
    match compare(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Compare) -> Result<(), Box<dyn std::error::Error>> {
    let wanted = |name: &str| options.only.as_deref().is_none_or(|o| name.contains(o));
    let mut guests: Vec<Guest> = guests::all().into_iter().filter(|g| wanted(&g.name)).map(Guest::Bare).collect();
    let linux_wanted = linux::WORKLOADS.iter().any(|w| wanted(w));
    match &options.kernel {
        Some(kernel) if linux_wanted => guests.push(Guest::Linux(linux::files(kernel, &options.busybox, wanted)?)),
        None if linux_wanted => println!("Linux workloads skipped: no --kernel given"),
        _ => {}
    }
    let mut emulators = Vec::new();
    for e in emulators::all() {
        if !options.emulators.is_empty() && !options.emulators.iter().any(|n| n == e.name()) {
            continue;
        }
        match e.missing() {
            Some(why) => println!("{} skipped: {why}", e.name()),
            None => emulators.push(e),
        }
    }
    let mut times = Times::new();
    for round in 1..=options.runs.max(1) {
        for guest in &guests {
            for e in &emulators {
                if let Guest::Bare(bare) = guest
                    && !e.has(bare.processor)
                {
                    continue;
                }
                eprintln!("round {round}/{}: {}", options.runs, e.name());
                let start = Instant::now();
                match e.run(guest, Duration::from_secs(900)) {
                    Ok(marks) => {
                        if let Some(why) = marks.failure() {
                            eprintln!("  {}: the guest says {why}", e.name());
                        }
                        for (name, seconds) in marks.times(start) {
                            times.entry(name).or_default().entry(e.name()).or_default().push(seconds);
                        }
                    }
                    Err(why) => eprintln!("  {}: {why}", e.name()),
                }
            }
        }
    }
    print_table(&times);
    print_exits(&times);
    print_levels(&times);
    Ok(())
}

fn median(v: &[f64]) -> f64 {
    let mut v = v.to_vec();
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// Seconds by workload and emulator, one a round.
type Times = BTreeMap<String, BTreeMap<&'static str, Vec<f64>>>;

const EMULATORS: [&str; 3] = ["undervisor", "bochs", "qemu"];

/// The round trips of VM exits, each.
fn print_exits(times: &Times) {
    let mut rows = times.iter().filter(|(name, _)| name.starts_with("exit-")).peekable();
    if rows.peek().is_none() {
        return;
    }
    println!("\n{:22} {:>12} {:>12} {:>12}", "each exit", "undervisor", "bochs", "qemu-tcg");
    for (name, by) in rows {
        let each =
            EMULATORS.map(|e| by.get(e).map_or("-".into(), |v| format!("{:.0} ns", median(v) * 1e9 / exits::EXITS as f64)));
        println!("{name:22} {:>12} {:>12} {:>12}", each[0], each[1], each[2]);
    }
}

/// The same loop in a hypervisor and in its guest.
fn print_levels(times: &Times) {
    for vendor in ["vmx", "svm"] {
        let (Some(l1), Some(l2)) = (times.get(&format!("l1-{vendor}")), times.get(&format!("l2-{vendor}"))) else { continue };
        for e in EMULATORS {
            let (Some(l1), Some(l2)) = (l1.get(e), l2.get(e)) else { continue };
            let mips = |v| guests::MEMORY_INSTRUCTIONS / median(v) / 1e6;
            let (l1, l2) = (mips(l1), mips(l2));
            println!("{vendor}, {e}: {l1:.0} MIPS in L1, {l2:.0} in L2: {:.1} %", 100.0 * l2 / l1);
        }
    }
}

fn print_table(times: &Times) {
    println!("{:22} {:>12} {:>12} {:>12} {:>10} {:>10}", "workload", "undervisor", "bochs", "qemu-tcg", "vs bochs", "vs tcg");
    for (name, by) in times {
        let of = |e: &str| by.get(e).map(|v| median(v));
        let show = |t: Option<f64>| t.map_or("-".into(), |t| format!("{t:.3} s"));
        let ratio = |other: Option<f64>| match (of("undervisor"), other) {
            (Some(a), Some(b)) if a > 0.0 => format!("{:.2} x", b / a),
            _ => "-".into(),
        };
        println!(
            "{name:22} {:>12} {:>12} {:>12} {:>10} {:>10}",
            show(of("undervisor")),
            show(of("bochs")),
            show(of("qemu")),
            ratio(of("bochs")),
            ratio(of("qemu"))
        );
    }
    println!("medians of host seconds; a ratio above 1 means undervisor is faster");
}
