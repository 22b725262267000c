//! A machine at whose first serial port a test sits: it waits for text and types.

use undervisor_machine::{BufferBackend, Host, Machine, MachineConfig, MachineError, StopReason};

/// Virtual time between two looks at the output.
const STEP: u64 = 2_000_000;

struct Alone;
impl Host for Alone {}

/// A machine and the other end of its COM1.
pub struct Terminal {
    pub machine: Machine,
    port: BufferBackend,
    /// Output before this has been matched.
    seen: usize,
}

impl Terminal {
    /// Build `config` with a terminal at COM1.
    pub fn new(config: MachineConfig) -> Result<Terminal, MachineError> {
        let port = BufferBackend::new();
        Ok(Terminal { machine: config.serial(port.clone()).build()?, port, seen: 0 })
    }

    /// Everything the guest has written.
    pub fn text(&self) -> String {
        self.port.text()
    }

    /// Type `keys`.
    pub fn send(&mut self, keys: &str) {
        self.port.feed(keys.as_bytes());
    }

    /// Run until the guest has written `wanted` after what was matched last; gives what stood before it.
    ///
    /// # Panics
    /// If that takes more than `seconds` of virtual time or the machine stops: with the end of the output.
    pub fn expect(&mut self, wanted: &str, seconds: u64) -> String {
        let limit = self.machine.progress().time + seconds * 1_000_000_000;
        loop {
            let output = self.port.output();
            if let Some(at) = find(&output[self.seen..], wanted.as_bytes()) {
                let before = String::from_utf8_lossy(&output[self.seen..self.seen + at]).into_owned();
                self.seen += at + wanted.len();
                return before;
            }
            let now = self.machine.progress().time;
            assert!(now < limit, "no {wanted:?} within {seconds} s of guest time:\n{}", self.tail());
            if let Some(stop) = self.machine.run_until(now + STEP, &mut Alone) {
                // What it said last counts.
                let output = self.port.output();
                assert!(find(&output[self.seen..], wanted.as_bytes()).is_some(), "no {wanted:?}: {stop}\n{}", self.tail());
            }
        }
    }

    /// Type a command at a shell whose prompt is `prompt`, and wait for the next prompt; gives the command's output.
    pub fn command(&mut self, line: &str, prompt: &str, seconds: u64) -> String {
        self.send(&format!("{line}\n"));
        let out = self.expect(prompt, seconds);
        // The terminal's echo comes first.
        out.split_once('\n').map_or("", |(_, rest)| rest).replace('\r', "")
    }

    /// Run to the end, for at most `seconds` of virtual time.
    ///
    /// # Panics
    /// If it does not end.
    pub fn finish(&mut self, seconds: u64) -> StopReason {
        let limit = self.machine.progress().time + seconds * 1_000_000_000;
        let stop = self.machine.run_until(limit, &mut Alone);
        stop.unwrap_or_else(|| panic!("still running after {seconds} s of guest time:\n{}", self.tail()))
    }

    fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn find(all: &[u8], part: &[u8]) -> Option<usize> {
    all.windows(part.len()).position(|w| w == part)
}
