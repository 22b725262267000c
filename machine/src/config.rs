//! What a machine is made of.

use std::path::{Path, PathBuf};

use undervisor_core::Model;
use undervisor_devices::chardev::CharBackend;
use undervisor_devices::pci::PciDevice;

use crate::error::{LoadError, MachineError};
use crate::machine::Machine;

/// Most processors.
pub const MAX_CPUS: usize = 64;
/// Seconds since 1970 that the clock shows at power-on unless told otherwise: 2024-01-01 00:00:00 UTC.
pub const DEFAULT_EPOCH: u64 = 1_704_067_200;

/// A file's name and contents.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// For messages, and for guests that are told a file name.
    pub name: String,
    pub data: Vec<u8>,
}

impl Image {
    pub fn new(name: impl Into<String>, data: Vec<u8>) -> Image {
        Image { name: name.into(), data }
    }

    /// Read a file.
    pub fn read(path: impl AsRef<Path>) -> Result<Image, LoadError> {
        let path = path.as_ref();
        let data = std::fs::read(path).map_err(|source| LoadError::Read { path: PathBuf::from(path), source })?;
        Ok(Image { name: path.display().to_string(), data })
    }
}

/// A boot module with its arguments.
#[derive(Clone, Debug, Default)]
pub struct Module {
    pub image: Image,
    pub arguments: String,
}

/// A kernel and what is given to it.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    pub image: Image,
    pub command_line: String,
    /// Linux: the initramfs. Multiboot and PVH: one more module, before the others.
    pub initrd: Option<Image>,
    /// Multiboot and PVH only.
    pub modules: Vec<Module>,
    /// Load it as a flat binary at this address and start there in real mode, whatever it looks like.
    pub flat_at: Option<u32>,
}

/// What runs first.
#[derive(Clone, Debug, Default)]
pub enum Boot {
    /// Nothing is loaded; processors are in their reset state. The embedding program writes memory and registers itself.
    #[default]
    Nothing,
    Kernel(Kernel),
    /// A ROM that ends at 4 GiB; its last 128 KiB also stand below 1 MiB. Processors start at the reset vector.
    Firmware(Image),
}

/// Describes a machine; [`MachineConfig::build`] makes it.
///
/// ```
/// use undervisor_machine::{Image, MachineConfig, NoHost, StopReason};
///
/// // mov dx, 0xf4; mov al, 3; out dx, al
/// let code = vec![0xba, 0xf4, 0x00, 0xb0, 0x03, 0xee];
/// let mut machine = MachineConfig::new().memory(1 << 20).flat(Image::new("demo", code), 0x7c00).build()?;
/// assert_eq!(machine.run(&mut NoHost), StopReason::DebugExit(3));
/// # Ok::<(), undervisor_machine::MachineError>(())
/// ```
pub struct MachineConfig {
    pub(crate) memory: u64,
    pub(crate) cpus: usize,
    pub(crate) model: Model,
    pub(crate) boot: Boot,
    pub(crate) serial: Vec<Box<dyn CharBackend>>,
    pub(crate) debug_console: Option<Box<dyn CharBackend>>,
    pub(crate) pci: Vec<Box<dyn PciDevice>>,
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) epoch: u64,
    pub(crate) instruction_limit: Option<u64>,
    pub(crate) quantum: u64,
    pub(crate) reboot: bool,
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig::new()
    }
}

impl MachineConfig {
    /// 512 MiB, one processor of the default model, nothing to boot, no serial port.
    pub fn new() -> MachineConfig {
        MachineConfig {
            memory: 512 << 20,
            cpus: 1,
            model: Model::default(),
            boot: Boot::Nothing,
            serial: Vec::new(),
            debug_console: None,
            pci: Vec::new(),
            files: Vec::new(),
            epoch: DEFAULT_EPOCH,
            instruction_limit: None,
            quantum: 10_000,
            reboot: false,
        }
    }

    /// Bytes of RAM; a multiple of 4 KiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }
    /// Number of processors, 1 to 64.
    pub fn cpus(mut self, count: usize) -> Self {
        self.cpus = count;
        self
    }
    /// Processor model.
    pub fn model(mut self, model: Model) -> Self {
        self.model = model;
        self
    }
    /// What runs first.
    pub fn boot(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }
    /// Boot a kernel; its format is found by content.
    pub fn kernel(self, kernel: Kernel) -> Self {
        self.boot(Boot::Kernel(kernel))
    }
    /// Boot a flat binary at `address` in real mode (CS:IP = address below 64 KiB: 0:address; else address >> 4 : 0).
    pub fn flat(self, image: Image, address: u32) -> Self {
        self.kernel(Kernel { image, flat_at: Some(address), ..Kernel::default() })
    }
    /// Boot a firmware ROM.
    pub fn firmware(self, image: Image) -> Self {
        self.boot(Boot::Firmware(image))
    }
    /// Connect the next serial port (the first call: COM1), up to four.
    pub fn serial(mut self, backend: impl CharBackend + 'static) -> Self {
        self.serial.push(Box::new(backend));
        self
    }
    /// Where port 0xe9 prints.
    pub fn debug_console(mut self, backend: impl CharBackend + 'static) -> Self {
        self.debug_console = Some(Box::new(backend));
        self
    }
    /// Plug a PCI function into the next free slot of bus 0.
    pub fn pci_device(mut self, device: Box<dyn PciDevice>) -> Self {
        self.pci.push(device);
        self
    }
    /// A file that guests can read through fw_cfg.
    pub fn firmware_file(mut self, name: impl Into<String>, data: Vec<u8>) -> Self {
        self.files.push((name.into(), data));
        self
    }
    /// Seconds since 1970 that the real-time clock shows at power-on.
    pub fn epoch(mut self, seconds: u64) -> Self {
        self.epoch = seconds;
        self
    }
    /// Stop after this many instructions, all processors together.
    pub fn instruction_limit(mut self, limit: u64) -> Self {
        self.instruction_limit = Some(limit);
        self
    }
    /// Instructions that a processor runs before the next one has its turn, when there are several.
    pub fn quantum(mut self, instructions: u64) -> Self {
        self.quantum = instructions.max(1);
        self
    }
    /// Whether a reset starts over instead of ending the run.
    pub fn reboot(mut self, on: bool) -> Self {
        self.reboot = on;
        self
    }

    /// Make the machine and load what it boots.
    pub fn build(self) -> Result<Machine, MachineError> {
        Machine::new(self)
    }
}
