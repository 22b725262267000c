//! `second-opinion`: the same images under undervisor, Bochs and QEMU, each compared with what the manuals say.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use undervisor_core::Vendor;

use super::image::disk;
use super::{Suite, line_of, suite};
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
    /// Seconds an emulator may take
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
        let suite = suite(vendor)?;
        let disk = disk(&suite.image)?;
        if let Some(to) = &options.write {
            std::fs::write(to.join(format!("{}.img", name(vendor))), &disk)?;
            std::fs::write(to.join(format!("{}.multiboot", name(vendor))), &suite.image)?;
            continue;
        }
        let guest = Guest::Disk { disk, image: suite.image.clone(), model: Box::new(suite.model()) };
        for emulator in all() {
            // TCG has no VMX.
            let cannot = emulator.name() == "qemu" && vendor == Vendor::Intel;
            if cannot || !options.emulators.is_empty() && !options.emulators.iter().any(|n| n == emulator.name()) {
                continue;
            }
            agrees &= opinion(&*emulator, &suite, &guest, options) || emulator.name() != "undervisor";
        }
    }
    Ok(agrees)
}

/// Run one emulator and print where it differs; whether it nowhere does.
fn opinion(emulator: &dyn Emulator, suite: &Suite, guest: &Guest, options: &Options) -> bool {
    let title = format!("{}, {}", emulator.name(), name(suite.vendor));
    if let Some(why) = emulator.missing() {
        println!("{title}: skipped: {why}");
        return true;
    }
    let marks = match emulator.run(guest, Duration::from_secs(options.limit)) {
        Ok(marks) => marks,
        Err(why) => {
            println!("{title}: {why}");
            return false;
        }
    };
    let lines: Vec<String> = marks.marks.into_iter().map(|m| m.line).collect();
    if options.lines {
        lines.iter().for_each(|l| println!("  {l}"));
    }
    let said =
        |word: &str| suite.rows.iter().filter(|r| line_of(&lines, &r.name).is_some_and(|l| l.contains_key(word))).count();
    let skipped = said("skipped");
    let differences = suite.differences(&lines, emulator.name() == "undervisor");
    let differing = differences.iter().filter_map(|d| d.split(':').next()).collect::<std::collections::BTreeSet<_>>().len();
    println!(
        "{title}: {} cases, {} as the manual says, {} not, {skipped} skipped as the model lacks what they need",
        suite.rows.len(),
        suite.rows.len() - differing - skipped,
        differing
    );
    differences.iter().for_each(|d| println!("  {d}"));
    differences.is_empty()
}
