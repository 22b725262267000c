//! The terminal as a guest's serial port: raw mode, escape keys, output that shares the screen with the status line.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Write};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use undervisor_machine::CharBackend;

/// What the user asked for with Ctrl-A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Quit,
    Statistics,
    PowerButton,
}

enum Input {
    Bytes(Vec<u8>),
    Key(Key),
    Help,
}

const HELP: &str = "\r\n\
Ctrl-A X       quit\r\n\
Ctrl-A S       statistics\r\n\
Ctrl-A P       press the power button\r\n\
Ctrl-A Ctrl-A  send Ctrl-A\r\n\
Ctrl-A H       this list\r\n";

/// Turns bytes from a terminal into bytes for the guest and keys for us.
#[derive(Default)]
struct Escapes {
    pending: bool,
}

impl Escapes {
    const PREFIX: u8 = 1;

    fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(Input)) {
        let mut plain = Vec::new();
        for &b in bytes {
            if !self.pending {
                match b {
                    Self::PREFIX => self.pending = true,
                    _ => plain.push(b),
                }
                continue;
            }
            self.pending = false;
            let event = match b.to_ascii_lowercase() {
                b'x' => Input::Key(Key::Quit),
                b's' => Input::Key(Key::Statistics),
                b'p' => Input::Key(Key::PowerButton),
                b'h' | b'?' => Input::Help,
                Self::PREFIX | b'a' => {
                    plain.push(Self::PREFIX);
                    continue;
                }
                _ => continue,
            };
            if !plain.is_empty() {
                emit(Input::Bytes(std::mem::take(&mut plain)));
            }
            emit(event);
        }
        if !plain.is_empty() {
            emit(Input::Bytes(plain));
        }
    }
}

/// Whether the guest's output has left the cursor where a status line may stand: at the start of an empty line, on a screen that
/// is used like a printer's paper.
#[derive(Default)]
struct Paper {
    column: bool,
    escape: Escape,
    /// The guest moves the cursor about.
    drawing: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Started,
    Sequence,
}

impl Paper {
    fn see(&mut self, byte: u8) {
        match (self.escape, byte) {
            (Escape::None, 0x1b) => self.escape = Escape::Started,
            (Escape::None, b'\n') => self.column = false,
            (Escape::None, b'\r') => {}
            (Escape::None, _) => self.column = true,
            (Escape::Started, b'[') => self.escape = Escape::Sequence,
            (Escape::Started, _) => (self.escape, self.drawing) = (Escape::None, true),
            (Escape::Sequence, 0x40..=0x7e) => {
                // Only colours leave the cursor where it is.
                self.drawing |= byte != b'm';
                self.escape = Escape::None;
            }
            (Escape::Sequence, _) => {}
        }
    }
    fn clear(&self) -> bool {
        !self.column && !self.drawing && self.escape == Escape::None
    }
}

struct Shared {
    input: Option<Receiver<Input>>,
    queue: VecDeque<u8>,
    keys: VecDeque<Key>,
    output: Vec<u8>,
    paper: Paper,
    status_shown: bool,
    status_allowed: bool,
    /// Input has ended, or there never was any.
    ended: bool,
    last_output: Instant,
    failed: bool,
}

/// The host's standard input and output.
#[derive(Clone)]
pub struct Console {
    shared: Rc<RefCell<Shared>>,
    raw: bool,
}

/// Puts the terminal back.
struct RawMode;

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

/// Keeps the terminal in raw mode while it lives.
pub struct Terminal(#[allow(dead_code)] Option<RawMode>);

impl Console {
    /// Take over standard input and output. `input`: whether a guest reads from it at all. `status`: whether a status line may
    /// be shown.
    pub fn open(input: bool, status: bool) -> io::Result<(Console, Terminal)> {
        let raw = input && io::stdin().is_terminal() && io::stdout().is_terminal();
        let mode = if raw {
            crossterm::terminal::enable_raw_mode()?;
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let _ = crossterm::terminal::disable_raw_mode();
                previous(info);
            }));
            Some(RawMode)
        } else {
            None
        };
        let receiver = input.then(|| Self::start_reader(raw));
        let shared = Shared {
            ended: receiver.is_none(),
            input: receiver,
            queue: VecDeque::new(),
            keys: VecDeque::new(),
            output: Vec::new(),
            paper: Paper::default(),
            status_shown: false,
            status_allowed: status && io::stderr().is_terminal(),
            last_output: Instant::now(),
            failed: false,
        };
        Ok((Console { shared: Rc::new(RefCell::new(shared)), raw }, Terminal(mode)))
    }

    /// A blocked read cannot be cancelled, so the thread is left behind when the program ends.
    fn start_reader(raw: bool) -> Receiver<Input> {
        let (sender, receiver) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            let mut escapes = Escapes::default();
            let mut buffer = [0; 4096];
            let mut stdin = io::stdin().lock();
            let mut open = true;
            while open {
                let n = match stdin.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                if raw {
                    escapes.feed(&buffer[..n], |event| open &= sender.send(event).is_ok());
                } else {
                    open = sender.send(Input::Bytes(buffer[..n].to_vec())).is_ok();
                }
            }
        });
        receiver
    }

    /// The guest's end.
    pub fn backend(&self) -> ConsoleBackend {
        ConsoleBackend(self.shared.clone())
    }

    /// Whether input may still come.
    pub fn open_for_input(&self) -> bool {
        !self.shared.borrow().ended
    }

    /// How long ago the guest last printed something.
    pub fn quiet_for(&self) -> Duration {
        self.shared.borrow().last_output.elapsed()
    }

    /// Wait for input at most this long (`None`: as long as it takes). How long it took.
    pub fn wait(&self, most: Option<Duration>) -> Duration {
        let start = Instant::now();
        let mut shared = self.shared.borrow_mut();
        shared.flush();
        if !shared.queue.is_empty() || !shared.keys.is_empty() {
            return start.elapsed();
        }
        let most = most.unwrap_or(Duration::from_secs(3600));
        let received = match &shared.input {
            Some(r) if !shared.ended => r.recv_timeout(most),
            _ => {
                drop(shared);
                std::thread::sleep(most);
                return start.elapsed();
            }
        };
        match received {
            Ok(event) => shared.take(event),
            Err(RecvTimeoutError::Disconnected) => shared.ended = true,
            Err(RecvTimeoutError::Timeout) => {}
        }
        start.elapsed()
    }

    /// The next key that the user pressed for us.
    pub fn key(&self) -> Option<Key> {
        let mut shared = self.shared.borrow_mut();
        shared.pump();
        shared.keys.pop_front()
    }

    /// Print a message of ours between the guest's output.
    pub fn message(&self, text: &str) {
        let mut shared = self.shared.borrow_mut();
        shared.flush();
        shared.erase_status();
        let newline = if self.raw { "\r\n" } else { "\n" };
        let mut out = String::new();
        if shared.paper.column {
            out.push_str(newline);
        }
        for line in text.lines() {
            out.push_str(line);
            out.push_str(newline);
        }
        shared.paper.column = false;
        let _ = io::stderr().lock().write_all(out.as_bytes());
    }

    /// Show or replace the status line, if that cannot disturb the guest's output.
    pub fn status(&self, text: &str) {
        let mut shared = self.shared.borrow_mut();
        if !shared.status_allowed || !shared.paper.clear() || !shared.output.is_empty() {
            return;
        }
        let width = crossterm::terminal::size().map_or(80, |s| s.0 as usize).saturating_sub(1);
        let text: String = text.chars().take(width).collect();
        let _ = write!(io::stderr().lock(), "\r\x1b[2m{text}\x1b[0m\x1b[K\r");
        shared.status_shown = true;
    }

    /// The run is over: remove the status line, for good. On a terminal, what comes next gets a line of its own.
    pub fn end(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.flush();
        shared.erase_status();
        shared.status_allowed = false;
        if self.raw && shared.paper.column {
            let _ = io::stdout().lock().write_all(b"\r\n").and_then(|()| io::stdout().flush());
            shared.paper.column = false;
        }
    }
}

impl Shared {
    fn take(&mut self, event: Input) {
        match event {
            Input::Bytes(bytes) => {
                // Someone works here: from now on the screen is the guest's.
                self.erase_status();
                self.status_allowed = false;
                self.queue.extend(bytes);
            }
            Input::Key(key) => self.keys.push_back(key),
            Input::Help => {
                self.flush();
                self.erase_status();
                let _ = io::stderr().lock().write_all(HELP.as_bytes());
                self.paper.column = false;
            }
        }
    }

    fn pump(&mut self) {
        loop {
            // A guest that does not read holds the input back.
            if self.queue.len() > 4096 {
                return;
            }
            let Some(receiver) = &self.input else { return };
            match receiver.try_recv() {
                Ok(event) => self.take(event),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.ended = true;
                    return;
                }
            }
        }
    }

    fn erase_status(&mut self) {
        if self.status_shown {
            let _ = io::stderr().lock().write_all(b"\r\x1b[K");
            self.status_shown = false;
        }
    }

    fn flush(&mut self) {
        if self.output.is_empty() {
            return;
        }
        self.erase_status();
        let mut stdout = io::stdout().lock();
        if let Err(e) = stdout.write_all(&self.output).and_then(|()| stdout.flush())
            && !self.failed
        {
            self.failed = true;
            log::error!("standard output: {e}; the guest's further output is lost");
        }
        self.output.clear();
    }
}

/// A guest's port to a [`Console`].
pub struct ConsoleBackend(Rc<RefCell<Shared>>);

impl CharBackend for ConsoleBackend {
    fn write(&mut self, byte: u8) {
        let mut shared = self.0.borrow_mut();
        shared.paper.see(byte);
        shared.output.push(byte);
        if shared.output.len() >= 1 << 14 || byte == b'\n' && shared.last_output.elapsed() > Duration::from_millis(20) {
            shared.flush();
            shared.last_output = Instant::now();
        }
    }
    fn read(&mut self) -> Option<u8> {
        let mut shared = self.0.borrow_mut();
        if shared.queue.is_empty() {
            shared.pump();
        }
        shared.queue.pop_front()
    }
    fn flush(&mut self) {
        let mut shared = self.0.borrow_mut();
        if !shared.output.is_empty() {
            shared.last_output = Instant::now();
            shared.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Key>) {
        let (mut escapes, mut bytes, mut keys) = (Escapes::default(), Vec::new(), Vec::new());
        for chunk in chunks {
            escapes.feed(chunk, |event| match event {
                Input::Bytes(b) => bytes.extend(b),
                Input::Key(k) => keys.push(k),
                Input::Help => {}
            });
        }
        (bytes, keys)
    }

    #[test]
    fn escape_keys() {
        assert_eq!(feed(&[b"ls\n\x01x"]), (b"ls\n".to_vec(), vec![Key::Quit]));
        assert_eq!(feed(&[b"a\x01", b"\x01b"]), (b"a\x01b".to_vec(), vec![]));
        assert_eq!(feed(&[b"\x01", b"S"]), (vec![], vec![Key::Statistics]));
    }

    #[test]
    fn status_waits_for_an_empty_line() {
        let mut paper = Paper::default();
        assert!(paper.clear());
        b"login: ".iter().for_each(|&b| paper.see(b));
        assert!(!paper.clear());
        b"\x1b[1mx\x1b[0m\r\n".iter().for_each(|&b| paper.see(b));
        assert!(paper.clear());
        b"\x1b[H\n".iter().for_each(|&b| paper.see(b));
        assert!(!paper.clear());
    }
}
