//! Firmware ROMs.

use crate::config::Image;
use crate::error::LoadError;

/// A ROM and where it goes.
pub struct Rom<'a> {
    pub start: u64,
    pub data: &'a [u8],
}

/// Check a ROM; it ends at 4 GiB. Its last 128 KiB appear below 1 MiB too until it has the host bridge show RAM there.
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
