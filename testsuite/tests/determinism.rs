//! A run depends on its inputs and nothing else: not on how often the caller looks, and not on how handlers follow each other.
//!
//! With a debug build these would take many minutes, so they are left out of it.
#![cfg(not(debug_assertions))]

use std::path::{Path, PathBuf};
use std::process::Command;

use undervisor_machine::{BufferBackend, Host, Image, Kernel, MachineConfig, StopReason};
use undervisor_testsuite::images;

/// A kernel's boot up to here has seen every mode, all its processors, and user space.
const INSTRUCTIONS: u64 = 1_000_000_000;
const CPUS: usize = 2;
const MEMORY: u64 = 512;
const COMMAND_LINE: &str = "console=ttyS0 panic=-1";

struct Alone;
impl Host for Alone {}

fn kernel() -> Option<PathBuf> {
    images::find("vmlinuz-cloud")
}

/// The digest of all guest state after that many instructions; `step`: the run is interrupted each time so many nanoseconds have passed.
fn digest(kernel: &Path, cpus: usize, step: Option<u64>) -> u64 {
    let config = MachineConfig::new()
        .memory(MEMORY << 20)
        .cpus(cpus)
        .serial(BufferBackend::new())
        .instruction_limit(INSTRUCTIONS)
        .kernel(Kernel { image: Image::read(kernel).unwrap(), command_line: COMMAND_LINE.into(), ..Kernel::default() });
    let mut machine = config.build().unwrap();
    let reason = match step {
        None => machine.run(&mut Alone),
        Some(step) => loop {
            let until = machine.progress().time + step;
            if let Some(reason) = machine.run_until(until, &mut Alone) {
                break reason;
            }
        },
    };
    assert_eq!(reason, StopReason::InstructionLimit(INSTRUCTIONS));
    machine.state_hash()
}

#[test]
fn two_runs_agree_at_a_billion_instructions() {
    let Some(kernel) = kernel() else { return };
    assert_eq!(digest(&kernel, CPUS, None), digest(&kernel, CPUS, None));
}

/// With one processor and with several, which take turns.
#[test]
fn an_interrupted_run_agrees() {
    let Some(kernel) = kernel() else { return };
    for cpus in [1, 2, 3] {
        assert_eq!(digest(&kernel, cpus, None), digest(&kernel, cpus, Some(1_234_567)), "{cpus}");
    }
}

/// The same run by a build whose handlers return to a loop instead of calling each other.
#[test]
fn both_dispatchers_agree_at_a_billion_instructions() {
    let Some(kernel) = kernel() else { return };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args([
            "run",
            "--quiet",
            "--release",
            "-p",
            "undervisor-machine",
            "--features",
            "undervisor-cpu/portable-dispatch",
            "--target-dir",
        ])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("portable"))
        .args(["--example", "boot", "--"])
        .args([kernel.as_os_str(), "".as_ref(), COMMAND_LINE.as_ref()])
        .env("LIMIT", INSTRUCTIONS.to_string())
        .env("CPUS", CPUS.to_string())
        .env("MEMORY", MEMORY.to_string())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let hash = said.lines().find_map(|l| l.strip_prefix("state hash ")).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(hash, format!("{:#x}", digest(&kernel, CPUS, None)));
}
