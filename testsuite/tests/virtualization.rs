//! The cases of `virtualization`, in this machine.

use undervisor_core::Vendor;
use undervisor_machine::{Image, Kernel, MachineConfig};
use undervisor_svm::reason::name as exit_code;
use undervisor_testsuite::serial::Terminal;
use undervisor_testsuite::virtualization::{Suite, suite, svm, vmx};
use undervisor_vmx::reason::name as basic_reason;

/// The lines that the suite's image prints.
fn lines(suite: &Suite) -> Vec<String> {
    let kernel = Kernel { image: Image::new("virtualization", suite.image.clone()), ..Kernel::default() };
    let config = MachineConfig::new().memory(64 << 20).model(suite.model()).kernel(kernel);
    let mut terminal = Terminal::new(config).expect("a machine");
    terminal.expect("@DONE", 60);
    terminal.text().lines().map(str::to_string).collect()
}

fn agrees(vendor: Vendor) {
    let suite = suite(vendor).expect("an image");
    let lines = lines(&suite);
    let mut differences = suite.differences(&lines, true);
    // The richest model has everything that a case may need.
    differences.extend(lines.iter().filter(|l| l.ends_with(" skipped")).cloned());
    assert!(differences.is_empty(), "{} of {} cases differ:\n{}", differences.len(), suite.rows.len(), differences.join("\n"));
}

#[test]
fn every_vmx_exit_says_what_the_manual_says() {
    agrees(Vendor::Intel);
}

#[test]
fn every_svm_exit_says_what_the_manual_says() {
    agrees(Vendor::Amd);
}

#[test]
fn every_basic_exit_reason_has_a_case() {
    let cases = vmx::all();
    for reason in (0..128).filter(|&r| basic_reason(r) != "?") {
        let has = cases.iter().any(|c| c.reason & 0xffff == reason);
        let cannot = vmx::UNREACHABLE.iter().any(|u| u.0 == reason);
        assert!(has != cannot, "{reason} {}: a case: {has}, said to be unreachable: {cannot}", basic_reason(reason));
    }
}

#[test]
fn every_exit_code_has_a_case() {
    let cases = svm::all();
    for code in (0..=0x500).chain([u64::MAX]).filter(|&c| exit_code(c) != "unknown") {
        let has = cases.iter().any(|c| c.code == code);
        let cannot = svm::UNREACHABLE.iter().any(|u| (u.0..=u.1).contains(&code));
        assert!(has != cannot, "{code:#x} {}: a case: {has}, said to be unreachable: {cannot}", exit_code(code));
    }
}

#[test]
fn every_consistency_check_has_a_case() {
    let cases = svm::checks::all();
    for check in undervisor_svm::checks::CHECKS {
        let has = cases.iter().any(|c| c.0 == check.name);
        let cannot = svm::checks::UNREACHABLE.iter().any(|u| u.0 == check.name);
        assert!(has != cannot, "{}: a case: {has}, said to be unreachable: {cannot}", check.name);
    }
}

#[test]
fn every_entry_check_has_a_case() {
    use undervisor_vmx::checks::{TABLES, broken::COVERED_ELSEWHERE};
    let cases = vmx::all_checks();
    for check in TABLES.iter().flat_map(|t| t.checks) {
        let has = cases.iter().any(|c| c.guest.name.strip_prefix("check-") == Some(check.name));
        let cannot = COVERED_ELSEWHERE.iter().any(|c| c.0 == check.name);
        assert!(has != cannot, "{}: a case: {has}, said to be unreachable: {cannot}", check.name);
    }
}
