//! Programs of this workspace that run inside guests.

use std::path::Path;
use std::process::Command;

/// Build program `name` of `package`, linked statically, for it runs where no shared libraries are, in a folder of its own
/// below `scratch`; its bytes.
pub fn build(package: &str, name: &str, scratch: &Path) -> Result<Vec<u8>, String> {
    let target = scratch.join(name);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["rustc", "--quiet", "--release", "-p", package, "--target-dir"])
        .arg(&target)
        .args(["--", "-C", "target-feature=+crt-static"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .map_err(|e| format!("cargo: {e}"))?;
    if !status.success() {
        return Err(format!("building {package}: {status}"));
    }
    let path = target.join("release").join(name);
    std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
}
