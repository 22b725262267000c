//! Traces: text, JSON lines, and the Chrome trace format, written by a thread of their own.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use undervisor_core::Vector;
use undervisor_cpu::observe::{Kind, Record};

use super::chrome::Chrome;
use super::codes;
use super::symbols::Symbols;
use crate::error::Failure;

/// Batches that may wait for the writer.
const QUEUE: usize = 64;

/// How a trace looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Chrome,
}

/// One file being written.
struct Output {
    out: Box<dyn Write + Send>,
    form: Form,
    path: PathBuf,
    chrome: Chrome,
}

/// The thread that formats and writes.
pub struct Writer {
    sender: Option<SyncSender<Vec<Record>>>,
    thread: Option<JoinHandle<Result<(), (PathBuf, io::Error)>>>,
}

/// A file, or standard error for `-`.
fn open(path: &Path) -> Result<Box<dyn Write + Send>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(BufWriter::new(io::stderr())));
    }
    let file = File::create(path).map_err(|source| Failure::Write { path: path.into(), source })?;
    Ok(Box::new(BufWriter::with_capacity(1 << 18, file)))
}

impl Writer {
    /// Begin to write: `lines` gets text, or JSON lines if its name ends in `.jsonl` or `json` says so; `chrome` a Chrome trace.
    pub fn start(lines: Option<&Path>, json: bool, chrome: Option<&Path>, symbols: Symbols) -> Result<Writer, Failure> {
        let mut outputs = Vec::new();
        if let Some(path) = lines {
            let form =
                if json || path.extension().is_some_and(|e| e == "jsonl" || e == "json") { Form::Json } else { Form::Text };
            outputs.push(Output { out: open(path)?, form, path: path.into(), chrome: Chrome::default() });
        }
        if let Some(path) = chrome {
            outputs.push(Output { out: open(path)?, form: Form::Chrome, path: path.into(), chrome: Chrome::default() });
        }
        let (sender, receiver) = sync_channel::<Vec<Record>>(QUEUE);
        let thread = std::thread::spawn(move || {
            let mut buffer = String::new();
            for o in &mut outputs {
                if o.form == Form::Chrome {
                    o.out.write_all(b"[\n").map_err(|e| (o.path.clone(), e))?;
                }
            }
            for batch in receiver {
                for o in &mut outputs {
                    buffer.clear();
                    for r in &batch {
                        match o.form {
                            Form::Text => text(&mut buffer, r, &symbols),
                            Form::Json => json_line(&mut buffer, r, &symbols),
                            Form::Chrome => o.chrome.record(&mut buffer, r, &symbols),
                        }
                    }
                    o.out.write_all(buffer.as_bytes()).map_err(|e| (o.path.clone(), e))?;
                }
            }
            for o in &mut outputs {
                if o.form == Form::Chrome {
                    buffer.clear();
                    o.chrome.finish(&mut buffer);
                    o.out.write_all(buffer.as_bytes()).map_err(|e| (o.path.clone(), e))?;
                }
                o.out.flush().map_err(|e| (o.path.clone(), e))?;
            }
            Ok(())
        });
        Ok(Writer { sender: Some(sender), thread: Some(thread) })
    }

    /// Where batches go.
    pub fn sender(&self) -> Option<SyncSender<Vec<Record>>> {
        self.sender.clone()
    }

    /// Wait until everything is written. Every other sender must be gone.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.sender = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err((path, source)))) => Err(Failure::Write { path, source }),
            _ => Ok(()),
        }
    }
}

/// Append a number in hexadecimal, with 0x.
fn hex(out: &mut String, value: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push_str("0x");
    let digits = (67 - (value | 1).leading_zeros()) / 4;
    for i in (0..digits).rev() {
        out.push(DIGITS[(value >> (4 * i) & 15) as usize] as char);
    }
}

/// Append a decimal number.
fn number(out: &mut String, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    digits[at..].iter().for_each(|&d| out.push(d as char));
}

/// The words for a record's `code`.
pub fn code_name(r: &Record) -> String {
    match r.kind {
        Kind::Exit | Kind::EntryFailure if !r.amd && r.code < 0x20 && r.kind == Kind::EntryFailure => {
            codes::instruction_error(r.code as u32)
        }
        Kind::Exit | Kind::EntryFailure => codes::reason_name(r.amd, r.code),
        Kind::Entry => ["VMLAUNCH", "VMRESUME", "VMRUN"].get(r.code as usize).copied().unwrap_or("?").to_owned(),
        Kind::Vmread | Kind::Vmwrite if r.amd => {
            undervisor_svm::describe::row_at(r.code).map_or("?", |row| row.name).to_owned()
        }
        Kind::Vmread | Kind::Vmwrite => codes::field(r.code).unwrap_or("?").to_owned(),
        Kind::Interrupt => format!("vector {:#x}", r.code),
        Kind::Exception => Vector::name(r.code as u8).to_owned(),
        Kind::Rdmsr | Kind::Wrmsr => codes::msr(r.code as u32),
        Kind::In | Kind::Out => format!("port {:#x}", r.code),
        Kind::NestedFault => format!("guest-physical {:#x}", r.code),
        Kind::Flush => ["INVEPT", "INVVPID", "INVLPGA", "TLB_CONTROL"].get(r.code as usize).copied().unwrap_or("?").to_owned(),
        Kind::Code => String::new(),
    }
}

/// Names of the numbers `a`, `b` and `c`; empty: not used.
pub fn labels(kind: Kind, amd: bool) -> [&'static str; 3] {
    match (kind, amd) {
        (Kind::Exit, false) => ["qualification", "gpa", "event"],
        (Kind::Exit, true) => ["info1", "info2", "event"],
        (Kind::Entry, _) => ["from", "inject", ""],
        (Kind::EntryFailure, _) => ["from", "", ""],
        (Kind::Vmread | Kind::Vmwrite | Kind::Rdmsr | Kind::Wrmsr, _) => ["value", "", ""],
        (Kind::Interrupt, _) => ["type", "", ""],
        (Kind::Exception, _) => ["error", "payload", ""],
        (Kind::In | Kind::Out, _) => ["value", "size", ""],
        (Kind::NestedFault, _) => ["linear", "access", ""],
        (Kind::Flush, _) => ["type", "operand", ""],
        (Kind::Code, _) => ["", "", ""],
    }
}

fn text(out: &mut String, r: &Record, symbols: &Symbols) {
    if r.kind == Kind::Code {
        return;
    }
    number(out, r.now);
    out.push_str(" cpu");
    number(out, r.cpu as u64);
    out.push_str(" L");
    number(out, r.level as u64);
    out.push(' ');
    out.push_str(r.kind.name());
    out.push(' ');
    out.push_str(&code_name(r));
    out.push_str(" rip=");
    hex(out, r.rip);
    if !symbols.is_empty() {
        out.push_str(&symbols.suffix(r.level, r.rip));
    }
    for (label, value) in labels(r.kind, r.amd).into_iter().zip([r.a, r.b, r.c]) {
        if !label.is_empty() && (value != 0 || label == "value") {
            out.push(' ');
            out.push_str(label);
            out.push('=');
            hex(out, value);
        }
    }
    if r.structure != u64::MAX {
        out.push_str(if r.amd { " vmcb=" } else { " vmcs=" });
        hex(out, r.structure);
    }
    out.push('\n');
}

/// Append `"name":` and a hexadecimal string.
fn pair(out: &mut String, name: &str, value: u64) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":\"");
    hex(out, value);
    out.push('"');
}

/// Append a JSON string.
pub fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn json_line(out: &mut String, r: &Record, symbols: &Symbols) {
    out.push_str("{\"t\":");
    number(out, r.now);
    out.push_str(",\"cpu\":");
    number(out, r.cpu as u64);
    out.push_str(",\"level\":");
    number(out, r.level as u64);
    out.push_str(",\"kind\":\"");
    out.push_str(r.kind.name());
    out.push_str("\",\"vendor\":\"");
    out.push_str(if r.amd { "amd" } else { "intel" });
    out.push('"');
    pair(out, "rip", r.rip);
    if r.kind == Kind::Code {
        out.push_str(",\"bytes\":\"");
        let words = [r.a.to_le_bytes(), r.b.to_le_bytes()];
        for b in words.as_flattened().iter().take(r.code as usize) {
            out.push_str(&format!("{b:02x}"));
        }
        out.push_str("\",\"bits\":");
        number(out, r.c);
    } else {
        pair(out, "code", r.code);
        out.push_str(",\"name\":");
        quoted(out, &code_name(r));
        for (label, value) in labels(r.kind, r.amd).into_iter().zip([r.a, r.b, r.c]) {
            if !label.is_empty() {
                pair(out, label, value);
            }
        }
        if r.structure != u64::MAX {
            pair(out, "structure", r.structure);
        }
    }
    if let Some((name, offset)) = symbols.find(r.level, r.rip) {
        out.push_str(",\"symbol\":");
        quoted(out, &if offset == 0 { name.to_owned() } else { format!("{name}+{offset:#x}") });
    }
    out.push_str("}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Record {
        Record {
            now: 1234,
            rip: 0x4000,
            structure: 0x31000,
            code: 10,
            a: 0,
            b: 0,
            c: 0,
            kind: Kind::Exit,
            cpu: 0,
            level: 2,
            amd: false,
        }
    }

    #[test]
    fn numbers() {
        let mut s = String::new();
        for v in [0, 0xf, 0x10, u64::MAX] {
            hex(&mut s, v);
            s.push(' ');
        }
        number(&mut s, 0);
        number(&mut s, u64::MAX);
        assert_eq!(s, "0x0 0xf 0x10 0xffffffffffffffff 018446744073709551615");
    }

    #[test]
    fn a_line_of_each_form() {
        let mut s = String::new();
        text(&mut s, &exit(), &Symbols::default());
        assert_eq!(s, "1234 cpu0 L2 exit CPUID rip=0x4000 vmcs=0x31000\n");
        s.clear();
        json_line(&mut s, &exit(), &Symbols::default());
        let value: serde_json::Value = serde_json::from_str(&s).unwrap();
        assert_eq!(value["name"], "CPUID");
        assert_eq!(value["t"], 1234);
        assert_eq!(value["structure"], "0x31000");
    }
}
