//! A small KVM virtual-machine monitor, to run *inside* undervisor as a guest's own hypervisor: it boots a bzImage with an initramfs as
//! L2, with COM1 on standard output. Built static, so that it runs in a bare initramfs:
//! `cargo rustc --release -p undervisor-vmm -- -C target-feature=+crt-static`.
//!
//! Usage: `vmm KERNEL [INITRD] [COMMAND LINE] [MiB] [VCPUS]`. Ends when the guest switches off or resets.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod acpi;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod monitor;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match monitor::run(&arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vmm: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    eprintln!("vmm: needs /dev/kvm on x86-64 Linux");
}
