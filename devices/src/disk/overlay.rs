//! Writes kept in memory over a disk that is only read.

use std::collections::BTreeMap;
use std::io;

use super::Disk;

const BLOCK: u64 = 4096;

/// A disk whose changes are thrown away with it.
pub struct Overlay<D> {
    base: D,
    blocks: BTreeMap<u64, Box<[u8; BLOCK as usize]>>,
}

impl<D: Disk> Overlay<D> {
    pub fn new(base: D) -> Overlay<D> {
        Overlay { base, blocks: BTreeMap::new() }
    }

    fn base_block(&mut self, block: u64) -> io::Result<Box<[u8; BLOCK as usize]>> {
        let mut data = Box::new([0; BLOCK as usize]);
        let start = block * BLOCK;
        let n = self.base.size().saturating_sub(start).min(BLOCK) as usize;
        self.base.read(start, &mut data[..n])?;
        Ok(data)
    }
}

impl<D: Disk> Disk for Overlay<D> {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)).next().is_none() {
            return self.base.read(offset, out);
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let n = (BLOCK as usize - within).min(out.len() - done);
            let to = &mut out[done..done + n];
            match self.blocks.get(&(at / BLOCK)) {
                Some(block) => to.copy_from_slice(&block[within..within + n]),
                None => self.base.read(at, to)?,
            }
            done += n;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (block, within) = (at / BLOCK, (at % BLOCK) as usize);
            let n = (BLOCK as usize - within).min(data.len() - done);
            if !self.blocks.contains_key(&block) {
                let fresh = if n == BLOCK as usize { Box::new([0; BLOCK as usize]) } else { self.base_block(block)? };
                self.blocks.insert(block, fresh);
            }
            if let Some(b) = self.blocks.get_mut(&block) {
                b[within..within + n].copy_from_slice(&data[done..done + n]);
            }
            done += n;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn writes_are_seen_and_the_base_keeps_its_own() {
        let base: Vec<u8> = (0..10_000u32 / 512 * 512).map(|i| i as u8).collect();
        let mut model = base.clone();
        let mut o = Overlay::new(MemoryDisk(base.clone()));
        for (at, len, byte) in [(512, 512, 1), (4096, 4096, 2), (3584, 1024, 3), (9216, 512, 4)] {
            o.write(at, &vec![byte; len]).unwrap();
            model[at as usize..at as usize + len].fill(byte);
        }
        let mut all = vec![0; model.len()];
        o.read(0, &mut all).unwrap();
        assert_eq!(all, model);
        assert_eq!(o.base.0, base);
    }
}
