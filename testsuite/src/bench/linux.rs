//! Linux workloads: an initramfs made here from a static busybox, with a script that marks what it does.

use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::programs;

/// Names as the markers carry them. `boot` ends at the start of the script.
pub const WORKLOADS: [&str; 10] =
    ["boot", "sha256", "gzip", "awk", "dd", "syscalls", "page-faults", "fork-exec", "strings", "matmul"];

/// A kernel and an initramfs.
pub struct Files {
    pub kernel: PathBuf,
    pub initrd: Vec<u8>,
}

/// Commands of each workload (busybox ash).
fn script(name: &str) -> &'static str {
    match name {
        "sha256" => "dd if=/dev/zero bs=1M count=64 2>/dev/null | sha256sum >/dev/null",
        "gzip" => "gzip -c /text >/dev/null",
        "awk" => "awk 'BEGIN{for(i=0;i<1000000;i++)s+=i*i%7; print s}' >/dev/null",
        "dd" => "dd if=/dev/zero of=/dev/null bs=64k count=4096 2>/dev/null",
        // One read and one write of a byte a block.
        "syscalls" => "dd if=/dev/zero of=/dev/null bs=1 count=250000 2>/dev/null",
        // tmpfs pages are touched for the first time.
        "page-faults" => "dd if=/dev/zero of=/big bs=1M count=128 2>/dev/null; rm /big",
        "fork-exec" => "i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done",
        // Compiled programs: memcpy and strlen; five products of two 200 by 200 matrices of doubles.
        "strings" => "/workloads strings >/dev/null",
        "matmul" => "/workloads matmul >/dev/null",
        _ => "",
    }
}

/// Make the initramfs for the workloads that `wanted` names.
pub fn files(kernel: &Path, busybox: &Path, wanted: impl Fn(&str) -> bool) -> Result<Files, Box<dyn std::error::Error>> {
    let read = |p: &Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
    read(kernel)?;
    let busybox = read(busybox)?;
    let mut init = String::from("#!/bin/sh\necho '@E boot'\n");
    for name in WORKLOADS.iter().filter(|n| **n != "boot" && wanted(n)) {
        init += &format!("echo '@S {name}'\n{}\necho '@E {name}'\n", script(name));
    }
    init += "echo '@DONE'\npoweroff -f\n";
    let applets = ["sh", "dd", "sha256sum", "gzip", "awk", "rm", "true", "poweroff", "echo"];
    let mut archive = Archive::busybox(&busybox, &applets);
    archive.entry("text", 0o100_644, &text(16 << 20), (0, 0));
    if wanted("strings") || wanted("matmul") {
        let program = programs::build("undervisor-workloads", "workloads", &std::env::temp_dir().join("undervisor-programs"))?;
        archive.entry("workloads", 0o100_755, &program, (0, 0));
    }
    archive.entry("init", 0o100_755, init.as_bytes(), (0, 0));
    Ok(Files { kernel: kernel.to_path_buf(), initrd: archive.finish() })
}

/// Text-like bytes: words drawn from a small vocabulary by a fixed generator.
pub fn text(bytes: usize) -> Vec<u8> {
    let words = [
        "processor",
        "guest",
        "the",
        "of",
        "a",
        "interrupt",
        "page",
        "table",
        "entry",
        "is",
        "in",
        "host",
        "memory",
        "exit",
        "to",
    ];
    let mut state = 0x2545_f491u32;
    let mut out = Vec::with_capacity(bytes + 16);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        out.extend_from_slice(words[state as usize % words.len()].as_bytes());
        out.push(if state & 0xf00 == 0 { b'\n' } else { b' ' });
    }
    out.truncate(bytes);
    out
}
