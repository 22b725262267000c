//! Real kernels, from their first instruction to power-off. Images come from `.ci/fetch-images`; a test whose image is missing says
//! that it is skipped (or fails, with `UNDERVISOR_REQUIRE_IMAGES`).
//!
//! With a debug build these would take many minutes, so they are left out of it.
#![cfg(not(debug_assertions))]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use undervisor_devices::disk::{self, Overlay};
use undervisor_devices::virtio::{Block, Rng, VirtioPci};
use undervisor_machine::{Image, Kernel, MachineConfig, StopReason};
use undervisor_testsuite::cpio::Archive;
use undervisor_testsuite::images;
use undervisor_testsuite::serial::Terminal;

/// Where ash waits for a command. Not how it is written in the script, so that no echo looks like it.
const PROMPT: &str = "ready> ";

/// First program of the initramfs: mount what programs need, then a shell on the serial port.
const INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
export PS1='ready'\\>' '
# Long command lines are not wrapped.
stty -F /dev/ttyS0 cols 500
exec setsid cttyhack sh
";

/// `numbers.c`, compiled for the host's own kind of processor, and what it prints there. `None`, with a word about it, where that cannot be.
/// Compiled once, whichever test comes first.
fn numbers() -> Option<&'static (Vec<u8>, String)> {
    static NUMBERS: OnceLock<Option<(Vec<u8>, String)>> = OnceLock::new();
    NUMBERS.get_or_init(compile_numbers).as_ref()
}

fn compile_numbers() -> Option<(Vec<u8>, String)> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("numbers");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/numbers.c");
    let compiled = cfg!(all(target_os = "linux", target_arch = "x86_64"))
        && Command::new("cc")
            .args(["-O2", "-static", "-o"])
            .arg(&program)
            .args([source, "-lm"])
            .status()
            .is_ok_and(|s| s.success());
    if !compiled {
        eprintln!("skipped: numbers.c, for want of a C compiler with static libraries on x86-64 Linux");
        return None;
    }
    let out = Command::new(&program).output().unwrap();
    Some((std::fs::read(&program).unwrap(), String::from_utf8(out.stdout).unwrap()))
}

/// The files in `extra`, by name, lie in `/`, executable.
fn initramfs(busybox: &Path, extra: &[(String, Vec<u8>)]) -> Image {
    let applets = [
        "sh",
        "mount",
        "setsid",
        "cttyhack",
        "dd",
        "sha256sum",
        "gzip",
        "gunzip",
        "awk",
        "cat",
        "grep",
        "dmesg",
        "nproc",
        "wc",
        "seq",
        "sort",
        "poweroff",
        "uname",
        "ls",
        "cmp",
        "taskset",
        "sleep",
        "date",
        "insmod",
    ];
    let mut archive = Archive::busybox(&std::fs::read(busybox).unwrap(), &applets);
    archive.entry("init", 0o100_755, INIT.as_bytes(), (0, 0));
    for (name, bytes) in extra {
        archive.entry(name, 0o100_755, bytes, (0, 0));
    }
    Image::new("initramfs", archive.finish())
}

/// Boot the kernel of `flavour`, with `parameters`, with `cpus` processors to a shell, with these modules of its own at hand, and
/// `/numbers` where there is one.
fn shell(flavour: &str, parameters: &str, cpus: usize, modules: &[&str]) -> Option<Terminal> {
    let (kernel, busybox) = (images::find(&format!("vmlinuz-{flavour}"))?, images::find("busybox")?);
    let mut extra = Vec::new();
    for module in modules {
        extra.push((format!("{module}.ko"), std::fs::read(images::module(flavour, module)?).unwrap()));
    }
    extra.extend(numbers().map(|(bytes, _)| ("numbers".into(), bytes.clone())));
    let config = MachineConfig::new()
        .memory(512 << 20)
        .cpus(cpus)
        .kernel(Kernel {
            image: Image::read(&kernel).unwrap(),
            command_line: format!("console=ttyS0 panic=-1 {parameters}"),
            initrd: Some(initramfs(&busybox, &extra)),
            ..Kernel::default()
        })
        .pci_device(Box::new(VirtioPci::new(Rng::new(1))));
    let mut terminal = Terminal::new(config).unwrap();
    terminal.expect(PROMPT, 60);
    Some(terminal)
}

/// Programs whose output is known, each run at the shell.
fn check_programs(t: &mut Terminal) {
    let mut run = |line: &str| t.command(line, PROMPT, 60).trim().to_string();
    // Published digests: FIPS 180-4's "abc", and a million of the letter a.
    assert_eq!(run("printf abc | sha256sum"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -");
    assert_eq!(
        run("awk 'BEGIN{for(i=0;i<100000;i++)printf \"aaaaaaaaaa\"}' | sha256sum"),
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0  -"
    );
    assert_eq!(run("seq 20000 >/tmp/n; gzip -c /tmp/n | gunzip | cmp - /tmp/n && echo same"), "same");
    // 1² + … + 1000², and a quotient with all its digits: integers and floats.
    assert_eq!(
        run("awk 'BEGIN{for(i=1;i<=1000;i++)s+=i*i; printf \"%d %.15f\", s, 22/7}'; echo"),
        "333833500 3.142857142857143"
    );
    assert_eq!(run("seq 3000 | sort -rn | awk 'NR==1||NR==3000' | cat"), "3000\n1");
}

/// No kernel message at level "warning" or worse, and no trace of trouble at any level.
fn check_log(t: &mut Terminal) {
    let log = t.command("dmesg -r", PROMPT, 60);
    assert!(log.contains("Linux version"), "{log}");
    let bad: Vec<&str> = log
        .lines()
        .filter(|line| {
            // `<facility * 8 + level>`; level 4 is "warning".
            let level = line.strip_prefix('<').and_then(|l| l.split_once('>')).and_then(|(n, _)| n.parse::<u32>().ok());
            let trouble =
                ["WARNING:", "BUG:", "Call Trace", "soft lockup", "rcu_sched", "unstable", "irq: nobody cared", "Oops"];
            level.is_some_and(|l| l & 7 <= 4) || trouble.iter().any(|word| line.contains(word))
        })
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

fn power_off(mut t: Terminal) {
    t.send("poweroff -f\n");
    let stop = t.finish(30);
    assert_eq!(stop, StopReason::PowerOff);
    assert_eq!(stop.exit_status(), 0);
}

#[test]
fn cloud_kernel() {
    let Some(mut t) = shell("cloud", "", 1, &[]) else { return };
    assert_eq!(t.command("nproc", PROMPT, 10).trim(), "1");
    assert!(t.command("uname -r", PROMPT, 10).contains("cloud-amd64"));
    check_programs(&mut t);
    if let Some((_, expected)) = numbers() {
        let said = t.command("/numbers", PROMPT, 60);
        let lines = |text: &str| text.lines().map(|l| l.trim_end().to_owned()).filter(|l| !l.is_empty()).collect::<Vec<_>>();
        assert_eq!(lines(&said), lines(expected));
    }
    // The counters are taken for what they are, and one keeps watch.
    assert!(t.command("dmesg", PROMPT, 60).contains("full-width counters, Intel PMU driver"));
    assert_eq!(t.command("cat /proc/sys/kernel/nmi_watchdog", PROMPT, 10).trim(), "1");
    // Virtual time passes as the guest's clock says: a sleep takes what it should.
    let before = t.machine.progress().time;
    t.command("sleep 3", PROMPT, 10);
    let slept = t.machine.progress().time - before;
    assert!((3_000_000_000..3_300_000_000).contains(&slept), "{slept}");
    check_log(&mut t);
    power_off(t);
}

#[test]
fn generic_kernel_with_four_processors() {
    // What a distribution loads by the processor's model.
    let drivers = ["intel-uncore", "intel-uncore-frequency-common", "intel-uncore-frequency"];
    let Some(mut t) = shell("amd64", "", 4, &drivers) else { return };
    assert_eq!(t.command("nproc", PROMPT, 10).trim(), "4");
    assert_eq!(t.command("grep -c ^processor /proc/cpuinfo", PROMPT, 10).trim(), "4");
    // A program on each processor, at the same time, and each has an answer.
    let line = "for c in 0 1 2 3; do taskset -c $c awk \"BEGIN{for(i=0;i<50000;i++)s+=i; print $c, s}\" >/tmp/$c & done; wait; cat /tmp/0 \
                /tmp/1 /tmp/2 /tmp/3 | grep 1249975000 | wc -l";
    assert!(t.command(line, PROMPT, 60).lines().any(|l| l.trim() == "4"));
    // Each processor has had timer interrupts of its own.
    let timers = t.command("grep LOC: /proc/interrupts", PROMPT, 10);
    let counts: Vec<u64> = timers.split_whitespace().skip(1).take(4).filter_map(|n| n.parse().ok()).collect();
    assert!(counts.len() == 4 && counts.iter().all(|&n| n > 0), "{timers}");
    for driver in drivers {
        let said = t.command(&format!("insmod /{driver}.ko && echo loaded"), PROMPT, 20);
        assert!(said.contains("loaded"), "{driver}: {said}");
    }
    check_programs(&mut t);
    check_log(&mut t);
    power_off(t);
}

/// Without I/O APIC and messages, and without local APIC: timers and PCI devices interrupt through the 8259s, to which the ISA
/// bridge routes what the ACPI tables' interrupt links say. Without messages: through the I/O APIC. Else by MSI-X.
#[test]
fn interrupts_by_every_way() {
    let drivers = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio-rng"];
    let ways = [("noapic pci=nomsi", "XT-PIC"), ("nolapic pci=nomsi", "XT-PIC"), ("pci=nomsi", "IO-APIC"), ("", "PCI-MSI")];
    for (parameters, controller) in ways {
        let Some(mut t) = shell("cloud", parameters, 1, &drivers) else { return };
        for driver in drivers {
            let said = t.command(&format!("insmod /{driver}.ko && echo loaded"), PROMPT, 20);
            assert!(said.contains("loaded"), "{driver}: {said}");
        }
        assert_eq!(t.command("dd if=/dev/hwrng bs=16 count=4 iflag=fullblock 2>/dev/null | wc -c", PROMPT, 20).trim(), "64");
        let counts = t.command("grep virtio /proc/interrupts", PROMPT, 10);
        // With MSI-X the first vector is for changes of configuration.
        let number = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
        let count: u64 = counts.lines().filter_map(number).sum();
        assert!(counts.contains(controller) && count > 0, "{counts}");
        t.command("sleep 1", PROMPT, 10);
        power_off(t);
    }
}

/// A distribution's own user space on a qcow2 disk: its initramfs finds the disk, its init comes up, and someone logs in.
#[test]
fn alpine_to_a_login() {
    let (Some(kernel), Some(initrd), Some(disk)) =
        (images::find("alpine.kernel"), images::find("alpine.initrd"), images::find("alpine.qcow2"))
    else {
        return;
    };
    // Written to memory only.
    let backing = Overlay::new(disk::open(&disk, true).unwrap());
    let config = MachineConfig::new()
        .memory(512 << 20)
        .kernel(Kernel {
            image: Image::read(&kernel).unwrap(),
            // The image starts no login on the serial port by itself: a shell adds one, then becomes init.
            command_line: "console=ttyS0 quiet root=/dev/vda rw rootfstype=ext4 modules=virtio_blk,ext4 init=/bin/sh".into(),
            initrd: Some(Image::read(&initrd).unwrap()),
            ..Kernel::default()
        })
        .pci_device(Box::new(VirtioPci::new(Block::new(Box::new(backing), "alpine"))))
        .pci_device(Box::new(VirtioPci::new(Rng::new(1))));
    let mut t = Terminal::new(config).unwrap();
    t.expect("# ", 120);
    t.command("mount -o remount,rw /", "# ", 20);
    t.command("passwd -d root; echo 'ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100' >>/etc/inittab", "# ", 20);
    t.send("exec /sbin/init\n");
    t.expect("login: ", 120);
    t.send("root\n");
    t.expect("# ", 60);
    assert!(t.command("cat /etc/os-release", "# ", 20).contains("Alpine Linux"));
    assert!(t.command("mount", "# ", 20).contains("/dev/vda on / type ext4 (rw"));
    // What is written comes back after the caches have been dropped.
    t.command("dd if=/dev/urandom of=/root/x bs=64k count=16 2>/dev/null; sha256sum /root/x >/root/sum; sync", "# ", 60);
    assert!(t.command("echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /root/sum", "# ", 60).contains("/root/x: OK"));
    t.send("poweroff\n");
    assert_eq!(t.finish(120), StopReason::PowerOff);
}
