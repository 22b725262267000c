//! gdb itself, in batch mode, on the hypervisor of the demo and its guests. Without a gdb the tests say that they are skipped.
//!
//! What lies where in the demo: `frontend/src/demo/image.rs`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const HYPERVISOR: &str = "0x10000";
/// The long-mode guest of each vendor's demo.
const L2: [(&str, &str); 2] = [("intel", "0x19000"), ("amd", "0x19800")];
/// VMCS region or VMCB.
const REGION: u64 = 0x5_1000;

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(arguments: &[&str]) -> Server {
    let mut child = Command::new(env!("CARGO_BIN_EXE_undervisor"))
        .args(arguments)
        .args(["--gdb", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("gdb server at "))).unwrap().unwrap();
    // Keep reading, so that what else it says does not block it.
    std::thread::spawn(move || lines.for_each(drop));
    let address = line.split("gdb server at ").nth(1).unwrap();
    let address = address.split([';', ' ']).next().unwrap().to_owned();
    Server { child, address }
}

impl Server {
    /// Run gdb with `commands`; what it prints. `None`: there is no gdb.
    fn gdb(&self, commands: &[&str]) -> Option<String> {
        if Command::new("gdb").arg("--version").output().is_err() {
            let _ = writeln!(std::io::stderr(), "skipped: gdb is not installed");
            return None;
        }
        // What monitor commands print goes to the error stream: in order with the rest.
        let mut gdb = Command::new("sh");
        gdb.args(["-c", "exec gdb \"$@\" 2>&1", "gdb", "-q", "-nx", "-batch", "-ex", "set confirm off"]);
        gdb.args(["-ex", "set pagination off", "-ex", "set tcp auto-retry off"]);
        gdb.args(["-ex", &format!("target remote {}", self.address)]);
        commands.iter().for_each(|c| {
            gdb.args(["-ex", c]);
        });
        let out = gdb.stdin(Stdio::null()).output().unwrap();
        Some(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The machine's exit code and what its guest printed.
    fn end(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        let _ = self.child.stdout.take().unwrap().read_to_string(&mut text);
        (self.child.wait().unwrap().code(), text)
    }
}

#[track_caller]
fn in_order(text: &str, parts: &[&str]) {
    let mut at = 0;
    for part in parts {
        match text[at..].find(part) {
            Some(n) => at += n + part.len(),
            None => panic!("no {part:?} (in that order) in\n{text}"),
        }
    }
}

#[test]
fn breakpoints_and_registers_at_both_levels() {
    for (vendor, l2) in L2 {
        let server = serve(&["demo", "--vendor", vendor]);
        let commands = [
            "p/x $rip",
            "p $level",
            &format!("break *{HYPERVISOR}"),
            "continue",
            "p/x $cs_access",
            "p $cr0 & 0x80000001",
            "p/x $efer",
            "p $xmm0",
            "p $ymm0",
            "p/x $msr_pat",
            "set $r15 = 0x123456789abcdef0",
            "p/x $r15",
            "delete",
            &format!("hbreak *{l2}"),
            "continue",
            "p $level",
            "p/x $rip",
            "monitor level",
            &format!("monitor walk {l2}"),
            "monitor exits",
            "stepi",
            "stepi",
            "p $level",
            "info threads",
            "monitor nonsense",
            "delete",
            "continue",
        ];
        let Some(text) = server.gdb(&commands) else { return };
        let (tables, mode) = if vendor == "intel" { ("EPT PDE", "VMX non-root operation") } else { ("PML4E", "SVM guest") };
        in_order(
            &text,
            &[
                "$1 = 0x7c00",
                "$2 = 1",
                "Breakpoint 1, 0x0000000000010000",
                "= 0xa09b",
                "= 2147483649",
                "= 0x500",
                "v4_float",
                "v8_float",
                "= 0x7040600070406",
                "= 0x123456789abcdef0",
                "Breakpoint 2, ",
                "= 2",
                "level 2: ",
                mode,
                "guest-physical",
                tables,
                "physical",
                "CPUID",
                "I/O",
                "= 2",
                "cpu 0 L2 CPL 0 64-bit",
                "nonsense: unknown",
                "exited normally",
            ],
        );
        let (code, output) = server.end();
        assert_eq!(code, Some(0), "{vendor}: {output}");
        assert!(output.contains("L2 in long mode: hello"), "{output}");
    }
}

/// lldb speaks the same protocol, its own way.
#[test]
fn lldb_attaches_too() {
    if Command::new("lldb").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: lldb is not installed");
        return;
    }
    let server = serve(&["demo", "--vendor", "intel"]);
    let port = server.address.rsplit(':').next().unwrap();
    let commands = [
        &format!("gdb-remote {port}"),
        "register read rip cr0 msr_pat xmm0",
        "breakpoint set -H -a 0x19000",
        "continue",
        "register read level",
        "stepi",
        "memory read -c 4 0x19000",
        "process plugin packet monitor level",
        "breakpoint delete -f",
        "detach",
    ];
    let mut lldb = Command::new("sh");
    lldb.args(["-c", "exec lldb \"$@\" 2>&1", "lldb", "--no-lldbinit", "-b"]);
    commands.iter().for_each(|c| {
        lldb.args(["-o", c]);
    });
    let out = lldb.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let wanted = [
        "rip = 0x0000000000007c00",
        "cr0 = 0x0000000000000010",
        "msr_pat = 0x0007040600070406",
        "stop reason = breakpoint 1.1",
        "level = 0x00000002",
        "0x19005",
        "0x00019000: be",
        "level 2: VMX",
        "detached",
    ];
    in_order(&text, &wanted);
    assert_eq!(server.end().0, Some(0));
}

/// A breakpoint that is meant for one level stops at no other, whoever set it.
#[test]
fn breakpoints_by_level() {
    for (vendor, l2) in L2 {
        let server = serve(&["demo", "--vendor", vendor]);
        let commands = [
            &format!("monitor break {l2} level 1"),
            &format!("monitor break {HYPERVISOR} level 2"),
            "monitor breaks",
            &format!("monitor break {l2} level 2"),
            "continue",
            "monitor level",
            "monitor delete all",
            "monitor level 1",
            &format!("break *({l2}+5)"),
            "continue",
        ];
        let Some(text) = server.gdb(&commands) else { return };
        in_order(
            &text,
            &["level 1 only", "level 2 only", "breakpoint at", "SIGTRAP", "level 2: ", "at level 1 only", "exited normally"],
        );
        assert_eq!(server.end().0, Some(0));
    }
}

#[test]
fn stops_at_exits() {
    for (vendor, l2) in L2 {
        let server = serve(&["demo", "--vendor", vendor]);
        let field = if vendor == "intel" { "monitor vmcs EXIT_REASON" } else { "monitor vmcb EXITCODE" };
        let commands = [
            &format!("break *{l2}"),
            "continue",
            "monitor break exit cpuid",
            "continue",
            "p $level",
            field,
            "monitor delete all",
            "monitor break exit",
            "continue",
            "monitor delete 2",
            "delete",
            "continue",
        ];
        let Some(text) = server.gdb(&commands) else { return };
        let name = if vendor == "intel" { "EXIT_REASON" } else { "EXITCODE" };
        in_order(&text, &["VM exit: ", "(CPUID)", "SIGTRAP", "= 1", name, "CPUID", "VM exit: ", "none", "exited normally"]);
    }
}

/// The value is spoilt on its way into the VMCS or VMCB, and the entry that it breaks says which check it failed.
#[test]
fn writes_to_fields_and_entries_that_fail() {
    let server = serve(&["demo", "--vendor", "intel"]);
    let commands = [
        "monitor break vmcs guest-rflags",
        "continue",
        "monitor delete all",
        // Once more, with nothing in it: VMWRITE has three bytes.
        "set $rip = $rip - 3",
        "set $rax = 0",
        "stepi",
        "monitor vmcs GUEST_RFLAGS",
        "monitor break entry-failure",
        "continue",
        "p $level",
    ];
    let Some(text) = server.gdb(&commands) else { return };
    in_order(
        &text,
        &[
            "VMWRITE of 0x2 to GUEST_RFLAGS",
            "GUEST_RFLAGS",
            " 0x0",
            "VM entry failed: exit reason 0x80000021",
            "GUEST_RFLAGS",
            "= 1",
        ],
    );
    drop(server);

    let server = serve(&["demo", "--vendor", "amd"]);
    let commands = [
        &format!("monitor break vmcb guest-asid {REGION:#x}"),
        "monitor breaks",
        "continue",
        &format!("x/1wx {:#x}", REGION + 0x58),
        "monitor delete all",
        &format!("set {{int}}{:#x} = 0", REGION + 0x58),
        "monitor break entry-failure",
        "continue",
        "p $level",
    ];
    let text = server.gdb(&commands).unwrap();
    in_order(
        &text,
        &[
            "store to GUEST_ASID",
            "GUEST_ASID at physical 0x51058 was written",
            "0x51058:",
            "VM entry failed: VMEXIT_INVALID",
            "= 1",
        ],
    );
}

#[test]
fn watchpoints() {
    for (vendor, _) in L2 {
        let server = serve(&["demo", "--vendor", vendor]);
        // The demo's count of CPUID exits.
        let commands = [
            "watch *(int*)0x41150",
            "continue",
            "continue",
            "delete",
            "rwatch *(int*)0x41150",
            "continue",
            "delete",
            "continue",
        ];
        let Some(text) = server.gdb(&commands) else { return };
        in_order(&text, &["Old value = 0", "New value = 1", "Old value = 1", "New value = 2", "Value = ", "exited normally"]);
        assert_eq!(server.end().0, Some(0));
    }
}

/// What `demo` prints contains the ticks that L1 and L2 took: a debugger that came, stopped it and went has cost none.
#[test]
fn a_debugged_run_is_the_same_run() {
    for (vendor, l2) in L2 {
        let plain = Command::new(env!("CARGO_BIN_EXE_undervisor")).args(["demo", "--vendor", vendor]).output().unwrap();
        let server = serve(&["demo", "--vendor", vendor]);
        let commands = [
            &format!("break *{l2}"),
            "continue",
            "stepi 30",
            "monitor break exit",
            "continue",
            "continue",
            "stepi 10",
            "monitor delete all",
            "watch *(int*)0x41150",
            "continue",
            "detach",
        ];
        let Some(text) = server.gdb(&commands) else { return };
        in_order(&text, &["Breakpoint 1", "VM exit", "New value", "detached"]);
        let (code, output) = server.end();
        assert_eq!(code, Some(0));
        assert_eq!(output, String::from_utf8_lossy(&plain.stdout));
    }
}

struct Image(std::path::PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A flat binary: `inc eax; jmp` to it.
fn endless(name: &str) -> (Image, String) {
    let path = std::env::temp_dir().join(format!("undervisor-gdb-{}-{name}", std::process::id()));
    std::fs::write(&path, [0x66, 0x40, 0xeb, 0xfc]).unwrap();
    let text = path.display().to_string();
    (Image(path), text)
}

fn packet(stream: &mut TcpStream, body: &str) -> String {
    let sum = body.bytes().fold(0u8, |s, b| s.wrapping_add(b));
    stream.write_all(format!("${body}#{sum:02x}").as_bytes()).unwrap();
    reply(stream)
}

fn reply(stream: &mut TcpStream) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with('#') {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0] as char);
    }
    stream.read_exact(&mut [0; 2]).unwrap();
    let _ = stream.write_all(b"+");
    text.trim_start_matches(['+', '$']).trim_end_matches('#').to_owned()
}

/// A debugger comes to a running machine, interrupts it, goes, and another one comes. The bare protocol: no gdb is needed.
#[test]
fn a_live_machine_is_interrupted() {
    let (_image, path) = endless("live");
    let server = serve(&["run", "--kernel", &path, "--no-status", "--gdb-live", "--time-limit", "120"]);
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert!(packet(&mut stream, "?").starts_with(['S', 'T']));
        let rip = packet(&mut stream, "p10");
        assert!(rip.starts_with("007c") || rip.starts_with("027c"), "{rip}");
        let before = packet(&mut stream, "p0");
        stream.write_all(b"$c#63").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream.write_all(&[3]).unwrap();
        let stop = reply(&mut stream);
        assert!(stop.starts_with("T02"), "{stop}");
        assert_ne!(packet(&mut stream, "p0"), before);
        assert_eq!(packet(&mut stream, "D"), "OK");
    }
}

#[test]
fn processors_are_threads() {
    let (_image, path) = endless("threads");
    let server = serve(&["run", "--kernel", &path, "--no-status", "--cpus", "3", "--time-limit", "120"]);
    let commands = [
        "info threads",
        "thread 3",
        "p $level",
        "thread 1",
        "stepi",
        "stepi",
        "p $rax",
        "break *0x7c02",
        "continue",
        "continue",
        "p $rax",
        "kill",
    ];
    let Some(text) = server.gdb(&commands) else { return };
    in_order(&text, &["cpu 0 L1", "running", "cpu 1 L1", "waits for SIPI", "cpu 2 L1", "= 1", "= 1", "Breakpoint 1", "= 3"]);
}
