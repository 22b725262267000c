//! Seeing inside, as users do: explanations, traces, the report.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use serde_json::Value;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("undervisor-observe-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Standard output and error of a run that must end with `code`.
fn undervisor(args: &[&str], code: i32) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_undervisor")).args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    (out, err)
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
}

const BASE: u32 = 0x7c00;

/// From real mode to 32-bit protected mode with flat segments, then `code`; EBX is zero.
fn protected(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    const GDT: u32 = BASE + 0xe0;
    const NEXT: u32 = BASE + 0x100;
    // LGDT [GDT - 8]; MOV EAX, CR0; OR EAX, 1; MOV CR0, EAX; JMP 8:NEXT
    let mut image = vec![0x0f, 0x01, 0x16];
    image.extend((GDT as u16 - 8).to_le_bytes());
    image.extend([0x0f, 0x20, 0xc0, 0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea]);
    image.extend(NEXT.to_le_bytes());
    image.extend([8, 0]);
    image.resize(0xd8, 0);
    image.extend([23, 0]);
    image.extend(GDT.to_le_bytes());
    image.resize(0xe0, 0);
    for entry in [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
        image.extend(entry.to_le_bytes());
    }
    image.resize(0x100, 0);
    let build = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(32)?;
        a.mov(eax, 16)?;
        for segment in [ds, es, ss] {
            a.mov(segment, eax)?;
        }
        a.mov(esp, 0x7000)?;
        a.xor(ebx, ebx)?;
        code(&mut a)?;
        a.assemble(NEXT as u64)
    };
    image.extend(build().unwrap());
    image
}

fn wrmsr(a: &mut CodeAssembler, msr: u32, set: u32) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.rdmsr()?;
    a.or(eax, set as i32)?;
    a.wrmsr()
}

fn run(folder: &Folder, image: &[u8], cpu: &str, more: &[&str]) -> String {
    let kernel = folder.path("guest.bin");
    std::fs::write(&kernel, image).unwrap();
    let mut args = vec!["run", "--kernel", &kernel, "--flat", "0x7c00", "--cpu", cpu, "--memory", "16M", "--no-status"];
    args.extend(more);
    undervisor(&args, 10).1
}

#[test]
fn a_failed_vm_entry_is_explained() {
    let folder = Folder::new("entry");
    let image = protected(|a| {
        // One 4 MiB page, VMX.
        a.mov(dword_ptr(ebx + 0x10000), 0x83)?;
        a.mov(eax, 0x10000)?;
        a.mov(cr3, eax)?;
        a.mov(eax, 0x2010)?;
        a.mov(cr4, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0020u32 as i32)?;
        a.mov(cr0, eax)?;
        a.mov(ecx, 0x480)?;
        a.rdmsr()?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(dword_ptr(ebx + 0x11000), eax)?;
        a.mov(dword_ptr(ebx + 0x12000), eax)?;
        a.mov(dword_ptr(ebx + 0x500), 0x11000)?;
        a.mov(dword_ptr(ebx + 0x504), 0)?;
        a.mov(dword_ptr(ebx + 0x508), 0x12000)?;
        a.mov(dword_ptr(ebx + 0x50c), 0)?;
        a.vmxon(qword_ptr(ebx + 0x500))?;
        a.vmclear(qword_ptr(ebx + 0x508))?;
        a.vmptrld(qword_ptr(ebx + 0x508))?;
        // Pin-based controls: virtual NMIs without NMI exiting.
        a.mov(edx, 0x4000)?;
        a.mov(eax, 0x36)?;
        a.vmwrite(edx, eax)?;
        a.mov(edx, 0x4002)?;
        a.mov(eax, 0x0401_e172)?;
        a.vmwrite(edx, eax)?;
        a.vmlaunch()?;
        // Once more, from the same place: that is the same cause.
        a.vmlaunch()?;
        a.cli()?;
        a.hlt()
    });
    let err = run(&folder, &image, "max-intel", &[]);
    has(
        &err,
        &[
            "VM entry failed at",
            "VM-instruction error 7",
            "virtual-nmis-need-nmi-exiting",
            "PIN_BASED_CONTROLS = 0x36",
            "virtual NMIs (5)",
            "VMWRITE of 0x36 at",
            "bit 3 (NMI exiting) set, or bit 5 (virtual NMIs) clear",
            "=> 0x",
            "vmlaunch",
            "RSP",
        ],
    );
    assert_eq!(run(&folder, &image, "max-intel", &["--explain", "off"]).matches("VM entry").count(), 0);
}

/// A VMCB with ASID 0.
fn vmrun_without_asid() -> Vec<u8> {
    protected(|a| {
        wrmsr(a, 0xc000_0080, 0x1000)?;
        a.mov(ecx, 0xc001_0117u32)?;
        a.mov(eax, 0x20000)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ebx, 0x10000)?;
        a.mov(dword_ptr(ebx + 0x10), 1)?;
        a.mov(dword_ptr(ebx + 0x4d0), 0x1000)?;
        a.mov(dword_ptr(ebx + 0x58), 0)?;
        a.mov(eax, ebx)?;
        a.vmrun()?;
        a.cli()?;
        a.hlt()
    })
}

#[test]
fn a_replay_names_the_writer_of_a_vmcb() {
    let folder = Folder::new("replay");
    let err = run(&folder, &vmrun_without_asid(), "max-amd", &[]);
    has(&err, &["VMRUN refused its VMCB", "check \"ASID\"", "GUEST_ASID = 0x0", "--explain replay"]);
    let err = run(&folder, &vmrun_without_asid(), "max-amd", &["--explain", "replay"]);
    has(&err, &["the same failure in the replay", "last written by level 1, a store of 0x0 at"]);
}

#[test]
fn a_triple_fault_is_explained() {
    let folder = Folder::new("triple");
    let image = protected(|a| {
        a.mov(dword_ptr(ebx + 0x600), 0)?;
        a.lidt(ptr(ebx + 0x600))?;
        a.ud2()
    });
    let kernel = folder.path("guest.bin");
    std::fs::write(&kernel, image).unwrap();
    let (_, err) = undervisor(&["run", "--kernel", &kernel, "--flat", "0x7c00", "--no-status"], 4);
    has(
        &err,
        &["triple fault: the processor shuts down", "1. #UD at", "beyond the IDT's limit", "raised #GP", "3. #DF", "ud2"],
    );
}

#[test]
fn numbers_are_explained_without_a_machine() {
    let (out, _) = undervisor(&["explain", "--reason", "0x80000021"], 0);
    has(&out, &["VM entry failed", "guest state", "33"]);
    let (out, _) = undervisor(&["explain", "--reason", "-1"], 0);
    has(&out, &["invalid guest state", "Consistency"]);
    let (out, _) = undervisor(&["explain", "--error", "8", "--exception", "13", "--error-code", "0x1b"], 0);
    has(&out, &["host-state", "#GP", "index", "EXT"]);
    let (out, _) = undervisor(&["explain", "--field", "pin_based_controls=0x36"], 0);
    has(&out, &["virtual NMIs (5)"]);
    undervisor(&["explain"], 14);
}

/// Traces of the demo: (kind, level) of each line of JSON.
fn demo(folder: &Folder, vendor: &str) -> Vec<Value> {
    let (lines, chrome) = (folder.path("run.jsonl"), folder.path("run.json"));
    let args =
        ["demo", "--vendor", vendor, "--trace", "exits,entries,msr", "--trace-file", &lines, "--trace-out", &chrome, "--stats"];
    let (_, err) = undervisor(&args, 0);
    has(&err, &["hottest exits by guest RIP", "hottest handlers", "under a second level", "I/O"]);
    folder.read("run.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn traces_of_both_vendors() {
    let folder = Folder::new("trace");
    for (vendor, reasons) in [("intel", ["EPT violation", "preemption timer"]), ("amd", ["nested page fault", "VMMCALL"])] {
        let lines = demo(&folder, vendor);
        let exits: Vec<_> = lines.iter().filter(|l| l["kind"] == "exit").collect();
        assert!(reasons.iter().all(|r| exits.iter().any(|e| e["name"] == *r)), "{vendor}");
        assert_eq!(exits.len(), lines.iter().filter(|l| l["kind"] == "entry").count());
        assert!(lines.iter().any(|l| l["kind"] == "wrmsr" && l["level"] == 1));
        let events: Vec<Value> = serde_json::from_str(&folder.read("run.json")).unwrap();
        for level in [1, 2] {
            assert!(events.iter().any(|e| e["ph"] == "X" && e["tid"] == level), "{vendor}: no slices of L{level}");
        }
        assert!(events.iter().any(|e| e["args"]["name"] == "L0 undervisor"));
    }
}

#[test]
fn filters_narrow_the_trace() {
    let (_, err) = undervisor(&["demo", "--trace", "exits", "--trace-reason", "0xa", "--trace-first", "3"], 0);
    let lines: Vec<_> = err.lines().filter(|l| l.contains(" exit ")).collect();
    assert_eq!(lines.len(), 3, "{err}");
    assert!(lines.iter().all(|l| l.contains("exit CPUID")), "{err}");
    // The loop that the preemption timer interrupts; at which of its two instructions is a matter of time.
    let (_, err) = undervisor(&["demo", "--trace", "exits", "--trace-rip", "0x4b-0x4d", "--trace-first", "2"], 0);
    let within = |l: &&str| l.contains("rip=0x4b ") || l.contains("rip=0x4d ");
    assert_eq!(err.lines().filter(within).count(), 2, "{err}");
    undervisor(&["demo", "--trace", "nonsense"], 14);
}

fn chromium() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    })
}

#[test]
fn the_report_works_in_a_browser() {
    let folder = Folder::new("report");
    let records = demo(&folder, "intel").iter().filter(|l| l["kind"] != "code").count();
    let (lines, page) = (folder.path("run.jsonl"), folder.path("report.html"));
    undervisor(&["report", &lines, "-o", &page, "--title", "the demo"], 0);
    let html = folder.read("report.html");
    assert!(!html.contains("http://") && !html.contains("https://"), "the page must not need a network");
    let Some(browser) = chromium() else {
        eprintln!("skipped: no chromium in PATH, the report is not looked at in a browser");
        return;
    };
    let shot = folder.path("report.png");
    let profile = format!("--user-data-dir={}", folder.path("profile"));
    let common = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,2400", &profile];
    let url = format!("file://{page}");
    let look =
        |more: &str| Command::new(browser).args(common).args([more, &url]).stderr(Stdio::null()).output().unwrap().stdout;
    let dom = String::from_utf8_lossy(&look("--dump-dom")).into_owned();
    assert!(dom.contains(&format!("data-ready=\"{records}\"")), "the script did not run to its end");
    for (id, word) in
        [("histogram", "preemption timer"), ("heat", "cpuid"), ("records", "VMLAUNCH"), ("tiles", "places that exit")]
    {
        let part = dom.split(&format!("id=\"{id}\"")).nth(1).unwrap_or_default();
        assert!(part.contains(word), "{id} has no {word}");
    }
    look(&format!("--screenshot={shot}"));
    let png = std::fs::read(&shot).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 40_000, "{} bytes of screenshot", png.len());
}

/// The walk through docs/debugging.md, if there is a compiler for it.
#[test]
fn the_example_of_the_documentation() {
    let folder = Folder::new("example");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/hypervisor.c");
    let elf = folder.path("hypervisor.elf");
    let flags = "-m32 -g -O1 -ffreestanding -fno-pic -fno-stack-protector -mgeneral-regs-only -nostdlib -static \
                 -Wl,-Ttext=0x100000 -Wl,--build-id=none";
    let built =
        Command::new("gcc").args(flags.split_whitespace()).arg(&source).args(["-o", &elf]).stderr(Stdio::null()).status();
    if !built.is_ok_and(|s| s.success()) {
        eprintln!("skipped: no gcc that can build for 32-bit x86");
        return;
    }
    let (out, err) = undervisor(&["run", "--kernel", &elf, "--symbols", &elf, "--no-status"], 10);
    has(&out, &["starting the guest"]);
    has(&err, &["0x80000021", "check tr-type", "GUEST_TR_ACCESS = 0x89", "inlined in hypervisor.c:", "bit 1 (type) set"]);
    let fixed = std::fs::read_to_string(&source).unwrap().replace("0x89, (u32)tss", "0x8b, (u32)tss");
    let path = folder.path("fixed.c");
    std::fs::write(&path, fixed).unwrap();
    let built = Command::new("gcc").args(flags.split_whitespace()).args([&path, "-o", &elf]).stderr(Stdio::null()).status();
    assert!(built.is_ok_and(|s| s.success()));
    let (out, _) = undervisor(&["run", "--kernel", &elf, "--no-status"], 1);
    has(&out, &["exit: CPUID", "all is well"]);
}
