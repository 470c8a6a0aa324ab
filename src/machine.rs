//! What this machine has.

/// Bytes of memory that may still be used, where the system says so.
#[cfg(target_os = "linux")]
pub(crate) fn free_memory() -> Option<u64> {
    use std::fs::read_to_string;
    let meminfo = read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let free = line.split_whitespace().next()?.parse::<u64>().ok()?;
    let free = free.saturating_mul(1024);
    // A container may have less. What it uses now is mostly files that make room.
    let most = read_to_string("/sys/fs/cgroup/memory.max").ok();
    let most = most.and_then(|text| text.trim().parse::<u64>().ok());
    Some(most.map_or(free, |most| most.min(free)))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn free_memory() -> Option<u64> {
    None
}
