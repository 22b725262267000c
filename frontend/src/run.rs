//! `undervisor run`.

use std::time::Duration;

use undervisor_machine::{Boot, Image, Kernel, Machine, MachineConfig, NullBackend};

use crate::console::Console;
use crate::error::Failure;
use crate::gdb::Server;
use crate::observe::{Replay, Watch};
use crate::options::RunOptions;
use crate::session::Session;
use crate::wiring::{self, Boxed, Where};

/// Build the machine that the options describe, run it, and give the exit code.
pub fn run(options: &RunOptions) -> Result<u8, Failure> {
    let mut console = None;
    let (code, replay) = first(options, &mut console)?;
    if let (Some(replay), Some(console)) = (replay, console) {
        let mut machine = again(options)?;
        replay.run(&mut machine, &console);
    }
    Ok(code)
}

/// A machine like that of the run, with nothing attached to the outside.
fn again(options: &RunOptions) -> Result<Machine, Failure> {
    let mut config = MachineConfig::new()
        .memory(options.machine.memory)
        .cpus(options.machine.cpus)
        .model(wiring::cpu(&options.machine.cpu)?)
        .boot(boot(options)?)
        .reboot(options.limits.reboot);
    for _ in 0..options.serial.len().max(1) {
        config = config.serial(NullBackend);
    }
    for spec in &options.fw_cfg {
        if let Some((name, path)) = spec.split_once('=') {
            config = config.firmware_file(name, Image::read(path)?.data);
        }
    }
    for spec in &options.disk {
        config = config.pci_device(crate::disks::open(&format!("{spec},snapshot"))?);
    }
    if options.console.is_some() {
        config = config.pci_device(crate::disks::console(Box::new(NullBackend)));
    }
    config = config.pci_device(crate::disks::entropy(options.machine.seed));
    Ok(config.build()?)
}

fn first(options: &RunOptions, shown: &mut Option<Console>) -> Result<(u8, Option<Replay>), Failure> {
    let mut serial: Vec<Where> = options.serial.iter().map(|s| Where::parse("serial", s)).collect::<Result<_, _>>()?;
    let virtio_console = options.console.as_deref().map(|c| Where::parse("console", c)).transpose()?;
    let debugcon = Where::parse("debugcon", &options.debugcon)?;
    if serial.len() > 4 {
        return Err(Failure::Option { option: "serial", value: options.serial[4].clone(), why: "there are four ports".into() });
    }
    if serial.is_empty() {
        serial.push(if virtio_console == Some(Where::Stdio) { Where::Null } else { Where::Stdio });
    }
    let seconds = options.limits.time_limit;
    let time_limit = seconds
        .map(|s| {
            Duration::try_from_secs_f64(s).map_err(|e| Failure::Option {
                option: "time-limit",
                value: s.to_string(),
                why: e.to_string(),
            })
        })
        .transpose()?;
    let model = wiring::cpu(&options.machine.cpu)?;
    let boot = boot(options)?;
    let disks = options.disk.iter().map(|d| crate::disks::open(d)).collect::<Result<Vec<_>, _>>()?;

    let reads = serial.iter().chain(&virtio_console).any(|w| *w == Where::Stdio);
    let server = Server::open(&options.gdb)?;
    let (console, terminal) = Console::open(reads, !options.limits.no_status).map_err(Failure::Terminal)?;
    let mut config = MachineConfig::new()
        .memory(options.machine.memory)
        .cpus(options.machine.cpus)
        .model(model)
        .boot(boot)
        .reboot(options.limits.reboot);
    for place in &serial {
        config = config.serial(Boxed(place.open(&console)?));
    }
    if debugcon != Where::Null {
        config = config.debug_console(Boxed(debugcon.open(&console)?));
    }
    for spec in &options.fw_cfg {
        let (name, path) = spec.split_once('=').ok_or_else(|| Failure::Option {
            option: "fw-cfg",
            value: spec.clone(),
            why: "give NAME=FILE".into(),
        })?;
        config = config.firmware_file(name, Image::read(path)?.data);
    }
    for device in disks {
        config = config.pci_device(device);
    }
    if let Some(place) = &virtio_console {
        config = config.pci_device(crate::disks::console(place.open(&console)?));
    }
    config = config.pci_device(crate::disks::entropy(options.machine.seed));
    if let Some(limit) = options.limits.insn_limit {
        config = config.instruction_limit(limit);
    }
    let mut machine = config.build()?;
    let mut session = Session::new(console.clone(), time_limit, options.limits.idle);
    let watch = Watch::new(&options.observe, options.limits.stats, &console)?;
    session.watch(watch, &mut machine);
    let outcome = session.run_with(server, &mut machine);
    drop(terminal);
    if outcome.code != 0 && outcome.code & 1 == 0 {
        console.message(&format!("undervisor: {}", outcome.message));
    }
    if options.limits.stats {
        console.message(&session.statistics(&machine));
    }
    let replay = session.finish(&mut machine)?;
    *shown = Some(console);
    Ok((outcome.code, replay))
}

fn boot(options: &RunOptions) -> Result<Boot, Failure> {
    if let Some(path) = &options.firmware {
        return Ok(Boot::Firmware(Image::read(path)?));
    }
    let Some(path) = &options.kernel else {
        return Ok(Boot::Nothing);
    };
    Ok(Boot::Kernel(Kernel {
        image: Image::read(path)?,
        command_line: options.append.clone(),
        initrd: options.initrd.as_ref().map(Image::read).transpose()?,
        modules: options.module.iter().map(|m| wiring::module(m)).collect::<Result<_, _>>()?,
        flat_at: options.flat,
    }))
}
