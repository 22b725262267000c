//! The emulators that are compared.

use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use undervisor_machine::{CharBackend, Host, Image, Kernel, MachineConfig};

use undervisor_core::{Model, Vendor};

use super::{Guest, Marks, Processor};

const COMMAND_LINE: &str = "console=ttyS0 quiet nokaslr pti=off mitigations=off panic=-1";

/// Something that runs guests.
pub trait Emulator {
    fn name(&self) -> &'static str;
    /// Why it cannot run here, if it cannot.
    fn missing(&self) -> Option<String>;
    /// Whether it has such a processor.
    fn has(&self, _: Processor) -> bool {
        true
    }
    /// Boot `guest` until it says it is done; at most `limit`.
    fn run(&self, guest: &Guest, limit: Duration) -> Result<Marks, String>;
}

/// Every emulator, ours first.
pub fn all() -> Vec<Box<dyn Emulator>> {
    vec![Box::new(Undervisor), Box::new(Bochs), Box::new(Qemu)]
}

struct Undervisor;

/// COM1 into the marks.
struct Serial(Rc<RefCell<Marks>>);

impl CharBackend for Serial {
    fn write(&mut self, byte: u8) {
        self.0.borrow_mut().feed(byte);
    }
}

struct NoInput;
impl Host for NoInput {}

impl Emulator for Undervisor {
    fn name(&self) -> &'static str {
        "undervisor"
    }
    fn missing(&self) -> Option<String> {
        None
    }
    fn run(&self, guest: &Guest, limit: Duration) -> Result<Marks, String> {
        let marks = Rc::new(RefCell::new(Marks::new()));
        let config = MachineConfig::new().memory(512 << 20).serial(Serial(marks.clone()));
        let config = match guest {
            Guest::Bare(bare) => {
                let model = if bare.processor == Processor::Svm { Model::epyc_milan() } else { Model::default() };
                config.model(model).flat(Image::new(&bare.name, bare.image.clone()), 0x7c00)
            }
            Guest::Disk { image, model, .. } => {
                let kernel = Kernel { image: Image::new("image", image.clone()), ..Kernel::default() };
                config.model((**model).clone()).kernel(kernel)
            }
            Guest::Linux(files) => config.kernel(Kernel {
                image: Image::read(&files.kernel).map_err(|e| e.to_string())?,
                command_line: COMMAND_LINE.into(),
                initrd: Some(Image::new("initramfs", files.initrd.clone())),
                ..Kernel::default()
            }),
        };
        let mut machine = config.build().map_err(|e| e.to_string())?;
        let start = Instant::now();
        let mut until = 0;
        while !marks.borrow().done() {
            if start.elapsed() > limit {
                return Err(format!("not done after {limit:?}"));
            }
            // Steps of virtual time, so that the end is noticed soon.
            until += 20_000_000;
            if let Some(stop) = machine.run_until(until, &mut NoInput)
                && !marks.borrow().done()
            {
                return Err(format!("stopped early: {stop}"));
            }
        }
        drop(machine);
        Rc::try_unwrap(marks).map(RefCell::into_inner).map_err(|_| "the serial port is still held".into())
    }
}

/// Whether a program is on PATH.
fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join(program)).find(|p| p.is_file())
}

/// A directory for one run, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Scratch, String> {
        let path = std::env::temp_dir().join(format!("undervisor-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Scratch(path))
    }
    fn file(&self, name: &str, data: &[u8]) -> Result<PathBuf, String> {
        let path = self.0.join(name);
        fs::write(&path, data).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How long a guest of cases may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Follow the serial log of a child until the guest is done, then end the child. What a guest of cases has said counts even if it did
/// not come to its end.
fn follow(mut child: Child, serial: &Path, limit: Duration, guest: &Guest) -> Result<Marks, String> {
    let cases = matches!(guest, Guest::Disk { .. });
    let start = Instant::now();
    let mut marks = Marks::new();
    let mut file: Option<fs::File> = None;
    let mut buffer = [0; 4096];
    let mut ended = None;
    let why = loop {
        if file.is_none() {
            file = fs::File::open(serial).ok();
        }
        if let Some(f) = &mut file {
            while let Ok(n @ 1..) = f.read(&mut buffer) {
                buffer[..n].iter().for_each(|&b| marks.feed(b));
            }
        }
        if marks.complete() {
            break None;
        }
        if marks.again() {
            break Some("reset the machine".into());
        }
        if start.elapsed() > limit {
            break Some(format!("not done after {limit:?}"));
        }
        if cases && marks.marks.last().map_or(start, |m| m.at).elapsed() > PATIENCE {
            break Some(format!("nothing for {PATIENCE:?}"));
        }
        // What it wrote last is read once it has ended.
        if let Some(status) = ended {
            break Some(format!("ended early: {status}"));
        }
        ended = child.try_wait().ok().flatten();
        std::thread::sleep(Duration::from_millis(1));
    };
    let _ = child.kill();
    let _ = child.wait();
    match why {
        Some(why) if !cases && !marks.again() => Err(why),
        why => {
            marks.ended = why;
            Ok(marks)
        }
    }
}

struct Qemu;

impl Emulator for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }
    fn missing(&self) -> Option<String> {
        find("qemu-system-x86_64").is_none().then(|| "qemu-system-x86_64 is not installed (Debian: qemu-system-x86)".into())
    }
    fn has(&self, processor: Processor) -> bool {
        processor != Processor::Vmx
    }
    fn run(&self, guest: &Guest, limit: Duration) -> Result<Marks, String> {
        let scratch = Scratch::new("qemu")?;
        let serial = scratch.0.join("serial");
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "512",
            "-display",
            "none",
            "-no-reboot",
            "-monitor",
            "none",
            "-serial",
        ]);
        command.arg(format!("file:{}", serial.display()));
        match guest {
            Guest::Bare(bare) => {
                let disk = scratch.file("disk", &padded(&bare.image))?;
                command.arg("-drive").arg(format!("file={},format=raw,if=floppy", disk.display()));
            }
            Guest::Disk { disk, .. } => {
                let disk = scratch.file("disk", disk)?;
                command.arg("-drive").arg(format!("file={},format=raw,if=ide", disk.display()));
            }
            Guest::Linux(files) => {
                let initrd = scratch.file("initrd", &files.initrd)?;
                command.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(initrd).args(["-append", COMMAND_LINE]);
            }
        }
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?;
        follow(child, &serial, limit, guest)
    }
}

/// A 1.44 MB floppy.
fn padded(image: &[u8]) -> Vec<u8> {
    let mut disk = image.to_vec();
    disk.resize(1_474_560, 0);
    disk
}

struct Bochs;

impl Bochs {
    const BIOS: &'static str = "/usr/share/bochs/BIOS-bochs-latest";
    const VGA_BIOS: &'static str = "/usr/share/bochs/VGABIOS-lgpl-latest";
    const ISOLINUX: &'static str = "/usr/lib/ISOLINUX/isolinux.bin";
    const LDLINUX: &'static str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

    /// A bootable CD with the kernel and initramfs.
    fn cd(scratch: &Scratch, files: &super::linux::Files) -> Result<PathBuf, String> {
        if find("genisoimage").is_none() || !Path::new(Self::ISOLINUX).exists() {
            return Err("Linux under Bochs needs genisoimage and isolinux".into());
        }
        let root = scratch.0.join("cd");
        fs::create_dir_all(&root).map_err(|e| e.to_string())?;
        let copy = |from: &Path, to: &str| fs::copy(from, root.join(to)).map_err(|e| format!("{}: {e}", from.display()));
        copy(Path::new(Self::ISOLINUX), "isolinux.bin")?;
        copy(Path::new(Self::LDLINUX), "ldlinux.c32")?;
        copy(&files.kernel, "linux")?;
        fs::write(root.join("initrd"), &files.initrd).map_err(|e| e.to_string())?;
        let menu = format!("default l\nprompt 0\nlabel l\nkernel linux\ninitrd initrd\nappend {COMMAND_LINE}\n");
        fs::write(root.join("isolinux.cfg"), menu).map_err(|e| e.to_string())?;
        let iso = scratch.0.join("cd.iso");
        let status = Command::new("genisoimage")
            .args([
                "-quiet",
                "-b",
                "isolinux.bin",
                "-c",
                "boot.cat",
                "-no-emul-boot",
                "-boot-load-size",
                "4",
                "-boot-info-table",
                "-o",
            ])
            .arg(&iso)
            .arg(&root)
            .status()
            .map_err(|e| e.to_string())?;
        if status.success() { Ok(iso) } else { Err(format!("genisoimage: {status}")) }
    }
}

impl Emulator for Bochs {
    fn name(&self) -> &'static str {
        "bochs"
    }
    fn missing(&self) -> Option<String> {
        if find("bochs").is_none() || !Path::new(Self::BIOS).exists() {
            return Some("bochs is not installed (Debian: bochs, bochs-term)".into());
        }
        find("script").is_none().then(|| "bochs needs a terminal: util-linux's script is not installed".into())
    }
    fn run(&self, guest: &Guest, limit: Duration) -> Result<Marks, String> {
        let scratch = Scratch::new("bochs")?;
        let serial = scratch.0.join("serial");
        let boot = match guest {
            Guest::Bare(bare) => {
                let disk = scratch.file("disk", &padded(&bare.image))?;
                format!("floppya: 1_44={}, status=inserted\nboot: floppy\n", disk.display())
            }
            Guest::Disk { disk, .. } => {
                let disk = scratch.file("disk", disk)?;
                format!(
                    "ata0-master: type=disk, mode=flat, path={}, cylinders={}, heads=16, spt=63\nboot: disk\n",
                    disk.display(),
                    crate::virtualization::image::DISK_CYLINDERS
                )
            }
            Guest::Linux(files) => {
                let iso = Self::cd(&scratch, files)?;
                format!("ata0-master: type=cdrom, path={}, status=inserted\nboot: cdrom\n", iso.display())
            }
        };
        let model = match guest {
            Guest::Bare(bare) if bare.processor == Processor::Svm => "ryzen",
            // Where virtualization is the point, the richest of the vendor's.
            Guest::Disk { model, .. } if model.vendor == Vendor::Amd => "ryzen",
            Guest::Disk { .. } => "corei7_icelake_u",
            _ => "corei7_skylake_x",
        };
        let config = format!(
            "config_interface: textconfig\ndisplay_library: term\nmegs: 512\nromimage: file={}\nvgaromimage: file={}\n\
             plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, iodebug=0\n\
             cpu: model={model}, ips=100000000\nclock: sync=none\ncom1: enabled=1, mode=file, dev={}\nlog: {}\n{boot}",
            Self::BIOS,
            Self::VGA_BIOS,
            serial.display(),
            scratch.0.join("log").display()
        );
        let rc = scratch.file("bochsrc", config.as_bytes())?;
        // Debian's Bochs has its debugger built in, and waits for a command.
        let commands = scratch.file("commands", b"c\n")?;
        // Bochs draws on a terminal: give it one.
        let child = Command::new("script")
            .args(["-qfec"])
            .arg(format!("exec bochs -q -f {} -rc {}", rc.display(), commands.display()))
            .arg("/dev/null")
            .env("TERM", "vt100")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        follow(child, &serial, limit, guest)
    }
}
