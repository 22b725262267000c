//! The connection to a debugger.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use gdbstub::conn::Connection;

/// Output is sent when a packet is complete; input is read in pieces.
pub struct Link {
    stream: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
    next: usize,
}

impl Link {
    pub fn new(stream: TcpStream) -> io::Result<Link> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?;
        Ok(Link { stream, out: Vec::new(), input: Vec::new(), next: 0 })
    }

    /// The next byte: at once, or after waiting at most so long. An error if the other side has gone.
    pub fn take(&mut self, wait: Option<Duration>) -> io::Result<Option<u8>> {
        if let Some(&byte) = self.input.get(self.next) {
            self.next += 1;
            return Ok(Some(byte));
        }
        match wait {
            Some(time) => {
                self.stream.set_nonblocking(false)?;
                self.stream.set_read_timeout(Some(time))?;
            }
            None => self.stream.set_nonblocking(true)?,
        }
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer);
        self.stream.set_nonblocking(false)?;
        match read {
            Ok(0) => Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(n) => {
                self.input.clear();
                self.input.extend_from_slice(&buffer[..n]);
                self.next = 1;
                Ok(Some(buffer[0]))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Something to ask for whether input waits while the link itself is lent out.
    pub fn probe(&self) -> io::Result<Probe> {
        Ok(Probe { stream: self.stream.try_clone()?, buffered: self.next < self.input.len() })
    }

    /// Print a line on the debugger's console. Only while it waits for the machine to stop.
    pub fn print(&mut self, line: &str) -> io::Result<()> {
        let hex: String = format!("{line}\n").bytes().map(|b| format!("{b:02x}")).collect();
        let sum = hex.bytes().fold(b'O', |sum, b| sum.wrapping_add(b));
        self.write_all(format!("$O{hex}#{sum:02x}").as_bytes())?;
        self.flush()
    }
}

impl Connection for Link {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.out.push(byte);
        Ok(())
    }
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.extend_from_slice(bytes);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Write::write_all(&mut self.stream, &self.out)?;
        self.out.clear();
        Ok(())
    }
}

/// See [`Link::probe`].
pub struct Probe {
    stream: TcpStream,
    buffered: bool,
}

impl Probe {
    /// Whether there is input, or the connection has ended.
    pub fn ready(&self) -> bool {
        if self.buffered {
            return true;
        }
        let waiting = self.stream.set_nonblocking(true).is_ok()
            && self.stream.peek(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        let _ = self.stream.set_nonblocking(false);
        !waiting
    }
}
