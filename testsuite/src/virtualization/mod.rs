//! Hypervisors with one small guest a case, whose exits are compared with what the manuals say.
//!
//! One image a vendor: it goes to 64-bit mode, walks through its cases and prints a line for each with every field that describes the
//! exit. The tests run it in undervisor; `second-opinion` also under Bochs and QEMU. What a line must say stands with the case, worked
//! out from the manuals: fields that a manual leaves undefined for an exit are not compared.

pub mod case;
mod common;
pub mod image;
pub mod second_opinion;
pub mod svm;
pub mod vmx;

use std::collections::BTreeMap;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use undervisor_core::{Feature, Model, Vendor, VmxFeatures};

use image::Builder;

/// What a field must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub value: u64,
    /// The bits that are defined.
    pub mask: u64,
    /// A model without decode assists or nRIP leaves zero.
    pub optional: bool,
}

impl Want {
    pub const fn is(value: u64) -> Want {
        Want { value, mask: u64::MAX, optional: false }
    }
    pub const fn bits(value: u64, mask: u64) -> Want {
        Want { value, mask, optional: false }
    }
}

/// What a case's line must say, by field.
#[derive(Clone, Debug, Default)]
pub struct Expected(BTreeMap<&'static str, Want>);

impl Expected {
    fn set(&mut self, name: &'static str, want: Want) {
        self.0.insert(name, want);
    }
    fn otherwise(&mut self, name: &'static str, want: Want) {
        self.0.entry(name).or_insert(want);
    }
}

/// A case as the image has it.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub expected: Expected,
}

/// An image with its cases.
pub struct Suite {
    pub vendor: Vendor,
    pub image: Vec<u8>,
    pub rows: Vec<Row>,
}

/// The image for a vendor's processors.
pub fn suite(vendor: Vendor) -> Result<Suite, IcedError> {
    suite_from(vendor, 0)
}

/// An image that begins with a later case.
pub fn suite_from(vendor: Vendor, first: usize) -> Result<Suite, IcedError> {
    let amd = vendor == Vendor::Amd;
    let mut b = Builder::new(amd)?;
    let mut records = Vec::new();
    let mut rows = Vec::new();
    let mut add = |(record, row): (Vec<u64>, Row)| {
        records.extend(record);
        rows.push(row);
    };
    if amd {
        for case in svm::all().into_iter().skip(first) {
            add(case.place(&mut b)?);
        }
    } else {
        for case in vmx::all().into_iter().skip(first) {
            add(case.place(&mut b)?);
        }
    }
    // A name of zero ends the table.
    records.push(0);
    let cases = b.words(records);
    let idt = b.data(&[0; 4096]);
    let idtr = b.data(&[&0xfffu16.to_le_bytes()[..], &idt.to_le_bytes()].concat());
    let mut a = CodeAssembler::new(64)?;
    let mut c = common::Common::new(&mut a);
    if amd {
        svm::hypervisor::write(&mut a, &mut c, &mut b, cases, idtr)?;
    } else {
        vmx::hypervisor::write(&mut a, &mut c, &mut b, cases, idt, idtr)?;
    }
    let result = b.code(&mut a)?;
    let entry = result.inner.rip;
    for (vector, stub) in c.stubs.iter().enumerate() {
        let at = result.label_ip(stub)?;
        b.gate(idt, vector as u64, at);
    }
    Ok(Suite { vendor, image: b.finish(entry), rows })
}

impl Suite {
    /// The model that has everything, but for what would relax an entry check: wider addresses, and laxer rules for injection.
    pub fn model(&self) -> Model {
        let mut model = if self.vendor == Vendor::Amd { Model::max_amd() } else { Model::max_intel() };
        model.vmx -= VmxFeatures::INJECT_ZERO_LENGTH | VmxFeatures::INJECT_ANY_ERROR_CODE;
        model.features.remove(Feature::LA57);
        model.physical_bits = 46;
        model
    }

    /// Compare the lines of a run with what the manuals say: one text for each difference. `complete`: the
    /// model has every feature.
    pub fn differences(&self, lines: &[String], complete: bool) -> Vec<String> {
        let mut out = Vec::new();
        for row in &self.rows {
            match line_of(lines, &row.name) {
                None => out.push(format!("{}: no line", row.name)),
                // The model lacks what the case needs.
                Some(said) if said.contains_key("skipped") => {}
                Some(said) => out.extend(compare(row, &said, complete).into_iter().map(|d| format!("{}: {d}", row.name))),
            }
        }
        out
    }
}

/// What a line says, by field; a word without a value stands for itself.
pub fn line_of(lines: &[String], name: &str) -> Option<BTreeMap<String, String>> {
    let line = lines.iter().filter_map(|l| l.strip_prefix("@C ")).find(|l| l.split(' ').next() == Some(name))?;
    Some(
        line.split(' ')
            .skip(1)
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect(),
    )
}

/// Where a line differs from what it must say.
fn compare(row: &Row, said: &BTreeMap<String, String>, complete: bool) -> Vec<String> {
    let mut out = Vec::new();
    for (name, want) in &row.expected.0 {
        let Some(text) = said.get(*name) else {
            let words: Vec<String> = said.iter().take(3).map(|(k, v)| format!("{k} {v}")).collect();
            return vec![format!("no {name}: {}", words.join(", "))];
        };
        match u64::from_str_radix(text, 16) {
            Ok(value) if value & want.mask == want.value & want.mask => {}
            Ok(0) if want.optional && !complete => {}
            _ if want.mask == u64::MAX => out.push(format!("{name} {text}, not {:x}", want.value)),
            _ => out.push(format!("{name} {text}, not {:x} in {:x}", want.value, want.mask)),
        }
    }
    out
}
