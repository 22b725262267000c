//! What differs between host systems.

/// Bytes of memory that the host has, where that can be found out.
#[cfg(target_os = "linux")]
pub fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0)) << 10)
}

/// Bytes of memory that the host has, where that can be found out.
#[cfg(not(target_os = "linux"))]
pub fn host_memory() -> Option<u64> {
    None
}
