//! A stock kernel under KVM under a stock kernel: L1 loads its KVM module and runs the test suite's monitor, which boots the same
//! kernel as L2, on both vendors and with what KVM does when it does without parts of the hardware.
//!
//! With a debug build these would take many minutes, so they are left out of it.
#![cfg(all(not(debug_assertions), target_os = "linux", target_arch = "x86_64"))]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use undervisor_machine::{Image, Kernel, MachineConfig, StopReason};
use undervisor_testsuite::cpio::Archive;
use undervisor_testsuite::images;
use undervisor_testsuite::serial::Terminal;

const APPLETS: [&str; 11] = ["sh", "mount", "insmod", "dmesg", "grep", "nproc", "dd", "sha256sum", "poweroff", "reboot", "cat"];

/// SHA-256 of 4 MiB of zeros.
const ZEROS: &str = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8";

const L2_INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo \"L2: $(nproc) processors\"
dd if=/dev/zero bs=1M count=4 2>/dev/null | sha256sum
reboot -f
";

/// The monitor, linked statically, for it runs where no shared libraries are. Built once, whichever test comes first.
fn monitor() -> &'static [u8] {
    static MONITOR: OnceLock<Vec<u8>> = OnceLock::new();
    MONITOR.get_or_init(build_monitor)
}

fn build_monitor() -> Vec<u8> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vmm");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["rustc", "--quiet", "--release", "-p", "undervisor-vmm", "--target-dir"])
        .arg(&target)
        .args(["--", "-C", "target-feature=+crt-static"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(target.join("release/vmm")).unwrap()
}

struct Outcome {
    text: String,
    /// Virtual time until L1's init runs, and from the monitor's start to L2's.
    l1: u64,
    l2: u64,
}

/// Boot L2 with `vcpus` processors under `vendor`'s KVM with `parameters`.
fn nested(vendor: &str, model: &str, parameters: &str, vcpus: u32) -> Option<Outcome> {
    let (kernel, busybox) = (images::find("vmlinuz-cloud")?, images::find("busybox")?);
    let kvm = format!("kvm-{vendor}");
    let modules: Vec<(&str, PathBuf)> =
        ["irqbypass", "kvm", &kvm].into_iter().map(|m| Some((m, images::module("cloud", m)?))).collect::<Option<_>>()?;
    let busybox = std::fs::read(busybox).unwrap();
    let mut l2 = Archive::busybox(&busybox, &APPLETS);
    l2.entry("init", 0o100_755, L2_INIT.as_bytes(), (0, 0));
    let init = format!(
        "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo 'L1: ready'
insmod /irqbypass.ko && insmod /kvm.ko && insmod /{kvm}.ko {parameters} && echo 'L1: KVM loaded'
/vmm /vmlinuz /l2 'console=ttyS0 reboot=t panic=-1 quiet' 256 {vcpus}
echo 'L1: monitor done'
dmesg -r | grep '^<[0-4]>'
echo 'L1: log done'
poweroff -f
"
    );
    let mut l1 = Archive::busybox(&busybox, &APPLETS);
    l1.entry("init", 0o100_755, init.as_bytes(), (0, 0));
    l1.entry("vmm", 0o100_755, monitor(), (0, 0));
    l1.entry("vmlinuz", 0o100_644, &std::fs::read(&kernel).unwrap(), (0, 0));
    l1.entry("l2", 0o100_644, &l2.finish(), (0, 0));
    for (name, path) in modules {
        l1.entry(&format!("{name}.ko"), 0o100_644, &std::fs::read(path).unwrap(), (0, 0));
    }
    let config = MachineConfig::new().memory(1 << 30).model(undervisor_core::Model::parse(model).unwrap()).kernel(Kernel {
        image: Image::read(&kernel).unwrap(),
        command_line: "console=ttyS0 panic=-1 quiet".into(),
        initrd: Some(Image::new("initramfs", l1.finish())),
        ..Kernel::default()
    });
    let mut t = Terminal::new(config).unwrap();
    t.expect("L1: ready", 60);
    let l1 = t.machine.progress().time;
    t.expect("L1: KVM loaded", 20);
    let loaded = t.machine.progress().time;
    t.expect("L2: ", 60);
    let l2 = t.machine.progress().time - loaded;
    t.expect("L1: monitor done", 20);
    let log = t.expect("L1: log done", 10);
    assert!(!log.contains('<'), "warnings of L1's kernel: {log}");
    assert_eq!(t.finish(20), StopReason::PowerOff);
    Some(Outcome { text: t.text(), l1, l2 })
}

fn check(outcome: &Outcome, vcpus: u32) {
    assert!(outcome.text.contains(&format!("L2: {vcpus} processors")), "{}", outcome.text);
    assert!(outcome.text.contains(ZEROS), "{}", outcome.text);
}

#[test]
fn kvm_intel_boots_a_guest() {
    let Some(outcome) = nested("intel", "skylake-server", "", 1) else { return };
    check(&outcome, 1);
    // Instructions, exits included: the guest's boot costs at most half more than the host's own.
    println!("virtual time: L1 {} ns, L2 {} ns", outcome.l1, outcome.l2);
    assert!(2 * outcome.l2 < 3 * outcome.l1, "L1 {} ns, L2 {} ns of virtual time", outcome.l1, outcome.l2);
}

#[test]
fn kvm_amd_boots_a_guest() {
    let Some(outcome) = nested("amd", "epyc-milan", "", 1) else { return };
    check(&outcome, 1);
    println!("virtual time: L1 {} ns, L2 {} ns", outcome.l1, outcome.l2);
    assert!(2 * outcome.l2 < 3 * outcome.l1, "L1 {} ns, L2 {} ns of virtual time", outcome.l1, outcome.l2);
}

/// Every VMX feature there is.
#[test]
fn kvm_on_the_richest_model_boots_a_guest() {
    let Some(outcome) = nested("intel", "max-intel", "", 1) else { return };
    check(&outcome, 1);
}

/// Shadow paging: every page-table change and many faults of L2 exit.
#[test]
fn kvm_intel_without_ept_boots_two_processors() {
    let Some(outcome) = nested("intel", "skylake-server", "ept=0", 2) else { return };
    check(&outcome, 2);
}

#[test]
fn kvm_amd_without_nested_paging_boots_two_processors() {
    let Some(outcome) = nested("amd", "epyc-milan", "npt=0", 2) else { return };
    check(&outcome, 2);
}
