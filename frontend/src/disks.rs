//! PCI devices from options.

use std::path::Path;

use undervisor_devices::disk::{self, Disk, Overlay};
use undervisor_devices::virtio::{Block, Console, Rng, VirtioPci};
use undervisor_machine::{CharBackend, PciDevice};

use crate::error::Failure;

/// What follows the file's name in `--disk`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flags {
    readonly: bool,
    snapshot: bool,
}

fn parse(spec: &str) -> Result<(&str, Flags), Failure> {
    let mut flags = Flags::default();
    let mut path = spec;
    // Names of files may have commas in them: look at the end only.
    while let Some((rest, last)) = path.rsplit_once(',') {
        match last {
            "readonly" | "ro" => flags.readonly = true,
            "snapshot" => flags.snapshot = true,
            _ if Path::new(path).exists() => break,
            _ => {
                let why = format!("unknown option {last:?}; there are readonly and snapshot");
                return Err(Failure::Disk { spec: spec.into(), why });
            }
        }
        path = rest;
    }
    if path.is_empty() {
        return Err(Failure::Disk { spec: spec.into(), why: "no file is named".into() });
    }
    Ok((path, flags))
}

/// The block device for `IMAGE[,readonly][,snapshot]`.
pub fn open(spec: &str) -> Result<Box<dyn PciDevice>, Failure> {
    let (path, flags) = parse(spec)?;
    let image = disk::open(Path::new(path), flags.readonly || flags.snapshot)
        .map_err(|e| Failure::Disk { spec: spec.into(), why: e.to_string() })?;
    let backing: Box<dyn Disk> =
        if flags.snapshot && !flags.readonly { Box::new(Overlay::new(image)) } else { Box::new(image) };
    let id = Path::new(path).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Box::new(VirtioPci::new(Block::new(backing, &id))))
}

/// A virtio console.
pub fn console(backend: Box<dyn CharBackend>) -> Box<dyn PciDevice> {
    Box::new(VirtioPci::new(Console::new(backend)))
}

/// A virtio entropy source.
pub fn entropy(seed: u64) -> Box<dyn PciDevice> {
    Box::new(VirtioPci::new(Rng::new(seed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_follow_the_name() {
        let flags = |readonly, snapshot| Flags { readonly, snapshot };
        assert_eq!(parse("a.img").unwrap(), ("a.img", flags(false, false)));
        assert_eq!(parse("a.img,readonly").unwrap(), ("a.img", flags(true, false)));
        assert_eq!(parse("a.img,snapshot,readonly").unwrap(), ("a.img", flags(true, true)));
        assert!(parse("a.img,writable").is_err());
        assert!(parse(",snapshot").is_err());
    }
}
