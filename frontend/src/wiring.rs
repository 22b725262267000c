//! From option values to parts of a machine: serial ports, disks, processor models, modules.

use std::fs::File;
use std::path::{Path, PathBuf};

use undervisor_machine::{CharBackend, Image, Model, Module, NullBackend, WriteBackend};

use crate::console::Console;
use crate::error::Failure;

/// Where a character device goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    Stdio,
    File(PathBuf),
    Null,
}

impl Where {
    pub fn parse(option: &'static str, text: &str) -> Result<Where, Failure> {
        match text {
            "stdio" => Ok(Where::Stdio),
            "null" | "none" => Ok(Where::Null),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Where::File(path.into())),
                _ => Err(Failure::Option { option, value: text.into(), why: "give stdio, file:PATH or null".into() }),
            },
        }
    }

    /// The host's end.
    pub fn open(&self, console: &Console) -> Result<Box<dyn CharBackend>, Failure> {
        Ok(match self {
            Where::Stdio => Box::new(console.backend()),
            Where::Null => Box::new(NullBackend),
            Where::File(path) => {
                let file = File::create(path).map_err(|source| Failure::Write { path: path.clone(), source })?;
                Box::new(WriteBackend::new(file))
            }
        })
    }
}

/// Adapts a boxed backend to builders that take one by value.
pub struct Boxed(pub Box<dyn CharBackend>);

impl CharBackend for Boxed {
    fn write(&mut self, byte: u8) {
        self.0.write(byte);
    }
    fn read(&mut self) -> Option<u8> {
        self.0.read()
    }
    fn flush(&mut self) {
        self.0.flush();
    }
}

/// A processor model by description. Besides features, `phys-bits=N` sets the width of physical addresses.
pub fn cpu(text: &str) -> Result<Model, Failure> {
    let mut bits = None;
    let mut rest = Vec::new();
    for part in text.split(',') {
        match part.trim().strip_prefix("phys-bits=") {
            Some(n) => {
                let n: u32 = n
                    .parse()
                    .ok()
                    .filter(|n| (32..=52).contains(n))
                    .ok_or_else(|| Failure::Cpu(format!("{part}: must be a number from 32 to 52")))?;
                bits = Some(n);
            }
            None => rest.push(part),
        }
    }
    let mut model = Model::parse(&rest.join(",")).map_err(|e| Failure::Cpu(e.to_string()))?;
    if let Some(bits) = bits {
        model.physical_bits = bits;
    }
    Ok(model)
}

/// `FILE[,ARGS]`.
pub fn module(text: &str) -> Result<Module, Failure> {
    let (path, arguments) = text.split_once(',').unwrap_or((text, ""));
    // A file whose name has a comma in it wins over arguments.
    if Path::new(text).exists() {
        return Ok(Module { image: Image::read(text)?, arguments: String::new() });
    }
    Ok(Module { image: Image::read(path)?, arguments: arguments.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(Where::parse("serial", "stdio").unwrap(), Where::Stdio);
        assert_eq!(Where::parse("serial", "file:/a/b").unwrap(), Where::File("/a/b".into()));
        assert!(Where::parse("serial", "file:").is_err());
        assert!(Where::parse("serial", "tcp:1").is_err());
    }

    #[test]
    fn processor_descriptions() {
        assert_eq!(cpu("max-intel,phys-bits=36").unwrap().physical_bits, 36);
        assert!(cpu("max-intel,phys-bits=99").is_err());
        let error = cpu("pentium").unwrap_err().to_string();
        assert!(error.contains("pentium") && error.contains("skylake-server"), "{error}");
    }
}
