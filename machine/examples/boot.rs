//! Boot a kernel with COM1 on standard output:
//! `cargo run --release -p undervisor-machine --example boot -- KERNEL [INITRD] [COMMAND LINE]`
//!
//! Environment: `MODEL` (a processor model, as `--cpu` takes it), `MEMORY` (MiB, 512), `CPUS` (1), `LIMIT` (instructions), `INPUT` (a file fed to COM1).

use std::process::ExitCode;

use undervisor_machine::{CharBackend, Host, Image, Kernel, MachineConfig, Progress};

/// COM1: output to stdout, input from a file.
struct Console {
    input: std::vec::IntoIter<u8>,
}

impl CharBackend for Console {
    fn write(&mut self, byte: u8) {
        use std::io::Write;
        let _ = std::io::stdout().write_all(&[byte]);
    }
    fn read(&mut self) -> Option<u8> {
        self.input.next()
    }
    fn flush(&mut self) {
        use std::io::Write;
        let _ = std::io::stdout().flush();
    }
}

/// Says how it goes when the machine has stopped.
struct Watch(std::time::Instant);

impl Host for Watch {}

impl Watch {
    fn report(&self, p: &Progress) {
        let seconds = self.0.elapsed().as_secs_f64();
        eprintln!(
            "{} instructions in {seconds:.2} s ({:.0} MIPS), {} ms virtual, {} ms of it idle, {} device interrupts",
            p.instructions,
            p.instructions as f64 / seconds / 1e6,
            p.time / 1_000_000,
            p.idle / 1_000_000,
            p.device_interrupts
        );
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments.next().ok_or("usage: boot KERNEL [INITRD] [COMMAND LINE]")?;
    let initrd = arguments.next().filter(|f| !f.is_empty()).map(Image::read).transpose()?;
    let command_line = arguments.next().unwrap_or_else(|| "console=ttyS0".into());
    let input = match std::env::var("INPUT") {
        Ok(path) => std::fs::read(path)?,
        Err(_) => Vec::new(),
    };
    let mut config = MachineConfig::new()
        .memory(number("MEMORY", 512) << 20)
        .cpus(number("CPUS", 1) as usize)
        .serial(Console { input: input.into_iter() })
        .kernel(Kernel { image: Image::read(kernel)?, command_line, initrd, ..Kernel::default() });
    if let Ok(model) = std::env::var("MODEL") {
        config = config.model(undervisor_machine::Model::parse(&model)?);
    }
    let limit = number("LIMIT", 0);
    if limit > 0 {
        config = config.instruction_limit(limit);
    }
    let mut machine = config.build()?;
    let mut host = Watch(std::time::Instant::now());
    let reason = machine.run(&mut host);
    host.report(&machine.progress());
    for cpu in machine.cpus() {
        let s = &cpu.state;
        eprintln!(
            "cpu {}: rip {:#x} rsp {:#x} cr0 {:x} cr3 {:x} cr4 {:x} {:?}",
            cpu.id,
            s.rip(),
            s.gpr(4),
            s.cr0,
            s.cr3,
            s.cr4,
            s.activity
        );
    }
    eprintln!("state hash {:#x}", machine.state_hash());
    eprintln!("{reason}");
    Ok(ExitCode::from(reason.exit_status()))
}
