//! Block device (VIRTIO 1.2, Block Device).

use super::VirtioDevice;
use super::queue::{Chain, Piece, Queue, RingError, gather, part, scatter, total};
use crate::disk::Disk;
use crate::wiring::Dma;

const SECTOR: u64 = 512;
const QUEUE: u16 = 256;
/// Data segments of a request: what fits into the queue with header and status.
const SEGMENTS: u32 = QUEUE as u32 - 2;
/// Most data of one request.
const MOST: u64 = 32 << 20;
/// Bytes moved at a time.
const CHUNK: u64 = 256 << 10;
const MOST_DISCARD_SECTORS: u32 = 1 << 22;
const MOST_DISCARD_SEGMENTS: u32 = 64;
const ID_LENGTH: usize = 20;

mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Status bytes.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

pub struct Block {
    disk: Box<dyn Disk>,
    id: String,
    errors: u64,
}

/// Why a request failed.
enum Failed {
    Status(u8),
    Ring(RingError),
}

impl From<RingError> for Failed {
    fn from(e: RingError) -> Failed {
        Failed::Ring(e)
    }
}

impl Block {
    /// `id`: what the guest reads as serial number, at most 20 bytes.
    pub fn new(disk: Box<dyn Disk>, id: &str) -> Block {
        Block { disk, id: id.to_owned(), errors: 0 }
    }

    fn sectors(&self) -> u64 {
        self.disk.size() / SECTOR
    }

    /// Byte offset of a range of the disk.
    fn range(&self, sector: u64, length: u64) -> Result<u64, Failed> {
        let end = sector.checked_add(length.div_ceil(SECTOR)).ok_or(Failed::Status(IOERR))?;
        if end > self.sectors() || !length.is_multiple_of(SECTOR) {
            return Err(Failed::Status(IOERR));
        }
        Ok(sector * SECTOR)
    }

    fn writable(&self) -> Result<(), Failed> {
        if self.disk.readonly() { Err(Failed::Status(IOERR)) } else { Ok(()) }
    }

    /// The host's disk failed: an I/O error to the guest; the first is logged.
    fn host(&mut self, result: std::io::Result<()>) -> Result<(), Failed> {
        result.map_err(|e| {
            self.errors += 1;
            if self.errors == 1 {
                log::error!("disk {}: {e}; the guest sees I/O errors (further ones are not logged)", self.id);
            }
            Failed::Status(IOERR)
        })
    }

    /// Carry out a request; bytes written to the guest, the status byte apart.
    fn request(&mut self, memory: &dyn Dma, chain: &Chain, input: &[Piece]) -> Result<u64, Failed> {
        let mut header = [0; 16];
        gather(memory, &chain.readable, &mut header)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let sector = word(8) as u64 | (word(12) as u64) << 32;
        let data = total(&chain.readable) - 16;
        match word(0) {
            IN => {
                let length = total(input);
                if length > MOST {
                    return Err(Failed::Status(IOERR));
                }
                let offset = self.range(sector, length)?;
                let mut buffer = vec![0; length.min(CHUNK) as usize];
                let mut done = 0;
                while done < length {
                    let n = (length - done).min(CHUNK);
                    let buffer = &mut buffer[..n as usize];
                    let result = self.disk.read(offset + done, buffer);
                    self.host(result)?;
                    scatter(memory, &part(input, done, n), buffer)?;
                    done += n;
                }
                Ok(length)
            }
            OUT => {
                self.writable()?;
                if data > MOST {
                    return Err(Failed::Status(IOERR));
                }
                let offset = self.range(sector, data)?;
                let mut buffer = vec![0; data.min(CHUNK) as usize];
                let mut done = 0;
                while done < data {
                    let n = (data - done).min(CHUNK);
                    let buffer = &mut buffer[..n as usize];
                    gather(memory, &part(&chain.readable, 16 + done, n), buffer)?;
                    let result = self.disk.write(offset + done, buffer);
                    self.host(result)?;
                    done += n;
                }
                Ok(0)
            }
            FLUSH => {
                let result = self.disk.flush();
                self.host(result)?;
                Ok(0)
            }
            GET_ID => {
                let mut id = [0; ID_LENGTH];
                let n = self.id.len().min(ID_LENGTH);
                id[..n].copy_from_slice(&self.id.as_bytes()[..n]);
                Ok(scatter(memory, input, &id)? as u64)
            }
            kind @ (DISCARD | WRITE_ZEROES) => {
                self.writable()?;
                self.discard(memory, chain, data, kind == WRITE_ZEROES)
            }
            _ => Err(Failed::Status(UNSUPP)),
        }
    }

    fn discard(&mut self, memory: &dyn Dma, chain: &Chain, data: u64, zeroes: bool) -> Result<u64, Failed> {
        let segments = data / 16;
        if !data.is_multiple_of(16) || segments == 0 || segments > MOST_DISCARD_SEGMENTS as u64 {
            return Err(Failed::Status(IOERR));
        }
        for i in 0..segments {
            let mut s = [0; 16];
            gather(memory, &part(&chain.readable, 16 + 16 * i, 16), &mut s)?;
            let word = |at: usize| u32::from_le_bytes([s[at], s[at + 1], s[at + 2], s[at + 3]]);
            let sector = word(0) as u64 | (word(4) as u64) << 32;
            let (count, flags) = (word(8), word(12));
            // Bit 0 is unmap, which only WRITE_ZEROES may have.
            if flags & !(zeroes as u32) != 0 {
                return Err(Failed::Status(UNSUPP));
            }
            if count > MOST_DISCARD_SECTORS {
                return Err(Failed::Status(IOERR));
            }
            let length = count as u64 * SECTOR;
            let offset = self.range(sector, length)?;
            let result = if zeroes { self.disk.write_zeroes(offset, length) } else { self.disk.discard(offset, length) };
            self.host(result)?;
        }
        Ok(0)
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        "virtio-blk"
    }
    fn device_id(&self) -> u16 {
        2
    }
    fn class(&self) -> u32 {
        0x01_0000
    }
    fn features(&self) -> u64 {
        let common = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        common | if self.disk.readonly() { feature::RO } else { feature::DISCARD | feature::WRITE_ZEROES }
    }
    fn queues(&self) -> &[u16] {
        &[QUEUE]
    }

    /// struct virtio_blk_config.
    fn config(&self) -> Vec<u8> {
        let mut c = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| c[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors().to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &1u16.to_le_bytes());
        put(36, &MOST_DISCARD_SECTORS.to_le_bytes());
        put(40, &MOST_DISCARD_SEGMENTS.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &MOST_DISCARD_SECTORS.to_le_bytes());
        put(52, &MOST_DISCARD_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        c
    }

    fn serve(&mut self, _: usize, queue: &mut Queue, memory: &dyn Dma) -> Result<bool, RingError> {
        let mut any = false;
        // Requests that arrive while these are served belong to the next notification.
        for _ in 0..queue.size {
            let Some(chain) = queue.pop(memory)? else { break };
            if total(&chain.readable) < 16 {
                return Err(RingError::BadRequest("a header"));
            }
            let writable = total(&chain.writable);
            if writable == 0 {
                return Err(RingError::BadRequest("a status byte"));
            }
            let input = part(&chain.writable, 0, writable - 1);
            let status = part(&chain.writable, writable - 1, 1);
            let (code, written) = match self.request(memory, &chain, &input) {
                Ok(n) => (OK, n),
                Err(Failed::Status(code)) => (code, 0),
                Err(Failed::Ring(e)) => return Err(e),
            };
            scatter(memory, &status, &[code])?;
            queue.push(memory, chain.head, (written + 1).min(u32::MAX as u64) as u32)?;
            any = true;
        }
        Ok(any)
    }
}
