//! The guest that is part of the program. It is assembled here at run time, starts in real mode as a boot sector would, climbs to
//! long mode, takes exceptions and interrupts, and then is a hypervisor itself: it runs a guest in real mode and one in long
//! mode, handles their exits, and prints what it saw.

mod boot;
mod image;
mod long;
mod nested;
mod vmcb;
mod vmcs;

use std::time::Duration;

use iced_x86::IcedError;
use undervisor_machine::{Image, MachineConfig, Model, StopReason};

use crate::console::Console;
use crate::error::Failure;
use crate::gdb::Server;
use crate::observe::Watch;
use crate::options::{DemoOptions, DemoVendor, IdleMode};
use crate::session::Session;
use crate::wiring::Boxed;

/// More than the demo takes, by far.
const INSTRUCTION_LIMIT: u64 = 2_000_000_000;

/// Build and run the demo.
pub fn run(options: &DemoOptions) -> Result<u8, Failure> {
    let model = match options.vendor {
        DemoVendor::Intel => Model::skylake_server(),
        DemoVendor::Amd => Model::epyc_milan(),
    };
    let image = assemble().map_err(|e| Failure::Option { option: "demo", value: String::new(), why: e.to_string() })?;
    let server = Server::open(&options.gdb)?;
    let (console, terminal) = Console::open(true, false).map_err(Failure::Terminal)?;
    let mut machine = MachineConfig::new()
        .memory(64 << 20)
        .model(model)
        .flat(Image::new("the demo", image), image::BASE)
        .serial(Boxed(Box::new(console.backend())))
        .instruction_limit(INSTRUCTION_LIMIT)
        .build()?;
    let mut session = Session::new(console.clone(), Some(Duration::from_secs(600)), IdleMode::Jump);
    let watch = Watch::new(&options.observe, options.stats, &console)?;
    session.watch(watch, &mut machine);
    let outcome = session.run_with(server, &mut machine);
    let exits: u64 = machine.cpus().iter().map(|c| c.counters.vm_exits).sum();
    drop(terminal);
    if outcome.reason == StopReason::PowerOff {
        let seconds = session.elapsed().as_secs_f64();
        let instructions = machine.progress().instructions;
        let mut line = format!(
            "undervisor: {instructions} instructions in {:.1} ms of the host's time, {:.0} MIPS",
            seconds * 1e3,
            instructions as f64 / seconds / 1e6
        );
        if exits > 0 {
            line.push_str(&format!(
                "; {exits} VM exits, {:.0} ns each with all that L1 and L2 did",
                seconds * 1e9 / exits as f64
            ));
        }
        console.message(&line);
    } else if outcome.code != 0 {
        console.message(&format!("undervisor: {}", outcome.message));
    }
    if options.stats {
        console.message(&session.statistics(&machine));
    }
    session.finish(&mut machine)?;
    Ok(outcome.code)
}

/// The demo as a flat binary for [`image::BASE`].
fn assemble() -> Result<Vec<u8>, IcedError> {
    let mut image = image::Builder::new();
    boot::add(&mut image)?;
    nested::add(&mut image)?;
    long::add(&mut image)?;
    Ok(image.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use undervisor_machine::{BufferBackend, NoHost};

    fn output(model: &str) -> (StopReason, String) {
        let (mut machine, serial) = machine(model);
        (machine.run(&mut NoHost), serial.text())
    }

    #[test]
    fn climbs_to_long_mode_and_takes_interrupts() {
        for name in ["skylake-server", "epyc-milan"] {
            let (reason, text) = output(name);
            for line in ["real mode", "protected mode", "long mode", "#UD", "#PF", "8254", "local APIC"] {
                assert!(text.contains(line), "{name}: no {line:?} in\n{text}");
            }
            assert_eq!(reason, StopReason::PowerOff, "{text}");
        }
    }

    fn machine(model: &str) -> (undervisor_machine::Machine, BufferBackend) {
        let serial = BufferBackend::new();
        let machine = MachineConfig::new()
            .memory(64 << 20)
            .model(Model::by_name(model).unwrap())
            .flat(Image::new("the demo", assemble().unwrap()), image::BASE)
            .serial(serial.clone())
            .instruction_limit(50_000_000)
            .build()
            .unwrap();
        (machine, serial)
    }

    /// The demo prints how many ticks L1 and L2 took, and takes timer interrupts: a run that is stopped thousands of times, stepped, and
    /// watched must come to the same end at the same time.
    #[test]
    fn a_debugger_that_watches_changes_nothing() {
        use std::rc::Rc;
        use undervisor_cpu::debugger::{CodePoint, DataPoint, DebugStop, Points};
        for model in ["skylake-server", "epyc-milan"] {
            let (mut plain, text) = machine(model);
            let reason = plain.run(&mut NoHost);
            let (mut watched, watched_text) = machine(model);
            let mut points = Points::default();
            points.exits.push(None);
            // A break op before every instruction; stops at some of the code of L1 and of both guests.
            let at = |page: u32, offset: u64| CodePoint { linear: page as u64 + offset, level: None };
            assert!(points.set_code((0..4096).map(|offset| at(0, offset)).collect()));
            let pages = [
                image::CODE64,
                image::HYPERVISOR,
                image::HYPERVISOR + 0x200,
                image::L2_REAL,
                image::L2_LONG,
                image::L2_LONG + 0x800,
            ];
            let code = pages.iter().flat_map(|&page| (0..48).map(move |offset| at(page, offset))).collect();
            assert!(!points.set_code(code));
            points.data.push(DataPoint { linear: image::VARIABLES as u64 + 0x1100, length: 0x100, read: false, write: true });
            let points = Rc::new(points);
            watched.set_debug_points(&points, true);
            let (mut stops, mut steps, mut kinds) = (0, 0, [0; 3]);
            let ended = loop {
                let StopReason::Debugger { cpu } = watched.run(&mut NoHost) else {
                    break watched.progress();
                };
                let stop = watched.debugged_cpu(cpu).unwrap().debugger.stop.take().unwrap();
                match stop {
                    DebugStop::Step => steps += 1,
                    DebugStop::Code { .. } => kinds[0] += 1,
                    DebugStop::Data { .. } => kinds[1] += 1,
                    DebugStop::Exit { .. } => kinds[2] += 1,
                    other => panic!("{other:?}"),
                }
                stops += 1;
                // Then some steps, then on; and once all is proven, no more stops.
                watched.debug_resume((stops % 7 < 4).then_some(cpu), None);
                if stops == 20_000 {
                    watched.set_debug_points(&Rc::new(Points::default()), false);
                }
            };
            assert!(steps > 300 && kinds.iter().all(|&n| n > 10), "{model}: {steps} {kinds:?}");
            assert_eq!(ended, plain.progress(), "{model}");
            assert_eq!(watched_text.text(), text.text(), "{model}");
            assert_eq!(reason, StopReason::PowerOff);
        }
    }

    #[test]
    fn runs_guests_of_its_own() {
        for (name, own) in
            [("skylake-server", ["EPT violation", "preemption timer"]), ("epyc-milan", ["nested page fault", "VMMCALL"])]
        {
            let (reason, text) = output(name);
            for line in ["L2 in real mode", "L2 in long mode", "CPUID", "RDMSR"].iter().chain(&own) {
                assert!(text.contains(line), "{name}: no {line:?} in\n{text}");
            }
            assert_eq!(reason, StopReason::PowerOff, "{name}: {text}");
        }
    }
}
