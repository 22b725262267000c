//! Disks that guests see, and the host files behind them.

mod image;
mod overlay;

pub use image::{DiskError, ImageDisk, open};
pub use overlay::Overlay;

use std::io;

/// Storage behind a block device. Offsets and lengths are multiples of 512 within `size`.
pub trait Disk {
    /// Bytes.
    fn size(&self) -> u64;
    fn readonly(&self) -> bool {
        false
    }
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Make what was written last.
    fn flush(&mut self) -> io::Result<()>;
    /// The contents are no longer needed; what a later read gives is undefined.
    fn discard(&mut self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let zeroes = vec![0; length.min(1 << 20) as usize];
        let mut done = 0;
        while done < length {
            let n = (length - done).min(zeroes.len() as u64);
            self.write(offset + done, &zeroes[..n as usize])?;
            done += n;
        }
        Ok(())
    }
}

/// A disk in memory, for tests and embedding.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(pub Vec<u8>);

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let from = self.0.get(at..at.saturating_add(out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        let to = self.0.get_mut(at..at.saturating_add(data.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        to.copy_from_slice(data);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
