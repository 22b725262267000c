//! Where a serial port's bytes go to and come from.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// The host's end of a character device.
pub trait CharBackend {
    /// Take one byte from the guest. Errors are the backend's to report; the guest does not see them.
    fn write(&mut self, byte: u8);
    /// The next byte for the guest, if one is there now. Must not block.
    fn read(&mut self) -> Option<u8> {
        None
    }
    /// Called when the guest is idle or a while has passed: push out what is buffered.
    fn flush(&mut self) {}
}

/// Swallows output, has no input.
#[derive(Debug, Default)]
pub struct NullBackend;

impl CharBackend for NullBackend {
    fn write(&mut self, _: u8) {}
}

/// Output to anything that implements [`io::Write`]; the first error is logged and ends the output.
pub struct WriteBackend<W: io::Write> {
    sink: io::BufWriter<W>,
    failed: bool,
}

impl<W: io::Write> WriteBackend<W> {
    pub fn new(sink: W) -> WriteBackend<W> {
        WriteBackend { sink: io::BufWriter::new(sink), failed: false }
    }

    fn check(&mut self, result: io::Result<()>) {
        if let Err(e) = result
            && !self.failed
        {
            self.failed = true;
            log::error!("serial output: {e}; further output of this port is lost");
        }
    }
}

impl<W: io::Write> CharBackend for WriteBackend<W> {
    fn write(&mut self, byte: u8) {
        if !self.failed {
            let result = io::Write::write_all(&mut self.sink, &[byte]);
            self.check(result);
        }
    }
    fn flush(&mut self) {
        if !self.failed {
            let result = io::Write::flush(&mut self.sink);
            self.check(result);
        }
    }
}

impl<W: io::Write> Drop for WriteBackend<W> {
    fn drop(&mut self) {
        CharBackend::flush(self);
    }
}

/// Bytes in memory: the other end stays with whoever made it.
#[derive(Clone, Debug, Default)]
pub struct BufferBackend {
    output: Rc<RefCell<Vec<u8>>>,
    input: Rc<RefCell<VecDeque<u8>>>,
}

impl BufferBackend {
    pub fn new() -> BufferBackend {
        BufferBackend::default()
    }
    /// What the guest has written so far.
    pub fn output(&self) -> Vec<u8> {
        self.output.borrow().clone()
    }
    /// The output as text, with anything that is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.borrow()).into_owned()
    }
    /// Queue input for the guest.
    pub fn feed(&self, bytes: &[u8]) {
        self.input.borrow_mut().extend(bytes);
    }
}

impl CharBackend for BufferBackend {
    fn write(&mut self, byte: u8) {
        self.output.borrow_mut().push(byte);
    }
    fn read(&mut self) -> Option<u8> {
        self.input.borrow_mut().pop_front()
    }
}
