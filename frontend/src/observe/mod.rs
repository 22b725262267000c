//! Seeing inside a run: explanations, traces, statistics, lints, the report.

mod chrome;
pub mod codes;
mod explain;
pub mod report;
mod summary;
mod symbols;
mod trace;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::SyncSender;

use undervisor_cpu::observe::{Filter, Finding, Incident, Observer, Record, SharedObserver, Sink, What, Written, want};
use undervisor_machine::Machine;

use crate::console::Console;
use crate::error::Failure;
use crate::options::{ExplainMode, ObserveOptions};
use symbols::Symbols;
use trace::Writer;

/// Explanations printed in full; what comes after them is only counted.
const MOST_EXPLAINED: usize = 16;

/// Everything that watches one run.
pub struct Watch {
    observer: SharedObserver,
    notes: Rc<RefCell<Notes>>,
    writer: Option<Writer>,
    symbols: Symbols,
    explain: ExplainMode,
    statistics: bool,
}

/// What the sink remembers.
#[derive(Default)]
struct Notes {
    explained: usize,
    /// A failed VMRUN whose writer is not known: VMCB, instruction.
    unknown: Option<(u64, u64)>,
}

/// Prints and passes on.
struct Printer {
    console: Console,
    symbols: Symbols,
    sender: Option<SyncSender<Vec<Record>>>,
    notes: Rc<RefCell<Notes>>,
}

impl Sink for Printer {
    fn records(&mut self, records: &[Record]) {
        if let Some(sender) = &self.sender {
            // The writer is gone if it could not write; it says so at the end.
            let _ = sender.send(records.to_vec());
        }
    }

    fn incident(&mut self, incident: &Incident) {
        let notes = &mut *self.notes.borrow_mut();
        if let (What::Check { .. }, Some(f), Some(vmcb)) = (&incident.what, incident.fields.first(), incident.structure)
            && matches!(f.written, Written::NotWatched | Written::BeforeWatch(_))
            && notes.unknown.is_none()
        {
            notes.unknown = Some((vmcb, incident.now));
        }
        notes.explained += 1;
        if notes.explained <= MOST_EXPLAINED {
            self.console.message(&format!("undervisor: {}", explain::incident(incident, &self.symbols)));
        } else if notes.explained == MOST_EXPLAINED + 1 {
            self.console.message("undervisor: further failures are only counted");
        }
    }

    fn finding(&mut self, finding: &Finding) {
        self.console.message(&format!("undervisor: {}", explain::finding(finding, &self.symbols)));
    }
}

/// The bits of `--trace`.
fn categories(list: &[String]) -> Result<u32, Failure> {
    let mut bits = 0;
    for name in list {
        bits |= match name.as_str() {
            "exits" => want::EXITS,
            "entries" => want::ENTRIES,
            "vmread" => want::VMREAD,
            "vmwrite" => want::VMWRITE,
            "interrupts" => want::INTERRUPTS,
            "msr" => want::MSR,
            "io" => want::IO,
            "ept" | "npt" => want::EPT,
            "flushes" => want::FLUSHES,
            "all" => want::TRACE,
            _ => {
                return Err(Failure::Option {
                    option: "trace",
                    value: name.clone(),
                    why: "give exits, entries, vmread, vmwrite, interrupts, msr, io, ept, flushes or all".into(),
                });
            }
        };
    }
    Ok(bits)
}

impl Watch {
    /// Watch as the options say; `None` if they ask for nothing.
    pub fn new(o: &ObserveOptions, statistics: bool, console: &Console) -> Result<Option<Watch>, Failure> {
        let mut wants = categories(&o.trace)?;
        if o.trace_out.is_some() {
            wants |= want::EXITS | want::ENTRIES;
        }
        let lines = match (&o.trace_file, o.trace.is_empty()) {
            (Some(path), false) => Some(path.clone()),
            (Some(_), true) => {
                return Err(Failure::Option {
                    option: "trace-file",
                    value: String::new(),
                    why: "say with --trace what it should hold".into(),
                });
            }
            (None, false) if o.trace_out.is_none() => Some("-".into()),
            _ => None,
        };
        let tracing = wants != 0;
        if o.explain != ExplainMode::Off {
            wants |= want::EXPLAIN;
        }
        if statistics {
            wants |= want::STATISTICS;
        }
        if o.lint {
            wants |= want::LINT;
        }
        if wants == 0 {
            return Ok(None);
        }
        let symbols = Symbols::load(&o.symbols)?;
        let writer = if tracing {
            Some(Writer::start(lines.as_deref(), o.trace_json, o.trace_out.as_deref(), symbols.clone())?)
        } else {
            None
        };
        let notes = Rc::new(RefCell::new(Notes::default()));
        let printer = Printer {
            console: console.clone(),
            symbols: symbols.clone(),
            sender: writer.as_ref().and_then(Writer::sender),
            notes: notes.clone(),
        };
        let mut observer = Observer::new(wants, printer);
        observer.filter = Filter {
            level: o.trace_level,
            structure: o.trace_structure,
            reasons: o.trace_reason.clone(),
            rip: o.trace_rip,
            left: o.trace_first.unwrap_or(u64::MAX),
            after: o.trace_after.unwrap_or(0),
        };
        let observer = Rc::new(RefCell::new(observer));
        Ok(Some(Watch { observer, notes, writer, symbols, explain: o.explain, statistics }))
    }

    /// Watch a machine.
    pub fn attach(&self, machine: &mut Machine) {
        machine.observe(Some(self.observer.clone()));
    }

    /// What `--stats` and Ctrl-A S add.
    pub fn statistics(&self, machine: &Machine) -> String {
        if !self.statistics {
            return String::new();
        }
        summary::statistics(&self.observer.borrow().statistics, machine, &self.symbols)
    }

    /// The run is over: hand on what is left, say how often things failed. Whether a replay would tell more: the VMCB and
    /// the instruction that failed.
    pub fn finish(mut self, machine: &mut Machine, console: &Console) -> Result<Option<Replay>, Failure> {
        machine.observe(None);
        let summary = {
            let mut o = self.observer.borrow_mut();
            o.flush();
            summary::counts(&o, &self.symbols)
        };
        if !summary.is_empty() {
            console.message(&summary);
        }
        let unknown = self.notes.borrow().unknown;
        let symbols = self.symbols.clone();
        let replay = (self.explain == ExplainMode::Replay).then_some(unknown).flatten().map(|(vmcb, instruction)| Replay {
            vmcb,
            instruction,
            symbols,
        });
        let writer = self.writer.take();
        drop(self);
        if let Some(writer) = writer {
            writer.finish()?;
        }
        Ok(replay)
    }
}

/// A second run that finds out who wrote a VMCB before it ran for the first time.
pub struct Replay {
    vmcb: u64,
    /// When VMRUN failed.
    instruction: u64,
    symbols: Symbols,
}

/// Keeps the first incident at a time.
struct Catcher {
    at: u64,
    caught: Rc<RefCell<Option<Incident>>>,
}

impl Sink for Catcher {
    fn incident(&mut self, incident: &Incident) {
        if incident.now == self.at {
            self.caught.borrow_mut().get_or_insert_with(|| incident.clone());
        }
    }
}

impl Replay {
    /// Run `machine`, a fresh copy of the one that failed, up to the failure, and tell what was found.
    pub fn run(&self, machine: &mut Machine, console: &Console) {
        console.message(&format!("undervisor: replaying, to see who wrote the VMCB at {:#x}", self.vmcb));
        let caught = Rc::new(RefCell::new(None));
        let mut observer =
            Observer::new(want::EXPLAIN | want::VMCB_WRITES, Catcher { at: self.instruction, caught: caught.clone() });
        observer.watch.push(self.vmcb);
        machine.observe(Some(Rc::new(RefCell::new(observer))));
        machine.run_until(self.instruction + 1000, &mut undervisor_machine::NoHost);
        machine.observe(None);
        let text = match &*caught.borrow() {
            None => "undervisor: the replay went another way: input from outside was not the same".to_owned(),
            Some(i) => {
                let mut text = String::from("undervisor: the same failure in the replay:");
                for f in &i.fields {
                    let who = explain::written(&f.written, &self.symbols, true);
                    text.push_str(&format!("\n    {} = {:#x}\n      {who}", f.name, f.value));
                }
                text
            }
        };
        console.message(&text);
    }
}
