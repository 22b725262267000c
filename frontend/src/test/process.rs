//! One test as a process.

use std::process::{Command, Stdio};
use std::time::Instant;

use undervisor_core::Vendor;

use crate::error::Failure;
use crate::options::TestOptions;
use crate::wiring;

use super::verdict::{Report, Verdict};
use super::{Entry, Job};

/// Seconds that kvm-unit-tests gives a test that does not say.
const DEFAULT_TIMEOUT: u64 = 90;
/// Most output that is kept.
const OUTPUT_LIMIT: usize = 16 << 20;

/// What the guests of a configuration expect below them, which is KVM: its hypercalls; that each debug exception sets DR6.BLD again,
/// which processors with OS bus-lock detection leave to software; and no RDPRU, which it does not offer.
const BELOW: [(&str, &str); 3] = [("kvm_pv_ipi", "+kvm_pv_ipi"), ("bus_lock_detect", "-bus_lock_detect"), ("rdpru", "-rdpru")];

/// Models of QEMU's that tests name for what they lack, and that.
const OLDER: [(&str, &[&str]); 1] = [("IvyBridge", &["-la57", "-smap", "-pku", "-invpcid"])];

/// The model for a test: the base model, as KVM would have it if it is for a configuration, and with those of the changes in QEMU's
/// `-cpu` value that it knows.
pub fn cpu(entry: &Entry, base: Option<&str>, configured: bool) -> String {
    let mut cpu = base.unwrap_or(if entry.wants_amd() { "max-amd" } else { "max-intel" }).to_owned();
    for (name, change) in BELOW {
        if configured && !cpu.contains(name) {
            cpu = format!("{cpu},{change}");
        }
    }
    let mut parts = entry.cpu.as_deref().unwrap_or_default().split(',');
    let old = parts.next().and_then(|name| OLDER.iter().find(|row| row.0 == name));
    for part in old.map_or(&[][..], |row| row.1).iter().copied().chain(parts) {
        // QEMU writes `x=on` and `x=off` too.
        let change = match part.split_once('=') {
            Some(("phys-bits", _)) => part.to_owned(),
            Some((name, "on")) => format!("+{name}"),
            Some((name, "off")) => format!("-{name}"),
            Some(_) => continue,
            None => part.to_owned(),
        };
        // QEMU calls VMX features vmx-....
        let short = change.replacen("+vmx-", "+", 1).replacen("-vmx-", "-", 1);
        for change in [change, short] {
            let longer = format!("{cpu},{change}");
            if wiring::cpu(&longer).is_ok() {
                cpu = longer;
                break;
            }
        }
    }
    cpu
}

/// Why not on `base`: the entry names the vendor, and that is another.
fn other_vendor(entry: &Entry, base: Option<&str>) -> Option<String> {
    let wanted = entry.cpu.as_deref()?.split(',').find_map(|part| part.strip_prefix("vendor="))?;
    let own = match wiring::cpu(base?).ok()?.vendor {
        Vendor::Intel => "GenuineIntel",
        Vendor::Amd => "AuthenticAMD",
    };
    (wanted != own).then(|| format!("for a processor of {wanted}"))
}

/// The arguments of `undervisor` that run the test.
pub fn arguments(job: &Job, options: &TestOptions) -> Vec<String> {
    let entry = &job.entry;
    let timeout = match entry.timeout {
        None => DEFAULT_TIMEOUT,
        Some(0) => 10 * DEFAULT_TIMEOUT,
        Some(t) => t.max(DEFAULT_TIMEOUT),
    };
    let factor = timeout as f64 / DEFAULT_TIMEOUT as f64;
    let mut args: Vec<String> = ["run", "--kernel"].map(String::from).into();
    args.push(job.file.display().to_string());
    args.push(format!("--memory={}K", entry.memory.unwrap_or(options.memory) >> 10));
    args.push(format!("--cpus={}", entry.smp.unwrap_or(options.cpus)));
    args.push(format!("--cpu={}", cpu(entry, options.cpu.as_deref(), options.config.is_some())));
    args.push(format!("--insn-limit={}", (options.insn_limit as f64 * factor) as u64));
    args.push(format!("--time-limit={}", options.time_limit * factor));
    args.push("--idle=jump".into());
    args.push("--no-status".into());
    if !entry.arguments.is_empty() {
        args.push(format!("--append={}", entry.arguments));
    }
    if let Some(initrd) = &entry.initrd {
        args.push(format!("--initrd={initrd}"));
    }
    args
}

/// Run the test to its end.
pub fn run(job: &Job, options: &TestOptions) -> Result<Report, Failure> {
    if let Some(why) = job.entry.unfit().or_else(|| other_vendor(&job.entry, options.cpu.as_deref())) {
        return Ok(Report::not_run(&job.entry.name, why));
    }
    let program = std::env::current_exe().map_err(|source| Failure::Read { path: "undervisor".into(), source })?;
    let start = Instant::now();
    let result = Command::new(&program)
        .args(arguments(job, options))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| Failure::Read { path: program, source })?;
    let seconds = start.elapsed().as_secs_f64();
    let mut output = result.stdout;
    if output.len() > OUTPUT_LIMIT {
        output.drain(..output.len() - OUTPUT_LIMIT);
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    let errors = String::from_utf8_lossy(&result.stderr).into_owned();
    if let Some(dir) = &options.logs {
        let name: String = job.entry.name.chars().map(|c| if c == '/' || c == '\\' { '_' } else { c }).collect();
        let path = dir.join(format!("{name}.log"));
        std::fs::write(&path, format!("{output}{errors}")).map_err(|source| Failure::Write { path, source })?;
    }
    let mut report = Report::read(&job.entry.name, &output, seconds);
    report.verdict = Verdict::of(result.status.code(), &report, errors.trim());
    report.output = output + &errors;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cpu(cpu: &str) -> Entry {
        Entry { cpu: Some(cpu.into()), ..Entry::default() }
    }

    #[test]
    fn processors_of_entries() {
        assert_eq!(cpu(&Entry::default(), None, false), "max-intel");
        assert_eq!(cpu(&with_cpu("max,+svm,-npt"), None, false), "max-amd,+svm,-npt");
        assert_eq!(cpu(&with_cpu("qemu64,-x2apic,+nonsense"), None, false), "max-intel,-x2apic");
        assert_eq!(
            cpu(&with_cpu("IvyBridge,phys-bits=36,host-phys-bits=off,+vmx"), None, false),
            "max-intel,-la57,-smap,-pku,-invpcid,phys-bits=36,+vmx"
        );
        assert_eq!(cpu(&with_cpu("max,-pku"), None, true), "max-intel,+kvm_pv_ipi,-bus_lock_detect,-rdpru,-pku");
        assert_eq!(cpu(&Entry::default(), Some("max-amd,-kvm_pv_ipi"), true), "max-amd,-kvm_pv_ipi,-bus_lock_detect,-rdpru");
        let amd = with_cpu("Opteron_G1,vendor=AuthenticAMD");
        assert!(other_vendor(&amd, Some("max-intel")).is_some());
        assert_eq!(other_vendor(&amd, Some("max-amd")), None);
        assert_eq!(other_vendor(&amd, None), None);
        assert_eq!(other_vendor(&Entry::default(), Some("max-amd")), None);
        assert_eq!(cpu(&with_cpu("max,vendor=GenuineIntel"), Some("skylake-server"), false), "skylake-server");
    }
}
