//! `undervisor cpu list` and `undervisor cpu show`: processor models as a guest sees them.

use std::io::{self, Write};

use undervisor_core::Vendor;
use undervisor_core::model::{CpuidInputs, Feature, Topology};
use undervisor_core::svm_features::SvmFeatures;
use undervisor_core::vmx_features::VmxFeatures;
use undervisor_machine::Model;
use undervisor_vmx::capabilities::{Capabilities, Limits};

use crate::error::Failure;
use crate::wiring;

/// Standard output may be a pipe that its reader closed: that is no failure.
fn print(text: &str) -> u8 {
    let _ = io::stdout().lock().write_all(text.as_bytes());
    0
}

/// Print the models.
pub fn list() -> Result<u8, Failure> {
    let mut out = String::new();
    for name in Model::names() {
        if let Some(m) = Model::by_name(name) {
            let virtualization = match m.vendor {
                Vendor::Intel => "VMX",
                Vendor::Amd => "SVM",
            };
            out.push_str(&format!("{name:<16} {virtualization}  {}\n", m.brand));
        }
    }
    Ok(print(&out))
}

/// Print a model: CPUID, features, virtualization.
pub fn show(name: &str) -> Result<u8, Failure> {
    let model = wiring::cpu(name)?;
    let mut out = format!("{}: {}\n", model.name, model.brand);
    out.push_str(&format!(
        "signature {:#010x}, {} physical address bits, {} linear\n",
        model.signature,
        model.physical_bits,
        model.linear_bits()
    ));
    leaves(&model, &mut out);
    let names = model.features.iter().map(Feature::name).collect::<Vec<_>>();
    section(&mut out, "CPUID features", &names);
    match model.vendor {
        Vendor::Intel => {
            let names: Vec<_> = VmxFeatures::NAMES.iter().filter(|f| model.vmx.contains(f.1)).map(|f| f.0).collect();
            section(&mut out, "VMX features", &names);
            capabilities(&model, &mut out);
        }
        Vendor::Amd => {
            let names: Vec<_> = SvmFeatures::NAMES.iter().filter(|f| model.svm.contains(f.1)).map(|f| f.0).collect();
            section(&mut out, "SVM features", &names);
        }
    }
    Ok(print(&out))
}

fn section(out: &mut String, title: &str, names: &[&str]) {
    out.push_str(&format!("\n{title} ({}):\n", names.len()));
    let mut line = String::from(" ");
    for name in names {
        if line.len() + name.len() > 100 {
            out.push_str(&line);
            out.push('\n');
            line = String::from(" ");
        }
        line.push(' ');
        line.push_str(name);
    }
    out.push_str(&line);
    out.push('\n');
}

/// Leaves that have sub-leaves, and how many are shown.
const SUBLEAVES: [(u32, u32); 7] = [(4, 5), (7, 3), (0xb, 2), (0xd, 10), (0x14, 2), (0x1f, 2), (0x8000_001d, 5)];

fn leaves(model: &Model, out: &mut String) {
    let now = CpuidInputs {
        topology: Topology::default(),
        xcr0: model.xcr0_bits(),
        apic_enabled: true,
        tsc_hz: undervisor_cpu::time::TSC_MULTIPLE * 1_000_000_000,
        timer_hz: undervisor_cpu::apic::TIMER_HZ,
        ..CpuidInputs::default()
    };
    out.push_str("\n      leaf  subleaf       EAX       EBX       ECX       EDX\n");
    let all = (0..=model.max_leaf).chain(0x8000_0000..=model.max_extended_leaf);
    for leaf in all {
        let count = SUBLEAVES.iter().find(|s| s.0 == leaf).map_or(1, |s| s.1);
        for subleaf in 0..count {
            let [a, b, c, d] = model.cpuid(leaf, subleaf, &now);
            if subleaf > 0 && (a | b | c | d == 0) {
                continue;
            }
            out.push_str(&format!("  {leaf:08x}  {subleaf:7}  {a:08x}  {b:08x}  {c:08x}  {d:08x}\n"));
        }
    }
}

/// The VMX capability MSRs (SDM vol. 3, VMX Capability Reporting Facility).
fn capabilities(model: &Model, out: &mut String) {
    const NAMES: [&str; 20] = [
        "IA32_VMX_BASIC",
        "IA32_VMX_PINBASED_CTLS",
        "IA32_VMX_PROCBASED_CTLS",
        "IA32_VMX_EXIT_CTLS",
        "IA32_VMX_ENTRY_CTLS",
        "IA32_VMX_MISC",
        "IA32_VMX_CR0_FIXED0",
        "IA32_VMX_CR0_FIXED1",
        "IA32_VMX_CR4_FIXED0",
        "IA32_VMX_CR4_FIXED1",
        "IA32_VMX_VMCS_ENUM",
        "IA32_VMX_PROCBASED_CTLS2",
        "IA32_VMX_EPT_VPID_CAP",
        "IA32_VMX_TRUE_PINBASED_CTLS",
        "IA32_VMX_TRUE_PROCBASED_CTLS",
        "IA32_VMX_TRUE_EXIT_CTLS",
        "IA32_VMX_TRUE_ENTRY_CTLS",
        "IA32_VMX_VMFUNC",
        "IA32_VMX_PROCBASED_CTLS3",
        "IA32_VMX_EXIT_CTLS2",
    ];
    let capabilities = Capabilities::new(model.vmx, Limits::of(model));
    out.push_str("\nVMX capability MSRs:\n");
    for (i, name) in NAMES.iter().enumerate() {
        if let Some(value) = capabilities.msr(0x480 + i as u32) {
            out.push_str(&format!("  {:#05x}  {name:<29} {value:#018x}\n", 0x480 + i));
        }
    }
}
