//! Console device (VIRTIO 1.2, Console Device): one port.

use super::VirtioDevice;
use super::queue::{Queue, RingError, gather, scatter, total};
use crate::chardev::CharBackend;
use crate::wiring::Dma;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Most bytes moved for one request.
const MOST: u64 = 64 << 10;

pub struct Console {
    backend: Box<dyn CharBackend>,
    /// A byte read from the backend that had no buffer yet.
    waiting: Option<u8>,
}

impl Console {
    pub fn new(backend: Box<dyn CharBackend>) -> Console {
        Console { backend, waiting: None }
    }

    fn receive(&mut self, queue: &mut Queue, memory: &dyn Dma) -> Result<bool, RingError> {
        let mut any = false;
        loop {
            self.waiting = self.waiting.or_else(|| self.backend.read());
            if self.waiting.is_none() {
                return Ok(any);
            }
            let Some(chain) = queue.pop(memory)? else { return Ok(any) };
            let room = total(&chain.writable).min(MOST) as usize;
            let mut bytes = Vec::new();
            while bytes.len() < room {
                let Some(b) = self.waiting.take().or_else(|| self.backend.read()) else { break };
                bytes.push(b);
            }
            let written = scatter(memory, &chain.writable, &bytes)?;
            queue.push(memory, chain.head, written as u32)?;
            any = true;
        }
    }

    fn transmit(&mut self, queue: &mut Queue, memory: &dyn Dma) -> Result<bool, RingError> {
        let mut any = false;
        while let Some(chain) = queue.pop(memory)? {
            let mut bytes = vec![0; total(&chain.readable).min(MOST) as usize];
            gather(memory, &chain.readable, &mut bytes)?;
            bytes.iter().for_each(|&b| self.backend.write(b));
            queue.push(memory, chain.head, 0)?;
            any = true;
        }
        Ok(any)
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &str {
        "virtio-console"
    }
    fn device_id(&self) -> u16 {
        3
    }
    fn class(&self) -> u32 {
        0x07_8000
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> &[u16] {
        &[64, 64]
    }
    /// cols, rows, max_nr_ports, emerg_wr: none is offered.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }
    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &dyn Dma) -> Result<bool, RingError> {
        match index {
            RECEIVE => self.receive(queue, memory),
            TRANSMIT => self.transmit(queue, memory),
            _ => Ok(false),
        }
    }
    fn poll(&mut self) -> &[usize] {
        self.backend.flush();
        self.waiting = self.waiting.or_else(|| self.backend.read());
        if self.waiting.is_some() { &[RECEIVE] } else { &[] }
    }
}
