//! `second-opinion`: the same images under undervisor, Bochs and QEMU, each compared with what the manuals say.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use undervisor_core::Vendor;

use super::image::disk;
use super::{Row, Suite, line_of, suite, suite_from};
use crate::bench::Guest;
use crate::bench::emulators::{Emulator, all};

#[derive(Args)]
pub struct Options {
    /// Only these emulators (undervisor, bochs, qemu), comma-separated
    #[arg(long, value_delimiter = ',')]
    emulators: Vec<String>,
    /// Only this vendor's processors (intel, amd)
    #[arg(long)]
    vendor: Option<String>,
    /// Print each line as it came, too
    #[arg(long)]
    lines: bool,
    /// Write the images here instead of running them: NAME.img boots from a hard disk, NAME.multiboot as a multiboot kernel
    #[arg(long)]
    write: Option<PathBuf>,
    /// Seconds an emulator may take for one image
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

/// Carry out `second-opinion`. Fails if undervisor itself differs from the manuals.
pub fn run(options: &Options) -> ExitCode {
    match compare(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("second-opinion: {e}");
            ExitCode::FAILURE
        }
    }
}

fn name(vendor: Vendor) -> &'static str {
    if vendor == Vendor::Amd { "amd" } else { "intel" }
}

fn compare(options: &Options) -> Result<bool, Box<dyn Error>> {
    let mut agrees = true;
    for vendor in [Vendor::Intel, Vendor::Amd] {
        if options.vendor.as_deref().is_some_and(|v| v != name(vendor)) {
            continue;
        }
        if let Some(to) = &options.write {
            let suite = suite(vendor)?;
            std::fs::write(to.join(format!("{}.img", name(vendor))), disk(&suite.image)?)?;
            std::fs::write(to.join(format!("{}.multiboot", name(vendor))), &suite.image)?;
            continue;
        }
        for emulator in all() {
            // TCG has no VMX.
            let cannot = emulator.name() == "qemu" && vendor == Vendor::Intel;
            if cannot || !options.emulators.is_empty() && !options.emulators.iter().any(|n| n == emulator.name()) {
                continue;
            }
            agrees &= opinion(&*emulator, vendor, options)? || emulator.name() != "undervisor";
        }
    }
    Ok(agrees)
}

/// What an emulator says of each case, and of those that ended it, how.
struct Heard {
    lines: Vec<String>,
    ended: BTreeMap<String, String>,
}

/// Listen to an emulator. After a case that ends it, it starts anew with the next one; guests then lie elsewhere, and the suite's rows
/// become those that fit.
fn hear(emulator: &dyn Emulator, suite: &mut Suite, limit: Duration) -> Result<Heard, Box<dyn Error>> {
    let (mut lines, mut ended) = (Vec::new(), BTreeMap::new());
    let mut first = 0;
    let mut silent = 0;
    while first < suite.rows.len() {
        let mut part = suite_from(suite.vendor, first)?;
        suite.rows.truncate(first);
        suite.rows.append(&mut part.rows);
        let guest = Guest::Disk { disk: disk(&part.image)?, image: part.image, model: Box::new(suite.model()) };
        let marks = emulator.run(&guest, limit)?;
        silent = if marks.marks.is_empty() { silent + 1 } else { 0 };
        if silent > 4 {
            return Err(format!("{silent} times it said nothing at all: {}", marks.ended.unwrap_or_default()).into());
        }
        let why = marks.ended;
        lines.extend(marks.marks.into_iter().map(|m| m.line));
        let Some(why) = why else { break };
        let said = |row: &Row| line_of(&lines, &row.name).is_some();
        let Some(next) = (first..suite.rows.len()).find(|&i| !said(&suite.rows[i])) else { break };
        ended.insert(suite.rows[next].name.clone(), why);
        first = next + 1;
    }
    Ok(Heard { lines, ended })
}

/// Run one emulator and print where it differs; whether it nowhere does.
fn opinion(emulator: &dyn Emulator, vendor: Vendor, options: &Options) -> Result<bool, Box<dyn Error>> {
    let mut suite = suite(vendor)?;
    let title = format!("{}, {}", emulator.name(), name(vendor));
    if let Some(why) = emulator.missing() {
        println!("{title}: skipped: {why}");
        return Ok(true);
    }
    let Heard { lines, ended } = match hear(emulator, &mut suite, Duration::from_secs(options.limit)) {
        Ok(heard) => heard,
        Err(why) => {
            println!("{title}: {why}");
            return Ok(false);
        }
    };
    if options.lines {
        lines.iter().for_each(|l| println!("  {l}"));
    }
    let said =
        |word: &str| suite.rows.iter().filter(|r| line_of(&lines, &r.name).is_some_and(|l| l.contains_key(word))).count();
    let skipped = said("skipped");
    let differences = suite.differences(&lines, emulator.name() == "undervisor");
    let differing = differences.iter().filter_map(|d| d.split(':').next()).collect::<BTreeSet<_>>().len();
    println!(
        "{title}: {} cases, {} as the manual says, {} not, {skipped} skipped as the model lacks what they need",
        suite.rows.len(),
        suite.rows.len() - differing - skipped,
        differing
    );
    for difference in &differences {
        let case = difference.split(':').next().unwrap_or_default();
        match ended.get(case) {
            Some(why) => println!("  {case}: {why}"),
            None => println!("  {difference}"),
        }
    }
    Ok(differences.is_empty())
}
