//! The Chrome trace format (as Perfetto reads it): one track for each processor and level, so that one sees who runs when.
//!
//! A level that runs is a slice. L0 is undervisor itself: it takes no virtual time, so its track has the points at which it acts.

use std::fmt::Write as _;

use undervisor_cpu::observe::{Kind, Record};

use super::symbols::Symbols;
use super::trace::{code_name, labels, quoted};

/// What a processor is known to be doing.
#[derive(Clone, Default)]
struct Processor {
    named: bool,
    /// Level that runs, since when, and what the slice is called.
    running: Option<(u8, u64, String)>,
}

/// Turns records into events.
#[derive(Default)]
pub struct Chrome {
    processors: Vec<Processor>,
    started: bool,
    last: u64,
}

impl Chrome {
    fn event(&mut self, out: &mut String, body: &str) {
        if std::mem::replace(&mut self.started, true) {
            out.push_str(",\n");
        }
        out.push_str(body);
    }

    fn slice(&mut self, out: &mut String, cpu: u8, level: u8, from: u64, to: u64, name: &str, arguments: &str) {
        let mut body = String::from("{\"ph\":\"X\",\"name\":");
        quoted(&mut body, name);
        let _ = write!(
            body,
            ",\"pid\":{cpu},\"tid\":{level},\"ts\":{},\"dur\":{},\"args\":{{{arguments}}}}}",
            micro(from),
            micro(to.saturating_sub(from))
        );
        self.event(out, &body);
    }

    fn point(&mut self, out: &mut String, r: &Record, level: u8, name: &str, arguments: &str) {
        let mut body = String::from("{\"ph\":\"i\",\"s\":\"t\",\"name\":");
        quoted(&mut body, name);
        let _ = write!(body, ",\"pid\":{},\"tid\":{level},\"ts\":{},\"args\":{{{arguments}}}}}", r.cpu, micro(r.now));
        self.event(out, &body);
    }

    fn name_tracks(&mut self, out: &mut String, cpu: u8) {
        self.event(
            out,
            &format!("{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{cpu},\"args\":{{\"name\":\"processor {cpu}\"}}}}"),
        );
        for (level, name) in [(0, "L0 undervisor"), (1, "L1 hypervisor"), (2, "L2 guest")] {
            self.event(
                out,
                &format!(
                    "{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{cpu},\"tid\":{level},\"args\":{{\"name\":\"{name}\"}}}}"
                ),
            );
        }
    }

    /// Add one record.
    pub fn record(&mut self, out: &mut String, r: &Record, symbols: &Symbols) {
        if r.kind == Kind::Code {
            return;
        }
        let cpu = r.cpu as usize;
        if self.processors.len() <= cpu {
            self.processors.resize(cpu + 1, Processor::default());
        }
        if !std::mem::replace(&mut self.processors[cpu].named, true) {
            self.name_tracks(out, r.cpu);
        }
        self.last = self.last.max(r.now);
        let name = code_name(r);
        let mut arguments = format!("\"rip\":\"{:#x}\"", r.rip);
        if let Some((symbol, offset)) = symbols.find(r.level, r.rip) {
            arguments.push_str(",\"symbol\":");
            quoted(&mut arguments, &format!("{symbol}+{offset:#x}"));
        }
        for (label, value) in labels(r.kind, r.amd).into_iter().zip([r.a, r.b, r.c]) {
            if !label.is_empty() && value != 0 {
                let _ = write!(arguments, ",\"{label}\":\"{value:#x}\"");
            }
        }
        let next = match r.kind {
            Kind::Exit => Some((1, format!("handle {name}"))),
            Kind::Entry => Some((2, "guest".to_owned())),
            _ => None,
        };
        if let Some((level, label)) = next {
            let before = self.processors[cpu].running.replace((level, r.now, label));
            if let Some((level, since, label)) = before {
                let label = if level == 2 { format!("guest, until {name}") } else { label };
                self.slice(out, r.cpu, level, since, r.now, &label, &arguments);
            }
            let verb = if r.kind == Kind::Exit { "exit: " } else { "entry: " };
            self.point(out, r, 0, &format!("{verb}{name}"), &arguments);
        } else {
            let level = if r.kind == Kind::EntryFailure { 0 } else { r.level };
            self.point(out, r, level, &format!("{} {name}", r.kind.name()), &arguments);
        }
    }

    /// Close what is open, and the file.
    pub fn finish(&mut self, out: &mut String) {
        for cpu in 0..self.processors.len() {
            if let Some((level, since, label)) = self.processors[cpu].running.take() {
                self.slice(out, cpu as u8, level, since, self.last, &label, "");
            }
        }
        out.push_str("\n]\n");
    }
}

/// Microseconds, as the format wants them, from nanoseconds.
fn micro(ns: u64) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_alternate() {
        let record = |kind, now, level, code| Record {
            now,
            rip: 0x1000,
            structure: 0,
            code,
            a: 0,
            b: 0,
            c: 0,
            kind,
            cpu: 0,
            level,
            amd: false,
        };
        let (mut c, mut out) = (Chrome::default(), String::from("[\n"));
        for r in [record(Kind::Entry, 100, 2, 0), record(Kind::Exit, 150, 2, 10), record(Kind::Entry, 170, 2, 1)] {
            c.record(&mut out, &r, &Symbols::default());
        }
        c.finish(&mut out);
        let events: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
        let slices: Vec<_> = events.iter().filter(|e| e["ph"] == "X").collect();
        assert_eq!(slices.len(), 3);
        assert_eq!((&slices[0]["tid"], &slices[0]["name"]), (&2.into(), &"guest, until CPUID".into()));
        assert_eq!((&slices[1]["tid"], &slices[1]["name"]), (&1.into(), &"handle CPUID".into()));
        assert_eq!(slices[0]["dur"], 0.05);
    }
}
