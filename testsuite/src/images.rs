//! The kernels and disks that boot tests use: files that `.ci/fetch-images` gets.

use std::path::{Path, PathBuf};

/// The image called `name`, or `None`, with a word about it, where it is missing.
///
/// Images are looked for in `$UNDERVISOR_IMAGES`, by default in `cache/images` of the source tree.
///
/// # Panics
/// If the image is missing and `UNDERVISOR_REQUIRE_IMAGES` is set and not empty: then a test must not pass without it.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = folder().join(name);
    if path.metadata().is_ok_and(|m| m.is_file() && m.len() > 0) { Some(path) } else { missing(&path) }
}

fn folder() -> PathBuf {
    match std::env::var_os("UNDERVISOR_IMAGES") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../cache/images")),
    }
}

fn missing(path: &Path) -> Option<PathBuf> {
    let required = std::env::var_os("UNDERVISOR_REQUIRE_IMAGES").is_some_and(|v| !v.is_empty());
    assert!(!required, "{} is missing, and UNDERVISOR_REQUIRE_IMAGES is set", path.display());
    // Straight to the error stream: the test harness hides what `eprintln!` says in a test that passes.
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("skipped: {} is missing; .ci/fetch-images gets it\n", path.display()),
    );
    None
}

/// The kernel module `name` (without `.ko`) among those of the kernel `flavour`; missing ones as with [`find`].
///
/// # Panics
/// As [`find`].
pub fn module(flavour: &str, name: &str) -> Option<PathBuf> {
    fn search(folder: &Path, file: &str) -> Option<PathBuf> {
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|n| n == file) {
                return Some(path);
            }
        }
        folders.iter().find_map(|f| search(f, file))
    }
    let modules = format!("modules-{flavour}");
    match search(&folder().join(&modules), &format!("{name}.ko")) {
        Some(path) => Some(path),
        None => missing(&folder().join(modules).join(format!("{name}.ko"))),
    }
}
