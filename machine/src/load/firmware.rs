//! Firmware ROMs.

use crate::config::Image;
use crate::error::LoadError;
use crate::load::put;
use crate::memory::Ram;

/// A ROM and where it goes.
pub struct Rom<'a> {
    pub start: u64,
    pub data: &'a [u8],
}

/// Check a ROM; it ends at 4 GiB.
pub fn check(image: &Image) -> Result<Rom<'_>, LoadError> {
    let size = image.data.len();
    if size == 0 {
        return Err(LoadError::Empty { name: image.name.clone() });
    }
    if !(64 << 10..=16 << 20).contains(&size) || !size.is_multiple_of(4096) {
        return Err(LoadError::BadFirmwareSize(size));
    }
    Ok(Rom { start: (1 << 32) - size as u64, data: &image.data })
}

/// Copy the last 128 KiB to where they also appear, below 1 MiB. Here they are RAM, as if shadowing were always on.
pub fn load(image: &Image, ram: &Ram) -> Result<(), LoadError> {
    let rom = check(image)?;
    let low = &rom.data[rom.data.len().saturating_sub(128 << 10)..];
    put(ram, "firmware", (1 << 20) - low.len() as u64, low)
}
