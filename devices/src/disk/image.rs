//! Raw and qcow2 image files, by way of `imago`.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::format::builder::FormatDriverBuilder;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Storage, StorageOpenOptions};
use thiserror::Error;

use super::Disk;

const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// Images on top of each other.
const MOST_LAYERS: usize = 64;

/// An image could not be opened.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: is a directory", path.display())]
    Directory { path: PathBuf },
    #[error("{}: its backing files form a loop ({} is reached again); give it another backing file with qemu-img rebase", path.display(), again.display())]
    BackingLoop { path: PathBuf, again: PathBuf },
    #[error("{}: more than {MOST_LAYERS} backing files", path.display())]
    TooManyLayers { path: PathBuf },
    #[error("{}: the image is empty", path.display())]
    Empty { path: PathBuf },
    #[error("{}: {length} bytes, not a multiple of 512; it is truncated, or not a disk image", path.display())]
    Uneven { path: PathBuf, length: u64 },
    #[error("{}: its refcounts do not cover its own header, so that nothing can be allocated in it; repair it with qemu-img check -r all, or open it readonly", path.display())]
    NoRefcounts { path: PathBuf },
}

/// An image file.
pub struct ImageDisk {
    image: FormatAccess<File>,
    readonly: bool,
    size: u64,
}

/// Open an image; its format is found by content.
pub fn open(path: &Path, readonly: bool) -> Result<ImageDisk, DiskError> {
    let error = |source| DiskError::Open { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(DiskError::Directory { path: path.to_owned() });
    }
    let mut gate = Gate { seen: Vec::new(), trouble: None };
    gate.enter(path).map_err(error)?;
    let qcow2 = starts_with_magic(path).map_err(error)?;
    if qcow2 && !readonly && !counts_its_header(path).map_err(error)? {
        return Err(DiskError::NoRefcounts { path: path.to_owned() });
    }
    let opened = if qcow2 {
        Qcow2::<File>::builder_path(path).write(!readonly).open(&mut gate).map(FormatAccess::new)
    } else {
        Raw::<File>::builder_path(path).write(!readonly).open(&mut gate).map(FormatAccess::new)
    };
    let image = match (opened, gate.trouble) {
        (Ok(image), _) => image,
        (Err(_), Some(Trouble::Loop(again))) => return Err(DiskError::BackingLoop { path: path.to_owned(), again }),
        (Err(_), Some(Trouble::Layers)) => return Err(DiskError::TooManyLayers { path: path.to_owned() }),
        (Err(source), None) => return Err(error(source)),
    };
    let size = image.size();
    if size == 0 {
        return Err(DiskError::Empty { path: path.to_owned() });
    }
    if !size.is_multiple_of(512) {
        return Err(DiskError::Uneven { path: path.to_owned(), length: size });
    }
    Ok(ImageDisk { image, readonly, size })
}

/// Whether the refcount table of a qcow2 image names a block for the image's first clusters. `imago` would put a missing one at
/// offset 0, over the header, then find that offset 0 still means none, and never end.
fn counts_its_header(path: &Path) -> io::Result<bool> {
    const REFCOUNT_TABLE_OFFSET: u64 = 48;
    const OFFSET_MASK: u64 = !0x1ff;
    let mut file = std::fs::File::open(path)?;
    let mut word = |at| -> io::Result<u64> {
        let mut bytes = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    };
    let table = word(REFCOUNT_TABLE_OFFSET)?;
    // Past the end of the file: nothing there.
    Ok(word(table).unwrap_or(0) & OFFSET_MASK != 0)
}

fn starts_with_magic(path: &Path) -> io::Result<bool> {
    let mut magic = Vec::new();
    std::fs::File::open(path)?.take(4).read_to_end(&mut magic)?;
    Ok(magic == QCOW2_MAGIC)
}

/// What a chain of backing files ran into.
enum Trouble {
    Loop(PathBuf),
    Layers,
}

/// Opens backing files, read-only, and refuses to open one twice.
struct Gate {
    seen: Vec<PathBuf>,
    trouble: Option<Trouble>,
}

impl Gate {
    fn enter(&mut self, path: &Path) -> io::Result<()> {
        let real = path.canonicalize()?;
        if self.seen.contains(&real) {
            self.trouble = Some(Trouble::Loop(real));
            return Err(io::Error::other("backing loop"));
        }
        if self.seen.len() >= MOST_LAYERS {
            self.trouble = Some(Trouble::Layers);
            return Err(io::Error::other("too many backing files"));
        }
        self.seen.push(real);
        Ok(())
    }
}

impl ImplicitOpenGate<File> for &mut Gate {
    fn open_format<F: FormatDriverBuilder<File>>(&mut self, builder: F) -> io::Result<FormatAccess<File>> {
        if let Some(path) = builder.get_image_path() {
            self.enter(&path)?;
        }
        Ok(FormatAccess::new(builder.write(false).open(&mut **self)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        File::open(options)
    }
}

impl Disk for ImageDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn readonly(&self) -> bool {
        self.readonly
    }
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.image.read(out, offset)
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.image.write(data, offset)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match self.image.discard_to_any(offset, length) {
            // A hint: a file system that cannot do it is no error.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }
    fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.image.write_zeroes(offset, length)
    }
}

#[cfg(test)]
mod tests;
