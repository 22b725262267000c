//! Names for addresses: symbols and source lines of ELF files, each for one level.

use std::path::PathBuf;
use std::sync::Arc;

use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

use crate::error::Failure;

type Reader = gimli::EndianArcSlice<gimli::RunTimeEndian>;

/// A symbol of one file.
struct Symbol {
    address: u64,
    size: u64,
    name: String,
}

/// Assembly often leaves sizes out: then a symbol reaches as far as the next one, its section, or this.
const UNSIZED: u64 = 0x1000;

/// One `--symbols`.
struct File {
    level: u8,
    /// Added to the file's addresses.
    offset: u64,
    symbols: Vec<Symbol>,
    data: Arc<[u8]>,
}

/// All `--symbols`.
#[derive(Clone, Default)]
pub struct Symbols {
    files: Arc<Vec<File>>,
}

fn bad(value: &str, why: impl Into<String>) -> Failure {
    Failure::Option { option: "symbols", value: value.to_owned(), why: why.into() }
}

impl Symbols {
    /// Read `ELF[@LEVEL][+OFFSET]` files.
    pub fn load(specs: &[String]) -> Result<Symbols, Failure> {
        let files = specs.iter().map(|s| File::load(s)).collect::<Result<Vec<_>, _>>()?;
        Ok(Symbols { files: Arc::new(files) })
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The symbol that an address of a level lies in, and the offset in it.
    pub fn find(&self, level: u8, address: u64) -> Option<(&str, u64)> {
        self.files.iter().filter(|f| f.level == level).find_map(|f| {
            let at = address.wrapping_sub(f.offset);
            let i = f.symbols.partition_point(|s| s.address <= at);
            let s = f.symbols.get(i.checked_sub(1)?)?;
            let inside = at - s.address;
            (inside < s.size).then_some((s.name.as_str(), inside))
        })
    }

    /// ` <symbol+0x12>`, or nothing.
    pub fn suffix(&self, level: u8, address: u64) -> String {
        match self.find(level, address) {
            Some((name, 0)) => format!(" <{name}>"),
            Some((name, offset)) => format!(" <{name}+{offset:#x}>"),
            None => String::new(),
        }
    }

    /// `file.c:12`, with the lines that it was inlined into, if there is line information. Slow: reads the file's debug
    /// information anew.
    pub fn line(&self, level: u8, address: u64) -> Option<String> {
        self.files.iter().filter(|f| f.level == level).find_map(|f| {
            let context = f.lines()?;
            let mut frames = context.find_frames(address.wrapping_sub(f.offset)).skip_all_loads().ok()?;
            let mut out = String::new();
            while let Ok(Some(frame)) = frames.next() {
                let Some(location) = frame.location else { break };
                let (Some(file), Some(line)) = (location.file, location.line) else { break };
                if !out.is_empty() {
                    out.push_str(", inlined in ");
                }
                out.push_str(&format!("{}:{line}", file.rsplit('/').next().unwrap_or(file)));
            }
            (!out.is_empty()).then_some(out)
        })
    }
}

impl File {
    fn load(spec: &str) -> Result<File, Failure> {
        let (mut path, mut level, mut offset) = (spec, 1, 0);
        if !std::path::Path::new(path).exists() {
            if let Some((rest, text)) = path.rsplit_once('+') {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                offset = u64::from_str_radix(digits, 16).map_err(|_| bad(spec, "the offset after + must be hexadecimal"))?;
                path = rest;
            }
            if let Some((rest, text)) = path.rsplit_once('@') {
                level = text
                    .parse()
                    .ok()
                    .filter(|l| matches!(l, 1 | 2))
                    .ok_or_else(|| bad(spec, "the level after @ must be 1 or 2"))?;
                path = rest;
            }
        }
        let data = std::fs::read(path).map_err(|source| Failure::Read { path: PathBuf::from(path), source })?;
        let elf = object::File::parse(&*data).map_err(|e| bad(spec, format!("not an ELF file that can be read: {e}")))?;
        let mut symbols: Vec<Symbol> = elf
            .symbols()
            .chain(elf.dynamic_symbols())
            .filter(|s| s.is_definition() && matches!(s.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown))
            .filter_map(|s| {
                let section = elf.section_by_index(s.section_index()?).ok().filter(|s| s.kind() == SectionKind::Text)?;
                let room = (section.address() + section.size()).saturating_sub(s.address());
                let size = if s.size() == 0 { room.min(UNSIZED) } else { s.size() };
                Some(Symbol { address: s.address(), size, name: s.name().ok()?.to_owned() })
            })
            .filter(|s| !s.name.is_empty() && !s.name.starts_with('$'))
            .collect();
        if symbols.is_empty() {
            return Err(bad(spec, "the file has no symbols of code"));
        }
        // Of several symbols at one address, the one with a size, then the shortest name.
        symbols.sort_by(|a, b| (a.address, a.size, b.name.len()).cmp(&(b.address, b.size, a.name.len())));
        Ok(File { level, offset, symbols, data: data.into() })
    }

    fn lines(&self) -> Option<addr2line::Context<Reader>> {
        let elf = object::File::parse(&*self.data).ok()?;
        let endian = if elf.is_little_endian() { gimli::RunTimeEndian::Little } else { gimli::RunTimeEndian::Big };
        let load = |id: gimli::SectionId| -> Result<Reader, gimli::Error> {
            let data = elf.section_by_name(id.name()).and_then(|s| s.data().ok()).unwrap_or(&[]);
            Ok(Reader::new(Arc::from(data), endian))
        };
        addr2line::Context::from_dwarf(gimli::Dwarf::load(load).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_symbol_wins() {
        let symbol = |address, size, name: &str| Symbol { address, size, name: name.into() };
        let file = File {
            level: 2,
            offset: 0x10,
            symbols: vec![symbol(0x1000, 0x20, "first"), symbol(0x1100, UNSIZED, "second")],
            data: Arc::from(&[][..]),
        };
        let all = Symbols { files: Arc::new(vec![file]) };
        assert_eq!(all.find(2, 0x1014), Some(("first", 4)));
        assert_eq!(all.find(2, 0x1030), None);
        assert_eq!(all.find(1, 0x1014), None);
        assert_eq!(all.suffix(2, 0x1110), " <second>");
        assert_eq!(all.suffix(2, 0x1112), " <second+0x2>");
    }

    #[test]
    fn bad_files_are_told() {
        assert!(matches!(Symbols::load(&["/nonexistent".into()]), Err(Failure::Read { .. })));
        assert!(matches!(Symbols::load(&["/nonexistent@7".into()]), Err(Failure::Option { .. })));
    }
}
