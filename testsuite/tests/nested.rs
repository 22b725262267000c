//! A stock kernel under KVM under a stock kernel: L1 loads its KVM module and runs the test suite's monitor, which boots the same
//! kernel as L2, on both vendors and with what KVM does when it does without parts of the hardware.
//!
//! With a debug build these would take many minutes, so they are left out of it.
#![cfg(all(not(debug_assertions), target_os = "linux", target_arch = "x86_64"))]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use undervisor_machine::{Image, Kernel, MachineConfig, StopReason};
use undervisor_testsuite::cpio::Archive;
use undervisor_testsuite::serial::Terminal;
use undervisor_testsuite::{images, programs};

const APPLETS: [&str; 11] = ["sh", "mount", "insmod", "dmesg", "grep", "nproc", "dd", "sha256sum", "poweroff", "reboot", "cat"];

/// SHA-256 of 4 MiB of zeros.
const ZEROS: &str = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8";

/// What the innermost guest does.
const GUEST_INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo \"guest: $(nproc) processors\"
dd if=/dev/zero bs=1M count=4 2>/dev/null | sha256sum
reboot -f
";

/// The monitor. Built once, whichever test comes first.
fn monitor() -> &'static [u8] {
    static MONITOR: OnceLock<Vec<u8>> = OnceLock::new();
    MONITOR.get_or_init(|| programs::build("undervisor-vmm", "vmm", Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap())
}

/// What a run boots: `vendor`'s KVM with `parameters` on `model`, `vcpus` processors for the innermost guest.
struct Setup {
    vendor: &'static str,
    model: &'static str,
    parameters: &'static str,
    vcpus: u32,
    /// The level of the innermost guest: 2 is a guest, 3 a guest's guest.
    depth: u32,
}

struct Outcome {
    text: String,
    /// Virtual time until L1's init runs, and from the start of L1's monitor to the innermost guest's init.
    l1: u64,
    guest: u64,
    /// The host's time for the same.
    host: [Duration; 2],
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |a: f64, b: f64| a / b;
        let [l1, guest] = self.host.map(|t| t.as_secs_f64());
        write!(
            f,
            "boots to init: {} ns and {} ns of virtual time ({:.2}), ",
            self.l1,
            self.guest,
            ratio(self.guest as f64, self.l1 as f64)
        )?;
        write!(f, "{l1:.2} s and {guest:.2} s of the host's ({:.2})", ratio(guest, l1))
    }
}

/// The initramfs of the hypervisor at `level`, whose guest gets the initramfs `guest` and `mib` MiB.
fn hypervisor(
    setup: &Setup,
    level: u32,
    kernel: &[u8],
    busybox: &[u8],
    modules: &[(&str, PathBuf)],
    guest: &[u8],
    mib: u32,
) -> Vec<u8> {
    let Setup { vendor, parameters, vcpus, depth, .. } = setup;
    let vcpus = if level + 1 == *depth { *vcpus } else { 1 };
    let end = if level == 1 { "poweroff -f" } else { "reboot -f" };
    let init = format!(
        "#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo 'L{level}: ready'
insmod /irqbypass.ko && insmod /kvm.ko && insmod /kvm-{vendor}.ko {parameters} && echo 'L{level}: KVM loaded'
/vmm /vmlinuz /guest 'console=ttyS0 reboot=t panic=-1 quiet' {mib} {vcpus}
echo 'L{level}: monitor done'
dmesg -r | grep '^<[0-4]>'
echo 'L{level}: log done'
{end}
"
    );
    let mut archive = Archive::busybox(busybox, &APPLETS);
    archive.entry("init", 0o100_755, init.as_bytes(), (0, 0));
    archive.entry("vmm", 0o100_755, monitor(), (0, 0));
    archive.entry("vmlinuz", 0o100_644, kernel, (0, 0));
    archive.entry("guest", 0o100_644, guest, (0, 0));
    for (name, path) in modules {
        archive.entry(&format!("{name}.ko"), 0o100_644, &std::fs::read(path).unwrap(), (0, 0));
    }
    archive.finish()
}

fn boot(setup: &Setup) -> Option<Outcome> {
    let (kernel, busybox) = (images::find("vmlinuz-cloud")?, images::find("busybox")?);
    let kvm = format!("kvm-{}", setup.vendor);
    let modules: Vec<(&str, PathBuf)> =
        ["irqbypass", "kvm", &kvm].into_iter().map(|m| Some((m, images::module("cloud", m)?))).collect::<Option<_>>()?;
    let busybox = std::fs::read(busybox).unwrap();
    let mut innermost = Archive::busybox(&busybox, &APPLETS);
    innermost.entry("init", 0o100_755, GUEST_INIT.as_bytes(), (0, 0));
    let bytes = std::fs::read(&kernel).unwrap();
    let (mut initramfs, mut mib) = (innermost.finish(), 256);
    for level in (1..setup.depth).rev() {
        initramfs = hypervisor(setup, level, &bytes, &busybox, &modules, &initramfs, mib);
        mib *= 2;
    }
    let config = MachineConfig::new()
        .memory(u64::from(mib.max(1024)) << 20)
        .model(undervisor_core::Model::parse(setup.model).unwrap())
        .kernel(Kernel {
            image: Image::read(&kernel).unwrap(),
            command_line: "console=ttyS0 panic=-1 quiet".into(),
            initrd: Some(Image::new("initramfs", initramfs)),
            ..Kernel::default()
        });
    let mut t = Terminal::new(config).unwrap();
    let started = Instant::now();
    t.expect("L1: ready", 60);
    let (l1, l1_host) = (t.machine.progress().time, started.elapsed());
    t.expect("L1: KVM loaded", 20);
    let (loaded, started) = (t.machine.progress().time, Instant::now());
    for level in 2..setup.depth {
        t.expect(&format!("L{level}: KVM loaded"), 60);
    }
    t.expect("guest: ", 60);
    let (guest, host) = (t.machine.progress().time - loaded, [l1_host, started.elapsed()]);
    t.expect("L1: monitor done", 60);
    let log = t.expect("L1: log done", 10);
    assert!(!log.contains('<'), "warnings of L1's kernel: {log}");
    assert_eq!(t.finish(20), StopReason::PowerOff);
    Some(Outcome { text: t.text(), l1, guest, host })
}

/// Boot L2 with `vcpus` processors under `vendor`'s KVM with `parameters`.
fn nested(vendor: &'static str, model: &'static str, parameters: &'static str, vcpus: u32) -> Option<Outcome> {
    boot(&Setup { vendor, model, parameters, vcpus, depth: 2 })
}

fn check(outcome: &Outcome, vcpus: u32) {
    assert!(outcome.text.contains(&format!("guest: {vcpus} processors")), "{}", outcome.text);
    assert!(outcome.text.contains(ZEROS), "{}", outcome.text);
}

#[test]
fn kvm_intel_boots_a_guest() {
    let Some(outcome) = nested("intel", "skylake-server", "", 1) else { return };
    check(&outcome, 1);
    // Instructions, exits included: the guest's boot costs at most half more than the host's own.
    println!("{outcome}");
    assert!(2 * outcome.guest < 3 * outcome.l1, "{outcome}");
}

#[test]
fn kvm_amd_boots_a_guest() {
    let Some(outcome) = nested("amd", "epyc-milan", "", 1) else { return };
    check(&outcome, 1);
    println!("{outcome}");
    assert!(2 * outcome.guest < 3 * outcome.l1, "{outcome}");
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

/// A guest's guest's guest: KVM runs what it offers its own guests.
#[test]
fn kvm_intel_boots_a_guest_of_its_guest() {
    let Some(outcome) = boot(&Setup { vendor: "intel", model: "skylake-server", parameters: "nested=1", vcpus: 1, depth: 3 })
    else {
        return;
    };
    check(&outcome, 1);
}

#[test]
fn kvm_amd_boots_a_guest_of_its_guest() {
    let Some(outcome) = boot(&Setup { vendor: "amd", model: "epyc-milan", parameters: "nested=1", vcpus: 1, depth: 3 }) else {
        return;
    };
    check(&outcome, 1);
}
