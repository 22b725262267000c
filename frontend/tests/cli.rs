//! The command as its users see it: exit codes, and one clear line for each thing that can be wrong.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("undervisor-cli-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn file(&self, name: &str, data: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, data).unwrap();
        path.display().to_string()
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn undervisor(args: &[&str]) -> Ran {
    with_input(args, b"")
}

fn with_input(args: &[&str], input: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_undervisor"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// It fails with `code` and one line that says each of `words`.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let ran = undervisor(args);
    assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.err);
    assert_eq!(ran.err.trim().lines().count(), 1, "{args:?}: {}", ran.err);
    for word in words {
        assert!(ran.err.contains(word), "{args:?}: no {word:?} in {}", ran.err);
    }
}

/// mov dx, 0xf4; mov al, 3; out dx, al
const EXIT_3: [u8; 6] = [0xba, 0xf4, 0x00, 0xb0, 0x03, 0xee];
/// jmp $
const SPIN: [u8; 2] = [0xeb, 0xfe];

#[test]
fn kernels_that_are_none() {
    let f = Folder::new("kernels");
    refused(&["run", "--kernel", &f.path("absent")], 14, &["absent", "cannot read"]);
    refused(&["run", "--kernel", &f.file("empty", b"")], 14, &["empty"]);
    refused(&["run", "--kernel", &f.file("a.png", b"\x89PNG\r\n\x1a\n0000000000000000")], 14, &["a.png", "not a kernel"]);
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    elf.resize(40, 0);
    refused(&["run", "--kernel", &f.file("cut.elf", &elf)], 14, &["cut.elf"]);
    let mut bzimage = vec![0; 0x260];
    bzimage[0x1f1] = 4;
    bzimage[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    refused(&["run", "--kernel", &f.file("cut.bz", &bzimage)], 14, &["cut.bz"]);
    refused(&["run", "--firmware", &f.file("rom", &[0; 1000])], 14, &["firmware", "64 KiB"]);
}

#[test]
fn machines_that_cannot_be() {
    let f = Folder::new("machines");
    let kernel = f.file("exit", &EXIT_3);
    refused(&["run", "--kernel", &kernel, "--memory", "0"], 14, &["memory of 0"]);
    refused(&["run", "--kernel", &kernel, "--cpus", "65"], 14, &["65", "1 to 64"]);
    refused(&["run", "--kernel", &kernel, "--cpu", "pentium"], 14, &["pentium", "skylake-server"]);
    refused(&["run", "--kernel", &kernel, "--cpu", "skylake-server,-nonsense"], 14, &["nonsense"]);
    if cfg!(target_os = "linux") {
        refused(&["run", "--kernel", &kernel, "--memory", "900T"], 14, &["more than this host has"]);
    }
}

#[test]
fn disks_and_files_that_fail() {
    let f = Folder::new("disks");
    let kernel = f.file("exit", &EXIT_3);
    let disk = |spec: &str, words: &[&str]| refused(&["run", "--kernel", &kernel, "--disk", spec], 14, words);
    disk(&f.path("absent.img"), &["absent.img"]);
    disk(&f.file("odd.img", &[0; 700]), &["odd.img", "512"]);
    disk(&f.file("cut.qcow2", b"QFI\xfb\0\0\0\x03"), &["cut.qcow2"]);
    disk(&format!("{},writable", f.path("x.img")), &["writable", "readonly"]);
    let unwritable = Path::new(&f.path("no")).join("such").join("folder").display().to_string();
    refused(&["run", "--kernel", &kernel, "--serial", &format!("file:{unwritable}")], 16, &["cannot write", "folder"]);
    refused(&["run", "--kernel", &kernel, "--serial", "tcp:1"], 14, &["tcp:1", "stdio"]);
}

#[test]
fn usage_is_code_2() {
    for args in [&["run"][..], &["run", "--kernel", "x", "--memory", "lots"], &["nonsense"], &["test", "--shard", "3/2", "x"]] {
        assert_eq!(undervisor(args).code, Some(2), "{args:?}");
    }
    let help = undervisor(&["--help"]);
    assert_eq!(help.code, Some(0));
    assert!(help.out.contains("triple fault") && help.out.contains("Ctrl-A X"));
}

#[test]
fn guests_end_with_their_codes() {
    let f = Folder::new("codes");
    let run = |name: &str, code: &[u8], more: &[&str]| {
        let kernel = f.file(name, code);
        let mut args = vec!["run", "--kernel", &kernel, "--memory", "2M"];
        args.extend(more);
        undervisor(&args)
    };
    assert_eq!(run("exit", &EXIT_3, &[]).code, Some(7));
    let ran = run("spin", &SPIN, &["--insn-limit", "1M"]);
    assert_eq!(ran.code, Some(6), "{}", ran.err);
    assert!(ran.err.contains("limit of 1000000 instructions"), "{}", ran.err);
    let ran = run("spin", &SPIN, &["--time-limit", "0.2"]);
    assert_eq!(ran.code, Some(8), "{}", ran.err);
    // An IDT limit of zero, then INT3: lidt [0x7c0a]; int3; the operand, six zero bytes.
    let ran = run("fault", &[0x0f, 0x01, 0x1e, 0x0a, 0x7c, 0xcc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(ran.code, Some(4), "{}", ran.err);
    assert!(ran.err.contains("triple fault"), "{}", ran.err);
    // cli; hlt
    assert_eq!(run("halt", &[0xfa, 0xf4], &[]).code, Some(10));
    let ran = run("exit", &EXIT_3, &["--stats"]);
    assert!(ran.err.contains("instructions") && ran.err.contains("MIPS"), "{}", ran.err);
}

#[test]
fn input_reaches_the_guest_and_its_end_does_not_end_it() {
    let f = Folder::new("input");
    // Read COM1 until there is a byte, add one, print it, exit through 0xf4.
    // mov dx,0x3fd; in al,dx; test al,1; jz -5; mov dx,0x3f8; in al,dx; inc al; out dx,al; mov dx,0xf4; out dx,al
    let code =
        [0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0xba, 0xf8, 0x03, 0xec, 0xfe, 0xc0, 0xee, 0xba, 0xf4, 0x00, 0xee];
    let ran = with_input(&["run", "--kernel", &f.file("echo", &code), "--memory", "2M", "--time-limit", "60"], b"A");
    assert_eq!((ran.code, ran.out.as_str()), (Some((b'B' as i32) << 1 & 0xff | 1), "B"), "{}", ran.err);
    let log = f.path("serial.log");
    let ran = undervisor(&[
        "run",
        "--kernel",
        &f.file("print", &[0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xba, 0xf4, 0x00, 0xb0, 0, 0xee]),
        "--memory",
        "2M",
        "--serial",
        &format!("file:{log}"),
    ]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert_eq!(std::fs::read(&log).unwrap(), b"x");
}

#[test]
fn processor_models_are_shown() {
    let list = undervisor(&["cpu", "list"]);
    assert!(list.out.contains("skylake-server") && list.out.contains("epyc-milan"));
    let show = undervisor(&["cpu", "show", "skylake-server"]);
    assert_eq!(show.code, Some(0));
    for word in ["IA32_VMX_BASIC", "ept", "80000008", "avx2"] {
        assert!(show.out.to_lowercase().contains(&word.to_lowercase()), "no {word} in {}", show.out);
    }
    assert!(!undervisor(&["cpu", "show", "skylake-server,-ept"]).out.contains(" ept "));
    refused(&["cpu", "show", "z80"], 14, &["z80"]);
}

#[test]
fn the_demo_runs_without_files() {
    let ran = undervisor(&[]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("long mode"));
}

#[test]
fn a_suite_is_summarised() {
    let f = Folder::new("suite");
    f.file("good.flat", &[0xba, 0xf4, 0x00, 0xb0, 0, 0xee]);
    f.file("bad.flat", &[0xba, 0xf4, 0x00, 0xb0, 1, 0xee]);
    let config =
        f.file("unittests.cfg", b"[good]\nfile = good.flat\n[bad]\nfile = bad.flat\n[other]\nfile = good.flat\narch = i386\n");
    let junit = f.path("report.xml");
    let ran = undervisor(&["test", "--config", &config, "--junit", &junit, "--memory", "2M"]);
    assert_eq!(ran.code, Some(18), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("2 tests: 1 passed, 0 skipped, 1 failed"), "{}", ran.out);
    let report = std::fs::read_to_string(&junit).unwrap();
    assert!(report.contains("tests=\"2\" failures=\"1\""), "{report}");
    let ran = undervisor(&["test", "--config", &config, "good", "--memory", "2M"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    let ran = undervisor(&["test", "--config", &config, "--shard", "2/2", "--list"]);
    assert!(ran.out.contains("bad") && !ran.out.contains("good"), "{}", ran.out);
}

/// On a terminal (of `script`, which comes with every Linux): raw mode, our keys and the guest's, and the last line.
#[test]
#[cfg(target_os = "linux")]
fn a_terminal() {
    use iced_x86::code_asm::*;
    use std::io::Read;
    // Print "?", and then what comes in, plus 40H.
    let mut a = CodeAssembler::new(16).unwrap();
    let mut again = a.create_label();
    a.mov(dx, 0x3f8).unwrap();
    a.mov(al, 0x3f).unwrap();
    a.out(dx, al).unwrap();
    a.set_label(&mut again).unwrap();
    a.mov(dx, 0x3fd).unwrap();
    a.in_(al, dx).unwrap();
    a.test(al, 1).unwrap();
    a.jz(again).unwrap();
    a.mov(dx, 0x3f8).unwrap();
    a.in_(al, dx).unwrap();
    a.add(al, 0x40).unwrap();
    a.out(dx, al).unwrap();
    a.jmp(again).unwrap();
    let folder = Folder::new("terminal");
    let kernel = folder.file("echo.bin", &a.assemble(0x7c00).unwrap());
    let command = format!("{} run --no-status --kernel {kernel} --flat 0x7c00", env!("CARGO_BIN_EXE_undervisor"));
    let child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: no `script` here");
        return;
    };
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    let mut until = |word: &str| {
        let mut byte = [0];
        while !seen.ends_with(word.as_bytes()) {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "{word}: {}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
    };
    until("?");
    // Ctrl-C and Ctrl-Z are the guest's, and so is Ctrl-A twice.
    input.write_all(b"\x03\x1a\x01\x01").unwrap();
    until("CZA");
    input.write_all(b"\x01h").unwrap();
    until("Ctrl-A H       this list\r\n");
    input.write_all(b"!").unwrap();
    until("a");
    input.write_all(b"\x01x").unwrap();
    // The next prompt does not stand behind what the guest said.
    until("\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
