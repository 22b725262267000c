//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes (those of undervisor's own are even, those of isa-debug-exit odd):
   0      the guest powered off, or Ctrl-A X
   v<<1|1 the guest wrote v to isa-debug-exit (port 0xf4)
   2      wrong usage
   4      triple fault
   6      --insn-limit reached
   8      --time-limit reached
  10      all processors are halted and nothing can wake them
  12      the guest asked for a reset (see --reboot)
  14      bad image, option value or device: nothing ran
  16      the host failed: memory, files, terminal
  18      `test`: some test failed

Keys, when the terminal is the guest's serial port: Ctrl-A X quits, Ctrl-A S prints statistics, Ctrl-A H lists all keys.
UNDERVISOR_LOG sets the log filter as -v does (for example UNDERVISOR_LOG=debug).";

/// A software x86-64 computer for operating systems and hypervisors: VT-x and AMD-V without hardware, on any host.
///
/// Without a command it runs a guest that is part of the program (see `demo`).
#[derive(Debug, Parser)]
#[command(name = "undervisor", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Say more: -v information, -vv details, -vvv everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel or firmware.
    #[command(after_help = EXIT_CODES)]
    Run(Box<RunOptions>),
    /// Run the guest that is part of the program: real mode to long mode, interrupts, and a hypervisor's exits.
    Demo(DemoOptions),
    /// Say what a number means: exit reasons and codes, VM-instruction errors, exceptions, fields bit by bit.
    Explain(ExplainOptions),
    /// Make one HTML page from a trace in JSON lines (see `run --trace`).
    Report(ReportOptions),
    /// Processor models.
    Cpu {
        #[command(subcommand)]
        command: CpuCommand,
    },
    /// Run a suite of multiboot test guests, such as kvm-unit-tests.
    Test(Box<TestOptions>),
}

#[derive(Debug, Subcommand)]
pub enum CpuCommand {
    /// List the models.
    List,
    /// Print what a guest sees of a model: CPUID leaves, features, VMX or SVM capabilities.
    Show {
        /// Model and changes to it, as for `run --cpu`.
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct RunOptions {
    /// Linux bzImage, multiboot or PVH ELF, or flat binary; which one is found by content.
    #[arg(long, value_name = "FILE", required_unless_present = "firmware", conflicts_with = "firmware")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; for multiboot and PVH kernels the first module.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "", requires = "kernel", allow_hyphen_values = true)]
    pub append: String,
    /// A boot module with its arguments; repeat for several, in order.
    #[arg(long, value_name = "FILE[,ARGS]", requires = "kernel")]
    pub module: Vec<String>,
    /// Load the kernel as a flat binary at this address (hexadecimal with 0x) and start there in real mode.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address, requires = "kernel")]
    pub flat: Option<u32>,
    /// A ROM of 64 KiB to 16 MiB, started at the reset vector.
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
    /// A disk, raw or qcow2 (virtio-blk); repeat for several. `snapshot`: writes are thrown away at the end.
    #[arg(long, value_name = "IMAGE[,readonly][,snapshot]")]
    pub disk: Vec<String>,
    /// A virtio console (hvc0): stdio, file:PATH or null.
    #[arg(long, value_name = "WHERE")]
    pub console: Option<String>,
    /// Where serial ports go: stdio, file:PATH or null. The first is COM1 (default stdio); repeat up to four times.
    #[arg(long, value_name = "WHERE")]
    pub serial: Vec<String>,
    /// Where port 0xe9 prints: stdio, file:PATH or null.
    #[arg(long, value_name = "WHERE", default_value = "null")]
    pub debugcon: String,
    /// A file that the guest can read through fw_cfg, as NAME=PATH; repeat for several.
    #[arg(long, value_name = "NAME=FILE")]
    pub fw_cfg: Vec<String>,
    #[command(flatten)]
    pub machine: MachineOptions,
    #[command(flatten)]
    pub limits: LimitOptions,
    #[command(flatten)]
    pub observe: ObserveOptions,
    #[command(flatten)]
    pub gdb: GdbOptions,
}

#[derive(Debug, Default, Args)]
pub struct GdbOptions {
    /// Serve gdb and lldb at PORT or HOST:PORT; the machine waits for the debugger before its first instruction.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:1234")]
    pub gdb: Option<String>,
    /// With --gdb: do not wait for the debugger, which may come at any time.
    #[arg(long, requires = "gdb")]
    pub gdb_live: bool,
}

#[derive(Debug, Args)]
pub struct MachineOptions {
    /// Guest memory: a number with K, M, G or T; M if without.
    #[arg(long, short, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub memory: u64,
    /// Number of processors, 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: usize,
    /// Processor model and changes to it: skylake-server,-ept,+la57 (see `cpu list`).
    #[arg(long, value_name = "MODEL[,±FEATURE...]", default_value = "skylake-server")]
    pub cpu: String,
    /// Seed of the guest's random numbers (virtio-rng).
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct LimitOptions {
    /// Stop after this many seconds of the host's time.
    #[arg(long, value_name = "SECONDS")]
    pub time_limit: Option<f64>,
    /// Stop after this many instructions, all processors together; K, M, G, T are powers of ten.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub insn_limit: Option<u64>,
    /// Print a summary at the end: instructions, MIPS, hit rates, interrupts, halted time, exits.
    #[arg(long)]
    pub stats: bool,
    /// When every processor waits: sleep for the time, or jump to the next event. Default: sleep while input may come.
    #[arg(long, value_enum, default_value_t = IdleMode::Auto)]
    pub idle: IdleMode,
    /// A guest's reset starts the machine over instead of ending the run.
    #[arg(long)]
    pub reboot: bool,
    /// No status line.
    #[arg(long)]
    pub no_status: bool,
}

/// See [`LimitOptions::idle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdleMode {
    Auto,
    Sleep,
    Jump,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DemoVendor {
    #[default]
    Intel,
    Amd,
}

#[derive(Debug, Default, Args)]
pub struct DemoOptions {
    /// Whose virtualization the demo uses.
    #[arg(long, value_enum, default_value_t = DemoVendor::Intel)]
    pub vendor: DemoVendor,
    /// Print a summary at the end.
    #[arg(long)]
    pub stats: bool,
    #[command(flatten)]
    pub observe: ObserveOptions,
    #[command(flatten)]
    pub gdb: GdbOptions,
}

/// Whether and how failures are explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExplainMode {
    /// Nothing is said.
    Off,
    /// What failed, by which rule, and who wrote the VMCS field.
    #[default]
    On,
    /// Also who wrote the VMCB field, with a second run if need be.
    Replay,
}

/// Options of `run` and `demo` for seeing inside.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Seeing inside (docs/debugging.md)")]
pub struct ObserveOptions {
    /// Explain failed VM entries, VMfail, triple faults: each cause once.
    #[arg(long, value_enum, default_value_t = ExplainMode::On)]
    pub explain: ExplainMode,
    /// Names for addresses: an ELF file, the level that runs it (1, the default, or 2), and what its addresses are off by.
    #[arg(long, value_name = "ELF[@LEVEL][+HEX]")]
    pub symbols: Vec<String>,
    /// Trace these: exits, entries, vmread, vmwrite, interrupts, msr, io, ept, flushes, or all.
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    pub trace: Vec<String>,
    /// Where the trace goes (default: standard error); JSON lines if the name ends in .jsonl.
    #[arg(long, value_name = "FILE")]
    pub trace_file: Option<PathBuf>,
    /// Write the trace as JSON lines whatever the file's name.
    #[arg(long, requires = "trace")]
    pub trace_json: bool,
    /// Write who runs when in the Chrome trace format, for Perfetto: a track for each processor and level.
    #[arg(long, value_name = "FILE")]
    pub trace_out: Option<PathBuf>,
    /// Trace only what happens at this level.
    #[arg(long, value_name = "N")]
    pub trace_level: Option<u8>,
    /// Trace only the VMCS or VMCB at this address.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_number)]
    pub trace_structure: Option<u64>,
    /// Of the exits, trace only those with these reasons or codes.
    #[arg(long, value_name = "N,...", value_parser = parse_number, value_delimiter = ',')]
    pub trace_reason: Vec<u64>,
    /// Trace only what happens at RIPs from FIRST to LAST.
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_range)]
    pub trace_rip: Option<(u64, u64)>,
    /// Trace this many records and no more.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub trace_first: Option<u64>,
    /// Trace nothing before this instruction.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub trace_after: Option<u64>,
    /// Look for mistakes that hardware lets pass: stale translations, lying clean bits, holes in bitmaps, and others. Slow.
    #[arg(long)]
    pub lint: bool,
}

/// `undervisor explain`.
#[derive(Debug, Args)]
pub struct ExplainOptions {
    /// A VMX exit reason (with bit 31 if VM entry failed) or an SVM exit code.
    #[arg(long, value_name = "N", value_parser = parse_number, allow_hyphen_values = true)]
    pub reason: Option<u64>,
    /// Whose reason it is; default: both, where both have it.
    #[arg(long, value_enum)]
    pub vendor: Option<DemoVendor>,
    /// A VM-instruction error number.
    #[arg(long, value_name = "N")]
    pub error: Option<u32>,
    /// An exception's vector.
    #[arg(long, value_name = "VECTOR")]
    pub exception: Option<u8>,
    /// The exception's error code.
    #[arg(long, value_name = "N", value_parser = parse_number_32, requires = "exception")]
    pub error_code: Option<u32>,
    /// A VMCS field (by name or encoding) or VMCB field with its value, bit by bit.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_field)]
    pub field: Option<(String, u64)>,
}

/// `undervisor report`.
#[derive(Debug, Args)]
pub struct ReportOptions {
    /// The trace, in JSON lines.
    #[arg(value_name = "TRACE.jsonl")]
    pub trace: PathBuf,
    /// The page to write.
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// Title of the page.
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
}

#[derive(Debug, Args)]
pub struct TestOptions {
    /// Test guests; with --config also names of its entries. None: every entry of the configuration.
    #[arg(value_name = "FILE|NAME", required_unless_present = "config")]
    pub files: Vec<String>,
    /// A unittests.cfg in the format of kvm-unit-tests: memory, processors, arguments of each test.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run only entries of these groups (comma-separated; with - in front: leave them out).
    #[arg(long, value_name = "GROUPS", allow_hyphen_values = true)]
    pub groups: Option<String>,
    /// Processor model for every test; default: max-intel, or max-amd where the entry asks for SVM.
    #[arg(long, value_name = "MODEL[,±FEATURE...]")]
    pub cpu: Option<String>,
    /// Memory of a test that does not say.
    #[arg(long, short, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub memory: u64,
    /// Processors of a test that does not say.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: usize,
    /// Arguments for FILEs that are not entries of the configuration.
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Instructions that a test may take; entries with a long timeout get more in proportion.
    #[arg(long, value_name = "N", default_value = "20G", value_parser = parse_count)]
    pub insn_limit: u64,
    /// Host seconds that a test may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    pub time_limit: f64,
    /// Tests at a time; default: one per core.
    #[arg(long, short, value_name = "N")]
    pub jobs: Option<usize>,
    /// Run the K-th of N equal parts, K from 1.
    #[arg(long, value_name = "K/N", value_parser = parse_shard)]
    pub shard: Option<(usize, usize)>,
    /// Write a JUnit report.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Keep each test's output as DIR/NAME.log.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
    /// Only list what would run.
    #[arg(long)]
    pub list: bool,
}

fn scaled(text: &str, units: &[(char, u64)], plain: u64) -> Result<u64, String> {
    let text = text.trim();
    let trimmed = text.strip_suffix(['B', 'b']).unwrap_or(text);
    let trimmed = trimmed.strip_suffix('i').unwrap_or(trimmed);
    let unit = trimmed.chars().last().map(|c| c.to_ascii_uppercase());
    let (digits, factor) = match unit.and_then(|c| units.iter().find(|u| u.0 == c)) {
        Some(&(_, factor)) => (&trimmed[..trimmed.len() - 1], factor),
        None => (trimmed, plain),
    };
    let number: u64 = digits
        .trim()
        .replace('_', "")
        .parse()
        .map_err(|_| format!("{text:?} is not a number with one of {}", units.iter().map(|u| u.0).collect::<String>()))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
}

/// Bytes; megabytes without a unit.
pub fn parse_size(text: &str) -> Result<u64, String> {
    scaled(text, &[('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)], 1 << 20)
}

/// A count; units are powers of ten.
pub fn parse_count(text: &str) -> Result<u64, String> {
    scaled(text, &[('K', 1_000), ('M', 1_000_000), ('G', 1_000_000_000), ('T', 1_000_000_000_000)], 1)
}

fn parse_address(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| format!("{text:?}: {e}"))
}

/// A number, hexadecimal with 0x; -1 is all ones.
fn parse_number(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text == "-1" {
        return Ok(u64::MAX);
    }
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(&hex.replace('_', ""), 16),
        None => text.parse(),
    }
    .map_err(|e| format!("{text:?}: {e}"))
}

fn parse_number_32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_number(text)?).map_err(|_| format!("{text}: more than 32 bits"))
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (first, last) = text.split_once('-').ok_or_else(|| format!("{text:?} is not FIRST-LAST"))?;
    let (first, last) = (parse_number(first)?, parse_number(last)?);
    if first <= last { Ok((first, last)) } else { Err(format!("{text}: the range is empty")) }
}

fn parse_field(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.trim().to_owned(), parse_number(value)?))
}

fn parse_shard(text: &str) -> Result<(usize, usize), String> {
    let error = || format!("{text:?} is not K/N with 1 <= K <= N");
    let (k, n) = text.split_once('/').ok_or_else(error)?;
    let (k, n) = (k.parse::<usize>().map_err(|_| error())?, n.parse::<usize>().map_err(|_| error())?);
    if k >= 1 && k <= n { Ok((k, n)) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("512"), Ok(512 << 20));
        assert_eq!(parse_size("4g"), Ok(4 << 30));
        assert_eq!(parse_size("16KiB"), Ok(16 << 10));
        assert_eq!(parse_size("0"), Ok(0));
        assert!(parse_size("lots").is_err());
        assert!(parse_size("99999999999T").is_err());
        assert_eq!(parse_count("20G"), Ok(20_000_000_000));
        assert_eq!(parse_count("1_000"), Ok(1000));
        assert!(parse_shard("0/2").is_err() && parse_shard("3/2").is_err());
        assert_eq!(parse_shard("2/2"), Ok((2, 2)));
    }
}
